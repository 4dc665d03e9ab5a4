"""Hosts: adapters to the codebases whose configs, models and training loops are used."""
