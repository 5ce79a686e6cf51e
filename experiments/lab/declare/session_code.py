"""Functions and classes of the running program itself, a notebook or a script (`__main__`): their identity is their source.

No other process can import them. What they use of the program counts with them: functions and classes by their source, numbers
and texts by value. Whatever else could change without a trace, and is refused.
"""

from __future__ import annotations

import ast
import dis
import hashlib
import inspect
import linecache
import sys
import sysconfig
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from experiments.lab.declare.errors import ConfigError
from experiments.lab.declare.own_code import source_sha256

PROGRAM = "__main__"
PLAIN = (int, float, complex, str, bytes, bool, type(None))
"""global values that count by what they are; of tuples each element"""


def in_session(name: object) -> bool:
    """Whether `name` is a MODULE:NAME of the running program, which no other process can import."""
    return isinstance(name, str) and name.partition(":")[0] == PROGRAM


def session_name(given: Any, what: str) -> str:
    """MODULE:NAME of a function or class; raises `ConfigError`, one sentence, where it cannot be found by that name."""
    module, name = getattr(given, "__module__", None), getattr(given, "__qualname__", None)
    if not isinstance(given, FunctionType | type) or module is None or name is None:
        raise ConfigError(f"{what} is a {type(given).__name__}, but must be a name, a function or a class")
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is not given:
        why = "a lambda has no name" if "<lambda>" in name else "one made in another function may change with what surrounds it"
        raise ConfigError(f"{what} {name} cannot be found by its name: {why}; define it at the top of the notebook or module, "
                          "and give what varies as model_options")
    return f"{module}:{name}"


def session_sha256(name: str, option: str) -> str:
    """SHA-256 of the source of a function or class of the running program, and of all that it uses of it.

    Raises `ConfigError`, one sentence, where the program has none of that name, has no source of it, or it uses values that
    could change.
    """
    found: Any = sys.modules[PROGRAM]
    for part in name.partition(":")[2].split("."):
        found = getattr(found, part, None)
    if found is None:
        raise ConfigError(f"{option} {name} is of a notebook or script that this process does not have; only there, once it is "
                          "defined again as it was, can it be run or measured")
    parts, waiting = dict[str, str](), [found]
    while waiting:
        thing = waiting.pop()
        label = thing.__qualname__
        if label in parts:
            continue
        parts[label] = _source(thing, f"{option} {name}")
        for used, value in _globals_of(thing):
            if (module := _module_of(value)) is not None:
                if _users_own(module):
                    parts[f"module {module}"] = source_sha256(f"{module}:", option)
            elif isinstance(value, FunctionType | type):
                waiting.append(value)
            elif _plain(value):
                parts[f"{label}.{used}"] = repr(value)
            else:
                raise ConfigError(f"{option} {name} uses {used}, a {type(value).__name__} of the notebook, which may change; "
                                  "make it inside the function, or give it as model_options")
    digest = hashlib.sha256()
    for label in sorted(parts):
        digest.update(f"{label}\0{len(parts[label])}\0{parts[label]}".encode())
    return digest.hexdigest()


def check_code(name: str, recorded: str | None, option: str) -> None:
    """Raise `ConfigError` where the source of MODULE:NAME is not the one that a run was planned with."""
    if recorded is None:
        return
    now = session_sha256(name, option) if in_session(name) else source_sha256(name, option)
    if now != recorded:
        raise ConfigError(f"{option} {name} has changed: the SHA-256 of its source is {now[:12]}..., and this run is of "
                          f"{recorded[:12]}...; bring the old source back, or plan the run anew")


def _plain(value: Any) -> bool:
    return all(map(_plain, value)) if type(value) is tuple else type(value) in PLAIN


def _module_of(value: Any) -> str | None:
    """The module that `value` is, or that has it by its name; None for what is of the program itself."""
    if isinstance(value, ModuleType):
        return value.__name__
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    known = isinstance(module, str) and module != PROGRAM and isinstance(name, str)
    return str(module) if known and getattr(sys.modules.get(str(module)), str(name), None) is value else None


def _users_own(module: str) -> bool:
    """Whether a module lies in a folder of the user's: what is installed is told by its version."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if not file or not file.endswith(".py"):
        return False
    path = Path(file).resolve()
    library = Path(sysconfig.get_path("stdlib")).resolve()
    return not {"site-packages", "dist-packages"} & set(path.parts) and library not in path.parents


def _globals_of(thing: Any) -> Iterator[tuple[str, Any]]:
    """What a function, or the methods of a class, use of the program by name, and a class' bases and a function's defaults."""
    if isinstance(thing, type):
        for base in thing.__bases__:
            if base.__module__ == PROGRAM:
                yield base.__name__, base
        for value in vars(thing).values():
            function = getattr(value, "__func__", None) or getattr(value, "fget", None) or value
            if isinstance(function, FunctionType):
                yield from _globals_of(function)
        return
    for index, value in enumerate((*(thing.__defaults__ or ()), *(thing.__kwdefaults__ or {}).values())):
        yield f"default {index}", value
    for cell, used in zip(thing.__closure__ or (), thing.__code__.co_freevars, strict=True):
        if used != "__class__":
            yield used, cell.cell_contents
    for used in sorted(set(_names(thing.__code__))):
        if used in thing.__globals__:
            yield used, thing.__globals__[used]


def _names(code: CodeType) -> Iterator[str]:
    """Global names that code looks up, in the functions inside it too."""
    yield from (str(step.argval) for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"))
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _source(thing: Any, what: str) -> str:
    try:
        text = inspect.getsource(thing) if isinstance(thing, FunctionType) else _class_source(thing)
        return textwrap.dedent(text)
    except (OSError, TypeError, SyntaxError) as error:
        raise ConfigError(f"{what}: the source of {thing.__qualname__} is not known, so that nothing says which one it is; "
                          "define it in a notebook's cell or in a file") from error


def _class_source(kind: type) -> str:
    """In the file or cell of its methods: `inspect` finds no class of a notebook."""
    for value in vars(kind).values():
        function = getattr(value, "__func__", None) or getattr(value, "fget", None) or value
        if isinstance(function, FunctionType) and function.__qualname__.startswith(f"{kind.__qualname__}."):
            lines, first = linecache.getlines(function.__code__.co_filename), function.__code__.co_firstlineno
            for node in (node for node in ast.walk(ast.parse("".join(lines))) if isinstance(node, ast.ClassDef)):
                if node.name == kind.__name__ and node.lineno <= first <= (node.end_lineno or 0):
                    return "".join(lines[node.lineno - 1 : node.end_lineno])
    return inspect.getsource(kind)
