"""Round trips through a run's folder, and finding that folder from whatever a user names."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from tllm_plugin import Curves, FileFormatError, TLLMError
from tllm_plugin.core.data_identity import DataIdentity, DataPart
from tllm_plugin.runs import data_file
from tllm_plugin.runs.curves_file import to_state, write_curves
from tllm_plugin.runs.flags_file import DetectorChoice, FlagsRecord
from tllm_plugin.runs.metrics_file import MetricsRecord
from tllm_plugin.runs.run_folder import RunFolder, find_curves
from tllm_plugin.runs.split_file import SplitRecord


def test_records_round_trip(
    run: RunFolder, split_record: SplitRecord, flags_record: FlagsRecord, metrics_record: MetricsRecord
) -> None:
    assert run.read_split() == split_record
    assert run.read_flags() == flags_record == FlagsRecord.read(str(run.flags_json))
    assert run.read_metrics() == metrics_record
    assert flags_record.flagged == (1,)


def test_records_before_anything_happened_round_trip(run: RunFolder) -> None:
    split = SplitRecord((), (), 0, 0.0, 0)
    flags = FlagsRecord(DetectorChoice("none", {}), 0, 0, "nothing ran yet", ())
    metrics = MetricsRecord(None, (), (), (), None, 0, False)
    run.write_split(split)
    run.write_flags(flags)
    run.write_metrics(metrics)
    assert (run.read_split(), run.read_flags(), run.read_metrics()) == (split, flags, metrics)


def test_files_say_what_they_are(run: RunFolder) -> None:
    for path in (run.split_json, run.flags_json, run.metrics_json):
        stamp = json.loads(path.read_bytes())
        assert (stamp["schema"], stamp["version"]) == (f"tllm/{path.stem}", 1)
    with np.load(run.curves_npz) as archive:
        assert (archive["schema"].item(), archive["version"].item()) == ("tllm/curves", 1)


def equal_curves(one: Curves, other: Curves) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(
        torch.equal(left[name], right[name]) and left[name].dtype == right[name].dtype
        if isinstance(left[name], torch.Tensor)
        else left[name] == right[name]
        for name in left
    )


def test_curves_round_trip(run: RunFolder, curves: Curves) -> None:
    restored = Curves.from_state(to_state(run.read_curves()))
    assert equal_curves(restored, curves)
    assert torch.equal(restored.class_curves("true_prob"), curves.class_curves("true_prob"))


def test_curves_without_teacher_or_epochs_round_trip(run: RunFolder, curves: Curves) -> None:
    empty = Curves(curves.labels, 3, curves.sample_ids)
    run.write_curves(empty.state_dict())
    assert equal_curves(Curves.from_state(to_state(run.read_curves())), empty)

    empty.append(4, dataclasses.replace(curves.samples_at(2), agree=None))
    run.write_curves(empty.state_dict())
    assert equal_curves(Curves.from_state(to_state(run.read_curves())), empty)


def test_curves_keep_what_else_is_written(run: RunFolder, curves: Curves) -> None:
    more = {"score": "true_prob", "names": ["a", "b\u2603"], "eta": 0.5, "lr": [0.1, 0.2]}
    run.write_curves({**curves.state_dict(), **more})
    state = to_state(run.read_curves())
    assert state["lr"].tolist() == [0.1, 0.2]
    assert {name: state[name] for name in ("score", "names", "eta")} == {
        "score": "true_prob",
        "names": ["a", "b\u2603"],
        "eta": 0.5,
    }


def test_curves_refuse_what_they_cannot_keep(run: RunFolder, curves: Curves) -> None:
    before = run.curves_npz.read_bytes()
    with pytest.raises(ValueError, match="Expected other names than schema, version in the curves, but got them"):
        run.write_curves({**curves.state_dict(), "version": 2, "schema": "x"})
    with pytest.raises(TypeError, match="Expected `what` of the curves to be a tensor, numbers or strings, but got"):
        run.write_curves({**curves.state_dict(), "what": {"a": 1}})
    assert run.curves_npz.read_bytes() == before


def test_find_takes_log_folder_tllm_folder_and_file(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    for named in (run.log_folder, run.path, run.flags_json, run.curves_npz):
        assert RunFolder.find(named).path == run.path
        assert RunFolder.find(str(named)).log_folder == run.log_folder
    monkeypatch.chdir(run.path)
    assert RunFolder.find(".").path == RunFolder.find("..").path == RunFolder.find("flags.json").path == run.path


def test_find_takes_a_run_that_has_only_begun(tmp_path: Path, split_record: SplitRecord) -> None:
    run = RunFolder.inside(tmp_path).create()
    run.write_split(split_record)
    assert RunFolder.find(tmp_path).path == run.path


@pytest.mark.parametrize(
    "named, problem",
    [
        ("none", "it does not exist"),
        ("empty", r"it holds none of split\.json, curves\.npz, flags\.json, metrics\.json"),
        ("other/metrics.csv", r"its folder holds none of split\.json"),
        ("nul\0", "it cannot be read"),
        ("long" * 500, "it cannot be read"),
    ],
)
def test_find_says_why_there_is_no_run(named: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    # The names that a host's own log folder has as well do not make it a run.
    for name in ("metrics.csv", "config.yaml", "state.pt"):
        (tmp_path / "other" / name).touch()
    expected = f"^Expected {re.escape(str(tmp_path / named))} to be a run, but {problem}.*; name the log folder"
    with pytest.raises(FileFormatError, match=expected):
        RunFolder.find(tmp_path / named)


def test_find_curves_takes_an_npz_anywhere_or_a_run(run: RunFolder, curves: Curves, tmp_path: Path) -> None:
    write_curves(tmp_path / "mine.npz", curves.state_dict())
    for named in (tmp_path / "mine.npz", str(run.curves_npz), run.log_folder, run.flags_json):
        assert equal_curves(Curves.from_state(to_state(find_curves(named))), curves)
    with pytest.raises(FileFormatError, match=r"none\.npz to be a TLLM curves file, but there is no such file"):
        find_curves(tmp_path / "none.npz")


def test_create_clears_what_a_killed_run_left(run: RunFolder) -> None:
    (run.path / ".flags.json.0123.tllm-tmp").touch()
    kept = {path: path.read_bytes() for path in run.path.iterdir() if not path.name.startswith(".")}
    assert run.create() is run
    assert {path: path.read_bytes() for path in run.path.iterdir()} == kept


def test_create_says_why_it_cannot(tmp_path: Path) -> None:
    (tmp_path / "log").touch()
    with pytest.raises(TLLMError, match=rf"^Cannot make the folder {tmp_path}{os.sep}log{os.sep}tllm: Not a directory"):
        RunFolder.inside(tmp_path / "log").create()


def test_what_a_run_was_trained_on(run: RunFolder) -> None:
    assert run.read_data() == DataIdentity(class_names=("apple", "caf\udce9", 'a "b"\n\u2603')), "of an earlier version"
    identity = DataIdentity(
        class_names=("apple", "caf\udce9", "c"),
        train=DataPart((3, 0, 2), "aa", "bb", ""),
        test=DataPart((1, 1, 1), "cc", "", "dd"),
        image_size=8,
        mean=(0.1 + 0.2,),
        std=(1 / 3,),
    )
    run.write_data(identity)
    assert run.read_data() == identity
    text = data_file.to_text(identity)
    assert text.isascii() and data_file.from_checkpoint({"data": text}, "latest") == identity
    assert data_file.from_checkpoint({"model": {}}, "latest") is None
    for damaged in (text[:-3], "[]", text.replace("[3, 0, 2]", "[3, 0]"), text.replace("0.333", "-0.333")):
        with pytest.raises(FileFormatError):
            data_file.from_checkpoint({"data": damaged}, "latest")
