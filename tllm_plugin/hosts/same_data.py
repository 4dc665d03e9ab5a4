"""Whether the data that lie there now are those of a run or checkpoint that is used again; the same for every host."""

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
    """Refuse what was trained on other data; what was tested on other data is told.

    Args:
        what: Run folder or checkpoint.
        recorded: What that says of its data.
        now: The data.
        remedy: What to do, as the end of a sentence.

    Raises:
        ConfigError: They differ.
    """
    difference = training_difference(recorded, now)
    if difference:
        raise ConfigError(f"Expected the data that {what} was trained on, but {difference}; {remedy}")
    if not _is_whole(recorded):
        tell_once(f"{what}: an earlier version did not write down its data; {_checked(recorded)}")
    elif difference := difference_in_test(recorded, now):
        tell_once(f"{what}: its test data are others by now: {difference}")


def check_classes(what: object, recorded: DataIdentity, now: DataIdentity, remedy: str) -> None:
    """Refuse a network whose outputs stand for other classes than those of the data.

    Raises:
        ConfigError: They do.
    """
    difference = class_difference(recorded, now)
    if difference:
        raise ConfigError(
            f"Expected the classes that {what} was trained on, in their order, but {difference}; {remedy}"
        )


def check_teacher(checkpoint: str | Path, recorded: DataIdentity, now: DataIdentity) -> None:
    """Refuse a teacher of other classes; tell where it was trained on other data or saw images otherwise.

    Raises:
        ConfigError: Its classes, or their order, are others.
    """
    remedy = "train another teacher, or state the order with DATASET.CLASS_ORDER (RepDistiller: --class_order)"
    check_classes(checkpoint, recorded, now, remedy)
    difference = normalisation_difference(recorded, now) or training_difference(recorded, now)
    if difference:
        tell_once(
            f"the teacher {checkpoint} was trained on other data: {difference}; where mean and std differ, "
            "it is shown images as it was trained"
        )


def check_named_teacher(checkpoint: str, now: DataIdentity) -> None:
    """Do the same for the checkpoint that a host's config names; nothing for none, or one that only the host can read.

    Raises:
        ConfigError: Its classes, or their order, are others.
    """
    try:
        recorded = data_of_checkpoint(checkpoint) if checkpoint else DataIdentity()
    except FileFormatError:
        return
    check_teacher(checkpoint, recorded, now)


def tell_unstated_order(what: object, folders: Sequence[str]) -> None:
    """Tell of a network that does not say the order of its classes where class folders have two of them."""
    if difference := differing_orders(folders):
        tell_once(
            f"{what} does not say the order of its classes; text order is taken, but {difference} "
            "(DATASET.CLASS_ORDER, or --class-order, states it)"
        )


def data_of_checkpoint(path: str | Path) -> DataIdentity:
    """Return what is known of the data that a checkpoint was trained on: from itself, else from the run it lies in.

    Raises:
        FileFormatError: It is damaged.
    """
    path = Path(path)
    found = data_file.from_checkpoint(read_weights(path), path)
    if found is not None:
        return found
    folder = path.parent if path.parent.name == NAME else path.parent / NAME
    return RunFolder(folder).read_data()


def tell_once(message: str) -> None:
    """Log a warning that this process has not logged before."""
    if message not in _told:
        _told.add(message)
        logger.warning("%s", message)


class CarriedData:
    """The record of a run's data, in the checkpoints of a host that does not write it itself.

    Args:
        data: Those that lie there now.
        where: The run's folder, for the error.
    """

    def __init__(self, data: DataIdentity, where: object) -> None:
        self.data = data
        self.where = where

    def state_dict(self) -> dict[str, Any]:
        """Return plain values only."""
        return {data_file.KEY: data_file.to_text(self.data)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Compare; nothing is loaded.

        Raises:
            ConfigError: The checkpoint is of other data.
        """
        recorded = data_file.from_checkpoint(state, self.where)
        if recorded is not None:
            check_same_data(self.where, recorded, self.data, "start the run anew")


def _is_whole(recorded: DataIdentity) -> bool:
    return bool(recorded.train.labels)


def _checked(recorded: DataIdentity) -> str:
    return "only the names of its classes are known to be the same" if recorded.class_names else "nothing is checked"
