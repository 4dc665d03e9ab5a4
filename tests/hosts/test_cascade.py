"""Flagging classes leaves the others as they were: a real run whose planted classes are flagged from the start."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.hosts.conftest import Trained
from tests.hosts.digits_runs import train
from tllm_plugin.core.curves import Curves
from tllm_plugin.core.evidence import mcnemar_p_value, paired_counts
from tllm_plugin.runs.curves_file import to_state

PLANTED = [3, 8]
LONGER = ("SOLVER.EPOCHS", "12", "DISTILLER.PLANT.CLASSES", str(PLANTED))


def test_forced_flags_help_their_classes_and_change_no_other_beyond_noise(trained: Trained, tmp_path: Path) -> None:
    forced = ("TLLM.DETECTOR.TYPE", "fixed", "TLLM.DETECTOR.CLASSES", str(PLANTED))
    runs = {
        "kd": train(tmp_path / "kd", *LONGER, *trained.taught, "TLLM.DETECTOR.TYPE", "none"),
        "flagged": train(tmp_path / "flagged", *LONGER, *trained.taught, *forced),
    }
    curves = {name: Curves.from_state(to_state(run.read_curves())) for name, run in runs.items()}
    last = {name: curve.samples_at(curve.epochs[-1]) for name, curve in curves.items()}
    losses, gains = paired_counts(last["kd"].correct, last["flagged"].correct, last["kd"].labels, 10)
    others = torch.tensor([c for c in range(10) if c not in PLANTED])
    assert gains[PLANTED].sum() - losses[PLANTED].sum() > 10, "the planted classes were not given back"
    # A Bonferroni bound over the eight other classes, in both directions.
    assert (mcnemar_p_value(losses, gains)[others] > 0.05 / 8).all()
    assert abs(int(gains[others].sum() - losses[others].sum())) <= 0.05 * len(last["kd"].labels)
