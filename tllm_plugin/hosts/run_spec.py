"""Settings of a run and the effect of each key; this module defines when two runs are the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from typing import Any

import yaml
from yacs.config import CfgNode

from tllm_plugin.core.errors import ConfigError, FileFormatError
from tllm_plugin.hosts.config_checks import flat
from tllm_plugin.hosts.embedded.defaults import default_config
from tllm_plugin.hosts.options import first_spelling, renamed, table
from tllm_plugin.hosts.yaml_text import plain, read_yaml
from tllm_plugin.runs.run_folder import RunFolder


class Mark(Enum):
    """Effect of a key on a run."""

    TRAINING = "changes the weights of every run"
    TEACHING = "changes the weights of a run with a teacher"
    DETECTION = "decides when a class is flagged"
    TREATMENT = "decides what is done with flagged classes"
    REPETITION = "gives another repetition of the same method"
    PLACE = "names or locates something"
    LOOK = "changes only the logging and the speed of a run"


#: Mark of every key or section: dotted keys of configs, names of RepDistiller's options.
MARKS: dict[str, Mark] = {
    key: mark
    for mark, keys in {
        Mark.TRAINING: (
            *("DATASET.TYPE", "DATASET.IMAGE_SIZE", "DATASET.CLASS_ORDER", "DATASET.MEAN", "DATASET.STD"),
            *("DISTILLER.TYPE", "DISTILLER.STUDENT", "DISTILLER.PRETRAINED", "SOLVER"),
            *("TLLM.ON", "TLLM.TRAINER", "TLLM.HOLDOUT", "TLLM.VIEWS"),
        ),
        Mark.TEACHING: (
            *("DISTILLER.TEACHER", "DISTILLER.TEACHER_STAGE", "DISTILLER.TEACHER_EPOCHS", "DISTILLER.PLANT"),
            *("TLLM.DISTILLER", "TLLM.POLICY", "TLLM.POLICY_OPTIONS", "KD", "AT", "FITNET", "SRRL", "CID", "SFTN"),
        ),
        Mark.DETECTION: ("TLLM.DETECTOR",),
        Mark.TREATMENT: ("TLLM.LABEL_SMOOTHING", "TLLM.CE_WEIGHT", "TLLM.BALANCE", "TLLM.MIN_ROWS"),
        # Seeds of a method may have different teachers. Checkpoints are compared by their path only.
        Mark.REPETITION: (
            *("EXPERIMENT.SEED", "RUNTIME", "TLLM.SPEED", "TLLM.MEMORY"),
            *("DATASET.TEST", "DISTILLER.TEACHER_CHECKPOINT"),
            *("tllm_seed", "tllm_speed", "tllm_memory", "trial", "num_workers"),
        ),
        # The contents of the data and of the reference are compared instead.
        Mark.PLACE: (
            *("EXPERIMENT.PROJECT", "EXPERIMENT.NAME", "EXPERIMENT.TAG", "LOG.PREFIX"),
            *("DATASET.PATH", "TLLM.DETECTOR.REFERENCE", "path_t", "data_folder", "tllm_reference"),
            *("model_path", "model_name", "tb_path", "tb_folder", "save_folder"),
        ),
        Mark.LOOK: (
            *("LOG", "DATASET.DOWNLOAD", "DATASET.NUM_WORKERS"),
            *("print_freq", "tb_freq", "save_freq", "tllm_resume"),
        ),
    }.items()
    for key in keys
}
_SECTIONS = frozenset(key.partition(".")[0] for key in MARKS)
#: In the other hosts, loader workers draw the random numbers of the augmentation.
MARKS_OF_OTHER_HOSTS = {**MARKS, "DATASET.NUM_WORKERS": Mark.REPETITION}

#: Marks whose keys must agree to resume a run or to reuse a finished one.
ONE_RUN = frozenset(Mark) - {Mark.PLACE, Mark.LOOK}
#: Marks whose keys must agree between seeds of one method, and between copies of one run.
ONE_METHOD = ONE_RUN - {Mark.REPETITION}
#: Marks whose keys must agree between all trials of a search, and between any two runs before the first flag.
ONE_BEGINNING = ONE_RUN - {Mark.DETECTION, Mark.TREATMENT}

# Keys that were added later, with the value that corresponds to the earlier behaviour. A key at this value is omitted
# from names, so that existing runs are found. New keys belong in the second table; names of searches contain the keys
# of the first table, which are older than these names.
_OLDER_THAN_SEARCHES: dict[str, Any] = {
    "SOLVER.ACCUMULATE": 1,
    "TLLM.BALANCE": False,
    "RUNTIME.SYNC_BATCHNORM": False,
}
_YOUNGER: dict[str, Any] = {
    "LOG.SAVE_SECONDS": 0.0,
    "LOG.TO": ["tensorboard"],
    "RUNTIME.DETERMINISTIC": True,
    "DATASET.CLASS_ORDER": "",
    "DATASET.MEAN": [],
    "DATASET.STD": [],
    "SOLVER.WARMUP_EPOCHS": 0,
    "SOLVER.LEAST_LR": 0.0,
    "SOLVER.BETAS": [0.9, 0.999],
    "SOLVER.EMA_DECAY": 0.0,
    "TLLM.ON": False,
    "TLLM.POLICY": "",
    "TLLM.POLICY_OPTIONS.LEVEL": "mean",
    "TLLM.POLICY_OPTIONS.SEED": 0,
    "TLLM.SPEED": "off",
    "TLLM.VIEWS": 0,
    "TLLM.MEMORY": 2.0,
    "TLLM.DETECTOR.PROBABILITY": 0.95,
}
_BEFORE = {**_OLDER_THAN_SEARCHES, **_YOUNGER}


@dataclass(frozen=True)
class RunSpec:
    """Settings of a run: the config of the embedded host or of mdistiller, or the options of RepDistiller.

    Args:
        values: Recorded values by dotted key; empty if the host recorded nothing.
        marks: Mark of each of the host's keys.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    marks: Mapping[str, Mark] = field(default_factory=lambda: MARKS, repr=False)

    @classmethod
    def of(cls, cfg: CfgNode, marks: Mapping[str, Mark] = MARKS) -> RunSpec:
        """Create the settings from a config."""
        return cls(dict(flat(cfg)), marks)

    @classmethod
    def of_options(cls, options: Mapping[str, Any]) -> RunSpec:
        """Create the settings from RepDistiller's options; a switch that is off equals one that does not exist yet."""
        told = renamed(options)
        return cls({key: value for key, value in told.items() if value is not None and value is not False})

    @classmethod
    def read(cls, run: RunFolder, marks: Mapping[str, Mark] = MARKS) -> RunSpec:
        """Read the settings from the `config.yaml` of a run; empty if there is no such file.

        Raises:
            FileFormatError: The file cannot be read, or a part of it is missing.
        """
        try:
            return cls.parse(run.read_config(), marks)
        except FileNotFoundError:
            return cls()
        except ConfigError as error:
            raise FileFormatError(f"Expected {run.config_yaml} to be the config of a run, but {error}") from error

    @classmethod
    def parse(cls, text: str, marks: Mapping[str, Mark] = MARKS) -> RunSpec:
        """Parse the settings from the text of a `config.yaml`.

        Raises:
            ConfigError: The text is not YAML, or does not consist of sections with keys.
        """
        content = _read(text)
        options = content.get("options")
        return cls.of_options(options) if isinstance(options, Mapping) else cls(dict(flat(content)), marks)

    def get(self, key: str, default: Any = None) -> Any:
        """Return the recorded value of a key, or `default`."""
        return self.values.get(key, default)

    def value(self, key: str) -> Any:
        """Return the effective value of a key: recorded, else the value of versions without it, else the default."""
        return self.values[key] if key in self.values else _defaults().get(key)

    def mark(self, key: str) -> Mark:
        """Return the mark of a key; unknown keys count as TRAINING, unknown sections as options of a method."""
        name = key
        while name:
            if name in self.marks:
                return self.marks[name]
            name = name.rpartition(".")[0]
        section, dot, _ = key.partition(".")
        return Mark.TEACHING if dot and section not in _SECTIONS else Mark.TRAINING

    def differing(self, other: RunSpec, marks: frozenset[Mark]) -> list[str]:
        """Return the sorted keys with one of `marks` in which two runs differ."""
        keys = {*self.values, *other.values}
        return sorted(
            key for key in keys if self.mark(key) in marks and _listed(self.value(key)) != _listed(other.value(key))
        )

    def reads(self, key: str) -> bool:
        """Return whether this kind of run reads a key; runs without a teacher or a detector do not read their keys."""
        mark = self.mark(key)
        of_teaching = mark is Mark.TEACHING or key == "DISTILLER.TEACHER_CHECKPOINT"
        if of_teaching and self.get("DISTILLER.TYPE") == "NONE":
            return False
        of_flags = mark is Mark.TREATMENT or key.startswith("TLLM.DETECTOR.")
        return not of_flags or key == "TLLM.DETECTOR.TYPE" or self.get("TLLM.DETECTOR.TYPE") != "none"

    @property
    def is_embedded(self) -> bool:
        """Whether the sections are those of a config of the embedded host."""
        return bool(self.values) and {key.partition(".")[0] for key in self.values} <= set(default_config())

    def config(self) -> CfgNode:
        """Return a frozen config of the embedded host; keys that were not recorded get the result of `value`."""
        cfg = default_config()
        before = {key: _BEFORE[key] for key, _ in flat(cfg) if key in _BEFORE}
        for key, value in {**before, **self.values}.items():
            *sections, name = key.split(".")
            node = cfg
            for section in sections:
                node = node.setdefault(section, CfgNode())
            if value != {}:
                node[name] = value
        cfg.freeze()
        return cfg

    def prerequisite_digest(self, model: str) -> str:
        """Return an 8-character digest of everything that determines the result of a run without flags.

        Args:
            model: Name of the network that is trained.
        """
        depends_on = {
            "data": dict(self._named("DATASET")),
            "solver": self._named("SOLVER"),
            "runtime": self._named("RUNTIME"),
            "holdout": self._named("TLLM.HOLDOUT"),
            "trainer": self.values["TLLM.TRAINER"],
            "model": model,
            "seed": self.values["EXPERIMENT.SEED"],
        }
        if self.values["DISTILLER.PRETRAINED"]:
            depends_on["pretrained"] = True
        if self.values["DISTILLER.TYPE"] == "SFTN":
            depends_on["sftn"] = {"student": self.values["DISTILLER.STUDENT"], "node": self._named("SFTN")}
        given = {key: self.values.get(key, _YOUNGER[key]) for key in ("TLLM.SPEED", "TLLM.VIEWS")}
        depends_on |= {key: value for key, value in given.items() if value != _YOUNGER[key]}
        return digest(str(depends_on))

    def beginning_digest(self, instead: RunSpec | None = None) -> str:
        """Return an 8-character digest of the settings that all trials of a search share.

        Args:
            instead: Settings that supply the values of all other keys; without it these keys are omitted.
        """
        others = {} if instead is None else instead.values
        values = {key: value if self._names(key) else others.get(key) for key, value in self.values.items()}
        return _digest_of({key: value for key, value in values.items() if self._names(key) or key in others})

    def trial_digest(self, reference: str = "") -> str:
        """Return an 8-character digest of all settings in which trials may differ.

        Args:
            reference: Digest of the detector's reference, if the config names one.
        """
        told = {key.removeprefix("TLLM."): value for key, value in self.values.items() if key.startswith("TLLM.")}
        return _digest_of(told, "TLLM.", reference)

    def _named(self, section: str) -> CfgNode:
        prefix = f"{section}."
        return CfgNode(
            _nested(
                {
                    key.removeprefix(prefix): value
                    for key, value in self.values.items()
                    if key.startswith(prefix) and self._names(key) and not _as_before(key, value, _BEFORE)
                }
            )
        )

    def _names(self, key: str) -> bool:
        # The data cannot be compared before they are read.
        return self.mark(key) in ONE_BEGINNING or key == "DATASET.PATH"


def digest(text: str | bytes) -> str:
    """Return an 8-character digest of a text for use in folder names."""
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()[:8]


def _digest_of(values: Mapping[str, Any], prefix: str = "", added: str = "") -> str:
    # A nested copy, because YAML writes an object that occurs twice as an anchor and an alias.
    full = {f"{prefix}{key}": value for key, value in values.items()}
    kept = first_spelling({key: value for key, value in full.items() if not _as_before(key, value, _YOUNGER)})
    return digest(yaml.safe_dump(_nested({key.removeprefix(prefix): value for key, value in kept.items()})) + added)


def _as_before(key: str, value: Any, before: Mapping[str, Any]) -> bool:
    return key in before and before[key] == value


@lru_cache(maxsize=64)  # A search compares the same runs many times, and YAML is slow.
def _read(text: str) -> Mapping[str, Any]:
    content = plain(read_yaml(text))
    if not isinstance(content, dict) or not content:
        raise ConfigError("Expected sections with keys, but there are none")
    known = default_config()
    if set(content) <= set(known):
        _check_sections(content, known)
    return renamed(content)


def _check_sections(content: Mapping[str, Any], known: CfgNode, prefix: str = "") -> None:
    for key in content.keys() & known.keys():
        value, is_section = content[key], isinstance(known[key], CfgNode)
        if isinstance(value, Mapping) != is_section:
            wanted = "a section" if is_section else "a value"
            raise ConfigError(f"Expected `{prefix}{key}` to be {wanted}, but it is not")
        if is_section:
            _check_sections(value, known[key], f"{prefix}{key}.")


@lru_cache(maxsize=1)
def _defaults() -> Mapping[str, Any]:
    by_key = {**dict(flat(default_config())), **_BEFORE}
    # In RepDistiller, options have the names of flags.
    by_flag = {option.flag: by_key[key] for key, option in table().items() if option.flag and key in by_key}
    return {**by_key, **by_flag}


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in values.items():
        *sections, name = key.split(".")
        node = content
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = value
    return content


def _listed(value: Any) -> Any:
    """Convert tuples to lists, as a round trip through YAML does."""
    return [_listed(item) for item in value] if isinstance(value, (tuple, list)) else value
