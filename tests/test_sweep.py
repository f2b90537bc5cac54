"""The sweep does what is missing, once, whatever a kill left; its comparison is at equal error."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from hsjax import experiment, settings, sweep
from hsjax.errors import UserError

ROOT = Path(__file__).parents[1]
TINY = (
    *("model.stages=(2,4)", "train.epochs=1", "evaluate.feature_steps=5"),
    *("evaluate.samplers=('prior',)", "evaluate.metrics=('frechet',)"),
)


def line(kind, strength, seed, mse, distance, n=4):
    """A finished run, as far as the tables look at it."""
    network = {"distance": "FD[x]", "samplers": {"prior": {"to_test": distance}}}
    numbers = {
        "mse_sum": mse,
        "mse_sum_sampled_z": 2 * mse,
        "mse_per_value_x1000": mse,
        "sample_count": 9,
        "fit_split": "train",
        "generation": [network, {**network, "samplers": {"prior": {"to_test": distance + 2}}}],
    }
    config = {"train": {"epochs": 1}, "data": {"name": "digits"}}
    point = sweep.Point(kind, strength, n, seed)._asdict()
    return {**point, "config": config, "numbers": numbers}


def test_points_are_seed_by_seed_and_shards_share_them():
    wanted = sweep.points(["standard=0.1,1", "spread=60"], [4, 8], [0, 1])
    assert len(wanted) == len(set(wanted)) == 12
    assert [point.seed for point in wanted] == [0] * 6 + [1] * 6
    shares = [wanted[i::5] for i in range(5)]
    assert sorted(p for share in shares for p in share) == sorted(wanted)


@pytest.mark.parametrize("base", ["configs/digits.py", "configs/digits_standard.py"])
@pytest.mark.parametrize("kind", settings.all_settings())
def test_every_kind_is_a_valid_config_with_its_strength(kind, base):
    unset = "method.std_angle_gain" in settings.find(kind).fields
    changes = ["method.std_angle_gain=7.0"] * unset
    changes += ["method.class_stride=3"] * ("method.classes" in settings.find(kind).fields)
    config = sweep.config_of(base, sweep.Point(kind, 7.5, 16, 3), changes)
    group, field = settings.find(kind).strength.split(".")
    assert config[group][field] == 7.5
    assert config.method.name == settings.find(kind).method
    assert (config.model.latent_dim, config.seed) == (16, 3)
    assert config.loss.annealing_epochs == (100 if config.loss.annealing == "none" else 34)


def test_the_file_of_another_method_gives_nothing_of_its_own():
    """The compressed pair has a projection and annealing, which are not its twin's."""
    point = sweep.Point("standard", 0.1, 16, 0)
    ours, theirs = (
        sweep.config_of(f"configs/digits_{name}.py", point, [])
        for name in ("standard", "compressed")
    )
    assert (theirs.model.project, theirs.loss.annealing) == (False, "none")
    assert ours.model == theirs.model
    assert ours.method == theirs.method
    changes = ["loss.annealing_epochs=5"]
    point = point._replace(kind="compressed")
    assert sweep.config_of("digits", point, changes).loss.annealing_epochs == 5


def test_what_is_missing_is_done_once(tmp_path, monkeypatch, capsys):
    """Killed while it wrote a line, the sweep repeats that run alone."""
    out, done = tmp_path / "a" / "sweep.jsonl", []

    def run(point, config, dataset, workdir):
        done.append(point)
        row = line(point.kind, point.strength, point.seed, 1.0, 2.0, point.n)
        return row | {"config": sweep.identity(config)}

    monkeypatch.setattr(sweep, "run", run)
    command = ["tradeoff", "standard=0.1,0.3", "spread=3", "--n=4", f"--out={out}"]
    monkeypatch.setattr(sys, "argv", command)
    sweep.main()
    assert len(done) == 3
    whole = out.read_text()
    out.write_text(whole[:-20])
    sweep.main()
    assert done[3:] == [done[2]]
    rows = sweep.read([out])
    assert [sweep.Point(*(row[f] for f in sweep.Point._fields)) for row in rows] == done[:3]
    monkeypatch.setattr(sys, "argv", [*command, "--set", "train.batch_size=50"])
    sweep.main()
    assert len(done) == 7  # other runs
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["tradeoff", "--plot", str(out)])
    sweep.main()
    output = capsys.readouterr().out
    assert len(done) == 7
    assert (out.parent / "sweep_n4.png").exists()
    assert "sweep_n4.png" in output


def test_runs_are_judged_in_several_ways_and_told_apart(tmp_path, monkeypatch, capsys):
    out, judged = tmp_path / "sweep.jsonl", []

    def run(point, config, dataset, workdir):
        judged.append((config.evaluate.split, config.evaluate.batch_norm))
        assert workdir == tmp_path / "sweep" / str(point)
        assert (config.train.epochs, config.loss.annealing_epochs) == (9, 3)
        assert config.train.decay_epochs == (7,)  # 80 of 100
        row = line(point.kind, point.strength, point.seed, 1.0, 2.0, point.n)
        row["numbers"] |= {name: config.evaluate[name] for name in ("split", "batch_norm")}
        for network in row["numbers"]["generation"]:
            network["samplers"] = {key: {"to_test": 2.0} for key in config.evaluate.samplers}
        return row | {"config": sweep.identity(config)}

    monkeypatch.setattr(sweep, "run", run)
    fields = "evaluate.split=validation;evaluate.batch_norm=batch"
    command = ["sweep", "compressed=3,10", "--n=4", f"--out={out}", "--epochs=9"]
    command += ["--set", "data.validation_share=0.1", "--judge", fields]
    command += ["--judge", "evaluate.samplers=('gmm',)"]
    monkeypatch.setattr(sys, "argv", command)
    sweep.main()
    assert judged == 2 * [("test", "running"), ("validation", "batch"), ("test", "running")]
    sweep.main()
    assert len(judged) == 6  # all are done
    output = capsys.readouterr().out
    assert "of samples to test images, BatchNorm running, by sampler" in output
    assert "of samples to validation images, BatchNorm batch, by sampler" in output
    told = [row.split() for row in output.splitlines() if row.strip().startswith("compressed")]
    assert {runs for _, _, _, runs, *_ in told} == {"1"}
    assert (tmp_path / "sweep_n4.png").exists()
    assert (tmp_path / "sweep_2_n4.png").exists()
    assert (tmp_path / "sweep_3_n4.png").exists()


def test_a_longer_run_is_no_shorter_one(tmp_path, monkeypatch):
    point = sweep.Point("standard", 0.1, 4, 0)
    config = sweep.config_of("digits", point, [], 3)
    monkeypatch.setattr(experiment, "train_and_evaluate", lambda *_, **__: {"epoch": 9})
    with pytest.raises(UserError, match="for 9 epochs before, and 3 are wanted now"):
        sweep.run(point, config, None, tmp_path)


def test_a_quick_sweep_may_be_shorter_still(tmp_path, monkeypatch):
    lengths = set()

    def run(point, config, dataset, workdir):
        lengths.add((config.train.epochs, config.train.decay_epochs))
        return line(*point[:2], 0, 1.0, 2.0, point.n) | {"config": sweep.identity(config)}

    monkeypatch.setattr(sweep, "run", run)
    monkeypatch.setattr(sweep, "report", lambda *_: None)
    for epochs in ([], ["--epochs=10"]):
        monkeypatch.setattr(sys, "argv", ["sweep", "--quick", f"--out={tmp_path}/x", *epochs])
        sweep.main()
    assert lengths == {(60, (48,)), (10, (8,))}


def test_images_that_take_too_much_memory_stay_on_the_host(tmp_path, monkeypatch):
    kinds = []

    def run(point, config, dataset, workdir):
        kinds.append(isinstance(dataset.train_images, jax.Array))
        return line(*point[:2], 0, 1.0, 2.0, point.n) | {"config": sweep.identity(config)}

    monkeypatch.setattr(sweep, "run", run)
    monkeypatch.setattr(sweep, "report", lambda *_: None)
    for share in (0.25, 0.0):
        command = ["sweep", "rae=1", f"--out={tmp_path}/x", f"--set=data.device_share={share}"]
        monkeypatch.setattr(sys, "argv", command)
        sweep.main()
    assert kinds == [True, False]


def test_equal_error_interpolates_between_averages_over_seeds():
    rows = [
        line("standard", 0.1, 0, 1.0, 30.0),
        line("standard", 0.1, 1, 3.0, 50.0),
        line("standard", 0.3, 0, 6.0, 20.0),
        line("spread", 3.0, 0, 2.0, 10.0),
        line("spread", 9.0, 0, 4.0, 14.0),
        line("half", 9.0, 0, 1.0, 1.0),  # one point reaches no other error
    ]
    found = sweep.equal_error(rows, "prior", 3.0)
    # Feature networks: + 0 and + 2. Standard: (2, 40) to (6, 20); spread: (2, 10) to (4, 14).
    assert found == pytest.approx({"standard": 36.0, "spread": 13.0})
    text = sweep.table(rows, ["prior"]).splitlines()
    assert len({len(row) for row in text}) == 1
    assert "41 ± 14" in text[-2]  # the deviation of 31 and 51


@pytest.mark.slow
def test_a_whole_point_of_a_sweep_then_one_that_diverges(tmp_path, monkeypatch):
    point = sweep.Point("spread", 3.0, 4, 0)
    config = sweep.config_of("configs/digits_standard.py", point, list(TINY))
    dataset = experiment.data.load("digits")
    row = sweep.run(point, config, dataset, tmp_path / "run")
    assert json.loads(json.dumps(row)) == row
    assert row["config"] == sweep.identity(config)
    assert row["config"]["method"]["spread_target"] == 0.0
    assert len(row["numbers"]["generation"]) == 3
    sweep.report(tmp_path / "x.jsonl", [row])

    def diverges(*_, **__):
        raise experiment.Diverged("the loss is not finite")

    monkeypatch.setattr(experiment, "train_and_evaluate", diverges)
    row = sweep.run(point, config, dataset, tmp_path / "other")
    assert "not finite" in row["diverged"]
    assert "numbers" not in row
    sweep.report(tmp_path / "x.jsonl", [row])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["magic=1"], "the kind of model is one of standard"),
        (["standard=x"], "write a kind as standard=0.1,0.3"),
        (["standard=1", "--n=a"], "hold whole numbers"),
        (["standard=1", "--shard=3/2"], "a shard from 1/k to k/k"),
        (["standard=1", "--set", "train.epoks=3"], "--set train.epoks=3"),
        (["standard=1", "--set", "train.epochs=many"], "--set train.epochs=many"),
        (["standard=1", "--config=nowhere.py"], "no such file; those with names are"),
        (["standard=-1"], "loss.beta is -1.0"),
        (["standard=1", "--config=digits:rae"], "give the file alone, and rae=STRENGTH"),
        (["standard=1", "--set", "seed=7"], "--set seed=7: give it by --n, --seeds or standard="),
        (["standard=1", "--set", "loss.beta=2"], "--n, --seeds or standard=STRENGTH"),
        (["--plot", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["standard=1", "--together=0"], "--together=0: make it 1 or more"),
        ([], "give points such as"),
    ],
)
def test_a_mistake_is_one_line(arguments, text, tmp_path, monkeypatch, capsys):
    command = ["tradeoff", *arguments, f"--out={tmp_path / 'o.jsonl'}"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as caught:
        sweep.main()
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1
    assert not (tmp_path / "o.jsonl").exists()


def test_help_starts_from_the_top_folder():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.tradeoff", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--shard" in done.stdout
    assert not np.any([w in done.stderr for w in ("Traceback", "Warning")])
