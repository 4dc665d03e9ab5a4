"""What is asked of the host's epoch function, and how what one batch cannot show is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.hosts.repdistiller.epoch import EpochResult
from tllm_plugin.hosts.repdistiller.loop import EpochCall, NoLossError
from tllm_plugin.hosts.repdistiller.loop_source import lost_when_cut, returned_names


def plain(epoch: Any, loader: Any, modules: Any, criteria: Any, optimizer: Any, opt: Any) -> Any:
    total = 0.0
    for idx, (image, target) in enumerate(loader):
        loss = opt * criteria[0](modules[0](image), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if idx % 10 == 0:
            print(idx, len(loader), loader.name, optimizer.param_groups[0]["lr"])
        total += loss.item()
    return total, total, epoch, 0.5


def two_losses(epoch: Any, loader: Any, modules: Any, criteria: Any, optimizer: Any, opt: Any) -> Any:
    for image, target in loader:
        optimizer.zero_grad()
        first = criteria[0](modules[0](image), target)
        first.backward(retain_graph=True)
        (opt * first).backward()
        optimizer.step()


def clips(epoch: Any, loader: Any, modules: Any, criteria: Any, optimizer: Any, opt: Any) -> Any:
    for _, (image, target) in enumerate(loader):
        loss = criteria[0](modules[0](image), target)
        loss.backward()
        nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        optimizer.step()


def steps_twice(epoch: Any, loader: Any, modules: Any, criteria: Any, optimizer: Any, opt: Any) -> Any:
    for image, target in loader:
        loss = criteria[0](modules[0](image), target)
        loss.backward()
        optimizer.step()
        opt.step()


def scales(epoch: Any, loader: Any, modules: Any, criteria: Any, optimizer: Any, opt: Any) -> Any:
    for image, target in loader:
        opt.scale(criteria[0](modules[0](image), target)).backward()
        optimizer.step()


def counts(epoch: Any, loader: Any, modules: Any, criteria: Any, optimizer: Any, opt: Any) -> Any:
    for idx, (image, target) in enumerate(loader):
        loss = idx * criteria[0](modules[0](image), target)
        loss.backward()
        optimizer.step()


def fixed_size(epoch: Any, loader: Any, modules: Any, criteria: Any, optimizer: Any, opt: Any) -> Any:
    for image, target in loader:
        if len(image) < 6:
            continue
        loss = criteria[0](modules[0](image), target)
        loss.backward()
        optimizer.step()


def accumulates(epoch: Any, loader: Any, modules: Any, criteria: Any, optimizer: Any, opt: Any) -> Any:
    for image, target in loader:
        criteria[0](modules[0](image), target).backward()


class Named(list):  # type: ignore[type-arg]
    name = "loader"


def call(function: Any) -> tuple[EpochCall, nn.ModuleList, nn.ModuleList, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    modules, criteria = nn.ModuleList([nn.Linear(3, 4)]), nn.ModuleList([nn.CrossEntropyLoss()])
    optimizer, loader = torch.optim.SGD(modules.parameters(), lr=0.1), Named([None] * 7)
    arguments = (1, loader, modules, criteria, optimizer, 0.5)
    batch = torch.randn(5, 3), torch.tensor([0, 1, 2, 3, 0])
    return EpochCall(function, arguments, loader, modules, criteria, optimizer), modules, criteria, batch


def test_the_loss_is_the_loops_and_nothing_is_stepped() -> None:
    asked, modules, criteria, (image, target) = call(plain)
    before = modules[0].weight.clone()
    loss = asked.loss((image, target), modules, criteria)
    assert torch.equal(loss, 0.5 * criteria[0](modules[0](image), target))
    assert modules[0].weight.grad is None and torch.equal(before, modules[0].weight)
    loss.backward()  # As ever, outside of the call.
    assert modules[0].weight.grad is not None


def test_losses_that_go_backward_one_by_one_are_added() -> None:
    asked, modules, criteria, (image, target) = call(two_losses)
    loss = asked.loss((image, target), modules, criteria)
    torch.testing.assert_close(loss, 1.5 * criteria[0](modules[0](image), target))


def test_a_batch_that_the_loop_leaves_out_has_no_loss() -> None:
    asked, modules, criteria, batch = call(fixed_size)
    with pytest.raises(NoLossError, match="compute a loss of 5 rows, but it left the batch out"):
        asked.loss(batch, modules, criteria)
    asked, modules, criteria, batch = call(accumulates)
    with pytest.raises(ConfigError, match="Expected accumulates to step its optimizer after every batch"):
        asked.loss(batch, modules, criteria)


@pytest.mark.parametrize(
    ("function", "lost"),
    [
        (plain, []),
        (two_losses, []),
        (clips, ["nn.utils.clip_grad_norm_(modules.parameters(), 1.0)"]),
        (steps_twice, ["opt.step()"]),
        (scales, ["opt.scale(criteria[0](modules[0](image), target))"]),
        (counts, ["idx"]),
    ],
)
def test_what_one_batch_would_not_show(function: Any, lost: list[str]) -> None:
    assert [text.partition(": ")[2] for text in lost_when_cut(function)] == lost


def test_results_have_the_shape_that_the_host_returns() -> None:
    result = EpochResult(accuracy_percent=50.0, top5_percent=90.0, loss=1.5, data_seconds=0.1)
    assert returned_names(plain) == ("total", "total", "epoch", "0.5")
    assert result.shaped(("top1.avg", "losses.avg")) == result.shaped(()) == (50.0, 1.5)
    assert result.shaped(("top1.avg", "top5.avg", "losses.avg", "data_time.avg")) == (50.0, 90.0, 1.5, 0.1)
    assert result.shaped(("top1 / n", "top5 / n", "total / n", "data_time")) == (50.0, 90.0, 1.5, 0.1)
