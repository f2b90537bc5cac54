"""The feature classifier: what it learns, what it is called, and how it is kept."""

import fcntl
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from scipy.signal import correlate

from hsjax import data, files
from hsjax.errors import UserError
from hsjax.metrics import features
from hsjax.metrics.frechet import frechet_distance, moments

ROOT = Path(__file__).parents[1]


@pytest.fixture
def bars(images_file):
    return data.load(str(images_file))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "hsjax"


@pytest.fixture
def fits(cache, monkeypatch):
    """Training replaced by the initial parameters, and the (seed, steps) it was asked for."""
    asked = []

    def fit(dataset, seed, steps, say):
        asked.append((seed, steps))
        return features._initial(dataset.train_images.shape[1:], 3, seed)

    monkeypatch.setattr(features, "_fit", fit)
    return asked


def warnings_in(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_it_learns_and_is_the_same_again(bars, cache):
    first = features.classifier(bars, steps=60)
    assert first.about["test_accuracy"] > 0.9  # chance is 1/3
    x = first.extract(bars.test_images)
    assert x.shape == (12, features.WIDTH)
    assert x.dtype == np.float32
    (path,) = cache.iterdir()
    path.unlink()
    again = features.classifier(bars, steps=60)
    assert again.about == first.about
    np.testing.assert_array_equal(again.extract(bars.test_images), x)
    # Labels are names of classes, however large and whichever are left out.
    names = np.array([2_000_000_000, 7, 50], np.int32)
    renamed = bars._replace(
        train_labels=names[bars.train_labels], test_labels=names[bars.test_labels]
    )
    assert features.classifier(renamed, steps=60).about["test_accuracy"] > 0.9


def test_features_are_those_of_a_loop(bars, fits):
    """Convolutions by SciPy in float64; sides of 6 and 10 are halved once."""
    params = features._initial((6, 10, 1), 3, 5)
    for name in [name for name in params if name.endswith("bias")]:
        params[name] += np.linspace(-0.2, 0.2, params[name].size, dtype=np.float32)
    images = bars.test_images[:2]
    expected = []
    for image in images / 255.0:
        x = image
        for i in range(3):
            kernel, outputs = params[f"conv{i}_kernel"].astype(np.float64), []
            for k in range(kernel.shape[3]):
                parts = [
                    correlate(x[..., c], kernel[..., c, k], "same") for c in range(x.shape[-1])
                ]
                outputs.append(np.sum(parts, axis=0) + params[f"conv{i}_bias"][k])
            x = np.maximum(np.stack(outputs, axis=-1), 0.0)
            if i == 0:
                x = 0.25 * (x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2])
        hidden = x.reshape(-1) @ params["hidden_kernel"] + params["hidden_bias"]
        expected.append(np.maximum(hidden, 0.0))
    np.testing.assert_allclose(features._extract(params, images), expected, rtol=1e-4, atol=1e-5)


def test_it_is_trained_once_for_each_seed_steps_and_data(bars, fits, cache):
    first = features.classifier(bars, seed=1, steps=5)
    second = features.classifier(bars, seed=1, steps=5)
    assert fits == [(1, 5)]
    assert first.about == second.about
    np.testing.assert_array_equal(first.extract(bars.test_images), second.extract(bars.test_images))
    features.classifier(bars, seed=2, steps=5)
    features.classifier(bars, seed=1, steps=6)
    images = bars.train_images.copy()
    images[0, 0, 0] ^= 1
    features.classifier(bars._replace(train_images=images), seed=1, steps=5)
    features.classifier(bars._replace(test_labels=bars.test_labels[::-1]), seed=1, steps=5)
    assert fits == [(1, 5), (2, 5), (1, 6), (1, 5), (1, 5)]
    assert len(list(cache.iterdir())) == 5


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped", "another's"])
def test_a_damaged_one_is_trained_again(bars, fits, cache, caplog, damage):
    first = features.classifier(bars, steps=5)
    (path,) = cache.iterdir()
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        content = content[: len(content) // 2]
    elif damage == "empty":
        content = b""
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
    else:
        features.classifier(bars, seed=1, steps=5)
        (other,) = set(cache.iterdir()) - {path}
        content = other.read_bytes()
        fits.pop()
    path.write_bytes(content)
    again = features.classifier(bars, steps=5)
    (line,) = warnings_in(caplog)
    assert f"{path} is damaged" in line
    assert fits == [(0, 5)] * 2
    np.testing.assert_array_equal(again.extract(bars.test_images), first.extract(bars.test_images))
    features.classifier(bars, steps=5)  # it has been replaced
    assert fits == [(0, 5)] * 2


class Trap:
    """Unpickling it would leave a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_no_pickle_is_loaded(bars, fits, cache, caplog, tmp_path):
    features.classifier(bars, steps=5)
    (path,) = cache.iterdir()
    arrays = dict(np.load(path))
    arrays["hidden_bias"] = np.array([Trap(tmp_path / "sprung")], object)
    np.savez(path, **arrays)
    with zipfile.ZipFile(path) as archive:
        assert b"sprung" in archive.read("hidden_bias.npy")
    features.classifier(bars, steps=5)
    assert not (tmp_path / "sprung").exists()
    assert len(warnings_in(caplog)) == 1
    assert len(fits) == 2


def test_what_a_kill_left_of_a_file_goes_with_the_next_start(bars, fits, cache):
    cache.mkdir(parents=True)
    left, being_written = (cache / f".classifier-{x}.npz.1234.tmp" for x in ("old", "new"))
    left.write_bytes(b"half")
    with open(being_written, "wb") as file:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX)  # as another process that writes holds it
        features.classifier(bars, steps=5)
        assert not left.exists()
        assert being_written.exists()
    features.classifier(bars, steps=5)
    assert [path.suffix for path in cache.iterdir()] == [".npz"]


def test_a_file_is_held_while_it_is_written(tmp_path):
    with files._replacing(tmp_path / "x.npz"):
        (new,) = tmp_path.iterdir()
        files.remove_orphans(tmp_path, ".x.npz.*.tmp")
        assert new.exists()


def test_without_a_place_to_keep_it_there_is_a_warning(bars, fits, cache, caplog):
    cache.parent.write_text("a file where the folder should be")
    assert features.classifier(bars, steps=5).extract(bars.test_images).shape == (12, 128)
    (line,) = warnings_in(caplog)
    assert "the feature network could not be kept" in line


@pytest.mark.parametrize(
    ("train", "test", "lacks"),
    [
        (None, None, "no labels"),
        (np.zeros(44, int), np.zeros(12, int), "only one class"),
        (np.arange(44), np.arange(12), "no class of two training images"),
        (np.arange(44) % 3, np.full(12, 3), "no class in both splits"),
    ],
)
def test_labels_that_teach_nothing_are_one_line(bars, train, test, lacks):
    taught = bars._replace(train_labels=train, test_labels=test)
    assert features.lacking(taught) == lacks
    assert features.lacking(bars) == ""
    with pytest.raises(UserError, match=rf"bars.npz has {lacks} .* set evaluate.features"):
        features.classifier(taught)


def test_an_accuracy_that_guessing_has_too_is_doubted(bars):
    def doubts(accuracy):
        network = features.FeatureNetwork("classifier-x", None, {"test_accuracy": accuracy})
        return features.doubts(network, bars)

    # A third of 12, and two deviations of so many guesses above it.
    assert not doubts(1 / 3 + 2 * (2 / 9 / 12) ** 0.5 + 0.01)
    (line,) = doubts(1 / 3 + 2 * (2 / 9 / 12) ** 0.5 - 0.01)
    assert re.match(r"FD\[classifier-x\] may mean little: .* 0.595 .* 0.333 are of one", line)
    assert not doubts(None)


def test_random_weights_tell_sets_apart():
    """What is unlike the test images lies farther from them than the training images do."""
    digits = data.load("digits")
    network = features.random((8, 8, 1), seed=1)
    assert network.distance == "FD[random-conv]"
    assert network.about == features.random((8, 8, 1), seed=1).about
    assert network.about["sha256"] != features.random((8, 8, 1)).about["sha256"]

    def distance(images):
        images = np.rint(images[:360]).clip(0, 255).astype(np.uint8)
        x, y = network.extract(images), network.extract(digits.test_images)
        assert x.shape == (360, features.WIDTH)
        return frechet_distance(moments(x), moments(y))

    rng, pixels = np.random.default_rng(0), digits.train_images.reshape(-1, 64).astype(float)
    gaussian = rng.multivariate_normal(pixels.mean(0), np.cov(pixels.T), 360).reshape(-1, 8, 8, 1)
    alike = distance(digits.train_images)
    assert distance(digits.train_images[digits.train_labels < 5]) > 1.5 * alike
    assert distance(gaussian) > 1.5 * alike  # though its first two moments are those of the data
    assert distance(digits.train_images / 2 + digits.train_images[::-1] / 2) > 1.5 * alike
    assert distance(np.roll(digits.train_images, 1, axis=2)) > 5 * alike


def test_only_the_inception_networks_distance_is_called_fid(bars, fits):
    assert features.FeatureNetwork("inception", None, {}).distance == "FID"
    assert features.classifier(bars, steps=5).distance == "FD[classifier-bars]"
    for name, distance in (
        ("mnist", "FD[classifier-mnist]"),
        ("cifar10_corrupted/fog:1.0.0", "FD[classifier-cifar10_corrupted-fog-1.0.0]"),
    ):
        assert features.classifier(bars._replace(name=name), steps=5).distance == distance
    # Nowhere else do the sources say so: each line that does is about that network.
    for path in [*ROOT.glob("hsjax/**/*.py"), *ROOT.glob("configs/*.py"), ROOT / "main.py"]:
        for line in path.read_text().splitlines():
            if re.search(r"\bFID\b", line) and path.stem not in ("inception", "torch_files"):
                assert "inception" in line.lower(), f"{path}: {line}"
