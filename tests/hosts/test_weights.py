"""Weights that PyTorch, timm, Lightning and safetensors themselves wrote give the answers of their network."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from tests.hosts.digits_runs import make_config
from tllm_plugin.cli import main
from tllm_plugin.core.errors import FileFormatError
from tllm_plugin.hosts.embedded import recipe
from tllm_plugin.hosts.weights import check_weights, load_weights
from tllm_plugin.methods import ContextStudent
from tllm_plugin.models import create_model, model_builder

NAME = "digits_student"
IMAGES = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def network(seed: int = 1) -> nn.Module:
    """Return a network that has trained for a step, so that no buffer is at its initial value."""
    torch.manual_seed(seed)
    made = create_model(NAME, num_classes=10, in_channels=1)
    made(IMAGES)[0].sum().backward()
    return made.eval()


def answers(module: nn.Module) -> Tensor:
    with torch.no_grad():
        output: Tensor = module(IMAGES)[0]
    return output


def loaded(path: Path) -> Tensor:
    torch.manual_seed(0)
    return answers(load_weights(create_model(NAME, num_classes=10, in_channels=1), path).eval())


class Pair(nn.Module):
    """A distiller as many write it, with a teacher of the student's architecture."""

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.student = student
        self.teacher = teacher
        self.regressor = nn.Linear(2, 2)


def by_data_parallel(made: nn.Module) -> Any:
    return nn.DataParallel(made).state_dict()


def by_compile(made: nn.Module) -> Any:
    return {"net": torch.compile(made).state_dict()}


def by_compiled_data_parallel(made: nn.Module) -> Any:
    return {"epoch": 3, "state_dict": torch.compile(nn.DataParallel(torch.compile(made))).state_dict()}


def by_compiled_part(made: nn.Module) -> Any:
    made.fc = torch.compile(made.fc)  # type: ignore[arg-type, assignment]
    return made.state_dict()


def by_averaged_model(made: nn.Module) -> Any:
    return torch.optim.swa_utils.AveragedModel(made).state_dict()


def by_distiller(made: nn.Module) -> Any:
    return {"model": nn.DataParallel(Pair(made, network(7))).state_dict(), "optimizer": {"state": {0: torch.ones(3)}}}


def by_script_with_options(made: nn.Module) -> Any:
    return {"args": argparse.Namespace(lr=0.1), "student": made.state_dict(), "teacher": network(7).state_dict()}


def by_script_with_average(made: nn.Module) -> Any:
    return {"model": made.state_dict(), "model_ema": network(7).state_dict(), "best_acc1": 0.5}


@pytest.mark.parametrize(
    ("save", "place"),
    [
        (lambda made: made.state_dict(), "its top level"),
        (lambda made: {"model": made.state_dict()}, ""),
        (by_data_parallel, "`module`"),
        (by_compile, "`net._orig_mod`"),
        (by_compiled_data_parallel, "`state_dict._orig_mod.module._orig_mod`"),
        (by_compiled_part, "its top level"),
        (by_averaged_model, "`module`"),
        (by_distiller, "`model.module.student`; not `model.teacher`, which also fit"),
        (by_script_with_options, "`student`; not `teacher`, which also fit"),
        (by_script_with_average, "`model`; not `model_ema`, which also fit"),
        (lambda made: {"best": {"ema": made.state_dict()}}, "`best.ema`"),
    ],
)
def test_files_of_pytorch(
    save: Callable[[nn.Module], Any], place: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = network()
    expected = answers(made)
    torch.save(save(made), tmp_path / "weights.pt")
    with caplog.at_level(logging.INFO):
        assert torch.equal(loaded(tmp_path / "weights.pt"), expected)
    told = [f"weights of {tmp_path / 'weights.pt'}: taken from {place}"] if place else []
    assert [record.getMessage() for record in caplog.records if record.name.startswith("tllm_plugin")] == told


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(half: torch.dtype, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = network().to(half)
    torch.save(made.state_dict(), tmp_path / "weights.pt")
    with caplog.at_level(logging.INFO):
        found = loaded(tmp_path / "weights.pt")
    assert torch.equal(found, answers(made.float()))
    assert f"; stored as {str(half).removeprefix('torch.')}" in caplog.text


@pytest.mark.parametrize("name", ["weights.safetensors", "pytorch_model.bin"])
def test_safetensors_by_content(name: str, tmp_path: Path) -> None:
    made = network()
    safetensors.torch.save_model(
        nn.DataParallel(made), str(tmp_path / name), metadata={"format": "pt", "made": "by us"}
    )
    assert torch.equal(loaded(tmp_path / name), answers(made))


def test_damaged_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    whole = safetensors.torch.save(network().state_dict())
    for content in (whole[:-1], whole[:100], whole[:8] + b"[" + whole[9:], b"", b"\x00" * 20):
        path.write_bytes(content)
        with pytest.raises(FileFormatError, match=r"weights\.safetensors to be a network's checkpoint, but it is a "):
            load_weights(network(), path)


def test_file_of_timm(tmp_path: Path) -> None:
    utils = pytest.importorskip("timm.utils", reason="the optional extra `timm` is not installed")
    made, averaged = network(), utils.ModelEmaV3(network(7))
    saver = utils.CheckpointSaver(
        model=nn.DataParallel(made),
        optimizer=torch.optim.SGD(made.parameters(), lr=0.1),
        args=argparse.Namespace(model=NAME),
        model_ema=averaged,
        checkpoint_dir=str(tmp_path),
        recovery_dir=str(tmp_path),
    )
    saver.save_checkpoint(epoch=1, metric=0.5)
    assert torch.equal(loaded(tmp_path / "last.pth.tar"), answers(made))


@pytest.mark.parametrize("attribute", ["model", "net", "student"])
def test_checkpoint_of_lightning(attribute: str, tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning", reason="Lightning is not installed")
    made = network()

    class Task(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.save_hyperparameters({"lr": 0.1})
            setattr(self, attribute, torch.compile(made))

        def training_step(self, batch: Any, _: int) -> Tensor:
            return getattr(self, attribute)._orig_mod(batch[0])[0].sum()  # type: ignore[no-any-return]

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=0.1)

    options = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "barebones": False}
    trainer = lightning.Trainer(
        max_steps=2, logger=False, enable_checkpointing=False, default_root_dir=tmp_path, **options
    )
    trainer.fit(Task(), torch.utils.data.DataLoader(torch.utils.data.TensorDataset(IMAGES), batch_size=4))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert torch.equal(loaded(tmp_path / "last.ckpt"), answers(made.eval()))


def test_student_of_cid_inside_a_distiller_is_restored_whole(tmp_path: Path) -> None:
    torch.manual_seed(3)
    student = ContextStudent(network(), feature_dim=12, num_classes=10, temperature=2.0)
    student.has_context.fill_(True)
    student.context.normal_()
    torch.save({"state_dict": Pair(student, nn.Identity()).state_dict()}, tmp_path / "weights.pt")
    restored = load_weights(create_model(NAME, num_classes=10, in_channels=1), tmp_path / "weights.pt")
    assert isinstance(restored, ContextStudent)
    assert torch.equal(answers(restored.eval()), answers(student.eval()))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": network(1).state_dict(), "b": network(2).state_dict()}, "one set of weights .* `a`, `b` fit and differ"),
        ({"epoch": 3}, "it holds no tensor under any name"),
        ({"weight": torch.ones(2)}, r"none of its tensors \(`weight`\) has a name of the network \(`conv"),
        ({**network().state_dict(), "more.weight": torch.ones(1)}, r"1 are left over \(`more\.weight`\)"),
        (
            {"x": create_model("digits_teacher", 10, 1).state_dict()},
            r"under `x` 10 are left over .*; `conv1",
        ),
        ([torch.ones(1)], "a state_dict, alone or under a key, but it holds a list"),
    ],
)
def test_what_does_not_fit_is_one_line(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(FileFormatError, match=message) as caught:
        load_weights(network(), tmp_path / "weights.pt")
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_equal_copies_are_no_rivals(tmp_path: Path) -> None:
    made = network()
    torch.save({"a": made.state_dict(), "b": {k: v.clone() for k, v in made.state_dict().items()}}, tmp_path / "w.pt")
    assert torch.equal(loaded(tmp_path / "w.pt"), answers(made))


def test_any_number_of_classes_passes_the_check_without_data(tmp_path: Path) -> None:
    for classes, channels in ((10, 1), (100, 3)):
        torch.save({"net": create_model(NAME, classes, channels).state_dict()}, tmp_path / "weights.pt")
        check_weights(model_builder(NAME), tmp_path / "weights.pt", NAME)
    torch.save({"net": create_model("resnet8", 10, 1).state_dict()}, tmp_path / "weights.pt")
    with pytest.raises(FileFormatError, match="to fit digits_student, but "):
        check_weights(model_builder(NAME), tmp_path / "weights.pt", NAME)


def test_checkpoints_are_checked_before_data_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"net": create_model("resnet8", 10, 1).state_dict()}, tmp_path / "weights.pt")
    teacher = ("DISTILLER.TYPE", "KD", "DISTILLER.TEACHER_CHECKPOINT", str(tmp_path / "weights.pt"))
    cfg = make_config(tmp_path, *teacher)
    monkeypatch.setattr("tllm_plugin.hosts.embedded.recipe.load_bundle", lambda cfg: pytest.fail("data were read"))
    with pytest.raises(FileFormatError, match="to fit digits_teacher, but"):
        recipe.run(cfg)
    monkeypatch.setattr("tllm_plugin.analysis.named_networks.load_data", lambda *a, **k: pytest.fail("data were read"))
    assert main(["compare", *[f"digits_student@{tmp_path / 'weights.pt'}"] * 2, "--data", "digits"]) == 1
