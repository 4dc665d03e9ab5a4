"""The page without a browser: what is in it, how large it is, what it says."""

from __future__ import annotations

import base64
import json
import math
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.analysis.planted_runs import write_run
from tllm_plugin.analysis.comparison import Count, Spread
from tllm_plugin.analysis.loaded_run import load_run
from tllm_plugin.analysis.nulls import NullCount
from tllm_plugin.analysis.similarity import Similarity
from tllm_plugin.analysis.study import build_study
from tllm_plugin.cli import main
from tllm_plugin.report.findings import against_null, findings, next_steps
from tllm_plugin.report.hardness import Correlation, heading
from tllm_plugin.report.page import write_report, write_report_if_possible
from tllm_plugin.report.payload import payload

HURT = (3, 8)
PLANT = "DISTILLER.PLANT.CLASSES"


def content_of(page: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.S)
    assert found
    content: dict[str, Any] = json.loads(found[1])
    return content


def write_study(folder: Path, **shape: Any) -> list[Path]:
    return [
        write_run(folder / "vanilla", **shape),
        write_run(folder / "vanilla-1", seed=1, **shape),
        write_run(folder / "kd", method="KD", hurt=HURT, **shape),
        write_run(folder / "tllm", method="KD", detector="reference", flagged=HURT, **shape),
    ]


def test_content(tmp_path: Path) -> None:
    paths = write_study(tmp_path)
    page = write_report([load_run(path) for path in paths], networks=False)
    assert page == tmp_path / "tllm" / "tllm" / "report.html"
    content = content_of(page)
    study = build_study([load_run(path) for path in paths])
    for method, shown in zip(study.methods, content["methods"], strict=True):
        assert method.comparison is not None and shown["label"] == method.label
        np.testing.assert_allclose(shown["delta"], method.comparison.delta, atol=1e-4)
        np.testing.assert_allclose(shown["low"], method.comparison.interval[0], atol=1e-4)
        np.testing.assert_allclose(shown["q"], method.comparison.q_value, atol=1e-5)
    assert [index for index, epoch in enumerate(content["methods"][1]["flagged"]) if epoch is not None] == list(HURT)
    kd = study.methods[0].runs[0].result
    np.testing.assert_allclose(
        np.add(content["vanilla"][0]["accuracy"], content["methods"][0]["delta"]), kd.correct / kd.total, atol=2e-4
    )
    curve = content["curves"][0]
    values = np.frombuffer(base64.b64decode(curve["data"]), dtype=np.uint8).reshape(len(curve["epochs"]), 12) / 255
    curves = study.vanilla[0].curves
    assert curves is not None and curve["epochs"] == curves.epochs
    np.testing.assert_allclose(values, curves.class_curves("accuracy").numpy(), atol=1 / 510 + 1e-9)
    assert set(content["picks"][:2]) == set(HURT)
    assert "src=" not in page.read_text().split("<script>")[0] and "<link" not in page.read_text().split("<script>")[0]


def test_each_student_has_a_vanilla_column(tmp_path: Path) -> None:
    runs = []
    for student, accuracy in (("resnet8", 0.5), ("resnet14", 0.8)):
        folder, shape = tmp_path / student, {"student": student, "accuracy": accuracy}
        runs += [write_run(folder / "vanilla", **shape), write_run(folder / "kd", method="KD", hurt=HURT, **shape)]
    study = build_study([load_run(path) for path in runs])
    content = payload(study, None)
    assert [item["label"] for item in content["vanilla"]] == ["vanilla resnet8", "vanilla resnet14"]
    assert [row["label"] for row in content["rows"][:2]] == ["vanilla resnet8", "vanilla resnet14"]
    for vanilla, row, method, shown in zip(
        content["vanilla"], content["rows"], study.methods, content["methods"], strict=False
    ):
        result = method.runs[0].result
        np.testing.assert_allclose(
            np.add(vanilla["accuracy"], shown["delta"]), result.correct / result.total, atol=2e-4
        )
        assert row["accuracy"]["mean"] == pytest.approx(method.vanilla[0].result.accuracy, abs=1e-4)
    assert content["null_note"].endswith("there is one vanilla run of each student).")
    more = [write_run(tmp_path / student / "again", student=student, seed=1) for student in ("resnet8", "resnet14")]
    for count, told in (
        (
            1,
            "runs of each student (2 ordered pairs of runs), without a teacher; for a student with one vanilla run",
        ),
        (2, "between vanilla runs of each student (4 ordered pairs of runs), without a teacher."),
    ):
        assert told in payload(build_study([load_run(path) for path in (*runs, *more[:count])]), None)["null_note"]


def test_one_method_is_not_every_method(tmp_path: Path) -> None:
    *vanilla, kd, tllm = [load_run(path) for path in write_study(tmp_path)]
    one, two = (payload(build_study([*vanilla, *taught]), None) for taught in ([kd], [kd, tllm]))
    assert one["overlap"] is not None and one["every"] is None
    assert "under every one of 2 methods" in two["every"]["note"]


def test_a_vanilla_run_alone(tmp_path: Path) -> None:
    content = payload(build_study([load_run(write_run(tmp_path / "vanilla"))]), None)
    (step,) = content["next"]
    assert "Train a student with a teacher" in step and "add its run to the report" in step
    assert content["similar_note"] == "" == content["null_note"] and content["every"] is None


def test_numbers_agree_with_their_nouns(tmp_path: Path) -> None:
    vanilla = load_run(write_run(tmp_path / "vanilla"))
    kd, tllm = {"method": "KD", "hurt": [3]}, {"method": "KD", "detector": "reference", "hurt": [3], "flagged": [3]}
    taught = [load_run(write_run(tmp_path / name, **how)) for name, how in (("kd", kd), ("tllm", tllm))]
    assert payload(build_study([vanilla]), None)["subtitle"] == "resnet8 \u00b7 1 run \u00b7 600 test images"
    content = payload(build_study([vanilla, *taught]), None)
    assert content["subtitle"] == "resnet20/resnet8 \u00b7 3 runs \u00b7 600 test images"
    assert "stopped teaching 1 class (class 0003)" in " ".join(content["findings"])


def test_what_the_runs_refer_to_is_read_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    vanilla, teacher = write_run(tmp_path / "vanilla"), write_run(tmp_path / "teacher", student="resnet20")
    run = write_run(
        tmp_path / "tllm",
        method="KD",
        detector="reference",
        reference=vanilla / "tllm",
        teacher_checkpoint=teacher / "student_latest",
    )
    content = content_of(write_report([load_run(run)], tmp_path / "page.html", networks=False))
    assert [row["label"] for row in content["rows"]] == ["vanilla", "TLLM (KD)", "teacher resnet20"]
    assert content["teacher"] is not None and content["methods"][0]["delta"] is not None
    # As those of a search, which never look at test data.
    write_run(teacher, student="resnet20", tested=False)
    caplog.clear()
    content = content_of(write_report([load_run(run)], tmp_path / "page.html", networks=False))
    assert [row["label"] for row in content["rows"]] == ["vanilla", "TLLM (KD)", "teacher resnet20"]
    assert content["rows"][-1]["accuracy"] is None and content["teacher"] is None
    assert f"left out: Expected {teacher}" in caplog.text and f"`tllm test {teacher}` tests it" in caplog.text


def test_a_thousand_classes_fit_and_are_quick(tmp_path: Path) -> None:
    paths = write_study(tmp_path, classes=1000, per_class=10, epochs=100)
    started = time.process_time()
    page = write_report([load_run(path) for path in paths], tmp_path / "page.html", networks=False)
    assert time.process_time() - started < 10
    assert page.stat().st_size < 6e6


def test_findings(tmp_path: Path) -> None:
    study = build_study([load_run(path) for path in write_study(tmp_path)])
    told = " ".join(findings(study))
    assert re.search(
        r"KD: .* below the vanilla student on \d+ of 12 classes, .* the [\d.]+ classes between vanilla runs", told
    )
    vanilla = np.mean([run.result.accuracy for run in study.vanilla])
    assert f"against the vanilla student's {vanilla:.1%} (mean of 2 runs)." in told
    assert re.search(
        r"2 classes are significantly worse \(FDR 5 %\): class 000[38] \(\u2212\d+\.\d\), class 000[38]", told
    )
    assert (
        "stopped teaching 2 classes (class 0003, class 0008), among them 2 of the 2 classes that KD makes "
        "significantly worse" in told
    )
    steps = " ".join(next_steps(study))
    assert "one seed" in steps and "TLLM.DETECTOR.TYPE after" in steps and "second vanilla" not in steps


@pytest.mark.parametrize(
    "found, deviation, p_value, told",
    [
        (3.0, 1.0, math.nan, "no more than"),
        (3.0, 1.0, 0.01, "no more than"),
        (4.0, 1.0, math.nan, "not clearly more than"),
        (4.0, 1.0, 0.2, "not clearly more than"),
        (6.0, 1.0, math.nan, "more than"),
        (4.0, 1.0, 0.05, "more than"),
        (4.0, math.nan, math.nan, "more than"),
    ],
)
def test_a_count_against_its_null(found: float, deviation: float, p_value: float, told: str) -> None:
    null = NullCount(3.0, deviation, "vanilla", 2)
    assert against_null(Count(Spread(found, math.nan, 1), null, p_value)) == told


@pytest.mark.parametrize(
    "runs, expected",
    [
        ([{"method": "KD"}], "Train a vanilla student (DISTILLER.TYPE NONE"),
        ([{"student": "resnet14"}, {"method": "KD"}], "Train a vanilla student (DISTILLER.TYPE NONE"),
        ([{}, {"method": "KD"}], "Train a second vanilla student with another EXPERIMENT.SEED"),
        ([{}, {"method": "KD"}], "No class is significantly worse (FDR 5 %)."),
        (
            [{}, {"method": "KD", "hurt": [4]}],
            "KD makes 1 class significantly worse (FDR 5 %): run it with",
        ),
        (
            [{}, {"method": "KD", "detector": "reference", "hurt": [4]}],
            "TLLM (KD) did not flag 1 class that it makes significantly worse (FDR 5 %): a hold-out of 20 images",
        ),
    ],
)
def test_next_steps(runs: list[dict[str, Any]], expected: str, tmp_path: Path) -> None:
    paths = [write_run(tmp_path / str(place), **how) for place, how in enumerate(runs)]
    told = " ".join(next_steps(build_study([load_run(path) for path in paths])))
    assert expected in told
    # What was found on test data must not choose what is trained next.
    assert "class 0" not in told and "fixed" not in told and "DETECTOR.CLASSES" not in told
    content_of(write_report([load_run(path) for path in paths], tmp_path / "page.html", networks=False))


def test_a_teacher_that_was_made_wrong_on_purpose_is_called_so_everywhere(tmp_path: Path) -> None:
    teacher = write_run(tmp_path / "teacher", student="resnet20", accuracy=0.9)
    checkpoint, settings = teacher / "student_latest", {PLANT: list(HURT)}
    runs = [write_run(tmp_path / "vanilla")]
    for name, planted in (("planted", settings), ("honest", {})):
        runs.append(write_run(tmp_path / name, method="KD", teacher_checkpoint=checkpoint, settings=planted, hurt=HURT))
    content = content_of(write_report([load_run(run) for run in runs[:2]], tmp_path / "page.html", networks=False))
    assert content["findings"][0].startswith(
        "The teacher of KD was made wrong on purpose on 2 classes (class 0003, class 0008) by DISTILLER.PLANT"
    )
    row = content["rows"][-1]
    assert row["label"].startswith("teacher resnet20, before planting class 0003")
    assert row["accuracy"]["mean"] == pytest.approx(load_run(teacher).result.accuracy, abs=1e-6)
    assert "before planting class 0003, class 0008" in content["teacher"]["note"]
    # As the students met it, it does worse, and the classes that were planted are among those that are hard for it.
    met = np.full(12, 0.9)
    met[list(HURT)] = 0.0
    similarity = Similarity(600, met, {}, {}, ())
    content = payload(build_study([load_run(run) for run in (*runs[:2], teacher)]), similarity)
    assert content["rows"][-1]["label"] == "the same, after planting class 0003, class 0008"
    assert content["rows"][-1]["accuracy"]["mean"] == pytest.approx(met.mean())
    assert content["teacher"]["column"] == "teacher, made wrong"
    assert content["teacher"]["heading"].endswith("(including planted classes)")
    # Beside an honest one it is another teacher.
    both = content_of(write_report([load_run(run) for run in runs], tmp_path / "page.html", networks=False))
    labels = [row["label"] for row in both["rows"] if row["label"].startswith("teacher")]
    assert len(labels) == 2 and labels[1] == "teacher resnet20"
    assert len([text for text in both["findings"] if "on purpose" in text]) == 1
    honest = content_of(write_report([load_run(runs[i]) for i in (0, 2)], tmp_path / "page.html", networks=False))
    assert "on purpose" not in json.dumps(honest)


@pytest.mark.parametrize("classes", [["3", "8"], ["class 0003", "class 0008"], ["index:3", "index:8"]])
def test_planted_classes_are_named_however_the_config_lists_them(classes: list[str], tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "vanilla"), write_run(tmp_path / "kd", method="KD", settings={PLANT: classes})]
    told = content_of(write_report([load_run(run) for run in runs], tmp_path / "page.html", networks=False))
    assert "on purpose on 2 classes (class 0003, class 0008)" in told["findings"][0]
    assert told["rows"][-1]["label"].endswith("before planting class 0003, class 0008")


def test_teachers_of_several_seeds_are_one_row(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "vanilla")]
    for seed in range(2):
        teacher = write_run(tmp_path / f"teacher{seed}", student="resnet20", seed=seed)
        runs.append(
            write_run(tmp_path / f"kd{seed}", method="KD", seed=seed, teacher_checkpoint=teacher / "student_latest")
        )
    (row,) = payload(build_study([load_run(run) for run in runs]), None)["rows"][2:]
    assert row["label"] == "teacher resnet20" and row["accuracy"]["n"] == 2


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ([], "Are classes that are hard for the teacher the undistillable ones?"),
        ([("KD", 0.8, 0.001)], "Classes that are hard for the teacher lose more"),
        ([("KD", -0.8, 0.001)], "Classes that are hard for the teacher lose less"),
        ([("KD", 0.8, 0.06)], "Hard for the teacher or undistillable: no significant correlation"),
        ([("KD", 0.8, 0.03), ("AT", 0.1, 0.5)], "Hard for the teacher or undistillable: no significant correlation"),
        ([("KD", 0.8, 0.01), ("AT", 0.1, 0.5)], "Classes that are hard for the teacher lose more under KD"),
        ([("KD", 0.8, 0.01), ("AT", 0.5, 0.02)], "Classes that are hard for the teacher lose more"),
        (
            [("KD", 0.8, 0.01), ("AT", -0.8, 0.01)],
            "Classes that are hard for the teacher lose more under KD, and lose less under AT",
        ),
    ],
)
def test_the_heading_on_hard_classes_says_what_the_numbers_say(found: list[Any], told: str) -> None:
    assert heading([Correlation(*one) for one in found]) == told


def test_the_heading_follows_the_runs(tmp_path: Path) -> None:
    teacher = load_run(write_run(tmp_path / "teacher", student="resnet20"))
    order = np.argsort(teacher.result.class_accuracy).tolist()
    vanilla = load_run(write_run(tmp_path / "vanilla"))
    for hurt, told in ((order[:6], "lose more"), (order[-6:], "lose less")):
        kd = load_run(write_run(tmp_path / told, method="KD", hurt=hurt, drop=0.2))
        content = payload(build_study([vanilla, teacher, kd]), None)
        assert content["teacher"]["heading"].endswith(told)


def test_counts_say_what_they_count(tmp_path: Path) -> None:
    study = build_study([load_run(path) for path in write_study(tmp_path)])
    null = study.compared[0].comparison.hurt_count.null  # type: ignore[union-attr]
    told = " ".join(payload(study, None)["how"])
    assert re.search(rf"lose to each other on {null.mean:g} of 12 classes", told)
    # One vanilla run says nothing about another.
    one = build_study([load_run(tmp_path / name) for name in ("vanilla", "kd")])
    assert "of 12 classes" not in " ".join(payload(one, None)["how"])


def test_a_detector_that_flags_nothing_says_why(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / "v"), write_run(tmp_path / "t", method="KD", detector="reference")]
    told = " ".join(findings(build_study([load_run(path) for path in paths])))
    assert "TLLM (KD) flagged no class (no class had evidence enough)" in told


def test_command(digits: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    assert main(["report", *map(str, digits.values()), "--out", str(page), "--points", "50"]) == 0
    assert f"report        {page}" in capsys.readouterr().out
    content = content_of(page)
    assert len(content["tsne"]) == 2 and content["methods"][0]["cka"] is not None
    assert "as used for distillation" in content["teacher"]["note"]
    assert main(["report", str(tmp_path / "nothing")]) == 1
    assert "to be a run, but it does not exist" in capsys.readouterr().err


def test_a_training_does_not_fail_for_its_report(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = write_run(tmp_path / "kd", method="KD")
    (run / "tllm" / "flags.json").write_text("{")
    assert write_report_if_possible([run]) is None and "no report was written: Expected" in caplog.text
