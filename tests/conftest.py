"""Settings of every test: on the CPU; the pure functions without any silent promotion."""

import gc
import os
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Programs compiled by one test, or by a command it starts, serve the next.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="hsjax-tests-"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")  # small ones are many
# Decoded sets and feature networks too: never those of the user's home. The processes of
# pytest-xdist share what the first one made.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="hsjax-tests-")
os.environ.pop("COLUMNS", None)  # pytest-xdist sets it, and output would fold

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import default

# Without those that run flax and optax, which do promote.
PURE = ("test_coordinates", "test_densities", "test_losses", "test_samplers", "test_wild")


gc.set_threshold(50_000, 20, 100)  # JAX keeps most of what it traces: going through it is slow

# Commands that tests start compile quickly, too.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")


@pytest.fixture(autouse=True, scope="module")
def _quickly_compiled(request):
    """Programs that run once or twice, but for those of the functions whose digits are tested."""
    exact = request.module.__name__ in ("test_coordinates", "test_losses")
    jax.config.update("jax_disable_most_optimizations", not exact)


@pytest.fixture(autouse=True)
def _strict(request):
    if request.module.__name__ not in PURE:
        yield
        return
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(scope="session")
def images_file(tmp_path_factory):
    """An .npz of 44 + 12 images of 6x10: bright bars whose place is their label."""
    rng = np.random.default_rng(0)
    labels = np.arange(56) % 3
    images = rng.integers(0, 60, (56, 6, 10, 1), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[2 * label : 2 * label + 2] += 180
    path = tmp_path_factory.mktemp("data") / "bars.npz"
    np.savez(
        path,
        train_images=images[:44],
        train_labels=labels[:44],
        test_images=images[44:],
        test_labels=labels[44:],
    )
    return path


@pytest.fixture
def config(images_file) -> ConfigDict:
    """A spherical VAE that trains in a second: 6 batches of 8 an epoch, 3 epochs."""
    return tiny_config(images_file)


def of_judgement(config) -> dict:
    """What an evaluation may be told of a config."""
    groups = config.sample.to_dict(), config.evaluate.to_dict()
    names = ("sample", "evaluate")
    return {f"{g}.{k}": v for g, tree in zip(names, groups, strict=True) for k, v in tree.items()}


def tiny_config(images_file) -> ConfigDict:
    config = default.get_config("spherical")
    config.data.name = str(images_file)
    config.model.latent_dim = 4
    config.model.stages = (2, 4)
    config.model.project = True
    config.loss.annealing = "sqrt"
    config.loss.annealing_epochs = 4
    config.train.batch_size = 8
    config.train.epochs = 3
    config.train.learning_rate = 1e-3
    config.train.checkpoint_every = 1
    config.sample.sampler = "projected_gaussian"
    # Judged in a second, too: what else there is, the tests about it ask for.
    config.evaluate.samplers = ("prior", "vmf")
    config.evaluate.metrics = ("frechet", "kid", "prdc", "knn", "probe", "latents")
    config.evaluate.feature_steps = 60
    return config
