"""Search in hosts whose script needs a separate process: every run is a command that is started and watched."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from yacs.config import CfgNode

from tllm_plugin.core.curves import Curves
from tllm_plugin.core.data_identity import DataIdentity
from tllm_plugin.core.detectors import DETECTORS
from tllm_plugin.core.errors import NonFiniteLossError, TLLMError
from tllm_plugin.hosts.same_data import check_same_data
from tllm_plugin.runs.curves_file import to_state
from tllm_plugin.runs.locks import each_under_its_lock, held
from tllm_plugin.runs.run_folder import RunFolder
from tllm_plugin.search.host import REFERENCE, SEARCH_FRACTION, Baselines, Watch, tllm_digest
from tllm_plugin.search.space import TYPE, Dimension, Values, detector_kinds, with_values

_POLL_SECONDS = 0.5
_PATIENCE_SECONDS = 1.0
_INTERRUPTS = 20
_DIVERGED = "Expected finite losses"


@dataclass(frozen=True)
class Wanted:
    """Run that a search needs.

    Args:
        name: Name of its folder inside the search's.
        values: Config keys to set and their values.
        vanilla: Whether the student is trained without a teacher.
    """

    name: str
    values: Values = field(default_factory=dict)
    vanilla: bool = False


class ProcessSearch:
    """Base of `SearchHost`s whose runs are processes.

    Args:
        cfg: Frozen config with a node TLLM. Without a search hold-out it gets one of the size of the detection
            hold-out.
        space: Search space.
        folder: Folder of the search.
    """

    #: What runs the words of `command`.
    program: tuple[str, ...] = (sys.executable, "-m", "tllm_plugin")

    def __init__(self, cfg: CfgNode, space: Sequence[Dimension], folder: Path) -> None:
        fraction = cfg.TLLM.HOLDOUT.SEARCH_FRACTION or cfg.TLLM.HOLDOUT.FRACTION
        self.cfg = with_values(cfg, {SEARCH_FRACTION: fraction})
        self.space = tuple(space)
        self.folder = folder
        self._data: DataIdentity | None = None

    def run_named(self, name: str) -> RunFolder:
        """Return the folder of a run, whether it exists or not."""
        raise NotImplementedError

    def command(self, wanted: Wanted, *, resume: bool) -> list[str]:
        """Return the arguments of `tllm` that train a run."""
        raise NotImplementedError

    def can_resume(self, run: RunFolder) -> bool:
        """Return whether there is a checkpoint to continue from."""
        raise NotImplementedError

    def place(self, wanted: Wanted) -> Path | None:
        """Return the working folder of the command; None for the current one."""
        return None

    def environment(self) -> dict[str, str]:
        """Return the environment of the command."""
        return dict(os.environ)

    def run_of(self, values: Values) -> RunFolder:
        """Return the folder of a trial, whether it exists or not."""
        return self.run_named(self._trial(values).name)

    def prepare(self, *, taught: bool = True) -> Baselines:
        """Train the missing prerequisites of all trials; several workers train different runs."""
        wanted = []
        if self._needs_reference(detector_kinds(self.space, self.cfg)):
            wanted.append(Wanted("vanilla", {TYPE: "none"}, vanilla=True))
        if taught:
            wanted.append(Wanted("taught", {TYPE: "none"}))
        runs = each_under_its_lock(self._locks, {item.name: partial(self._trained, item) for item in wanted})
        return Baselines(runs.get("taught"), runs.get("vanilla"))

    def train(
        self, values: Values, baselines: Baselines, others: Sequence[RunFolder], watch: Watch | None = None
    ) -> RunFolder:
        """Return the finished run of a trial."""
        wanted = self._referring(self._trial(values), baselines.vanilla)
        recorded = [run for run in (baselines.taught, *others) if run is not None]
        return self.ensure_trained(wanted, watch, recorded)

    def train_final(self, values: Values) -> RunFolder:
        """Return the finished run of the chosen values, trained on everything except the detection hold-out.

        The reference is trained on the same data unless the config names one.
        """
        everything = {SEARCH_FRACTION: 0.0}
        vanilla = None
        if self._needs_reference([str(values.get(TYPE, self.cfg.TLLM.DETECTOR.TYPE))]):
            vanilla = self.ensure_trained(Wanted("final-vanilla", {TYPE: "none", **everything}, vanilla=True))
        name = self._trial(values).name.replace("trial", "final")
        return self.ensure_trained(self._referring(Wanted(name, {**values, **everything}), vanilla))

    def begin(self, wanted: Wanted, recorded: Sequence[RunFolder]) -> None:
        """Prepare a new run to start where it diverges from a finished run; by default from its first epoch."""

    def ensure_trained(
        self, wanted: Wanted, watch: Watch | None = None, recorded: Sequence[RunFolder] = ()
    ) -> RunFolder:
        """Return a finished run; train or continue it if necessary.

        Args:
            wanted: Required run.
            watch: See `Watch`.
            recorded: Finished runs with which it may share epochs.

        Raises:
            NonFiniteLossError: The run diverged.
            TLLMError: The host failed for another reason.
            Exception: Raised by `watch`.
        """
        with held(self._locks / wanted.name) as lock:
            return self._trained(wanted, lock, watch, recorded)

    @property
    def _locks(self) -> Path:
        return self.folder / "locks"

    def _trained(
        self, wanted: Wanted, lock: int, watch: Watch | None = None, recorded: Sequence[RunFolder] = ()
    ) -> RunFolder:
        """Implement `ensure_trained`; requires the lock."""
        run = self.run_named(wanted.name)
        if not run.is_finished():
            if not self.can_resume(run):
                self.begin(wanted, [other for other in recorded if other.path != run.path])
                run = self.run_named(wanted.name)
            words = self.command(wanted, resume=self.can_resume(run))
            log = self.folder / "logs" / f"{wanted.name}.txt"
            self._run(words, wanted, log, lock, watch)
            run = self.run_named(wanted.name)
            if not run.is_finished():
                raise TLLMError(f"Expected the host to leave a finished run in {run.path}, but got none; see {log}")
        self._check_data(run)
        return run

    def _check_data(self, run: RunFolder) -> None:
        """Check that a run was trained on the data of the earlier runs."""
        data = run.read_data()
        self._data = self._data or data
        check_same_data(run.log_folder, data, self._data, f"remove {self.folder} to start a new search")

    def _run(self, words: Sequence[str], wanted: Wanted, log: Path, lock: int, watch: Watch | None) -> None:
        place = self.place(wanted)
        for folder in (log.parent, *([place] if place is not None else [])):
            folder.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            process = subprocess.Popen(
                [*self.program, *words],
                cwd=place,
                env=self.environment(),
                stdout=file,
                stderr=subprocess.STDOUT,
                # A worker that takes over the trial of a killed worker must wait until that worker's command has ended.
                pass_fds=(lock,),
            )
        try:
            seen = None
            while process.poll() is None:
                try:
                    process.wait(_POLL_SECONDS)
                except subprocess.TimeoutExpired:
                    seen = self._look(wanted, seen, watch)
        except BaseException:
            _stop(process)
            raise
        if process.returncode:
            _raise(log, words, process.returncode)

    def _look(self, wanted: Wanted, seen: int | None, watch: Watch | None) -> int | None:
        """Call the watch with the curves written since `seen`, the modification time at the last call."""
        path = self.run_named(wanted.name).search_curves_npz
        if watch is None or not path.exists():
            return seen
        written = path.stat().st_mtime_ns
        if written != seen:
            watch(Curves.from_state(to_state(self.run_named(wanted.name).read_search_curves())))
        return written

    def _trial(self, values: Mapping[str, object]) -> Wanted:
        return Wanted(f"trial-{tllm_digest(with_values(self.cfg, values))}", dict(values))

    def _referring(self, wanted: Wanted, vanilla: RunFolder | None) -> Wanted:
        if vanilla is None:
            return wanted
        return Wanted(wanted.name, {**wanted.values, REFERENCE: str(vanilla.path.resolve())})

    def _needs_reference(self, kinds: Sequence[str]) -> bool:
        return not self.cfg.TLLM.DETECTOR.REFERENCE and any(DETECTORS[kind].needs_reference for kind in kinds)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Interrupt a command as Ctrl-C does, repeatedly if a callback swallows the exception; then kill it."""
    # Background jobs of a script and their children ignore this signal.
    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    for _ in range(_INTERRUPTS):
        process.send_signal(signal.SIGTERM if ignored else signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_PATIENCE_SECONDS)
            return
    process.kill()
    process.wait()


def _raise(log: Path, words: Sequence[str], code: int) -> None:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    said = next((line for line in reversed(lines) if line.startswith("tllm: ")), lines[-1] if lines else "nothing")
    said = said.removeprefix("tllm: ")
    if _DIVERGED in said:
        raise NonFiniteLossError(said)
    command = shlex.join(["tllm", *words])
    raise TLLMError(f"Expected `{command}` to train, but it ended with exit code {code}: {said}; see {log}")
