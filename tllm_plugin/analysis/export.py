"""Export the student's weights of a run, and its findings about the classes, for other tools."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tllm_plugin.analysis.loaded_run import method_of
from tllm_plugin.core.data_identity import DataIdentity
from tllm_plugin.core.errors import ConfigError, FileFormatError, TLLMError
from tllm_plugin.core.outputs import logits_of
from tllm_plugin.hosts.embedded.networks import trained_model
from tllm_plugin.hosts.run_spec import RunSpec
from tllm_plugin.hosts.weights import load_weights
from tllm_plugin.models import create_model
from tllm_plugin.runs import data_file
from tllm_plugin.runs.atomic import save_torch, write_bytes
from tllm_plugin.runs.run_folder import RunFolder
from tllm_plugin.runs.weights_file import SUFFIX, read_weights, write_safetensors
from tllm_plugin.version import __version__

SUFFIXES = (SUFFIX, ".pt", ".pth", ".onnx")
#: Weights of a run that can be exported: those that were tested, or those of the best epoch on the hold-out.
WEIGHTS = ("latest", "best_holdout")
_CHECKED_BATCHES = (1, 5)
_TOLERANCE = 1e-4
_CLASSES_VERSION = 1
# Loggers that report every step of an export.
_TALKATIVE = ("onnxscript", "onnx_ir")


def export_student(run: RunFolder, path: str | Path, weights: str = "latest") -> None:
    """Write the student of a run in the format that the suffix of `path` names.

    `.safetensors`: the state_dict; `.pt` and `.pth`: the state_dict under the key `state_dict`; `.onnx`: images to
    logits, with any number of images, compared with PyTorch's answers. All of them hold `metadata_of` the run.

    Args:
        run: Of any host; for `.onnx` of the embedded host.
        path: The file.
        weights: One of `WEIGHTS`.

    Raises:
        ConfigError: Another suffix, or the run is not of the embedded host, or the packages for ONNX are missing.
        FileFormatError: The weights are missing or damaged.
        TLLMError: The file cannot be written, or ONNX Runtime gives other answers than PyTorch.
    """
    kind = Path(path).suffix
    if kind not in SUFFIXES:
        raise ConfigError(f"Expected a file that ends in one of {', '.join(SUFFIXES)}, but got {path}")
    checkpoint = _checkpoint(run, weights)
    metadata = metadata_of(run, weights)
    if kind == ".onnx":
        write_bytes(path, _as_onnx(run, checkpoint, metadata))
        return
    state = _state(checkpoint)
    if kind == SUFFIX:
        write_safetensors(path, state, metadata)
    else:
        save_torch(path, {"state_dict": state, **metadata})


def metadata_of(run: RunFolder, weights: str) -> dict[str, str]:
    """Return the metadata of a student as text by key; lists are JSON, unknown values are omitted.

    Keys: `architecture`, `class_names` (in the order of the logits), `image_size` (pixels), `mean` and `std` (per
    channel, of pixels in [0, 1]), `method`, `weights`, `test_accuracy` (a fraction, of the weights `latest`),
    `written_by`, and `data`, the record of the training data by which this package knows its own files.
    """
    spec, data = RunSpec.read(run), run.read_data()
    accuracy = run.read_metrics().test_accuracy if run.metrics_json.exists() and weights == WEIGHTS[0] else None
    architecture = spec.get("DISTILLER.TEACHER" if spec.get("DISTILLER.TYPE") == "SFTN" else "DISTILLER.STUDENT", "")
    known = {
        "architecture": str(architecture or spec.get("model_s", "")),
        "class_names": json.dumps(data.class_names) if data.class_names else "",
        "image_size": str(data.image_size or ""),
        "mean": json.dumps(data.mean) if data.mean else "",
        "std": json.dumps(data.std) if data.std else "",
        "method": method_of(spec),
        "weights": weights,
        "test_accuracy": "" if accuracy is None else repr(accuracy),
        "written_by": f"tllm-plugin {__version__}",
        data_file.KEY: "" if data == DataIdentity() else data_file.to_text(data),
    }
    return {key: value for key, value in known.items() if value}


def classes_record(run: RunFolder) -> dict[str, Any]:
    """Return the findings of a run about each class as JSON values.

    Per class: index, name, teaching weight at the end of the run (0: flagged, no teacher; 1: taught in full), the flag
    with its evidence as `flags.json` has it, and right answers and images in the test, if there was one.

    Raises:
        FileFormatError: The run has no flags, or a file of it is damaged.
    """
    flags = run.read_flags()
    weights = [1.0] * flags.num_classes
    if run.policy_json.exists():
        weights = [item.weight for item in run.read_policy().classes]
    correct: tuple[int, ...] = ()
    total: tuple[int, ...] = ()
    if run.metrics_json.exists():
        metrics = run.read_metrics()
        correct, total = metrics.class_correct, metrics.class_total
    classes = []
    for item, weight in zip(flags.classes, weights, strict=True):
        record = asdict(item)
        classes.append(
            {
                "index": record.pop("index"),
                "name": record.pop("name"),
                "teaching_weight": 0.0 if item.flagged else weight,
                **record,
                "test_correct": correct[item.index] if correct else None,
                "test_count": total[item.index] if total else None,
            }
        )
    return {
        "schema": "tllm/classes",
        "version": _CLASSES_VERSION,
        "run": run.log_folder.name,
        "method": method_of(RunSpec.read(run)),
        "detector": asdict(flags.detector),
        "epochs": flags.epochs,
        "num_classes": flags.num_classes,
        "classes": classes,
    }


def _checkpoint(run: RunFolder, weights: str) -> Path:
    if weights == WEIGHTS[1]:
        return run.student_best_holdout
    # RepDistiller names its last checkpoint after the network.
    found = [run.log_folder / "student_latest", *sorted(run.log_folder.glob("*_last.pth"))]
    return next((path for path in found if path.is_file()), found[0])


def _state(checkpoint: Path) -> Mapping[str, Tensor]:
    state = read_weights(checkpoint).get("model")
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise FileFormatError(f"Expected {checkpoint} to hold the student's state_dict under `model`, but it does not")
    return state


def _as_onnx(run: RunFolder, checkpoint: Path, metadata: Mapping[str, str]) -> bytes:
    """Return a student as an ONNX model that maps `image` (N, C, H, W), normalised, to `logits` (N, num_classes)."""
    onnxruntime = _import_onnx()
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    network, shape = _network(run, checkpoint)
    generator = torch.Generator().manual_seed(0)
    example = torch.randn(2, *shape, generator=generator)
    batch = torch.export.Dim("batch", min=1)
    program: Any = torch.onnx.export(
        network,
        (example,),
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: batch},),
        dynamo=True,
        verbose=False,
    )
    model = program.model_proto
    for key, value in metadata.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    data: bytes = model.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    for rows in _CHECKED_BATCHES:
        images = torch.randn(rows, *shape, generator=generator)
        with torch.no_grad():
            expected = network(images).numpy()
        (found,) = session.run(["logits"], {"image": images.numpy()})
        difference = float(np.abs(found - expected).max()) if found.shape == expected.shape else float("inf")
        if not difference <= _TOLERANCE * max(1.0, float(np.abs(expected).max())):
            raise TLLMError(f"Expected ONNX Runtime to give PyTorch's logits, but they differ by {difference:.2g}")
    return data


class _Logits(nn.Module):
    """Return the logits of a network that returns features beside them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        return logits_of(self.network(image))


def _network(run: RunFolder, checkpoint: Path) -> tuple[nn.Module, tuple[int, int, int]]:
    """Return the student on the CPU in evaluation mode, and the shape of an image."""
    spec, data = RunSpec.read(run), run.read_data()
    if not spec.is_embedded or not (data.class_names and data.mean and data.image_size):
        raise ConfigError(
            f"Expected {run.log_folder} to be a run of the embedded host that recorded its data, but it is not; "
            f"{SUFFIX} takes every run"
        )
    name, channels = trained_model(spec.config()), len(data.mean)
    network = create_model(name, num_classes=len(data.class_names), in_channels=channels)
    network = load_weights(network, checkpoint, name)
    return _Logits(network).eval(), (channels, data.image_size, data.image_size)


def _import_onnx() -> Any:
    try:
        import onnx  # noqa: F401 (torch.onnx.export needs it)
        import onnxruntime
        import onnxscript  # noqa: F401 (as above)
    except ImportError as error:
        raise ConfigError(
            f"Expected the packages for ONNX to be installed, but {error}; pip install 'tllm-plugin[onnx]' brings them"
        ) from error
    return onnxruntime
