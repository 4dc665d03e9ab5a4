from __future__ import annotations

import pytest

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.core.registry import Registry


def test_a_taken_name_is_refused_and_the_same_object_is_not() -> None:
    things: Registry[int] = Registry("thing")
    things.register("a")(1)
    things.register("a")(1)
    with pytest.raises(ValueError, match="Expected a new thing name, but got 'a', which is taken"):
        things.register("a")(2)


def test_names_are_sorted_and_unknown_ones_listed() -> None:
    things: Registry[int] = Registry("thing")
    for name in "cab":
        things.register(name)(ord(name))
    assert list(things) == ["a", "b", "c"]
    assert len(things) == 3 and "a" in things and "z" not in things
    with pytest.raises(ConfigError, match="Expected `thing` to be one of a, b, c, but got 'z'"):
        things["z"]
