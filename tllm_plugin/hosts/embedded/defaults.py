"""Table of the embedded host's config keys: the keys of mdistiller, and a few more."""

from __future__ import annotations

import re

from yacs.config import CfgNode

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.core.options import INSIDE, SHARE, Check, Option, at_least, count_in, more_than, number_in, one_of
from tllm_plugin.data import DATA_SETS
from tllm_plugin.hosts.embedded.distillers import OWN, distiller_dict
from tllm_plugin.hosts.embedded.loggers import LOGGERS
from tllm_plugin.hosts.method_options import builder
from tllm_plugin.hosts.options import as_node, table, under
from tllm_plugin.methods import METHODS
from tllm_plugin.models import model_problem

# Far above all sensible values; larger ones are typing errors that would exhaust memory or never end.
_EPOCHS, _ROWS, _WORKERS, _SIDE = 1_000_000, 2**31 - 1, 1024, 8192


def _model(value: str) -> str | None:
    return model_problem(value)


def _device(value: str) -> str | None:
    return None if re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]{1,2})?", value) else "auto, cpu, mps, cuda or cuda:N"


def _loggers(value: list[object]) -> str | None:
    return None if set(value) <= set(LOGGERS) else f"a list of {', '.join(LOGGERS)}"


def _betas(value: list[object]) -> str | None:
    fine = len(value) == 2 and all(type(beta) in (int, float) and 0 <= beta < 1 for beta in value)  # type: ignore[operator]
    return None if fine else "two numbers in [0, 1)"


_KEYS: tuple[tuple[str, object, Check | None, str], ...] = (
    ("EXPERIMENT.PROJECT", "embedded", None, "folder of related runs below LOG.PREFIX"),
    ("EXPERIMENT.NAME", "", None, "folder of the run below EXPERIMENT.PROJECT; empty: TYPE-STUDENT-seedN"),
    ("EXPERIMENT.TAG", "default", None, "free text about the run; has no effect"),
    ("EXPERIMENT.SEED", 0, None, "seed of weights, order of the images and augmentation"),
    ("DATASET.TYPE", "digits", one_of(DATA_SETS), "data set"),
    ("DATASET.PATH", "", None, "folder of the data set"),
    ("DATASET.DOWNLOAD", False, None, "download the data set if it is missing"),
    ("DATASET.IMAGE_SIZE", 0, count_in(0, _SIDE), "height and width of the images in pixels; 0: as in the data set"),
    ("DATASET.NUM_WORKERS", 2, count_in(0, _WORKERS), "number of loader processes"),
    (
        "DATASET.CLASS_ORDER",
        "",
        None,
        "order of the class folders: empty for text order, natural, or a file of folder names",
    ),
    ("DATASET.MEAN", [], None, "mean per channel of pixels in 0..1; empty: mean of the data set"),
    ("DATASET.STD", [], None, "standard deviation per channel of pixels in 0..1; empty: as in the data set"),
    ("DATASET.TEST.BATCH_SIZE", 500, count_in(1, _ROWS), "batch size for hold-out and test data"),
    ("DISTILLER.TYPE", "NONE", one_of(distiller_dict), "distiller; NONE trains a vanilla student"),
    ("DISTILLER.TEACHER", "digits_teacher", _model, "network of the teacher"),
    ("DISTILLER.STUDENT", "digits_student", _model, "network of the student"),
    ("DISTILLER.TEACHER_CHECKPOINT", "", None, "checkpoint of the teacher; empty: train a teacher first, or reuse it"),
    ("DISTILLER.TEACHER_STAGE", "", one_of(["", "SFTN"]), "training of the teacher: empty for vanilla, or SFTN"),
    ("DISTILLER.TEACHER_EPOCHS", 0, count_in(0, _EPOCHS), "epochs of the teacher; 0: as many as the student"),
    ("DISTILLER.PRETRAINED", False, None, "start training from torchvision's weights (models tv_...)"),
    ("DISTILLER.PLANT.CLASSES", [], None, "classes on which the teacher is made wrong on purpose"),
    (
        "DISTILLER.PLANT.STRENGTH",
        1.0,
        number_in(0, 1, open_low=True),
        "share of the probability that is moved to a wrong class",
    ),
    ("SOLVER.TRAINER", "base", None, "training loop; tllm adds hold-out and detector"),
    ("SOLVER.BATCH_SIZE", 64, count_in(1, _ROWS), "batch size, over all processes together"),
    ("SOLVER.ACCUMULATE", 1, count_in(1, _ROWS), "number of micro-batches per batch, to save memory"),
    ("SOLVER.EPOCHS", 240, count_in(1, _EPOCHS), "number of epochs"),
    ("SOLVER.TYPE", "SGD", one_of(["SGD", "AdamW"]), "optimizer"),
    ("SOLVER.LR", 0.05, more_than(0), "initial learning rate; for one_cycle the highest"),
    ("SOLVER.SCHEDULE", "step", one_of(["step", "one_cycle", "cosine"]), "schedule of the learning rate"),
    ("SOLVER.LR_DECAY_STAGES", [150, 180, 210], None, "for step: epochs after which the learning rate decays"),
    ("SOLVER.LR_DECAY_RATE", 0.1, more_than(0), "for step: factor of each decay"),
    ("SOLVER.WARMUP_FRACTION", 0.3, INSIDE, "for one_cycle: fraction of the steps with a rising learning rate"),
    ("SOLVER.WARMUP_EPOCHS", 0, count_in(0, _EPOCHS), "for cosine: number of epochs with a rising learning rate"),
    ("SOLVER.LEAST_LR", 0.0, at_least(0), "for cosine: learning rate after the last step"),
    ("SOLVER.WEIGHT_DECAY", 0.0005, at_least(0), "weight decay"),
    ("SOLVER.MOMENTUM", 0.9, SHARE, "for SGD: momentum"),
    ("SOLVER.NESTEROV", False, None, "for SGD: use Nesterov momentum"),
    ("SOLVER.BETAS", [0.9, 0.999], _betas, "for AdamW: decay rates of the averages of gradient and squared gradient"),
    ("SOLVER.EMA_DECAY", 0.0, SHARE, "decay per step of the average of the student's weights that is scored; 0: none"),
    ("RUNTIME.DEVICE", "auto", _device, "device; auto: a GPU if there is one"),
    (
        "RUNTIME.PRECISION",
        "float32",
        one_of(["float32", "bfloat16"]),
        "precision of the forward pass; bfloat16 uses autocast",
    ),
    ("RUNTIME.CHANNELS_LAST", False, None, "use the memory format channels_last for networks and images"),
    ("RUNTIME.COMPILE", False, None, "compile the networks with torch.compile"),
    ("RUNTIME.DETERMINISTIC", True, None, "use deterministic algorithms on a GPU, as exact resume needs"),
    ("RUNTIME.SYNC_BATCHNORM", False, None, "synchronise the student's BatchNorm over all processes"),
    ("LOG.PREFIX", "./output", None, "folder of all runs"),
    ("LOG.TO", ["tensorboard"], _loggers, "loggers of the scalars: tensorboard, wandb, mlflow"),
    ("LOG.SAVE_CHECKPOINT_FREQ", 40, at_least(1), "number of epochs between checkpoints that are kept"),
    ("LOG.SAVE_SECONDS", 0.0, at_least(0), "least time between two checkpoints in seconds; 0: one after every epoch"),
    ("LOG.TEST_FREQ", 1, at_least(-1), "number of epochs between tests; 0: only after the last epoch, -1: never"),
)


def own_options() -> dict[str, Option]:
    """Return the options of this host and of its own distillers by full key."""
    found = {key: Option("", default, check, text, key) for key, default, check, text in _KEYS}
    for name, kind in OWN.items():
        found |= under(name, kind.options)
    return found


def default_config() -> CfgNode:
    """Return a new config with every key at its default.

    Raises:
        ConfigError: A method has the name of a section of the config.
    """
    cfg, shared = as_node(own_options()), as_node(table())
    if taken := set(shared) & set(cfg):
        raise ConfigError(f"Expected names of methods that are not sections of the config, but got {min(taken)}")
    cfg.update(shared)
    # A method with a config node can also be selected by its name.
    for name in METHODS:
        distiller_dict.register(name)(builder(name))
    return cfg
