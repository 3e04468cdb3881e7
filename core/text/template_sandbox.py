"""Runs a checkpoint's chat template, which is a program by someone else.

Jinja's sandbox keeps it away from Python's internals; ``template_limits`` bounds its work and size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, cast

from jinja2 import Template, Undefined, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from qinfer.core.errors import BadInput
from qinfer.core.text import template_limits as limits

MAX_TEMPLATE_CHARS = 2**20

_SKIP = "--raw sends the prompt as it is, without a template."
_PADDING_METHODS = ("center", "expandtabs", "ljust", "rjust", "translate", "zfill")


def render(template: str, names: Mapping[str, Any]) -> str:
    """Render a template with these variables. Raises BadInput for whatever goes wrong."""
    token = limits.budget.set(limits.Budget())
    try:
        return _compile(template).render(names)
    except SecurityError as error:
        raise BadInput(
            f"the checkpoint's chat template tried to escape the sandbox: {error}",
            remedy=f"Do not trust this checkpoint. {_SKIP}",
        ) from None
    except Exception as error:  # noqa: BLE001 - a template can raise anything
        line = getattr(error, "lineno", None)
        where = f" (line {line})" if line else ""
        raise BadInput(
            f"the checkpoint's chat template failed{where}: {type(error).__name__}: {error}",
            remedy=f"Perhaps it does not take messages in this order. {_SKIP}",
        ) from None
    finally:
        limits.budget.reset(token)


@lru_cache(maxsize=16)
def _compile(template: str) -> Template:
    if len(template) > MAX_TEMPLATE_CHARS:
        raise limits.TooMuch(f"it is longer than {MAX_TEMPLATE_CHARS:,} characters")
    return _Environment().from_string(template)


class _Generation(Extension):
    """``{% generation %}``: marks an assistant's answer for training; here its body only."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's way to declare them

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Read up to the end tag and leave the body as it is."""
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


class _Counted(NodeTransformer):
    """Sends loops and ``~`` through filters: neither passes any other hook of the sandbox."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - Jinja's naming
        self.generic_visit(node)
        node.iter = _filter(cast(nodes.Expr, node.iter), "_count")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filter(nodes.List(node.nodes, lineno=node.lineno), "join")


def _filter(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja set up as transformers documents, and bounded."""

    intercepted_binops = frozenset({"*", "**", "%", "+"})
    concat = staticmethod(limits.concat)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[loopcontrols, _Generation],
            finalize=limits.printable,
        )
        self.filters = {**limits.filters(), "_count": limits.count}
        self.globals.pop("lipsum")
        self.globals.update(limits.functions())

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        return super()._generate(_Counted().visit(source), *args, **kwargs)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Also refuse the string methods that pad to any width."""
        if isinstance(obj, str) and attr in _PADDING_METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        """Fail at once: Jinja would print an unsafe attribute as an empty text."""
        raise SecurityError(
            f"access to attribute {attribute!r} of {type(obj).__name__!r} object is unsafe"
        )

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Bound ``str.format``."""
        run = super().wrap_str_format(value)
        if run is None:
            return None

        def bounded(*args: Any, **kwargs: Any) -> str:
            limits.check_format(value.__self__, args, kwargs)
            return run(*args, **kwargs)

        return bounded

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Bound an operator's result before it is made."""
        limits.budget.get().spend(1, (left, right))
        if operator == "**":
            if not all(isinstance(x, (int, float)) and abs(x) <= 1000 for x in (left, right)):
                raise limits.TooMuch("a power of numbers over 1,000")
        elif operator == "*":
            limits.check_multiplied(left, right)
        elif operator == "+":
            limits.check_size(limits.length(left) + limits.length(right))
        elif isinstance(left, str):
            limits.check_percent(left, right)
        return limits.checked(super().call_binop(context, operator, left, right))

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Count a call, and bound it by its arguments and result."""
        limits.budget.get().spend(limits.CALL_STEPS, [*args, *kwargs.values()])
        limits.check_numbers([*args, *kwargs.values()])
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, str):
            limits.check_method(owner, getattr(obj, "__name__", ""), args)
        return limits.checked(super().call(context, obj, *args, **kwargs))
