"""CID's student: a network that predicts from its features and the context of the classes that it predicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class ContextStudent(nn.Module):
    """A network around which a linear head `g` predicts: `z_new = g([f, softmax(stopgrad(z) / T) C])`.

    `f` and `z` are the network's pooled features and own logits, `C` is the context, one vector per class. What this
    module returns first is what predicts: the network's own logits until there is a context, `z_new` from then on. So
    evaluation, hold-out scores, checkpoints of the student and TLLM's label smoothing all concern the right thing.

    The context lives in buffers. An epoch's context is the weighted mean of the features collected in the epoch before;
    a class of which nothing was collected keeps what it had. Like BatchNorm's statistics, what several replicas of one
    process collect is that of the first one. Several processes have to add up `row_sums` at the end of an epoch.

    Until there is a context, `g` stays as it was initialised: gradients of its parameters, be they zero, are dropped as
    soon as a backward pass has made them, so that neither weight decay nor momentum gets hold of it.
    `DistributedDataParallel` writes zeros in their place after the pass; who uses it drops those of `held_parameters`.

    The weights do not fit a plain network: its `load_state_dict` refuses them, because the network alone would give
    other, worse predictions. `restore` makes what they do fit.

    Args:
        network: `image -> (logits, features)`.
        feature_dim: Entries of `pooled_feat`.
        num_classes: C.
        temperature: T > 0.

    Source: Deng and Zhang, "Comprehensive Knowledge Distillation with Causal Intervention" (NeurIPS 2021), section 3.3.
    """

    #: Buffers that are sums over the rows that this module has seen.
    row_sums = ("context_sum", "context_weight")

    temperature: Tensor
    context: Tensor
    context_sum: Tensor
    context_weight: Tensor
    context_epoch: Tensor
    has_context: Tensor

    def __init__(self, network: nn.Module, *, feature_dim: int, num_classes: int, temperature: float) -> None:
        super().__init__()
        self.network = network
        self.context_head = nn.Linear(2 * feature_dim, num_classes)
        self.register_buffer("temperature", torch.tensor(temperature))
        self.register_buffer("context", torch.zeros(num_classes, feature_dim))
        self.register_buffer("context_sum", torch.zeros(num_classes, feature_dim))
        self.register_buffer("context_weight", torch.zeros(num_classes))
        self.register_buffer("context_epoch", torch.zeros((), dtype=torch.int64))  # of the sums; 0: none yet
        self.register_buffer("has_context", torch.zeros((), dtype=torch.bool))
        # What is known of `has_context` without waiting for the device: one pair of an epoch and the buffer's value in
        # it, or nothing. A list, because replicas copy attributes shallowly and are to share it.
        self._known: list[tuple[int | None, bool]] = []
        self._hold_head()

    def _hold_head(self) -> None:
        """Register hooks that drop gradients of the context head until there is a context."""
        for parameter in self.context_head.parameters():
            if parameter.requires_grad:  # Not so in a student that has become a teacher.
                parameter.register_post_accumulate_grad_hook(self._drop_held)

    def _drop_held(self, parameter: Tensor) -> None:
        if not self._has_context_now():
            parameter.grad = None

    def _has_context_now(self) -> bool:
        """Return `has_context`; synchronises with the device once after loading, then at most once per epoch."""
        if not self._known:
            self._known.append((None, bool(self.has_context)))
        return self._known[-1][1]

    def held_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that must not be trained yet: the context head's until there is a context."""
        return [] if self._has_context_now() else list(self.context_head.parameters())

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Copies and unpickled modules have parameters of their own, to which hooks do not travel.
        super().__setstate__(state)
        self._hold_head()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._known.clear()

    def forward(self, image: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Return the logits (n, C) that predict, and the network's features with its own logits as `own_logits`."""
        own_logits, features = self.network(image)
        # Copies: the next step writes into the buffers, perhaps before this step's graph has been used.
        context, has_context = self.context.clone(), self.has_context.clone()
        # The look-up passes no gradient to the own logits, as in the authors' code.
        seen = (own_logits.detach() / self.temperature).softmax(1) @ context
        predicted = self.context_head(torch.cat([features["pooled_feat"], seen], dim=1))
        # No branch in Python: that would wait for the device in every step.
        return torch.where(has_context, predicted, own_logits), {**features, "own_logits": own_logits}

    @torch.no_grad()
    def begin_epoch(self, epoch: int, *, warmup_epochs: int) -> None:
        """Compute the context from the collected features if `epoch` is new; call this before every step.

        Args:
            epoch: Epoch of the step, as counted by the host.
            warmup_epochs: Last epoch that is trained without context, at least 1.
        """
        new_epoch = self.context_epoch != epoch
        collected = self.context_weight > 0
        mean = self.context_sum / self.context_weight.where(collected, 1.0).unsqueeze(1)
        self.context.copy_(torch.where((new_epoch & collected).unsqueeze(1), mean, self.context))
        if epoch > warmup_epochs:
            self.has_context.logical_or_(new_epoch & collected.any())
        self.context_sum.masked_fill_(new_epoch, 0.0)
        self.context_weight.masked_fill_(new_epoch, 0.0)
        self.context_epoch.fill_(epoch)
        known = self._known[-1] if self._known else (None, False)
        if known[0] != epoch and not known[1]:
            self._known[:] = [(epoch, bool(self.has_context))]

    @torch.no_grad()
    def collect(self, features: Tensor, target: Tensor, weight: Tensor) -> None:
        """Collect rows for the context of the next epoch.

        Args:
            features: (n, D).
            target: (n,) int64.
            weight: (n,), >= 0.
        """
        weight = weight.to(self.context_weight.dtype)
        self.context_sum.index_add_(0, target, features.to(weight.dtype) * weight.unsqueeze(1))
        self.context_weight.index_add_(0, target, weight)

    @staticmethod
    def is_state(state: Mapping[str, Tensor]) -> bool:
        """Return whether a state_dict belongs to a `ContextStudent`."""
        return "context_head.weight" in state

    @classmethod
    def restore(cls, network: nn.Module, state: Mapping[str, Tensor]) -> ContextStudent:
        """Wrap a plain network in a `ContextStudent` and load its state_dict.

        Args:
            network: Network of the trained architecture; its weights are overwritten.
            state: State_dict of a `ContextStudent`.

        Raises:
            RuntimeError: The state does not fit the network.
        """
        num_classes, feature_dim = state["context"].shape
        student = cls(network, feature_dim=feature_dim, num_classes=num_classes, temperature=1.0)
        student.load_state_dict(state)
        return student
