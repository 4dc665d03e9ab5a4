"""The version of this package, stated here only; `setup.py` and everything that records it read it from here."""

__version__ = "0.1.0"
