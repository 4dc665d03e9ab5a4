"""Teacher and students of a study run over test images, and how alike they are."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tllm_plugin.analysis.loaded_run import LoadedRun
from tllm_plugin.analysis.networks import (
    Answers,
    ask,
    balanced_rows,
    embedded_config,
    student_network,
    teacher_checkpoint,
    teacher_network,
)
from tllm_plugin.analysis.representations import TSNE_POINTS, class_agreement, class_cka, tsne
from tllm_plugin.analysis.results import Counts, Vector, per_image
from tllm_plugin.analysis.study import Method, Study
from tllm_plugin.core.data_identity import DataIdentity, class_difference
from tllm_plugin.core.errors import TLLMError
from tllm_plugin.data import DataBundle
from tllm_plugin.hosts.embedded import job
from tllm_plugin.hosts.embedded.device import choose_device
from tllm_plugin.hosts.embedded.evaluation import batches_of_test_set

logger = logging.getLogger(__name__)

#: Test images that networks are run over at most, the same number of every class.
MOST_IMAGES = 10_000


@dataclass(frozen=True, eq=False)
class Picture:
    """A t-SNE of one network's features.

    Args:
        title: What it shows.
        labels: (k,) classes of the points.
        positions: (k, 2).
    """

    title: str
    labels: Counts
    positions: Vector


@dataclass(frozen=True, eq=False)
class Likeness:
    """What running the networks gave.

    Args:
        images: How many test images they were run over.
        teacher_accuracy: (C,) of the teacher that the students met.
        cka: By method: (C,) CKA of teacher and first student.
        agreement: By method: (C,) share of images with the same answer as the teacher.
        pictures: Of the vanilla student, and of the first method's.
    """

    images: int
    teacher_accuracy: Vector | None
    cka: Mapping[str, Vector]
    agreement: Mapping[str, Vector]
    pictures: tuple[Picture, ...]


def likeness_of(study: Study, *, points: int = TSNE_POINTS) -> Likeness | None:
    """Run the networks of a study over its test data.

    Args:
        study: Its runs hold checkpoints and configs of the embedded host.
        points: Of a t-SNE at most; 0 for none.

    Returns:
        None where nothing can be run; the log says why.
    """
    methods = [method for method in study.compared if method.runs[0].teacher]
    if not methods:
        return None
    try:
        cfg = embedded_config(methods[0].runs[0])
        folder = methods[0].runs[0].folder
        recorded = folder.read_data() if folder is not None else DataIdentity()
        bundle, device = job.load_bundle(cfg, recorded), choose_device(cfg)
        if class_difference(recorded, bundle.identity) or len(bundle.class_names) != len(study.class_names):
            logger.info("networks are not compared: the data of %s are others by now", methods[0].runs[0].name)
            return None
        rows = balanced_rows(bundle.test_labels, MOST_IMAGES)
        return _run(study, methods, bundle, device, rows, points)
    except (TLLMError, OSError) as error:
        logger.info("networks are not compared: %s", error)
        return None


def _run(
    study: Study, methods: list[Method], bundle: DataBundle, device: torch.device, rows: torch.Tensor, points: int
) -> Likeness:
    def answers_of(run: LoadedRun, checkpoint: Path | None = None) -> Answers:
        network = (
            student_network(run, bundle, device)
            if checkpoint is None
            else teacher_network(run, checkpoint, bundle, device)
        )
        return ask(network, batches_of_test_set(bundle, embedded_config(run), device, rows), device, features=True)

    cka, agreement, classes = {}, {}, len(study.class_names)
    teacher_accuracy, taught_by = None, {}
    students = {method.label: answers_of(method.runs[0]) for method in methods}
    for method in methods:
        checkpoint = teacher_checkpoint(method.runs[0])
        if checkpoint is None:
            logger.info("%s: its teacher's checkpoint is not to be found", method.label)
            continue
        key = (checkpoint, str(embedded_config(method.runs[0]).DISTILLER.PLANT))
        if key not in taught_by:
            taught_by[key] = answers_of(method.runs[0], checkpoint)
        teacher, student = taught_by[key], students[method.label]
        cka[method.label] = class_cka(teacher.features, student.features, teacher.labels, classes)
        agreement[method.label] = class_agreement(teacher.predictions, student.predictions, teacher.labels, classes)
        if teacher_accuracy is None:
            total = np.bincount(teacher.labels, minlength=classes)
            right = np.bincount(teacher.labels[teacher.labels == teacher.predictions], minlength=classes)
            teacher_accuracy = per_image(right, total)
    pictures = []
    if points >= 4:
        shown = [("vanilla", answers_of(methods[0].vanilla[0])), (methods[0].label, students[methods[0].label])]
        for title, answers in shown:
            kept = balanced_rows(torch.from_numpy(answers.labels), points).numpy()
            pictures.append(Picture(title, answers.labels[kept], tsne(answers.features[kept]).astype(np.float64)))
    return Likeness(len(rows), teacher_accuracy, cka, agreement, tuple(pictures))
