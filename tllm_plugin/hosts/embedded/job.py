"""From a config to a finished run: data, networks, what has to be trained first, and the run itself."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from yacs.config import CfgNode

from tllm_plugin.core.curves import Curves
from tllm_plugin.core.data_identity import DataIdentity, training_difference
from tllm_plugin.core.detectors import DETECTORS, Detector
from tllm_plugin.core.errors import ConfigError, DataError, TLLMError
from tllm_plugin.core.predictions import predict
from tllm_plugin.data import DataBundle, load_data
from tllm_plugin.hosts import processes
from tllm_plugin.hosts.adapter import Host, make_distiller_factory, make_trainer_factory
from tllm_plugin.hosts.at_chance import tell_if_at_chance
from tllm_plugin.hosts.class_lists import resolve_classes
from tllm_plugin.hosts.embedded.batch_norm import least_rows, synchronise_batch_norm
from tllm_plugin.hosts.embedded.checkpoint import check_resumable, check_same_run
from tllm_plugin.hosts.embedded.defaults import default_config
from tllm_plugin.hosts.embedded.device import autocast, choose_device
from tllm_plugin.hosts.embedded.distillers import distiller_dict
from tllm_plugin.hosts.embedded.late_test import batches_of_test_set, ensure_tested
from tllm_plugin.hosts.embedded.networks import load_network, make_network, show_as_recorded
from tllm_plugin.hosts.embedded.planting import PlantedTeacher
from tllm_plugin.hosts.embedded.reproducible import reproducible
from tllm_plugin.hosts.embedded.run_lock import run_lock
from tllm_plugin.hosts.embedded.trainer import trainer_dict
from tllm_plugin.hosts.run_spec import RunSpec
from tllm_plugin.hosts.same_data import check_teacher, data_of_checkpoint, tell_unstated_order
from tllm_plugin.runs.run_folder import RunFolder
from tllm_plugin.version import __version__

logger = logging.getLogger(__name__)

_WITHOUT_TEACHER = ("NONE", "SFTN")
#: About as many of the training images show whether a teacher knows anything.
_IMAGES_FOR_A_TEACHER = 500

#: Is shown curves and detector of a run after every epoch that it trains; says whether to keep the checkpoint, which is
#: kept after every `LOG.SAVE_CHECKPOINT_FREQ` epochs in any case.
Keep = Callable[[Curves, Detector], bool]


@dataclass(frozen=True)
class EmbeddedData:
    """The training data of a bundle, as the adapter wants it; stands in for a loader until the hold-out is cut.

    Args:
        bundle: The data set.
        cfg: Of the run.
        device: Where the batches end up.
        least_rows: See `DataBundle.train_loader`.
    """

    bundle: DataBundle
    cfg: CfgNode
    device: torch.device
    least_rows: int

    @property
    def labels(self) -> Tensor:
        return self.bundle.train_labels

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.bundle.class_names

    @property
    def identity(self) -> DataIdentity:
        return self.bundle.identity

    def train_loader(self, indices: Tensor | None) -> Any:
        """Return this process's rows of augmented batches of `indices` (all of the training part for None)."""
        return self.bundle.train_loader(
            indices,
            batch_size=self.cfg.SOLVER.BATCH_SIZE,
            seed=self.cfg.EXPERIMENT.SEED,
            device=self.device,
            shard=processes.shard(),
            least_rows=self.least_rows,
        )

    def holdout_loader(self, indices: Tensor) -> Any:
        """Return this process's un-augmented batches of `indices`, in order."""
        return self.bundle.eval_loader(
            indices,
            batch_size=self.cfg.DATASET.TEST.BATCH_SIZE,
            device=self.device,
            split="train",
            shard=processes.shard(),
        )


def _register() -> None:
    host = Host(
        trainers=trainer_dict,
        distillers=distiller_dict,
        special_types=frozenset({"NONE"}),
        training_data=lambda data, val_loader, cfg: data,
    )
    trainer_dict.register("tllm")(make_trainer_factory(host))
    distiller_dict.register("TLLM")(make_distiller_factory(host))


_register()


def run(
    cfg: CfgNode,
    *,
    resume: bool = False,
    overwrite: bool = False,
    bundle: DataBundle | None = None,
    watch: Callable[[Curves], None] | None = None,
    keep: Keep | None = None,
) -> RunFolder:
    """Train what a config describes, and before it the teacher and the reference that it needs and does not name.

    Of several processes all have to call it, with the same arguments; the main one reads and writes the run folders.

    Args:
        cfg: Checked and frozen, from `config.load_config`.
        resume: Continue the run from its last checkpoint.
        overwrite: Start anew although the run's folder holds one.
        bundle: The data set, if it is in memory already.
        watch: Is shown the curves on the search hold-out after every epoch that is trained; what it raises ends the
            run, which can be resumed.
        keep: See `Keep`.

    Returns:
        The run's folder.

    Raises:
        ConfigError: The config does not fit the data, the run exists and neither `resume` nor `overwrite` is set, or
            another command is training it.
        DataError, FileFormatError, NonFiniteLossError: As they say.
    """
    with run_lock(log_folder(cfg), wait=False), reproducible(cfg):
        bundle = bundle or load_bundle(cfg)
        identity = torch.tensor(list(bytes.fromhex(bundle.identity.digest())))
        processes.check_same("the data", identity)
        trainer = _prepared(cfg, bundle, resume=resume, overwrite=overwrite)
        if watch is not None:
            trainer.teaching.watch = partial(_show, trainer, watch)
        if keep is not None:
            trainer.keep = partial(keep, trainer.teaching.curves, trainer.teaching.detector)
        trainer.train(resume=resume)
        if resume and cfg.LOG.TEST_FREQ >= 0:
            # A run that was finished may lack them.
            ensure_tested(RunFolder.inside(log_folder(cfg)), cfg, bundle)
    return RunFolder.inside(log_folder(cfg))


def _prepared(cfg: CfgNode, bundle: DataBundle, *, resume: bool, overwrite: bool) -> Any:
    """Return the trainer of a run, all that the run needs trained."""
    folder = log_folder(cfg)
    device = choose_device(cfg)
    cfg, vanilla = named_reference(cfg, bundle.identity)
    # Before anything is trained or written: a refusal must leave the run's files as they are.
    processes.from_main(lambda: _check_start(folder, cfg, bundle, resume=resume, overwrite=overwrite))
    teacher = _teacher(cfg, bundle, device) if cfg.DISTILLER.TYPE not in _WITHOUT_TEACHER else None
    if vanilla is not None:
        ensure_trained(vanilla, bundle)
    # Seeded here, so that the weights depend neither on what was trained before nor on the method.
    torch.manual_seed(cfg.EXPERIMENT.SEED)
    if cfg.DISTILLER.TYPE == "SFTN":
        teacher = make_network(cfg, cfg.DISTILLER.TEACHER, bundle, device, pretrained=cfg.DISTILLER.PRETRAINED)
    student = make_network(cfg, cfg.DISTILLER.STUDENT, bundle, device, pretrained=cfg.DISTILLER.PRETRAINED)
    build = distiller_dict[cfg.DISTILLER.TYPE]
    distiller = (build(student) if teacher is None else build(student, teacher, cfg)).to(device)
    if cfg.RUNTIME.SYNC_BATCHNORM:
        distiller.student = synchronise_batch_norm(distiller.get_submodule("student"), device)
    data = EmbeddedData(bundle, cfg, device, least_rows(distiller))
    if overwrite and not resume and processes.is_main():
        # Not before: a teacher or network that is refused must leave the earlier run as it is.
        _remove_results(folder)
    # The trainer `tllm` cuts the hold-out itself.
    train_data = data if cfg.SOLVER.TRAINER == "tllm" else data.train_loader(None)
    trainer = trainer_dict[cfg.SOLVER.TRAINER](
        experiment_name(cfg), distiller, train_data, batches_of_test_set(bundle, cfg, device), cfg
    )
    trainer.data = bundle.identity
    if processes.is_main():
        run_folder = RunFolder.inside(folder).create()
        run_folder.write_config(described(cfg.dump()))
        run_folder.write_data(bundle.identity)
    return trainer


def _show(trainer: Any, watch: Callable[[Curves], None], curves: Curves) -> None:
    try:
        watch(curves)
    except BaseException:
        # What was trained stays.
        trainer.save_epoch(curves.epochs[-1], kept=False)
        raise


def _check_start(folder: Path, cfg: CfgNode, bundle: DataBundle, *, resume: bool, overwrite: bool) -> None:
    latest = folder / "latest"
    if resume and not latest.exists():
        raise ConfigError(f"Expected {folder} to hold a run to resume, but there is no checkpoint `latest` in it")
    if latest.exists() and not (resume or overwrite):
        raise ConfigError(
            f"Expected a new run, but {folder} holds one: add --resume to continue it, --overwrite to start anew, or "
            "set EXPERIMENT.NAME"
        )
    if resume:
        check_resumable(RunFolder.inside(folder), cfg, bundle.identity)


def load_bundle(cfg: CfgNode, recorded: DataIdentity | None = None) -> DataBundle:
    """Load the data set of a config.

    Args:
        cfg: Of the run.
        recorded: How a network met the data that is to be asked again: its images are read in that size, and normalised
            by these numbers, and its class folders are taken in that order.
    """
    recorded = recorded or DataIdentity()

    def load() -> DataBundle:
        return load_data(
            cfg.DATASET.TYPE,
            cfg.DATASET.PATH,
            download=cfg.DATASET.DOWNLOAD,
            image_size=recorded.image_size or cfg.DATASET.IMAGE_SIZE,
            num_workers=cfg.DATASET.NUM_WORKERS,
            seed=cfg.EXPERIMENT.SEED,
            class_order=recorded.class_folders or cfg.DATASET.CLASS_ORDER,
            mean=recorded.mean or cfg.DATASET.MEAN,
            std=recorded.std or cfg.DATASET.STD,
        )

    return processes.one_per_machine_first(load) if cfg.DATASET.DOWNLOAD else load()


def experiment_name(cfg: CfgNode) -> str:
    """Return the run's folder below LOG.PREFIX: `PROJECT/NAME`, or `PROJECT/TYPE-STUDENT-seedN` without a name."""
    name = cfg.EXPERIMENT.NAME
    if not name:
        kind = cfg.DISTILLER.TYPE.lower() if cfg.DISTILLER.TYPE != "NONE" else "vanilla"
        networks = f"{cfg.DISTILLER.TEACHER}-for-" if kind == "sftn" else ""
        name = f"{kind}-{networks}{cfg.DISTILLER.STUDENT}-seed{cfg.EXPERIMENT.SEED}"
    return f"{cfg.EXPERIMENT.PROJECT}/{name}"


def log_folder(cfg: CfgNode) -> Path:
    """Return the folder of the run that a config describes."""
    return Path(cfg.LOG.PREFIX) / experiment_name(cfg)


def prerequisite(cfg: CfgNode, model: str, epochs: int, role: str, *, branches_of: str = "") -> CfgNode:
    """Return the config of a run that another run needs, named after everything that its result depends on.

    Args:
        cfg: Of the other run.
        model: What to train, vanilla or, if `branches_of` names a student, with SFTN's branches of that student.
        epochs: How long.
        role: Begins the run's name.
        branches_of: Name of a student, or nothing.
    """
    kind = RunSpec({"DISTILLER.TYPE": "NONE", "TLLM.DETECTOR.TYPE": "none"})
    asked, defaults = RunSpec.of(cfg).values, RunSpec.of(default_config()).values
    # Keys that such a run does not read have their defaults: they must not keep an interrupted one from being resumed.
    values = {**defaults, **{key: value for key, value in asked.items() if kind.reads(key)}, **kind.values}
    values |= {"DISTILLER.STUDENT": model, "SOLVER.EPOCHS": epochs}
    if branches_of:
        values |= {key: value for key, value in asked.items() if key.startswith("SFTN.")}
        values |= {"DISTILLER.TYPE": "SFTN", "DISTILLER.TEACHER": model, "DISTILLER.STUDENT": branches_of}
    name = f"{role}-{model}-{RunSpec(values).prerequisite_digest(model)}"
    return RunSpec({**values, "EXPERIMENT.NAME": name}).config()


def ensure_trained(
    cfg: CfgNode,
    bundle: DataBundle,
    *,
    watch: Callable[[Curves], None] | None = None,
    keep: Keep | None = None,
) -> RunFolder:
    """Return the folder of a finished run of `cfg`; train it, or continue it, if it is not there.

    While another command trains it, this one waits.

    Args:
        cfg: Checked and frozen.
        bundle: The data set.
        watch: See `run`.
        keep: See `Keep`.

    Raises:
        ConfigError: The run that is there was made under another config, or on other data.
    """
    folder = log_folder(cfg)
    finished = RunFolder.inside(folder)
    if not processes.from_main(lambda: _is_finished(finished, cfg, bundle)):
        with run_lock(folder, wait=True):
            # Perhaps by the command that was waited for.
            if not processes.from_main(lambda: _is_finished(finished, cfg, bundle)):
                resume = processes.from_main((folder / "latest").exists)
                return run(cfg, resume=resume, bundle=bundle, watch=watch, keep=keep)
    logger.info("using %s", folder)
    return _tested(finished, cfg, bundle)


def _is_finished(run: RunFolder, cfg: CfgNode, bundle: DataBundle) -> bool:
    finished = run.is_finished()
    if finished:
        check_same_run(run, cfg, bundle.identity)
    return finished


def _tested(run: RunFolder, cfg: CfgNode, bundle: DataBundle) -> RunFolder:
    """Test a finished run that never looked at test data, if that is possible and not against `cfg`."""
    if cfg.LOG.TEST_FREQ >= 0 and not processes.from_main(run.read_metrics).tested:
        try:
            ensure_tested(run, cfg, bundle)
        except (ConfigError, DataError):
            raise
        except TLLMError as error:  # It may be a colleague's, who alone can write it.
            logger.warning("%s is not tested: %s", run.log_folder, error)
    return run


def _teacher(cfg: CfgNode, bundle: DataBundle, device: torch.device) -> nn.Module:
    needed = needed_teacher(cfg, bundle.identity)
    checkpoint = cfg.DISTILLER.TEACHER_CHECKPOINT
    if needed is not None:
        checkpoint = ensure_trained(needed, bundle).log_folder / "student_latest"
    teacher = make_network(cfg, cfg.DISTILLER.TEACHER, bundle, device)
    teacher = load_network(teacher, checkpoint).to(device)
    recorded = processes.from_main(lambda: data_of_checkpoint(checkpoint))
    if needed is None:
        check_teacher(checkpoint, recorded, bundle.identity)
        if not (recorded.class_names or bundle.order_stated):
            tell_unstated_order(checkpoint, bundle.class_folders)
    show_as_recorded(teacher, recorded, bundle.identity)
    if cfg.SOLVER.TRAINER != "tllm":  # That one scores it on the hold-out.
        _tell_if_at_chance(teacher, str(checkpoint), cfg, bundle, device)
    plant = cfg.DISTILLER.PLANT
    if plant.CLASSES:
        planted = resolve_classes("DISTILLER.PLANT.CLASSES", plant.CLASSES, bundle.class_names)
        teacher = PlantedTeacher(teacher, planted, bundle.num_classes, plant.STRENGTH).to(device)
    return teacher.eval()


def _tell_if_at_chance(teacher: nn.Module, name: str, cfg: CfgNode, bundle: DataBundle, device: torch.device) -> None:
    """Warn if a teacher knows nothing of some of the images that it is to teach."""
    rows = torch.arange(0, len(bundle.train_labels), max(1, len(bundle.train_labels) // _IMAGES_FOR_A_TEACHER))
    batches = bundle.eval_loader(rows, batch_size=cfg.DATASET.TEST.BATCH_SIZE, device=device, split="train")
    predictions = predict(teacher, batches, autocast=partial(autocast, cfg, device))
    tell_if_at_chance("teacher", name, predictions, "training images")


def needed_teacher(cfg: CfgNode, data: DataIdentity | None = None) -> CfgNode | None:
    """Return the config of the teacher's run; None where the config names a checkpoint or needs no teacher.

    Args:
        cfg: Of the run that needs it.
        data: That it is trained on; where a run on other data has its name, it gets one of its own.
    """
    if cfg.DISTILLER.TYPE in _WITHOUT_TEACHER or cfg.DISTILLER.TEACHER_CHECKPOINT:
        return None
    epochs = cfg.DISTILLER.TEACHER_EPOCHS or cfg.SOLVER.EPOCHS
    sftn = cfg.DISTILLER.TEACHER_STAGE == "SFTN"
    role, branches_of = ("sftn", cfg.DISTILLER.STUDENT) if sftn else ("teacher", "")
    return _placed(prerequisite(cfg, cfg.DISTILLER.TEACHER, epochs, role, branches_of=branches_of), data)


def named_reference(cfg: CfgNode, data: DataIdentity | None = None) -> tuple[CfgNode, CfgNode | None]:
    """Return `cfg` with its reference named, and the config of the vanilla run that has to be trained for it.

    Where the detector needs no reference or the config names one, `cfg` comes back as it is, with None.

    Args:
        cfg: Of the run.
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
    """Return the config of a run that another one needs, renamed where a run on other data has its name."""
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


def _remove_results(folder: Path) -> None:
    """Remove what would pass for results of the run that is about to start."""
    run_folder = RunFolder.inside(folder)
    results = (
        *(run_folder.metrics_json, run_folder.predictions_npz, run_folder.flags_json, run_folder.policy_json),
        *(run_folder.curves_npz, run_folder.search_curves_npz, run_folder.report_html, run_folder.data_json),
    )
    for path in (folder / "latest", *results):
        path.unlink(missing_ok=True)


def described(dumped: str) -> str:
    """Return `config.yaml`, everything needed to run again, with versions, from what a config dumps."""
    versions = {
        "tllm-plugin": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "processes": processes.count(),
    }
    header = "".join(f"# {name} {version}\n" for name, version in versions.items())
    return header + dumped
