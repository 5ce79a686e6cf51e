"""Plain English wherever people read: pages, docstrings, comments, messages. Claims keep the words that were hashed."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from experiments.lab.declare.finding import search

ROOT = Path(__file__).resolve().parents[2]
COUNTED = (r"(?:examples|images|seeds|rows?|updates|epochs|values?|products|lines?|bytes|pixels|measurements?|tensors?"
           r"|colours?|markers?|dots?|entry|entries|operations|launch|(?:micro|milli)?seconds|ms|µs|us|time|spread|setting|folder"
           r"|argument|number|doublings|octaves|one|two|three|four|five|six|seven|eight|nine|ten|hundred|thousand)")
UNIT = (
    r"(?:run|group|cell|seed|second|minute|hour|update|epoch|step|batch|verdict|doubling|octave|forward|pass|hidden|layer|example|image"
    r"|class|chunk|study|product|claim|member|row|column|family|network|arm|metric|core|worker|process|value|parameter|stage|scale"
    r"|measurement|measure|workload|optimizer|trial|side|channel|point|look|curve|name|environment|grid)"
)
WORDS = {
    rf"\b{COUNTED}\s+an?\s+{UNIT}\b(?!-|\s+(?:has|needs|takes|makes)\b)": "per",
    r"\bbut\s+for\b": "except",
    r"\(none:": "default",
    r"\btests?\s+(?:worse|better)\b": "has lower (higher) test accuracy",
}
"""what a reader stumbles over -> what to write"""
FOLDERS = ("analysis", "experiments", "sharpness", "notebooks", "tests", "docs")
FILES = [
    *(page for page in ROOT.glob("*.md") if page.name not in ("LOG.md", "CHANGELOG.md")),  # what was said then
    *(file for folder in FOLDERS for form in ("*.py", "*.md") for file in (ROOT / folder).rglob(form)),
]


def read(file: Path) -> str:
    """What people read of a file: the front page without a program's output, a study without the strings that its claims are."""
    text = file.read_text("utf-8")
    if file == ROOT / "README.md":
        return re.sub(r"<!-- begin:(\w+) -->.*?<!-- end:\1 -->", "", text, flags=re.DOTALL)
    if file.parent != ROOT / "experiments":
        return text
    nodes = (node for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef)))
    return "\n".join([*re.findall(r"# .*", text), *(ast.get_docstring(node) or "" for node in nodes)])


def faults(text: str) -> list[str]:
    return [f"{' '.join(found.group().split())!r}: write {better}" for words, better in WORDS.items()
            for found in re.finditer(words, text)]


def test_words() -> None:
    """`seeds a group` sounds like a verb to half of the readers, `but for` like an exception to the others."""
    found = {str(file.relative_to(ROOT)): faults(read(file)) for file in FILES if file != Path(__file__)}
    assert {file: words for file, words in found.items() if words} == {}


def test_titles_and_what_was_tried() -> None:
    """The pages of studies have the wording of the field too, except in claims."""
    studies = search(None).studies.values()
    said = [words for study in studies for words in (study.title, *study.tried, *(scale.about for scale in study.scales))]
    assert len(said) > 50
    assert [fault for words in said for fault in faults(words)] == []
