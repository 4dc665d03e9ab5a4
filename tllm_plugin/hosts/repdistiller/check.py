"""Check the methods of a descendant of RepDistiller: `python -m tllm_plugin.hosts.repdistiller.check`, in the checkout.

Its own train script runs three times for each `--distill`, for two steps on random images: without TLLM, with TLLM and
nothing flagged, which must give the same weights bit for bit, and with a third of the classes flagged.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from tllm_plugin.core.errors import ConfigError, TLLMError
from tllm_plugin.hosts.host_check import BROKEN, FAILS, REFUSED, TRAINS, Fact, MethodCheck, Problem, Tell, answer
from tllm_plugin.hosts.repdistiller.compat import stand_in_for_what_is_gone
from tllm_plugin.hosts.repdistiller.launch import STUDENT_SCRIPT, find_script, prepared
from tllm_plugin.hosts.repdistiller.trial import NOTHING_FLAGGED, OFF, SOME_FLAGGED, Trial, make_small


def check(root: Path, script: str, options: Sequence[str], tell: Tell) -> None:
    """Check a checkout; see `answer` for the arguments."""
    try:
        path = find_script(root, script or STUDENT_SCRIPT)
        found = prepared(path)
    except ConfigError as error:
        tell(Problem(str(error)))
        return
    tell(Fact("script", str(path.relative_to(root))))
    for part, text in found.parts:
        tell(Fact(part, text))
    for note in [*found.notes, *stand_in_for_what_is_gone()]:
        tell(Fact("note", note))
    make_small()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "work"
        folder.mkdir()
        trial = Trial(path, found)
        with trial.inside(folder):
            tell(Fact("networks", f"student and teacher are {trial.network}"))
            for method in trial.methods():
                tell(_check_method(trial, method, options))


def _check_method(trial: Trial, method: str, options: Sequence[str]) -> MethodCheck:
    """Return the verdict on a method after the three runs."""
    states = []
    for words in (OFF, NOTHING_FLAGGED, SOME_FLAGGED):
        try:
            problem = trial.run(method, [*words, *options])
        except TLLMError as error:
            verdict = REFUSED if isinstance(error, ConfigError) else FAILS
            return MethodCheck(method, verdict, str(error).replace("\n", "; "))
        if problem:
            return MethodCheck(method, FAILS if words else BROKEN, problem)
        states.append(trial.weights())
    off, nothing, _ = states
    other = [name for name, value in off.items() if not torch.equal(value, nothing[name])]
    if other:
        return MethodCheck(method, FAILS, f"with nothing flagged, other weights than without TLLM: {other[0]}")
    return MethodCheck(method, TRAINS)


if __name__ == "__main__":
    answer(check)
