"""Inner distillers to run the wrapper's invariants on: the embedded host's, and the awkward ones that forks have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.own_loop_cases import OWN_LOOP_BUILDERS
from tllm_plugin.core.outputs import logits_of
from tllm_plugin.hosts.embedded.distillers import AT, FitNet
from tllm_plugin.methods import CID, KD, SFTN, SRRL, Branch, Distiller, Vanilla
from tllm_plugin.models import FeatureNet, Tail, create_model

NUM_CLASSES = 6
IMAGE_SIZE = 8
#: Of every batch.
EPOCH = 3
#: Ends the names of a host's distillers that want two views.
TWO_VIEW_SUFFIX = " (two views)"


class TwoView(Distiller):
    """Calls both networks twice per step, like the multi-level fork, and returns the weak view's logits."""

    def losses(self, image_weak: Tensor, image_strong: Tensor, target: Tensor, **batch: Any) -> Any:
        weak, _ = self.student(image_weak)
        strong, _ = self.student(image_strong)
        with torch.no_grad():
            teacher_weak, _ = self.teacher(image_weak)
            teacher_strong, _ = self.teacher(image_strong)
        return weak, {
            "loss_ce": F.cross_entropy(weak, target) + F.cross_entropy(strong, target),
            "loss_kd": (weak - teacher_weak).pow(2).mean() + (strong - teacher_strong).pow(2).mean(),
        }


class TeacherInTrainMode(Distiller):
    """Overrides `train()`, as OFD does: its teacher's BatchNorm uses batch statistics."""

    def train(self, mode: bool = True) -> TeacherInTrainMode:
        nn.Module.train(self, mode)
        return self

    def losses(self, image: Tensor, target: Tensor, **batch: Any) -> Any:
        logits, _ = self.student(image)
        with torch.no_grad():
            teacher_logits, _ = self.teacher(image)
        return logits, {
            "loss_ce": F.cross_entropy(logits, target),
            "loss_kd": (logits - teacher_logits).abs().mean(),
        }


class OneElementLosses(Distiller):
    """Losses of shape (1,), as those of SP and CRD."""

    def losses(self, image: Tensor, target: Tensor, **batch: Any) -> Any:
        logits, features = self.student(image)
        with torch.no_grad():
            _, teacher_features = self.teacher(image)
        grams = [F.normalize(f["pooled_feat"] @ f["pooled_feat"].T) for f in (features, teacher_features)]
        return logits, {
            "loss_ce": F.cross_entropy(logits, target).reshape(1),
            "loss_kd": (grams[0] - grams[1]).pow(2).mean().reshape(1),
        }


class WantsKeywords(Distiller):
    """Uses per-row keywords and others that must arrive as they are; remembers what it was given."""

    def losses(self, image: Tensor, target: Tensor, **batch: Any) -> Any:
        self.given = batch
        logits, _ = self.student(image)
        with torch.no_grad():
            teacher_logits, _ = self.teacher(image)
        weight = batch["index"].to(logits.dtype).reshape(-1, 1)
        return logits, {
            "loss_ce": F.cross_entropy(logits, target),
            "loss_kd": (weight * (logits - teacher_logits)).pow(2).mean(),
        }


def networks(seed: int = 0) -> tuple[nn.Module, nn.Module]:
    """Return (student, teacher), seeded."""
    torch.manual_seed(seed)
    student = create_model("digits_student", num_classes=NUM_CLASSES, in_channels=1)
    teacher = create_model("digits_teacher", num_classes=NUM_CLASSES, in_channels=1)
    return student, teacher


def _kd(student: nn.Module, teacher: nn.Module) -> nn.Module:
    return KD(student, teacher, temperature=4.0, ce_weight=0.1, kd_weight=0.9)


def _at(student: nn.Module, teacher: nn.Module) -> nn.Module:
    return AT(student, teacher, power=2.0, ce_weight=1.0, feature_weight=100.0)


def _fitnet(student: nn.Module, teacher: nn.Module) -> nn.Module:
    size = (IMAGE_SIZE, IMAGE_SIZE)
    return FitNet(student, teacher, hint_layer=1, input_size=size, ce_weight=1.0, feature_weight=10.0)


def _srrl(student: nn.Module, teacher: nn.Module) -> nn.Module:
    return SRRL(student, teacher, student_channels=12, teacher_dim=48, teacher_head="fc", regression_weight=0.5)


def _cid(student: nn.Module, teacher: nn.Module) -> CID:
    dims = {"num_classes": NUM_CLASSES, "student_dim": 12, "teacher_dim": 48}
    return CID(student, teacher, **dims, warmup_epochs=EPOCH, sample_weight=2.0)


def _cid_with_context(student: nn.Module, teacher: nn.Module) -> nn.Module:
    """CID in the middle of a run: the context of an epoch is there, and the next one is being collected."""
    return give_context(_cid(student, teacher))


def give_context(distiller: CID) -> CID:
    """Let an epoch have passed, in which random features were collected."""
    distiller.warmup_epochs = EPOCH - 1
    generator = torch.Generator().manual_seed(3)
    rows, dim = 4 * NUM_CLASSES, distiller.student.context.shape[1]
    features, weight = torch.rand(rows, dim, generator=generator), torch.rand(rows, generator=generator)
    distiller.student.begin_epoch(EPOCH - 1, warmup_epochs=EPOCH - 1)
    distiller.student.collect(features, torch.arange(rows) % NUM_CLASSES, weight)
    distiller.student.begin_epoch(EPOCH, warmup_epochs=EPOCH - 1)
    return distiller


def _sftn(student: nn.Module, teacher: nn.Module) -> nn.Module:
    """The network in training is the teacher's; the student gives the branch after the first stage."""
    assert isinstance(student, FeatureNet)
    sizes = {"teacher_channels": 24, "student_channels": 8, "teacher_size": 4, "student_size": 4}
    return SFTN(teacher, [Branch(1, Tail(student, 1), **sizes)])


BUILDERS: dict[str, Callable[[nn.Module, nn.Module], nn.Module]] = {
    "KD": _kd,
    "AT": _at,
    "FITNET": _fitnet,
    "SRRL": _srrl,
    "CID": _cid_with_context,
    "CID_warmup": _cid,
    "SFTN": _sftn,
    "NONE": lambda student, teacher: Vanilla(student),
    "two_view": TwoView,
    "teacher_in_train_mode": TeacherInTrainMode,
    "one_element_losses": OneElementLosses,
    "wants_keywords": WantsKeywords,
    **OWN_LOOP_BUILDERS,
}
#: Losses are means over rows, so that a batch's total is the row-weighted sum of its parts'.
SEPARABLE = ("KD", "AT", "FITNET", "SRRL", "SFTN", "NONE", "wants_keywords", *OWN_LOOP_BUILDERS)
#: They have no teacher.
WITHOUT_TEACHER = ("NONE", "SFTN")
NAMES = sorted(BUILDERS)
WITH_TEACHER = [name for name in NAMES if name not in WITHOUT_TEACHER]
#: Their logits take no part in the losses of rows with a teacher.
WITHOUT_LABELS = ("CID_warmup",)


#: Distillers of other hosts, with their own networks, on colour images of 32 pixels; tests of hosts add to this.
HOST_BUILDERS: dict[str, Callable[[], nn.Module]] = {}


def build(name: str, seed: int = 0) -> nn.Module:
    """Return a new distiller in training mode, the same for the same seed."""
    if name in HOST_BUILDERS:
        torch.manual_seed(seed)
        return HOST_BUILDERS[name]().train()
    student, teacher = networks(seed)
    return BUILDERS[name](student, teacher).train()


def batch(name: str, rows: int = 12, seed: int = 1) -> dict[str, Any]:
    """Return the keywords of one training call; labels run through the classes in turn."""
    generator = torch.Generator().manual_seed(seed)

    shape = (3, 32, 32) if name in HOST_BUILDERS else (1, IMAGE_SIZE, IMAGE_SIZE)

    def images() -> Tensor:
        return torch.randn(rows, *shape, generator=generator)

    two_view = name == "two_view" or name.endswith(TWO_VIEW_SUFFIX)
    views = {"image_weak": images(), "image_strong": images()} if two_view else {"image": images()}
    return {
        **views,
        "target": torch.arange(rows) % NUM_CLASSES,
        "index": torch.arange(rows) + 1,
        "contrastive_index": torch.randint(100, (rows, 5), generator=generator),
        "epoch": EPOCH,
        "class_weights": torch.ones(NUM_CLASSES + 50),
        "note": "as it is",
    }


def trained_parameters(wrapper: Any) -> list[nn.Parameter]:
    """Return the learnable parameters that a backward pass is to reach; CID's context head waits for a context."""
    held = {id(parameter) for parameter in getattr(wrapper.student, "held_parameters", list)()}
    return [parameter for parameter in wrapper.get_learnable_parameters() if id(parameter) not in held]


def unreached(distiller: Any, loss: str, image_size: int = 32, rows: int = 4) -> set[str]:
    """Return the student's parameters that a loss gives no gradient, or one of zeros."""
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(rows, 3, image_size, image_size, generator=generator)
    _, losses = distiller.train()(image=image, target=torch.arange(rows) % 3, epoch=EPOCH)
    distiller.zero_grad(set_to_none=True)
    losses[loss].backward()
    # A BatchNorm removes the mean again that the bias of the convolution before it (VGG's) adds.
    cancelled = {f"{path}.bias" for path, module in distiller.student.named_modules() if isinstance(module, nn.Conv2d)}
    return {
        path
        for path, parameter in distiller.student.named_parameters()
        if parameter.grad is None or (path not in cancelled and not bool(parameter.grad.any()))
    }


def first_image(keywords: dict[str, Any]) -> Tensor:
    """Return the images that the returned logits belong to."""
    return keywords["image"] if "image" in keywords else keywords["image_weak"]


def expected_logits(distiller: nn.Module, keywords: dict[str, Any]) -> Tensor:
    """Return the logits of a distiller's student on the whole batch, computed without the distiller."""
    image = first_image(keywords)
    prepared = distiller.prepare(image) if hasattr(distiller, "prepare") else image
    output = distiller.student(prepared)
    return distiller.pick(output) if hasattr(distiller, "pick") else logits_of(output)


def named(losses: Any) -> dict[str, Tensor]:
    """Return losses by name, also where there is one tensor only."""
    return {"loss_ce": losses} if isinstance(losses, Tensor) else losses


def total(losses: dict[str, Tensor] | Tensor) -> Tensor:
    """Return the sum of the means of all losses, a 0-dim tensor."""
    return torch.stack([loss.mean() for loss in named(losses).values()]).sum()


class Calls:
    """Hook that keeps the input of every call of a network, but not of copies of it."""

    def __init__(self, network: nn.Module) -> None:
        self.inputs: list[Tensor] = []
        self.network = network
        network.register_forward_pre_hook(self)

    def __call__(self, module: nn.Module, args: Any) -> None:
        if module is self.network:
            self.inputs.append(args[0])

    def __deepcopy__(self, memo: Any) -> Calls:
        return self


def replica_of(module: nn.Module) -> Any:
    """Return a replica as `nn.DataParallel` makes them, on the same device."""
    replica = module._replicate_for_data_parallel()
    replica._parameters, replica._buffers = dict(module._parameters), dict(module._buffers)
    for key, child in module._modules.items():
        replica._modules[key] = replica_of(child) if child is not None else None
        object.__setattr__(replica, key, replica._modules[key])
    return replica
