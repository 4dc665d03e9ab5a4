"""Check that the present data are the data of a reused run or checkpoint, for all hosts."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tllm_plugin.core.data_identity import (
    DataIdentity,
    class_difference,
    difference_in_test,
    normalisation_difference,
    training_difference,
)
from tllm_plugin.core.errors import ConfigError, FileFormatError
from tllm_plugin.data.class_order import differing_orders
from tllm_plugin.runs import data_file
from tllm_plugin.runs.run_folder import NAME, RunFolder
from tllm_plugin.runs.weights_file import read_weights

logger = logging.getLogger(__name__)

_told: set[str] = set()


def check_same_data(what: object, recorded: DataIdentity, now: DataIdentity, remedy: str) -> None:
    """Check that a run was trained on the present data; warn if its test data differ.

    Args:
        what: Run folder or checkpoint.
        recorded: Data recorded there.
        now: Present data.
        remedy: Advice at the end of the error message.

    Raises:
        ConfigError: The training data differ.

    """
    difference = training_difference(recorded, now)
    if difference:
        raise ConfigError(f"Expected the data that {what} was trained on, but {difference}; {remedy}")
    if not _is_whole(recorded):
        tell_once(f"{what}: an earlier version did not record its data; {_checked(recorded)}")
    elif difference := difference_in_test(recorded, now):
        tell_once(f"{what}: its test data are others by now: {difference}")


def check_classes(what: object, recorded: DataIdentity, now: DataIdentity, remedy: str) -> None:
    """Check that the outputs of a network have the classes of the data.

    Raises:
        ConfigError: The classes or their order differ.
    """
    difference = class_difference(recorded, now)
    if difference:
        raise ConfigError(
            f"Expected the classes that {what} was trained on, in their order, but {difference}; {remedy}"
        )


def check_teacher(checkpoint: str | Path, recorded: DataIdentity, now: DataIdentity) -> None:
    """Check the classes of a teacher; warn if it was trained on other data or with another normalisation.

    Raises:
        ConfigError: Its classes, or their order, are others.
    """
    remedy = "train another teacher, or state the order with DATASET.CLASS_ORDER (RepDistiller: --class_order)"
    check_classes(checkpoint, recorded, now, remedy)
    difference = normalisation_difference(recorded, now) or training_difference(recorded, now)
    if difference:
        tell_once(
            f"the teacher {checkpoint} was trained on other data: {difference}; if mean and std differ, "
            "its input is converted to its own normalisation"
        )


def check_named_teacher(checkpoint: str, now: DataIdentity) -> None:
    """Check the checkpoint that a host's config names, if there is one and it can be read; see `check_teacher`.

    Raises:
        ConfigError: Its classes, or their order, are others.
    """
    try:
        recorded = data_of_checkpoint(checkpoint) if checkpoint else DataIdentity()
    except FileFormatError:
        return
    check_teacher(checkpoint, recorded, now)


def tell_unstated_order(what: object, folders: Sequence[str]) -> None:
    """Warn if a network does not record its class order and text order differs from natural order."""
    if difference := differing_orders(folders):
        tell_once(
            f"{what} does not record the order of its classes; text order is assumed, but {difference} "
            "(DATASET.CLASS_ORDER, or --class-order, states it)"
        )


def data_of_checkpoint(path: str | Path) -> DataIdentity:
    """Return the known identity of a checkpoint's training data, from the checkpoint or its run folder.

    Raises:
        FileFormatError: The checkpoint is damaged.
    """
    path = Path(path)
    found = data_file.from_checkpoint(read_weights(path), path)
    if found is not None:
        return found
    folder = path.parent if path.parent.name == NAME else path.parent / NAME
    return RunFolder(folder).read_data()


def tell_once(message: str) -> None:
    """Log a warning unless this process has logged it before."""
    if message not in _told:
        _told.add(message)
        logger.warning("%s", message)


class CarriedData:
    """Data identity that is saved in the checkpoints of a host without a record of its own.

    Args:
        data: Present data.
        where: Folder of the run, for the error message.
    """

    def __init__(self, data: DataIdentity, where: object) -> None:
        self.data = data
        self.where = where

    def state_dict(self) -> dict[str, Any]:
        """Return the identity as plain values."""
        return {data_file.KEY: data_file.to_text(self.data)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Compare the saved identity with the present data; nothing is changed.

        Raises:
            ConfigError: The checkpoint was written with other data.
        """
        recorded = data_file.from_checkpoint(state, self.where)
        if recorded is not None:
            check_same_data(self.where, recorded, self.data, "start the run anew")


def _is_whole(recorded: DataIdentity) -> bool:
    return bool(recorded.train.labels)


def _checked(recorded: DataIdentity) -> str:
    return "only the names of its classes were compared" if recorded.class_names else "the data are not compared"
