"""Networks for CIFAR, ImageNet and handwritten digits, created by name; all return logits and features alike.

    logits, features = create_model("resnet20", num_classes=100)(images)

`features` holds `feats`, `preact_feats`, `pooled_map` and `pooled_feat`; parameter names and shapes are those of the
hosts' models, so that their published checkpoints load.
"""

from tllm_plugin.models import (  # noqa: F401  (importing a family registers its models)
    cifar_resnet,
    foreign,
    mobilenetv1,
    mobilenetv2,
    resnet_four_stage,
    shufflenet,
    tiny,
    torchvision_nets,
    vgg,
    wrn,
)
from tllm_plugin.models.features import FeatureNet, Features, head, head_name
from tllm_plugin.models.foreign import InputConfig, import_timm, input_config
from tllm_plugin.models.registry import (
    FAMILIES,
    MODELS,
    ModelBuilder,
    create_model,
    is_model,
    model_builder,
    model_names,
    model_problem,
)
from tllm_plugin.models.tail import Tail, map_shapes
from tllm_plugin.models.torchvision_nets import load_pretrained

__all__ = [
    "FAMILIES",
    "MODELS",
    "FeatureNet",
    "Features",
    "InputConfig",
    "ModelBuilder",
    "Tail",
    "create_model",
    "head",
    "head_name",
    "import_timm",
    "input_config",
    "is_model",
    "load_pretrained",
    "map_shapes",
    "model_builder",
    "model_names",
    "model_problem",
]
