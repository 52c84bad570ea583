"""The notebook: it is stored clean, opens in Colab, and runs from its first cell to its last."""

import ast
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import diffunet

NOTEBOOK = Path(__file__).parents[2] / "samples" / "quickstart.ipynb"


def cells(kind):
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return [cell for cell in content["cells"] if cell["cell_type"] == kind]


def test_it_is_stored_without_what_it_once_printed_and_opens_in_colab():
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    book = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(book)
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells("code"))
    assert book.metadata.kernelspec.name == "python3"  # which Colab has
    assert "colab" in book.metadata
    assert "%pip install" in cells("code")[0]["source"][-1]


def test_the_settings_are_plain_names_and_values():
    [settings] = [cell for cell in cells("code") if "parameters" in cell["metadata"].get("tags", ())]
    names = [line.targets[0].id for line in ast.parse("".join(settings["source"])).body]
    assert names == ["DATA", "MINUTES", "PICTURES", "RUN", "FRAME"]


@pytest.mark.slow
def test_it_runs_to_its_end(tmp_path, monkeypatch):
    """With 20 images of one's own, and seconds in place of minutes."""
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(NOTEBOOK.parents[1]), os.environ.get("PYTHONPATH", "")]))
    generator = np.random.default_rng(0)
    (tmp_path / "mine").mkdir()
    for i in range(20):
        pixels = np.zeros((90, 120, 3), np.uint8)
        pixels[:] = generator.integers(0, 256, 3)
        pixels[20:70, 30 + i : 90] = generator.integers(0, 256, 3)
        Image.fromarray(pixels).save(tmp_path / "mine" / f"{i:02d}.png")
    book = nbformat.read(NOTEBOOK, as_version=4)
    [at] = [n for n, cell in enumerate(book.cells) if "parameters" in cell.metadata.get("tags", ())]
    book.cells.insert(at + 1, nbformat.v4.new_code_cell('DATA, MINUTES, PICTURES = "mine", 0.2, 2'))
    client = nbclient.NotebookClient(
        book, timeout=900, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()

    shown = [output for cell in book.cells for output in cell.get("outputs", ())]
    html = "".join(output.data.get("text/html", "") for output in shown if "data" in output)
    written = "".join(output.get("text", "") for output in shown)
    run = diffunet.open_run(tmp_path / "runs/quickstart")
    assert run.state == "done"
    assert "data:image/" in html
    assert re.search(r'<iframe src="http://localhost:\d+/\?token=', html)
    assert re.search(rf"training.*{run.step}/{run.step}", written), "the bar"
    assert "<Pipeline: UNet of 6.7 M parameters, 64x64, 3 channels, inpaint" in written
    assert len([*(tmp_path / "pictures").glob("*.png")]) == 2
    before = np.asarray(Image.open(tmp_path / "mine/00.png"))
    known = np.ones(before.shape[:2], bool)
    known[30:60, 40:80] = False
    fillings = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "filled").iterdir())]
    assert len(fillings) == 4
    assert all(np.array_equal(each[known], before[known]) for each in fillings)
    assert not np.array_equal(fillings[0], fillings[1])
