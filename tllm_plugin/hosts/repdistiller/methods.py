"""The 14 methods of RepDistiller as data: how each `--distill` makes its loss from features.

The criteria and modules are the host's own objects; this table says only what goes into them.

Source: RepDistiller at commit b84f547, `train_student.py` and `helper/loops.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from tllm_plugin.core.errors import ConfigError, unknown_name

#: Of `[f0, ..., fn, pooled]`: every stage but the stem, the last map as a list of one, the last map, the pooled vector.
STAGES, LAST_MAPS, LAST_MAP, POOLED = slice(1, -1), slice(-2, -1), -2, -1


@dataclass(frozen=True)
class Method:
    """How one method's loss is computed, beside cross-entropy and KL divergence.

    Args:
        features: What is compared: a position or slice in a network's features, or the name of the option that holds
            the position. None: there is no such loss.
        modules: Names of what the host keeps in its module list between student and teacher.
        through: Module that the student's and the teacher's features pass first; an empty name is none.
        teacher_options: Further keywords for the teacher's module.
        batch: Keywords of the batch that follow the features into the criterion.
        preact: Whether the networks are asked for features before their activation.
        each: Whether there is one criterion for each pair of features instead of one that returns a list.
        frozen: Modules that stay in evaluation mode while the student trains.
        init_stage: Whether the host trains modules or features first, before the student's own training.
        shape: Of the loss.
    """

    features: int | slice | str | None = None
    modules: tuple[str, ...] = ()
    through: tuple[str, str] = ("", "")
    teacher_options: Mapping[str, Any] = field(default_factory=dict)
    batch: tuple[str, ...] = ()
    preact: bool = False
    each: bool = False
    frozen: tuple[str, ...] = ()
    init_stage: bool = False
    shape: tuple[int, ...] = ()

    def position(self, options: Any) -> int | slice | None:
        """Return which features are compared, as an index into their list."""
        return getattr(options, self.features) if isinstance(self.features, str) else self.features


_EMBEDDINGS = ("embed_s", "embed_t")

METHODS: dict[str, Method] = {
    "kd": Method(),
    "hint": Method("hint_layer", modules=("regress",), through=("regress", "")),
    "attention": Method(STAGES),
    "nst": Method(STAGES),
    "kdsvd": Method(STAGES),
    "similarity": Method(LAST_MAPS, shape=(1,)),
    "rkd": Method(POOLED),
    "pkt": Method(POOLED),
    "correlation": Method(POOLED, modules=_EMBEDDINGS, through=_EMBEDDINGS),
    "vid": Method(STAGES, each=True),
    # Its criterion holds the embeddings; they are in the module list for `train()` only.
    "crd": Method(POOLED, modules=_EMBEDDINGS, batch=("index", "contrastive_index"), shape=(1,)),
    "factor": Method(
        LAST_MAP,
        modules=("translator", "paraphraser"),
        through=("translator", "paraphraser"),
        teacher_options={"is_factor": True},
        frozen=("paraphraser",),
        init_stage=True,
    ),
    "abound": Method(modules=("connector",), preact=True, frozen=("connector",), init_stage=True),
    "fsp": Method(init_stage=True),
}


def method_of(name: str) -> Method:
    """Return a method of the table.

    Raises:
        ConfigError: There is none of this name.
    """
    if name not in METHODS:
        raise ConfigError(unknown_name("--distill", name, METHODS))
    return METHODS[name]


def feature_loss(
    method: Method,
    criterion: Any,
    student_features: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
    *,
    modules: Callable[[str], nn.Module],
    options: Any,
    batch: Mapping[str, Any],
) -> Tensor | None:
    """Return a method's loss, unweighted and of the shape that the host's criterion gives; None where it has none.

    Args:
        method: From the table.
        criterion: The host's, or its list of criteria.
        student_features: `[f0, ..., fn, pooled]`, each (n, ...).
        teacher_features: The same of the teacher, detached.
        modules: Name -> module.
        options: The host's parsed options.
        batch: Keywords of the step.
    """
    position = method.position(options)
    if position is None:
        return None
    student: Any = student_features[position]
    teacher: Any = teacher_features[position]
    student_module, teacher_module = method.through
    if student_module:
        student = modules(student_module)(student)
    if teacher_module:
        teacher = modules(teacher_module)(teacher, **method.teacher_options)
    if method.each:
        found: Any = [one(s, t) for s, t, one in zip(student, teacher, criterion)]  # noqa: B905  (as many as the fewest)
    else:
        found = criterion(student, teacher, *(batch[name] for name in method.batch))
    if isinstance(found, Tensor):
        return found
    summed: Tensor = sum(found)
    return summed
