"""Search in RepDistiller: the host's train script runs every trial in a separate working folder."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from yacs.config import CfgNode

from tllm_plugin.hosts.checkouts import source_of
from tllm_plugin.hosts.extensions import import_words
from tllm_plugin.hosts.repdistiller.arguments import StudentArguments, flags_of
from tllm_plugin.hosts.run_spec import digest
from tllm_plugin.runs.run_folder import RunFolder
from tllm_plugin.search.process import ProcessSearch, Wanted
from tllm_plugin.search.space import Dimension, Values, with_values

_FOLDER = Path("save") / "tllm_search"
# The host has no name for a vanilla student: it is KD without the teacher's part. Of two such flags the last counts.
_VANILLA = ("--distill", "kd", "-r", "1", "-a", "0", "-b", "0")


class RepDistillerSearch(ProcessSearch):
    """See `SearchHost`. The host logs below where it is started, so that every run is started in a folder of its own.

    Args:
        arguments: The host's own, split.
        space: What is searched.
        root: The host's checkout.
    """

    def __init__(self, arguments: StudentArguments, space: Sequence[Dimension], root: Path) -> None:
        self.arguments = arguments
        self.root = root
        plain = " ".join([*arguments.words(absolute=True), str(arguments.node.HOLDOUT)])
        cfg = CfgNode({"TLLM": arguments.node})
        cfg.freeze()
        super().__init__(cfg, space, (_FOLDER / digest(plain)).resolve())

    @property
    def epochs(self) -> int:
        """Of a trial."""
        return self.arguments.epochs

    @property
    def seed(self) -> int:
        """For what the search draws."""
        return self.arguments.seed or 0

    def run_named(self, name: str) -> RunFolder:
        """Return the folder of a run; before the host has made it, one that is not there."""
        found = sorted((self.folder / name).glob("save/**/split.json"))
        return RunFolder(found[0].parent) if found else RunFolder.inside(self.folder / name)

    def command(self, wanted: Wanted, *, resume: bool) -> list[str]:
        """Return the words that train a run."""
        node = with_values(self.cfg, wanted.values).TLLM
        vanilla = _VANILLA if wanted.vanilla else ()
        words = [*self.arguments.words(absolute=True), *vanilla, *flags_of(node)]
        return ["train", "--host", "repdistiller", *(["--resume"] if resume else []), "--", *words]

    def place(self, wanted: Wanted) -> Path:
        """Return the run's folder, from which the host finds its data as from here."""
        place = self.folder / wanted.name
        place.mkdir(parents=True, exist_ok=True)
        data = place / "data"
        if not data.is_symlink():
            Path("data").mkdir(exist_ok=True)  # Where the host puts what it downloads: once, not for every run.
            data.symlink_to(Path("data").resolve(), target_is_directory=True)
        return place

    def environment(self) -> dict[str, str]:
        """Return this process's, with the checkout by its full path."""
        return {**os.environ, source_of("repdistiller").variable: str(self.root.resolve())}

    def can_resume(self, run: RunFolder) -> bool:
        """Tell whether an epoch was finished."""
        return run.state.exists()

    def next_command(self, values: Values) -> str:
        """Return the shell command that trains the chosen values."""
        node = with_values(self.cfg, {**values, "TLLM.HOLDOUT.SEARCH_FRACTION": 0.0}).TLLM
        words = [*self.arguments.words(absolute=False), *flags_of(node)]
        return shlex.join(["tllm", "train", *import_words(), "--host", "repdistiller", "--", *words])
