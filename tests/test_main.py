"""The command line as a user meets it: configs, overrides, mistakes, Ctrl-C."""

import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hsjax import training
from hsjax.config import validate

ROOT = Path(__file__).parents[1]
SMOKE = "--config=configs/smoke.py"
NOT_JUDGED = (
    *("--config.evaluate.features=none", "--config.evaluate.samplers=()"),
    "--config.evaluate.metrics=()",
)
CONFIGS = sorted(p.stem for p in (ROOT / "configs").glob("*.py"))


def main(*arguments, **environment):
    return subprocess.run(
        [sys.executable, str(ROOT / "main.py"), *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_is_valid_and_says_its_command(name):
    module = importlib.import_module(f"configs.{name}")
    config = module.get_config()
    if name == "images":
        config.data.name = "faces/"
    validate(config)
    training.build_objective(config)
    if name != "default":
        assert f"hsjax train --config={name}" in module.__doc__


def test_the_pairs_have_the_dimensions_of_the_paper():
    for name, n in (("mnist", 128), ("cifar", 200)):
        for kind, loss in (("standard", "standard"), ("compressed", "spherical")):
            config = importlib.import_module(f"configs.{name}_{kind}").get_config()
            assert config.model.latent_dim == n
            assert config.method.name == loss
            assert config.model.project == (kind == "compressed")
            assert config.train.epochs == 300


def test_smoke_run_then_evaluate(tmp_path):
    workdir = tmp_path / "run"
    fields = (
        "model.latent_dim=5",
        "evaluate.feature_steps=60",
        "evaluate.samplers=('prior','vmf')",
        "evaluate.metrics=('frechet','knn')",
    )
    done = main(SMOKE, f"--workdir={workdir}", *(f"--config.{field}" for field in fields))
    assert done.returncode == 0, done.stderr
    assert "n = 5" in done.stdout
    assert "epoch 2/2" in done.stdout
    assert "k-NN accuracy" in done.stdout
    assert "Traceback" not in done.stderr
    before = json.loads((workdir / "metrics.json").read_text())
    last = done.stdout.splitlines()[-1]
    assert last.startswith("to judge it again, with other fields of sample and evaluate: python ")
    assert last.endswith(f"--mode=evaluate --workdir={workdir}")
    _, script, *typed = shlex.split(last.partition(": ")[2])
    assert Path(script).samefile(ROOT / "main.py")
    again = main(*typed)
    assert again.returncode == 0, again.stderr
    assert json.loads((workdir / "metrics.json").read_text()) == before


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--config.loss.bta=1"], 'no such config field: bta Did you mean "beta"'),
        (["--config.loss.beta=x"], "--config.loss.beta=x: could not convert string to float: 'x'"),
        (["--mode=dream"], "value should be one of <train|evaluate>"),
        (["--nonsense=1"], "Unknown command line flag 'nonsense'"),
        (["--config.model.latent_dim=1"], "latent_dim is 1: it must be a whole number from 2 to"),
        (["--config.train.batch_size=2000"], "there are 1437 training images"),
        (["--workdir=/proc/run"], "can't be written"),
        (["--mode=evaluate"], "has no checkpoint"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                (["--config=configs/digits_standard.py"], "digits_standard.py: give one of them"),
                (["digits"], "unexpected argument 'digits'"),
                (["--config", "digits_standard"], "digits_standard: give one of them"),
                (["--config.data.name=no_such_set"], "no data set 'no_such_set'"),
                (["--config.evaluate.samplers=vmf,prior"], "is ('vmf,prior',): choose from"),
            )
        ),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments, text, tmp_path):
    done = main(SMOKE, f"--workdir={tmp_path / 'run'}", *arguments)
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith("W")]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert text in lines[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("variable", "value", "text"),
    [
        ("JAX_PLATFORMS", "cuda", "JAX can't start on JAX_PLATFORMS=cuda ("),
        (
            "JAX_PLATFORMS",
            "abacus",
            "JAX can't start on JAX_PLATFORMS=abacus (Unable to initialize",
        ),
        ("JAX_ENABLE_X64", "maybe", "JAX can't start (invalid truth value 'maybe'"),
    ],
)
def test_what_keeps_jax_from_starting_is_one_line(variable, value, text, tmp_path):
    if value == "cuda" and importlib.util.find_spec("jax_plugins"):
        pytest.skip("JAX can have a CUDA plugin here")
    done = main(SMOKE, f"--workdir={tmp_path}", **{variable: value})
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {text}")
    assert not list(tmp_path.iterdir())


def test_the_help_fits_80_columns_and_names_the_file_of_all_fields():
    done = main("--help", COLUMNS="80")
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "`hsjax fields` lists every field" in done.stdout


@pytest.mark.slow  # test_experiment.py and test_faults.py stop runs, too
def test_ctrl_c_and_sigterm_save_and_the_same_command_goes_on(tmp_path):
    command = (SMOKE, f"--workdir={tmp_path}", *NOT_JUDGED)
    epochs = 0
    for number in (signal.SIGINT, signal.SIGTERM):
        before = epochs
        with subprocess.Popen(
            [sys.executable, str(ROOT / "main.py"), *command, "--config.train.epochs=100000"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        ) as run:
            lines = []
            for line in run.stdout:
                lines.append(line)
                if line.startswith("epoch"):
                    break
            time.sleep(0.2)
            run.send_signal(number)
            output, errors = run.communicate(timeout=60)
        assert run.returncode == 128 + number, errors
        assert "repeat the command to continue" in output
        assert "Traceback" not in errors
        epochs = len((tmp_path / "metrics.jsonl").read_text().splitlines())
        assert epochs > before
        assert any("continuing" in line for line in lines) == (before > 0)
    done = main(*command, f"--config.train.epochs={epochs + 2}")
    assert done.returncode == 0, done.stderr
    assert "continuing" in done.stdout
    rows = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == list(range(1, epochs + 3))


def test_the_readmes_example_runs():
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names = {}
    exec(example, names)
    assert abs(names["z_again"] - names["z"]).max() < 1e-5
    assert names["gradient"].shape == names["z"].shape


def test_import_is_quick_and_light():
    code = (
        "import sys, hsjax, hsjax.coordinates, hsjax.losses, hsjax.samplers, hsjax.models; "
        "print([m for m in ('tensorflow', 'sklearn', 'orbax', 'tensorboardX', 'matplotlib', "
        "'tensorflow_datasets') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
