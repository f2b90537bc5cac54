"""A whole evaluation: its numbers by other means, what changes them, what a failed one leaves."""

import contextlib
import io
import json
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import of_judgement, tiny_config

from hsjax import data, evaluation, experiment, figures, inference, report, training
from hsjax.checkpoints import Checkpoints
from hsjax.errors import UserError
from hsjax.inference import Inference
from hsjax.methods import METHODS
from hsjax.metrics import features, generation
from hsjax.metrics.kid import kernel_distance
from hsjax.metrics.latents import GEOMETRY, READING
from hsjax.posteriors import Gaussian
from hsjax.samplers import SAMPLERS

standard = METHODS["standard"]

COLUMNS = (
    *("to_test", "to_reconstructions", "kid", "precision", "recall", "density", "coverage"),
    "nearest_is_training",
)
# What is trained has its own tests.
NAMES = tuple(name for name, sampler in SAMPLERS.items() if not sampler.learned)


def whole_config(images_file):
    """Everything there is, after one epoch."""
    config = tiny_config(images_file)
    config.train.epochs = 1
    config.evaluate.samplers = NAMES
    config.evaluate.metrics = tuple(evaluation.METRICS)
    config.evaluate.ood_data = str(images_file)
    return config


@pytest.fixture
def config(images_file):
    return whole_config(images_file)


@pytest.fixture(scope="module")
def whole(images_file, tmp_path_factory):
    """(workdir, numbers, terminal output) of a run with everything."""
    workdir, output = tmp_path_factory.mktemp("whole"), io.StringIO()
    with contextlib.redirect_stdout(output):
        numbers = experiment.train_and_evaluate(whole_config(images_file), workdir)
    return workdir, numbers, output.getvalue()


@pytest.fixture
def undrawn(monkeypatch):
    """Drawing, which takes most of the time, left out."""
    monkeypatch.setattr(experiment, "_draw", lambda folder, *_: folder.mkdir())


def judged(config, workdir):
    """(run, state, what `evaluate` finds)."""
    run = experiment._open(config, workdir, None)
    with Checkpoints(workdir / "checkpoints", 3) as checkpoints:
        state = checkpoints.restore(run.setup.initial(0, run.objective))
    parts = run.config, run.setup, run.inference, state, run.dataset
    return run, state, evaluation.evaluate(*parts, others=run.others)


def test_every_promised_number_is_there(whole):
    workdir, numbers, _ = whole
    assert json.loads((workdir / "metrics.json").read_text()) == numbers
    (row,) = numbers["generation"]
    assert list(row["samplers"]) == ["projected_gaussian", *sorted_others("projected_gaussian")]
    for values in row["samplers"].values():
        assert values.keys() == {*COLUMNS, "kid_deviation"}
        assert np.isfinite(list(values.values())).all()
        assert min(values["to_test"], values["to_reconstructions"]) > 0
        for share in ("precision", "recall", "coverage", "nearest_is_training"):
            assert 0 <= values[share] <= 1
    assert row["network"] == "classifier-bars"
    assert row["distance"] == "FD[classifier-bars]"
    assert row["reconstructions_to_test"] > 0
    assert row["train_reconstructions_to_reconstructions"] > 0
    assert 0 <= row["test_accuracy"] <= 1
    assert (row["seed"], row["steps"]) == (0, 60)
    assert numbers["sample_count"] == 12
    assert numbers["fit_split"] == "train"
    assert {"mse_sum", "mse_per_value_x1000", "mse_sum_sampled_z", "regulariser"} <= numbers.keys()
    assert {"knn_accuracy", "knn_neighbours", "linear_probe_accuracy"} <= numbers.keys()
    assert list(numbers["topology"]) == ["embeddings", *row["samplers"]]
    assert "12 samples, as many as there are test images" in numbers["notes"]
    assert any("rank-deficient" in note for note in numbers["notes"])
    assert {path.name for path in (workdir / "figures").iterdir()} == {
        *("summary.png", "interpolations.png", "sphere.png", "tsne.png", "angles.png"),
        *("overlaps.png", "topology.png", "training.png", "roc.png"),
    }
    with np.load(workdir / "embeddings.npz") as arrays:
        assert arrays["test_mean"].shape == (12, 4)
        assert arrays["tsne"].shape == (12, 2)
        assert arrays["groups"].shape == (12, 3)
        for score in ("knn", "radius", "error"):
            assert arrays[f"ood_test_{score}"].shape == (12,)
    # Out of distribution is the set itself here: nothing tells the two apart.
    others = numbers["ood"]["ood_data"]
    assert others["images"] == 12
    assert list(others)[2:] == ["knn", "radius", "error"]
    for row in list(others.values())[2:]:
        assert row["auroc"] == 0.5
        for convention in ("fpr95_in_positive", "fpr95_ood_positive"):
            assert row[convention] == pytest.approx(0.95)


def sorted_others(name):
    return [other for other in NAMES if other != name]


def test_the_report_tells_every_number(whole):
    workdir, numbers, output = whole
    told = output[output.index(": 12 test images, epoch 1") :].splitlines()
    for name in ("mse_sum", "mse_per_value_x1000", "knn_accuracy", "linear_probe_accuracy"):
        assert any(line.endswith(f" {numbers[name]:.4g}") for line in told)
    assert any("(k = 5)" in line for line in told)
    for name, value in numbers["latents"].items():
        assert any(line.split()[:2] == [name, f"{value:.4g}"] for line in told)
        assert any(line.endswith(READING[name]) for line in told)
    for name, reading in GEOMETRY.items():
        values = [f"{row[name]:.4g}" for row in numbers["geometry"].values()]
        assert any(line.split() == [name, *values, *reading.split()] for line in told)
    for name, found in numbers["topology"].items():
        ratio = found["h0_total"]["ratio"]
        assert any(line.split()[:2] == [name, f"{ratio:.3f}"] for line in told)
    (row,) = numbers["generation"]
    text = "\n".join(told)
    for expected in (
        "judged by FD[classifier-bars] (seed 0, steps 60, "
        f"test accuracy {row['test_accuracy']:.3f})",
        f"12 samples, fitted to the train means; MSE (sum) {numbers['mse_sum']:.4g}",
        f"to test images: {row['reconstructions_to_test']:.4g}",
        f"those of test images: {row['train_reconstructions_to_reconstructions']:.4g}",
        f"of the test images themselves {row['test_nearest_is_training']:.3f}",
        *(f"note: {note}" for note in numbers["notes"]),
        f"numbers: {workdir / 'metrics.json'}",
    ):
        assert expected in text
    (head,) = (i for i, line in enumerate(told) if line.split()[:3] == ["to", "test", "self"])
    rows = told[head + 1 : head + 1 + len(NAMES)]
    assert {len(line) for line in (told[head], *rows)} == {len(rows[0])}  # aligned
    for line, (name, values) in zip(rows, row["samplers"].items(), strict=True):
        assert line.split() == [name, *(f"{values[column]:.4g}" for column in COLUMNS)]
    # While it goes, each phase has a line with its seconds.
    phases = [line for line in output.splitlines() if " ... " in line]
    assert all(line.endswith(" s") for line in phases)
    assert {"latents: tsne", "drawing"} <= {line.split(" ...")[0].strip() for line in phases}


def test_the_report_tells_what_trained_samplers_never_saw(whole):
    _, numbers, _ = whole
    fits = {"flow": {"held_out_nats": 1.2345, "step": 40.0}, "two_stage": {"step": 3.0}}
    lines = report.table({**numbers, "fits": fits}, "bars").splitlines()
    start = lines.index("trained samplers, measured on held-out latents")
    assert lines[start + 1 : start + 3] == [
        "  flow       held out nats 1.234, step 40",
        "  two_stage  step 3",
    ]


def nuclear(x, y):
    """Fréchet distance of equally many samples by the nuclear norm of their cross product."""
    a, b = (v - v.mean(0) for v in (np.asarray(x, np.float64), np.asarray(y, np.float64)))
    overlap = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    spread = (np.sum(a * a) + np.sum(b * b) - 2 * overlap) / (len(a) - 1)
    return np.sum((np.mean(x, axis=0) - np.mean(y, axis=0)) ** 2) + spread


def test_distances_are_those_of_the_saved_images(whole, config):
    """Of the panels and the training images, by another formula."""
    workdir, numbers, _ = whole
    run, state, found = judged(config, workdir)
    assert found.numbers == numbers
    extract = features.classifier(run.dataset, steps=60).extract
    panels = {title: extract(np.asarray(images)) for title, images in found.panels.items()}
    test, reconstructions = panels.pop("test images"), panels.pop("reconstructions")
    (row,) = numbers["generation"]
    assert set(panels) == {f"samples: {name}" for name in NAMES}
    for title, x in panels.items():
        values = row["samplers"][title.removeprefix("samples: ")]
        np.testing.assert_allclose(values["to_test"], nuclear(x, test), rtol=1e-4)
        np.testing.assert_allclose(values["to_reconstructions"], nuclear(x, reconstructions), 1e-4)
    np.testing.assert_allclose(
        row["reconstructions_to_test"], nuclear(reconstructions, test), rtol=1e-4
    )
    # The reference is of 12 training images, each reconstructed and rounded.
    networks = run.setup.model(run.objective, state).networks
    encode, decode = jax.jit(networks.encode), jax.jit(networks.decode)
    chosen = np.random.default_rng(0).permutation(44)[:12]
    images = np.pad(run.dataset.train_images[chosen] / np.float32(255), ((0,), (1,), (1,), (0,)))
    outputs = np.asarray(decode(encode(images)[:, :4]))[:, 1:-1, 1:-1]
    rounded = np.rint(255 * outputs.clip(0, 1)).astype(np.uint8)
    np.testing.assert_allclose(
        row["train_reconstructions_to_reconstructions"],
        nuclear(extract(rounded), reconstructions),
        rtol=1e-2,
    )


def latents_of(images):
    """The four values of a 2x2 image as latents, 32 levels a unit."""
    return (np.reshape(images, (len(images), 4)).astype(np.float32) - 128) / 32


def images_of(z):
    return np.reshape(128 + 32 * np.asarray(z), (len(z), 2, 2, 1)) / 255


# A model that can be read: μ of an image are its values, σ is 0.2 and the decoder undoes μ. The
# error is that of z, and for each image the size of its first latent besides.
READABLE = Inference(
    encode=lambda _, images: Gaussian(latents_of(images), np.full((len(images), 4), np.log(0.04))),
    decode=lambda _, z: images_of(z),
    errors=lambda _, images, z: (
        abs(latents_of(images)[:, 0]) + np.sum((latents_of(images) - z) ** 2, axis=1)
    ),
    terms=lambda _, posterior, *__: standard.regulariser(standard.hyper(4), posterior, None),
    prior=lambda *_, **__: None,
)


def test_scores_of_unusual_images_are_of_their_own_latents_and_errors(config):
    """Of a model that can be read; the unusual images are far in one latent."""
    rng = np.random.default_rng(0)
    train, test, few = (rng.integers(100, 156, (n, 2, 2, 1), dtype=np.uint8) for n in (30, 20, 9))
    few[:, 0, 0, 0] = 250
    dataset = data.Dataset("toy", train, None, test, None)
    config.evaluate.metrics, config.evaluate.samplers = ("ood",), ()
    config.evaluate.batch_norm, config.train.batch_size = "batch", 8
    shape = {"steps": 6, "shape": (2, 2, 1), "method": METHODS[config.method.name]}
    run = SimpleNamespace(config=training.static(config), **shape)
    others = {
        "leave_out": evaluation.Outside("few", few),
        "ood_data": evaluation.Outside("x", test),
    }
    state = SimpleNamespace(step=12, variables={})
    found = evaluation.evaluate(config, run, READABLE, state, dataset, others=others)
    bank = latents_of(train).astype(np.float64)
    for source, images in (("test", test), ("leave_out", few), ("ood_data", test)):
        z, scores = latents_of(images), {}
        distances = np.linalg.norm(z[:, None] - bank[None], axis=2)
        scores["knn"] = np.sort(distances, axis=1)[:, :3].mean(axis=1)
        radius = np.linalg.norm(bank, axis=1).mean()
        scores["radius"] = abs(np.linalg.norm(z, axis=1) - radius)
        scores["error"] = abs(z[:, 0])
        for name, wanted in scores.items():
            ours = found.arrays[f"ood_{source}_{name}"]
            np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-5)
    numbers = found.numbers["ood"]
    assert list(numbers) == ["leave_out", "ood_data"]
    assert (numbers["leave_out"]["name"], numbers["leave_out"]["images"]) == ("few", 9)
    for score in ("knn", "radius", "error"):
        wanted = {"auroc": 1.0, "fpr95_in_positive": 0.0, "fpr95_ood_positive": 0.0}
        assert numbers["leave_out"][score] == wanted
        assert numbers["ood_data"][score]["auroc"] == 0.5
    (note,) = [note for note in found.numbers["notes"] if "score of ood" in note]
    assert note.startswith("so a score of ood depends on the other images of a batch")
    before = found.numbers["notes"][found.numbers["notes"].index(note) - 1]
    assert before == "BatchNorm takes the statistics of each batch of 8 that is judged"


def test_the_report_explains_scores_once_and_tells_all(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    rates = {"auroc": 0.98765, "fpr95_in_positive": 0.25, "fpr95_ood_positive": 0.0625}
    about = {"name": "digits, class 3", "images": 36, "knn": rates, "radius": rates}
    numbers = {"split": "test", "epoch": 3, "test_images": 12, "mse_sum": 1.0, "notes": []}
    numbers["ood"] = {"leave_out": about, "ood_data": about | {"name": "faces/"}}
    text = report.table(numbers, "digits")
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    start = lines.index("out of distribution: 36 images of digits, class 3")
    second = lines.index("out of distribution: 36 images of faces/")
    table = [["AUROC", "FPR95", "in", "FPR95", "ood"]]
    table += [[name, "0.988", "0.250", "0.062"] for name in ("knn", "radius")]
    assert [line.split() for line in lines[second - 3 : second]] == table
    assert [line.split() for line in lines[second + 1 : second + 4]] == table
    told = " ".join(" ".join(lines[start + 1 : second - 3]).split())
    for said in (
        "how often an ood image scores higher than one of the test images (0.5: chance)",
        "FPR95 in: share of ood images that pass when 95 % of the test images do (in positive)",
        "FPR95 ood: share of the test images refused when 95 % of ood images are (ood positive)",
    ):
        assert said in told


@pytest.mark.parametrize(("split", "last"), [("train", 2.0), ("test", -2.0)])
def test_what_is_judged_is_what_it_is_called(config, monkeypatch, split, last):
    """Classes differ in the first latent (-2, 2), splits in the last one (2 in training, -2)."""
    rng = np.random.default_rng(0)
    labels = {"train": np.repeat([0, 1], [25, 15]), "test": np.minimum(np.arange(30) % 3, 1)}
    images = {}
    for name, centre in (("train", 2.0), ("test", -2.0)):
        z = 0.4 * rng.normal(size=(len(labels[name]), 4))
        z[:, 0] += 4 * labels[name] - 2
        z[:, 3] += centre
        images[name] = np.rint(255 * images_of(z)).astype(np.uint8)
    dataset = data.Dataset("toy", images["train"], labels["train"], images["test"], labels["test"])
    config.sample.fit_split = split
    config.evaluate.samplers, config.evaluate.metrics = (), ("frechet", "knn", "probe", "latents")
    judged = []
    network = features.FeatureNetwork("toy", None, {})
    monkeypatch.setattr(evaluation, "feature_networks", lambda *_: [network])
    monkeypatch.setattr(
        generation, "judge", lambda _, sets, *__: judged.append(sets) or {"notes": []}
    )
    shape = {"steps": 6, "shape": (2, 2, 1), "method": METHODS[config.method.name]}
    run = SimpleNamespace(config=training.static(config), **shape)
    found = evaluation.evaluate(
        config, run, READABLE, SimpleNamespace(step=12, variables={}), dataset
    )

    numbers, mean = found.numbers, latents_of(images["test"])
    error = np.abs(mean[:, 0]).mean()
    np.testing.assert_allclose(numbers["mse_sum"], error, rtol=1e-5)
    np.testing.assert_allclose(numbers["mse_per_value_x1000"], 1000 * error / 4, rtol=1e-5)
    noise = numbers["mse_sum_sampled_z"] - error  # of σ² χ² with 4 degrees of freedom, averaged
    assert abs(noise - 4 * 0.2**2) < 4 * 0.2**2 * 8**0.5 / 30**0.5
    kl = 0.5 * np.mean(np.sum(mean**2 + 0.04 - np.log(0.04) - 1, axis=1))
    np.testing.assert_allclose(numbers["regulariser"], kl, rtol=1e-5)
    assert numbers["knn_accuracy"] == numbers["linear_probe_accuracy"] == 1.0
    assert numbers["latents"]["overlap_within"] > numbers["latents"]["overlap_between"] + 0.5
    np.testing.assert_array_equal(found.arrays["test_labels"], labels["test"])
    np.testing.assert_array_equal(found.arrays["test_mean"], mean)
    assert (numbers["epoch"], numbers["test_images"], numbers["sample_count"]) == (2, 30, 30)

    (sets,) = judged
    np.testing.assert_array_equal(sets.test, images["test"])
    np.testing.assert_array_equal(sets.reconstructions, images["test"])
    trained = set(map(bytes, images["train"]))
    chosen = list(map(bytes, sets.train_reconstructions))
    assert len(chosen) == 30
    assert set(chosen) <= trained
    (samples,) = sets.samples.values()
    assert abs(latents_of(samples)[:, 3].mean() - last) < 0.4  # fitted to this split's means
    for column, place in ((0, 0), (-1, 1)):
        ends = images["test"][place:16:2].astype(int)
        assert np.abs(found.interpolations[:, column] - ends).max() <= 1


def test_each_comparison_is_of_the_sets_that_it_names():
    """Samples are ten of the test images, six times each: all real, and a sixth of what is real."""
    rng = np.random.default_rng(0)
    sets = {
        name: rng.integers(low, low + 100, (60, 2, 2, 1), dtype=np.uint8)
        for name, low in (("test", 0), ("reconstructions", 30), ("train_reconstructions", 70))
    }
    samples = np.tile(sets["test"][:10], (6, 1, 1, 1))

    def extract(images):
        return images.reshape(len(images), 4) / np.float32(32)

    network = features.FeatureNetwork("toy", extract, {})
    judged = generation.Sets(**sets, samples={"some": samples})
    numbers = generation.judge(network, judged, ("frechet", "kid", "prdc"))
    test, reconstructions, trained = map(extract, sets.values())
    row, some = numbers["samplers"]["some"], extract(samples)
    expected = nuclear(reconstructions, test)
    np.testing.assert_allclose(numbers["reconstructions_to_test"], expected, rtol=1e-6)
    between = nuclear(trained, reconstructions)
    assert any(np.isclose(x, between) for x in numbers.values() if isinstance(x, float))
    np.testing.assert_allclose(row["to_test"], nuclear(some, test), rtol=1e-6)
    np.testing.assert_allclose(row["to_reconstructions"], nuclear(some, reconstructions), rtol=1e-6)
    np.testing.assert_allclose(row["kid"], kernel_distance(some, test)[0], rtol=1e-6)
    assert (row["precision"], row["recall"]) == (1.0, 10 / 60)


def test_a_planted_memoriser_is_found_out():
    """One sampler copies training images, one is as new as the test images are."""
    rng = np.random.default_rng(0)
    train, test, new, other = rng.integers(0, 256, (4, 400, 2, 2, 1), dtype=np.uint8)
    network = features.FeatureNetwork("toy", lambda x: x.reshape(len(x), 4) / np.float32(32), {})
    samples = {"copies": train[rng.integers(0, 400, 400)], "new": new}
    judged = generation.Sets(test, other, other, samples, train)
    numbers = generation.judge(network, judged, ("memorisation",))
    shares = {name: row["nearest_is_training"] for name, row in numbers["samplers"].items()}
    assert shares["copies"] == 1.0
    for share in (shares["new"], numbers["test_nearest_is_training"]):
        assert 0.4 < share < 0.6
    (note,) = numbers["notes"]
    assert note.startswith("copies may copy training images: 1.000 of its samples")
    # Without training images there is nothing to say.
    numbers = generation.judge(network, judged._replace(train=None), ("memorisation", "frechet"))
    assert "nearest_is_training" not in numbers["samplers"]["new"]
    assert "test_nearest_is_training" not in numbers


def test_images_are_clipped_and_rounded_as_a_file_would_hold_them():
    levels = np.array([-300.0, -0.4, 0.4, 0.6, 127.4, 254.6, 255.4, 900.0], np.float32)
    model = READABLE._replace(decode=lambda _, z: (levels / 255)[z][:, None, None, None])
    images = inference.decode(model, None, np.arange(8), 3)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images[:, 0, 0, 0], [0, 0, 0, 1, 127, 255, 255, 255])


def test_a_samplers_numbers_depend_on_nothing_but_it(whole, config):
    """Fewer samplers, another split to fit to, and a second feature network besides."""
    workdir, numbers, _ = whole
    (before,) = numbers["generation"]
    config.sample.sampler, config.sample.fit_split = "vmf", "test"
    config.evaluate.samplers = ("uniform_sphere",)
    config.evaluate.feature_seeds = (0, 1)
    config.evaluate.metrics = ("frechet", "kid", "prdc", "memorisation")
    _, _, found = judged(config, workdir)
    first, second = found.numbers["generation"]
    assert list(first["samplers"]) == ["vmf", "uniform_sphere"]  # the run's own is always there
    assert first["samplers"]["uniform_sphere"] == before["samplers"]["uniform_sphere"]
    assert first["samplers"]["vmf"] != before["samplers"]["vmf"]
    reference = "train_reconstructions_to_reconstructions"
    assert first[reference] == before[reference]
    assert found.numbers["fit_split"] == "test"
    assert (first["seed"], second["seed"]) == (0, 1)
    assert first["sha256"] != second["sha256"]
    assert second[reference] != first[reference]
    assert not {"knn_accuracy", "linear_probe_accuracy", "latents"} & found.numbers.keys()


def test_nothing_is_trained_for_numbers_that_nobody_wants(whole, config, monkeypatch):
    workdir, _, _ = whole
    monkeypatch.setattr(features, "classifier", None)
    for metrics, network in ((("knn",), "classifier"), (("frechet",), "none")):
        config.evaluate.metrics, config.evaluate.features = metrics, network
        _, _, found = judged(config, workdir)
        assert "generation" not in found.numbers
        assert {f"samples: {name}" for name in NAMES} <= found.panels.keys()


@pytest.mark.slow
def test_fewer_training_images_than_samples_is_said(config, tmp_path):
    full = data.load(config.data.name)
    swapped = data.Dataset("bars", *full[3:], *full[1:3])
    config.evaluate.metrics, config.evaluate.samplers = ("frechet",), ()
    run = experiment._open(config, tmp_path, swapped)
    state = run.setup.initial(0, run.objective)
    found = evaluation.evaluate(config, run.setup, run.inference, state, swapped)
    assert found.numbers["sample_count"] == 44
    assert "only 12 training images are reconstructed for comparison" in found.numbers["notes"]


def test_sample_and_evaluate_fields_may_change_later(whole, config, undrawn, tmp_path, capsys):
    workdir = copied(whole[0], tmp_path)
    config.sample.sampler, config.sample.count = "angles", 5
    config.evaluate.samplers, config.evaluate.metrics = (), ("frechet", "tsne")
    config.evaluate.neighbours = 1
    numbers = experiment.evaluate(workdir, of_judgement(config))
    (row,) = numbers["generation"]
    assert list(row["samplers"]) == ["angles"]
    assert numbers["sample_count"] == 5
    assert "5 samples, fitted to the train means" in capsys.readouterr().out


def test_a_latent_scale_reaches_all_that_is_decoded_after_the_projection(whole, config):
    workdir, before, _ = whole
    config.evaluate.latent_scale = 2.0
    config.evaluate.samplers, config.evaluate.metrics = (), ("frechet", "knn")
    run, state, found = judged(config, workdir)
    assert "every latent is multiplied by 2 before it is decoded" in found.numbers["notes"]
    networks = run.setup.model(run.objective, state).networks
    images = np.pad(run.dataset.test_images / np.float32(255), ((0,), (1,), (1,), (0,)))
    mean = jax.jit(networks.encode)(images)[:, :4]
    z = 2 * 2 * mean / np.linalg.norm(mean, axis=1, keepdims=True)  # √n = 2
    outputs = jax.jit(lambda z: networks.decoder(z, train=False))(z)
    outputs = np.asarray(outputs)[:, 1:-1, 1:-1]
    error = np.sum((outputs - images[:, 1:-1, 1:-1]) ** 2, axis=(1, 2, 3)).mean()
    np.testing.assert_allclose(found.numbers["mse_sum"], error, rtol=1e-4)
    rounded = np.rint(255 * outputs.clip(0, 1))
    assert np.abs(found.panels["reconstructions"] - rounded).max() <= 1
    assert found.numbers["knn_accuracy"] == before["knn_accuracy"]
    (row,), (row_before,) = found.numbers["generation"], before["generation"]
    name = config.sample.sampler
    assert row["samplers"][name]["to_test"] != row_before["samplers"][name]["to_test"]


def copied(workdir, tmp_path):
    return shutil.copytree(workdir, tmp_path / "copy")


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def nan_decoder(patch):
    built = experiment.build_inference

    def broken(*arguments):
        model = built(*arguments)
        return model._replace(decode=lambda *a: model.decode(*a) / 0)

    patch.setattr(experiment, "build_inference", broken)


def nan_encoder(patch):
    encode = evaluation.embed
    patch.setattr(
        evaluation,
        "embed",
        lambda model, *rest, **named: encode(
            model._replace(encode=lambda *a: jax.tree.map(lambda x: x / 0, model.encode(*a))),
            *rest,
            **named,
        ),
    )


def nan_features(patch):
    patch.setattr(features, "_extract", lambda _, images: np.full((len(images), 8), np.nan))


def full_disk_at(module, name):
    def fail(*_):
        raise OSError(28, "No space left on device")

    return lambda patch: patch.setattr(module, name, fail)


@pytest.mark.parametrize(
    ("break_it", "text"),
    [
        (nan_encoder, "the encoder's output is not finite: the run has diverged"),
        (nan_decoder, "the decoder's output is not finite: the run has diverged"),
        (nan_features, "classifier-bars: 12 of 12 rows of the features of the test images hold"),
        (full_disk_at(experiment, "write_npz"), "No space left"),
        (full_disk_at(experiment, "write_json"), "No space left"),
    ],
)
def test_a_failed_evaluation_changes_nothing(
    whole, config, tmp_path, monkeypatch, capsys, break_it, text
):
    workdir = copied(whole[0], tmp_path)
    before = contents(workdir)
    config.evaluate.samplers, config.evaluate.metrics = (), ("frechet",)
    with monkeypatch.context() as patch:
        break_it(patch)
        with pytest.raises((UserError, OSError), match=text) as caught:
            experiment.evaluate(workdir, of_judgement(config))
    assert "\n" not in str(caught.value)
    assert contents(workdir) == before
    assert not [path for path in workdir.iterdir() if path.name.startswith(".")]
    assert capsys.readouterr().out.endswith(" ...\n")  # the error begins a line


def test_a_failure_to_draw_keeps_the_new_numbers_and_the_old_figures(
    whole, config, tmp_path, monkeypatch
):
    workdir = copied(whole[0], tmp_path)
    before = contents(workdir)
    config.evaluate.samplers, config.evaluate.metrics = (), ("frechet",)
    full_disk_at(figures, "training_curves")(monkeypatch)
    with pytest.raises(UserError, match="No space left"):
        experiment.evaluate(workdir, of_judgement(config))
    after = contents(workdir)
    changed = {path.name for path in before if before[path] != after.get(path)}
    assert changed == {"metrics.json", "embeddings.npz", "card.md"}
    assert "generation" in json.loads((workdir / "metrics.json").read_text())
    assert after.keys() == before.keys()


@pytest.mark.parametrize("damage", ["missing", "truncated", "another"])
def test_unusable_inception_weights_are_one_line_before_any_training(config, tmp_path, damage):
    path = tmp_path / "pt_inception-2015-12-05-6726825d.pth"
    if damage != "missing":
        path.write_bytes(b"" if damage == "truncated" else b"PK" + bytes(1000))
    config.evaluate.features, config.evaluate.inception_weights = "inception", str(path)
    with pytest.raises(UserError) as caught:
        experiment.train_and_evaluate(config, tmp_path / "run")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "run").glob("*"))


@pytest.mark.slow
@pytest.mark.parametrize("labelled", [True, False])
def test_the_smallest_set_and_the_smallest_latents(config, tmp_path, capsys, labelled):
    """Two test images, n = 2: one neighbour, a flat sphere, t-SNE of two points."""
    images = np.random.default_rng(0).integers(0, 256, (12, 6, 10, 1), dtype=np.uint8)
    arrays = {"train_images": images[:10], "test_images": images[10:]}
    if labelled:
        arrays |= {"train_labels": np.arange(10) % 2, "test_labels": np.array([0, 1])}
    np.savez(tmp_path / "few.npz", **arrays)
    config.data.name, config.model.latent_dim = str(tmp_path / "few.npz"), 2
    config.evaluate.metrics = tuple(x for x in evaluation.METRICS if x != "topology")
    numbers = experiment.train_and_evaluate(config, tmp_path / "run")
    drawn = {path.name for path in (tmp_path / "run" / "figures").iterdir()}
    assert "tsne.png" in drawn
    assert "sphere.png" not in drawn
    output = capsys.readouterr().out
    assert ("note: no labels" in output) != labelled
    (row,) = numbers["generation"]
    assert set(row["samplers"]) == set(NAMES)
    assert "2 samples, 128 features" in output
    assert row["distance"] == ("FD[classifier-few]" if labelled else "FD[random-conv]")
    assert ("judged by FD[random-conv] (seed 0)\n" in output) != labelled


def test_labels_of_one_class_judge_nothing(config, tmp_path):
    full = data.load(config.data.name)
    one = full._replace(train_labels=full.train_labels * 0, test_labels=full.test_labels * 0)
    config.evaluate.metrics, config.evaluate.samplers = ("frechet", "knn", "probe"), ()
    run = experiment._open(config, tmp_path, one)
    state = run.setup.initial(0, run.objective)
    parts = run.setup, run.inference, state
    found = evaluation.evaluate(config, *parts, one)
    (row,) = found.numbers["generation"]
    assert (row["distance"], row["test_accuracy"]) == ("FD[random-conv]", None)
    assert not {"knn_accuracy", "linear_probe_accuracy"} & found.numbers.keys()
    notes = [note for note in found.numbers["notes"] if note.startswith("only one class")]
    assert len(notes) == 2
    np.testing.assert_array_equal(found.arrays["test_labels"], one.test_labels)
    # A classifier that has not learnt anything is told from one that has.
    config.evaluate.metrics = ("frechet",)
    full = full._replace(train_labels=np.random.default_rng(0).permutation(full.train_labels))
    found = evaluation.evaluate(config, *parts, full)
    (row,) = found.numbers["generation"]
    assert row["distance"] == "FD[classifier-bars]"
    assert "FD[classifier-bars] may mean little" in "".join(found.numbers["notes"])


def test_runs_that_differ_in_numbers_share_their_programs(config, tmp_path, undrawn, monkeypatch):
    """Each tracing of the step is a compilation; alone, a run comes to the same numbers."""
    traced, step = [], training.train_step
    monkeypatch.setattr(training, "train_step", lambda *args: traced.append(1) or step(*args))
    config.evaluate.metrics, config.evaluate.samplers = ("frechet",), ("vmf",)

    def forget():
        experiment._built.cache_clear()
        experiment._compiled.cache_clear()

    def run(name, seed, beta, angle_gain):
        config.seed, config.loss.beta, config.method.angle_gain = seed, beta, angle_gain
        return experiment.train_and_evaluate(config, tmp_path / name)

    forget()
    first = run("first", 0, 1.0, 1.0)
    second = run("second", 1, 0.1, 5.0)
    assert len(traced) == 1
    assert first["mse_sum"] != second["mse_sum"]
    forget()
    alone = run("alone", 1, 0.1, 5.0)
    assert len(traced) == 2
    forget()
    assert alone == second


def test_images_on_the_device_give_the_same_numbers(whole, config, tmp_path, undrawn):
    dataset = data.load(config.data.name)
    on_device = data.Dataset(dataset.name, *map(jnp.asarray, dataset[1:]))
    numbers = experiment.train_and_evaluate(config, tmp_path, dataset=on_device)
    assert numbers == whole[1]


def test_a_last_batch_of_one_image_has_the_statistics_of_a_whole_one(config):
    """Of 9 images in batches of 8, the last is judged with the first seven."""
    setup, state = training.create(config, (6, 10, 1), 48)
    images = np.random.default_rng(0).integers(0, 256, (9, 6, 10, 1), dtype=np.uint8)
    objective = training.build_objective(config)
    model = inference.build_inference(setup, objective, 1.0, "batch")
    found = inference.embed(model, state, images, 8).mean
    wanted = model.encode(state, images[[8, 0, 1, 2, 3, 4, 5, 6]]).mean
    np.testing.assert_array_equal(found[8], wanted[0])
    np.testing.assert_array_equal(found[:8], model.encode(state, images[:8]).mean)


def test_batch_norm_takes_running_statistics_or_the_batchs(config):
    setup, state = training.create(config, (6, 10, 1), 48)
    images = np.random.default_rng(0).integers(0, 256, (8, 6, 10, 1), dtype=np.uint8)
    objective = training.build_objective(config)
    other = state._replace(batch_stats=jax.tree.map(lambda x: x + 0.5, state.batch_stats))
    for batch_norm, follows in (("running", True), ("batch", False)):
        model = inference.build_inference(setup, objective, 1.0, batch_norm)
        z = model.encode(state, images).mean
        moved = np.abs(z - model.encode(other, images).mean).max()
        decoded = np.abs(model.decode(state, z) - model.decode(other, z)).max()
        assert ((moved > 1e-3) == follows) & ((decoded > 1e-3) == follows), batch_norm
        # A batch's statistics depend on its images, running ones do not.
        alone = np.abs(model.encode(state, images[:4]).mean - z[:4]).max()
        assert (alone > 1e-3) == (not follows), batch_norm
