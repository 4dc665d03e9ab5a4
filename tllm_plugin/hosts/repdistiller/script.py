"""Insert TLLM's calls into the train script of any descendant of RepDistiller.

Their places are found in the syntax tree, so that comments, quotes and other lines do not matter. Everything that is
missing is reported at once.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.hosts.repdistiller.edits import Edits
from tllm_plugin.hosts.repdistiller.syntax import (
    assigns,
    calls_in,
    compares,
    name_of,
    names_assigned,
    targets_of,
    values_compared,
)

_MARK = "tllm_plugin.hosts.repdistiller"
_Scope = ast.Module | ast.FunctionDef


@dataclass
class Found:
    """A script with TLLM's calls, and what was found in it.

    Args:
        text: The script with TLLM's calls.
        notes: Parts of TLLM that are not available in this script, one sentence each.
        parts: Parts of the script and where they are: (part, description).
        train: Name of the epoch function in the script.
        methods: Values that the script compares its option `distill` with.
    """

    text: str
    notes: list[str] = field(default_factory=list)
    parts: list[tuple[str, str]] = field(default_factory=list)
    train: str = ""
    methods: tuple[str, ...] = ()


def is_patched(source: str) -> bool:
    """Return whether a script has TLLM's calls already."""
    return f"import {_MARK}" in source


def add_tllm(source: str, name: str) -> Found:
    """Insert TLLM's calls into the source of a train script for students.

    Args:
        source: The script.
        name: Name of its file, for errors.

    Raises:
        ConfigError: The script lacks something that TLLM needs; the message names all of it, with the lines to write.
    """
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise ConfigError(f"Expected {name} to be a Python 3 script, but line {error.lineno}: {error.msg}") from None
    return _Patcher(source, tree, name).run()


class _Patcher:
    def __init__(self, source: str, tree: ast.Module, name: str) -> None:
        self.edits, self.tree, self.name = Edits(source), tree, name
        self.missing: list[str] = []
        self.found = Found(source)
        self.scope_of = {
            id(node): scope for scope in self._scopes() for node in ast.walk(scope)
        }  # The innermost one is written last.

    def run(self) -> Found:
        loop, train = self._loop()
        if loop is None or train is None:
            self._miss(
                "a loop over epochs that calls an epoch function with a loader and an optimizer",
                "for epoch in run.epochs():",
                "    train_acc, train_loss = run.train(train, epoch, train_loader, module_list, criterion_list, "
                "optimizer, opt)",
            )
        self._parser()
        if loop is not None and train is not None:
            self._around(loop, train)
        if self.missing:
            raise ConfigError(
                f"Expected {self.name} to have the shape of RepDistiller's train_student.py, but it lacks:\n"
                + "\n".join(self.missing)
            )
        self._import()
        self.found.text = self.edits.text()
        return self.found

    def _scopes(self) -> Iterator[_Scope]:
        yield self.tree
        yield from (node for node in ast.walk(self.tree) if isinstance(node, ast.FunctionDef))

    def _loop(self) -> tuple[ast.For | None, ast.Call | None]:
        for loop in (node for node in ast.walk(self.tree) if isinstance(node, ast.For)):
            for call in calls_in(loop):
                names = [argument.id for argument in call.args if isinstance(argument, ast.Name)]
                has = [any(part in name.lower() for name in names) for part in ("loader", "optim")]
                if all(has) and "backward" not in {name_of(inner) for inner in calls_in(loop)}:
                    self.found.train = ast.unparse(call.func)
                    return loop, call
        return None, None

    def _parser(self) -> None:
        calls = [call for call in calls_in(self.tree) if name_of(call) == "parse_args" and not call.args]
        if not calls:
            self._miss("a call of parse_args()", "opt = tllm.parse_fork(parser)")
            return
        call = calls[0]
        self.found.methods = tuple(values_compared(self.tree, "distill"))
        images = self._images() is not None
        ours = self._method_chain() is not None
        words = f"methods={self.found.methods!r}, images={images}, ours={ours}"
        self.edits.replace(call, f"tllm.parse_fork({ast.unparse(call.func.value)}, {words})")  # type: ignore[attr-defined]
        self.found.parts.append(("options", f"line {call.lineno}"))
        names = [
            node
            for node in ast.walk(self.tree)
            if isinstance(node, ast.Assign | ast.AugAssign)
            and any(isinstance(t, ast.Attribute) and t.attr == "model_name" for t in targets_of(node))
        ]
        if not names:
            self._miss("a line that names the run, opt.model_name = ...", "opt.model_name += tllm.suffix(opt)")
            return
        named = max(names, key=lambda node: node.lineno)
        last = self._statement(named)
        options = ast.unparse(next(t for t in targets_of(named) if isinstance(t, ast.Attribute)).value)
        self.edits.after(last, f"{options}.model_name += tllm.suffix({options})")
        if not any(
            isinstance(t, ast.Attribute) and t.attr == "save_folder"
            for node in ast.walk(self.tree)
            for t in targets_of(node)
        ):
            self._miss("the folder of the run, opt.save_folder", "opt.save_folder = os.path.join(..., opt.model_name)")

    def _around(self, loop: ast.For, train: ast.Call) -> None:
        names = [argument.id for argument in train.args if isinstance(argument, ast.Name)]
        loader, modules, criteria, optimizer = (
            next((name for name in names if any(part in name.lower() for part in parts)), None)
            for parts in (
                ("loader",),
                ("module", "model_list", "nets"),
                ("criterion", "criteria", "loss_list"),
                ("optim",),
            )
        )
        options = names[-1] if names else "opt"
        if modules is None or criteria is None:
            self._miss(
                "a list of modules and a list of criteria among the arguments of the epoch function",
                "run.train(train, epoch, train_loader, module_list, criterion_list, optimizer, opt)",
            )
            return
        self.edits.wrap(train, "run.train")
        self.found.parts.append(("epoch", f"line {train.lineno}: {ast.unparse(train)}"))
        tested = [
            call
            for call in calls_in(loop)
            if call is not train
            and any(isinstance(a, ast.Name) and "loader" in a.id.lower() and a.id != loader for a in call.args[:2])
        ]
        if not tested:
            self._miss(
                "a call in the loop that tests the student",
                "test_acc, test_acc_top5, test_loss = run.validate(validate, val_loader, model_s, criterion_cls, opt)",
            )
            return
        self.edits.wrap(tested[0], "run.validate")
        self.found.parts.append(("test", f"line {tested[0].lineno}: {ast.unparse(tested[0])}"))
        test_loader = next(a.id for a in tested[0].args if isinstance(a, ast.Name) and "loader" in a.id.lower())
        scope = self.scope_of[id(loop)]
        self._loaders(scope, str(loader), test_loader, options)
        best = self._best(scope)
        logger = "logger" if assigns(scope, "logger") else "None"
        tests = ", ".join([ast.unparse(tested[0].func), *(ast.unparse(argument) for argument in tested[0].args)])
        before = {
            name
            for statement in scope.body
            if statement.lineno < loop.lineno
            for node in ast.walk(statement)
            for name in names_assigned(node)
        }
        known = {loader, modules, criteria, optimizer, options, *(target.id for target in _names(loop.target))}
        others = "".join(f", {name}" for name in dict.fromkeys(names) if name in before - known)
        start = f"{best}run.start({modules}, {criteria}, {optimizer}, {logger}{others})"
        self.edits.before(loop, f"run.tested_by({tests})", start)
        self.edits.replace(loop.iter, f"run.epochs({ast.unparse(loop.iter)})")
        for call in calls_in(scope):
            if isinstance(call.func, ast.Name) and call.func.id == "init" and len(call.args) > 4:
                self.edits.wrap(call, "run.init")
        self._images_into(str(loader), test_loader, options)
        self._methods_into(scope, modules, options)

    def _loaders(self, scope: _Scope, loader: str, test_loader: str, options: str) -> None:
        made = [
            statement
            for statement in scope.body
            if {loader, test_loader} <= {name for node in ast.walk(statement) for name in names_assigned(node)}
        ]
        lines = f"run = tllm.Run({options}, {loader}, {test_loader})", f"{loader} = run.train_loader"
        if not made:
            self._miss(f"a statement that makes {loader} and {test_loader}", *lines)
            return
        self.edits.after(made[-1], *lines)
        self.found.parts.append(("loaders", f"line {made[-1].lineno}"))

    def _best(self, scope: _Scope) -> str:
        inside = assigns(scope, "best_acc") or any(
            isinstance(node, ast.Global) and "best_acc" in node.names for node in ast.walk(scope)
        )
        return "best_acc = " if inside else ""

    def _images(self) -> tuple[ast.If, str] | None:
        """Return the `if` over data sets that also sets the number of classes, and the name of that variable."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.If) and compares(node.test, "dataset"):
                assigned = {name for part in node.body for inner in ast.walk(part) for name in names_assigned(inner)}
                classes = next((name for name in ("n_cls", "num_classes", "n_class") if name in assigned), "")
                if classes and any("loader" in name for name in assigned):
                    return node, classes
        return None

    def _images_into(self, loader: str, test_loader: str, options: str) -> None:
        found = self._images()
        if found is None:
            self.found.notes.append(
                "it chooses its data sets in another way: --dataset imagefolder and cub200 are not available"
            )
            return
        branch = f"if {options}.dataset in tllm.DATASETS:"
        self.edits.branch(
            found[0], branch, f"{loader}, {test_loader}, n_data, {found[1]} = tllm.load_images({options})"
        )

    def _method_chain(self) -> tuple[ast.If, str] | None:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.If) and compares(node.test, "distill") and node.orelse:
                assigned = [name for part in node.body for inner in ast.walk(part) for name in names_assigned(inner)]
                if "criterion_kd" in assigned:
                    return node, "criterion_kd"
        return None

    def _methods_into(self, scope: _Scope, modules: str, options: str) -> None:
        chain = self._method_chain()
        appended = [
            call.args[0].id
            for call in sorted(calls_in(scope), key=lambda call: call.lineno)
            if name_of(call) == "append"
            and ast.unparse(call.func) == f"{modules}.append"
            and call.args
            and isinstance(call.args[0], ast.Name)
        ]
        if chain is None or not assigns(scope, "trainable_list") or len(appended) < 2:
            self.found.notes.append("it builds its methods in another way: TLLM's SRRL and CID are not available")
            return
        student, teacher = appended[0], appended[-1]
        branch = f"if tllm.is_ours({options}):"
        self.edits.branch(
            chain[0],
            branch,
            f"{student}, {chain[1]} = tllm.add_method({options}, {modules}, trainable_list, {teacher})",
        )

    def _import(self) -> None:
        imports = [node for node in self.tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        self.edits.after(imports[-1], f"import {_MARK} as tllm")

    def _miss(self, what: str, *lines: str) -> None:
        self.missing.append(f"- {what}; to be written:\n" + "\n".join(f"      {line}" for line in lines))

    def _statement(self, node: ast.AST) -> ast.stmt:
        """Return the statement on the innermost function's own level that contains `node`."""
        scope = self.scope_of[id(node)]
        return next(part for part in scope.body if any(inner is node for inner in ast.walk(part)))


def _names(target: ast.expr) -> list[ast.Name]:
    return [node for node in ast.walk(target) if isinstance(node, ast.Name)]
