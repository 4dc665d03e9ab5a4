"""Questions about the syntax tree of a host's script."""

from __future__ import annotations

import ast
from collections.abc import Iterator


def calls_in(node: ast.AST) -> Iterator[ast.Call]:
    """Yield every call in a syntax tree."""
    return (part for part in ast.walk(node) if isinstance(part, ast.Call))


def name_of(call: ast.Call) -> str:
    """Return the last part of the name that is called; empty if there is none."""
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def targets_of(node: ast.AST) -> list[ast.expr]:
    """Return the targets of an assignment, tuples taken apart; empty for other nodes."""
    if isinstance(node, ast.Assign):
        return [item for target in node.targets for item in getattr(target, "elts", [target])]
    return [node.target] if isinstance(node, ast.AugAssign) else []


def names_assigned(node: ast.AST) -> Iterator[str]:
    """Yield the variables that an assignment sets."""
    return (target.id for target in targets_of(node) if isinstance(target, ast.Name))


def assigns(scope: ast.AST, name: str) -> bool:
    """Return whether a variable is assigned anywhere below a node."""
    return any(name in names_assigned(node) for node in ast.walk(scope))


def compares(test: ast.expr, option: str) -> bool:
    """Return whether an expression compares the attribute `option` with something."""
    return any(
        isinstance(node, ast.Compare) and isinstance(node.left, ast.Attribute) and node.left.attr == option
        for node in ast.walk(test)
    )


def values_compared(tree: ast.AST, option: str) -> list[str]:
    """Return the strings that the attribute `option` is compared with, in order."""
    found: dict[str, None] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and isinstance(node.left, ast.Attribute) and node.left.attr == option:
            for constant in ast.walk(node.comparators[0]):
                if isinstance(constant, ast.Constant) and isinstance(constant.value, str):
                    found[constant.value] = None
    return list(found)
