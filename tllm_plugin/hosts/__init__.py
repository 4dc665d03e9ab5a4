"""Hosts: the codebases whose configs, models and training loops are used, each adapted to the parts above."""
