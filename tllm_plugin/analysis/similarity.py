"""Run teacher and students of a study over test images, and measure their similarity."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from tllm_plugin.analysis.loaded_run import LoadedRun
from tllm_plugin.analysis.networks import (
    balanced_rows,
    embedded_config,
    student_network,
    teacher_checkpoint,
    teacher_network,
)
from tllm_plugin.analysis.representations import TSNE_POINTS, class_cka, tsne
from tllm_plugin.analysis.results import Counts, TestResult, Vector
from tllm_plugin.analysis.study import Method, Study
from tllm_plugin.core.data_identity import DataIdentity, class_difference
from tllm_plugin.core.errors import TLLMError
from tllm_plugin.core.predictions import Predictions, class_means, predict
from tllm_plugin.data import DataBundle
from tllm_plugin.hosts.embedded.data import batches_of_test_set, load_bundle
from tllm_plugin.hosts.embedded.runtime import autocast, choose_device

logger = logging.getLogger(__name__)

#: Test images that networks are run over at most, the same number of every class.
MOST_IMAGES = 10_000


@dataclass(frozen=True, eq=False)
class Picture:
    """t-SNE of one network's features.

    Args:
        title: Title of the plot.
        labels: (k,) classes of the points.
        positions: (k, 2) positions of the points.
    """

    title: str
    labels: Counts
    positions: Vector


@dataclass(frozen=True, eq=False)
class Similarity:
    """Results of running the networks over test images.

    Args:
        images: Number of test images.
        teacher_accuracy: (C,) accuracy of the teacher from which the students learned, planted classes included.
        cka: By method: (C,) CKA of teacher and first student.
        agreement: By method: (C,) share of images with the same prediction as the teacher.
        pictures: t-SNE of the vanilla student and of the first method's student.
    """

    images: int
    teacher_accuracy: Vector | None
    cka: Mapping[str, Vector]
    agreement: Mapping[str, Vector]
    pictures: tuple[Picture, ...]


def similarity_of(study: Study, *, points: int = TSNE_POINTS) -> Similarity | None:
    """Run the networks of a study over its test data.

    Args:
        study: Study of runs with checkpoints and configs of the embedded host.
        points: Largest number of points of a t-SNE; 0 for no t-SNE.

    Returns:
        Results; None, with a warning, if no network can be run.
    """
    methods = [method for method in study.compared if method.runs[0].teacher]
    if not methods:
        return None
    try:
        cfg = embedded_config(methods[0].runs[0])
        folder = methods[0].runs[0].folder
        recorded = folder.read_data() if folder is not None else DataIdentity()
        bundle, device = load_bundle(cfg, recorded), choose_device(cfg)
        if class_difference(recorded, bundle.identity) or len(bundle.class_names) != len(study.class_names):
            logger.info("networks are not compared: the data of %s have changed", methods[0].runs[0].name)
            return None
        rows = balanced_rows(bundle.test_labels, MOST_IMAGES)
        return _run(study, methods, bundle, device, rows, points)
    except (TLLMError, OSError) as error:
        logger.info("networks are not compared: %s", error)
        return None


def _run(
    study: Study, methods: list[Method], bundle: DataBundle, device: torch.device, rows: torch.Tensor, points: int
) -> Similarity:
    def predictions_of(run: LoadedRun, checkpoint: Path | None = None) -> Predictions:
        network = (
            student_network(run, bundle, device)
            if checkpoint is None
            else teacher_network(run, checkpoint, bundle, device)
        )
        cfg = embedded_config(run)
        batches = batches_of_test_set(bundle, cfg, device, rows)
        return predict(network, batches, autocast=partial(autocast, cfg, device), features=True)

    cka, agreement, classes = {}, {}, len(study.class_names)
    teacher_accuracy, taught_by = None, {}
    students = {method.label: predictions_of(method.runs[0]) for method in methods}
    for method in methods:
        checkpoint = teacher_checkpoint(method.runs[0])
        if checkpoint is None:
            logger.info("%s: the checkpoint of its teacher is not found", method.label)
            continue
        key = (checkpoint, str(embedded_config(method.runs[0]).DISTILLER.PLANT))
        if key not in taught_by:
            taught_by[key] = predictions_of(method.runs[0], checkpoint)
        teacher, student = taught_by[key], students[method.label]
        theirs, ours = (one.kept("features").numpy() for one in (teacher, student))
        cka[method.label] = class_cka(theirs, ours, teacher.labels.numpy(), classes)
        agrees = student.prediction == teacher.prediction
        agreement[method.label] = class_means(agrees, teacher.labels, classes).numpy()
        if teacher_accuracy is None:
            teacher_accuracy = TestResult.from_predictions(teacher).class_accuracy
    pictures = []
    if points >= 4:
        shown = [("vanilla", predictions_of(methods[0].vanilla[0])), (methods[0].label, students[methods[0].label])]
        for title, predictions in shown:
            kept = balanced_rows(predictions.labels, points)
            positions = tsne(predictions.kept("features")[kept].numpy()).astype(np.float64)
            pictures.append(Picture(title, predictions.labels[kept].numpy(), positions))
    return Similarity(len(rows), teacher_accuracy, cka, agreement, tuple(pictures))
