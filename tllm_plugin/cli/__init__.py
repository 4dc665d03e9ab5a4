"""The command `tllm`."""

from tllm_plugin.cli.main import main

__all__ = ["main"]
