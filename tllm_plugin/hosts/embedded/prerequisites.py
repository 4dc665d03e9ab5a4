"""Name a run, and configure the runs that it requires but does not name: its teacher and its vanilla reference."""

from __future__ import annotations

from pathlib import Path

from yacs.config import CfgNode

from tllm_plugin.core.data_identity import DataIdentity, training_difference
from tllm_plugin.core.detectors import DETECTORS
from tllm_plugin.hosts import processes
from tllm_plugin.hosts.embedded.defaults import default_config
from tllm_plugin.hosts.run_spec import RunSpec
from tllm_plugin.runs.run_folder import RunFolder

WITHOUT_TEACHER = ("NONE", "SFTN")


def experiment_name(cfg: CfgNode) -> str:
    """Return the run's folder below LOG.PREFIX: `PROJECT/NAME`, or `PROJECT/TYPE-STUDENT-seedN` without a name."""
    name = cfg.EXPERIMENT.NAME
    if not name:
        kind = cfg.DISTILLER.TYPE.lower() if cfg.DISTILLER.TYPE != "NONE" else "vanilla"
        networks = f"{cfg.DISTILLER.TEACHER}-for-" if kind == "sftn" else ""
        name = as_folder(f"{kind}-{networks}{cfg.DISTILLER.STUDENT}-seed{cfg.EXPERIMENT.SEED}")
    return f"{cfg.EXPERIMENT.PROJECT}/{name}"


def as_folder(name: str) -> str:
    """Return a name without signs that not every system takes in the name of a folder."""
    return name.replace(":", "-").replace("/", "-")


def log_folder(cfg: CfgNode) -> Path:
    """Return the log folder of the run that a config describes."""
    return Path(cfg.LOG.PREFIX) / experiment_name(cfg)


def needed_teacher(cfg: CfgNode, data: DataIdentity | None = None) -> CfgNode | None:
    """Return the config of the teacher's run; None if the config names a checkpoint or needs no teacher.

    Args:
        cfg: Config of the run that needs the teacher.
        data: Training data; if a run on other data has the teacher's name already, the teacher gets another name.
    """
    if cfg.DISTILLER.TYPE in WITHOUT_TEACHER or cfg.DISTILLER.TEACHER_CHECKPOINT:
        return None
    epochs = cfg.DISTILLER.TEACHER_EPOCHS or cfg.SOLVER.EPOCHS
    sftn = cfg.DISTILLER.TEACHER_STAGE == "SFTN"
    role, branches_of = ("sftn", cfg.DISTILLER.STUDENT) if sftn else ("teacher", "")
    return _placed(prerequisite(cfg, cfg.DISTILLER.TEACHER, epochs, role, branches_of=branches_of), data)


def named_reference(cfg: CfgNode, data: DataIdentity | None = None) -> tuple[CfgNode, CfgNode | None]:
    """Return `cfg` with its reference filled in, and the config of the vanilla run to train as reference.

    If the detector needs no reference or the config names one, return `cfg` unchanged and None.

    Args:
        cfg: Config of the run.
        data: See `needed_teacher`.
    """
    detector = cfg.TLLM.DETECTOR
    if cfg.SOLVER.TRAINER != "tllm" or not DETECTORS[detector.TYPE].needs_reference or detector.REFERENCE:
        return cfg, None
    vanilla = _placed(prerequisite(cfg, cfg.DISTILLER.STUDENT, cfg.SOLVER.EPOCHS, "vanilla"), data)
    named = cfg.clone()
    named.defrost()
    named.TLLM.DETECTOR.REFERENCE = str(RunFolder.inside(log_folder(vanilla)).path)
    named.freeze()
    return named, vanilla


def _placed(needed: CfgNode, data: DataIdentity | None) -> CfgNode:
    """Return a prerequisite's config, renamed if a run on other data has its name already."""
    if data is None:
        return needed
    run = RunFolder.inside(log_folder(needed))
    if not processes.from_main(lambda: training_difference(run.read_data(), data)):
        return needed
    needed = needed.clone()
    needed.defrost()
    needed.EXPERIMENT.NAME = f"{needed.EXPERIMENT.NAME}-{data.for_training().digest()[:8]}"
    needed.freeze()
    return needed


def prerequisite(cfg: CfgNode, model: str, epochs: int, role: str, *, branches_of: str = "") -> CfgNode:
    """Return the config of a prerequisite; its name holds a digest of everything that determines its result.

    Args:
        cfg: Config of the run that needs the prerequisite.
        model: Network to train.
        epochs: Number of epochs.
        role: First part of the name of the prerequisite.
        branches_of: Student whose branches SFTN adds to the network; empty trains the network as a vanilla student.
    """
    kind = RunSpec({"DISTILLER.TYPE": "NONE", "TLLM.DETECTOR.TYPE": "none"})
    asked, defaults = RunSpec.of(cfg).values, RunSpec.of(default_config()).values
    # Keys that such a run does not read are set to their defaults, so that their values cannot prevent a resume.
    values = {**defaults, **{key: value for key, value in asked.items() if kind.reads(key)}, **kind.values}
    values |= {"DISTILLER.STUDENT": model, "SOLVER.EPOCHS": epochs}
    if branches_of:
        values |= {key: value for key, value in asked.items() if key.startswith("SFTN.")}
        values |= {"DISTILLER.TYPE": "SFTN", "DISTILLER.TEACHER": model, "DISTILLER.STUDENT": branches_of}
    name = as_folder(f"{role}-{model}-{RunSpec(values).prerequisite_digest(model)}")
    return RunSpec({**values, "EXPERIMENT.NAME": name}).config()
