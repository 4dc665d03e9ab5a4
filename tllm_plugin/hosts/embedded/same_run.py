"""Whether a finished run is the one that a config describes."""

from __future__ import annotations

from yacs.config import CfgNode

from tllm_plugin.core.data_identity import DataIdentity
from tllm_plugin.core.errors import ConfigError, FileFormatError
from tllm_plugin.hosts.embedded.checkpoint import changed_keys, read_state, recorded_config
from tllm_plugin.hosts.embedded.defaults import default_config
from tllm_plugin.hosts.same_data import check_same_data
from tllm_plugin.hosts.tllm_node import TREATMENT
from tllm_plugin.runs.reading import read_text
from tllm_plugin.runs.run_folder import RunFolder

#: What has no effect before the first flag.
FREE_KEYS = ("TLLM.DETECTOR.", *TREATMENT)
_NODES_OF_EVERY_RUN = {"EXPERIMENT", "DATASET", "DISTILLER", "SOLVER", "RUNTIME", "TLLM"}
_REMEDY = "remove that folder, or set EXPERIMENT.NAME or LOG.PREFIX to train another one"
_READ_BY_VANILLA = ("DISTILLER.STUDENT", "DISTILLER.PRETRAINED")


def check_same_run(run: RunFolder, cfg: CfgNode, data: DataIdentity) -> None:
    """Refuse a finished run that was made under another config or on other data, by the comparison that a resume makes.

    Keys that such a run does not look at are left out, so that what an earlier version trained stays usable although
    their defaults have changed.

    Args:
        run: The finished run.
        cfg: Of the run that is needed.
        data: Its data.

    Raises:
        FileFormatError: The run's config or record of its data is damaged.
        ConfigError: The configs or the data differ.
    """
    old = config_of(run)
    changed = [key for key in changed_keys(old, cfg) if not (_is_unread(key, old) and _is_unread(key, cfg))]
    if changed:
        raise ConfigError(
            f"Expected the finished run in {run.log_folder} to be the one that is needed, but these keys differ: "
            f"{', '.join(changed)}; {_REMEDY}"
        )
    check_same_data(run.log_folder, run.read_data(), data, _REMEDY)


def config_of(run: RunFolder) -> CfgNode:
    """Return the config that a run was made under.

    Raises:
        FileFormatError: It is missing or damaged.
    """
    latest = run.log_folder / "latest"
    if not run.config_yaml.exists() and latest.exists():
        return recorded_config(read_state(latest)["config"])
    try:
        return recorded_config(read_text(run.config_yaml, "the config of a run"))
    except FileFormatError:
        raise
    except Exception as error:  # yacs and YAML raise what they like on a damaged file.
        raise FileFormatError(f"Expected {run.config_yaml} to be the config of a run, but {error}") from error


def is_embedded(run: RunFolder) -> bool:
    """Tell whether a run is one of the embedded host, by the sections of its `config.yaml`."""
    return run.config_yaml.exists() and set(config_of(run)) <= set(default_config())


def _is_unread(key: str, cfg: CfgNode) -> bool:
    """Tell whether no result of a run depends on a key, because of what kind of run it is."""
    node = key.partition(".")[0]
    if cfg.DISTILLER.TYPE == "NONE":
        of_distiller = node == "DISTILLER" and key not in ("DISTILLER.TYPE", *_READ_BY_VANILLA)
        if of_distiller or node not in _NODES_OF_EVERY_RUN:
            return True
    return cfg.TLLM.DETECTOR.TYPE == "none" and key.startswith(FREE_KEYS) and key != "TLLM.DETECTOR.TYPE"
