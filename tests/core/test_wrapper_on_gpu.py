"""The wrapper on a GPU: replicas of `DataParallel`, bfloat16, channels_last and compiled networks."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel.scatter_gather import scatter_kwargs

from tests.distiller_cases import BUILDERS, NUM_CLASSES, batch, build, named
from tllm_plugin import TLLMWrapper

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:Was asked to gather along dimension 0:UserWarning"),
]

#: Under DataParallel: PyTorch copies no replica, moves no list to a device, and throws replicas' buffers away.
COPYING = tuple(f"own: {what}" for what in ("copies in every step", "copy of the first step", "running mean"))
NAMES = sorted({*BUILDERS} - {*COPYING, "own: hidden running mean"})


def wrap(name: str, flagged: list[int]) -> TLLMWrapper:
    wrapper = TLLMWrapper(build(name), NUM_CLASSES).train().cuda()
    wrapper.set_undistillable(torch.isin(torch.arange(NUM_CLASSES), torch.tensor(flagged, dtype=torch.int64)))
    return wrapper


def batch_there(name: str) -> dict[str, Any]:
    return {key: _there(value) for key, value in batch(name).items()}


def _there(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.cuda()
    return [_there(item) for item in value] if isinstance(value, list) else value


def total(losses: dict[str, Tensor] | Tensor) -> Tensor:
    return torch.stack([loss.float().mean() for loss in named(losses).values()]).sum()


@pytest.mark.parametrize("flagged", [[], [1, 4], list(range(NUM_CLASSES))])
@pytest.mark.parametrize("name", NAMES)
def test_data_parallel_is_each_replica_on_its_rows(name: str, flagged: list[int]) -> None:
    wrapper = wrap(name, flagged)
    # A machine with one GPU can have two replicas there.
    parallel = nn.DataParallel(copy.deepcopy(wrapper), device_ids=[0, 0])
    logits, losses = parallel(**batch_there(name))
    total(losses).backward()
    alone = copy.deepcopy(wrapper)
    _, shares = scatter_kwargs((), batch_there(name), [0, 0])
    assert len(shares) == 2
    parts = [copy.deepcopy(alone)(**share) for share in shares]
    torch.testing.assert_close(logits, torch.cat([part[0] for part in parts]))
    torch.testing.assert_close(total(losses), torch.stack([total(part[1]) for part in parts]).mean())
    # Replicas share no statistics while they compute, so that gradients add up.
    expected: dict[str, Tensor] = {}
    for share in shares:
        replica = copy.deepcopy(alone)
        (total(replica(**share)[1]) / 2).backward()
        for key, parameter in replica.named_parameters():
            if parameter.grad is not None:
                expected[key] = expected.get(key, torch.zeros_like(parameter)) + parameter.grad
    for key, parameter in parallel.module.named_parameters():
        if parameter.requires_grad:
            found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            wanted = expected.get(key, torch.zeros_like(parameter))
            torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-3)
    assert expected


@pytest.mark.parametrize("way", ["bfloat16", "channels_last", "compiled"])
@pytest.mark.parametrize("flagged", [[], [1, 4]])
def test_other_ways_to_compute_the_same(way: str, flagged: list[int]) -> None:
    wrapper, exact = wrap("KD", flagged), wrap("KD", flagged)
    keywords = batch_there("KD")
    if way == "channels_last":
        wrapper = wrapper.to(memory_format=torch.channels_last)
        keywords["image"] = keywords["image"].contiguous(memory_format=torch.channels_last)
    if way == "compiled":
        wrapper.student.compile()
        wrapper.teacher.compile()
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=way == "bfloat16"):
        logits, losses = wrapper(**keywords)
    total(losses).backward()
    expected_logits, expected_losses = exact(**batch_there("KD"))
    near = 0.1 if way == "bfloat16" else 5e-3  # Convolutions round to TF32.
    torch.testing.assert_close(logits.float(), expected_logits, atol=near, rtol=near)
    torch.testing.assert_close(total(losses), total(expected_losses), atol=near, rtol=near)


@pytest.mark.parametrize("name", COPYING)
def test_copies_on_the_device_are_routed(name: str) -> None:
    logits, losses = wrap(name, [1, 4])(**batch_there(name))
    expected_wrapper = TLLMWrapper(build(name), NUM_CLASSES).train()
    expected_wrapper.set_undistillable(torch.isin(torch.arange(NUM_CLASSES), torch.tensor([1, 4])))
    expected_logits, expected_losses = expected_wrapper(**batch(name))
    torch.testing.assert_close(logits.cpu(), expected_logits, atol=5e-3, rtol=5e-3)
    torch.testing.assert_close(total(losses).cpu(), total(expected_losses), atol=5e-3, rtol=5e-3)
