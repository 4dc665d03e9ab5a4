"""Networks of timm and torchvision by name, `timm:NAME` and `torchvision:NAME`, with the features that distillers want.

A network keeps its modules, parameter names and computation, so that weights that either library saved load, and its
own state_dict loads there. Its class gets a `forward` that returns features beside the logits: the outputs of its
stages where these are maps, and the input of its last layer.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torchvision
from torch import Tensor, nn

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.core.outputs import logits_of
from tllm_plugin.models.registry import FAMILIES, ModelBuilder
from tllm_plugin.models.torchvision_nets import replace_stem

TIMM, TORCHVISION = "timm:", "torchvision:"
_NEAREST = 5
#: Class of a library -> the class with features.
_KINDS: dict[Any, type[nn.Module]] = {}


@dataclass(frozen=True)
class InputConfig:
    """How a network of a library wants its images.

    Args:
        image_size: Height and width, in pixels.
        mean: Per channel, of pixels in [0, 1].
        std: Likewise.
    """

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Outputs(dict[str, Any]):
    """The features of a network, with a plain error for one that the network does not have."""

    def __missing__(self, key: str) -> Any:
        raise ConfigError(
            f"Expected a network that returns `{key}` for this method, but its library has no feature maps of it; "
            "choose a method that works on logits, such as KD, or another network"
        )


class FeaturedNetwork(nn.Module):
    """Mixin that adds features to the outputs of a network of either library."""

    #: Modules whose outputs are the stages, and the channels of each; 0: not known.
    feature_modules: tuple[tuple[str, int], ...]
    #: Name of the last linear layer; empty if there is no single one.
    classifier_name: str

    def forward(self, images: Tensor) -> tuple[Tensor, Outputs]:
        """Return unnormalised logits (N, num_classes) and the features of `images` (N, in_channels, H, W)."""
        kept: dict[str, Tensor] = {}
        handles = [
            self.get_submodule(name).register_forward_hook(partial(_keep_output, kept, name))
            for name, _ in self.feature_modules
        ]
        if self.classifier_name:
            last = self.get_submodule(self.classifier_name)
            handles.append(last.register_forward_pre_hook(partial(_keep_input, kept)))
        try:
            logits = logits_of(super().forward(images))
        finally:
            for handle in handles:
                handle.remove()
        features = Outputs()
        pooled = kept.pop("", None)
        if pooled is not None and pooled.dim() == 2:
            features["pooled_feat"] = pooled
        # Of several modules of one resolution the last one is the stage.
        found = [_as_map(kept.get(name), channels) for name, channels in self.feature_modules]
        maps = {stage.shape[-1]: stage for stage in found if stage is not None}
        if maps:
            features["feats"] = features["preact_feats"] = list(maps.values())
        return logits, features


def _keep_output(kept: dict[str, Tensor], name: str, module: nn.Module, inputs: Any, output: Any) -> None:
    kept[name] = output


def _keep_input(kept: dict[str, Tensor], module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    kept[""] = inputs[0]


def _as_map(output: Any, channels: int) -> Tensor | None:
    """Return an output as (N, channels, H, W); None if it is no map."""
    if not isinstance(output, Tensor) or output.dim() != 4:
        return None
    if channels and output.shape[1] != channels and output.shape[-1] == channels:
        return output.permute(0, 3, 1, 2)
    return output


def _featured(network: nn.Module, stages: tuple[tuple[str, int], ...], classifier: nn.Module | None) -> nn.Module:
    """Give a network the `forward` of `FeaturedNetwork`; its state_dict stays as it is."""
    modules = dict(network.named_modules())
    network.feature_modules = tuple(stage for stage in stages if stage[0] in modules)  # type: ignore[assignment]
    names = [name for name, module in modules.items() if module is classifier and isinstance(module, nn.Linear)]
    network.classifier_name = names[0] if names else ""  # type: ignore[assignment]
    network.__class__ = _KINDS.setdefault(type(network), _kind(type(network)))
    return network


def _kind(kind: type[nn.Module]) -> type[nn.Module]:
    return type(kind.__name__, (FeaturedNetwork, kind), {"__module__": __name__})


def _build_timm(name: str, *, num_classes: int, in_channels: int = 3) -> nn.Module:
    timm = import_timm(TIMM + name)
    network = timm.create_model(name, pretrained=False, num_classes=num_classes, in_chans=in_channels)
    stages = tuple((str(stage.get("module", "")), int(stage["num_chs"])) for stage in _stages_of(network))
    return _featured(network, stages, network.get_classifier())


def _stages_of(network: Any) -> list[dict[str, Any]]:
    return [dict(stage) for stage in getattr(network, "feature_info", ())]


def _build_torchvision(name: str, *, num_classes: int, in_channels: int = 3) -> nn.Module:
    network = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    if in_channels != 3:
        replace_stem(network, in_channels)
    names = [child for child, _ in network.named_children()]
    if "layer4" in names:
        stages = ["relu", *(child for child in names if child.startswith("layer"))]
    elif "features" in names and not isinstance(network, torchvision.models.SwinTransformer):
        stages = [f"features.{child}" for child, _ in network.features.named_children()]
    else:
        stages = []
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    last = next((module for module in reversed(linear) if module.out_features == num_classes), None)
    return _featured(network, tuple((stage, 0) for stage in stages), last)


def import_timm(what: str) -> Any:
    """Return timm.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import timm
        import timm.data
    except ImportError as error:
        raise ConfigError(
            f"Expected timm to be installed for {what}, but {error}; pip install timm brings it"
        ) from error
    return timm


def _known(library: str) -> list[str]:
    """Return the names of all networks for image classification of a library."""
    if library == TORCHVISION:
        return list(torchvision.models.list_models(module=torchvision.models))
    names: list[str] = import_timm(TIMM).list_models()
    return names


def _family(library: str, build: Callable[..., nn.Module], name: str) -> ModelBuilder | None:
    """Resolve a name for `FAMILIES`.

    Raises:
        ConfigError: The library has no such network, or is not installed.
    """
    if not name.startswith(library):
        return None
    bare = name.removeprefix(library)
    timm_knows = library == TIMM and import_timm(name).is_model(bare)
    if not timm_knows and bare not in _known(library):
        near = difflib.get_close_matches(bare, _known(library), n=_NEAREST)
        raise ConfigError(
            f"Expected a network of {library.rstrip(':')}, but got {bare!r}; similar names: {', '.join(near) or 'none'}"
        )
    return partial(build, bare)


FAMILIES.register("timm:<name>")(partial(_family, TIMM, _build_timm))
FAMILIES.register("torchvision:<name>")(partial(_family, TORCHVISION, _build_torchvision))


def input_config(name: str) -> InputConfig | None:
    """Return how a network of timm or torchvision wants its images; None for other names.

    timm: its data config. torchvision: the transforms of its default weights.

    >>> input_config("torchvision:resnet18").image_size
    224
    """
    if name.startswith(TIMM):
        timm = import_timm(name)
        found = timm.get_pretrained_cfg(name.removeprefix(TIMM), allow_unregistered=True)
        config = timm.data.resolve_data_config({}, pretrained_cfg=found.to_dict() if found is not None else {})
        return InputConfig(int(config["input_size"][-1]), tuple(config["mean"]), tuple(config["std"]))
    if name.startswith(TORCHVISION):
        weights = torchvision.models.get_model_weights(name.removeprefix(TORCHVISION))
        how = next(iter(weights)).transforms()
        return InputConfig(int(how.crop_size[0]), tuple(how.mean), tuple(how.std))
    return None
