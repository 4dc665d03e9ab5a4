"""The `tllm/` folder inside a run's log folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tllm_plugin.core.data_identity import DataIdentity
from tllm_plugin.core.errors import FileFormatError, TLLMError
from tllm_plugin.core.paths import expanded
from tllm_plugin.core.predictions import Predictions
from tllm_plugin.runs import config_file, curves_file, predictions_file
from tllm_plugin.runs.atomic import remove_temporaries
from tllm_plugin.runs.data_file import DataRecord, record_of
from tllm_plugin.runs.flags_file import FlagsRecord
from tllm_plugin.runs.metrics_file import MetricsRecord
from tllm_plugin.runs.notebook import flags_html
from tllm_plugin.runs.policy_file import PolicyRecord
from tllm_plugin.runs.speed_file import SpeedRecord
from tllm_plugin.runs.split_file import SplitRecord

NAME = "tllm"
# Files that identify the folder of a run; hosts also use the names of the other files.
_RECORDS = ("split.json", "curves.npz", "flags.json", "metrics.json")


class RunFolder:
    """TLLM's files of one run. Writes are atomic; reads validate digest, schema and types.

    Args:
        path: Path of the `tllm/` folder. `RunFolder.inside` derives it from the log folder, `RunFolder.find` from a
            path given by the user.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    def _repr_html_(self) -> str:
        return flags_html(str(self.log_folder), self.read_flags())

    @classmethod
    def inside(cls, log_folder: str | os.PathLike[str]) -> RunFolder:
        """Return the `tllm/` folder of `log_folder`, whether it exists or not."""
        return cls(Path(log_folder) / NAME)

    @classmethod
    def find(cls, path: str | os.PathLike[str]) -> RunFolder:
        """Return the run at `path`: its log folder, the `tllm/` folder in it, or a file in that.

        Raises:
            FileFormatError: There is no run at `path`.
        """
        try:
            named = Path(expanded(path)).resolve()
            for folder in [named.parent] if named.is_file() else [named / NAME, named]:
                if any((folder / name).is_file() for name in _RECORDS):
                    return cls(folder)
            holder = "its folder" if named.is_file() else "it"
            problem = f"{holder} holds none of {', '.join(_RECORDS)}" if named.exists() else "it does not exist"
        except (OSError, ValueError) as error:  # The name is too long or has a NUL character, or permission is missing.
            problem = f"it cannot be read ({error})"
        raise FileFormatError(
            f"Expected {path} to be a run, but {problem}; name the log folder that the training printed, the {NAME}/ "
            "folder in it, or a file of that"
        )

    @property
    def log_folder(self) -> Path:
        """Log folder of the run, which the host writes."""
        return self.path.parent

    @property
    def config_yaml(self) -> Path:
        """Everything needed to run again: the merged config, versions and seeds."""
        return self.path / "config.yaml"

    @property
    def student_best_holdout(self) -> Path:
        """Student weights after the epoch that was best on the hold-out (hosts choose their best on test data)."""
        return self.path / "student_best_holdout"

    @property
    def student_best_next(self) -> Path:
        """New `student_best_holdout`, moved into place once the checkpoint of the same epoch is written."""
        return self.path / "student_best_holdout.next"

    def student_best_until(self, epoch: int) -> Path:
        """Return the path of the copy of `student_best_holdout` that belongs to a kept checkpoint of `epoch`."""
        return self.path / f"student_best_holdout_{epoch}"

    @property
    def split_json(self) -> Path:
        """Hold-outs of the run; `SplitRecord`."""
        return self.path / "split.json"

    @property
    def data_json(self) -> Path:
        """Identity of the training data; `DataIdentity`. Runs of earlier versions have no such file."""
        return self.path / "data.json"

    @property
    def curves_npz(self) -> Path:
        """Hold-out history; see `read_curves`."""
        return self.path / "curves.npz"

    @property
    def search_curves_npz(self) -> Path:
        """History on the search hold-out, if there is one, in the format of `curves_npz`."""
        return self.path / "search_curves.npz"

    @property
    def flags_json(self) -> Path:
        """Flags and their evidence; `FlagsRecord`."""
        return self.path / "flags.json"

    @property
    def policy_json(self) -> Path:
        """Teaching weights, if a policy set them; `PolicyRecord`."""
        return self.path / "policy.json"

    @property
    def speed_json(self) -> Path:
        """How the run is made faster; `SpeedRecord`. Only with `TLLM.SPEED: auto`."""
        return self.path / "speed.json"

    @property
    def metrics_json(self) -> Path:
        """Test results and cost; `MetricsRecord`."""
        return self.path / "metrics.json"

    @property
    def predictions_npz(self) -> Path:
        """Predictions for the test images; runs of earlier versions may have none."""
        return self.path / "predictions.npz"

    @property
    def report_html(self) -> Path:
        """Latest report that includes this run."""
        return self.path / "report.html"

    @property
    def state(self) -> Path:
        """State from which an interrupted run resumes; written with `save_torch`, read with `load_torch`."""
        return self.path / "state.pt"

    def create(self) -> RunFolder:
        """Create the folder if it is missing and remove temporary files of killed writers; return self.

        Only the process that owns the run may call this, because it also removes temporary files of active writers.

        Raises:
            TLLMError: The folder cannot be created.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TLLMError(f"Cannot make the folder {self.path}: {error.strerror or error}") from error
        remove_temporaries(self.path)
        return self

    def write_config(self, text: str) -> None:
        """Write `config.yaml`."""
        config_file.write_config(self.config_yaml, text)

    def read_config(self) -> str:
        """Read `config.yaml`; raises `FileFormatError` if it is damaged, `FileNotFoundError` if it does not exist."""
        return config_file.read_config(self.config_yaml)

    def write_split(self, record: SplitRecord) -> None:
        """Write `split.json`."""
        record.write(self.split_json)

    def read_split(self) -> SplitRecord:
        """Read `split.json`; raises `FileFormatError` if it is missing or invalid."""
        return SplitRecord.read(self.split_json)

    def write_data(self, record: DataIdentity) -> None:
        """Write `data.json`."""
        record_of(record).write(self.data_json)

    def read_data(self) -> DataIdentity:
        """Return the identity of the training data; for runs of earlier versions, the class names at most.

        Raises:
            FileFormatError: A file that records the data is damaged.
        """
        if self.data_json.exists():
            return DataRecord.read(self.data_json).identity
        if self.flags_json.exists():
            return DataIdentity(class_names=tuple(item.name for item in self.read_flags().classes))
        return DataIdentity()

    def write_flags(self, record: FlagsRecord) -> None:
        """Write `flags.json`."""
        record.write(self.flags_json)

    def read_flags(self) -> FlagsRecord:
        """Read `flags.json`; raises `FileFormatError` if it is missing or invalid."""
        return FlagsRecord.read(self.flags_json)

    def write_policy(self, record: PolicyRecord) -> None:
        """Write `policy.json`."""
        record.write(self.policy_json)

    def read_policy(self) -> PolicyRecord:
        """Read `policy.json`; raises `FileFormatError` if it is missing or invalid."""
        return PolicyRecord.read(self.policy_json)

    def write_speed(self, record: SpeedRecord) -> None:
        """Write `speed.json`."""
        record.write(self.speed_json)

    def read_speed(self) -> SpeedRecord:
        """Read `speed.json`; raises `FileFormatError` if it is missing or invalid."""
        return SpeedRecord.read(self.speed_json)

    def write_metrics(self, record: MetricsRecord) -> None:
        """Write `metrics.json`."""
        record.write(self.metrics_json)

    def read_metrics(self) -> MetricsRecord:
        """Read `metrics.json`; raises `FileFormatError` if it is missing or invalid."""
        return MetricsRecord.read(self.metrics_json)

    def is_finished(self) -> bool:
        """Return whether the run is finished; raises `FileFormatError` if its metrics are damaged."""
        return self.metrics_json.exists() and self.read_metrics().finished

    def has_results(self) -> bool:
        """Return whether test results per class and per image exist, are readable and agree."""
        try:
            return self.read_metrics().agrees_with(self.read_predictions())
        except FileFormatError:
            return False

    def write_predictions(self, predictions: Predictions) -> None:
        """Write `predictions.npz`."""
        predictions_file.write_predictions(self.predictions_npz, predictions)

    def read_predictions(self) -> Predictions:
        """Read `predictions.npz`; raises `FileFormatError` if it is missing or invalid."""
        return predictions_file.read_predictions(self.predictions_npz)

    def write_curves(self, state: Mapping[str, Any]) -> None:
        """Write `curves.npz` from `Curves.state_dict()`; see `curves_file.write_curves`."""
        curves_file.write_curves(self.curves_npz, state)

    def read_curves(self) -> dict[str, np.ndarray]:
        """Read `curves.npz`; see `curves_file.read_curves`."""
        return curves_file.read_curves(self.curves_npz)

    def write_search_curves(self, state: Mapping[str, Any]) -> None:
        """Write `search_curves.npz`; see `curves_file.write_curves`."""
        curves_file.write_curves(self.search_curves_npz, state)

    def read_search_curves(self) -> dict[str, np.ndarray]:
        """Read `search_curves.npz`; see `curves_file.read_curves`."""
        return curves_file.read_curves(self.search_curves_npz)


def find_curves(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read curves from an `.npz` file, or from a run as accepted by `RunFolder.find`.

    Raises:
        FileFormatError: The curves are missing or invalid.
    """
    if str(path).endswith(".npz"):
        return curves_file.read_curves(expanded(path))
    return RunFolder.find(path).read_curves()
