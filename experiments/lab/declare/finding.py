"""Which studies there are: the modules of `experiments`, and the files of a folder of the user's. One that is broken is named."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import re
import sys
import tokenize
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

from experiments.lab.declare.checkout import ROOT
from experiments.lab.declare.study import Study
from experiments.lab.declare.study_checks import misfit


@dataclass(frozen=True)
class Broken:
    """A file that gives no study, or one that cannot be used."""

    study: str
    """its name, or the file's where none is known"""
    file: str
    line: int | None
    reason: str

    @property
    def sentence(self) -> str:
        return f"{self.file}{'' if self.line is None else f', line {self.line}'}: {self.reason}"


@dataclass(frozen=True)
class Found:
    studies: dict[str, Study]
    broken: tuple[Broken, ...]


def search(folder: Path | None = None) -> Found:
    """Every study of the project and of `folder`, by name. Two of one name are both broken: neither wins in silence."""
    broken: list[Broken] = []
    declared: dict[str, list[tuple[Path, Study]]] = {}
    for path in _files(folder):
        module = _imported(path)
        study = module if isinstance(module, Broken) else _study(path, module)
        if isinstance(study, Broken):
            broken.append(study)
        elif study is not None:
            declared.setdefault(study.name, []).append((path, study))
    for name, several in declared.items():
        if len(several) > 1:
            for path, _ in several:
                others = " and ".join(str(other) for other, _ in several if other != path)
                reason = f"the study {name!r} is in {others} too; rename one of them"
                broken.append(Broken(name, str(path), line_of(path, "name"), reason))
    return Found({name: several[0][1] for name, several in declared.items() if len(several) == 1}, tuple(broken))


def _files(folder: Path | None) -> list[Path]:
    """The modules of `experiments`, then the .py files of `folder` but those whose names begin with _ or a dot."""
    own = ROOT / "experiments"
    names = sorted(info.name for info in pkgutil.iter_modules([str(own)]) if not info.ispkg and info.name != "__main__")
    files = [own / f"{name}.py" for name in names]
    if folder is not None and not own.samefile(folder):
        files += sorted(path for path in folder.glob("*.py") if path.name[0] not in "._" and not path.is_dir())
    return files


def _imported(path: Path) -> ModuleType | Broken:
    """The module in the file. One of the user's folder may import its neighbours, after everything that is installed."""
    try:
        if path.parent == ROOT / "experiments":
            return importlib.import_module(f"experiments.{path.stem}")
        name = f"study {path.resolve()}"  # no other module can have this name
        if name in sys.modules:
            return sys.modules[name]
        if str(path.parent.resolve()) not in sys.path:
            sys.path.append(str(path.parent.resolve()))
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None  # of a .py file
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        return module
    except (Exception, SystemExit) as error:
        return broken_by(error, path, _name_in(path))


def broken_by(error: BaseException, path: Path | None, name: str) -> Broken:
    """Where in the file an error arose, and what it says in one sentence."""
    text = " ".join(str(error).split())
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return Broken(name, str(path), error.lineno or None, f"{type(error).__name__}: {error.msg}")
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    return Broken(name, str(path or name), line, f"{type(error).__name__}{f': {text}' if text else ''}")


def _study(path: Path, module: ModuleType) -> Study | Broken | None:
    """The module's STUDY, which knows the module; None where it has none, or only imports that of another."""
    study = getattr(module, "STUDY", None)
    elsewhere = sys.modules.get(str(getattr(study, "module", None)))
    if study is None or (elsewhere not in (None, module) and getattr(elsewhere, "STUDY", None) is study):
        return None
    wrong = misfit(study, Study, "STUDY")
    if wrong is not None:
        name = getattr(study, "name", None)
        fields = re.findall(r"\.(\w+)", wrong.partition(" ")[0])[::-1]
        return Broken(name if isinstance(name, str) else _name_in(path), str(path), line_of(path, *fields), wrong)
    return study if study.module == module.__name__ else replace(study, module=module.__name__)


def file_of(study: Study) -> Path | None:
    """Where the study is declared."""
    file = getattr(sys.modules.get(study.module), "__file__", None)
    return None if file is None else Path(file)


def line_of(path: Path | None, *words: str | None) -> int | None:
    """The first line with one of `words` in quotes or given by its name, else the one that declares the study."""
    lines = [] if path is None else _text(path).splitlines()
    for word in words:
        pattern = rf"([\"']){re.escape(word or '')}\1|\b{re.escape(word or '')}="
        if word and (found := [n for n, line in enumerate(lines, 1) if re.search(pattern, line)]):
            return found[0]
    return next((n for n, line in enumerate(lines, 1) if re.match(r"STUDY\b", line)), None)


def _name_in(path: Path) -> str:
    """The name that a study has in a file that cannot be imported, else the file's."""
    found = re.search(r"""^\s*name=["']([\w.-]+)["']""", _text(path), flags=re.MULTILINE)
    return found[1] if found else path.stem


def _text(path: Path) -> str:
    try:
        with tokenize.open(path) as file:
            return file.read()
    except (OSError, SyntaxError, UnicodeDecodeError):
        return ""
