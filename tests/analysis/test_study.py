"""Runs read back from their folders and put in order."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.analysis.conftest import RunMaker
from tllm_plugin.analysis.loaded_run import load_run, method_of, reference_of, teacher_of
from tllm_plugin.analysis.study import build_comparison, build_pairs, build_study, separate_vanilla
from tllm_plugin.core.errors import ConfigError, FileFormatError
from tllm_plugin.hosts.run_spec import RunSpec
from tllm_plugin.report.payload import payload
from tllm_plugin.runs.run_folder import RunFolder


def test_order(make_run: RunMaker) -> None:
    paths = [
        make_run("kd-0", method="KD", hurt=(2,)),
        make_run("vanilla-0"),
        make_run("kd-1", method="KD", hurt=(2,), seed=1),
        make_run("vanilla-1", seed=1),
        make_run("teacher", student="resnet20", accuracy=0.9),
        make_run("tllm", method="KD", detector="reference", flagged=(2,)),
    ]
    study = build_study([load_run(path) for path in [*paths, paths[0]]])
    assert [run.name for run in study.vanilla] == ["vanilla-0", "vanilla-1"]
    assert list(study.teachers) == ["resnet20"] and study.teachers["resnet20"].name == "teacher"
    assert [(method.label, len(method.runs)) for method in study.methods] == [("KD", 2), ("TLLM (KD)", 1)]
    kd, tllm = study.methods
    assert kd.comparison is not None and kd.comparison.paired
    assert np.nonzero(kd.comparison.significantly_worse)[0].tolist() == [2]
    assert np.nonzero(tllm.flagged)[0].tolist() == [2] and not kd.flagged.any()
    assert separate_vanilla(study.methods)
    # By seed: each KD run against the vanilla run that shares its seed.
    assert [change.vanilla for change in kd.comparison.changes] == [run.result for run in study.vanilla]
    assert 2 in study.hurt_in_every([kd]).classes
    both = study.overlap_of(kd, tllm)
    assert 0 <= both.p_value <= 1


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_vanilla_accuracy_and_delta_add_up_to_the_students(seeds: tuple[int, ...], make_run: RunMaker) -> None:
    vanilla = [load_run(make_run(f"vanilla-{seed}", seed=seed)) for seed in (1, 0, 2)]
    kinds = {"kd": {"method": "KD"}, "tllm": {"method": "KD", "detector": "reference"}}
    taught = {
        name: [load_run(make_run(f"{name}-{seed}", seed=seed, **how)) for seed in seeds] for name, how in kinds.items()
    }
    runs = [*taught["kd"], *taught["tllm"]]
    for study in (build_study([*vanilla, *runs]), build_comparison(vanilla, runs)):
        for method in study.methods:
            assert method.comparison is not None
            students = np.mean([run.result.correct / run.result.total for run in method.runs], axis=0)
            np.testing.assert_allclose(study.vanilla_accuracy + method.comparison.delta, students, atol=1e-12)
    alone = build_study(vanilla).vanilla_accuracy
    np.testing.assert_allclose(alone, sum(run.result.correct for run in vanilla) / 150)


def test_a_copied_run_is_no_second_seed(make_run: RunMaker, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = [make_run("vanilla"), make_run("kd", method="KD"), make_run("vanilla-1", seed=1)]
    copies = [Path(shutil.copytree(path, tmp_path / "elsewhere" / path.name)) for path in paths]
    runs, copied = ([load_run(path) for path in places] for places in (paths, copies))
    study = build_study([*runs, *copied])
    assert [run.name for run in study.vanilla] == ["vanilla", "vanilla-1"] and len(study.methods[0].runs) == 1
    told = [record.getMessage() for record in caplog.records if "is a copy of" in record.getMessage()]
    assert told == [
        f"{c / 'tllm'} is a copy of {p / 'tllm'} and is left out" for p, c in zip(paths, copies, strict=True)
    ]
    assert study.methods[0].comparison is not None and study.methods[0].comparison.hurt_count.null.pairs == 2
    assert len(build_comparison([runs[0], copied[0]], [runs[1]]).vanilla) == 1
    (pair,) = build_pairs([([runs[0], copied[0]], [runs[1], copied[1]])]).methods
    assert (len(pair.vanilla), len(pair.runs)) == (1, 1)


def test_flags_of_several_seeds_are_counted_per_run(make_run: RunMaker) -> None:
    tllm = {"method": "KD", "detector": "reference"}
    paths = [
        make_run("vanilla"),
        make_run("tllm-0", **tllm, flagged=(2, 3)),
        make_run("tllm-1", **tllm, flagged=(3,), seed=1),
    ]
    (method,) = build_study([load_run(path) for path in paths]).methods
    assert method.runs_that_flagged.tolist() == [0, 0, 1, 2, *[0] * 8]
    assert np.nonzero(method.flagged)[0].tolist() == [2, 3]
    count = method.flagged_count
    assert count is not None and (count.mean, count.n) == (1.5, 2) and count.std == pytest.approx(0.5**0.5)
    shown = payload(build_study([load_run(path) for path in paths]), None)
    assert shown["methods"][0]["flagged_runs"][2:4] == [1, 2] and shown["methods"][0]["runs"] == 2
    assert shown["rows"][1]["flagged"] == {"mean": 1.5, "std": 0.707107, "n": 2}


def test_pairs_are_named_where_there_are_several(make_run: RunMaker) -> None:
    paths = [
        make_run(f"{student}-{method}", method=method, student=student)
        for student in ("a", "b")
        for method in ("NONE", "KD")
    ]
    study = build_study([load_run(path) for path in paths])
    assert [method.label for method in study.methods] == ["KD, resnet20/a", "KD, resnet20/b"]
    assert [run.student for method in study.methods for run in method.vanilla] == ["a", "b"]


def test_settings_make_methods_and_seeds_do_not(make_run: RunMaker, caplog: pytest.LogCaptureFixture) -> None:
    eskd = {"method": "KD", "detector": "after"}
    paths = [
        make_run("vanilla"),
        make_run("eskd-0", **eskd, settings={"TLLM.DETECTOR.AFTER_FRACTION": 0.7}),
        make_run("eskd-1", **eskd, settings={"TLLM.DETECTOR.AFTER_FRACTION": 0.9}),
        make_run("eskd-2", **eskd, settings={"TLLM.DETECTOR.AFTER_FRACTION": 0.7}, seed=1),
    ]
    study = build_study([load_run(path) for path in paths])
    assert [(method.label, len(method.runs)) for method in study.methods] == [
        ("ESKD (KD), AFTER_FRACTION 0.7", 2),
        ("ESKD (KD), AFTER_FRACTION 0.9", 1),
    ]
    assert "seeds of one vanilla student" not in caplog.text
    other = make_run("vanilla-long", seed=1, settings={"SOLVER.EPOCHS": 99})
    build_study([load_run(path) for path in [*paths, other]])
    assert (
        "vanilla and vanilla-long are treated as seeds of one vanilla student, but differ in SOLVER.EPOCHS"
        in caplog.text
    )


def test_no_vanilla_run_and_no_answers_per_image(make_run: RunMaker) -> None:
    alone = build_study([load_run(make_run("kd", method="KD"))])
    assert alone.methods[0].comparison is None and alone.compared == ()
    counts = make_run("kd-counts", method="KD", hurt=(4,), answers=False)
    found = build_comparison([load_run(make_run("vanilla"))], [load_run(counts)]).methods[0].comparison
    assert found is not None and not found.paired and np.nonzero(found.significantly_worse)[0].tolist() == [4]


@pytest.mark.parametrize(
    "kind, detector, expected",
    [
        ("NONE", "none", "vanilla"),
        ("NONE", "all", "LS"),
        ("KD", "none", "KD"),
        ("AT", "all", "LS"),
        ("CRD", "after", "ESKD (CRD)"),
        ("KD", "teaching_curve", "TLLM (KD)"),
        ("KD", "my_own", "TLLM (KD)"),
        ("KD", "fixed", "KD, fixed classes"),
    ],
)
def test_method_names(kind: str, detector: str, expected: str) -> None:
    told = {"DISTILLER.TYPE": kind, "TLLM.DETECTOR.TYPE": detector}
    assert method_of(RunSpec(told)) == expected
    if kind != "NONE":
        assert method_of(RunSpec({**told, "DISTILLER.TYPE": "TLLM", "TLLM.DISTILLER": kind})) == expected
    assert method_of(RunSpec()) == ""


def test_what_a_run_refers_to_is_found_where_it_was_moved_to(make_run: RunMaker, tmp_path: Path) -> None:
    vanilla, teacher = make_run("vanilla"), make_run("teacher", student="resnet20")
    run = make_run(
        "tllm",
        method="KD",
        detector="reference",
        reference=vanilla / "tllm",
        teacher_checkpoint=teacher / "student_latest",
    )
    assert reference_of(load_run(run)) == vanilla / "tllm" and teacher_of(load_run(run)) == teacher
    shutil.move(tmp_path / "runs", tmp_path / "moved")
    moved = load_run(tmp_path / "moved" / "tllm")
    assert reference_of(moved) == tmp_path / "moved" / "vanilla" and teacher_of(moved) == tmp_path / "moved" / "teacher"
    shutil.rmtree(tmp_path / "moved" / "vanilla")
    assert reference_of(moved) is None


def test_refusals(make_run: RunMaker, tmp_path: Path) -> None:
    run = make_run("kd", method="KD")
    with pytest.raises(ConfigError, match="runs on the same classes, but kd has 12"):
        build_study([load_run(run), load_run(make_run("other", classes=11))])
    with pytest.raises(ConfigError, match="at least one run"):
        build_study([])
    folder = RunFolder.inside(run)
    metrics = folder.read_metrics()
    fewer = (metrics.class_correct[0] - 1, *metrics.class_correct[1:])
    folder.write_metrics(replace(metrics, class_correct=fewer, test_accuracy=sum(fewer) / sum(metrics.class_total)))
    with pytest.raises(FileFormatError, match="predictions.npz and metrics.json in .* to agree"):
        load_run(run)
    RunFolder.inside(run).write_config("a: [")
    with pytest.raises(FileFormatError, match="to be the config of a run"):
        load_run(run)
