"""What the settings mean, in words: for docstrings, ``--help``, ``config.yaml`` and ``docs/settings.md``."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, fields
from functools import cache, wraps
from itertools import pairwise
from typing import Any, ParamSpec, TypeVar

import yaml

from scalekit.config.markers import Group, MayChange
from scalekit.config.renamed import understood
from scalekit.config.rules import hints_of, markers, rule
from scalekit.config.settings import Job

P = ParamSpec("P")
C = TypeVar("C")
R = TypeVar("R")

_WIDTH = 120
_HEAD = ("| setting | default | resume | must be | meaning |", "|---|---|---|---|---|")


@cache
def meanings(settings: type) -> dict[str, str]:
    """What each field of a class means: the text that stands below it, in one line."""
    found: dict[str, str] = {}
    for cls in reversed(settings.__mro__[:-1]):
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        statements = getattr(body, "body", [])
        for field, text in pairwise(statements):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and _is_text(text):
                found[field.target.id] = " ".join(text.value.value.split())
    return found


def _is_text(node: ast.stmt) -> Any:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def grouped() -> Iterator[tuple[Group, list[Field[Any]]]]:
    """The settings of a job by what they are about."""
    group_of = {name: next(m for m in markers(hint) if isinstance(m, Group)) for name, hint in hints_of(Job).items()}
    for group in Group:
        yield group, [each for each in _in_order() if group_of[each.name] is group]


def _in_order() -> list[Field[Any]]:
    """A job's fields as they are written, its own before those that it shares with a plan."""
    own = inspect.get_annotations(Job)
    return sorted(fields(Job), key=lambda each: each.name not in own)


def default_of(field: Field[Any]) -> str:
    """The default of a setting, as a job file has it."""
    return "required" if field.default is MISSING else _as_yaml(field.default)


def _as_yaml(value: Any) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("...").rstrip("\n")


def config_yaml(settings: Mapping[str, Any]) -> str:
    """A job file with all settings by their groups, each with its meaning as a comment.

    Args:
        settings: plain values, as of `Job.resolved`.
    """
    meaning = meanings(Job)
    lines: list[str] = []
    for group, members in grouped():
        lines += [f"# -- {group.value} --", ""]
        for each in members:
            lines += textwrap.wrap(meaning[each.name], _WIDTH - 2, initial_indent="# ", subsequent_indent="# ")
            lines += [yaml.safe_dump({each.name: settings[each.name]}, sort_keys=False).rstrip("\n"), ""]
    return "\n".join(lines)


def reference() -> str:
    """The table of all settings, in Markdown."""
    meaning, hints = meanings(Job), hints_of(Job)
    lines = [
        "# Settings",
        "",
        "They are keys of a job file, flags of `scalekit fit`, and arguments of `scalekit.fit`. This page is made from",
        "the fields of `scalekit/config/settings.py`. `✓` marks what may be another value when a run is resumed.",
    ]
    for group, members in grouped():
        lines += ["", f"## {group.value}", "", *_HEAD]
        for each in members:
            may_change = "✓" if MayChange in markers(hints[each.name]) else ""
            cells = [f"`{each.name}`", f"`{default_of(each)}`", may_change, rule(hints[each.name]), meaning[each.name]]
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def configured_by(settings: Callable[P, C]) -> Callable[[Callable[[C], R]], Callable[P, R]]:
    """Gives a function of some settings, as one object, the signature and the documentation of these settings.

    Args:
        settings: their class, a dataclass.
    """

    def decorate(function: Callable[[C], R]) -> Callable[P, R]:
        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            return function(settings(*args, **understood(kwargs)))

        call.__signature__ = inspect.signature(settings)  # type: ignore[attr-defined]
        call.__annotations__ = {}
        call.__doc__ = _with_arguments(inspect.getdoc(function) or "", settings)
        return call

    return decorate


def _with_arguments(text: str, settings: Any) -> str:
    """A docstring with what the settings mean, before what it raises."""
    meaning = meanings(settings)
    listed = [
        textwrap.fill(f"{name}: {meaning[name]}", _WIDTH, initial_indent="    ", subsequent_indent="        ")
        for name in inspect.signature(settings).parameters
    ]
    before, raises, after = text.partition("Raises:")
    return f"{before.rstrip()}\n\nArgs:\n" + "\n".join(listed) + f"\n\n{raises}{after}"
