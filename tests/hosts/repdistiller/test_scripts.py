"""The real host's scripts, patched or by `tllm train --host repdistiller`, in processes of their own."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import torch

from tests.hosts.digits_runs import assert_equal
from tests.hosts.repdistiller.conftest import environment
from tests.hosts.repdistiller.lists import KINDS, PORTED
from tests.hosts.repdistiller.processes import LAUNCHER, SHORT, apply_patches, images, python, teacher
from tests.hosts.small_images import CLASSES
from tllm_plugin.models import create_model
from tllm_plugin.runs.run_folder import RunFolder

SEED = "import random, numpy, torch; random.seed(0); numpy.random.seed(0); torch.manual_seed(0)\n"

# Runs the launcher once for each line of arguments, in one process: importing torch takes longer than these runs.
MANY = """
import shlex, sys
from tllm_plugin.cli import main
for line in sys.stdin:
    code = main(["train", "--host", "repdistiller", "--", *shlex.split(line)])
    if code:
        sys.exit(code)
"""

# CIFAR-100's files as they are published, but with random pixels: torchvision must not compare their checksums.
CIFAR = """
import os, torchvision
torchvision.datasets.cifar.check_integrity = lambda path, md5=None: os.path.exists(path)
"""


def many(tmp_path: Path, root: Path, lines: list[str], prelude: str = "") -> None:
    script = tmp_path / "many.py"
    script.write_text(prelude + MANY.replace("sys.stdin", repr(lines)))
    python(tmp_path, environment(root), str(script))


def test_every_method_trains_with_flagged_classes(scratch: Path, tmp_path: Path) -> None:
    fixed = "--tllm --tllm_detector fixed --tllm_classes 1 4 --tllm_holdout 0.25 --epochs 1 --tllm_seed 0"
    common = " ".join(("--path_t", teacher(tmp_path), *SHORT, *images(tmp_path), fixed))
    # The host's loss has the gradient of a singular value decomposition, which is soon not finite at a higher rate.
    own = {"kdsvd": "--learning_rate 0.002"}
    lines = [f"--distill {kind} -a 0.5 -b 0.5 {common} {own.get(kind, '')}" for kind in KINDS]
    many(tmp_path, scratch, lines + [f"--distill {kind} {common}" for kind in PORTED])
    runs = {path.parent for path in (tmp_path / "save" / "student_model").rglob("flags.json")}
    assert len(runs) == len(KINDS) + len(PORTED)
    for run in map(RunFolder, runs):
        assert run.read_flags().flagged == (1, 4) and run.read_metrics().finished
        assert torch.load(run.log_folder / "resnet8_last.pth", weights_only=True)["opt"]["tllm"]
    assert list((tmp_path / "save" / "student_tensorboards").rglob("events*"))


def test_plugin_that_is_off_changes_nothing(scratch: Path, tmp_path: Path) -> None:
    """The stock script, mended only, against the one with TLLM in it and against the launcher; CRD draws the most."""
    words = ("--path_t", teacher(tmp_path, 100), *SHORT, "--distill", "crd", "-b", "0.8", "--epochs", "2")
    words = (*words, "--lr_decay_epochs", "1", "--save_freq", "1")
    make_cifar(tmp_path / "cifar" / "cifar-100-python")
    (tmp_path / "sitecustomize.py").write_text(CIFAR + SEED)
    script, results = scratch / "train_student.py", []
    env = environment(scratch)
    env["PYTHONPATH"] = f"{tmp_path}:{env.get('PYTHONPATH', '')}"
    for name, start in (("launched", LAUNCHER), ("mended", (str(script),)), ("with TLLM", (str(script),))):
        if name != "launched":
            apply_patches(scratch, "0002" if name == "mended" else "0001")
        folder = tmp_path / name
        folder.mkdir()
        (folder / "data").symlink_to(tmp_path / "cifar")
        python(folder, env, *start, *words)
        (run,) = (folder / "save" / "student_model").iterdir()
        files = {path.name: torch.load(path, weights_only=True) for path in sorted(run.iterdir())}
        assert set(files) == {"resnet8_best.pth", "resnet8_last.pth", "ckpt_epoch_1.pth", "ckpt_epoch_2.pth"}
        results.append({file: (content["model"], content.get("best_acc")) for file, content in files.items()})
    assert_equal(results[1], results[2])
    assert_equal(results[1], results[0])


def make_cifar(folder: Path) -> None:
    """Write 100 classes in the published layout: 3 training images and 1 test image of each."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for part, count in (("train", 3), ("test", 1)):
        labels = list(range(100)) * count
        pixels = random.integers(0, 255, (len(labels), 3072), dtype=np.uint8)
        (folder / part).write_bytes(pickle.dumps({"data": pixels, "fine_labels": labels}))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"class {label}" for label in range(100)]}))


def test_teachers(scratch: Path, tmp_path: Path) -> None:
    """Train a teacher that the host lacks, then distil from it; a checkpoint of an old version is read as well."""
    apply_patches(scratch)
    env = environment(scratch)
    words = ("--batch_size", "16", "--num_workers", "0", "--epochs", "2", "--lr_decay_epochs", "1", *images(tmp_path))
    python(tmp_path, env, str(scratch / "train_teacher.py"), "--model", "resnet24_1_1_9", *words, "--save_freq", "2")
    (folder,) = (tmp_path / "save" / "models").iterdir()
    for name in ("ckpt_epoch_2.pth", "resnet24_1_1_9_last.pth"):
        state = torch.load(folder / name, weights_only=True)
        assert type(state["optimizer"]["param_groups"][0]["lr"]) is float
    state["optimizer"]["param_groups"][0]["lr"] = np.float64(0.1)
    torch.save(state, tmp_path / "old.pth")
    from_it = ("--path_t", "old.pth", "--model_t", "resnet24_1_1_9", *SHORT, *images(tmp_path), "--epochs", "1")
    done = python(tmp_path, env, str(scratch / "train_student.py"), *from_it, "--distill", "kd", "-a", "0.9")
    assert "==> done" in done.stdout


STAGE = ("--model", "resnet14", "--sftn", "--model_s", "resnet8")


def test_teacher_stage_and_our_methods_without_tllm(scratch: Path, tmp_path: Path) -> None:
    """By the launcher and by the patched scripts; what SFTN leaves is an ordinary teacher for either."""
    env, common = environment(scratch), ("--batch_size", "16", "--num_workers", "0", *images(tmp_path))
    student = (*SHORT, *images(tmp_path), "--tllm_seed", "0", "--epochs", "2")
    by_launcher, by_script = tmp_path / "launched", tmp_path / "patched"
    start = (*LAUNCHER[:-1], "--script", "train_teacher.py", "--")
    python(by_launcher, env, *start, *STAGE, *common, "--epochs", "1")
    (path,) = (by_launcher / "save" / "models").rglob("resnet14_last.pth")
    assert path.parent.name.startswith("resnet14_imagefolder_") and path.parent.name.endswith("_sftn:resnet8")
    state = torch.load(path, weights_only=True)
    assert state["model"].keys() == create_model("resnet14", num_classes=CLASSES).state_dict().keys()
    assert state["opt"]["sftn_kl_weight"] == 3.0 and set(state) == {"opt", "model", "optimizer"}
    methods = ("--distill cid --cid_warmup_epochs 1", "--distill srrl")
    words = " ".join(("--path_t", str(path), *student))
    many(by_launcher, scratch, [f"{method} {words}" for method in methods])
    apply_patches(scratch)
    python(by_script, env, str(scratch / "train_teacher.py"), *STAGE, *common, "--epochs", "1")
    assert len(list((by_script / "save" / "models").rglob("resnet14_best.pth"))) == 1
    cid = (*methods[0].split(), "--path_t", str(path), *student)
    python(by_script, env, str(scratch / "train_student.py"), *cid)
    found = {}
    for folder, kind in ((by_launcher, "cid"), (by_script, "cid"), (by_launcher, "srrl")):
        (run,) = (folder / "save" / "student_model").glob(f"S:resnet8_T:resnet14_imagefolder_{kind}_*")
        assert not (run / "tllm").exists()
        files = {file.name: torch.load(file, weights_only=True)["model"] for file in run.iterdir()}
        assert set(files) == {"resnet8_best.pth", "resnet8_last.pth"}
        found[folder, kind] = files
    assert_equal(found[by_launcher, "cid"], found[by_script, "cid"])
    plain = create_model("resnet8", num_classes=CLASSES).state_dict()
    last = found[by_script, "cid"]["resnet8_last.pth"]
    assert last["has_context"] and {f"network.{name}" for name in plain} < set(last)
    assert found[by_launcher, "srrl"]["resnet8_last.pth"].keys() == plain.keys()
    again = ("--path_t", str(next(run.parent.glob("*_cid_*")) / "resnet8_last.pth"), "--model_t", "resnet8", *student)
    refused = python(by_script, env, str(scratch / "train_student.py"), *again, check=False)
    assert refused.returncode == 1 and "is of a student of CID" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_errors_are_plain(scratch: Path, tmp_path: Path) -> None:
    wrong = ("--path_t", "gone/last.pth", "--tllm", "--tllm_eta", "2")
    launched = python(tmp_path / "a", environment(scratch), *LAUNCHER, *wrong, check=False)
    apply_patches(scratch)
    by_script = python(tmp_path / "b", environment(scratch), str(scratch / "train_student.py"), *wrong, check=False)
    assert (launched.returncode, by_script.returncode) == (2, 1)
    for done in (launched, by_script):
        assert "tllm: Expected `--path_t` to be a file, but gone/last.pth does not exist" in done.stderr
        assert "Expected `--tllm_eta` to be in (0, 1), but got 2.0" in done.stderr
        assert "Expected `--tllm_reference` to name the run of a vanilla student" in done.stderr
        assert "Traceback" not in done.stderr
    assert not list((tmp_path / "a").iterdir()) and not list((tmp_path / "b").iterdir())
