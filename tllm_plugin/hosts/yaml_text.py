"""Reading YAML that people write: no key twice, no number that means something else than it looks like, no bombs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from tllm_plugin.core.errors import ConfigError

#: Far beyond any config, the names of 20,000 classes included.
MOST_CHARACTERS = 1_000_000
#: Values of a file, those behind aliases counted as often as they are used.
MOST_VALUES = 100_000
MOST_LEVELS = 50
_TOO_DEEP = f"it is nested deeper than the {MOST_LEVELS} levels that a config may have"
_MAPPING, _SEQUENCE, _MERGE = (f"tag:yaml.org,2002:{name}" for name in ("map", "seq", "merge"))
# What is read alike by everybody. YAML 1.1 knows 010 (octal), 12:30 (of base 60), 0b1, 0x1f and 1_000, too.
_PLAIN_NUMBER = re.compile(
    r"[-+]?(0|[1-9][0-9]*)|[-+]?([0-9]+\.[0-9]*|\.[0-9]+)(e[-+]?[0-9]+)?|[-+]?\.inf|\.nan", re.IGNORECASE
)


@dataclass(frozen=True, repr=False)
class Written:
    """A value that YAML makes of a word without quotes, and the word.

    Args:
        value: A number, a truth value, a date or None.
        text: As it stands in the file.
    """

    value: Any
    text: str

    def __repr__(self) -> str:
        return repr(self.value)

    @property
    def misleads(self) -> bool:
        """Whether it is a number to YAML whose digits look like another one."""
        is_number = isinstance(self.value, (int, float)) and not isinstance(self.value, bool)
        return is_number and not _PLAIN_NUMBER.fullmatch(self.text)


def read_yaml(text: str) -> Any:
    """Return what YAML says, with every word that is no text as a `Written`; None where it says nothing.

    Raises:
        ConfigError: It is no YAML; a key stands twice in one mapping; or it is larger or deeper than any config, with
            aliases counted as often as they are used. The message goes on after "but".
    """
    if len(text) > MOST_CHARACTERS:
        raise ConfigError(f"it has {len(text):,} characters, more than the {MOST_CHARACTERS:,} that a config may have")
    # The parser in C, where there is one: a search reads many configs, and the other one is slow. It does not know the
    # escapes by which names are written that are not UTF-8.
    fast = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    loader = (yaml.SafeLoader if r"\ud" in text.lower() else fast)(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        _Check(loader).node(root, 0)
        return _value(loader, root)
    except ConfigError:
        raise
    except RecursionError:
        raise ConfigError(_TOO_DEEP) from None
    except Exception as error:  # Beside its own errors YAML raises what Python does for a tag such as `!!bool x`.
        raise ConfigError(" ".join(str(error).split())) from error
    finally:
        loader.dispose()


def plain(value: Any) -> Any:
    """Return what `read_yaml` returned as plain Python values."""
    if isinstance(value, Written):
        return value.value
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


class _Check:
    """Counts values and looks for repeated keys, before anything is merged into a mapping.

    A node that several aliases name is looked at once and counted every time.
    """

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self._sizes: dict[int, int] = {}

    def node(self, node: Node, level: int) -> int:
        """Return how many values a node holds, itself included."""
        if level > MOST_LEVELS:
            raise ConfigError(_TOO_DEEP)
        known = self._sizes.get(id(node))
        if known is not None:
            return known
        size = 1
        if isinstance(node, MappingNode):
            self._refuse_repeated_keys(node)
            for key, value in node.value:
                size += self.node(key, level + 1) + self.node(value, level + 1)
        elif isinstance(node, SequenceNode):
            size += sum(self.node(item, level + 1) for item in node.value)
        if size > MOST_VALUES:
            raise ConfigError(
                f"it holds more than the {MOST_VALUES:,} values that a config may have, those behind aliases counted "
                "as often as they are used"
            )
        self._sizes[id(node)] = size
        return size

    def _refuse_repeated_keys(self, node: MappingNode) -> None:
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, ScalarNode):
                raise ConfigError(f"line {line} has a list or a mapping for a key")
            if key.tag == _MERGE:  # What is merged may be overridden: that is its use.
                continue
            name = self._loader.construct_object(key)
            if name in lines:
                raise ConfigError(
                    f"it has the key `{key.value}` twice in one place, in line {lines[name]} and in line {line}; "
                    "remove one of them"
                )
            lines[name] = line


def _value(loader: Any, node: Node) -> Any:
    if isinstance(node, MappingNode) and node.tag == _MAPPING:
        loader.flatten_mapping(node)
        return {loader.construct_object(key): _value(loader, value) for key, value in node.value}
    if isinstance(node, SequenceNode) and node.tag == _SEQUENCE:
        return [_value(loader, item) for item in node.value]
    value = loader.construct_object(node, deep=True)
    is_word = isinstance(node, ScalarNode) and not node.style and not isinstance(value, str)
    return Written(value, node.value) if is_word else value
