"""A teacher for inference: frozen, BatchNorm folded, in the precision of choice, compiled, its answers remembered."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tllm_plugin.core.outputs import logits_of, tensors_in
from tllm_plugin.speed.memory import MemoryPlace, TeacherMemory
from tllm_plugin.speed.networks import compiled, images_as, inference_copy, to_bfloat16
from tllm_plugin.speed.outputs import Paths, cast, features_are_mappings, plain, top_level, with_late_features
from tllm_plugin.speed.replacement import Replacement, versions

PLAIN = "plain"
#: Kinds of a fast teacher in the order in which they are tried; single precision only where bfloat16 is no gain.
HALF, SINGLE = ("bfloat16", "compiled bfloat16"), ("folded", "compiled")


class FastTeacher(Replacement):
    """Forward of a teacher that does not change; built from the arguments of the first call.

    It is used in evaluation mode without gradients. In all other calls, and after a change of the weights, the teacher
    is called as it is.

    Args:
        teacher: In single precision.
        kind: One of `HALF` or `SINGLE`, or "plain" to remember answers only.
        asked: Features that the distiller reads. Dictionaries of features that nobody reads are not computed.
        place: Where the logits of images are remembered; not used where the distiller reads features.
    """

    def __init__(
        self, teacher: nn.Module, kind: str, asked: Paths = frozenset(), place: MemoryPlace | None = None
    ) -> None:
        super().__init__(teacher, "teacher")
        self.kind = kind
        self.asked = asked
        self._place = place
        self._memory: TeacherMemory | None = None
        self._call: Callable[..., Any] | None = None
        self._form: Any = None
        self._manner: Any = None
        self._versions = versions(teacher)
        self._digest = ""

    def applies(self) -> bool:
        if self.network.training or torch.is_grad_enabled():
            return False
        return self.is_unchanged()

    def is_unchanged(self) -> bool:
        """Return whether the weights are those that this forward was made from; otherwise stop using it."""
        found = versions(self.network)
        if found != self._versions:  # Loading the same weights from a checkpoint counts as a change.
            digest = weights_digest(self.network)
            if self._call is not None and digest != self._digest:
                self.drop("its weights have changed since it was prepared")
                return False
            self._versions = found
        return True

    def fast(self, *args: Any, **kwargs: Any) -> Any:
        manner = len(args), tuple(sorted(kwargs.items()))
        if self._call is None:
            self._build(args, kwargs)
            self._manner = manner
        if self._form is not None and manner != self._manner:
            return self.plain(*args, **kwargs)  # Its output may have another form.
        if self._memory is not None and len(args) == 1 and not kwargs:
            logits = self._memory.answers(args[0], lambda image: self._tensors(image)[0])
            return with_late_features(self._form, iter([logits]), lambda: self.plain(*args))
        if self._form is not None:
            tensors = iter(self._tensors(*args, **kwargs))
            return with_late_features(self._form, tensors, lambda: self.plain(*args, **kwargs))
        assert self._call is not None
        return cast(self._call(*args, **kwargs))

    def _tensors(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        assert self._call is not None
        return tuple(plain(tensor) for tensor in self._call(*args, **kwargs))

    def _build(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        output = self.plain(*args, **kwargs)
        leaves_out = not self.asked and features_are_mappings(output)
        self._digest = weights_digest(self.network)
        if self.kind == PLAIN:
            self._call = self._cut(self.plain) if leaves_out else self.plain
        else:
            self._call = self._converted(args, kwargs, leaves_out=leaves_out)
        if leaves_out:
            self._form = _form_of(output)
            tensors = top_level(output)
            if self._place is not None and len(tensors) == 1:
                digest = hashlib.sha256(f"{self._digest} {self.kind}".encode()).hexdigest()
                self._memory = self._place.open(digest, tensors[0].shape[1])

    def _cut(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: top_level(function(*args, **kwargs))

    def _converted(self, args: tuple[Any, ...], kwargs: dict[str, Any], *, leaves_out: bool) -> Callable[..., Any]:
        network = inference_copy(self.network, args, kwargs).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        halved = "bfloat16" in self.kind
        if halved:
            to_bfloat16(network)
        function: Callable[..., Any] = self._cut(network) if leaves_out else network
        if "compiled" in self.kind:
            function = compiled(function, frozen=True)
        dtype = torch.bfloat16 if halved else None

        def call(*args: Any, **kwargs: Any) -> Any:
            args, kwargs = images_as((args, kwargs), dtype, channels_last=True)
            return function(*args, **kwargs)

        return call


def _form_of(output: Any) -> Any:
    """Return an output with empty tensors and dictionaries in place of its own."""
    if isinstance(output, Tensor):
        return output.new_empty(0)
    return tuple(item.new_empty(0) if isinstance(item, Tensor) else {} for item in output)


@dataclass(frozen=True)
class Agreement:
    """How well two networks agree on a batch.

    Args:
        same_prediction: Share of the rows with the same highest logit.
        probability_difference: Largest difference of two class probabilities.
        feature_difference: Largest difference of a feature tensor, relative to its norm.
    """

    same_prediction: float
    probability_difference: float
    feature_difference: float

    def __str__(self) -> str:
        text = f"{self.same_prediction:.1%} equal predictions, probabilities within {self.probability_difference:.3f}"
        return text if not self.feature_difference else f"{text}, features within {self.feature_difference:.1%}"

    @property
    def is_close(self) -> bool:
        """Whether the difference is that of rounding to bfloat16, not that of another network."""
        return self.same_prediction >= 0.95 and self.probability_difference <= 0.1 and self.feature_difference <= 0.05


def agreement(expected: Any, found: Any, asked: Paths = frozenset()) -> Agreement:
    """Compare two outputs of a network for the same images; features are compared if the distiller reads any."""
    one, other = logits_of(expected).float(), logits_of(found).float()
    if one.shape != other.shape or not bool(other.isfinite().all()):
        return Agreement(0.0, 1.0, float("inf"))
    same = float((one.argmax(1) == other.argmax(1)).float().mean())
    difference = float((one.softmax(1) - other.softmax(1)).abs().max())
    features = 0.0
    if asked:
        for before, after in zip(tensors_in(expected), tensors_in(found), strict=True):
            norm = float(before.float().norm())
            features = max(features, float((before.float() - after.float()).norm()) / max(norm, 1e-12))
    return Agreement(same, difference, features)


def weights_digest(network: nn.Module) -> str:
    """Return a SHA-256 in hexadecimal of names, shapes and values of all weights and of the network's structure."""
    found = hashlib.sha256(repr(network).encode())
    for name, tensor in _named_tensors(network):
        values = tensor.detach().cpu().contiguous()
        found.update(f"{name} {tuple(values.shape)} {values.dtype}".encode())
        found.update(values.view(torch.uint8).numpy().tobytes() if values.dim() else repr(values.item()).encode())
    return found.hexdigest()


def _named_tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from network.named_parameters()
    yield from network.named_buffers()
