"""What docs/library.md says is run as it stands there, and the notebook beside it in a kernel of its own."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from nbclient import NotebookClient

import pipeline as ew
from pipeline.recipe import parse_recipe
from pipeline.stages import benchmark

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "library.md").read_text()
NOTEBOOK = ROOT / "docs" / "library.ipynb"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.mark.slow
def test_page_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(benchmark, "SECONDS_PER_CANDIDATE", 0.01)
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks("python"):
        exec(compile(block, "library.md", "exec"), names)
    said = capsys.readouterr().out
    assert re.search(
        r"^model\.onnx: [\d,]+ bytes, (\d\d\.\d dB SQNR against|equal to) the model on 8 samples$", said, re.M
    )
    assert "Model: Net, FP32: image [N, 3, 16, 16] float32 -> output\n" in said
    assert "['head.0', 'head.1']" in said
    assert "photos.zip" in said
    assert (tmp_path / "trained.onnx").is_file()
    assert (tmp_path / "out" / "report.html").is_file()


def test_snippet_of_a_recipe_is_valid() -> None:
    (snippet,) = blocks("yaml")
    data = {"calibration": {"npz": "a.npz"}, "evaluation": {"npz": "b.npz"}}
    recipe = parse_recipe({"name": "page", "model": {"checkpoint": "a.pt2"}, "data": data, **yaml.safe_load(snippet)})
    assert recipe.stages[0].config.layers == {"head.*": "float", "type:LayerNorm": "float"}


def test_every_name_on_the_page_is_public() -> None:
    assert set(re.findall(r"\bew\.(\w+)", PAGE)) <= set(ew.__all__)


@pytest.mark.slow
def test_notebook_shows_the_report_when_it_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook: Any = nbformat.read(NOTEBOOK, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells)  # outputs are not committed
    found = os.pathsep.join(str(path) for path in (ROOT, ROOT / ".packaging"))
    monkeypatch.setenv("PYTHONPATH", found)
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()
    *_, exported, shown = notebook.cells
    text = "".join(output.get("text", "") for output in exported.outputs)
    assert re.search(r"model\.onnx: [\d,]+ bytes, .* the model on 8 samples", text)
    (result,) = [output for output in shown.outputs if output.output_type == "execute_result"]
    assert "<table>" in result.data["text/html"]
    assert "onnx <small>INT8" in result.data["text/html"]
    assert (tmp_path / "model.onnx").is_file()
