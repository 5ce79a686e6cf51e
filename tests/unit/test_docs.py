"""The pages of the library: examples run, every public name is explained, links lead somewhere."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import torch

import sharpness

ROOT = Path(sharpness.__file__).parent
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", *DOCS]
FAMILIES = {
    "operators",
    "eigenvalues",
    "trace_and_density",
    "gradient_noise",
    "keskar",
    "perturbation",
    "worst_case",
    "scale_aware",
    "basins",
    "landscapes",
    "panel",
    "inputs",
}
SECTIONS = ("## Equation", "## When it misleads", "## Example", "## Cost", "## Sources")
FUNCTIONS = [name for name in sharpness.__all__ if inspect.isfunction(getattr(sharpness, name))]
TAKES_ANYTHING = {"layers"}  # any module has layers

EXAMPLES = [pytest.param(block, id=f"{page.stem}-{number}")
            for page in PAGES
            for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL))]


def test_there_is_a_page_for_each_family() -> None:
    stems = {page.stem for page in DOCS}
    assert stems >= FAMILIES
    index = PAGES[0].read_text("utf-8")
    assert [stem for stem in sorted(stems) if f"docs/{stem}.md" not in index] == []


@pytest.mark.parametrize("block", EXAMPLES)
def test_example_runs_in_a_namespace_of_its_own(block: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An example that fails, or that prints what is not a number, misinforms whoever copies it."""
    assert len(block.strip().splitlines()) <= 15
    state = torch.get_rng_state()
    try:
        exec(compile(block, "example", "exec"), {"__name__": "example"})
    finally:
        torch.set_rng_state(state)
    printed = capsys.readouterr().out
    assert printed and "nan" not in printed


@pytest.mark.parametrize("page", [page for page in DOCS if page.stem != "wild"], ids=lambda page: page.stem)
def test_page_has_all_sections_and_a_demonstration_of_misleading(page: Path) -> None:
    text = page.read_text("utf-8")
    places = [text.find(section) for section in SECTIONS]
    assert min(places) > 0 and places == sorted(places)
    assert 40 <= len(text.splitlines()) <= (125 if page.stem in ("inputs", "operators") else 95)
    assert "assert " in "".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    assert re.search(r"arXiv \d{4}\.\d{4,5}", text)


def test_every_public_name_is_explained() -> None:
    text = "\n".join(page.read_text("utf-8") for page in DOCS)
    assert [name for name in sharpness.__all__ if not re.search(rf"\b{name}\b", text)] == []


@pytest.mark.parametrize("name", sharpness.__all__)
def test_public_docstring_says_what_is_raised_or_returned(name: str) -> None:
    """A function that refuses input says so; a result's fields are documented."""
    thing = getattr(sharpness, name)
    text = inspect.getdoc(thing) or ""
    assert text
    if name in FUNCTIONS and name not in TAKES_ANYTHING:
        assert "ValueError" in text or "Errors" in text or re.search(r"errors:? as in `", text), name
    if inspect.isclass(thing) and name not in ("Result", "SharpnessStart"):
        assert "Attributes:" in text


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_argument_is_named_in_the_docstring_or_by_reference(name: str) -> None:
    """Arguments that are only inherited need the name of the function that explains them."""
    function = getattr(sharpness, name)
    text = inspect.getdoc(function) or ""
    unnamed = [a for a in inspect.signature(function).parameters if not re.search(rf"\b{a}\b", text)]
    assert not unnamed or re.search(r"as\s+in\s+`", text), unnamed


PROJECT = ROOT.parent
LINKED = [*PROJECT.glob("*.md"), *PROJECT.glob("docs/*.md"), *PROJECT.glob("figures/**/README.md"), *PAGES,
          *PROJECT.glob("experiments/**/README.md")]


def text_of(page: Path) -> str:
    """`page` without its code, in which brackets are no links."""
    return re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text("utf-8"), flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings of `page`."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(PROJECT)))
def test_links_resolve(page: Path) -> None:
    """A reader who follows a link finds nothing, or a picture that is not there."""
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        path, _, anchor = target.partition("#")
        found = (page.parent / path) if path else page
        assert target.startswith("https://") or (found.exists() and PROJECT in found.resolve().parents), target
        assert target.startswith("https://") or not anchor or anchor in anchors(found), target


def test_every_page_is_linked_from_the_readme() -> None:
    """A page that nobody finds."""
    linked = re.findall(r"\]\((docs/[^)\s]+)\)", text_of(PROJECT / "README.md"))
    assert {page.name for page in PROJECT.glob("docs/*.md")} == {Path(target).name for target in linked}
