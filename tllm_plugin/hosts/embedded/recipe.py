"""Train a run from a config, top to bottom: data, prerequisites, networks, the loop, the files."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from yacs.config import CfgNode

from tllm_plugin.core.curves import Curves
from tllm_plugin.core.detectors import Detector
from tllm_plugin.core.errors import ConfigError, DataError, TLLMError
from tllm_plugin.data import DataBundle
from tllm_plugin.hosts import power, processes
from tllm_plugin.hosts.adapter import Host
from tllm_plugin.hosts.embedded.data import EmbeddedData, batches_of_test_set, load_bundle
from tllm_plugin.hosts.embedded.distillers import distiller_dict
from tllm_plugin.hosts.embedded.distributed import least_rows, synchronise_batch_norm
from tllm_plugin.hosts.embedded.late_test import ensure_tested
from tllm_plugin.hosts.embedded.networks import check_named_checkpoint, load_teacher, make_network
from tllm_plugin.hosts.embedded.prerequisites import (
    WITHOUT_TEACHER,
    experiment_name,
    log_folder,
    named_reference,
    needed_teacher,
)
from tllm_plugin.hosts.embedded.run_files import check_resumable, check_same_run, remove_results
from tllm_plugin.hosts.embedded.runtime import choose_device, reproducible
from tllm_plugin.hosts.embedded.trainer import trainer_dict
from tllm_plugin.hosts.factories import make_distiller_factory, make_trainer_factory
from tllm_plugin.hosts.results import described
from tllm_plugin.hosts.run_lock import run_lock
from tllm_plugin.runs.run_folder import RunFolder

logger = logging.getLogger(__name__)

#: Callback with curves and detector after each trained epoch; returns whether to keep its checkpoint, in addition to
#: the checkpoints kept every `LOG.SAVE_CHECKPOINT_FREQ` epochs.
Keep = Callable[[Curves, Detector], bool]


def run(
    cfg: CfgNode,
    *,
    resume: bool = False,
    overwrite: bool = False,
    bundle: DataBundle | None = None,
    watch: Callable[[Curves], None] | None = None,
    keep: Keep | None = None,
) -> RunFolder:
    """Train the run that a config describes, after the teacher and the reference that it needs but does not name.

    All ranks must call this function with the same arguments; rank 0 reads and writes the run folders.

    Args:
        cfg: Checked and frozen config from `config.load_config`.
        resume: Continue the run from its last checkpoint.
        overwrite: Start anew even if the run's folder holds a run.
        bundle: Data set, if it is loaded already.
        watch: Callback with the curves on the search hold-out after each trained epoch; an exception stops the run and
            leaves it resumable.
        keep: See `Keep`.

    Returns:
        Folder of the run.

    Raises:
        ConfigError: The config does not fit the data, the run exists and neither `resume` nor `overwrite` is set, or
            another command is training the run.
        DataError: The data cannot be read or is incomplete.
        FileFormatError: A checkpoint or record is missing or damaged.
        NonFiniteLossError: A loss became NaN or infinite.
    """
    with run_lock(log_folder(cfg), wait=False), reproducible(cfg):
        if bundle is None:
            check_named_checkpoint(cfg)
            bundle = load_bundle(cfg)
            power.tell_planned(cfg, torch.bincount(bundle.train_labels).tolist())
        identity = torch.tensor(list(bytes.fromhex(bundle.identity.digest())))
        processes.check_same("the data", identity)
        trainer = prepare(cfg, bundle, resume=resume, overwrite=overwrite)
        if watch is not None:
            trainer.tllm_session.watch = partial(_show, trainer, watch)
        if keep is not None:
            trainer.keep = partial(keep, trainer.tllm_session.curves, trainer.tllm_session.detector)
        trainer.train(resume=resume)
        if resume and cfg.LOG.TEST_FREQ >= 0:
            # A resumed run that was finished already may lack test results.
            ensure_tested(RunFolder.inside(log_folder(cfg)), cfg, bundle)
    return RunFolder.inside(log_folder(cfg))


def prepare(cfg: CfgNode, bundle: DataBundle, *, resume: bool, overwrite: bool) -> Any:
    """Train the prerequisites of a run and return its trainer; see `run` for the arguments."""
    folder = log_folder(cfg)
    device = choose_device(cfg)
    cfg, vanilla = named_reference(cfg, bundle.identity)
    # Before anything is trained or written, so that an error leaves the files of the run unchanged.
    processes.from_main(lambda: _check_start(folder, cfg, bundle, resume=resume, overwrite=overwrite))

    # Prerequisites: the teacher, unless the config names one, and a vanilla student to compare with.
    teacher: nn.Module | None = None
    if cfg.DISTILLER.TYPE not in WITHOUT_TEACHER:
        needed = needed_teacher(cfg, bundle.identity)
        checkpoint = cfg.DISTILLER.TEACHER_CHECKPOINT
        if needed is not None:
            checkpoint = ensure_trained(needed, bundle).log_folder / "student_latest"
        teacher = load_teacher(cfg, checkpoint, bundle, device)
    if vanilla is not None:
        ensure_trained(vanilla, bundle)

    # The networks and the distiller. Seeded here, so that the weights depend neither on what was trained before nor on
    # the method.
    torch.manual_seed(cfg.EXPERIMENT.SEED)
    if cfg.DISTILLER.TYPE == "SFTN":
        teacher = make_network(cfg, cfg.DISTILLER.TEACHER, bundle, device, pretrained=cfg.DISTILLER.PRETRAINED)
    student = make_network(cfg, cfg.DISTILLER.STUDENT, bundle, device, pretrained=cfg.DISTILLER.PRETRAINED)
    build = distiller_dict[cfg.DISTILLER.TYPE]
    distiller = (build(student) if teacher is None else build(student, teacher, cfg)).to(device)
    if cfg.RUNTIME.SYNC_BATCHNORM:
        distiller.student = synchronise_batch_norm(distiller.get_submodule("student"), device)

    # The loop, around the training data; the trainer `tllm` cuts the hold-out from them itself.
    data = EmbeddedData(bundle, cfg, device, least_rows(distiller))
    if overwrite and not resume and processes.is_main():
        # Only now, so that an error in a teacher or network leaves the earlier run unchanged.
        remove_results(folder)
    train_data = data if cfg.SOLVER.TRAINER == "tllm" else data.train_loader(None)
    trainer = trainer_dict[cfg.SOLVER.TRAINER](
        experiment_name(cfg), distiller, train_data, batches_of_test_set(bundle, cfg, device), cfg
    )
    trainer.data = bundle.identity

    # Files that can be written before the first epoch.
    if processes.is_main():
        run_folder = RunFolder.inside(folder).create()
        run_folder.write_config(described(cfg.dump()))
        run_folder.write_data(bundle.identity)
    return trainer


def ensure_trained(
    cfg: CfgNode,
    bundle: DataBundle,
    *,
    watch: Callable[[Curves], None] | None = None,
    keep: Keep | None = None,
) -> RunFolder:
    """Return the folder of a finished run of `cfg`; train or resume the run if it is not finished.

    If another command is training the run, wait for it.

    Args:
        cfg: Checked and frozen config.
        bundle: Data set.
        watch: See `run`.
        keep: See `Keep`.

    Raises:
        ConfigError: The existing run was trained with another config or on other data.
    """
    folder = log_folder(cfg)
    finished = RunFolder.inside(folder)
    if not processes.from_main(lambda: _is_finished(finished, cfg, bundle)):
        with run_lock(folder, wait=True):
            # The other command may have finished the run.
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
    """Test a finished run without test results, unless `cfg` forbids tests or the test is impossible."""
    if cfg.LOG.TEST_FREQ >= 0 and not processes.from_main(run.read_metrics).tested:
        try:
            ensure_tested(run, cfg, bundle)
        except (ConfigError, DataError):
            raise
        except TLLMError as error:  # The run may belong to another user, so that its folder is not writable.
            logger.warning("%s is not tested: %s", run.log_folder, error)
    return run


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


def _show(trainer: Any, watch: Callable[[Curves], None], curves: Curves) -> None:
    try:
        watch(curves)
    except BaseException:
        # Keep the trained epoch.
        trainer.save_epoch(curves.epochs[-1], kept=False)
        raise


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
