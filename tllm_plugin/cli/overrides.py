"""The argument of every command that takes a config: what is to be different from it."""

from __future__ import annotations

import argparse


def add_overrides(parser: argparse.ArgumentParser, more: str = "") -> None:
    """Add `KEY VALUE ...`, as `opts`.

    Args:
        parser: Of the command.
        more: What else these words may be, for the help.
    """
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help=f"overrides, as in SOLVER.EPOCHS 30{more}")
