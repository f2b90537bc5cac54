"""Whole runs: what they write, how they stop, and that resuming changes nothing."""

import json
import os
import shutil
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import of_judgement
from matplotlib.image import imread

import hsjax
from hsjax import data, experiment, training
from hsjax.checkpoints import Checkpoints
from hsjax.config import method_fields
from hsjax.errors import UserError
from hsjax.logs import read_metrics

TIMES = ("seconds", "images_per_second")


def final_state(config, workdir, count=44):
    _, state = training.create(config, (6, 10, 1), count)
    with Checkpoints(workdir / "checkpoints", 3) as checkpoints:
        return checkpoints.restore(state)


def assert_same_run(config, a, b):
    """Two workdirs hold exactly the same parameters and metrics, apart from times."""
    for x, y in zip(
        jax.tree.leaves(final_state(config, a)),
        jax.tree.leaves(final_state(config, b)),
        strict=True,
    ):
        np.testing.assert_array_equal(x, y)
    first, second = (
        [{k: v for k, v in row.items() if k not in TIMES} for row in read_metrics(w)]
        for w in (a, b)
    )
    assert first == second
    assert (a / "metrics.json").read_text() == (b / "metrics.json").read_text()


@pytest.fixture
def lean(config, monkeypatch):
    """The config of a small run that is judged by little, and not drawn."""
    config.model.stages = (2,)
    config.evaluate.features, config.evaluate.metrics = "none", ("knn",)
    config.evaluate.samplers = ()
    monkeypatch.setattr(experiment, "_draw", lambda folder, *_: folder.mkdir())
    return config


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Workdir of a whole run by config, trained once each."""
    done = {}

    def workdir(config):
        name = config.to_json()
        if name not in done:
            done[name] = tmp_path_factory.mktemp("whole")
            experiment.train_and_evaluate(config, done[name])
        return done[name]

    return workdir


def test_a_run_leaves_what_it_promises(config, tmp_path, capsys):
    numbers = experiment.train_and_evaluate(config, tmp_path / "new" / "run")
    workdir = tmp_path / "new" / "run"
    rows = read_metrics(workdir)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [row["step"] for row in rows] == [6, 12, 18]
    terms = {"loss", "mse", "regulariser", "mean_angles", "mean_radius", "std_angles", "std_radius"}
    for row in rows:
        assert terms | {"beta", "learning_rate", *TIMES} <= row.keys()
        np.testing.assert_allclose(row["beta"], (row["epoch"] / 4) ** 0.5, rtol=1e-6)
        np.testing.assert_allclose(
            row["loss"], row["mse"] + row["beta"] * row["regulariser"], rtol=1e-4
        )
    assert json.loads((workdir / "metrics.json").read_text()) == numbers
    assert numbers["test_images"] == 12
    np.testing.assert_allclose(numbers["mse_per_value_x1000"], numbers["mse_sum"] / 60 * 1000)
    assert 0 <= numbers["knn_accuracy"] <= 1
    assert json.loads((workdir / "config.json").read_text())["model"]["latent_dim"] == 4
    assert "encoder/stem/kernel" in (workdir / "parameters.txt").read_text()
    picture = imread(workdir / "figures" / "summary.png")
    assert picture.std() > 0.05
    assert {path.name for path in (workdir / "figures").iterdir()} == {
        *("summary.png", "interpolations.png", "sphere.png", "angles.png", "overlaps.png"),
        "training.png",
    }
    assert not list(workdir.glob(".*"))
    assert list((workdir / "tensorboard").glob("events.out.tfevents.*"))
    assert "tensorflow" not in sys.modules
    output = capsys.readouterr().out
    assert "44 training images of 6x10x1, 6 batches of 8 an epoch" in output
    assert "filled up with 4 seen twice" in output
    for text in ("epoch 1/3", "epoch 3/3", "images/s", "0:00 left", "k-NN accuracy", "std_radius"):
        assert text in output


def test_metrics_are_those_of_the_model(config, uninterrupted):
    """Test MSE recomputed image by image from the checkpoint."""
    workdir = uninterrupted(config)
    dataset = data.load(config.data.name)
    setup, _ = training.create(config, (6, 10, 1), 44)
    model = setup.model(training.build_objective(config), final_state(config, workdir))
    encode, decode = jax.jit(model.networks.encode), jax.jit(model.networks.decode)
    errors = []
    for image in dataset.test_images:
        x = np.pad(image / 255.0, ((1, 1), (1, 1), (0, 0)))[None].astype(np.float32)
        output = np.asarray(decode(encode(x)[:, :4]))[0, 1:-1, 1:-1]
        errors.append(np.sum((image / 255.0 - output) ** 2))
    numbers = json.loads((workdir / "metrics.json").read_text())
    np.testing.assert_allclose(numbers["mse_sum"], np.mean(errors), rtol=1e-4)


def test_training_is_given_the_train_split_and_the_seed(config, tmp_path, monkeypatch):
    config.seed = 3

    class Given(Exception):
        pass

    def given(programs, objective, state, examples, **_):
        raise Given(np.asarray(examples[0]), state.key)

    monkeypatch.setattr(experiment, "_compiled", lambda programs, *_, **__: programs)
    monkeypatch.setattr(training, "train_epoch", given)
    with pytest.raises(Given) as caught:
        experiment.train_and_evaluate(config, tmp_path)
    images, key = caught.value.args
    np.testing.assert_array_equal(images, data.load(config.data.name).train_images)
    _, expected = jax.random.split(jax.random.key(3))
    np.testing.assert_array_equal(key, jax.random.key_data(expected))


def test_an_epochs_row_is_the_mean_over_its_steps():
    history = {"mse": np.array([1.0, 2.0, 6.0, 99.0])}
    assert experiment._averages(history, 3) == {"mse": 3.0}


@pytest.mark.parametrize(
    ("loop", "calls"),
    [
        ("steps", 9),
        *(pytest.param(*x, marks=pytest.mark.slow) for x in (("steps", 2), ("scan", 1))),
    ],
)
def test_a_stopped_run_ends_as_if_it_had_not_been(
    lean, tmp_path, uninterrupted, monkeypatch, loop, calls
):
    lean.train.loop = loop
    asked = []

    def stop(self):
        asked.append(1)
        return signal.SIGTERM if len(asked) >= calls else None

    with monkeypatch.context() as patch:
        patch.setattr(experiment._Signals, "received", stop)
        with pytest.raises(experiment.Interrupted, match="repeat the command") as caught:
            experiment.train_and_evaluate(lean, tmp_path)
    assert caught.value.signal == signal.SIGTERM
    step = int(final_state(lean, tmp_path).step)
    assert 0 < step < 18
    assert (step % 6 != 0) == (loop == "steps")  # a scan is one program: it stops after it
    experiment.train_and_evaluate(lean, tmp_path)
    assert_same_run(lean, tmp_path, uninterrupted(lean))


def test_a_killed_run_with_a_truncated_checkpoint_ends_the_same(
    lean, tmp_path, uninterrupted, caplog
):
    experiment.train_and_evaluate(lean, tmp_path)
    newest = tmp_path / "checkpoints" / "18"
    largest = max((f for f in newest.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:100])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4, "st')  # the line it was writing
    (tmp_path / "metrics.json").unlink()
    experiment.train_and_evaluate(lean, tmp_path)
    assert "checkpoint of step 18 is damaged" in caplog.text
    assert_same_run(lean, tmp_path, uninterrupted(lean))


def test_a_finished_run_is_only_judged_again_and_can_be_prolonged(
    lean, tmp_path, uninterrupted, capsys
):
    lean.train.epochs = 2
    experiment.train_and_evaluate(lean, tmp_path)
    capsys.readouterr()
    experiment.train_and_evaluate(lean, tmp_path)
    assert "compiling" not in capsys.readouterr().out
    lean.train.epochs = 3
    experiment.train_and_evaluate(lean, tmp_path)
    assert_same_run(lean, tmp_path, uninterrupted(lean))


def test_evaluate_repeats_the_numbers_of_the_run(config, tmp_path, uninterrupted):
    workdir = uninterrupted(config)
    before = json.loads((workdir / "metrics.json").read_text())
    assert experiment.evaluate(workdir, of_judgement(config)) == before
    with pytest.raises(UserError, match="no checkpoint"):
        experiment.evaluate(tmp_path / "empty", of_judgement(config))
    assert not (tmp_path / "empty").exists()


def test_a_workdir_of_another_config_is_refused(config, uninterrupted):
    workdir = uninterrupted(config)
    before = sorted(f.name for f in workdir.rglob("*"))
    config.loss.beta = 0.5
    config.model.stages = (2, 8)
    with pytest.raises(UserError, match=r"another config \(loss.beta is 0.5, there 1.0; model.st"):
        experiment.train_and_evaluate(config, workdir)
    assert before == sorted(f.name for f in workdir.rglob("*"))


def test_other_data_under_the_same_name_are_one_line(lean, images_file, tmp_path):
    lean.data.name, lean.train.epochs = str(tmp_path / "x.npz"), 1
    arrays = dict(np.load(images_file))
    np.savez(tmp_path / "x.npz", **arrays)
    experiment.train_and_evaluate(lean, tmp_path / "run")
    fewer = {k: v[:20] for k, v in arrays.items()}
    np.savez(tmp_path / "x.npz", **fewer)
    with pytest.raises(UserError, match="is of a run on other data") as caught:
        experiment.evaluate(tmp_path / "run", of_judgement(lean))
    assert "\n" not in str(caught.value)


def test_a_refused_start_claims_no_workdir(config, tmp_path):
    config.train.batch_size = 100
    with pytest.raises(UserError, match=r"train.batch_size=100: there are 44 training images"):
        experiment.train_and_evaluate(config, tmp_path)
    assert not list(tmp_path.iterdir())


def test_divergence_names_the_step_and_keeps_the_last_good_checkpoint(config, tmp_path):
    config.train.decay_epochs, config.train.decay_factor = (1,), 1e30
    with pytest.raises(experiment.Diverged) as caught:
        experiment.train_and_evaluate(config, tmp_path)
    message = str(caught.value)
    assert "not finite in epoch 2, step 2 of 6: " in message
    assert "loss nan" in message
    assert "mse nan" in message
    assert "the checkpoint of step 6 is kept" in message
    assert int(final_state(config, tmp_path).step) == 6
    assert [row["epoch"] for row in read_metrics(tmp_path)] == [1]


@pytest.mark.slow
def test_beta_relative_to_the_first_epoch(lean, tmp_path):
    lean.method.spec = "published"
    lean.loss.relative_beta = True
    lean.loss.annealing = "published"
    lean.loss.beta = 0.01
    experiment.train_and_evaluate(lean, tmp_path)
    first, second, third = read_metrics(tmp_path)
    relative = 0.01 * first["mse"] / (first["regulariser"] + 1e-3)
    np.testing.assert_allclose(first["beta"], 1.0, rtol=1e-6)
    np.testing.assert_allclose(second["beta"], relative * (1**0.5 + 1), rtol=1e-4)
    np.testing.assert_allclose(third["beta"], relative * (2**0.5 + 1), rtol=1e-4)


@pytest.mark.slow
def test_beta_relative_to_nothing(lean, tmp_path):
    lean.method = method_fields("autoencoder")
    lean.loss.relative_beta = True
    with pytest.raises(UserError, match="the regulariser was 0 in the first epoch"):
        experiment.train_and_evaluate(lean, tmp_path)


def test_held_out_images_are_never_trained_on(lean, images_file, tmp_path):
    """A run sees as many images as if the others were not there, and can be judged on these."""
    lean.data.validation_share = 0.25
    numbers = experiment.train_and_evaluate(lean, tmp_path / "run")
    assert (numbers["split"], numbers["test_images"]) == ("test", 12)
    arrays = dict(np.load(images_file))
    kept = data.hold_out(data.load(str(images_file)), 0.25)
    assert len(kept.train_images) == 33
    arrays |= {"train_images": kept.train_images, "train_labels": kept.train_labels}
    np.savez(tmp_path / "kept.npz", **arrays)
    alone = lean.copy_and_resolve_references()
    alone.data.name, alone.data.validation_share = str(tmp_path / "kept.npz"), 0.0
    assert experiment.train_and_evaluate(alone, tmp_path / "alone") == numbers

    lean.evaluate.split = "validation"
    held = experiment.evaluate(tmp_path / "run", of_judgement(lean))
    assert (held["split"], held["test_images"]) == ("validation", 11)
    assert held["mse_sum"] != numbers["mse_sum"]
    assert any("held out of training" in note for note in held["notes"])
    alone.evaluate.split = "validation"
    with pytest.raises(UserError, match="needs images held out"):
        experiment.evaluate(tmp_path / "alone", of_judgement(alone))


def test_classes_that_are_left_out_are_never_trained_on(lean, images_file, tmp_path):
    """The same run as on a set without them; they are told from the others instead."""
    lean.data.leave_out, lean.data.validation_share = (1,), 0.25
    lean.evaluate.metrics = ("knn", "ood")
    numbers = experiment.train_and_evaluate(lean, tmp_path / "run")
    arrays = dict(np.load(images_file))
    labels = {split: arrays[f"{split}_labels"] != 1 for split in ("train", "test")}
    lost = int(np.sum(~labels["test"]))
    assert (numbers["test_images"], numbers["ood"]["leave_out"]["images"]) == (12 - lost, lost)
    assert numbers["ood"]["leave_out"]["name"] == f"{images_file}, class 1"
    kept = {name: array[labels[name.split("_")[0]]] for name, array in arrays.items()}
    np.savez(tmp_path / "kept.npz", **kept)
    rest = {name: array[~labels[name.split("_")[0]]] for name, array in arrays.items()}
    np.savez(tmp_path / "rest.npz", **rest)
    alone = lean.copy_and_resolve_references()
    alone.data.name, alone.data.leave_out = str(tmp_path / "kept.npz"), ()
    alone.evaluate.ood_data = str(tmp_path / "rest.npz")
    wanted = experiment.train_and_evaluate(alone, tmp_path / "alone")
    told = {name: row for name, row in numbers["ood"].pop("leave_out").items() if name != "name"}
    assert told == {n: row for n, row in wanted["ood"].pop("ood_data").items() if n != "name"}
    (note,) = [note for note in numbers["notes"] if note.startswith("left out of all images")]
    assert note.endswith(": 1")
    numbers["notes"].remove(note)
    assert numbers == wanted

    # What was loaded is checked, and what is left of it is counted.
    record = json.loads((tmp_path / "run" / "data.json").read_text())
    left = int(np.sum(labels["train"]))
    assert record.pop("training_images") == left - round(left / 4)
    assert record["train_images"]["shape"] == [44, 6, 10, 1]
    (tmp_path / "run" / "data.json").write_text(json.dumps(record))  # of an earlier version
    lean.evaluate.ood_data = str(tmp_path / "rest.npz")
    numbers = experiment.evaluate(tmp_path / "run", of_judgement(lean))
    first, second = numbers["ood"].values()
    assert first["knn"] == second["knn"] == told["knn"]

    # Nothing of the test split is looked at when settings are chosen.
    lean.evaluate.split = "validation"
    numbers = experiment.evaluate(tmp_path / "run", of_judgement(lean))
    unseen = int(np.sum(~labels["train"]))
    assert [about["images"] for about in numbers["ood"].values()] == [unseen, unseen]
    assert numbers["test_images"] == round(left / 4)
    lean.data.leave_out = (2,)
    with pytest.raises(UserError, match=r"another config \(data.leave_out is \[2\], there \[1\]"):
        experiment.train_and_evaluate(lean, tmp_path / "run")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "evaluate.metrics has ood, which needs images out of distribution: set data.leave"),
        ({"data.leave_out": (7,)}, "has no class 7: choose from its 3 between 0 and 2"),
        ({"data.leave_out": (0, 1, 2)}, "leaves 0 of 44 train images: leave 2 or more"),
        ({"evaluate.ood_data": "digits"}, "=digits: images of 8x8 are larger than 6x10: scale"),
        ({"evaluate.ood_data": "nowhere.npz"}, "nowhere.npz: no such file"),
    ],
)
def test_images_out_of_distribution_that_cannot_be_had_are_one_line(lean, tmp_path, fields, text):
    lean.evaluate.metrics = ("ood",)
    lean.update_from_flattened_dict(fields)
    with pytest.raises(UserError) as caught:
        experiment.train_and_evaluate(lean, tmp_path)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "config.json").exists()


def test_a_class_that_no_test_image_shows_is_told_from_nothing(lean, images_file, tmp_path):
    arrays = dict(np.load(images_file))
    arrays["train_labels"][:9] = 5
    np.savez(tmp_path / "x.npz", **arrays)
    lean.data.name, lean.data.leave_out = str(tmp_path / "x.npz"), (5,)
    lean.evaluate.metrics = ("ood",)
    with pytest.raises(UserError, match=r"class 5: the test split has no such image for ood"):
        experiment.train_and_evaluate(lean, tmp_path / "run")


@pytest.mark.slow
def test_a_set_without_labels(config, images_file, tmp_path, capsys):
    arrays = dict(np.load(images_file))
    np.savez(tmp_path / "x.npz", **{k: v for k, v in arrays.items() if "images" in k})
    config.data.name = str(tmp_path / "x.npz")
    config.train.epochs = 1
    config.method = method_fields("standard")
    config.sample.sampler = "prior"
    config.sample.fit_split = "test"
    numbers = experiment.train_and_evaluate(config, tmp_path / "run")
    assert not {"knn_accuracy", "linear_probe_accuracy"} & numbers.keys()
    (row,) = numbers["generation"]
    assert row["distance"] == "FD[random-conv]"
    assert {"to_test", "kid", "coverage"} <= row["samplers"]["prior"].keys()
    assert not {"overlap_within", "overlap_between"} & numbers["latents"].keys()
    output = capsys.readouterr().out
    assert "note: no labels: k-NN accuracy, linear probe and colours are left out" in output
    assert "note: no labels to train a feature network with" in output
    assert {"sphere.png", "summary.png"} <= {f.name for f in (tmp_path / "run/figures").iterdir()}


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("model.latent_dim", 1, "model.latent_dim is 1: it must be a whole number from 2"),
        ("model.stages", (), "model.stages is (): it must hold 1 to 10 whole numbers"),
        ("model.stages", (0,), "must hold 1 to 10 whole numbers from 1 to"),
        ("model.dtype", "float16", "choose one of float32, bfloat16"),
        ("method.name", "hyper", "choose one of standard, standard_projected, cartesian"),
        ("method.compression", "quarter", "choose one of full, half, none"),
        ("loss.beta", -1.0, "loss.beta is -1.0"),
        ("loss.beta", float("nan"), "loss.beta is nan"),
        ("method.eps", 0.0, "it must be a number from 1e-30 to 1e+30"),
        ("train.batch_size", 1, "train.batch_size is 1"),
        ("train.learning_rate", float("inf"), "train.learning_rate is inf"),
        ("sample.sampler", "magic", "choose one of own, prior, uniform_sphere"),
        ("sample.fit_split", "validation", "choose one of train, test"),
        ("sample.count", 1, "sample.count is 1: it must be a whole number from 2"),
        ("evaluate.samplers", ("vmf", "magic"), "('vmf', 'magic'): choose from own, prior"),
        ("evaluate.samplers", ("vmf,prior",), "('vmf,prior',): choose from own, prior"),
        ("evaluate.samplers", "vmf", "evaluate.samplers is 'vmf': choose from"),
        ("evaluate.metrics", ("fid",), "is ('fid',): choose from frechet, kid, prdc, memo"),
        ("evaluate.features", "vgg", "choose one of classifier, random, inception, none"),
        ("evaluate.features", "inception", "evaluate.inception_weights is '', which is no file"),
        ("evaluate.feature_seeds", (), "evaluate.feature_seeds is (): it must hold 1 to"),
        ("evaluate.feature_seeds", (0, -1), "evaluate.feature_seeds is (0, -1)"),
        ("evaluate.neighbours", 0, "evaluate.neighbours is 0"),
        ("evaluate.latent_scale", 0.0, "evaluate.latent_scale is 0.0: it must be a number"),
        ("data.name", "nowhere.npz", "no such file"),
    ],
)
def test_bad_fields_are_named(config, tmp_path, field, value, text):
    with config.ignore_type():
        config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError) as caught:
        experiment.train_and_evaluate(config, tmp_path)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "config.json").exists()


def quick(config):
    config.train.epochs, config.evaluate.features = 1, "none"
    config.evaluate.metrics = config.evaluate.samplers = ()
    return config


@pytest.fixture
def moved_to(config, images_file, tmp_path, monkeypatch):
    """A function: the same run with some arrays changed, or its data at another path."""
    monkeypatch.setattr(experiment, "_draw", lambda *_: None)
    arrays = dict(np.load(images_file))

    def run(name, mode=experiment.train_and_evaluate, **changes):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        changed = {key: value for key, value in (arrays | changes).items() if value is not None}
        np.savez(tmp_path / name, **changed)
        config.data.name = str(tmp_path / name)
        if mode is experiment.evaluate:
            return mode(tmp_path / "run", {"data.name": config.data.name})
        return mode(quick(config), tmp_path / "run")

    run.arrays = arrays
    return run


def test_other_data_of_the_same_name_and_shape_are_refused(moved_to):
    moved_to("x.npz")
    changed = {name: value.copy() for name, value in moved_to.arrays.items()}
    for name in changed:
        changed[name].flat[-1] += 1
        for mode in (experiment.train_and_evaluate, experiment.evaluate):
            with pytest.raises(UserError) as caught:
                moved_to("x.npz", mode, **{name: changed[name]})
            assert f"is of a run on other data ({name} differ): " in str(caught.value)
    with pytest.raises(UserError, match=r"\(test_labels, train_labels differ\)"):
        moved_to("x.npz", train_labels=None, test_labels=None)


def test_the_same_data_may_have_another_name(moved_to, tmp_path):
    numbers = moved_to("x.npz")
    labels = moved_to.arrays["train_labels"].astype(np.int8)
    for name in ("y.npz", "z/x.npz"):
        assert moved_to(name, train_labels=labels) == numbers
        assert moved_to(name, experiment.evaluate) == numbers
        assert json.loads((tmp_path / "run/config.json").read_text())["data"]["name"].endswith(name)
    (tmp_path / "run" / "data.json").unlink()  # as an earlier version left it
    with pytest.raises(UserError, match=r"another config \(data.name is .*: choose another --wor"):
        moved_to("x.npz")
    moved_to("z/x.npz")


@pytest.mark.slow
def test_numbers_do_not_depend_on_the_kind_of_jaxs_random_keys(config, tmp_path):
    def begun():
        run, state = training.create(config, (6, 10, 1), 44)
        objective, images = training.build_objective(config), np.zeros((8, 6, 10, 1), np.uint8)
        order = training.compile_programs(run, 44).order(state)
        return (
            state,
            jax.jit(training.train_step, static_argnums=0)(run, objective, state, images),
            order,
        )

    usual = begun()
    jax.config.update("jax_default_prng_impl", "rbg")
    try:
        other = begun()
    finally:
        jax.config.update("jax_default_prng_impl", "threefry2x32")
    for a, b in zip(jax.tree.leaves(usual), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_failure_to_draw_costs_no_numbers_and_no_checkpoint(config, tmp_path, monkeypatch):
    def fails(*_):
        raise RuntimeError("cannot draw")

    with monkeypatch.context() as patch:
        patch.setattr(experiment, "example_images", fails)
        with pytest.raises(RuntimeError, match="cannot draw"):
            experiment.train_and_evaluate(quick(config), tmp_path)
    assert (tmp_path / "checkpoints" / "6").is_dir()
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "_draw", fails)
        with pytest.raises(RuntimeError, match="cannot draw"):
            experiment.train_and_evaluate(config, tmp_path)
    numbers = json.loads((tmp_path / "metrics.json").read_text())
    assert np.load(tmp_path / "embeddings.npz")["test_mean"].shape == (12, 4)
    assert not list(tmp_path.glob(".*"))
    assert experiment.evaluate(tmp_path, of_judgement(config)) == numbers


def test_an_evaluation_moves_no_damaged_checkpoint(config, tmp_path, uninterrupted, caplog):
    workdir = shutil.copytree(uninterrupted(config), tmp_path / "run")
    (workdir / "checkpoints" / "18" / "sha256.json").unlink()
    numbers = experiment.evaluate(workdir, of_judgement(quick(config)))
    assert numbers["epoch"] == 2
    assert "checkpoint of step 18 is damaged: using the one before it" in caplog.text
    assert sorted(os.listdir(workdir / "checkpoints")) == ["12", "18", "6"]


def test_terms_of_other_images_stand_at_every_checkpoint(lean, tmp_path):
    """Held-out images where there are some, by a computation of one's own; else the test images."""
    lean.train.checkpoint_every, lean.data.validation_share = 2, 0.25
    experiment.train_and_evaluate(lean, tmp_path / "run")
    rows = read_metrics(tmp_path / "run")
    assert [any(k.startswith("validation_") for k in row) for row in rows] == [False, True, True]
    state = final_state(lean, tmp_path / "run", count=33)
    images = data.hold_out(data.load(lean.data.name), 0.25, "validation").test_images
    setup, _ = training.create(lean, (6, 10, 1), 33)
    objective = training.build_objective(lean)
    key = jax.random.split(training.random_key(lean.seed))[0]

    @jax.jit
    def compute(state):
        model = setup.model(objective, state)
        posterior = model.encode(images / np.float32(255.0))
        z = posterior.sample(key)
        of_batch = {"images": images, "labels": None, "key": key, "sample_key": key}
        return model.decode(z), model.regularise(posterior, z, **of_batch)

    decoded, terms = compute(state)
    mse = np.square(images / 255.0 - decoded).sum(axis=(1, 2, 3)).mean()
    np.testing.assert_allclose(rows[-1]["validation_mse"], mse, rtol=1e-4)
    np.testing.assert_allclose(rows[-1]["validation_regulariser"], terms["regulariser"], rtol=1e-4)
    loss = mse + rows[-1]["beta"] * terms["regulariser"]
    np.testing.assert_allclose(rows[-1]["validation_loss"], loss, rtol=1e-4)
    lean.data.validation_share = 0.0
    experiment.train_and_evaluate(quick(lean), tmp_path / "other")
    assert {k for k in read_metrics(tmp_path / "other")[-1] if k.startswith("test_")} >= {
        *("test_mse", "test_loss", "test_regulariser"),
    }


def test_the_best_checkpoint_is_kept_and_judged(lean, tmp_path, monkeypatch):
    """Whatever comes after it, and after a resume."""
    watched = dict(enumerate((9.0, 3.0, 5.0, 4.0, 2.0), 1))
    monkeypatch.setattr(
        experiment,
        "_watch",
        lambda run, state, beta: {
            f"validation_{k}": watched[int(state.step) // run.setup.steps] for k in ("mse", "loss")
        },
    )
    lean.data.validation_share, lean.train.keep_best = 0.25, "mse"
    lean.train.checkpoints_kept, lean.evaluate.checkpoint = 1, "best"
    kept = []
    for lean.train.epochs in (3, 4, 5):
        numbers = experiment.train_and_evaluate(lean, tmp_path)
        kept.append((numbers["epoch"], sorted(map(int, os.listdir(tmp_path / "checkpoints")))))
    assert kept == [(2, [10, 15]), (2, [10, 20]), (5, [25])]
    copy = shutil.copytree(tmp_path, tmp_path.with_name("copy"))
    (copy / "checkpoints" / "25" / "sha256.json").write_text("{}")
    with pytest.raises(UserError, match=r"best checkpoint \(step 25\) is damaged: leave evaluate"):
        hsjax.load(copy)
    lean.train.keep_best = "none"
    with pytest.raises(UserError, match=r"keeps no best checkpoint: train it with train.keep_b"):
        experiment.train_and_evaluate(lean, tmp_path)
    lean.train.keep_best, lean.data.validation_share = "loss", 0.0
    with pytest.raises(UserError, match=r"train.keep_best needs images to choose on"):
        experiment.train_and_evaluate(lean, tmp_path / "other")


@pytest.mark.slow
def test_averages_are_what_is_judged_and_survive_a_stop(lean, tmp_path):
    lean.train.ema, lean.train.epochs = 0.9, 2
    whole = experiment.train_and_evaluate(lean, tmp_path / "whole")
    lean.train.epochs = 1
    experiment.train_and_evaluate(lean, tmp_path / "parts")
    lean.train.epochs = 2
    assert experiment.train_and_evaluate(lean, tmp_path / "parts") == whole
    state = final_state(lean, tmp_path / "whole")
    setup, _ = training.create(lean, (6, 10, 1), 44)
    images = data.load(lean.data.name).test_images / np.float32(255.0)

    @jax.jit
    def error(state):
        model = setup.model(training.build_objective(lean), state)
        difference = images - model.decode(model.encode(images).mean)
        return jnp.square(difference).sum(axis=(1, 2, 3)).mean()

    np.testing.assert_allclose(whole["mse_sum"], error(state.averaged), rtol=1e-4)
    assert abs(error(state) / whole["mse_sum"] - 1.0) > 1e-3


def test_a_cosine_is_not_prolonged(lean, tmp_path):
    lean.train.schedule, lean.train.epochs = "cosine", 1
    experiment.train_and_evaluate(lean, tmp_path)
    lean.train.epochs = 2
    with pytest.raises(UserError, match=r"another config \(train.epochs is 2, there 1\)"):
        experiment.train_and_evaluate(lean, tmp_path)
