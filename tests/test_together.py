"""Runs that are trained together end as each would alone, and none ends another."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hsjax import data, devices, experiment, sweep
from hsjax.config import validate
from hsjax.errors import UserError
from hsjax.logs import read_metrics

ROOT = Path(__file__).parents[1]
TERMS = ("loss", "mse", "regulariser", "beta", "test_mse")


@pytest.fixture
def lean(config, monkeypatch):
    """The config of a small run that is judged by little, and not drawn."""
    config.model.stages = (2,)
    config.train.learning_rate = 1e-4  # a higher one amplifies rounding
    config.evaluate.features, config.evaluate.metrics = "none", ("knn",)
    config.evaluate.samplers = ()
    monkeypatch.setattr(experiment, "_draw", lambda folder, *_: folder.mkdir())
    return config


def of_seeds(config, *betas):
    """A config for each β, with another seed."""
    for seed, beta in enumerate(betas):
        config.seed, config.loss.beta = seed, beta
        yield config.copy_and_resolve_references()


def train(configs, folder, names="abcdef"):
    """What each run together comes to."""
    dataset = data.of_config(configs[0].data)
    workdirs = [folder / name for name, _ in zip(names, configs, strict=False)]
    return list(experiment.train_and_evaluate_together(configs, workdirs, dataset))


def assert_alike(one, other):
    """Two workdirs are of the same run, to rounding."""
    rows = read_metrics(one), read_metrics(other)
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
    for a, b in zip(*rows, strict=True):
        for name in TERMS:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-3, err_msg=name)
    numbers = [json.loads((folder / "metrics.json").read_text()) for folder in (one, other)]
    assert numbers[0]["mse_sum"] == pytest.approx(numbers[1]["mse_sum"], rel=1e-3)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"loss.relative_beta": True, "train.ema": 0.9},
        pytest.param({"train.loop": "scan"}, marks=pytest.mark.slow),
    ],
)
def test_runs_end_as_they_would_alone(lean, tmp_path, fields):
    lean.update_from_flattened_dict(fields)
    configs = list(of_seeds(lean, 0.1, 3.0))
    together = train(configs, tmp_path)
    for i, config in enumerate(configs):
        alone = tmp_path / f"alone{i}"
        numbers = experiment.train_and_evaluate(config, alone)
        assert_alike(tmp_path / "ab"[i], alone)
        assert together[i][0].keys() == numbers.keys()
        assert together[i][1] > 0
    assert not np.isclose(*(found["mse_sum"] for found, _ in together), rtol=1e-3)


def test_stopped_they_all_go_on_and_one_that_is_behind_catches_up(lean, tmp_path, monkeypatch):
    configs = list(of_seeds(lean, 0.1, 3.0))
    train(configs, tmp_path / "whole")
    asked = []

    def stop(self):
        asked.append(1)
        return signal.SIGTERM if len(asked) >= 9 else None

    with monkeypatch.context() as patch:
        patch.setattr(experiment._Signals, "received", stop)
        with pytest.raises(experiment.Interrupted, match="repeat the command"):
            train(configs, tmp_path)
    folders = [tmp_path / name / "checkpoints" for name in "ab"]
    steps = [sorted(int(name) for name in os.listdir(folder)) for folder in folders]
    assert steps[0] == steps[1]
    assert 0 < steps[0][-1] < 18
    (folders[1] / str(steps[1][-1])).rename(tmp_path / "lost")
    train(configs, tmp_path)
    for name in "ab":
        assert_alike(tmp_path / name, tmp_path / "whole" / name)
    before = (tmp_path / "a" / "metrics.jsonl").read_text()
    train(configs, tmp_path)  # they are judged again, and nothing else
    assert (tmp_path / "a" / "metrics.jsonl").read_text() == before


def test_one_that_diverges_leaves_the_others(lean, tmp_path, monkeypatch):
    configs, initial = list(of_seeds(lean, 0.1, 1.0, 3.0)), experiment._initial

    def broken(run):
        state = initial(run)
        if run.config.seed == 1:
            state.params["decoder"]["head"]["bias"] += np.float32(np.nan)
        return state

    monkeypatch.setattr(experiment, "_initial", broken)
    found = train(configs, tmp_path)
    assert isinstance(found[1][0], experiment.Diverged)
    assert "the loss is not finite in epoch 1" in str(found[1][0])
    for i, name in ((0, "a"), (2, "c")):
        experiment.train_and_evaluate(configs[i], tmp_path / f"alone{i}")
        assert_alike(tmp_path / name, tmp_path / f"alone{i}")
    only = train(configs[1:2] * 2, tmp_path / "bad")
    assert all(isinstance(end, experiment.Diverged) for end, _ in only)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            {"data.device_share": 1e-9},
            "bars.npz is streamed from the host: train its runs one by one",
        ),
        ({"train.debug_nans": True}, "debug_nans looks at one run: train the runs one by one"),
        ({}, "2 runs together take .* GB of memory, and there are 0.0: train fewer together"),
    ],
)
def test_what_cannot_be_trained_together_is_one_line(lean, tmp_path, monkeypatch, change, line):
    lean.update_from_flattened_dict(change)
    if not change:
        monkeypatch.setattr(experiment, "_is_streamed", lambda run: False)
        monkeypatch.setattr(devices, "memory", lambda: 1000)
    with pytest.raises(UserError, match=line):
        train(list(of_seeds(lean, 0.1, 3.0)), tmp_path)


def test_groups_hold_what_shares_a_program(lean, monkeypatch):
    monkeypatch.setattr(sweep.jax, "default_backend", lambda: "tpu")

    def job(kind, strength, n, seed):
        config = sweep.config_of("configs/digits.py", sweep.Point(kind, strength, n, seed), [])
        validate(config)
        return sweep.Point(kind, strength, n, seed), config

    jobs = [job(*x) for x in (("standard", 0.1, 4, 0), ("spread", 60, 4, 0), ("standard", 1, 4, 0))]
    jobs += [job("standard", 1, 8, 0), job("compressed", 3, 4, 1), jobs[0]]
    groups = [[str(point) for point, _ in group] for group in sweep.grouped(jobs, 8)]
    one = ["standard-0.1-n4-seed0"]
    # There is one device, so any number is a multiple. A folder is never in a group twice.
    assert groups == [
        [*one, "standard-1-n4-seed0"],
        ["spread-60-n4-seed0", "compressed-3-n4-seed1"],
        ["standard-1-n8-seed0"],
        one,
    ]
    assert [len(group) for group in sweep.grouped(jobs, 1)] == [1] * 6
    same = [job("standard", strength, 4, 0) for strength in range(1, 12)]
    for there, sizes in ((4, [8, 3]), (3, [6, 3, 2]), (8, [8, 3])):
        monkeypatch.setattr(sweep.jax, "local_device_count", lambda there=there: there)
        assert [len(group) for group in sweep.grouped(same, 8)] == sizes
    monkeypatch.setattr(sweep.jax, "default_backend", lambda: "cpu")
    assert [len(group) for group in sweep.grouped(same, 20)] == [8, 3]


@pytest.mark.slow
def test_a_sweep_gives_each_run_a_core(tmp_path):
    """Three runs on two host devices, as three lines; repeated, there is nothing to do."""
    command = [
        *(sys.executable, "-m", "hsjax.sweep", "standard=0.1,1,3", "--n=4", "--together=3"),
        *(
            "--set",
            "model.stages=(2,4)",
            "--set",
            "train.epochs=1",
            "--set",
            "evaluate.samplers=()",
        ),
        *("--set", "evaluate.feature_steps=5", "--set", "evaluate.metrics=('frechet',)"),
        f"--out={tmp_path / 'sweep.jsonl'}",
    ]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2"}
    for line in ("[1 to 2 of 3] standard-0.1-n4-seed0, standard-1-n4-seed0", "0 of 3 lines are"):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        assert line in done.stdout
    rows = sweep.read([tmp_path / "sweep.jsonl"])
    assert [(row["strength"], row["together"]) for row in rows] == [(0.1, 2), (1, 2), (3, 1)]
