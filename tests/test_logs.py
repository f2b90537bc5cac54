"""Writers of scalars and pictures: which there are, what they get, and what a restart changes."""

import json
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from hsjax import logs
from hsjax.errors import UserError

ROW = {"epoch": 1, "step": 6, "loss": 3.0, "mse": 2.0, "validation_mse": 2.5, "seconds": 0.1}
NUMBERS = {
    "mse_sum": 1.5,
    "terms": {"mean_angles": 1.0},
    "generation": [
        {"distance": "FD[x]", "seed": 0, "samplers": {"prior": {"to_test": 7.0, "kid": 0.5}}}
    ],
}


class Writer(logs._Nothing):
    """What a writer was given, in the order it came."""

    def __init__(self, workdir, first_step):
        self.given = [first_step]

    def scalars(self, step, scalars):
        self.given.append((step, scalars))

    def images(self, step, name, images):
        self.given.append((step, name, images.shape))


def test_every_writer_is_given_the_same(tmp_path, monkeypatch):
    monkeypatch.setitem(logs.WRITERS, "mine", Writer)
    with logs.Records(tmp_path, 0, 0, "mine") as records:
        records.epoch(ROW)
        records.images("originals", np.zeros((4, 6, 10, 1)), 6)
        records.results(NUMBERS, 6)
        given = records._events.given
    train = {"train/loss": 3.0, "train/mse": 2.0, "train/seconds": 0.1, "validation/mse": 2.5}
    samples = {f"samples/prior/FD[x] seed 0 {k}": v for k, v in (("to_test", 7.0), ("kid", 0.5))}
    assert given == [
        *(1, (6, train), (6, "originals", (4, 6, 10, 1))),
        (6, {"evaluation/mse_sum": 1.5} | samples),
    ]
    (row,) = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert row == ROW


def test_without_a_writer_there_is_metrics_jsonl_alone(tmp_path):
    with logs.Records(tmp_path, 0, 0, "none") as records:
        records.epoch(ROW)
        records.images("originals", np.zeros((4, 6, 10, 1)), 6)
        records.results(NUMBERS, 6)
        records.sync()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_weights_and_biases_go_on_in_the_same_run(tmp_path, monkeypatch):
    begun, logged, ended = [], [], []
    run = SimpleNamespace(
        log=logged.append, finish=lambda: ended.append(1), define_metric=lambda *_, **__: None
    )
    stub = SimpleNamespace(
        init=lambda **settings: begun.append(settings) or run,
        Image=lambda pixels: (pixels.dtype, pixels.max()),
        Settings=dict,
    )
    monkeypatch.setitem(sys.modules, "wandb", stub)
    workdir = tmp_path / "bars"
    workdir.mkdir()
    (workdir / "config.json").write_text('{"seed": 4}')
    for epoch in (0, 1):
        with logs.Records(workdir, epoch, 6 * epoch, "wandb") as records:
            records.epoch(ROW | {"epoch": epoch + 1, "step": 6 * (epoch + 1)})
            records.images("originals", np.ones((2, 6, 10, 1)), 6)
    assert begun[0]["id"] == begun[1]["id"] == (workdir / "wandb_run.txt").read_text().strip()
    assert {x["name"] for x in begun} == {"bars"}
    assert begun[0]["config"] == {"seed": 4}
    assert len(ended) == 2
    assert (logged[0]["step"], logged[0]["validation/mse"]) == (6, 2.5)
    assert logged[1] == {"step": 6, "originals": [(np.dtype("uint8"), 255)] * 2}


def test_a_run_goes_on_without_weights_and_biases(tmp_path, monkeypatch, caplog):
    def fail(*_, **__):
        raise RuntimeError("no network\nand more")

    (tmp_path / "config.json").write_text("{}")
    run = SimpleNamespace(log=fail, finish=fail, define_metric=lambda *_, **__: None)
    stub = SimpleNamespace(init=lambda **_: run, Settings=dict)
    monkeypatch.setitem(sys.modules, "wandb", stub)
    with logs.Records(tmp_path, 0, 0, "wandb") as records:
        records.epoch(ROW)
        records.epoch(ROW | {"epoch": 2, "step": 12})
    assert len(caplog.records) == 1
    assert "wandb fails (no network): going on without it" in caplog.text
    stub.init = fail
    with pytest.raises(UserError, match=r"wandb can't begin \(no network\): `wandb login`, set W"):
        logs.Records(tmp_path, 2, 12, "wandb")


def test_a_writer_that_is_not_installed_is_one_line(monkeypatch):
    monkeypatch.setattr(logs.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^log.writer=wandb: wandb is not installed: in a clone"):
        logs.check("wandb")
    for writer in ("tensorboard", "none"):
        logs.check(writer)


def test_the_best_step_is_of_validation_alone(tmp_path):
    """Of finite terms; losses under the newest β, whatever it was at the time."""
    terms = {"validation_mse": (3.0, 1.0, 2.0, math.nan), "beta": (0.0, 0.5, 1.0, 2.0)}
    terms |= {"validation_regulariser": (1.0, 4.0, 2.0, 0.0), "test_loss": (0.1,) * 4}
    rows = [
        ROW | {"epoch": e, "step": 6 * e} | {name: x[e - 1] for name, x in terms.items()}
        for e in (1, 2, 3, 4)
    ]
    steps = (6, 12, 18, 24)
    assert logs.best_step(tmp_path, "mse", steps) is None
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert logs.best_step(tmp_path, "mse", steps) == 12
    assert logs.best_step(tmp_path, "loss", steps) == 6
    assert logs.best_step(tmp_path, "loss", (18, 24)) == 18  # the others are gone
    (tmp_path / "metrics.jsonl").write_text(json.dumps(ROW | {"validation_mse": math.nan}))
    assert logs.best_step(tmp_path, "mse", steps) is None
