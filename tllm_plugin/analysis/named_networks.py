"""What a user may name to be compared: run folders, bare checkpoints, models of timm."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from tllm_plugin.analysis.loaded_run import LoadedRun, load_run
from tllm_plugin.analysis.networks import ask
from tllm_plugin.analysis.results import TestResult
from tllm_plugin.analysis.timm_networks import PREFIX, score_timm
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.core.paths import expanded
from tllm_plugin.data import load_data
from tllm_plugin.hosts.embedded.networks import load_network
from tllm_plugin.models import create_model, is_model

_BATCH_SIZE = 500


def load_named(name: str, data: str = "", image_size: int = 0) -> list[LoadedRun]:
    """Return what `name` stands for.

    Args:
        name: `RUN`, `RUN,RUN` for several seeds, `LABEL=RUN,RUN`, `MODEL@CHECKPOINT`, or `timm:NAME[@CHECKPOINT]`.
        data: `TYPE` or `TYPE=PATH` of the test data that a bare checkpoint is run on.
        image_size: Of that data, in pixels; 0: as stored.

    Raises:
        ConfigError: A checkpoint without data or of an unknown model.
        FileFormatError: A run or checkpoint that cannot be read.
    """
    label, found_label, rest = name.partition("=")
    if not found_label or Path(expanded(name)).exists():
        label, rest = "", name
    runs = []
    for part in [rest] if Path(expanded(rest)).exists() else rest.split(","):
        if part.startswith(PREFIX):
            runs.append(score_timm(part, data))
            continue
        model, at, checkpoint = part.partition("@")
        if at and is_model(model) and not Path(expanded(part)).exists():
            runs.append(_score_checkpoint(model, checkpoint, data, image_size))
        else:
            runs.append(load_run(part))
    return [replace(run, method=label, grouped=True) for run in runs] if label else runs


def _score_checkpoint(model: str, checkpoint: str, data: str, image_size: int) -> LoadedRun:
    if not data:
        raise ConfigError(
            f"Expected `--data` to name the test data for {model}@{checkpoint}, but got none; for example "
            "--data imagefolder=/path/to/folder"
        )
    kind, _, path = data.partition("=")
    bundle = load_data(kind, path, image_size=image_size)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = create_model(model, num_classes=bundle.num_classes, in_channels=bundle.in_channels)
    network = load_network(network, expanded(checkpoint))
    batches = bundle.eval_loader(None, batch_size=_BATCH_SIZE, device=device, split="test")
    answers = ask(network.to(device), batches, device, features=False)
    return LoadedRun(
        name=f"{model}@{checkpoint}",
        method=f"{model}@{Path(checkpoint).parent.name}/{Path(checkpoint).name}",
        student=model,
        teacher="",
        seed=None,
        class_names=bundle.class_names,
        result=TestResult.from_predictions(answers.labels, answers.predictions, bundle.num_classes),
    )
