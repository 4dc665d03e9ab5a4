"""Names, parameter counts as published for the hosts' models, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.models import MODELS, create_model, is_model, model_names
from tllm_plugin.models.residual import BasicBlock, ResNet
from tllm_plugin.models.wrn import WideResNet

# Parameters with 100 classes, counted in mdistiller at commit a08d46f. The models that RepDistiller (b84f547) has under
# the same names have the same parameters.
PARAMETERS = {
    "MobileNetV1": 3_309_476,
    "MobileNetV2": 812_836,
    "ResNet18": 11_220_132,
    "ResNet50": 23_705_252,
    "ShuffleV1": 949_258,
    "ShuffleV2": 1_355_528,
    "resnet8": 83_892,
    "resnet14": 181_108,
    "resnet20": 278_324,
    "resnet32": 472_756,
    "resnet44": 667_188,
    "resnet56": 861_620,
    "resnet110": 1_736_564,
    "resnet8x4": 1_233_540,
    "resnet32x4": 7_433_860,
    "tv_mobilenet_v2": 2_351_972,
    "tv_resnet18": 11_227_812,
    "tv_resnet34": 21_335_972,
    "tv_resnet50": 23_712_932,
    "vgg8": 3_965_028,
    "vgg11": 9_277_284,
    "vgg13": 9_462_180,
    "vgg16": 14_774_436,
    "vgg19": 20_086_692,
    "wrn_10_1": 83_700,
    "wrn_16_1": 180_916,
    "wrn_16_2": 703_284,
    "wrn_16_4": 2_772_020,
    "wrn_28_2": 1_479_220,
    "wrn_28_4": 5_872_180,
    "wrn_40_1": 569_780,
    "wrn_40_2": 2_255_156,
}


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def create_without_memory(name: str, num_classes: int = 100, in_channels: int = 3) -> nn.Module:
    with torch.device("meta"):
        return create_model(name, num_classes, in_channels)


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_parameter_count_is_the_published_one(name: str) -> None:
    assert count(create_without_memory(name)) == PARAMETERS[name]


def test_resnet24_is_resnet8_with_eight_more_blocks_in_the_last_stage() -> None:
    block = 2 * 64 * 64 * 9 + 2 * 2 * 64
    assert count(create_without_memory("resnet24_1_1_9")) == PARAMETERS["resnet8"] + 8 * block == 675_764


@pytest.mark.parametrize(("name", "expected"), [("digits_teacher", 39_790), ("digits_student", 1_366)])
def test_digits_pair_is_tiny(name: str, expected: int) -> None:
    assert count(create_without_memory(name, num_classes=10, in_channels=1)) == expected


@pytest.mark.parametrize("name", sorted([*MODELS, "wrn_16_1"]))
def test_numbers_of_classes_and_channels_are_free(name: str) -> None:
    model = create_without_memory(name, num_classes=3, in_channels=5)
    stem = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    assert (stem.in_channels, head.out_features) == (5, 3)


def test_three_channels_by_default() -> None:
    assert create_model("digits_student", num_classes=2)(torch.zeros(2, 3, 8, 8))[0].shape == (2, 2)


def test_names_are_sorted_and_families_readable() -> None:
    names = model_names()
    assert names == sorted(set(names))
    assert set(names) == {*MODELS, "wrn_<depth>_<width>"}
    fixed = {name for name in PARAMETERS if not name.startswith("wrn_")}
    assert fixed | {"resnet24_1_1_9", "digits_teacher", "digits_student"} == set(MODELS)


@pytest.mark.parametrize("name", [*PARAMETERS, "wrn_10_1", "wrn_22_3", "wrn_100_10", "digits_student"])
def test_known_names(name: str) -> None:
    assert is_model(name)


UNKNOWN = [
    "",
    "resnet",
    "resnet21",
    "Resnet20",
    "wrn_<depth>_<width>",
    "wrn_16",
    "wrn_16_2_1",
    "wrn_016_2",
    "wrn_1e1_1",
]


@pytest.mark.parametrize(
    "name", [*UNKNOWN, "wrn_99999999999_1", "wrn_15_2", "wrn_4_1", "wrn_16_0", None, 3, ["resnet8"]]
)
def test_other_names_are_no_models(name: object) -> None:
    assert not is_model(name)


@pytest.mark.parametrize("name", [*UNKNOWN, None, ["resnet8"]])
def test_an_unknown_name_is_refused_with_the_known_ones(name: object) -> None:
    with pytest.raises(ConfigError) as caught:
        create_model(name, 10)  # type: ignore[arg-type]
    expected = f"Expected `model` to be one of {', '.join(model_names())}, but got {name!r}"
    assert str(caught.value).partition("; did you mean")[0] == expected


@pytest.mark.parametrize("depth", [0, 4, 15, 20, 41])
def test_an_illegal_depth_is_refused(depth: int) -> None:
    message = (
        rf"^Expected `depth` of a wide ResNet to be 6n \+ 4 \(10, 16, .*\), but got {depth} in `model` 'wrn_{depth}_2'$"
    )
    with pytest.raises(ConfigError, match=message):
        create_model(f"wrn_{depth}_2", 10)


def test_an_illegal_width_is_refused() -> None:
    message = "^Expected `width` of a wide ResNet to be at least 1, but got 0 in `model` 'wrn_16_0'$"
    with pytest.raises(ConfigError, match=message):
        create_model("wrn_16_0", 10)


def test_a_wide_resnet_checks_its_own_arguments() -> None:
    with pytest.raises(ConfigError, match="^Expected `depth` of a wide ResNet .* but got 12$"):
        WideResNet(10, depth=12, width=1)


@pytest.mark.parametrize("value", [0, -1, 2.0, "3", None, True])
@pytest.mark.parametrize("key", ["num_classes", "in_channels"])
def test_counts_must_be_positive_integers(key: str, value: object) -> None:
    arguments = {"num_classes": 10, "in_channels": 3, key: value}
    with pytest.raises(ConfigError, match=f"^Expected `{key}` to be an integer of at least 1, but got {value!r}$"):
        create_model("resnet8", **arguments)  # type: ignore[arg-type]


def test_a_resnet_takes_any_blocks_per_stage() -> None:
    model = ResNet(10, block=BasicBlock, blocks=(2, 1), widths=(4, 8, 16))
    _, features = model(torch.zeros(2, 3, 8, 8))
    assert [tuple(feat.shape[1:]) for feat in features["feats"]] == [(4, 8, 8), (8, 8, 8), (16, 4, 4)]


def test_a_resnet_refuses_widths_that_do_not_fit_and_empty_stages() -> None:
    with pytest.raises(ConfigError, match="^Expected `widths` .* for each of 3 stages, but got 3 entries$"):
        ResNet(10, blocks=(1, 1, 1), widths=(16, 32, 64))
    with pytest.raises(ConfigError, match="^Expected `blocks` to be at least one per stage, but got 0$"):
        ResNet(10, blocks=(1, 0, 1), widths=(16, 16, 32, 64))
