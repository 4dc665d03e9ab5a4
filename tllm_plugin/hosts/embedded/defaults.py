"""The embedded host's configuration: the nodes of mdistiller, and a few of its own, at their defaults."""

from __future__ import annotations

from yacs.config import CfgNode

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.core.options import Option
from tllm_plugin.hosts.embedded.distillers import OWN, distiller_dict
from tllm_plugin.hosts.options import as_node, table, under
from tllm_plugin.hosts.ported_methods import builder
from tllm_plugin.methods import METHODS


def default_config() -> CfgNode:
    """Return a new config with every key at its default."""
    cfg = CfgNode()
    cfg.EXPERIMENT = CfgNode({"PROJECT": "embedded", "NAME": "", "TAG": "default", "SEED": 0})
    cfg.DATASET = CfgNode({"TYPE": "digits", "PATH": "", "DOWNLOAD": False, "IMAGE_SIZE": 0, "NUM_WORKERS": 2})
    cfg.DATASET.CLASS_ORDER = ""  # of class folders: "" text order, "natural", or a file of names
    cfg.DATASET.MEAN = []  # per channel, of pixels in 0..1; empty: the data set's own
    cfg.DATASET.STD = []
    cfg.DATASET.TEST = CfgNode({"BATCH_SIZE": 500})

    cfg.DISTILLER = CfgNode()
    cfg.DISTILLER.TYPE = "NONE"  # vanilla
    cfg.DISTILLER.TEACHER = "digits_teacher"
    cfg.DISTILLER.STUDENT = "digits_student"
    cfg.DISTILLER.TEACHER_CHECKPOINT = ""  # empty: trained first, and reused
    cfg.DISTILLER.TEACHER_STAGE = ""  # how it is trained then: "" vanilla, "SFTN" with branches of the student
    cfg.DISTILLER.TEACHER_EPOCHS = 0  # 0: as many as the student
    cfg.DISTILLER.PRETRAINED = False  # what is trained starts from torchvision's weights; models tv_... only
    cfg.DISTILLER.PLANT = CfgNode({"CLASSES": [], "STRENGTH": 1.0})  # a teacher made wrong on purpose; off if empty

    cfg.SOLVER = CfgNode()
    cfg.SOLVER.TRAINER = "base"
    cfg.SOLVER.BATCH_SIZE = 64
    cfg.SOLVER.ACCUMULATE = 1  # parts in which a batch goes through the networks, for less memory
    cfg.SOLVER.EPOCHS = 240
    cfg.SOLVER.TYPE = "SGD"
    cfg.SOLVER.LR = 0.05  # of "one_cycle" the highest
    cfg.SOLVER.SCHEDULE = "step"
    cfg.SOLVER.LR_DECAY_STAGES = [150, 180, 210]
    cfg.SOLVER.LR_DECAY_RATE = 0.1
    cfg.SOLVER.WARMUP_FRACTION = 0.3  # of "one_cycle": share of the steps that climb
    cfg.SOLVER.WEIGHT_DECAY = 0.0005
    cfg.SOLVER.MOMENTUM = 0.9
    cfg.SOLVER.NESTEROV = False

    cfg.RUNTIME = CfgNode()
    cfg.RUNTIME.DEVICE = "auto"  # cuda where there is one
    cfg.RUNTIME.PRECISION = "float32"  # bfloat16: autocast
    cfg.RUNTIME.CHANNELS_LAST = False
    cfg.RUNTIME.COMPILE = False
    cfg.RUNTIME.DETERMINISTIC = True  # on a GPU: the same bits every time, which exact resume needs
    cfg.RUNTIME.SYNC_BATCHNORM = False  # of several processes: the student's BatchNorm sees the rows of all

    cfg.LOG = CfgNode({"PREFIX": "./output", "SAVE_CHECKPOINT_FREQ": 40})
    cfg.LOG.SAVE_SECONDS = 0.0  # at least this long between writing a run's files; 0: after every epoch
    cfg.LOG.TEST_FREQ = 1  # epochs between looks at the test data; 0: only after the last one, -1: never

    cfg.update(as_node(method_options()))
    ours = as_node(table())
    if taken := set(ours) & set(cfg):
        raise ConfigError(f"Expected methods that are not named as sections of the config are, but got {min(taken)}")
    cfg.update(ours)
    # As a method has its node from now on, it has its name, too.
    for name in METHODS:
        distiller_dict.register(name)(builder(name))
    return cfg


def method_options() -> dict[str, Option]:
    """Return the options of the distillers that this host alone has, by full key."""
    return {key: option for name, kind in OWN.items() for key, option in under(name, kind.options).items()}
