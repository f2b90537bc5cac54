"""A loaded model against the process that trained it, to the bit, and what can be wrong with it."""

import json
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config
from flax import nnx

import hsjax
from hsjax import data, evaluation, experiment, exporting, inference, runs
from hsjax.errors import UserError
from hsjax.metrics import features, frechet
from hsjax.samplers import SAMPLERS, slerp

NAMES = tuple(name for name, sampler in SAMPLERS.items() if not sampler.learned)


@pytest.fixture(scope="module")
def trained(images_file, tmp_path_factory):
    """A run, the images, and what its own evaluation had in memory."""
    kept, evaluate = {}, evaluation.evaluate
    config = tiny_config(images_file)
    config.evaluate.samplers = NAMES
    workdir = tmp_path_factory.mktemp("run") / "bars"

    def keeping(config, setup, functions, state, dataset, *rest):
        found = evaluate(config, setup, functions, state, dataset, *rest)
        encoded = inference.embed(functions, state, dataset.test_images, 8)
        decoded = np.concatenate(list(inference.decoded(functions, state, encoded.mean, 8)))
        kept.update(found=found, state=jax.device_get(state), encoded=encoded, decoded=decoded)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "evaluate", keeping)
        patch.setattr(experiment, "_draw", lambda folder, *_: folder.mkdir())
        numbers = experiment.train_and_evaluate(config, workdir)
    images = data.load(str(images_file))
    return SimpleNamespace(workdir=workdir, numbers=numbers, images=images, config=config, **kept)


@pytest.fixture(scope="module")
def run(trained):
    return hsjax.load(trained.workdir)


def assert_equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_all_numbers_are_those_of_the_training_process(run, trained):
    assert run.metrics == trained.numbers
    assert run.config.to_dict() == trained.config.to_dict()
    assert (run.shape, run.latent_dim, run.epoch) == ((6, 10, 1), 4, 3)
    assert_equal(run.state, trained.state)
    assert_equal(run.encode(trained.images.test_images), trained.encoded)
    assert_equal(run.reconstruct(trained.images.test_images), trained.decoded)
    assert_equal(run.posterior("test"), trained.encoded)
    assert_equal(run.posterior(), trained.found.posteriors["train"])
    for name in NAMES:
        panel = trained.found.panels[f"samples: {name}"]
        np.testing.assert_array_equal(inference.to_uint8(run.sample(12, name)), panel)
    assert repr(run).endswith("bars': spherical, n = 4, images (6, 10, 1), epoch 3)")


def test_samples_written_as_pictures_are_as_far_from_the_data_as_in_memory(run, trained, tmp_path):
    """A folder of PNGs, counted, read back and judged by the same network."""
    from PIL import Image

    from hsjax import output

    (row,) = trained.numbers["generation"]
    assert output.save(tmp_path / "pngs", run.sample_batches(12, "vmf")) == 12
    files = sorted((tmp_path / "pngs").iterdir())
    assert [file.name for file in files] == [f"{i:06d}.png" for i in range(12)]
    images = np.stack([np.asarray(Image.open(file)) for file in files])[..., None]
    network = features.classifier(trained.images, seed=0, steps=60)
    samples, test = (
        frechet.moments(network.extract(x)) for x in (images, trained.images.test_images)
    )
    assert frechet.frechet_distance(samples, test) == row["samplers"]["vmf"]["to_test"]


def test_any_number_of_images_of_either_kind(run, trained):
    images = trained.images.train_images
    whole = run.encode(images).mean
    assert whole.shape == (44, 4)
    for few in (images[:1], images[:1, ..., 0], images[:11]):
        np.testing.assert_allclose(run.encode(few).mean, whole[: len(few)], rtol=1e-5, atol=1e-6)
    floats = images.astype(np.float64) / 255.0
    np.testing.assert_allclose(run.encode(floats).mean, whole, rtol=1e-4, atol=1e-5)
    made = run.decode(whole)
    assert (made.shape, made.dtype) == ((44, 6, 10, 1), np.float32)
    assert 0 <= made.min() < made.max() <= 1


def test_seeds_parts_and_samplers_give_other_samples(run, monkeypatch):
    first = run.sample(5, "prior")
    np.testing.assert_array_equal(run.sample(5, "prior"), first)
    assert (run.sample(5, "prior", seed=1) != first).any()
    assert (run.sample(5) == run.sample(5, "projected_gaussian")).all()
    monkeypatch.setattr(runs, "CHUNK", 5)
    parts = run.sample(12, "prior")
    np.testing.assert_array_equal(parts[:5], first)
    latents = [run.sample_latents(n, "prior", part=i) for i, n in enumerate((5, 5, 2))]
    np.testing.assert_array_equal(run.decode(np.concatenate(latents)), parts)
    assert (parts[5:10] != first).any()
    # Samplers share no random numbers either: both of these scale the same kind of vector.
    prior, uniform = (run.sample_latents(5, name) for name in ("prior", "uniform_sphere"))
    assert abs(np.sum(prior * uniform, axis=1) / np.linalg.norm(prior, axis=1)).min() < 1.9


def test_interpolations_go_along_the_sphere_from_end_to_end(run, trained):
    images = trained.images.test_images
    z = run.encode(images).mean
    rows = run.interpolate(images[:3], images[3:6], steps=5)
    assert rows.shape == (3, 5, 6, 10, 1)
    np.testing.assert_array_equal(run.interpolate(z[:3], z[3:6], steps=5), rows)
    np.testing.assert_allclose(rows[:, 0], run.decode(z[:3]), atol=1e-5)
    np.testing.assert_allclose(rows[:, -1], run.decode(z[3:6]), atol=1e-5)
    middle = run.decode(slerp(z[1], z[4], jnp.array([0.5], jnp.float32)))
    np.testing.assert_allclose(rows[1, 2], middle[0], atol=1e-5)
    assert run.interpolate(z[0], z[1], 2).shape == (1, 2, 6, 10, 1)


def test_the_module_is_the_trained_one(run, trained):
    images = trained.images.test_images
    outputs = run.model.encode(jnp.pad(images / 255.0, ((0, 0), (1, 1), (1, 1), (0, 0))))
    np.testing.assert_allclose(outputs[:, :4], trained.encoded.mean, rtol=1e-4, atol=1e-5)
    assert isinstance(run.model.encoder, nnx.Module)


def test_neither_the_data_nor_the_fits_need_to_be_there(trained, tmp_path):
    """Nor the place: what is missing is fitted again, from the embeddings, to the same numbers."""
    moved = shutil.copytree(trained.workdir, tmp_path / "elsewhere")
    shutil.rmtree(moved / "fits")
    record = json.loads((moved / "config.json").read_text())
    record["data"]["name"] = "/nowhere/bars.npz"
    fid = {"features": "inception", "inception_weights": "/nowhere/weights.pth"}
    record["evaluate"] |= fid
    (moved / "config.json").write_text(json.dumps(record))
    (moved / "fits").write_text("a file, where a folder can't be written")
    run = hsjax.load(moved)
    for name in ("gaussian", "angles"):
        panel = trained.found.panels[f"samples: {name}"]
        np.testing.assert_array_equal(inference.to_uint8(run.sample(12, name)), panel)


def test_an_export_by_pytorchs_names_has_its_names_and_shapes(trained, tmp_path):
    from safetensors.numpy import load_file

    run = hsjax.load(trained.workdir)
    run.state.params["method"] = {"means": jnp.ones((3, 4))}
    exporting.write(run, tmp_path / "out", format="torch-state-dict-names")
    shapes = {name: x.shape for name, x in load_file(tmp_path / "out/model.safetensors").items()}
    assert shapes.pop("params/method/means") == (3, 4)
    leaves = jax.tree.leaves((run.state.params, run.state.batch_stats))
    assert len(shapes) == len(leaves) - 1 + 12  # norms count their batches
    assert shapes["encoder.main.0.weight"] == (2, 1, 5, 5)
    assert shapes["encoder.F2L.0.weight"] == (8, 4 * 2 * 3)
    assert shapes["decoder.L2F.1.num_batches_tracked"] == ()
    assert shapes["decoder.main.predict.bias"] == (1,)


@pytest.mark.parametrize("kind", exporting.FORMATS)
def test_an_exported_model_is_the_same(run, kind, tmp_path):
    exporting.write(run, tmp_path / "out", format=kind, note="Trained for a test.")
    found = hsjax.load(tmp_path / "out")
    assert_equal(
        (found.state.params, found.state.batch_stats), (run.state.params, run.state.batch_stats)
    )
    assert (found.metrics, found.shape, found.epoch) == (run.metrics, run.shape, run.epoch)
    assert found.config.to_dict() == run.config.to_dict()
    for name in NAMES:
        np.testing.assert_array_equal(found.sample(7, name, seed=3), run.sample(7, name, seed=3))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Trained for a test." in card
    assert f"| {run.metrics['mse_sum']:.4g} |" in card
    with pytest.raises(UserError, match="has no embeddings of training images"):
        found.posterior()
    with pytest.raises(UserError, match=r"its samplers are own, prior, .*, angles$"):
        found.sample(3, "flow")


def test_an_export_in_half_precision_is_half_as_large_and_nearly_the_same(run, tmp_path):
    exporting.write(run, tmp_path / "whole", samplers=["prior"])
    exporting.write(run, tmp_path / "half", samplers=["prior", "vmf"], half=True)
    large, small = (tmp_path / x / "model.safetensors" for x in ("whole", "half"))
    assert small.stat().st_size < 0.75 * large.stat().st_size  # half of it is names
    found = hsjax.load(tmp_path / "half")
    assert {x.dtype for x in jax.tree.leaves(found.state.params)} == {np.dtype("float32")}
    np.testing.assert_allclose(found.sample(9, "vmf"), run.sample(9, "vmf"), atol=2e-2)
    arrays = exporting._halved({"kappa": np.float32([1e5]), "kernel": np.float32([0.5])})
    assert [x.dtype for x in arrays.values()] == ["float32", "float16"]


class Flat(nnx.Module):
    """An encoder or decoder of one layer."""

    def __init__(self, inputs, outputs, shape, rngs):
        self.layer, self.shape = nnx.Linear(inputs, outputs, rngs=rngs), shape

    def __call__(self, x, *, train):
        return self.layer(x.reshape(len(x), -1)).reshape(len(x), *self.shape)


def flat(shape, latent_dim, outputs, *, rngs):
    size = int(np.prod(shape))
    return Flat(size, outputs, (outputs,), rngs), Flat(latent_dim, size, shape, rngs)


def test_networks_of_ones_own_are_trained_kept_and_loaded(images_file, tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "_draw", lambda folder, *_: folder.mkdir())
    config = tiny_config(images_file)
    config.evaluate.metrics, config.evaluate.samplers = (), ()
    numbers = hsjax.train(config, tmp_path / "run", networks=flat)
    assert hsjax.evaluate(tmp_path / "run", networks=flat) == numbers
    run = hsjax.load(tmp_path / "run", networks=flat)
    kernel = run.state.params["encoder"]["layer"]["kernel"]
    assert kernel.shape == (60, 8)
    images = data.load(str(images_file)).test_images
    by_hand = images.reshape(12, -1) / 255.0 @ kernel + run.state.params["encoder"]["layer"]["bias"]
    np.testing.assert_allclose(run.encode(images).mean, by_hand[:, :4], rtol=1e-4, atol=1e-5)
    exporting.write(run, tmp_path / "out", samplers=())
    found = hsjax.load(tmp_path / "out", networks=flat)
    np.testing.assert_array_equal(found.reconstruct(images), run.reconstruct(images))
    with pytest.raises(UserError, match="with the networks and the version of hsjax"):
        hsjax.load(tmp_path / "out")
    with pytest.raises(UserError, match="is of another run of this config"):
        hsjax.load(tmp_path / "run")


@pytest.mark.parametrize(
    ("part", "text"),
    [
        ("encoder", r"networks: for 2 images the encoder gives \(2, 9\): make it \(2, 8\)"),
        ("decoder", r"the decoder gives \(2, 6, 10, 2\): make it \(2, 6, 10, 1\)"),
    ],
)
def test_networks_of_other_outputs_are_one_line(images_file, tmp_path, part, text):
    def wrong(shape, latent_dim, outputs, *, rngs):
        if part == "encoder":
            return flat(shape, latent_dim, outputs + 1, rngs=rngs)
        other = (*shape[:2], 2)
        decoder = Flat(latent_dim, int(np.prod(other)), other, rngs)
        return flat(shape, latent_dim, outputs, rngs=rngs)[0], decoder

    with pytest.raises(UserError, match=text):
        hsjax.train(tiny_config(images_file), tmp_path / "run", networks=wrong)
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    ("ask", "text"),
    [
        (lambda run: run.encode(np.zeros((2, 6, 9, 1), np.uint8)), r"have shape \(2, 6, 9, 1\)"),
        (lambda run: run.encode(np.zeros((0, 6, 10, 1), np.uint8)), r"\[count, 6, 10, 1\]"),
        (lambda run: run.encode(np.zeros((2, 6, 10, 1), int)), "are int64: make them uint8"),
        (lambda run: run.encode(np.full((2, 6, 10, 1), 1.5)), r"outside of \[0, 1\]"),
        (lambda run: run.encode(np.full((2, 6, 10, 1), np.nan)), r"outside of \[0, 1\]"),
        (lambda run: run.decode(np.zeros((2, 5))), r"shape \(2, 5\): make it \[count, 4\]"),
        (lambda run: run.decode(np.full((2, 4), np.inf)), "hold a NaN or an infinite number"),
        (lambda run: run.sample(0), "count is 0: make it a whole number of at least 1"),
        (lambda run: run.sample(2.5), "count is 2.5"),
        (lambda run: run.sample(3, "gauss"), "'gauss' is no sampler: choose one of own, "),
        (lambda run: run.sample(3, seed=-1), "seed is -1"),
        (lambda run: run.interpolate(np.zeros((2, 4)), np.zeros((3, 4))), "holds 2 ends and b 3"),
        (lambda run: run.interpolate(np.zeros(4), np.ones(4), 1), "steps is 1"),
    ],
)
def test_a_wrong_question_is_one_line(run, ask, text):
    with pytest.raises(UserError, match=text) as caught:
        ask(run)
    assert "\n" not in str(caught.value)


def damaged(path, name, content):
    (path / name).write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda p: damaged(p, "card.json", b"{"), "card.json is damaged: "),
        (lambda p: damaged(p, "card.json", b'{"step": 3}'), "card.json is damaged: get a good"),
        (lambda p: damaged(p, "model.npz", b"PK"), r"model.npz can't be read \(it is not the fi"),
        (lambda p: (p / "samplers.npz").unlink(), "samplers.npz can't be read"),
    ],
)
def test_a_damaged_export_is_one_line(run, tmp_path, damage, text):
    exporting.write(run, tmp_path / "out", format="npz")
    damage(tmp_path / "out")
    with pytest.raises(UserError, match=text) as caught:
        hsjax.load(tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert "remove" not in str(caught.value)


def test_what_holds_no_model_is_one_line(trained, tmp_path):
    for name in ("nowhere", "."):
        with pytest.raises(UserError, match="holds no trained model: give the workdir of a run"):
            hsjax.load(tmp_path / name)
    moved = shutil.copytree(trained.workdir, tmp_path / "run")
    (moved / "data.json").write_text("{}")
    with pytest.raises(UserError, match=r"data.json doesn't tell the shape of the images"):
        hsjax.load(moved)
    shutil.rmtree(moved / "checkpoints")
    (moved / "checkpoints").mkdir()
    shutil.copy(trained.workdir / "data.json", moved)
    with pytest.raises(UserError, match="has no good checkpoint"):
        hsjax.load(moved)


def test_embeddings_of_another_step_are_not_used(trained, tmp_path):
    moved = shutil.copytree(trained.workdir, tmp_path / "run")
    shutil.rmtree(moved / "checkpoints" / "18")
    run = hsjax.load(moved)
    assert run.epoch == 2
    with pytest.raises(UserError, match="is of step 18 and BatchNorm running, the model of step 1"):
        run.sample(3)
    assert run.sample(3, "prior").shape == (3, 6, 10, 1)
    (moved / "posteriors.npz").unlink()
    with pytest.raises(UserError, match="was never judged: judge it with --mode=evaluate"):
        hsjax.load(moved).posterior()


def test_nothing_is_overwritten(run, tmp_path):
    for name in ("a.npz", "a.png", "folder"):
        from hsjax import output

        output.save(tmp_path / name, iter([np.zeros((3, 6, 10, 1), np.float32)]))
        before = (tmp_path / name).stat().st_mtime_ns
        with pytest.raises(UserError, match="is there already: nothing is overwritten"):
            output.save(tmp_path / name, iter([np.ones((3, 6, 10, 1), np.float32)]))
        assert (tmp_path / name).stat().st_mtime_ns == before
    with pytest.raises(UserError, match="is there already"):
        exporting.write(run, tmp_path / "folder")
    assert len(list(tmp_path.iterdir())) == 3


def test_what_fails_leaves_nothing_behind(tmp_path):
    from hsjax import output

    def failing():
        yield np.zeros((3, 6, 10, 1), np.float32)
        raise OSError(28, "No space left on device")

    for name in ("a.npz", "folder"):
        with pytest.raises(UserError, match="can't be written \\(No space left on device\\)"):
            output.save(tmp_path / name, failing())
    assert not list(tmp_path.iterdir())


def test_one_picture_holds_all_images_in_order(tmp_path):
    from matplotlib.image import imread

    from hsjax import output

    images = np.arange(5, dtype=np.float32)[:, None, None, None] / 5 + np.zeros((5, 40, 50, 3))
    output.save(tmp_path / "a.png", iter([images[:2], images[2:]]), columns=3)
    picture = imread(tmp_path / "a.png")
    assert picture.shape == (84, 156, 3)
    values = picture[20::42, 25::52, 0].ravel()
    np.testing.assert_allclose(values, [0, 0.2, 0.4, 0.6, 0.8, 1.0], atol=2e-3)
