"""Load networks by the names of the command line: run folders, tables of answers, bare checkpoints, models of timm."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from tllm_plugin.analysis.answers_file import is_answers, load_answers
from tllm_plugin.analysis.loaded_run import LoadedRun, load_run
from tllm_plugin.analysis.results import TestResult
from tllm_plugin.analysis.timm_networks import PREFIX, score_timm
from tllm_plugin.core.data_identity import DataIdentity, normalisation_difference, shown_numbers
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.core.paths import expanded
from tllm_plugin.core.predictions import predict
from tllm_plugin.data import DataBundle, load_data
from tllm_plugin.hosts.same_data import check_classes, data_of_checkpoint, tell_once, tell_unstated_order
from tllm_plugin.hosts.weights import check_weights, load_weights
from tllm_plugin.models import create_model, is_model, model_builder

_BATCH_SIZE = 500


@dataclass(frozen=True)
class EvaluationData:
    """Test data for bare checkpoints; values that are not given are taken from the checkpoint.

    Args:
        name: `TYPE` or `TYPE=PATH`; empty without data.
        image_size: Height and width in pixels; 0 uses the checkpoint's record, or else the stored size.
        class_order: See `load_data`; empty uses the checkpoint's record, or else text order.
        mean: Mean per channel; empty uses the checkpoint's record, or else the data set's.
        std: Standard deviation per channel; empty as for `mean`.
    """

    name: str = ""
    image_size: int = 0
    class_order: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


def load_named(name: str, data: EvaluationData | None = None) -> list[LoadedRun]:
    """Load the runs or the network that a name on the command line denotes.

    Args:
        name: `RUN`, `RUN,RUN` for several seeds, `LABEL=RUN,RUN`, `MODEL@CHECKPOINT`, or `timm:NAME[@CHECKPOINT]`; a
            table of answers (`FILE.csv`, `.npz`, `.parquet`) may take the place of a run.
        data: Test data for bare checkpoints.

    Raises:
        ConfigError: A bare checkpoint has no data, or its model is unknown.
        FileFormatError: A run or checkpoint cannot be read.
    """
    data = data or EvaluationData()
    label, found_label, rest = name.partition("=")
    if not found_label or Path(expanded(name)).exists():
        label, rest = "", name
    runs = []
    for part in [rest] if Path(expanded(rest)).exists() else rest.split(","):
        if part.startswith(PREFIX):
            runs.append(
                score_timm(
                    part,
                    data.name,
                    class_order=data.class_order,
                    image_size=data.image_size,
                    mean=data.mean,
                    std=data.std,
                )
            )
            continue
        model, at, checkpoint = part.partition("@")
        if at and is_model(model) and not Path(expanded(part)).exists():
            runs.append(_score_checkpoint(model, expanded(checkpoint), data))
        elif is_answers(part):
            runs.append(load_answers(part))
        else:
            runs.append(load_run(part))
    return [replace(run, method=label, grouped=True) for run in runs] if label else runs


def _score_checkpoint(model: str, checkpoint: str, data: EvaluationData) -> LoadedRun:
    if not data.name:
        raise ConfigError(
            f"Expected `--data` to name the test data for {model}@{checkpoint}, but got none; for example "
            "--data imagefolder=/path/to/folder"
        )
    kind, _, path = data.name.partition("=")
    check_weights(model_builder(model), checkpoint, model)
    recorded = data_of_checkpoint(checkpoint)
    bundle = load_data(
        kind,
        path,
        image_size=data.image_size or recorded.image_size,
        class_order=data.class_order or recorded.class_folders,
        mean=data.mean or recorded.mean,
        std=data.std or recorded.std,
    )
    _tell(checkpoint, recorded, bundle, data)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = create_model(model, num_classes=bundle.num_classes, in_channels=bundle.in_channels)
    network = load_weights(network, checkpoint)
    batches = bundle.eval_loader(None, batch_size=_BATCH_SIZE, device=device, split="test")
    predictions = predict(network.to(device), batches, num_classes=bundle.num_classes, device=device)
    return LoadedRun(
        name=f"{model}@{checkpoint}",
        method=f"{model}@{Path(checkpoint).parent.name}/{Path(checkpoint).name}",
        student=model,
        teacher="",
        seed=None,
        class_names=bundle.class_names,
        result=TestResult.from_predictions(predictions),
    )


def _tell(checkpoint: str, recorded: DataIdentity, bundle: DataBundle, data: EvaluationData) -> None:
    """Check that data and checkpoint have the same classes; warn about differing and unknown settings."""
    check_classes(checkpoint, recorded, bundle.identity, "set the order of the class folders with `--class-order`")
    if difference := normalisation_difference(recorded, bundle.identity):
        tell_once(f"{checkpoint} is tested with other settings than in training: {difference}")
    if not (recorded.class_names or bundle.order_stated):
        tell_unstated_order(checkpoint, bundle.class_folders)
    if not (recorded.mean or data.mean):
        tell_once(
            f"{checkpoint} does not record its normalisation; mean {shown_numbers(bundle.mean)} and standard "
            f"deviation {shown_numbers(bundle.std)} are used (set others with `--mean` and `--std`)"
        )
