"""The quickstart notebook runs from top to bottom, and its two forms say the same."""

from __future__ import annotations

from pathlib import Path

import jupytext
import nbformat
import pytest
import synthetic
from nbclient import NotebookClient

from experiments.keskar2017 import STUDY
from experiments.lab.sweep.board import published, tally

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "notebooks" / "01_quickstart.ipynb"


def test_notebook_runs_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first thing that a reader opens fails, or shows fewer figures than the study has; from any folder."""
    monkeypatch.setenv("BATCHLAB_STORE", str(synthetic.write(tmp_path / "store", STUDY).root))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(tmp_path)}}).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    shown = [output.data for output in outputs if "data" in output]
    assert sum("image/png" in data for data in shown) == len(STUDY.figures_at("quick"))
    text = "\n".join(data.get("text/markdown", "") for data in shown)
    assert all(claim.sentence in text for claim in STUDY.claims_at("quick")) and "98.03" in text


def test_second_notebook_runs_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The notebook of all verdicts fails on what is published now, or shows a picture fewer."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(ROOT / "notebooks" / "02_who_is_right.ipynb", as_version=4)
    NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    doses = len(list((ROOT / "figures" / "dose").iterdir()))
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2 + doses
    printed = "".join(output.get("text", "") for output in outputs)
    assert tally(published()) in printed and "test_accuracy by learning rate" in printed


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook_forms_agree(path: Path) -> None:
    """One form edited without the other (`jupytext --sync`), or outputs committed with it."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    script = jupytext.read(path.with_suffix(".py"))
    assert [(c.cell_type, c.source) for c in notebook.cells] == [(c.cell_type, c.source) for c in script.cells]
    assert notebook.metadata["kernelspec"]["name"] == "python3"
    assert not [c for c in notebook.cells if c.get("outputs") or c.get("execution_count")]
