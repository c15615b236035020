"""Collect every error that the code raises, from the syntax trees of lora_studio/.

Each call of StudioError or of one of its subclasses counts, with all values that its message, remedy and code can have.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from lora_studio.settings.plan_numbers import PlanNumbers

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "lora_studio"
BASE_CLASS = "StudioError"
COMMON_WORDS = {
    *("self", "name", "value", "path", "parent", "shape", "list", "str", "len", "map", "type", "join", "min", "max"),
    *("sorted", "isinstance", "repr", "rstrip", "strip", "splitlines", "format_count", "resolve"),
}  # words of an expression that do not say what it is
MAX_DEPTH = 4  # calls that are followed for one text
MAX_TEXTS = 24  # values of one text
OWN_MESSAGE = ("ConfigError", "CaptionChanged")  # classes that write their message in __init__
PASSED_ON = {"message", "remedy", "code"}  # attributes of an error, or of a status, that is raised again


@dataclass(frozen=True)
class RaisedError:
    """One text of one place that makes an error."""

    where: str  # file:line
    kind: str
    code: str
    message: str
    remedy: str


@dataclass
class Module:
    """The functions, constants and imports of a file."""

    path: Path
    tree: ast.Module
    functions: dict[str, ast.FunctionDef] = field(default_factory=dict)
    constants: dict[str, ast.expr] = field(default_factory=dict)
    imports: dict[str, str] = field(default_factory=dict)  # name: module


@dataclass(frozen=True)
class Scope:
    """Where an expression is evaluated: its file, its function, and what is known of the function's parameters."""

    module: Module
    function: ast.FunctionDef | None
    values: dict[str, list[str]]
    depth: int = 0


def read_modules() -> dict[str, Module]:
    """Return all files of the package by module name."""
    modules = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        module = Module(path, ast.parse(path.read_text("utf-8")))
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef):
                module.functions[node.name] = node
            elif isinstance(node, ast.ImportFrom) and node.module:
                module.imports |= {alias.asname or alias.name: node.module for alias in node.names}
        for node in module.tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                module.constants[node.targets[0].id] = node.value
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        modules[name] = module
    return modules


class Catalogue:
    """All errors of the package."""

    def __init__(self) -> None:
        self.modules = read_modules()
        self.kinds = self._subclasses()
        self.errors = [error for module in self.modules.values() for error in self._errors_of(module)]

    def _subclasses(self) -> dict[str, bool]:
        """Return the names of StudioError and its subclasses, each with whether it means wrong input."""
        kinds = {BASE_CLASS: False}
        classes = [node for m in self.modules.values() for node in ast.walk(m.tree) if isinstance(node, ast.ClassDef)]
        for _ in range(MAX_DEPTH):
            for node in classes:
                for base in node.bases:
                    if isinstance(base, ast.Name) and base.id in kinds:
                        kinds[node.name] = node.name == "InputError" or kinds[base.id]
        return kinds

    def _errors_of(self, module: Module) -> Iterator[RaisedError]:
        for call, function, owner in _calls(module.tree):
            kind = _called(call)
            if kind == "super.__init__" and owner in self.kinds and owner != BASE_CLASS and owner in OWN_MESSAGE[1:]:
                kind = owner
            elif kind not in self.kinds or kind in OWN_MESSAGE:
                continue
            arguments = dict(zip(("message", "remedy"), call.args, strict=False))
            arguments |= {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
            if _is_passed_on(arguments):
                continue
            where = f"{module.path.relative_to(ROOT)}:{call.lineno}"
            for scope in self._scopes(module, function, arguments):
                yield from self._variants(where, kind, arguments, scope)

    def _variants(self, where: str, kind: str, arguments: dict[str, ast.expr], scope: Scope) -> Iterator[RaisedError]:
        texts = [self._texts(arguments.get(name), scope) for name in ("message", "remedy", "code")]
        texts[2] = [code for text in texts[2] for code in (PlanNumbers.model_fields if text == "{name}" else (text,))]
        if len(texts[0]) == len(texts[1]) and len(texts[0]) > 1 and len(texts[2]) == 1:
            rows = [(message, remedy, texts[2][0]) for message, remedy in zip(*texts[:2], strict=True)]
        else:
            rows = list(product(*texts))
        for message, remedy, code in dict.fromkeys(rows):
            yield RaisedError(where, kind, code, message, remedy)

    def _scopes(
        self, module: Module, function: ast.FunctionDef | None, arguments: dict[str, ast.expr]
    ) -> Iterator[Scope]:
        """Yield one scope per caller where a text depends on the function's parameters, else a single one."""
        parameters = _parameters(function)
        used = {node.id for value in arguments.values() for node in ast.walk(value) if isinstance(node, ast.Name)}
        whole = {value.id for value in arguments.values() if isinstance(value, ast.Name)} & set(parameters)
        found = False
        if function is not None and whole:
            for other in self.modules.values():
                if other is module or other.imports.get(function.name):
                    for call, caller, _ in _calls(other.tree):
                        if _called(call).split(".")[-1] == function.name:
                            found = True
                            inner = Scope(other, caller, {}, 1)
                            bound = dict(zip(parameters, call.args, strict=False))
                            bound |= {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
                            values = {name: self._texts(value, inner) for name, value in bound.items() if name in used}
                            yield Scope(module, function, values)
        if not found:
            yield Scope(module, function, {})

    def _texts(self, node: ast.expr | None, scope: Scope) -> list[str]:
        """Return all texts that an expression can have; "{name}" is a part that is known only when it runs."""
        match node:
            case None:
                return [""]
            case ast.Constant(value=str(text)):
                return [text]
            case ast.JoinedStr(values=parts):
                return _joined(self._part(part, scope) for part in parts)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return _joined(iter([self._texts(left, scope), self._texts(right, scope)]))
            case ast.IfExp(body=body, orelse=other):
                return _unique([*self._texts(body, scope), *self._texts(other, scope)])
            case ast.Name(id=name):
                return self._named(name, scope, node.lineno) or [_placeholder(node)]
            case ast.Call(func=ast.Name(id=name)) if scope.depth < MAX_DEPTH:
                return self._returned(name, node, scope) or [_placeholder(node)]
            case _:
                return [_placeholder(node)]

    def _part(self, part: ast.expr, scope: Scope) -> list[str]:
        if not isinstance(part, ast.FormattedValue):
            return self._texts(part, scope)
        texts = self._texts(part.value, scope) if isinstance(part.value, ast.Name | ast.Call | ast.IfExp) else []
        return texts if 0 < len(texts) <= MAX_TEXTS // 4 and part.conversion < 0 else [_placeholder(part.value)]

    def _named(self, name: str, scope: Scope, line: int) -> list[str]:
        """Return the texts of a variable: a parameter, what the function assigns, or a constant of a module."""
        if name in scope.values:
            return scope.values[name]
        if scope.function is not None:
            if name in _parameters(scope.function):
                return []
            inner = Scope(scope.module, scope.function, {**scope.values, name: []}, scope.depth)
            if assigned := _assigned(name, scope.function, line):
                return _unique([text for value in assigned for text in self._texts(value, inner)])
        module = scope.module
        if name in module.imports and module.imports[name] in self.modules:
            module = self.modules[module.imports[name]]
        if name in module.constants:
            return self._texts(module.constants[name], Scope(module, None, {}, scope.depth))
        return []

    def _returned(self, name: str, call: ast.Call, scope: Scope) -> list[str]:
        """Return the texts that a function of the package can return, if it returns texts."""
        module = self.modules.get(scope.module.imports.get(name, ""), scope.module)
        function = module.functions.get(name)
        if function is None or not isinstance(function.returns, ast.Name) or function.returns.id != "str":
            return []
        bound = dict(zip(_parameters(function), call.args, strict=False))
        values = {key: self._texts(value, scope) for key, value in bound.items()}
        inner = Scope(module, function, values, scope.depth + 1)
        found = [node.value for node in ast.walk(function) if isinstance(node, ast.Return)]
        return _unique([text for value in found for text in self._texts(value, inner)])

    def config_lines(self) -> list[tuple[str, str]]:
        """Return the lines of ConfigErrors, message and remedy in one, each with its place.

        They are the texts of functions that return error messages, of validators of the settings, and of lists that
        ConfigError is given.
        """
        found: dict[str, str] = {}
        for module in self.modules.values():
            for node, function in _config_texts(module):
                for text in self._texts(node, Scope(module, function, {})):
                    found.setdefault(text, f"{module.path.relative_to(ROOT)}:{node.lineno}")
        return list(found.items())


def _calls(tree: ast.Module) -> Iterator[tuple[ast.Call, ast.FunctionDef | None, str]]:
    """Yield each call with the function and the class that it is in."""

    def visit(node: ast.AST, function: ast.FunctionDef | None, owner: str):
        if isinstance(node, ast.Call):
            yield node, function, owner
        if isinstance(node, ast.ClassDef):
            owner = node.name
        if isinstance(node, ast.FunctionDef):
            function = node
        for child in ast.iter_child_nodes(node):
            yield from visit(child, function, owner)

    yield from visit(tree, None, "")


def _called(call: ast.Call) -> str:
    """Return the name that is called, like "InputError" or "super.__init__"."""
    match call.func:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=ast.Call(func=ast.Name(id=name)), attr=attribute):
            return f"{name}.{attribute}"
        case ast.Attribute(value=ast.Name(id=name), attr=attribute):
            return f"{name}.{attribute}"
        case _:
            return ""


def _parameters(function: ast.FunctionDef | None) -> list[str]:
    if function is None:
        return []
    names = [argument.arg for argument in [*function.args.args, *function.args.kwonlyargs]]
    return [name for name in names if name not in ("self", "cls")]


def _is_passed_on(arguments: dict[str, ast.expr]) -> bool:
    """Return whether the message is that of another error, such as one that a worker process wrote to status.json."""
    names = [node.attr for node in ast.walk(arguments["message"]) if isinstance(node, ast.Attribute)]
    remedy, code = arguments.get("remedy"), arguments.get("code")
    return ("message" in names and isinstance(remedy, ast.Attribute) and remedy.attr in PASSED_ON) or (
        isinstance(code, ast.Name) and code.id == "code"
    )


def _assigned(name: str, function: ast.FunctionDef, line: int) -> list[ast.expr]:
    """Return what a function may have assigned to a variable before a line, pairs of tuples included.

    An assignment in the same block, or in one around it, replaces those before it.
    """
    found: list[tuple[int, ast.expr]] = []
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and node.lineno < line:
            found += [(node.lineno, value) for value in _values_for(name, node)]
    since = 0
    for block in (getattr(node, part, None) for node in ast.walk(function) for part in ("body", "orelse")):
        if isinstance(block, list) and any(item.lineno <= line <= (item.end_lineno or 0) for item in block):
            lines = [item.lineno for item in block if isinstance(item, ast.Assign) and _values_for(name, item)]
            since = max([since, *(number for number in lines if number < line)])
    return [value for number, value in found if number >= since]


def _values_for(name: str, node: ast.Assign) -> list[ast.expr]:
    """Return what an assignment assigns to a variable."""
    found: list[ast.expr] = []
    for target in node.targets:
        if isinstance(target, ast.Name) and target.id == name:
            found.append(node.value)
        elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            pairs = zip(target.elts, node.value.elts, strict=False)
            found += [value for item, value in pairs if isinstance(item, ast.Name) and item.id == name]
    return found


def _config_texts(module: Module) -> Iterator[tuple[ast.expr, ast.FunctionDef | None]]:
    """Yield the expressions of a file that become lines of a ConfigError."""
    in_settings = "settings" in module.path.parts
    for call, function, _ in _calls(module.tree):
        name = _called(call)
        if in_settings and name == "ValueError" and call.args and _is_text(call.args[0]):
            yield call.args[0], function
        elif name == "ConfigError" and len(call.args) == 1 and isinstance(call.args[0], ast.List):
            yield from ((item, function) for item in call.args[0].elts)
    for function in module.functions.values():
        returns = ast.unparse(function.returns) if function.returns else ""
        if re.search(r"_errors?$", function.name) and returns in ("list[str]", "str | None"):
            yield from ((node, function) for node in _messages(function))


def _messages(function: ast.FunctionDef) -> Iterator[ast.expr]:
    """Yield the texts that a function returns, appends, or puts into a list."""
    for node in ast.walk(function):
        match node:
            case ast.Return(value=value) if value is not None and _is_text(value):
                yield value
            case ast.List(elts=items):
                yield from (item for item in items if _is_text(item) and _ends_sentence(item))
            case ast.ListComp(elt=item) if _is_text(item) and _ends_sentence(item):
                yield item
            case ast.Call(func=ast.Attribute(attr="append"), args=[item]) if _is_text(item):
                yield item


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _ends_sentence(node: ast.expr) -> bool:
    last = node.values[-1] if isinstance(node, ast.JoinedStr) else node
    return isinstance(last, ast.FormattedValue) or str(getattr(last, "value", "")).endswith(".")


def _joined(parts: Iterator[list[str]]) -> list[str]:
    texts = [""]
    for options in parts:
        texts = [before + text for before in texts for text in options][:MAX_TEXTS]
    return texts


def _unique(texts: list[str]) -> list[str]:
    return list(dict.fromkeys(texts))[:MAX_TEXTS]


def _placeholder(node: ast.expr | None) -> str:
    """Return the word of an expression in braces, like "{source}" for `self.source.name`."""
    words: list[str] = []
    for item in ast.walk(node) if node is not None else ():
        if isinstance(item, ast.Attribute):
            words.append(item.attr)
        elif isinstance(item, ast.Name):
            words.append(item.id)
    word = next((word for word in words if word not in COMMON_WORDS), words[-1] if words else "value")
    return "{" + word.strip("_").lower() + "}"
