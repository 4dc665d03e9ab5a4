"""SRRL and CID in `train_student.py`, SFTN in `train_teacher.py`: the methods around the host's networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from tllm_plugin.hosts.at_chance import tell_if_at_chance
from tllm_plugin.hosts.loss_guard import LossGuard
from tllm_plugin.hosts.method_options import builder
from tllm_plugin.hosts.repdistiller.contracts import as_featured, as_listed
from tllm_plugin.hosts.repdistiller.epoch import train_epoch
from tllm_plugin.hosts.repdistiller.method_flags import student_methods, student_node, teacher_node
from tllm_plugin.hosts.repdistiller.watched import watched_validation
from tllm_plugin.methods import ContextStudent, Distiller
from tllm_plugin.models import create_model, head


def add_method(
    options: Any, module_list: nn.ModuleList, trainable_list: nn.ModuleList, teacher: nn.Module
) -> tuple[nn.Module, Distiller]:
    """Put SRRL's or CID's modules into the host's lists, as its script does for its own methods.

    Args:
        options: `distill`, and the options of that method.
        module_list: Holds the student; what the method trains beside it is added.
        trainable_list: The same, for the optimizer.
        teacher: The host's network.

    Returns:
        The student that predicts, under the host's contract (for CID a `ContextStudent` around the network, which
        takes its place in both lists), and the method, which is to be the last of the host's criteria.

    Raises:
        ConfigError: The method cannot be made for these networks.
    """
    student = module_list[0]
    # Both are made where the networks are, and move with the host's lists.
    build = builder(student_methods()[options.distill])
    method: Any = build(as_featured(student), as_featured(teacher), student_node(options))
    if isinstance(method.student, ContextStudent):
        student = module_list[0] = trainable_list[0] = as_listed(method.student)
    for name, module in method.named_children():
        if name not in ("student", "teacher"):
            module_list.append(module)
            trainable_list.append(module)
    return student, method


def restore(network: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Return a network of the host's with a student's weights, whichever method trained it.

    Args:
        network: From the host's `model_dict`.
        state: The entry `model` of a checkpoint.

    Returns:
        The network itself or, for a state of CID's, one that predicts through its context head; both answer as the
        host's networks do.

    Raises:
        RuntimeError: The state does not fit.
    """
    if ContextStudent.is_state(state):
        return as_listed(ContextStudent.restore(as_featured(network), state))
    network.load_state_dict(state)
    return network


class TeacherStage:
    """What `train_teacher.py` trains: its network or, with `--sftn`, that network with branches of a student.

    Args:
        options: The host's parsed options, from `parse_teacher`.
        network: The host's; it alone is tested and saved.

    Raises:
        ConfigError: The two networks have too few stages in common.
    """

    def __init__(self, options: Any, network: nn.Module) -> None:
        self.method: nn.Module | None = None
        if options.sftn:
            # The branches are made of TLLM's network of that name, so it is asked for the shapes of its maps.
            student = create_model(options.model_s, head(network).out_features)
            self.method = builder("SFTN")(student, as_featured(network), teacher_node(options))
        self.network = network
        self._epoch = 0

    def parameters(self) -> list[nn.Parameter]:
        """Return what the optimizer trains."""
        return list((self.network if self.method is None else self.method).parameters())

    def train(self, host_train: Callable[..., Any], epoch: int, loader: Any, network: nn.Module, *rest: Any) -> Any:
        """Return training accuracy in percent and mean loss of an epoch.

        Args:
            host_train: The host's `train_vanilla`, which runs unless there are branches.
            epoch: Counted from 1.
            loader: Yields `(image, target)`.
            network: The host's.
            rest: The host's criterion, optimizer and options.
        """
        self._epoch = epoch
        if self.method is None:
            return host_train(epoch, loader, network, *rest)
        _, optimizer, options = rest
        self.method.to(next(network.parameters()).device)
        every = max(1, options.print_freq)
        guard = LossGuard(every, "--learning_rate")
        result = train_epoch(epoch, loader, self.method, optimizer, print_freq=every, guard=guard)
        return result.shaped(())

    def validate(self, host_validate: Callable[..., Any], loader: Any, network: nn.Module, *rest: Any) -> Any:
        """Return what the host's `validate` does; after the last epoch, warn if the network is at chance.

        Args:
            host_validate: The host's.
            loader: Yields `(image, target)`.
            network: The host's.
            rest: The host's criterion and options.
        """
        options = rest[-1]
        if self._epoch < options.epochs:
            return host_validate(loader, network, *rest)
        result, predictions = watched_validation(
            lambda watched: host_validate(watched, network, *rest), loader, network
        )
        tell_if_at_chance("trained", options.save_folder, predictions, "test images")
        return result
