"""What a host's `validate` judges: the student's logits, or those that another module makes of its features."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.core.outputs import tensors_in
from tllm_plugin.core.worker_errors import plain_errors
from tllm_plugin.hosts.random_state import RandomState
from tllm_plugin.hosts.repdistiller.loop import OneBatch

_ROWS = 4


class Judge:
    """The host's `validate`, asked for the logits of single batches.

    Args:
        validate: The host's function.
        arguments: Arguments of its call in the script: the test loader, networks, a criterion, options.
        loader: The test loader among them.
    """

    def __init__(self, validate: Callable[..., Any], arguments: Sequence[Any], loader: Any) -> None:
        self.validate, self.arguments, self.loader = validate, tuple(arguments), loader
        criteria = [part for part in arguments if isinstance(part, nn.Module) and not list(part.parameters())]
        #: Loss that `validate` calls with logits and labels; None if it cannot be watched.
        self.criterion = criteria[0] if criteria else None

    def logits(self, image: Tensor) -> Tensor:
        """Return the logits that `validate` compares with the labels of a batch, (n, C).

        Args:
            image: (n, ...), as the test loader yields them.
        """
        with self.judged() as judged, contextlib.redirect_stdout(io.StringIO()):
            self._run([image, image.new_zeros(len(image), dtype=torch.int64)])
        return judged[0]

    @contextmanager
    def judged(self) -> Iterator[list[Tensor]]:
        """Collect the logits that the criterion receives in the block."""
        found: list[Tensor] = []
        assert self.criterion is not None
        hook = self.criterion.register_forward_pre_hook(lambda module, given: found.append(given[0]))
        try:
            yield found
        finally:
            hook.remove()

    def predictor(self, module_list: nn.ModuleList) -> tuple[int, int] | None:
        """Return where the judged logits come from: a module's place in the list, and a tensor's in its output.

        None stands for the student. A few test images are judged for this.

        Args:
            module_list: The student first, the teacher last.

        Raises:
            ConfigError: The logits are an output of neither the student nor a module of the method.
        """
        if self.criterion is None:
            return None
        before = RandomState().state_dict()
        count = min(_ROWS, len(self.loader.dataset))
        returned: list[tuple[int, int, Tensor]] = []
        hooks = [
            module.register_forward_hook(
                lambda module, given, output, place=place: returned.extend(
                    (place, leaf, tensor) for leaf, tensor in enumerate(tensors_in(output))
                )
            )
            for place, module in enumerate(module_list[:-1])
        ]
        try:
            with self.judged() as judged, plain_errors(), contextlib.redirect_stdout(io.StringIO()):
                self._run(self.loader.collate_fn([self.loader.dataset[place] for place in range(count)]))
        finally:
            for hook in hooks:
                hook.remove()
            RandomState().load_state_dict(before)
        if not judged:
            return None
        places = [(place, leaf) for place, leaf, tensor in returned if tensor is judged[0]]
        if not places:
            raise ConfigError(
                f"Expected {self.validate.__name__} to judge logits that the student or a module of the method "
                "returns, but it judges something else: TLLM would teach and judge other logits"
            )
        return None if places[0][0] == 0 else places[0]

    def _run(self, batch: Sequence[Any]) -> None:
        self.validate(*(OneBatch(self.loader, batch) if part is self.loader else part for part in self.arguments))
