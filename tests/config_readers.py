"""Which config fields the package reads, by following the types of expressions in its source.

An attribute counts only if its object is known to be a config section: through an annotation, an assignment from a
section, or a chain like `config.data.size`. Equal names elsewhere and strings do not count.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterable, Iterator
from typing import get_type_hints

from pfcluster.config import RunConfig

Field = tuple[str, str]


def sections(root: type = RunConfig) -> dict[str, dict[str, str | None]]:
    """Class name -> field -> class name of the field if it is a section itself, for all classes of a config."""
    fields: dict[str, dict[str, str | None]] = {root.__name__: {}}
    for name, hint in get_type_hints(root).items():
        nested = dataclasses.is_dataclass(hint)
        fields[root.__name__][name] = hint.__name__ if nested else None
        if nested:
            fields |= sections(hint)
    return fields


def all_fields() -> set[Field]:
    """Every (class, field) with a value of its own."""
    return {(cls, name) for cls, fields in sections().items() for name, nested in fields.items() if nested is None}


class Reader(ast.NodeVisitor):
    """Collects the (class, field) pairs that one module reads."""

    def __init__(self, sections: dict[str, dict[str, str | None]]) -> None:
        self.sections = sections
        self.read: set[Field] = set()
        self.scopes: list[dict[str, str]] = [{}]
        self.in_config_class: str | None = None

    def type_of(self, node: ast.expr) -> str | None:
        """The config class of an expression; None if it has none."""
        if isinstance(node, ast.Name):
            scopes = [scope[node.id] for scope in reversed(self.scopes) if node.id in scope]
            return scopes[0] if scopes else ("RunConfig" if node.id == "config" else None)
        if isinstance(node, ast.Attribute):
            if isinstance(node.value, ast.Name) and node.value.id == "self":
                types = [scope[f"self.{node.attr}"] for scope in self.scopes if f"self.{node.attr}" in scope]
                if types:
                    return types[-1]
            owner = self.type_of(node.value)
            if owner is not None:
                return self.sections[owner].get(node.attr)
            return "RunConfig" if node.attr == "config" else None
        if isinstance(node, ast.Call) and name_of(node.func) == "replace" and node.args:
            return self.type_of(node.args[0])
        return None

    def annotated(self, annotation: ast.expr | None) -> str | None:
        """The config class that an annotation names."""
        name = ast.unparse(annotation).strip("\"'") if annotation is not None else ""
        return name if name in self.sections else None

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        """Attributes that methods assign to `self` have their types in all methods."""
        scope: dict[str, str] = {"self": node.name} if node.name in self.sections else {}
        self.scopes.append(scope)
        for statement in node.body:
            if isinstance(statement, ast.AnnAssign) and (cls := self.annotated(statement.annotation)):
                scope[f"self.{ast.unparse(statement.target)}"] = cls
        for method in node.body:
            if isinstance(method, ast.FunctionDef):
                with_parameters = self.parameters(method)
                self.scopes.append(with_parameters)
                for target, value in assignments(method):
                    is_attribute = isinstance(target, ast.Attribute) and name_of(target.value) == "self"
                    if is_attribute and (cls := self.type_of(value)):
                        scope[f"self.{target.attr}"] = cls
                self.scopes.pop()
        self.in_config_class = node.name if node.name in self.sections else None
        self.generic_visit(node)
        self.in_config_class = None
        self.scopes.pop()

    def parameters(self, node: ast.FunctionDef) -> dict[str, str]:
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        types = {each.arg: self.annotated(each.annotation) for each in arguments}
        return {name: cls for name, cls in types.items() if cls is not None}

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """Validation of a config class reads all fields and does not count; its properties do."""
        is_property = any(name_of(decorator) == "property" for decorator in node.decorator_list)
        if self.in_config_class and not is_property:
            return
        scope = self.parameters(node)
        self.scopes.append(scope)
        for target, value in assignments(node):
            if isinstance(target, ast.Name) and (cls := self.type_of(value)):
                scope[target.id] = cls
        self.generic_visit(node)
        self.scopes.pop()

    def visit_Attribute(self, node: ast.Attribute) -> None:
        owner = self.type_of(node.value)
        if owner is not None and isinstance(node.ctx, ast.Load):
            self.read.add((owner, node.attr))
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        """`getattr(weights, name)` with a variable name reads any of the loss weights. Other sections have no such
        reader: code that walks a whole config by dotted names does not use the values.
        """
        if name_of(node.func) == "getattr" and self.type_of(node.args[0]) == "LossWeights":
            self.read |= {("LossWeights", name) for name in self.sections["LossWeights"]}
        self.generic_visit(node)


def name_of(node: ast.expr) -> str | None:
    return node.id if isinstance(node, ast.Name) else None


def assignments(function: ast.FunctionDef) -> Iterator[tuple[ast.expr, ast.expr]]:
    """(target, value) of a function's assignments, those of tuples one by one."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                both = (target, node.value)
                tuples = all(isinstance(each, ast.Tuple) for each in both)
                if tuples and not any(isinstance(each, ast.Starred) for side in both for each in side.elts):
                    yield from zip(target.elts, node.value.elts, strict=True)
                else:
                    yield target, node.value


def fields_read(sources: Iterable[str]) -> set[Field]:
    """(class, field) pairs that modules read, given as source text."""
    read: set[Field] = set()
    config_sections = sections()
    for source in sources:
        reader = Reader(config_sections)
        reader.visit(ast.parse(source))
        read |= reader.read
    return read
