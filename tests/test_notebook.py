"""The tour runs from start to end and shows what it promises; its two files agree."""

import re
from pathlib import Path

import jupytext
import nbclient
import nbformat
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"


def test_the_pair_agrees():
    edited = jupytext.read(FOLDER / "tour.py")
    notebook = nbformat.read(FOLDER / "tour.ipynb", as_version=4)
    nbformat.validate(notebook)
    cells = [[(cell.cell_type, cell.source) for cell in tour.cells] for tour in (edited, notebook)]
    assert cells[0] == cells[1], "make the notebook again, see CONTRIBUTING.md"


def test_outputs_are_stored_for_who_only_looks():
    """They are whole, of this notebook's cells in order, and speak of no machine's folders."""
    notebook = nbformat.read(FOLDER / "tour.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    check(*shown_in(outputs))
    assert not re.findall(r"/(?:home|root|tmp|work|Users)/", str(outputs))


def executed(epochs: int, monkeypatch) -> tuple[str, list[str]]:
    """What the tour prints, and the media types of what it displays."""
    monkeypatch.setenv("HSJAX_TOUR_EPOCHS", str(epochs))
    tour = jupytext.read(FOLDER / "tour.py")
    where = {"metadata": {"path": str(FOLDER)}}
    nbclient.NotebookClient(tour, timeout=600, kernel_name="python3", resources=where).execute()
    return shown_in([output for cell in tour.cells for output in cell.get("outputs", ())])


def shown_in(outputs: list) -> tuple[str, list[str]]:
    """What these print, and the media types of what they display."""
    streams = [output for output in outputs if output.output_type == "stream"]
    assert [output.text for output in streams if output.name == "stderr"] == []
    shown = [media for output in outputs for media in output.get("data", ())]
    return "".join(output.text for output in streams), shown


def check(text: str, shown: list[str]) -> None:
    assert "(cpu), jax" in text.splitlines()[0]
    errors = re.findall(r"^ *[\d,]+ +[\d,]+  (\d\.\de-\d\d)$", text, re.MULTILINE)
    assert len(errors) == 3
    assert max(map(float, errors)) < 1e-6
    for name in ("standard", "compressed"):
        assert f"\n{name}: mse " in text
    assert "FD[classifier-digits] of samples to test images" in text
    assert shown.count("image/png") >= 14
    assert "text/html" in shown  # the globe that turns
    # The two models of one's own, each from its first epoch on.
    terms = re.findall(r"^epoch +(\d+)  loss ([\d.]+)  .*mean_angles ", text, re.MULTILINE)
    start = [i for i, (epoch, _) in enumerate(terms) if epoch == "1"]
    assert len(start) == 2
    for rows in (terms[: start[1]], terms[start[1] :]):
        assert float(rows[-1][1]) < 0.9 * float(rows[0][1])


@pytest.mark.slow
def test_a_short_tour(monkeypatch):
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # it is nearly all compilation
    check(*executed(2, monkeypatch))


@pytest.mark.slow
def test_the_whole_tour(monkeypatch):
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")  # it is nearly all training
    text, shown = executed(100, monkeypatch)
    check(text, shown)
    standard, compressed = re.search(
        r"mean cosine between two latents +(\S+) +(\S+)", text
    ).groups()
    assert abs(float(standard)) < 0.1
    assert float(compressed) > 0.9
