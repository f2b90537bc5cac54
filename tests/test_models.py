"""The network of the paper: its size, its shapes, its precision."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.signal import correlate

from hsjax import models
from hsjax.models import VAE


def built(*arguments, **settings):
    """A VAE; eagerly, each of its parameters would be compiled by itself."""
    return nnx.jit(lambda: VAE(*arguments, rngs=nnx.Rngs(0), **settings))()


@partial(nnx.jit, static_argnames=("train",))
def encode(model, images, *, train=False):
    return model.encode(images, train=train)


@partial(nnx.jit, static_argnames=("train",))
def decode(model, z, *, train=False):
    return model.decode(z, train=train)


def parameters(model):
    return sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))


@pytest.mark.parametrize(("n", "count"), [(128, 660_995), (200, 882_323)])
def test_parameter_count_of_the_published_network(n, count):
    model = nnx.eval_shape(lambda: VAE((32, 32, 3), n, rngs=nnx.Rngs(0)))
    assert parameters(model) == count


@pytest.mark.parametrize(("shape", "stages"), [((8, 8, 1), (4, 8)), ((4, 12, 3), (4,))])
def test_shapes_for_other_images_and_stages(shape, stages):
    model = built(shape, 5, stages)
    images = jnp.ones((3, *shape))
    assert encode(model, images, train=True).shape == (3, 10)
    few = built(shape, 5, stages, outputs=6)
    assert encode(few, images, train=True).shape == (3, 6)
    output = decode(model, jnp.ones((3, 5)), train=True)
    assert output.shape == images.shape
    assert output.min() >= 0
    assert output.max() <= 1


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_latents_parameters_and_statistics_are_float32(dtype):
    model = built((8, 8, 1), 4, (4, 8), dtype)
    latent = encode(model, jnp.ones((2, 8, 8, 1)), train=True)
    output = decode(model, jnp.ones((2, 4)), train=True)
    arrays = (latent, output, nnx.state(model, nnx.Param), nnx.state(model, nnx.BatchStat))
    assert {x.dtype for x in jax.tree.leaves(arrays)} == {jnp.dtype(jnp.float32)}
    inner = model.encoder.stem(jnp.ones((2, 8, 8, 1)))
    assert inner.dtype == dtype


class ByLoop:
    """The network in evaluation mode, an image at a time, in float64 NumPy."""

    def __init__(self, arrays):
        self.arrays = arrays  # by path

    def conv(self, x, name):
        kernel = self.arrays[f"{name}.kernel"]
        parts = [
            sum(correlate(x[..., c], kernel[..., c, k], "same") for c in range(x.shape[-1]))
            for k in range(kernel.shape[-1])
        ]
        return np.stack(parts, axis=-1) + self.arrays.get(f"{name}.bias", 0.0)

    def norm(self, x, name):
        mean, var, scale, bias = (
            self.arrays[f"{name}.{part}"] for part in ("mean", "var", "scale", "bias")
        )
        return (x - mean) / np.sqrt(var + 1e-5) * scale + bias

    def block(self, x, name):
        y = leaky(self.norm(self.conv(x, f"{name}.conv1"), f"{name}.norm1"))
        y = self.norm(self.conv(y, f"{name}.conv2"), f"{name}.norm2")
        return leaky(y + (self.conv(x, f"{name}.skip") if x.shape != y.shape else x))

    def linear(self, x, name):
        return x.ravel() @ self.arrays[f"{name}.kernel"] + self.arrays[f"{name}.bias"]

    def encode(self, x):
        x = halved(leaky(self.norm(self.conv(x, "encoder.stem"), "encoder.norm")))
        x = halved(self.block(x, "encoder.blocks.0"))
        return self.linear(self.block(x, "encoder.last"), "encoder.head")

    def decode(self, z, shape):
        x = leaky(self.norm(self.linear(z, "decoder.head"), "decoder.norm")).reshape(shape)
        for i in range(2):
            x = self.block(x, f"decoder.blocks.{i}").repeat(2, axis=0).repeat(2, axis=1)
        return 1 / (1 + np.exp(-self.conv(self.block(x, "decoder.last"), "decoder.out")))


def leaky(x):
    return np.where(x > 0, x, 0.2 * x)


def halved(x):
    return (x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2]) / 4


def test_the_network_is_that_of_a_float64_loop():
    """With random running statistics, and latents that are projected and then scaled."""
    graph, state = nnx.split(
        nnx.eval_shape(lambda: VAE((8, 12, 2), 3, (3, 5), project=True, rngs=nnx.Rngs(0)))
    )
    rng = np.random.default_rng(0)

    def filled(path, x):
        is_variance = "var" in jax.tree_util.keystr(path)
        draw = rng.uniform(0.5, 1.5, x.shape) if is_variance else rng.normal(0, 0.4, x.shape)
        return jnp.asarray(draw, x.dtype)

    state = jax.tree_util.tree_map_with_path(filled, state)
    arrays = {
        ".".join(map(str, path)): np.asarray(x[...], np.float64)
        for path, x in nnx.to_flat_state(state)
    }
    images = rng.uniform(size=(3, 8, 12, 2)).astype(np.float32)
    z = rng.normal(size=(3, 3)).astype(np.float32)
    model = nnx.merge(graph, state)
    encoded = jax.jit(model.encode)(images)
    outputs = jax.jit(lambda z: model.decode(z, scale=2.0))(z)
    loop = ByLoop(arrays)
    for i in range(3):
        expected = loop.encode(images[i].astype(np.float64))
        np.testing.assert_allclose(encoded[i], expected, rtol=1e-4, atol=1e-5)
        on_sphere = 2.0 * 3**0.5 * z[i] / np.linalg.norm(z[i])
        np.testing.assert_allclose(outputs[i], loop.decode(on_sphere, (2, 3, 5)), rtol=1e-4)


def test_projected_model_decodes_the_direction_alone():
    model = built((8, 8, 1), 4, (4, 8), project=True)
    free = built((8, 8, 1), 4, (4, 8))
    z = jax.random.normal(jax.random.key(0), (6, 4))
    np.testing.assert_allclose(decode(model, z), decode(model, 7 * z), atol=1e-6)
    on_sphere = 2.0 * z / jnp.linalg.norm(z, axis=1, keepdims=True)  # √n = 2
    np.testing.assert_allclose(decode(model, z), decode(free, on_sphere), atol=1e-6)
    assert np.abs(decode(free, z) - decode(free, 7 * z)).max() > 1e-4


def test_running_statistics_follow_training_and_rule_evaluation():
    model = built((8, 8, 1), 4, (4, 8))
    images = 3.0 + jax.random.uniform(jax.random.key(0), (16, 8, 8, 1))
    before = model.encoder.norm.mean[...]
    encode(model, images, train=False)
    np.testing.assert_array_equal(model.encoder.norm.mean[...], before)
    batch_mean = model.encoder.stem(images).mean(axis=(0, 1, 2))
    encode(model, images, train=True)
    np.testing.assert_allclose(model.encoder.norm.mean[...], 0.1 * batch_mean, rtol=1e-4, atol=1e-6)
    alone = encode(model, images[:1], train=False)
    np.testing.assert_allclose(alone, encode(model, images, train=False)[:1], atol=1e-5)


@pytest.mark.parametrize("ratio", [0.0, 30.0, 3000.0])
def test_batch_norm_of_a_mean_far_above_the_spread(ratio):
    x = (np.random.default_rng(0).normal(size=(50, 4)) + ratio).astype(np.float32)
    norm = models._normalisation(4, jnp.float32, nnx.Rngs(0))
    got = norm(jnp.asarray(x), use_running_average=False)
    mean, variance = x.mean(0, dtype=np.float64), x.var(0, dtype=np.float64)
    np.testing.assert_allclose(got, (x - mean) / np.sqrt(variance + 1e-5), atol=1e-5)
    np.testing.assert_allclose(norm.mean[...], 0.1 * mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * variance, rtol=1e-5)
    # The shift is a number to the derivative, which sees the plain formula.

    def ours(x):
        fresh = models._normalisation(4, jnp.float32, nnx.Rngs(0))
        return jnp.sum(fresh(x, use_running_average=False)[0] ** 3)

    def plain(x):
        y = (x - jnp.mean(x, 0)) / jnp.sqrt(jnp.var(x, 0) + 1e-5)
        return jnp.sum(y[0] ** 3)

    with jax.enable_x64(True):
        expected = jax.grad(plain)(jnp.asarray(x, jnp.float64))
    np.testing.assert_allclose(jax.grad(ours)(jnp.asarray(x)), expected, atol=1e-4)


def test_pytorch_initialisation_is_uniform_up_to_one_over_root_fan_in():
    model = built((8, 8, 1), 64, (4, 64), initialisation="pytorch")
    decoder = model.decoder
    for layer, fan_in in (
        (decoder.last.conv1, 4 * 9),
        (decoder.blocks[1].conv1, 64 * 9),
        (model.encoder.head, 256),
        (decoder.head, 64),
    ):
        kernel = np.asarray(layer.kernel[...])
        assert np.abs(kernel).max() <= fan_in**-0.5
        assert np.abs(kernel).max() > 0.95 * fan_in**-0.5
        # A variance of 1 / (3 fan_in), within 4 deviations of an estimate from a uniform law.
        assert abs(3 * fan_in * kernel.var() - 1) < 4 * (0.8 / kernel.size) ** 0.5
    bias = np.asarray(decoder.head.bias[...])
    assert abs(3 * 64 * bias.var() - 1) < 4 * (0.8 / bias.size) ** 0.5


def test_bad_sizes_are_named():
    with pytest.raises(ValueError, match="initialisation must be one of lecun_normal, pytorch"):
        built((8, 8, 1), 4, (4,), initialisation="zeros")
    with pytest.raises(ValueError, match="multiples of 8"):
        built((28, 28, 1), 4)
    with pytest.raises(ValueError, match="latent_dim must be at least 2"):
        built((32, 32, 1), 1)
