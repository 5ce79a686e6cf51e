"""A user's own code by name, MODULE:NAME, and the hash of its source. Nothing here imports it: plans and records need neither."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import re
import sys
from pathlib import Path

from experiments.lab.declare.errors import ConfigError

_PLACE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


DATA_FORMATS = ("npz", "images", "idx", "cifar-bin", "text")
"""what stands before the colon where a user's data are a file or a folder"""


def is_own(name: str) -> bool:
    """Whether `name` is a MODULE:NAME."""
    return _PLACE.fullmatch(name) is not None


def is_own_data(name: str) -> bool:
    """Whether `name` is data of a user's own: a MODULE:NAME, or a FORMAT:PATH."""
    form, _, path = name.partition(":")
    return bool(path) if form in DATA_FORMATS else is_own(name)


def kind_of_data(name: str) -> str:
    """What stands for the name of a user's data in a run's identity, beside the hash of their content."""
    form = name.partition(":")[0]
    return form if form in DATA_FORMATS else "own"


def options_of(text: str | None) -> dict[str, str]:
    """NAME=VALUE, with blanks between, as a dict. Raises `ConfigError` for what is no such list, or is not sorted."""
    words = (text or "").split(" ") if text else []
    pairs = [word.partition("=") for word in words]
    if bad := [word for word, (name, equals, _) in zip(words, pairs, strict=True) if not (name.isidentifier() and equals)]:
        raise ConfigError(f"model_options has {bad[0]!r}, but takes NAME=VALUE, as in width=64")
    names = [name for name, _, _ in pairs]
    if names != sorted(set(names)):
        raise ConfigError(f"model_options is {text!r}, but each name must come once, in alphabetical order")
    return {name: value for name, _, value in pairs}


def source_sha256(name: str, option: str) -> str:
    """SHA-256 of the source of MODULE:NAME's module and of all that it imports from its own folder, wherever that lies.

    Raises `ConfigError` where there is no such module, or it has no source.
    """
    module = name.partition(":")[0]
    start = _file_of(module)
    if start is None:
        raise ConfigError(f"{option} {name}: there is no module {module} with a source file; run from its folder, "
                          "or name the folder in PYTHONPATH")
    folder, found, waiting = start.parent, dict[str, bytes](), [start]
    while waiting:
        path = waiting.pop()
        label = path.relative_to(folder).as_posix()
        if label not in found:
            found[label] = path.read_bytes()
            waiting += _imported(path, found[label], folder)
    digest = hashlib.sha256()
    for label in sorted(found):
        digest.update(f"{label}\0{len(found[label])}\0".encode() + found[label])
    return digest.hexdigest()


def _file_of(module: str) -> Path | None:
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        spec = importlib.util.find_spec(module)
    except Exception:  # a parent package that fails says so when it is imported
        return None
    return Path(spec.origin).resolve() if spec is not None and spec.origin and spec.origin.endswith(".py") else None


def _imported(path: Path, source: bytes, folder: Path) -> list[Path]:
    """Files of `folder` that a module there imports, by a plain or a relative name."""
    try:
        tree = ast.parse(source)
    except SyntaxError:  # the import will say so
        return []
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            base = folder
        elif isinstance(node, ast.ImportFrom):
            base = folder if node.level == 0 else path.parents[node.level - 1]
            names = [f"{node.module}.{alias.name}" if node.module else alias.name for alias in node.names]
        else:
            continue
        for name in names:
            found += _files(base, name, folder)
    return found


def _files(base: Path, name: str, folder: Path) -> list[Path]:
    """Of a dotted name below `base`: each package's `__init__.py` on the way, and the module itself."""
    parts, found = name.split("."), []
    if parts[0] == folder.name and not (base / parts[0]).exists() and not (base / f"{parts[0]}.py").exists():
        base, parts = folder, parts[1:]  # the package's own full name
    for part in parts:
        module, package = base / f"{part}.py", base / part / "__init__.py"
        found += [path for path in (module, package) if path.is_file()]
        base = base / part
    return [path for path in found if folder in path.parents]
