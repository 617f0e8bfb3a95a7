"""The jinja2 environment of chat templates (see template.py): sandbox, extensions, and the checks that bound it."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from .template import Meter, bounded, strftime_now, tojson

_meter: ContextVar[Meter] = ContextVar("meter")


def compile_template(source: str) -> Callable[[dict[str, Any]], str]:
    """A function from variables to text. Raises jinja2 errors."""
    template = Sandbox().from_string(source)

    def render(variables: dict[str, Any]) -> str:
        token = _meter.set(Meter())
        try:
            return template.render(variables)
        finally:
            _meter.reset(token)

    return render


class GenerationTag(Extension):
    """{% generation %} marks the assistant's part for training; here its body is simply written."""

    tags = {"generation"}  # noqa: RUF012 jinja2 declares it as an instance variable

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_written"), [], [], body).set_lineno(line)

    def _written(self, caller: Callable[[], str]) -> str:
        return caller()


class _Metered(NodeTransformer):
    """Puts a check into every loop turn, around every output and in place of every `~`."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_check("turn", lineno=node.lineno), lineno=node.lineno))
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Output:
        self.generic_visit(node)
        node.nodes = [_check("written", child, lineno=child.lineno) for child in node.nodes]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        self.generic_visit(node)
        return _check("joined", *node.nodes, lineno=node.lineno)


def _check(name: str, *arguments: nodes.Node, lineno: int) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(name, lineno=lineno), [_expression(a) for a in arguments], [], None, None, lineno=lineno)


def _expression(node: nodes.Node) -> nodes.Node:
    return nodes.Const(node.data, lineno=node.lineno) if isinstance(node, nodes.TemplateData) else node


class Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["*", "**", "+", "%"])

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols])
        self.filters["tojson"] = tojson
        self.globals.update(raise_exception=_raise, strftime_now=strftime_now, dict=_Dict(), namespace=_Namespace)
        for name in ("center", "indent", "replace", "join", "format", "wordwrap", "batch", "slice", "urlize", "xmlattr", "truncate"):
            self.filters[name] = _bounded_filter(name, self.filters[name])
        for name in ("lipsum", "cycler", "joiner"):
            del self.globals[name]

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        _Metered().visit(tree)
        return tree

    def turn(self) -> str:
        _meter.get().turn()
        return ""

    def written(self, value: Any) -> Any:
        text = value if type(value) is str else str(value)
        _meter.get().write(len(text))
        return text

    def joined(self, *values: Any) -> str:
        texts = [v if type(v) is str else str(v) for v in values]
        bounded(sum(map(len, texts)))
        return "".join(texts)

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        own = getattr(function, "__self__", None)
        if own is self:
            return function(*args)
        _meter.get().turn()
        if isinstance(own, str):
            _bound_method(own, function.__name__, args, kwargs)
        return super().call(context, function, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        formatter = super().wrap_str_format(value)
        if formatter is None:
            return None

        def checked(*args: Any, **kwargs: Any) -> str:
            values = (*args, *kwargs.values())
            _bound_format(value.__self__, (*values, *(v for a in values if isinstance(a, dict) for v in a.values())))
            return formatter(*args, **kwargs)

        return checked

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(value, (str, list, tuple)) and isinstance(times, int):
                    bounded(len(value) * times)
            if isinstance(left, int) and isinstance(right, int):
                bounded(left.bit_length() + right.bit_length())
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            bounded(left.bit_length() * max(right, 0) * 16)
        elif operator == "+" and isinstance(left, (str, list, tuple)) and isinstance(right, (str, list, tuple)):
            bounded(len(left) + len(right))
        elif operator == "%" and isinstance(left, str):
            _bound_format(left, right if isinstance(right, tuple) else (right,))
        return super().call_binop(context, operator, left, right)


def _bound_method(own: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse string methods that would make something huge out of something small."""
    if name == "replace" and len(args) >= 2 and all(isinstance(a, str) for a in args[:2]):
        bounded(len(own) + own.count(args[0]) * len(args[1]))
    elif name == "join" and args:
        _bound_join(own, args[0])
    elif name in ("ljust", "rjust", "center", "zfill") and args and isinstance(args[0], int):
        bounded(args[0])
    elif name == "expandtabs":
        size = args[0] if args else kwargs.get("tabsize", 8)
        bounded(len(own) + own.count("\t") * size if isinstance(size, int) else 0)
    elif name == "translate":
        table = args[0] if args else {}
        longest = max((len(v) for v in table.values() if isinstance(v, str)), default=1) if isinstance(table, dict) else 1
        bounded(len(own) * longest)


def _bound_join(separator: str, items: Any) -> None:
    if isinstance(items, (str, list, tuple, dict)):
        bounded(sum(len(i) if isinstance(i, str) else 16 for i in items) + len(separator) * len(items))


def _bound_format(pattern: str, values: tuple[Any, ...]) -> None:
    """Widths and precisions in a format string, written out or passed as a number."""
    if any(len(digits) > 4 for digits in re.findall(r"\d+", pattern)):
        raise SecurityError("a format string asks for a width above 9999")
    if re.search(r"\*|\{[^{}]*\{", pattern) and any(isinstance(v, int) and abs(v) > 9999 for v in values):
        raise SecurityError("a format string asks for a width above 9999")
    signs = pattern.count("%") + pattern.count("{")
    bounded(len(pattern) + signs * (10_000 + max((len(v) if isinstance(v, str) else 0 for v in values), default=0)))


def _bounded_filter(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    """A filter of jinja2 that first looks at how much it would make."""

    def checked(*args: Any, **kwargs: Any) -> Any:
        values = [a for a in (*args, *kwargs.values()) if isinstance(a, (str, int, list, tuple, dict)) and not isinstance(a, bool)]
        texts = [v for v in values if isinstance(v, str)]
        numbers = [v for v in values if isinstance(v, int)]
        if name == "replace" and len(texts) >= 3:
            bounded(len(texts[0]) + (texts[0].count(texts[1]) + 1) * len(texts[2]))
        elif name == "join":
            items = [v for v in values if not isinstance(v, (str, int))]
            _bound_join(texts[0] if texts else "", items[0] if items else "")
        elif name == "format" and texts:
            _bound_format(texts[0], tuple(args[1:]) + tuple(kwargs.values()))
        elif name == "indent" and texts:
            width = max([*numbers, *(len(t) for t in texts[1:])], default=4)
            bounded(len(texts[0]) + (texts[0].count("\n") + 1) * width)
        else:
            bounded(sum(map(len, texts)) + max(numbers, default=0))
        return original(*args, **kwargs)

    # jinja2 reads these marks to know what to pass first (context, environment).
    for mark in ("jinja_pass_arg", "jinja_async_variant"):
        if hasattr(original, mark):
            setattr(checked, mark, getattr(original, mark))
    return checked


def _raise(message: str) -> None:
    raise TemplateError(message)


class _Dict:
    """`dict` for templates: makes dictionaries and leads nowhere else."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """`namespace` without underscore names."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        values = dict(*rest, **kwargs)
        for name in values:
            _public(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _public(name)
        super().__setitem__(name, value)


def _public(name: str) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"a namespace may not have the attribute {name!r}")
