"""What TensorBoard is given, read back from the event files of a real run."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from tests.analysis.planted_runs import write_run
from tests.hosts.conftest import Trained
from tests.hosts.digits_runs import EPOCHS, load_latest, train
from tllm_plugin import Curves
from tllm_plugin.hosts.tensorboard import MOST_CURVES, draw_curves, log_holdout, worst_tenth
from tllm_plugin.runs.curves_file import to_state
from tllm_plugin.runs.run_folder import RunFolder


def curves_of(folder: RunFolder) -> Curves:
    return Curves.from_state(to_state(folder.read_curves()))


def test_events_of_a_run(trained: Trained, tmp_path: Path) -> None:
    run = train(tmp_path, *trained.detecting, "EXPERIMENT.NAME", "flagging")
    events = EventAccumulator(str(run.log_folder / "train.events"), {"images": 0, "histograms": 0, "scalars": 0})
    events.Reload()
    scalars = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    accuracy = curves_of(run).class_curves("accuracy")
    flags = run.read_flags()
    for row, epoch in enumerate(range(1, EPOCHS + 1)):
        flagged = sum(item.flagged and (item.epoch_flagged or 0) <= epoch for item in flags.classes)
        assert scalars["tllm/flagged_classes"][row] == (epoch, flagged)
        for tag, expected in (
            ("tllm/holdout_accuracy", accuracy[row].mean()),
            ("tllm/holdout_accuracy_worst_tenth", accuracy[row].min()),
        ):
            assert scalars[tag][row] == (epoch, pytest.approx(float(expected), abs=1e-6))
    histograms = events.Histograms("tllm/holdout_accuracy_per_class")
    assert [event.step for event in histograms] == [1, 2, 3]
    for row, event in enumerate(histograms):
        assert_counted(event.histogram_value, accuracy[row].tolist())
    first_flags = sorted({item.epoch_flagged for item in flags.classes if item.flagged})
    images = events.Images("tllm/newly_flagged_classes")
    assert first_flags and [event.step for event in images] == first_flags
    picture = np.asarray(Image.open(io.BytesIO(images[0].encoded_image_string)).convert("RGB"))
    assert picture.std() > 5


def test_every_share_of_20_images_has_a_bin_of_its_own(tmp_path: Path) -> None:
    per_class = torch.arange(21, dtype=torch.float64) / 20
    labels = torch.arange(21)
    with SummaryWriter(str(tmp_path)) as writer:
        log_holdout(
            writer,
            1,
            per_class=per_class,
            flags=torch.zeros(21, dtype=torch.bool),
            new=[],
            curves=Curves(labels, 21, labels),
            reference=None,
            class_names=[str(label) for label in labels.tolist()],
            few_rows_steps=0,
        )
    events = EventAccumulator(str(tmp_path), {"histograms": 0})
    events.Reload()
    (event,) = events.Histograms("tllm/holdout_accuracy_per_class")
    assert_counted(event.histogram_value, per_class.tolist())
    # The last one is closed on both sides.
    assert [count for count in event.histogram_value.bucket if count] == [1] * 19 + [2]


def assert_counted(histogram: Any, values: Sequence[float]) -> None:
    """Check that each bin of a twentieth holds the values between its limits."""
    for limit, found in zip(histogram.bucket_limit, histogram.bucket, strict=True):
        twentieths = round(20 * limit)
        assert limit == twentieths / 20
        inside = [v for v in values if (twentieths - 1) / 20 <= v < limit or v == limit == 1.0]
        assert found == len(inside)
    assert sum(histogram.bucket) == len(values)


@pytest.mark.parametrize("parts, told", [(1, 0), (16, 1)])
def test_parts_with_too_few_rows_to_teach_are_counted_and_told_of(
    parts: int, told: int, trained: Trained, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    options = ("TLLM.DETECTOR.TYPE", "fixed", "TLLM.DETECTOR.CLASSES", "[3, 8]", "SOLVER.ACCUMULATE", str(parts))
    run = train(tmp_path, *trained.taught, *options, "EXPERIMENT.NAME", "few")
    events = EventAccumulator(str(run.log_folder / "train.events"))
    events.Reload()
    counts = [event.value for event in events.Scalars("tllm/few_rows_steps")]
    (extra,) = (value for name, value in load_latest(run)["model"].items() if name.endswith("_extra_state"))
    assert len(counts) == EPOCHS and counts[-1] == extra["counters"]["few_rows_steps"]
    # 64 images in 16 parts of 4, of which MIN_ROWS 4 may be taught only if none is of a flagged class.
    assert (counts[0] > 50) == bool(told)
    assert sum("had fewer than TLLM.MIN_ROWS = 4 rows with a teacher" in text for text in caplog.messages) == told


@pytest.mark.parametrize("classes", [1, 5, 40])
def test_drawing(classes: int, tmp_path: Path) -> None:
    folders = [
        RunFolder.find(write_run(tmp_path / f"{seed}", seed=seed, classes=40, per_class=5, epochs=20))
        for seed in (0, 1)
    ]
    run, vanilla = map(curves_of, folders)
    names = ["$x^", "caf\udce9", "<b>", "\u2603" * 60, *(f"{i}" for i in range(36))]
    alone, both = (draw_curves(run, reference, range(classes), names) for reference in (None, vanilla))
    assert both.dtype == np.uint8 and both.shape[2] == 3 and both.shape[1] == 240 * min(classes, 4)
    assert both.shape[0] == 176 * -(-min(classes, MOST_CURVES) // 4)
    assert (alone != both).any()
    # The run is drawn in its colour, whatever else is in the picture.
    assert (np.abs(both.astype(int) - [184, 67, 0]).sum(2) < 30).sum() > 30 * min(classes, MOST_CURVES)


@pytest.mark.filterwarnings("error")
def test_signs_that_the_font_lacks_are_written_out(tmp_path: Path) -> None:
    run = curves_of(RunFolder.find(write_run(tmp_path / "run", classes=3, per_class=5, epochs=4)))
    for lacking, written in (("\u4e2d", "\\u4e2d"), ("caf\u00e9 \U000737f9", "caf\u00e9 \\U000737f9")):
        images = [draw_curves(run, None, range(3), [name, "b", "c"]) for name in (lacking, written)]
        assert np.array_equal(*images)


def test_worst_tenth() -> None:
    values = torch.rand(30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert worst_tenth(values) == pytest.approx(np.sort(values.numpy())[:3].mean())
    assert worst_tenth(values[:4]) == pytest.approx(values[:4].min().item())
