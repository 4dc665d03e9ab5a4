"""Try the methods of a checkout of mdistiller: `python -m tllm_plugin.hosts.mdistiller.check RESULT.json`."""

from __future__ import annotations

import sys
from pathlib import Path

from tllm_plugin.core.errors import TLLMError
from tllm_plugin.hosts.host_check import CheckResult, write


def check() -> CheckResult:
    """Return what was found in the checkout that can be imported."""
    try:
        from mdistiller.distillers import distiller_dict

        from tllm_plugin.hosts.mdistiller import registration  # noqa: F401
    except TLLMError as error:
        return CheckResult(facts=(), problem=str(error))
    return CheckResult(facts=(("methods", ", ".join(sorted(distiller_dict))),))


if __name__ == "__main__":
    write(Path(sys.argv[1]), check())
