"""Answers of scikit-learn's classifiers, in files that pandas and NumPy wrote, through compare, headroom and report."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import recall_score
from sklearn.model_selection import train_test_split
from sklearn.naive_bayes import GaussianNB

from tllm_plugin.analysis.answers_file import load_answers
from tllm_plugin.analysis.same_classes import with_same_classes
from tllm_plugin.cli import main
from tllm_plugin.core.errors import ConfigError, FileFormatError

pandas = pytest.importorskip("pandas", reason="pandas is not installed")
Frame = Any
NAMES = np.array(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"])


@pytest.fixture(scope="module")
def frames() -> dict[str, Frame]:
    """Test answers of classifiers; in the second half of the rows of `bayes` the images stand in another order."""
    data = load_digits()
    rows = np.arange(len(data.target))
    train, test = train_test_split(rows, test_size=0.5, random_state=0)
    found = {}
    for name, classifier in (
        ("vanilla", LogisticRegression(max_iter=50)),
        ("other", LogisticRegression(C=1e-4, max_iter=50)),
        ("bayes", GaussianNB()),
    ):
        classifier.fit(data.data[train], data.target[train])
        answers = classifier.predict_proba(data.data[test])
        paths = [f"/data/{name}/val/{data.target[row]}/{row:04d}.png" for row in test]
        found[name] = pandas.DataFrame(
            {
                "path": paths,
                "label": data.target[test],
                "prediction": answers.argmax(1),
                "confidence": answers.max(1),
            }
        )
    found["bayes"] = found["bayes"].sample(frac=1.0, random_state=1)
    return found


def write_csv(frame: Frame, path: Path) -> Path:
    frame.to_csv(path.with_suffix(".csv"), index=False)
    return path.with_suffix(".csv")


def write_excel_csv(frame: Frame, path: Path) -> Path:
    frame.to_csv(path.with_suffix(".csv"), sep=";", encoding="utf-8-sig", lineterminator="\r\n", index=False)
    return path.with_suffix(".csv")


def write_parquet(frame: Frame, path: Path) -> Path:
    pytest.importorskip("pyarrow", reason="the optional extra `parquet` is not installed")
    frame.to_parquet(path.with_suffix(".parquet"))
    return path.with_suffix(".parquet")


def write_npz(frame: Frame, path: Path) -> Path:
    columns = {name: np.array(frame[name].tolist()) for name in frame.columns}
    np.savez(path.with_suffix(".npz"), **columns)
    return path.with_suffix(".npz")


Writer = Callable[[Frame, Path], Path]
WRITERS = [write_csv, write_excel_csv, write_parquet, write_npz]


def compared(capsys: pytest.CaptureFixture[str], *names: Path | str) -> list[dict[str, Any]]:
    capsys.readouterr()
    code = main(["compare", *map(str, names), "--json", "-"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    classes: list[dict[str, Any]] = json.loads(captured.out)["classes"]
    return classes


def check(classes: list[dict[str, Any]], vanilla: Frame, other: Frame) -> None:
    """Compare with scikit-learn's recall and SciPy's binomial test of the images on which the two differ."""
    recalls = [recall_score(frame.label, frame.prediction, average=None) for frame in (vanilla, other)]
    np.testing.assert_allclose([item["delta_acc"] for item in classes], recalls[1] - recalls[0], atol=1e-12)
    both = vanilla.assign(key=vanilla.path.str[-10:]).merge(other.assign(key=other.path.str[-10:]), on="key")
    assert len(both) == len(vanilla)
    for index, item in enumerate(classes):
        rows = both[both.label_x == index] if item["class"] == str(index) else both[both.label_x == item["class"]]
        before, now = rows.prediction_x == rows.label_x, rows.prediction_y == rows.label_y
        losses, gains = int((before & ~now).sum()), int((~before & now).sum())
        expected = binomtest(losses, losses + gains, alternative="greater").pvalue if losses + gains else 1.0
        assert item["p_value"] == pytest.approx(expected)


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("name", ["other", "bayes"])
def test_class_indices(
    write: Writer, name: str, frames: dict[str, Frame], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [write(frames[kind], tmp_path / kind) for kind in ("vanilla", name)]
    check(compared(capsys, *files), frames["vanilla"], frames[name])


@pytest.mark.parametrize("write", [write_csv, write_parquet, write_npz])
def test_class_names(
    write: Writer, frames: dict[str, Frame], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = {
        kind: frame.assign(label=NAMES[frame.label], prediction=NAMES[frame.prediction])
        for kind, frame in frames.items()
    }
    classes = compared(capsys, *[write(named[kind], tmp_path / kind) for kind in ("vanilla", "bayes")])
    assert [item["class"] for item in classes] == sorted(NAMES)
    recalls = [
        dict(zip(sorted(NAMES), recall_score(named[kind].label, named[kind].prediction, average=None), strict=True))
        for kind in ("vanilla", "bayes")
    ]
    for item in classes:
        assert item["delta_acc"] == pytest.approx(recalls[1][item["class"]] - recalls[0][item["class"]])


def test_index_column_and_data_frames_own_index(
    frames: dict[str, Frame], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vanilla, other = (frames[kind].reset_index(drop=True).drop(columns="path") for kind in ("vanilla", "other"))
    shuffled = other.sample(frac=1.0, random_state=2)
    vanilla.to_csv(tmp_path / "vanilla.csv")  # The row number is a column without a name.
    shuffled.assign(index=shuffled.index).to_csv(tmp_path / "other.csv", index=False)
    expected = compared(
        capsys, *[write_csv(frames[kind], tmp_path / f"{kind}-by-path") for kind in ("vanilla", "other")]
    )
    found = compared(capsys, tmp_path / "vanilla.csv", tmp_path / "other.csv")
    assert [item["p_value"] for item in found] == pytest.approx([item["p_value"] for item in expected])


def test_headroom_and_report_take_labelled_seeds(
    frames: dict[str, Frame], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = {kind: str(write_csv(frame, tmp_path / kind)) for kind, frame in frames.items()}
    words = [f"vanilla={paths['vanilla']},{paths['other']}", f"Bayes={paths['bayes']}"]
    assert main(["headroom", *words, "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)["Bayes"]
    recalls = [recall_score(frames[kind].label, frames[kind].prediction, average=None) for kind in frames]
    assert (found["classes"], found["vanilla_runs"]) == (10, 2)
    assert found["mean"]["value"] == pytest.approx((recalls[2] - (recalls[0] + recalls[1]) / 2).mean())
    assert main(["report", *words, "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "Bayes" in page and '"classes": 10' not in page


def test_answers_beside_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run's answers, written by pandas under the names of its classes, change nothing where they are paired."""
    recorded = Path(__file__).resolve().parents[1] / "hosts/recorded/digits/vanilla-digits_student-cd23fae8"
    content = np.load(recorded / "tllm/predictions.npz")
    frame = pandas.DataFrame({"label": content["labels"], "prediction": content["predictions"]})
    for kind, made in (("numbers", frame), ("names", frame.astype(str).map("class {}".format).map(str))):
        made.to_csv(tmp_path / f"{kind}.csv", index=False)
    classes = compared(capsys, recorded, tmp_path / "numbers.csv")
    assert all(item["delta_acc"] == 0 and item["p_value"] == 1 and item["high"] < 0.2 for item in classes)
    assert main(["compare", str(recorded), str(tmp_path / "names.csv")]) == 2
    assert "runs on the same classes" in capsys.readouterr().err
    # A path says nothing about the order of the run's images, so that only counts are compared.
    frame.assign(path=[f"{row}.png" for row in range(len(frame))]).to_csv(tmp_path / "paths.csv", index=False)
    assert all(item["high"] > 0.01 for item in compared(capsys, recorded, tmp_path / "paths.csv"))
    copy = tmp_path / "kd" / "predictions.npz"
    copy.parent.mkdir()
    copy.write_bytes((recorded / "tllm/predictions.npz").read_bytes())
    assert load_answers(str(copy)).method == "kd"
    assert all(item["delta_acc"] == 0 for item in compared(capsys, recorded, copy))


def test_names_are_put_into_the_order_of_the_logits(tmp_path: Path) -> None:
    (tmp_path / "names.csv").write_text("label,prediction\none,two\nthree,three\ntwo,other\n")
    (tmp_path / "numbers.csv").write_text("label,prediction\n0,1\n2,2\n1,1\n")
    names, numbers = (load_answers(str(tmp_path / f"{kind}.csv")) for kind in ("names", "numbers"))
    known = replace(numbers, class_names=("one", "two", "three"))
    found, same, named = with_same_classes([names, known, numbers])
    assert found.class_names == same.class_names == named.class_names == ("one", "two", "three")
    assert found.result.predictions is not None and same is known
    assert found.result.predictions.labels.tolist() == [0, 2, 1]
    assert found.result.predictions.prediction.tolist() == [1, 2, -1]
    assert found.result.correct.tolist() == [0, 0, 1] and found.result.total.tolist() == [1, 1, 1]
    with pytest.raises(ConfigError, match="runs on the same classes"):
        with_same_classes([names, numbers])  # Nobody knows which number "one" has.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "`label` is not among"),
        ("label,prediction\n", "at least one row"),
        ("label,guess\n1,1\n", "`prediction` is not among `label`, `guess`"),
        ("label,prediction\n1,1\n1\n", "row 3 has 1"),
        ("label,prediction\n1,1\n0,\n", "`prediction` in .* to be known in every row, but row 2 has none"),
        ("label,prediction\n1,nan\n", "row 1 has none"),
        ("label,prediction\n1.0,1.0\n", "but `label` has '1.0'"),
        ("label,prediction\ncat,1\n", "but `prediction` has '1'"),
        ("label,prediction\n0,-1\n", "class indices from 0 on, but got -1"),
        ("label,prediction\n0,99999999999\n", "class indices from 0 on, but got 99999999999"),
        ("index,label,prediction\n0,0,0\n0,0,0\n", "'0' is there twice"),
        ("index,label,prediction\na,0,0\n", "`index` in .* to be integers, but got 'a'"),
        ("path,label,prediction\nx/a.png,0,0\nx/a.png,0,0\n", "'a.png' is there twice"),
        ('label,prediction\n"0,0\n', "it is no CSV"),
    ],
)
def test_bad_csv_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(FileFormatError, match=message) as caught:
        load_answers(str(tmp_path / "a.csv"))
    assert "\n" not in str(caught.value) and "a.csv" in str(caught.value)


def test_other_bad_files_are_one_line(
    frames: dict[str, Frame], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vanilla = write_csv(frames["vanilla"], tmp_path / "vanilla")
    np.savez(tmp_path / "objects.npz", label=np.array([0, "a"], dtype=object), prediction=np.array([0, 1]))
    np.savez(tmp_path / "flat.npz", label=np.zeros((2, 2)), prediction=np.zeros(4))
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "text.parquet").write_text("no table")
    (tmp_path / "latin.csv").write_bytes("label,prediction\nZürich,Bern\n".encode("latin-1"))
    write_csv(frames["bayes"].iloc[:-1], tmp_path / "fewer")
    half = frames["bayes"].sort_values("path").assign(path=[f"{n}.png" for n in range(len(frames["bayes"]))])
    write_csv(half, tmp_path / "renamed")
    for name, message in (
        ("missing.csv", "there is no such file"),
        ("objects.npz", "truncated, damaged or something else"),
        ("flat.npz", "`label` in .* to have 1 dimension, but got 2"),
        ("text.npz", "truncated, damaged or something else"),
        ("text.parquet", "it is no Parquet|pyarrow to be installed"),
        ("latin.csv", "truncated, damaged or something else"),
        ("fewer.csv", "tested on the same images, but their numbers per class differ"),
        ("renamed.csv", "tested on the same images, but only one of them has '"),
    ):
        assert main(["compare", str(vanilla), str(tmp_path / name)]) in (1, 2)
        error = capsys.readouterr().err
        assert re.search(message, error) and error.count("\n") == 1, (name, error)
