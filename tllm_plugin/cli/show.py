"""`tllm show`: print flags and curves of a run as a table."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from rich.cells import cell_len
from rich.table import Table

from tllm_plugin.core.curves import Curves
from tllm_plugin.core.escaping import visible
from tllm_plugin.hosts.console import PlainConsole, write_json_result
from tllm_plugin.runs.curves_file import to_state
from tllm_plugin.runs.flags_file import ClassFlag, FlagsRecord
from tllm_plugin.runs.policy_file import PolicyRecord
from tllm_plugin.runs.run_folder import RunFolder

_COLUMNS = 6
#: The evidence's headings, and how many characters a column of it is wide.
_EVIDENCE = {"flagged\nafter\nepoch": 7, "drop": 5, "McNemar\np": 7, "e-value": 7, "hold-out": 8}
#: The same of the posterior, of runs with a reference run.
_HARM = {"P(harm)": 7}
#: The same of what a policy has decided.
_WEIGHTS = {"teacher\nstrength": 8, "teaching\nweight": 8}
_VALUE, _BORDER = 4, 3


def run(options: argparse.Namespace) -> None:
    """Print flags and curves as a table, or write them as JSON."""
    folder = RunFolder.find(options.run_path)
    flags = folder.read_flags()
    curves = Curves.from_state(to_state(folder.read_curves()))
    policy = folder.read_policy() if folder.policy_json.exists() else None
    if options.json:
        write_json_result(options.json, record(flags, curves, options.score, policy))
    if options.json == "-":
        return
    console = PlainConsole()
    console.print(table(flags, curves, options.score, console.width, policy))
    if policy is not None:
        console.print(_described(policy))
    if flags.reason:
        console.print(f"nothing flagged: {flags.reason}")
    console.print(f"{len(flags.flagged)} of {flags.num_classes} classes flagged by `{flags.detector.name}`")


def record(flags: FlagsRecord, curves: Curves, score: str, policy: PolicyRecord | None) -> dict[str, Any]:
    """Return flags, policy and curves of a run as JSON values.

    Args:
        flags: Flags of the run.
        curves: Curves of the run.
        score: Score of the curves.
        policy: Teaching weights of the run, if a policy set them.
    """
    return {
        "flags": asdict(flags),
        "policy": None if policy is None else asdict(policy),
        "score": score,
        "epochs": list(curves.epochs),
        "curves": curves.class_curves(score).T.tolist(),  # One list per class.
    }


def _described(policy: PolicyRecord) -> str:
    weights = [item.weight for item in policy.classes]
    return (
        f"policy `{policy.policy}`: {sum(weight < 1 for weight in weights)} of {policy.num_classes} classes are taught "
        f"less (mean weight {sum(weights) / len(weights):.3f}, least {min(weights):.3f}). A class's strength is the "
        f"teacher's mean probability of it at temperature {policy.temperature:g}; the level is {policy.level:.3f}."
    )


def table(flags: FlagsRecord, curves: Curves, score: str, width: int, policy: PolicyRecord | None = None) -> Table:
    """Return one row per class with its evidence and its curve at a few epochs; flagged classes come first.

    Args:
        flags: Flags of the run.
        curves: Curves of the run.
        score: Score to show.
        width: Width of the console in characters; as many epochs are shown as fit, at least two.
        policy: Teaching weights of the run, if a policy set them.
    """
    weights = {} if policy is None else _WEIGHTS
    names = max(len("class"), *(cell_len(visible(item.name)) for item in flags.classes))
    harm = _HARM if any(item.probability_of_harm is not None for item in flags.classes) else {}
    columns = {**weights, **_EVIDENCE, **harm}
    taken = names + sum(columns.values()) + (1 + len(columns)) * _BORDER + 1
    picked = _spread(len(curves), min(_COLUMNS, max(2, (width - taken) // (_VALUE + _BORDER))))
    result = Table(title=f"hold-out {score} per class, after the epochs in the heading", title_justify="left")
    result.add_column("class", overflow="fold")
    for name in (*columns, *(str(curves.epochs[row]) for row in picked)):
        result.add_column(name, justify="right", overflow="fold")
    values = curves.class_curves(score)
    for item in sorted(flags.classes, key=lambda item: (not item.flagged, item.index)):
        cells = [f"{values[row, item.index]:.2f}" for row in picked]
        result.add_row(
            visible(item.name),
            *_weight(policy, item.index),
            *_evidence(item),
            *_harm(item, len(harm)),
            *cells,
            style="bold" if item.flagged else None,
        )
    return result


def _weight(policy: PolicyRecord | None, index: int) -> list[str]:
    found = [] if policy is None else [policy.classes[index]]
    return [text for item in found for text in (f"{item.strength:.3f}", f"{item.weight:.3f}")]


def _evidence(item: ClassFlag) -> list[str]:
    return [
        "" if item.epoch_flagged is None else str(item.epoch_flagged),
        "" if item.drop is None else f"{item.drop:+.2f}",
        "" if item.p_value is None else f"{item.p_value:.2g}",
        "" if item.e_value is None else f"{item.e_value:.3g}",
        f"{item.holdout_correct}/{item.holdout_count}",
    ]


def _harm(item: ClassFlag, columns: int) -> list[str]:
    return ["" if item.probability_of_harm is None else f"{item.probability_of_harm:.2f}"] * columns


def _spread(count: int, most: int) -> list[int]:
    """Return up to `most` evenly spaced indices into `count` items, including the last."""
    if count <= most:
        return list(range(count))
    return sorted({round((count - 1) * place / (most - 1)) for place in range(most)})
