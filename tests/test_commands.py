"""The command `hsjax` on a trained run: what it writes, and every mistake as one line."""

import re
import sys

import numpy as np
import pytest
from conftest import tiny_config

import hsjax
from configs import default
from hsjax import cli, data, experiment
from hsjax.config import _FIELDS, _schema
from hsjax.inference import to_uint8
from hsjax.methods import METHODS


@pytest.fixture(scope="module")
def workdir(images_file, tmp_path_factory):
    config = tiny_config(images_file)
    config.evaluate.features, config.evaluate.metrics = "none", ()
    config.train.epochs = 1
    path = tmp_path_factory.mktemp("run") / "bars"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "_draw", lambda folder, *_: folder.mkdir())
        experiment.train_and_evaluate(config, path)
    return path


@pytest.fixture
def command(monkeypatch, capsys):
    """(exit status, standard output, standard error) of `hsjax ARGUMENTS`."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["hsjax", *map(str, arguments)])
        try:
            cli.main()
            status = 0
        except SystemExit as stop:
            status = stop.code or 0
        return status, *capsys.readouterr()

    return run


def test_sample_writes_what_a_loaded_run_samples(workdir, command, tmp_path):
    asked = ("--workdir", workdir, "--count", 11, "--sampler", "vmf", "--seed", 3)
    assert command("sample", *asked, "--out", tmp_path / "x.npz") == (
        *(0, f"11 images of vmf: {tmp_path / 'x.npz'}\n", ""),
    )
    (images,) = dict(np.load(tmp_path / "x.npz")).values()
    expected = hsjax.load(workdir).sample(11, "vmf", seed=3)
    np.testing.assert_array_equal(images, to_uint8(expected))
    command("sample", "--workdir", workdir, "--out", tmp_path / "pngs")
    assert len(list((tmp_path / "pngs").glob("*.png"))) == 64


def test_reconstruct_writes_reconstructions_or_the_images(workdir, command, images_file, tmp_path):
    images = data.load(str(images_file))
    run = hsjax.load(workdir)
    for arguments, expected in (
        ((), to_uint8(run.reconstruct(images.test_images))),
        (("--originals", "--count", 5), images.test_images[:5]),
        (("--originals", "--split", "train", "--data", images_file), images.train_images),
    ):
        out = tmp_path / f"{len(expected)}.npz"
        assert command("reconstruct", "--workdir", workdir, "--out", out, *arguments)[0] == 0
        np.testing.assert_array_equal(np.load(out)["arr_0"], expected)


def test_interpolate_takes_images_where_there_are_some(workdir, command, tmp_path):
    run, asked = hsjax.load(workdir), ("--workdir", workdir, "--count", 2, "--steps", 3)
    assert command("interpolate", *asked, "--out", tmp_path / "a.npz")[0] == 0
    means = run.posterior("test").mean
    chosen = means[np.random.default_rng(0).permutation(12)[:4]]
    rows = run.interpolate(chosen[:2], chosen[2:], 3)
    found = np.load(tmp_path / "a.npz")["arr_0"]
    np.testing.assert_array_equal(found, to_uint8(rows.reshape(-1, 6, 10, 1)))
    command("interpolate", *asked, "--between", "samples", "--out", tmp_path / "b.npz")
    z = run.sample_latents(4)
    rows = run.interpolate(z[:2], z[2:], 3)
    found = np.load(tmp_path / "b.npz")["arr_0"]
    np.testing.assert_array_equal(found, to_uint8(rows.reshape(-1, 6, 10, 1)))


def test_export_writes_what_can_be_loaded_and_used(workdir, command, tmp_path):
    out = tmp_path / "out"
    asked = ("--samplers", "vmf,prior", "--format", "npz", "--half", "--note", "By hand.")
    assert command("export", "--workdir", workdir, "--out", out, *asked)[:2] == (
        *(0, f"exported: {out}\n"),
    )
    assert {path.name for path in out.iterdir()} == {
        *("README.md", "card.json", "model.npz", "samplers.npz"),
    }
    assert "By hand." in (out / "README.md").read_text()
    for name, status in (("vmf", 0), ("gaussian", 2)):
        asked = ("--workdir", out, "--sampler", name, "--out", tmp_path / name)
        assert command("sample", *asked)[0] == status
    assert command("interpolate", "--workdir", out, "--out", tmp_path / "i.png")[0] == 2
    asked = ("--sampler", "prior", "--out", tmp_path / "i.png")
    assert command("interpolate", "--workdir", out, *asked)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["dream"], "no such command: dream: choose one of train, evaluate, sample,"),
        (["sample"], "required: --workdir, --out: hsjax sample --help explains the flags"),
        (["sample", "--workdir=W", "--out=O", "--cuont=3"], "unrecognized arguments: --cuont=3"),
        (["sample", "--workdir=W", "--out=O", "--count=x"], "invalid int value: 'x'"),
        (["sample", "--workdir=W", "--out=O", "--count=0"], "count is 0: make it a whole"),
        (["sample", "--workdir=W", "--out=O", "--sampler=x"], "'x' is no sampler: choose"),
        (["sample", "--workdir=.", "--out=O"], "holds no trained model"),
        (["sample", "--workdir=W", "--out=W"], "is there already: nothing is overwritten"),
        (["sample", "--workdir=W", "--out=/proc/x"], "can't be written"),
        (["reconstruct", "--workdir=W", "--out=O", "--count=99"], "--count=99: there are 12"),
        (["reconstruct", "--workdir=W", "--out=O", "--data=digits"], "images have shape"),
        (["interpolate", "--workdir=W", "--out=O", "--count=7"], "make it 1 to 6 pairs"),
        (["interpolate", "--workdir=W", "--out=O", "--steps=1", "--count=2"], "steps is 1"),
        (["export", "--workdir=W", "--out=O", "--format=pt"], "--format=pt: choose one of"),
        (["export", "--workdir=W", "--out=O", "--samplers=x"], "--samplers: 'x' is none"),
        (["fields", "nothing"], "nothing is no group, field or method"),
    ],
)
def test_a_mistake_is_one_line(workdir, command, tmp_path, monkeypatch, arguments, text):
    monkeypatch.chdir(tmp_path)
    arguments = [x.replace("W", str(workdir)).replace("O", str(tmp_path / "o")) for x in arguments]
    before = sorted(workdir.rglob("*"))
    status, output, line = command(*arguments)
    assert (status, output) == (2, "")
    assert re.fullmatch(rf"error: [^\n]*{re.escape(text)}[^\n]*\n", line), line
    assert not list(tmp_path.iterdir())
    assert sorted(workdir.rglob("*")) == before


def test_every_field_is_listed_with_its_default_and_its_meaning(command):
    _, output, _ = command("fields")
    shown = re.findall(r"^([a-z_.]+) = (.*)\n    (\S.*)", output, re.MULTILINE)
    fields = default.get_config().to_dict()
    assert {name for name, *_ in shown} == {*_FIELDS, "method.name"}
    for name, value, _ in shown:
        group, _, field = name.rpartition(".")
        assert eval(value) == (fields[group] if group else fields)[field]
    for name in METHODS:
        _, output, _ = command("fields", name)
        shown = re.findall(r"^method.(\w+) = (.*)\n    (\S.*)", output, re.MULTILINE)
        assert [field for field, *_ in shown] == list(_schema(name)), name
    assert command("fields", "train")[1].startswith("train.epochs = 300\n")
    assert command("fields", "data.size")[1].count("=") == 1


def test_help_fits_80_columns(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("", *list(cli.COMMANDS)[2:]):
        status, output, _ = command(*filter(None, [name, "--help"]))
        assert status == 0
        assert max(map(len, output.splitlines())) <= 80
        assert "hsjax" in output
