"""The wrapper's invariants for every distiller of the real mdistiller on its own networks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests import distiller_cases, wrapper_checks

STOCK = ("AT", "CRD", "DKD", "FITNET", "KD", "KDSVD", "NST", "OFD", "PKT", "REVIEWKD", "RKD", "SP", "VID", "NONE")
PORTED = ("SRRL", "CID", "SFTN")
SEPARABLE = ("SRRL", "SFTN", "KD", "AT", "OFD", "FITNET", "KDSVD", "NST", "VID", "REVIEWKD", "DKD")
# Differences of nearly equal distances: the stock loss itself is off by more than its size under bf16 autocast.
INEXACT_IN_BF16 = ("PKT", "RKD")
PAIR = ("resnet32x4", "resnet8x4")
# Across architectures: what the host's own methods support.
CROSS_PAIR = ("resnet32x4", "ShuffleV1")
CROSS = ("SRRL", "CID", "AT", "CRD", "DKD", "FITNET", "KD", "NST", "PKT", "RKD", "SP", "VID")
OPTIONS: dict[tuple[str, str], list[Any]] = {
    ("CRD", "resnet8x4"): ["CRD.NCE.K", 4],
    ("CRD", "ShuffleV1"): ["CRD.NCE.K", 4, "CRD.FEAT.STUDENT_DIM", 960],
    ("FITNET", "resnet8x4"): ["FITNET.INPUT_SIZE", (32, 32)],
}


def make(kind: str, teacher: str, student: str) -> nn.Module:
    from mdistiller.distillers import distiller_dict
    from mdistiller.engine.cfg import CFG
    from mdistiller.models import cifar_model_dict

    cfg = CFG.clone()
    cfg.merge_from_list(OPTIONS.get((kind, student), []))
    networks = [cifar_model_dict[name][0](num_classes=distiller_cases.NUM_CLASSES) for name in (student, teacher)]
    if kind == "NONE":
        return distiller_dict[kind](networks[0])  # type: ignore[no-any-return]
    cfg.DISTILLER.STUDENT = student
    extra = [200] if kind == "CRD" else []
    distiller = distiller_dict[kind](*networks, cfg, *extra)
    return distiller_cases.give_context(distiller) if kind == "CID" else distiller  # type: ignore[no-any-return]


def register(kind: str, pair: tuple[str, str]) -> str:
    name = f"mdistiller {kind} {'/'.join(pair)}"
    distiller_cases.HOST_BUILDERS[name] = lambda: make(kind, *pair)
    return name


@pytest.mark.parametrize("kind", STOCK + PORTED)
@pytest.mark.parametrize(
    "check",
    [
        wrapper_checks.nothing_flagged_is_the_inner_distiller_bit_for_bit,
        wrapper_checks.everything_flagged_is_label_smoothing_without_a_teacher,
        wrapper_checks.every_zero_loss_reaches_every_learnable_parameter,
        wrapper_checks.mixed_batch_runs_the_student_once_and_shows_the_teacher_distillable_rows_only,
        wrapper_checks.undistillable_rows_logit_gradients_come_from_label_smoothing_alone,
        wrapper_checks.separable_losses_are_the_row_weighted_sum_of_their_parts,
        wrapper_checks.replicas_in_threads_do_not_disturb_each_other,
        wrapper_checks.any_distiller_can_be_balanced,
        wrapper_checks.channels_last,
        *wrapper_checks.WEIGHTED,
    ],
    ids=lambda check: check.__name__,
)
def test_same_architecture(imported: Path, kind: str, check: Callable[[str], None]) -> None:
    name = check.__name__
    if ("mixed" in name or check in wrapper_checks.WEIGHTED) and kind in distiller_cases.WITHOUT_TEACHER:
        pytest.skip("it has no teacher")
    if "separable" in name and kind not in SEPARABLE:
        pytest.skip("its loss is about relations between rows")
    if "threads" in name and kind == "CRD":
        pytest.skip("CRD's memory changes with every call, so repeated calls differ without replicas, too")
    if "channels_last" in name and kind in ("SP", "KDSVD") and "reshape" not in _source(imported, kind):
        pytest.skip("the stock method cannot: `view` of a channels_last tensor (patch 0002 mends it)")
    check(register(kind, PAIR))


@pytest.mark.parametrize("kind", [kind for kind in STOCK + PORTED if kind not in INEXACT_IN_BF16])
def test_bf16_autocast(imported: Path, kind: str) -> None:
    wrapper_checks.bf16_autocast(register(kind, PAIR))


@pytest.mark.parametrize("kind", INEXACT_IN_BF16)
def test_bf16_autocast_of_methods_that_are_inexact_themselves(imported: Path, kind: str) -> None:
    name = register(kind, PAIR)

    def losses(distiller: nn.Module, precise: bool) -> dict[str, torch.Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not precise):
            return distiller(**distiller_cases.batch(name))[1]  # type: ignore[no-any-return]

    stock = [float(losses(distiller_cases.build(name), precise)["loss_kd"].detach()) for precise in (True, False)]
    assert abs(stock[1] - stock[0]) > stock[0], "the stock method is exact enough now: test it like the others"
    flagged = losses(wrapper_checks.wrap(name, [1, 4]), False)
    sum(loss.mean() for loss in flagged.values()).backward()
    exact = losses(wrapper_checks.wrap(name, [1, 4]), True)
    assert all(torch.isfinite(loss).all() for loss in flagged.values())
    torch.testing.assert_close(flagged["loss_ce"].float(), exact["loss_ce"], atol=0.02, rtol=0.02)


@pytest.mark.parametrize("distillable", [0, 1, 2])
@pytest.mark.parametrize("kind", STOCK + PORTED)
def test_few_rows(imported: Path, kind: str, distillable: int) -> None:
    wrapper_checks.few_distillable_rows_give_finite_losses_and_gradients(register(kind, PAIR), distillable)


@pytest.mark.parametrize("kind", CROSS)
def test_across_architectures(imported: Path, kind: str) -> None:
    name = register(kind, CROSS_PAIR)
    wrapper_checks.nothing_flagged_is_the_inner_distiller_bit_for_bit(name)
    wrapper_checks.few_distillable_rows_give_finite_losses_and_gradients(name, 2)


def test_every_distiller_of_the_host_is_covered(imported: Path) -> None:
    from mdistiller.distillers import distiller_dict

    known = set(STOCK + PORTED) | {"TLLM", "MLKD", "KD_ours", "Sonly"}
    assert set(distiller_dict) <= known


@pytest.mark.parametrize("kind", ["MLKD", "KD_ours"])
def test_two_views_of_a_fork(imported: Path, kind: str) -> None:
    from mdistiller.distillers import distiller_dict

    if kind not in distiller_dict:
        pytest.skip(f"this checkout has no {kind}")
    name = f"{kind} of a fork{distiller_cases.TWO_VIEW_SUFFIX}"
    distiller_cases.HOST_BUILDERS[name] = lambda: make(kind, *PAIR)
    for check in (
        wrapper_checks.nothing_flagged_is_the_inner_distiller_bit_for_bit,
        wrapper_checks.everything_flagged_is_label_smoothing_without_a_teacher,
    ):
        check(name)
    torch.manual_seed(0)


def _source(root: Path, kind: str) -> str:
    return (root / "mdistiller" / "distillers" / f"{kind}.py").read_text()
