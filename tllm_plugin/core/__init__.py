"""Core: wrapper, routing, detectors, curves, hold-out split. Depends on torch only, not on hosts, configs or file
formats."""
