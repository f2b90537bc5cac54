"""Whatever the terminal, what is printed fits, and costs no result."""

import io
import itertools
import subprocess
import sys
import time

import pytest

from hsjax import report, terminal
from hsjax.metrics import topology
from hsjax.metrics.latents import GEOMETRY, READING
from hsjax.samplers import SAMPLERS

TERMS = {"loss": 1234.5678, "mse": 0.00012345, "regulariser": 7.8331, "beta": 0.33333}


class Screen(io.StringIO):
    """A terminal: `lines` are what its lines came to show, and the longest text in any of them."""

    def isatty(self):
        return True

    def lines(self):
        return [line.split("\r")[-1].removeprefix("\033[K") for line in self.getvalue().split("\n")]

    def longest(self):
        texts = self.getvalue().replace("\033[K", "").replace("\n", "\r").split("\r")
        return max(map(len, texts))


def screen_of(columns, monkeypatch):
    screen = Screen()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys, "stdout", screen)
    return screen


class NoFile:
    """As a logger that some programs put in the place of standard output: it only writes."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("stream", [None, closed(), object(), NoFile()])
def test_a_stream_that_is_no_file_costs_nothing(stream, monkeypatch):
    with monkeypatch.context() as patch:  # pytest itself prints to it
        patch.setattr(sys, "stdout", stream)
        terminal.tell("a line")
        with terminal.Phases() as say:
            say("a phase")
        progress = terminal.Progress(2, 5, 8)
        progress.show(1, TERMS, new=1, final=True)
        progress.close()
    if isinstance(stream, NoFile):
        assert stream.text.startswith("a line\n  a phase ... 0.0 s\nepoch 1/2 step 1/5  loss 1235")


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("ascii", "??? ? n, caf?"), ("latin-1", "??? ? n, café"), ("utf-8", "‖μ‖ √ n, café")],
)
def test_letters_that_a_terminal_lacks_are_replaced(encoding, shown, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="\n")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        terminal.tell("‖μ‖ √ n, café")
        terminal.tell("a name of another system \udce9")
    lines = stream.buffer.getvalue().decode(encoding).splitlines()
    assert lines == [shown, "a name of another system ?"]


@pytest.mark.parametrize("columns", [20, 40, 80, 200])
def test_the_progress_line_never_wraps(columns, monkeypatch):
    screen = screen_of(columns, monkeypatch)
    progress = terminal.Progress(10_000, 5000, 200)
    for step in (1, 4999, 5000, 25_000_000, 49_999_999):
        progress.show(step, TERMS, new=step)
        assert screen.longest() < columns
    progress.show(50_000_000, TERMS, new=1, final=True)
    progress.close()
    assert screen.longest() < columns
    last = screen.lines()[-2]
    assert last.startswith("epoch 10000/10000"[: columns - 1])
    if columns >= 80:
        assert "loss 1235  mse 0.0001234  regulariser 7.833" in last
        assert last.endswith(" left")


def fail():
    with terminal.Phases() as say:
        say("a failure")
        raise ValueError("x")


def test_a_long_phase_counts_its_seconds(monkeypatch):
    screen = screen_of(40, monkeypatch)
    with terminal.Phases() as say:
        say("a phase whose text is longer than the terminal")
        time.sleep(1.1)
        say("another")
    assert "\r  a phase whose text is longer 1 s\r" in screen.getvalue()
    assert screen.longest() < 40
    assert screen.lines()[-2] == "  another ... 0.0 s"
    with pytest.raises(ValueError, match="x"):
        fail()
    assert screen.getvalue().endswith("  a failure ...\n")


NUMBERS = {
    **{
        "test_images": 10_000,
        "split": "test",
        "epoch": 300,
        "mse_sum": 56.78,
        "knn_accuracy": 0.9,
        "regulariser": 1e-5,
        "terms": {"a_part": 2.0},
    },
    "latents": {name: -1.2345e-5 for name in READING},
    "geometry": {name: dict.fromkeys(GEOMETRY, -1.2345e-5) for name in ("embeddings", "normal")},
    "topology": {
        name: {key: {"ratio": 1.2345, "ratio_spread": 0.12345} for key in topology.READING}
        for name in ("embeddings", "vmf")
    },
    **{"sample_count": 10_000, "fit_split": "train"},
    "notes": ["10000 samples, as many as there are test images, and a few words more than that"],
    "generation": [
        {
            **{"distance": "FD[classifier-cifar10]", "seed": 0, "steps": 500},
            **{"test_accuracy": 0.7, "reconstructions_to_test": 12.3},
            "train_reconstructions_to_reconstructions": 0.3,
            "samplers": {
                name: dict.fromkeys(report._COLUMNS, value)
                for name, value in zip(
                    SAMPLERS, itertools.cycle((123.4, 1.234e-5, 0.5, 3.0, 0.0, 1.0))
                )
            },
        }
    ],
}


@pytest.mark.parametrize("columns", [60, 80])
def test_the_tables_fit_the_terminal(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    text = report.table(NUMBERS, "cifar10")
    assert max(map(len, text.splitlines())) <= columns
    monkeypatch.delenv("COLUMNS")
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    wide = report.table(NUMBERS, "cifar10")  # of a log file, a line is a line
    assert sorted(text.split()) == sorted(wide.split() + _repeated(text, wide))
    assert [line.split()[0] for line in wide.splitlines()[-1 - len(SAMPLERS) : -1]] == list(
        SAMPLERS
    )


def _repeated(text, wide):
    """The names of the samplers, which stand before each part of a table that is folded."""
    times = text.count("projected_gmm") - wide.count("projected_gmm")
    return times * list(SAMPLERS)


def test_what_was_closed_before_the_start_leads_nowhere(tmp_path):
    """A file that is opened next gets the number of a closed stream, and what goes there."""
    code = (
        "import os; from hsjax import cli; cli._open_streams(); "
        f"file = open({str(tmp_path / 'file')!r}, 'w'); "
        "print('lost'); os.write(1, b'lost'); os.write(2, b'lost'); file.write('kept')"
    )
    command = 'exec "$@" <&- >&- 2>&-'
    done = subprocess.run(["sh", "-c", command, "sh", sys.executable, "-c", code], check=False)
    assert done.returncode == 0
    assert (tmp_path / "file").read_text() == "kept"
