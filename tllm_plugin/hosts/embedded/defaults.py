"""The embedded host's configuration as a table: the keys of mdistiller, and a few of its own."""

from __future__ import annotations

import re

from yacs.config import CfgNode

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.core.options import INSIDE, SHARE, Check, Option, at_least, count_in, more_than, number_in, one_of
from tllm_plugin.data import DATA_SETS
from tllm_plugin.hosts.embedded.distillers import OWN, distiller_dict
from tllm_plugin.hosts.method_options import builder
from tllm_plugin.hosts.options import as_node, table, under
from tllm_plugin.methods import METHODS
from tllm_plugin.models import model_problem

# Far beyond what anybody trains; more is a slip, and would end in want of memory or not at all.
_EPOCHS, _ROWS, _WORKERS, _SIDE = 1_000_000, 2**31 - 1, 1024, 8192


def _model(value: str) -> str | None:
    return model_problem(value)


def _device(value: str) -> str | None:
    return None if re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]{1,2})?", value) else "auto, cpu, mps, cuda or cuda:N"


def _betas(value: list[object]) -> str | None:
    fine = len(value) == 2 and all(type(beta) in (int, float) and 0 <= beta < 1 for beta in value)  # type: ignore[operator]
    return None if fine else "two numbers in [0, 1)"


_KEYS: tuple[tuple[str, object, Check | None, str], ...] = (
    ("EXPERIMENT.PROJECT", "embedded", None, "folder below LOG.PREFIX"),
    ("EXPERIMENT.NAME", "", None, "folder of the run; empty: TYPE-STUDENT-seedN"),
    ("EXPERIMENT.TAG", "default", None, "note about the run"),
    ("EXPERIMENT.SEED", 0, None, "seed of weights, order and augmentation"),
    ("DATASET.TYPE", "digits", one_of(DATA_SETS), "data set"),
    ("DATASET.PATH", "", None, "folder of the data"),
    ("DATASET.DOWNLOAD", False, None, "download what is not there"),
    ("DATASET.IMAGE_SIZE", 0, count_in(0, _SIDE), "height and width of the images; 0: the data set's own"),
    ("DATASET.NUM_WORKERS", 2, count_in(0, _WORKERS), "loader processes"),
    ("DATASET.CLASS_ORDER", "", None, "of class folders: empty for text order, natural, or a file of names"),
    ("DATASET.MEAN", [], None, "per channel, of pixels in 0..1; empty: the data set's own"),
    ("DATASET.STD", [], None, "per channel, of pixels in 0..1; empty: the data set's own"),
    ("DATASET.TEST.BATCH_SIZE", 500, count_in(1, _ROWS), "images that are scored at once"),
    ("DISTILLER.TYPE", "NONE", one_of(distiller_dict), "distiller; NONE: vanilla"),
    ("DISTILLER.TEACHER", "digits_teacher", _model, "teacher's network"),
    ("DISTILLER.STUDENT", "digits_student", _model, "student's network"),
    ("DISTILLER.TEACHER_CHECKPOINT", "", None, "teacher's weights; empty: trained first, and reused"),
    ("DISTILLER.TEACHER_STAGE", "", one_of(["", "SFTN"]), "how it is trained: empty for vanilla, or SFTN"),
    ("DISTILLER.TEACHER_EPOCHS", 0, count_in(0, _EPOCHS), "how long it is trained; 0: as long as the student"),
    ("DISTILLER.PRETRAINED", False, None, "start what is trained from torchvision's weights (models tv_...)"),
    ("DISTILLER.PLANT.CLASSES", [], None, "classes that the teacher is made wrong on, on purpose"),
    ("DISTILLER.PLANT.STRENGTH", 1.0, number_in(0, 1, open_low=True), "how wrong it is made"),
    ("SOLVER.TRAINER", "base", None, "training loop; tllm: with hold-out and detector"),
    ("SOLVER.BATCH_SIZE", 64, count_in(1, _ROWS), "rows of a step, of all processes together"),
    ("SOLVER.ACCUMULATE", 1, count_in(1, _ROWS), "parts in which a batch goes through the networks, for less memory"),
    ("SOLVER.EPOCHS", 240, count_in(1, _EPOCHS), "epochs of the run"),
    ("SOLVER.TYPE", "SGD", one_of(["SGD", "AdamW"]), "optimizer"),
    ("SOLVER.LR", 0.05, more_than(0), "learning rate; of one_cycle the highest"),
    ("SOLVER.SCHEDULE", "step", one_of(["step", "one_cycle", "cosine"]), "schedule of the learning rate"),
    ("SOLVER.LR_DECAY_STAGES", [150, 180, 210], None, "of step: epochs after which it decays"),
    ("SOLVER.LR_DECAY_RATE", 0.1, more_than(0), "of step: factor of each decay"),
    ("SOLVER.WARMUP_FRACTION", 0.3, INSIDE, "of one_cycle: share of the steps that climb"),
    ("SOLVER.WARMUP_EPOCHS", 0, count_in(0, _EPOCHS), "of cosine: epochs that climb to the learning rate"),
    ("SOLVER.LEAST_LR", 0.0, at_least(0), "of cosine: learning rate after the last step"),
    ("SOLVER.WEIGHT_DECAY", 0.0005, at_least(0), "weight decay"),
    ("SOLVER.MOMENTUM", 0.9, SHARE, "of SGD: momentum"),
    ("SOLVER.NESTEROV", False, None, "of SGD: Nesterov's momentum"),
    ("SOLVER.BETAS", [0.9, 0.999], _betas, "of AdamW: decay of the running means of gradient and square"),
    ("SOLVER.EMA_DECAY", 0.0, SHARE, "average the student's weights with this decay per step, and score that; 0: no"),
    ("RUNTIME.DEVICE", "auto", _device, "device; auto: a GPU where there is one"),
    ("RUNTIME.PRECISION", "float32", one_of(["float32", "bfloat16"]), "bfloat16: autocast"),
    ("RUNTIME.CHANNELS_LAST", False, None, "memory format of networks and images"),
    ("RUNTIME.COMPILE", False, None, "compile the networks"),
    ("RUNTIME.DETERMINISTIC", True, None, "on a GPU: the same bits every time, which exact resume needs"),
    ("RUNTIME.SYNC_BATCHNORM", False, None, "of several processes: the student's BatchNorm sees the rows of all"),
    ("LOG.PREFIX", "./output", None, "folder of all runs"),
    ("LOG.SAVE_CHECKPOINT_FREQ", 40, at_least(1), "epochs between checkpoints that are kept"),
    ("LOG.SAVE_SECONDS", 0.0, at_least(0), "at least this long between writing files; 0: after every epoch"),
    ("LOG.TEST_FREQ", 1, at_least(-1), "epochs between tests; 0: after the last epoch only, -1: never"),
)


def own_options() -> dict[str, Option]:
    """Return the options of this host and of the distillers that it alone has, by full key."""
    found = {key: Option("", default, check, text, key) for key, default, check, text in _KEYS}
    for name, kind in OWN.items():
        found |= under(name, kind.options)
    return found


def default_config() -> CfgNode:
    """Return a new config with every key at its default.

    Raises:
        ConfigError: A method has the name of a section of this host's.
    """
    cfg, shared = as_node(own_options()), as_node(table())
    if taken := set(shared) & set(cfg):
        raise ConfigError(f"Expected methods that are not named as sections of the config are, but got {min(taken)}")
    cfg.update(shared)
    # As a method has its node from now on, it has its name, too.
    for name in METHODS:
        distiller_dict.register(name)(builder(name))
    return cfg
