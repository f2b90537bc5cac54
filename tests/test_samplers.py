"""Samplers draw what they say: moments, sphere, reproducibility."""

import jax
import numpy as np
import pytest

from hsjax.samplers import SAMPLERS


def embeddings(count=2000, n=6):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, n)) @ rng.normal(size=(n, n)) * 0.2 + 1.0
    return (np.sqrt(n) * x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_have_the_shape_and_follow_the_key(name):
    sampler = SAMPLERS[name]
    parameters = sampler.fit(embeddings())
    draw = jax.jit(sampler.sample, static_argnums=2)
    first = draw(parameters, jax.random.key(0), 100)
    assert first.shape == (100, 6)
    np.testing.assert_array_equal(first, draw(parameters, jax.random.key(0), 100))
    assert np.abs(first - draw(parameters, jax.random.key(1), 100)).max() > 0
    if name != "prior":
        np.testing.assert_allclose(np.linalg.norm(first, axis=1), 6**0.5, rtol=1e-5)


def test_prior_and_uniform_sphere_have_unit_covariance():
    for name in ("prior", "uniform_sphere"):
        z = SAMPLERS[name].sample(SAMPLERS[name].fit(embeddings()), jax.random.key(0), 50_000)
        np.testing.assert_allclose(np.mean(z, 0), np.zeros(6), atol=0.03)
        np.testing.assert_allclose(np.cov(z, rowvar=False), np.eye(6), atol=0.04)


def test_projected_gaussian_keeps_direction_and_shape_of_the_cloud():
    x = embeddings()
    sampler = SAMPLERS["projected_gaussian"]
    z = np.asarray(sampler.sample(sampler.fit(x), jax.random.key(0), 50_000))
    np.testing.assert_allclose(z.mean(0), x.mean(0), atol=0.1)
    np.testing.assert_allclose(np.cov(z, rowvar=False), np.cov(x, rowvar=False), atol=0.1)


def test_projected_gaussian_from_fewer_embeddings_than_coordinates():
    x = embeddings(count=4)
    sampler = SAMPLERS["projected_gaussian"]
    z = sampler.sample(sampler.fit(x), jax.random.key(0), 50)
    assert np.isfinite(z).all()
    # Nothing leaves the plane through the origin and the four embeddings.
    span = np.linalg.svd(np.concatenate([x, z]), compute_uv=False)
    assert span[4] < 1e-3 * span[0]
