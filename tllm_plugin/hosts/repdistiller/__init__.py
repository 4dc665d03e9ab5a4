"""TLLM inside RepDistiller: what its patched scripts call.

    import tllm_plugin.hosts.repdistiller as tllm

`parse_student` and `parse_teacher` stand for `parser.parse_args()`, `suffix` goes into a run's name, `load_images` is a
further data set, and a `Run` stands in for the host's calls from loading data to the last epoch.
"""

from tllm_plugin.hosts.repdistiller.images import load_images
from tllm_plugin.hosts.repdistiller.options import parse_student, parse_teacher, suffix
from tllm_plugin.hosts.repdistiller.run import Run

__all__ = ["Run", "load_images", "parse_student", "parse_teacher", "suffix"]
