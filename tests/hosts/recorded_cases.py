"""Configs whose names and recorded runs the version of `tests/hosts/recorded` has written down; and what is asked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from tllm_plugin.hosts.config_checks import flat
from tllm_plugin.hosts.embedded.defaults import default_config
from tllm_plugin.hosts.embedded.prerequisites import experiment_name, named_reference, needed_teacher
from tllm_plugin.hosts.repdistiller.arguments import split_arguments
from tllm_plugin.hosts.run_spec import MARKS_OF_OTHER_HOSTS, ONE_BEGINNING, ONE_METHOD, ONE_RUN, Mark, RunSpec
from tllm_plugin.hosts.tllm_node import tllm_node
from tllm_plugin.search.embedded import EmbeddedSearch
from tllm_plugin.search.mdistiller import MdistillerSearch
from tllm_plugin.search.repdistiller import RepDistillerSearch
from tllm_plugin.search.space import Dimension, with_values

RECORDED = Path(__file__).parent / "recorded"
ETA = "TLLM.DETECTOR.ETA"
SPACE = (Dimension(ETA, (0.02, 0.05)),)

#: Values that differ from the defaults, by what they are about.
EMBEDDED: dict[str, dict[str, Any]] = {
    "defaults": {},
    "kd": {"DISTILLER.TYPE": "KD", "SOLVER.TRAINER": "tllm"},
    "kd, seed 1, named": {"DISTILLER.TYPE": "KD", "EXPERIMENT.SEED": 1, "EXPERIMENT.NAME": "mine"},
    "folder": {
        "DATASET.TYPE": "imagefolder",
        "DATASET.PATH": "/data/birds",
        "DATASET.CLASS_ORDER": "natural",
        "DATASET.MEAN": [0.5, 0.5, 0.5],
        "DATASET.STD": [0.2, 0.2, 0.2],
        "DATASET.NUM_WORKERS": 8,
        "DISTILLER.TYPE": "SRRL",
        "DISTILLER.TEACHER": "resnet20",
        "DISTILLER.STUDENT": "resnet8",
        "DISTILLER.TEACHER_EPOCHS": 7,
        "SOLVER.TRAINER": "tllm",
        "SOLVER.LR_DECAY_STAGES": [3, 5],
    },
    "sftn": {
        "DISTILLER.TYPE": "KD",
        "DISTILLER.TEACHER_STAGE": "SFTN",
        "SOLVER.TRAINER": "tllm",
        "SFTN.LOSS.KL_WEIGHT": 2.0,
    },
    "machine": {
        "DISTILLER.TYPE": "KD",
        "SOLVER.TRAINER": "tllm",
        "SOLVER.ACCUMULATE": 2,
        "RUNTIME.DEVICE": "cpu",
        "RUNTIME.PRECISION": "bfloat16",
        "RUNTIME.DETERMINISTIC": False,
        "RUNTIME.SYNC_BATCHNORM": True,
        "LOG.SAVE_SECONDS": 2.0,
        "LOG.TEST_FREQ": 0,
    },
    "pretrained": {"DISTILLER.TYPE": "KD", "SOLVER.TRAINER": "tllm", "DISTILLER.PRETRAINED": True},
    "named teacher": {"DISTILLER.TYPE": "CID", "DISTILLER.TEACHER_CHECKPOINT": "/t/last.pth"},
    "treated": {
        "DISTILLER.TYPE": "KD",
        "SOLVER.TRAINER": "tllm",
        "TLLM.BALANCE": False,
        "TLLM.DETECTOR.CONFIDENCE": 0.9,
    },
    "hold-outs": {
        "DISTILLER.TYPE": "KD",
        "SOLVER.TRAINER": "tllm",
        "TLLM.HOLDOUT.SEED": 3,
        "TLLM.HOLDOUT.SEARCH_FRACTION": 0.1,
    },
}
MDISTILLER: dict[str, dict[str, Any]] = {
    "as it is": {},
    "other workers": {"DATASET.NUM_WORKERS": 7},
    "named": {"EXPERIMENT.NAME": "mine", "EXPERIMENT.PROJECT": "q", "LOG.SAVE_CHECKPOINT_FREQ": 7},
    "fork's own": {"MLKD.WEIGHT": 2.0},
    "treated": {"TLLM.LABEL_SMOOTHING": 0.2, "TLLM.HOLDOUT.FRACTION": 0.1},
}
REPDISTILLER: dict[str, tuple[str, ...]] = {
    "plain": ("--path_t", "/t/last.pth", "--distill", "kd", "-r", "0.1", "-a", "0.9"),
    "more": (
        "--path_t",
        "/t/last.pth",
        "--model_s",
        "resnet8",
        "--tllm_eta",
        "0.1",
        "--tllm_seed",
        "3",
        "--epochs",
        "5",
    ),
    "folder": ("--path_t", "/t/last.pth", "--dataset", "imagefolder", "--data_folder", "/d", "--tllm_holdout", "0.1"),
}


def embedded_config(values: Mapping[str, Any]) -> CfgNode:
    """Return the embedded host's defaults with some values changed."""
    return with_values(default_config(), values)


def fork_config(values: Mapping[str, Any]) -> CfgNode:
    """Return the config of a host with nodes that are not ours."""
    cfg = CfgNode()
    cfg.EXPERIMENT = CfgNode({"PROJECT": "p", "NAME": "", "TAG": "t"})
    cfg.DATASET = CfgNode({"TYPE": "cifar100", "NUM_WORKERS": 2, "TEST": CfgNode({"BATCH_SIZE": 64})})
    cfg.DISTILLER = CfgNode({"TYPE": "MLKD", "TEACHER": "a", "STUDENT": "b", "TEACHER_CHECKPOINT": ""})
    cfg.SOLVER = CfgNode({"EPOCHS": 3, "TRAINER": "tllm", "LR": 0.05, "LR_DECAY_STAGES": [150, 180]})
    cfg.LOG = CfgNode({"PREFIX": "output", "TENSORBOARD_FREQ": 500, "SAVE_CHECKPOINT_FREQ": 40, "WANDB": False})
    size = (32, 32)  # One object in two places is written as an anchor and an alias.
    cfg.MLKD = CfgNode({"WEIGHT": 1.0, "SIZE": size})
    cfg.HINT = CfgNode({"SIZE": size, "EMPTY": CfgNode()})
    cfg.TLLM = tllm_node()
    return with_values(cfg, values)


def names_of_embedded(values: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the names of everything that a config leads to."""
    cfg = embedded_config(values)
    search = EmbeddedSearch(cfg, SPACE)
    teacher, (_, vanilla) = needed_teacher(cfg), named_reference(cfg)
    return {
        "run": experiment_name(cfg),
        "teacher": None if teacher is None else teacher.EXPERIMENT.NAME,
        "vanilla": None if vanilla is None else vanilla.EXPERIMENT.NAME,
        "search": search.folder.as_posix(),
        "trial": search.run_of({ETA: 0.02}).log_folder.name,
        "final": search.final({ETA: 0.02}).EXPERIMENT.NAME,
    }


def names_of_fork(values: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the names of a search in a host of mdistiller's kind."""
    search = MdistillerSearch(fork_config(values), SPACE)
    return {"search": search.folder.as_posix(), "trial": search.run_of({ETA: 0.02}).log_folder.name}


def names_of_repdistiller(words: tuple[str, ...]) -> dict[str, str | None]:
    """Return the names of a search in RepDistiller."""
    search = RepDistillerSearch(split_arguments(words)[0], SPACE, Path("/host"))
    return {"search": search.folder.name, "trial": search.run_of({ETA: 0.02}).log_folder.name}


def all_names() -> dict[str, dict[str, dict[str, str | None]]]:
    """Return the names of all cases, by host."""
    return {
        "embedded": {name: names_of_embedded(values) for name, values in EMBEDDED.items()},
        "mdistiller": {name: names_of_fork(values) for name, values in MDISTILLER.items()},
        "repdistiller": {name: names_of_repdistiller(words) for name, words in REPDISTILLER.items()},
    }


def another(key: str, value: Any) -> Any:
    """Return another value for a key."""
    named = {"DISTILLER.TYPE": "AT", "TLLM.DETECTOR.TYPE": "all", "SOLVER.TRAINER": "base"}
    if key in named:
        return named[key]
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    return f"{value}x" if isinstance(value, str) else [*value, 7]


def answers_of_embedded(key: str) -> list[str]:
    """Return what is another thing, by the words of `keys.json`, where a key has another value."""
    taught, unflagged = {"DISTILLER.TYPE": "KD", "SOLVER.TRAINER": "tllm"}, {"TLLM.DETECTOR.TYPE": "none"}
    changed = {key: another(key, dict(flat(default_config()))[key])}
    # As a run writes it down, and as the next command reads the config.
    old, new = RunSpec.parse(embedded_config(taught).dump()), RunSpec.of(embedded_config({**taught, **changed}))
    answers = _differing(old, new)
    if old.differing(new, ONE_RUN):
        answers.append("resume")
    for name, kind in (("vanilla", unflagged), ("taught", {**taught, **unflagged})):
        old, new = RunSpec.of(embedded_config(kind)), RunSpec.of(embedded_config({**kind, **changed}))
        if any(old.reads(name) or new.reads(name) for name in old.differing(new, ONE_RUN)):
            answers.append(f"reuse {name}")
    before, after = names_of_embedded(taught), names_of_embedded({**taught, **changed})
    answers += [name for name in ("run", "teacher", "vanilla") if before[name] != after[name]]
    sftn = {**taught, "DISTILLER.TEACHER_STAGE": "SFTN"}
    if names_of_embedded(sftn)["teacher"] != names_of_embedded({**sftn, **changed})["teacher"]:
        answers.append("sftn teacher")
    return sorted(answers + _differing_names(before, after))


def answers_of_fork(key: str) -> list[str]:
    """Return the same for a host of mdistiller's kind."""
    changed = {key: another(key, dict(flat(fork_config({})))[key])}
    old = RunSpec.parse(fork_config({}).dump(), MARKS_OF_OTHER_HOSTS)
    answers = _differing(old, RunSpec.of(fork_config(changed), MARKS_OF_OTHER_HOSTS))
    return sorted(answers + _differing_names(names_of_fork({}), names_of_fork(changed)))


def _differing(old: RunSpec, new: RunSpec) -> list[str]:
    questions = {"share": ONE_BEGINNING, "treatment": frozenset({Mark.TREATMENT}), "method": ONE_METHOD}
    return [name for name, marks in questions.items() if old.differing(new, marks)]


def _differing_names(before: Mapping[str, str | None], after: Mapping[str, str | None]) -> list[str]:
    digests = [str(names["search"]).partition("-search-")[2] for names in (before, after)]
    differing = {"search": digests[0] != digests[1], "trial": before["trial"] != after["trial"]}
    return [name for name, differs in differing.items() if differs]
