"""TLLM inside RepDistiller: what its patched scripts call.

    import tllm_plugin.hosts.repdistiller as tllm

`parse_student` and `parse_teacher` stand for `parser.parse_args()`, `suffix` goes into a run's name, `load_images`
reads one of the further `DATASETS`, and a `Run` stands in for the host's calls from loading data to the last epoch.
`METHODS` are those values of `--distill` that `add_method` makes, and a `TeacherStage` is what a teacher is trained as.
In a script of a descendant `parse_fork` stands for `parse_student`, and `is_ours` for a look into `METHODS`.
For scripts of your own: `restore(network, state)` loads a student's weights, whichever method trained it.
"""

from typing import Any

from tllm_plugin.hosts.repdistiller.forks import parse_fork
from tllm_plugin.hosts.repdistiller.images import DATASETS, load_images
from tllm_plugin.hosts.repdistiller.method_flags import is_ours, student_methods
from tllm_plugin.hosts.repdistiller.options import parse_student, parse_teacher, suffix
from tllm_plugin.hosts.repdistiller.ported import TeacherStage, add_method, restore
from tllm_plugin.hosts.repdistiller.run import Run

__all__ = [
    "DATASETS",
    "METHODS",
    "Run",
    "TeacherStage",
    "add_method",
    "is_ours",
    "load_images",
    "parse_fork",
    "parse_student",
    "parse_teacher",
    "restore",
    "suffix",
]


def __getattr__(name: str) -> Any:
    if name == "METHODS":  # Not before they are asked for: users' own are imported later than this.
        return tuple(student_methods())
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
