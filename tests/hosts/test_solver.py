"""AdamW, the cosine schedule and the average of the student's weights, against formulas and loops written here."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.hosts.conftest import Trained
from tests.hosts.digits_runs import assert_same_run, interrupt_at, make_config, train
from tllm_plugin.core.curves import Curves
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.core.predictions import predict
from tllm_plugin.data import load_data
from tllm_plugin.hosts.embedded import recipe
from tllm_plugin.hosts.embedded.averaging import StudentAverage
from tllm_plugin.hosts.embedded.trainer import BaseTrainer
from tllm_plugin.hosts.optimizers import make_optimizer, make_schedule
from tllm_plugin.hosts.weights import load_weights
from tllm_plugin.models import create_model
from tllm_plugin.runs.curves_file import to_state

MODERN = (
    *("SOLVER.TYPE", "AdamW", "SOLVER.LR", "0.003", "SOLVER.WEIGHT_DECAY", "0.05"),
    *("SOLVER.SCHEDULE", "cosine", "SOLVER.WARMUP_EPOCHS", "1", "SOLVER.EMA_DECAY", "0.9"),
)
STEPS = 7


@pytest.mark.parametrize("warmup", [0, 2])
def test_cosine_with_warm_up(warmup: int, tmp_path: Path) -> None:
    overrides = ("SOLVER.SCHEDULE", "cosine", "SOLVER.WARMUP_EPOCHS", str(warmup), "SOLVER.LEAST_LR", "0.0005")
    solver = make_config(tmp_path, *overrides, "SOLVER.EPOCHS", "5", "SOLVER.LR", "0.02").SOLVER
    optimizer = make_optimizer(solver, [nn.Parameter(torch.zeros(1))])
    schedule = make_schedule(solver, optimizer, STEPS)
    climbing, total = warmup * STEPS, 5 * STEPS
    for step in range(total):
        if step < climbing:
            expected = 0.02 * (1 + step * climbing / climbing) / (climbing + 1)
        else:
            part = (step - climbing) / (total - climbing)
            expected = 0.0005 + (0.02 - 0.0005) * (1 + math.cos(math.pi * part)) / 2
        assert schedule.get_last_lr()[0] == pytest.approx(expected, rel=1e-6), step
        optimizer.step()
        schedule.step()
    assert schedule.get_last_lr()[0] == pytest.approx(0.0005)


def test_adamw_makes_the_step_of_its_paper(tmp_path: Path) -> None:
    solver = make_config(tmp_path, *MODERN, "SOLVER.BETAS", "[0.8, 0.95]").SOLVER
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = make_optimizer(solver, [weight])
    mean, square, expected = torch.zeros(2), torch.zeros(2), weight.detach().clone()
    for step in range(1, 4):
        gradient = torch.tensor([0.5, -1.0]) * step
        weight.grad = gradient.clone()
        optimizer.step()
        mean, square = 0.8 * mean + 0.2 * gradient, 0.95 * square + 0.05 * gradient**2
        expected = expected * (1 - 0.003 * 0.05)
        expected = expected - 0.003 * (mean / (1 - 0.8**step)) / ((square / (1 - 0.95**step)).sqrt() + 1e-8)
        torch.testing.assert_close(weight.detach(), expected)


def test_average_is_the_sum_of_its_definition() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    average = StudentAverage(network, 0.75)
    expected: list[Tensor] = []
    for step in range(4):
        with torch.no_grad():
            network[0].weight.add_(torch.randn(4, 3))
        network(torch.randn(8, 3))
        average.update()
        now = [network[0].weight.detach().clone(), network[1].running_mean.clone()]  # type: ignore[operator, union-attr]
        expected = now if not step else [0.75 * old + 0.25 * new for old, new in zip(expected, now, strict=True)]
    own = network[0].weight.detach().clone()
    with average.in_place(), average.in_place():
        torch.testing.assert_close(network[0].weight.detach(), expected[0])
        torch.testing.assert_close(network[1].running_mean, expected[1])
    assert torch.equal(network[0].weight, own)


def test_the_average_is_what_is_scored_tested_and_saved(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loop of the test's own averages the weights after every step; answers come from that network."""
    seen: list[dict[str, Tensor]] = []
    original = BaseTrainer.train_iter

    def train_iter(self: BaseTrainer, *batch: object) -> object:
        result = original(self, *batch)  # type: ignore[arg-type]
        now = {key: value.detach().clone() for key, value in self.distiller.student.state_dict().items()}  # type: ignore[union-attr]
        if seen:
            for key, value in seen[0].items():
                seen[0][key] = value * 0.9 + now[key] * 0.1 if value.is_floating_point() else now[key]
        else:
            seen.append(now)
        return result

    monkeypatch.setattr(BaseTrainer, "train_iter", train_iter)
    none = ("TLLM.DETECTOR.TYPE", "none", "DISTILLER.TYPE", "NONE")
    run = train(tmp_path, *MODERN, *none, "EXPERIMENT.NAME", "average")
    network = create_model("digits_student", 10, 1)
    saved = load_weights(create_model("digits_student", 10, 1), run.log_folder / "student_latest")
    network.load_state_dict(seen[0])
    for key, value in saved.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, network.state_dict()[key], rtol=1e-4, atol=1e-5)
    # Bit for bit, the saved student gives the run's test answers and hold-out scores.
    device, data = torch.device("cpu"), load_data("digits")
    found = predict(saved, data.eval_loader(None, batch_size=500, device=device, split="test"))
    assert torch.equal(found.prediction, run.read_predictions().prediction)
    curves = Curves.from_state(to_state(run.read_curves()))
    scored = predict(saved, data.eval_loader(curves.sample_ids, batch_size=500, device=device, split="train"))
    assert torch.equal(scored.correct, curves.samples_at(curves.epochs[-1]).correct)


def test_a_run_with_all_of_it_resumes_exactly(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (*MODERN, *trained.taught, "TLLM.DETECTOR.TYPE", "none", "EXPERIMENT.NAME", "kd")
    whole = train(tmp_path / "whole", *options)
    with monkeypatch.context() as patched:
        interrupt_at(patched, 2, 3)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "parts", *options)
    assert_same_run(whole, recipe.run(make_config(tmp_path / "parts", *options), resume=True))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("SOLVER.TYPE", "Adam"), "`SOLVER.TYPE` to be one of AdamW, SGD, but got 'Adam'"),
        (("SOLVER.BETAS", "[0.9]"), r"`SOLVER.BETAS` to be two numbers in \[0, 1\), but got \[0.9\]"),
        (("SOLVER.EMA_DECAY", "1.0"), r"`SOLVER.EMA_DECAY` to be in \[0, 1\), but got 1.0"),
        (("SOLVER.EMA_DECAY", "0.9", "DISTILLER.TYPE", "CID"), "`SOLVER.EMA_DECAY` to be 0 for CID"),
    ],
)
def test_bad_values(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(tmp_path, *words)
