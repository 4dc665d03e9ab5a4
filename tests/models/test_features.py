"""The contract that every family keeps, whatever host or weights: shapes, relations between features, gradients."""

from __future__ import annotations

import math
import re

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.models import create_model, head
from tllm_plugin.models.features import FeatureNet

NUM_CLASSES = 7
# Per model: factor by which each feature map is smaller than the image, and how odd sizes are rounded.
SCALES = {
    "resnet8": ([1, 1, 2, 4], math.ceil),
    "resnet8x4": ([1, 1, 2, 4], math.ceil),
    "resnet24_1_1_9": ([1, 1, 2, 4], math.ceil),
    "ResNet18": ([1, 1, 2, 4, 8], math.ceil),
    "wrn_10_1": ([1, 1, 2, 4], math.ceil),
    "wrn_16_2": ([1, 1, 2, 4], math.ceil),
    "vgg8": ([1, 2, 4, 8, 8], math.floor),
    "MobileNetV1": ([2, 4, 8, 16, 32], math.ceil),
    "MobileNetV2": ([2, 2, 4, 8, 16], math.ceil),
    "ShuffleV1": ([1, 2, 4, 8], math.ceil),
    "ShuffleV2": ([1, 2, 4, 8], math.ceil),
    "tv_resnet18": ([2, 4, 8, 16, 32], math.ceil),
    "digits_teacher": ([1, 2, 4], math.ceil),
    "digits_student": ([1, 2, 4], math.ceil),
}
MODELS = sorted(SCALES)
POST_ACTIVATION = sorted(set(MODELS) - {"wrn_10_1", "wrn_16_2", "MobileNetV2", "ShuffleV2"})


def build(name: str, in_channels: int = 3) -> FeatureNet:
    torch.manual_seed(0)
    model = create_model(name, NUM_CLASSES, in_channels)
    assert isinstance(model, FeatureNet)
    return model


def images(height: int = 8, width: int = 8, rows: int = 4, channels: int = 3) -> torch.Tensor:
    return torch.randn(rows, channels, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", [(8, 8), (9, 13), (33, 17)], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_features_have_the_shapes_of_their_stages(name: str, size: tuple[int, int]) -> None:
    model = build(name).eval()
    with torch.no_grad():
        logits, features = model(images(*size, rows=2))
    factors, rounded = SCALES[name]
    expected = [
        (2, channels, *(rounded(pixels / factor) for pixels in size))
        for channels, factor in zip(model.get_stage_channels(), factors, strict=True)
    ]
    assert [tuple(feat.shape) for feat in features["feats"]] == expected
    assert [tuple(feat.shape) for feat in features["preact_feats"]] == expected
    assert logits.shape == (2, NUM_CLASSES)
    assert features["pooled_feat"].shape == (2, head(model).in_features)
    assert features["pooled_map"].shape == (*features["pooled_feat"].shape, *expected[-1][2:])
    torch.testing.assert_close(features["pooled_map"].mean((2, 3)), features["pooled_feat"])


@pytest.mark.parametrize(("pixels", "last"), [(32, 4), (48, 6), (63, 7), (64, 4)])
def test_vgg_pools_once_more_from_64_pixels_on(pixels: int, last: int) -> None:
    with torch.no_grad():
        _, features = build("vgg8").eval()(images(pixels, pixels, rows=1))
    assert features["feats"][-1].shape[2:] == (last, last)


def test_resnet50_has_the_bottlenecks_channels() -> None:
    model = build("ResNet50").eval()
    with torch.no_grad():
        _, features = model(images(rows=1))
    assert [feat.shape[1] for feat in features["feats"]] == [64, 256, 512, 1024, 2048] == model.get_stage_channels()


@pytest.mark.parametrize("name", POST_ACTIVATION)
def test_feats_are_preact_feats_after_relu(name: str) -> None:
    _, features = build(name)(images())
    for feat, preact in zip(features["feats"], features["preact_feats"], strict=True):
        torch.testing.assert_close(feat, F.relu(preact), rtol=0, atol=0)
    assert all((preact < 0).any() for preact in features["preact_feats"][1:])


@pytest.mark.parametrize("name", ["wrn_10_1", "wrn_16_2"])
def test_wide_resnet_preact_feats_are_what_the_next_relu_sees(name: str) -> None:
    model = build(name).eval()
    with torch.no_grad():
        _, features = model(images())
        for norm, feat, preact in zip(
            model.get_bn_before_relu(), features["feats"][1:], features["preact_feats"][1:], strict=True
        ):
            torch.testing.assert_close(preact, norm(feat), rtol=0, atol=0)
    torch.testing.assert_close(features["pooled_feat"], F.relu(features["preact_feats"][-1]).mean((2, 3)))


def test_mobilenet_has_no_activation_at_the_end_of_a_stage() -> None:
    _, features = build("MobileNetV2")(images())
    for feat, preact in zip(features["feats"], features["preact_feats"], strict=True):
        torch.testing.assert_close(feat, preact, rtol=0, atol=0)
    assert all((feat < 0).any() for feat in features["feats"][1:])


def test_shufflenet_v2_feats_are_shuffled_preact_feats() -> None:
    _, features = build("ShuffleV2")(images())
    for feat, preact in zip(features["feats"][1:], features["preact_feats"][1:], strict=True):
        half = preact.shape[1] // 2
        interleaved = torch.stack([preact[:, :half], preact[:, half:]], dim=2).flatten(1, 2)
        torch.testing.assert_close(feat, F.relu(interleaved), rtol=0, atol=0)


@pytest.mark.parametrize("name", MODELS)
def test_pooled_feat_through_the_head_gives_the_logits(name: str) -> None:
    model = build(name)
    logits, features = model(images())
    torch.testing.assert_close(head(model)(features["pooled_feat"]), logits, rtol=0, atol=0)


@pytest.mark.parametrize("name", POST_ACTIVATION)
def test_pooled_feat_is_the_mean_of_the_last_map(name: str) -> None:
    with torch.no_grad():
        _, features = build(name).eval()(images(16, 12, rows=2))
    torch.testing.assert_close(features["pooled_feat"], features["feats"][-1].mean((2, 3)))


@pytest.mark.parametrize("name", MODELS)
def test_the_logits_gradient_reaches_every_parameter(name: str) -> None:
    model = build(name)
    # Large enough that no map of the deepest stage is a single pixel everywhere.
    logits, _ = model(images(16, 16))
    F.cross_entropy(logits, torch.arange(4)).backward()
    # A BatchNorm removes the mean again that the bias of the convolution before it (VGG's) adds.
    cancelled = {f"{path}.bias" for path, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    for path, parameter in model.named_parameters():
        assert parameter.grad is not None, path
        assert torch.isfinite(parameter.grad).all(), path
        assert path in cancelled or parameter.grad.any(), path


@pytest.mark.parametrize("name", MODELS)
def test_every_batch_norm_runs_once_per_forward_pass(name: str) -> None:
    model = build(name)
    model(images())
    counts = {path: int(buffer) for path, buffer in model.named_buffers() if path.endswith("num_batches_tracked")}
    assert counts
    assert set(counts.values()) == {1}


@pytest.mark.parametrize("name", MODELS)
def test_channels_last_gives_the_same_numbers(name: str) -> None:
    model = build(name).eval()
    batch = images(16, 16, rows=2)
    with torch.no_grad():
        expected, expected_features = model(batch)
        model = model.to(memory_format=torch.channels_last)
        logits, features = model(batch.to(memory_format=torch.channels_last))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    for feat, other in zip(features["feats"], expected_features["feats"], strict=True):
        torch.testing.assert_close(feat, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", sorted(set(MODELS) - {"ShuffleV2"}))
def test_batch_norms_before_relu_fit_the_stages(name: str) -> None:
    model = build(name)
    assert [norm.num_features for norm in model.get_bn_before_relu()] == model.get_stage_channels()[1:]


def test_shufflenet_v2_has_no_batch_norm_that_covers_a_stage() -> None:
    with pytest.raises(ConfigError, match="stages each end in one BatchNorm .* but got ShuffleV2"):
        build("ShuffleV2").get_bn_before_relu()


@pytest.mark.parametrize("name", ["resnet8", "resnet24_1_1_9", "ResNet18", "ShuffleV1", "vgg8", "digits_teacher"])
def test_shifting_the_batch_norm_before_relu_shifts_the_preact_feat(name: str) -> None:
    model = build(name).eval()
    with torch.no_grad():
        _, before = model(images())
        model.get_bn_before_relu()[0].bias += 2.5
        _, after = model(images())
    torch.testing.assert_close(after["preact_feats"][1], before["preact_feats"][1] + 2.5)


@pytest.mark.parametrize("name", MODELS)
def test_feat_modules_hold_every_parameter_up_to_the_last_stage(name: str) -> None:
    model = build(name)
    _, features = model(images())
    features["feats"][-1].square().sum().backward()
    needed = {id(parameter) for parameter in model.parameters() if parameter.grad is not None}
    held = {id(parameter) for parameter in model.get_feat_modules().parameters()}
    assert held == needed


@pytest.mark.parametrize("name", ["digits_student", "wrn_10_1", "vgg8"])
def test_compiles_into_one_graph(name: str) -> None:
    model = build(name).eval()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images())[0], model(images())[0])


@pytest.mark.parametrize("name", MODELS)
def test_runs_under_bf16_autocast(name: str) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, _ = build(name)(images())
    assert logits.dtype == torch.bfloat16
    assert torch.isfinite(logits).all()


def test_digits_pair_has_maps_of_equal_size() -> None:
    digits = images(8, 8, channels=1)
    _, teacher = build("digits_teacher", in_channels=1)(digits)
    _, student = build("digits_student", in_channels=1)(digits)
    sizes = [tuple(feat.shape[2:]) for feat in teacher["feats"]]
    assert sizes == [tuple(feat.shape[2:]) for feat in student["feats"]] == [(8, 8), (4, 4), (2, 2)]


@pytest.mark.parametrize("name", ["ResNet18", "ResNet50"])
def test_four_stage_resnets_agree_with_torchvision_behind_its_own_stem(name: str) -> None:
    model = build(name).eval()
    reference = getattr(torchvision.models, name.lower())(num_classes=NUM_CLASSES)
    reference.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
    reference.maxpool = nn.Identity()
    renamed = {
        re.sub(r"^linear\.", "fc.", key).replace(".shortcut.", ".downsample."): value
        for key, value in model.state_dict().items()
    }
    reference.load_state_dict(renamed)
    with torch.no_grad():
        torch.testing.assert_close(model(images(rows=2))[0], reference.eval()(images(rows=2)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet8", "wrn_10_1", "MobileNetV2"])
def test_convolutions_start_with_variance_two_over_fan_out(name: str) -> None:
    convs = [m for m in build(name).modules() if isinstance(m, nn.Conv2d) and m.weight.numel() >= 2000]
    assert convs
    for conv in convs:
        fan_out = conv.out_channels * conv.kernel_size[0] * conv.kernel_size[1]
        assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.1)


class Net(nn.Module):
    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)


@pytest.mark.parametrize("name", ["fc", "linear", "classifier"])
def test_head_finds_a_linear_layer_under_each_name(name: str) -> None:
    layer = nn.Linear(3, 2)
    assert head(Net(other=nn.Linear(5, 5), **{name: layer})) is layer


@pytest.mark.parametrize("layers", [lambda fc: [fc], lambda fc: [nn.Dropout(), fc]], ids=["alone", "after dropout"])
def test_head_looks_into_a_sequence(layers) -> None:
    layer = nn.Linear(3, 2)
    assert head(Net(classifier=nn.Sequential(*layers(layer)))) is layer


@pytest.mark.parametrize(
    "model",
    [
        Net(conv=nn.Conv2d(1, 1, 1)),
        Net(fc=nn.Conv2d(1, 1, 1)),
        Net(output=nn.Linear(3, 2)),
        Net(classifier=nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))),
    ],
    ids=["none", "not linear", "other name", "two"],
)
def test_head_refuses_a_model_without_one(model: nn.Module) -> None:
    message = "Expected `model` to have one linear layer named fc, linear, classifier or inside classifier, but got Net"
    with pytest.raises(ConfigError, match=f"^{message}$"):
        head(model)
