"""Read from the source of a host's epoch function what it returns, and what it does beside computing a loss."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from typing import Any

from tllm_plugin.hosts.repdistiller.syntax import calls_in, name_of

# Calls after `backward` that only report or measure.
_HARMLESS = frozenset(
    ("update", "print", "flush", "write", "append", "zero_grad", "info", "debug", "log", "log_value", "add_scalar")
    + ("set_description", "set_postfix", "empty_cache", "synchronize")
)


def returned_names(function: Callable[..., Any]) -> tuple[str, ...]:
    """Return the expressions of the tuple that a function returns, as text; empty if its source has no such tuple."""
    tree = _tree(function)
    returns = [node for node in ast.walk(tree) if isinstance(node, ast.Return)] if tree else []
    value = max(returns, key=lambda node: node.lineno).value if returns else None
    return tuple(ast.unparse(item) for item in value.elts) if isinstance(value, ast.Tuple) else ()


def lost_when_cut(function: Callable[..., Any]) -> list[str]:
    """Return what an epoch function does that is lost when TLLM asks it for the loss of one batch, with line numbers.

    These are effects after `backward` (clipped gradients, averaged weights, a second step) and losses that depend on
    the number of the batch.
    """
    tree = _tree(function)
    loop = next((node for node in ast.walk(tree) if _steps(node)), None) if tree else None
    if loop is None:
        return []
    backward = [call for call in calls_in(loop) if name_of(call) == "backward"]
    first, last = min(call.lineno for call in backward), max(call.end_lineno or call.lineno for call in backward)
    receivers = [call.func.value for call in backward if isinstance(call.func, ast.Attribute)]
    found: list[ast.expr] = [node for node in receivers if isinstance(node, ast.Call) and name_of(node) == "scale"]
    steps = [call for call in calls_in(loop) if name_of(call) == "step" and call.lineno > last]
    found += steps[1:]
    found += [
        node.value
        for node in ast.walk(loop)
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and node.lineno > last
        and name_of(node.value) not in {*_HARMLESS, "step"}
    ]
    number = _batch_number(loop)
    found += [
        node
        for node in ast.walk(loop)
        if isinstance(node, ast.Name) and node.id == number and isinstance(node.ctx, ast.Load) and node.lineno < first
    ]
    start = inspect.getsourcelines(function)[1] - 1
    return [f"line {start + node.lineno}: {ast.unparse(node)}" for node in found]


def _tree(function: Callable[..., Any]) -> ast.AST | None:
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return None


def _steps(node: ast.AST) -> bool:
    return isinstance(node, ast.For) and any(name_of(call) == "backward" for call in calls_in(node))


def _batch_number(loop: Any) -> str:
    over = loop.iter
    if isinstance(over, ast.Call) and name_of(over) == "enumerate" and isinstance(loop.target, ast.Tuple):
        return getattr(loop.target.elts[0], "id", "")
    return ""
