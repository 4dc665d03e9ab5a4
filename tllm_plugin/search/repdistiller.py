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
# The host has no vanilla mode, so a vanilla student is KD with weight 0. The last of repeated flags takes effect.
_VANILLA = ("--distill", "kd", "-r", "1", "-a", "0", "-b", "0")


class RepDistillerSearch(ProcessSearch):
    """Implement `SearchHost`; every run has its own working folder, because the host writes its logs there.

    Args:
        arguments: Arguments of the host, split.
        space: Search space.
        root: Checkout of the host.
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
        """Seed of the search's random numbers."""
        return self.arguments.seed or 0

    def run_named(self, name: str) -> RunFolder:
        """Return the folder of a run, whether it exists or not."""
        found = sorted((self.folder / name).glob("save/**/split.json"))
        return RunFolder(found[0].parent) if found else RunFolder.inside(self.folder / name)

    def command(self, wanted: Wanted, *, resume: bool) -> list[str]:
        """Return the arguments of `tllm` that train a run."""
        node = with_values(self.cfg, wanted.values).TLLM
        vanilla = _VANILLA if wanted.vanilla else ()
        words = [*self.arguments.words(absolute=True), *vanilla, *flags_of(node)]
        return ["train", "--host", "repdistiller", *(["--resume"] if resume else []), "--", *words]

    def place(self, wanted: Wanted) -> Path:
        """Return the working folder of the run, in which the host finds its data as in the current folder."""
        place = self.folder / wanted.name
        place.mkdir(parents=True, exist_ok=True)
        data = place / "data"
        if not data.is_symlink():
            Path("data").mkdir(exist_ok=True)  # Folder of the host's downloads, shared by all runs.
            data.symlink_to(Path("data").resolve(), target_is_directory=True)
        return place

    def environment(self) -> dict[str, str]:
        """Return this process's environment with the absolute path of the checkout."""
        return {**os.environ, source_of("repdistiller").variable: str(self.root.resolve())}

    def can_resume(self, run: RunFolder) -> bool:
        """Return whether an epoch was finished."""
        return run.state.exists()

    def next_command(self, values: Values) -> str:
        """Return the shell command that trains the chosen values."""
        node = with_values(self.cfg, {**values, "TLLM.HOLDOUT.SEARCH_FRACTION": 0.0}).TLLM
        words = [*self.arguments.words(absolute=False), *flags_of(node)]
        return shlex.join(["tllm", "train", *import_words(), "--host", "repdistiller", "--", *words])
