"""A user's code by name, MODULE:NAME, as command lines take it: imported, and called with what its signature takes."""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

_KINDS = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def named(where: str, option: str) -> Any:
    """What MODULE:NAME names; the current directory can be imported from. ValueError, one sentence, where nothing does."""
    module, colon, name = where.partition(":")
    if not (module and colon and name):
        raise ValueError(f"{option} is {where!r}: it must be MODULE:FUNCTION, such as nets:make_model")
    if "/" in module or module.endswith(".py"):
        raise ValueError(f"{option} is {where!r}: a module is named without path and .py, such as nets:make_model")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found: Any = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{option}: module {module!r} cannot be imported ({brief(error)})") from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{option}: module {module!r} has no function {name!r}")
        found = getattr(found, part)
    return found


def called(found: Any, where: str, option: str, *positional: Any, available: Mapping[str, Any] | None = None,
           options: Mapping[str, Any] | None = None) -> Any:
    """`found(*positional, ...)` with those of `available` that its signature names (`**kwargs` names none), and all `options`.

    ValueError, one sentence, where it is no function, takes none of the options, or fails.
    """
    if not callable(found):
        raise ValueError(f"{option}: {where} is a {type(found).__name__}, not a function")
    names = taken(found)
    if names is not None and (unknown := [name for name in options or {} if name not in names]):
        raise ValueError(f"{option}: {where} takes no {unknown[0]!r}" + (f"; it takes {', '.join(names)}" if names else ""))
    offered = {name: value for name, value in (available or {}).items() if name in _written_out(found)}
    try:
        return found(*positional, **offered, **(options or {}))
    except (Exception, SystemExit) as error:
        raise ValueError(f"{option}: {where}() failed ({brief(error)})") from error


def taken(function: Callable[..., Any]) -> list[str] | None:
    """Names that a function can be called with, None where it takes any (`**kwargs`)."""
    any_name = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in _parameters(function) or ())
    return None if any_name else _written_out(function)


def needs_nothing(function: Callable[..., Any]) -> bool:
    """Whether it can be called without arguments; False where nobody can know."""
    parameters = _parameters(function)
    return parameters is not None and not any(p.kind in _KINDS and p.default is inspect.Parameter.empty for p in parameters)


def value_of(text: str) -> Any:
    """An option's value: a Python literal, or else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _written_out(function: Callable[..., Any]) -> list[str]:
    return [p.name for p in _parameters(function) or () if p.kind in _KINDS[1:]]


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter] | None:
    """None of what is built in without a signature."""
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return None


def brief(error: BaseException) -> str:
    """Class and first line of an error."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:300]}" if words else type(error).__name__
