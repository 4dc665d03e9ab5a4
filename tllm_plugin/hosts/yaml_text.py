"""Read YAML strictly: no repeated keys, no ambiguous numbers, no excessive size or depth."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from tllm_plugin.core.errors import ConfigError

#: Far beyond any config, the names of 20,000 classes included.
MOST_CHARACTERS = 1_000_000
#: Values of a file, with aliases counted at every use.
MOST_VALUES = 100_000
MOST_LEVELS = 50
_TOO_DEEP = f"it is nested deeper than the {MOST_LEVELS} levels that a config may have"
_MAPPING, _SEQUENCE, _MERGE = (f"tag:yaml.org,2002:{name}" for name in ("map", "seq", "merge"))
# Unambiguous numbers. YAML 1.1 also reads 010 (octal), 12:30 (base 60), 0b1, 0x1f and 1_000 as numbers.
_PLAIN_NUMBER = re.compile(
    r"[-+]?(0|[1-9][0-9]*)|[-+]?([0-9]+\.[0-9]*|\.[0-9]+)(e[-+]?[0-9]+)?|[-+]?\.inf|\.nan", re.IGNORECASE
)


@dataclass(frozen=True, repr=False)
class Written:
    """Value that YAML parsed from an unquoted word, together with the word.

    Args:
        value: Number, truth value, date or None.
        text: Text in the file.
    """

    value: Any
    text: str

    def __repr__(self) -> str:
        return repr(self.value)

    @property
    def misleads(self) -> bool:
        """Whether YAML parses the text as another number than it appears to be."""
        is_number = isinstance(self.value, (int, float)) and not isinstance(self.value, bool)
        return is_number and not _PLAIN_NUMBER.fullmatch(self.text)


def read_yaml(text: str) -> Any:
    """Parse YAML; unquoted values that are not strings become `Written`, and an empty document None.

    Raises:
        ConfigError: The text is not YAML, repeats a key in a mapping, or is larger or deeper than a config may be,
            with aliases counted at every use. The message continues a sentence after "but".
    """
    if len(text) > MOST_CHARACTERS:
        raise ConfigError(f"it has {len(text):,} characters, more than the {MOST_CHARACTERS:,} that a config may have")
    # Use the C parser if available, because a search reads many configs. It does not support the escapes for names that
    # are not UTF-8.
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
    except Exception as error:  # For a tag such as `!!bool x`, YAML raises Python's errors besides its own.
        raise ConfigError(" ".join(str(error).split())) from error
    finally:
        loader.dispose()


def plain(value: Any) -> Any:
    """Convert a result of `read_yaml` to plain Python values."""
    if isinstance(value, Written):
        return value.value
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


class _Check:
    """Counts values and finds repeated keys before mappings are merged.

    A node with several aliases is checked once and counted at every use.
    """

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self._sizes: dict[int, int] = {}

    def node(self, node: Node, level: int) -> int:
        """Return the number of values in a node, including the node itself."""
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
                raise ConfigError(f"line {line} has a list or a mapping as a key")
            if key.tag == _MERGE:  # Merged keys may be overridden, which is their purpose.
                continue
            name = self._loader.construct_object(key)
            if name in lines:
                raise ConfigError(
                    f"it repeats the key `{key.value}` in one mapping, in line {lines[name]} and in line {line}; "
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
