"""Import users' own modules and entry points, which register detectors and methods."""

from __future__ import annotations

import importlib
import os
import sys
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from tllm_plugin.core.detectors import DETECTORS
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.core.registry import Registry
from tllm_plugin.methods import METHODS

#: Modules to import, separated by commas: for hosts' own scripts, which have no `--import`.
VARIABLE = "TLLM_IMPORT"
_GROUPS: dict[str, Registry[Any]] = {"tllm_plugin.detectors": DETECTORS, "tllm_plugin.methods": METHODS}


def requested() -> list[str]:
    """Return the names of the modules to import."""
    return [module for module in os.environ.get(VARIABLE, "").split(",") if module]


def import_words() -> list[str]:
    """Return the command-line arguments that import the same modules."""
    return [word for module in requested() for word in ("--import", module)]


def request_import(modules: list[str]) -> None:
    """Request the import of modules in this process and its child processes, also from the working folder."""
    if modules:
        os.environ[VARIABLE] = ",".join(dict.fromkeys([*requested(), *modules]))
        load_extensions.cache_clear()
        # Appended, so that a file in this folder hides neither a package nor a module of a host.
        here = os.getcwd()
        sys.path.extend({here}.difference(sys.path))
        places = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([*filter(None, places), here]))


@cache
def load_extensions() -> None:
    """Import the requested modules, and register the entry points of installed packages.

    An entry point in the group `tllm_plugin.detectors` or `tllm_plugin.methods` registers its class under its own name.

    Raises:
        ConfigError: A module or an entry point cannot be imported or registered.
    """
    for module in requested():
        try:
            importlib.import_module(module)
        except Exception as error:
            raise ConfigError(f"Expected to import {module}, but {type(error).__name__}: {error}") from error
    for group, registry in _GROUPS.items():
        for entry in entry_points(group=group):
            try:
                registry.register(entry.name)(entry.load())
            except Exception as error:
                raise ConfigError(
                    f"Expected the entry point {entry.name} = {entry.value} of {group} to be a class, but "
                    f"{type(error).__name__}: {error}; repair or uninstall the package"
                ) from error
