"""Core: wrapper, routing, detectors, curves, hold-out split. Needs torch only; knows no host, config or file format."""
