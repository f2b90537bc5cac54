"""log_prob of each sampler against closed forms, SciPy, quadrature and the samples themselves."""

import functools
import importlib
import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from scipy import integrate, stats

from hsjax.coordinates import log_area
from hsjax.samplers import SAMPLERS, Mixture
from hsjax.samplers.mixture import log_radial

vmf = importlib.import_module("hsjax.samplers.vmf")  # the package's own `vmf` is the sampler

# What is trained has its own tests.
FITTED = {name: sampler for name, sampler in SAMPLERS.items() if not sampler.learned}
DENSE = [name for name, sampler in FITTED.items() if sampler.log_prob]
ON_SPHERE = ["uniform_sphere", "vmf", "projected_gaussian", "projected_gmm"]


def cloud(n, count=300, spread=0.4):
    rng = np.random.default_rng(n)
    x = spread * rng.normal(size=(count, n)) @ rng.normal(size=(n, n))
    return (x + np.linspace(0.5, 1.0, n)).astype(np.float32)


@functools.cache
def fitted(name, n):
    parameters = SAMPLERS[name].fit(cloud(n))
    radius = getattr(parameters, "radius", n**0.5)
    return parameters, float(radius)


def weigh(name, parameters, z):
    return np.asarray(jitted(name)(parameters, z), np.float64)


@functools.cache
def jitted(name):
    return jax.jit(SAMPLERS[name].log_prob)


@functools.cache
def gradient(name):
    return jax.jit(jax.grad(lambda z, parameters: SAMPLERS[name].log_prob(parameters, z).sum()))


def test_those_with_a_density():
    assert set(FITTED) - set(DENSE) == {"own", "angles"}


# ---------------------------------------------------------------------- functions of n and kappa


@pytest.mark.parametrize("n", [2, 3, 10, 128, 500, 10_000])
@pytest.mark.parametrize("kappa", [1e-6, 1e-2, 1.0, 30.0, 1e3, 1e6])
def test_functions_of_kappa_are_those_of_bessel_functions(n, kappa):
    with mpmath.workdps(40):
        order, k, pi = mpmath.mpf(n) / 2, mpmath.mpf(kappa), mpmath.pi
        bessel = [mpmath.besseli(order - 1 + i, k, maxterms=10**6) for i in (0, 1)]
        log_normaliser = (
            (order - 1) * mpmath.log(k) - order * mpmath.log(2 * pi) - mpmath.log(bessel[0])
        )
        area = mpmath.log(2 * pi**order / mpmath.gamma(order))
        kl = k * bessel[1] / bessel[0] + log_normaliser + area
        expected = [float(x) for x in (log_normaliser, kl, area - kl, area)]
    found = vmf.log_normaliser(n, kappa), vmf.kl_to_uniform(n, kappa), vmf.entropy(n, kappa)
    np.testing.assert_allclose([*found, log_area(n)], expected, rtol=1e-9)


def test_functions_of_kappa_at_0():
    assert vmf.log_normaliser(7, 0.0) == -log_area(7)
    assert vmf.entropy(7, 0.0) == log_area(7)
    assert vmf.kl_to_uniform(7, 0.0) == 0.0


def test_closed_entropies_are_means_of_the_density():
    x = cloud(3)
    parameters = SAMPLERS["gaussian"].fit(x)
    z = SAMPLERS["gaussian"].sample(parameters, jax.random.key(0), 20_000)
    found = -weigh("gaussian", parameters, z).mean()
    expected = stats.multivariate_normal(cov=np.cov(x, rowvar=False)).entropy()
    np.testing.assert_allclose(found, expected, atol=0.03)
    parameters, radius = fitted("vmf", 5)
    z = SAMPLERS["vmf"].sample(parameters, jax.random.key(0), 20_000)
    expected = vmf.entropy(5, float(parameters.kappa)) + 4 * math.log(radius)
    np.testing.assert_allclose(-weigh("vmf", parameters, z).mean(), expected, atol=0.03)


# -------------------------------------------------------------------------------------- in R^n


@pytest.mark.parametrize("n", [2, 8, 128])
def test_densities_of_normal_laws_are_those_of_scipy(n):
    x = cloud(n, 600)
    z = 1.5 * x[:40]
    found = weigh("prior", jnp.zeros(n), z)
    np.testing.assert_allclose(found, stats.norm.logpdf(z).sum(1), rtol=1e-5, atol=1e-4)
    law = stats.multivariate_normal(x.mean(0, np.float64), np.cov(x, rowvar=False))
    found = weigh("gaussian", SAMPLERS["gaussian"].fit(x), z)
    np.testing.assert_allclose(found, law.logpdf(z), rtol=1e-4, atol=1e-3)


def test_the_density_of_a_mixture_is_a_sum_over_its_components():
    x = np.concatenate([cloud(4), 3.0 + 0.1 * cloud(4)])
    parameters = SAMPLERS["gmm"].fit(x)
    factors = np.asarray(parameters.factors, np.float64)
    laws = [
        stats.multivariate_normal(mean, factor @ factor.T)
        for mean, factor in zip(np.asarray(parameters.means, np.float64), factors, strict=True)
    ]
    weights = np.exp(np.asarray(parameters.log_weights, np.float64))
    expected = np.log(sum(w * law.pdf(x) for w, law in zip(weights, laws, strict=True)))
    np.testing.assert_allclose(weigh("gmm", parameters, x), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", ["gaussian", "projected_gaussian"])
def test_a_singular_covariance_has_no_density(name):
    for x in (cloud(6, count=4), cloud(6) * np.float32([1, 1, 0, 1, 1, 1]), np.zeros((9, 6))):
        parameters = SAMPLERS[name].fit(x)
        z = jnp.ones((3, 6))
        assert np.all(weigh(name, parameters, z) == -np.inf)
        assert not np.isnan(gradient(name)(z, parameters)).any()


def test_a_singular_component_leaves_the_others():
    """Beside a point mass of weight 1/2, a normal law weighs half of what it does alone."""
    factors = jnp.stack([jnp.zeros((3, 3)), jnp.eye(3)])
    parameters = Mixture(jnp.log(jnp.array([0.5, 0.5])), jnp.zeros((2, 3)), factors, jnp.ones(()))
    z = jnp.array([[1.0, 2.0, 3.0]])
    expected = SAMPLERS["prior"].log_prob(jnp.zeros(3), z) - math.log(2)
    np.testing.assert_allclose(SAMPLERS["gmm"].log_prob(parameters, z), expected, rtol=1e-5)


# ------------------------------------------------------------------------------- on the sphere


@pytest.mark.parametrize("name", ON_SPHERE)
@pytest.mark.parametrize("n", [2, 3])
def test_a_density_on_the_sphere_integrates_to_1(name, n):
    """Over the angle, and in three dimensions over the height by Gauss and Legendre's rule."""
    turn = 2 * np.pi * np.arange(400) / 400
    circle = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    height, weights = np.polynomial.legendre.leggauss(200)
    if n == 3:
        flat = np.sqrt(1 - height**2)
        circle = np.concatenate(
            [
                flat[:, None, None] * circle[None],
                np.broadcast_to(height[:, None, None], (200, 400, 1)),
            ],
            axis=2,
        ).reshape(-1, 3)
    else:
        weights = np.ones(1)
    parameters, radius = fitted(name, n)
    density = np.exp(weigh(name, parameters, 7.0 * circle.astype(np.float32)))  # at any length
    integral = weights @ density.reshape(len(weights), 400).mean(axis=1) * 2 * np.pi
    np.testing.assert_allclose(integral * radius ** (n - 1), 1.0, rtol=1e-4)


@pytest.mark.parametrize("name", ON_SPHERE)
@pytest.mark.parametrize("n", [2, 4])
def test_samples_agree_with_their_density(name, n):
    """The mean of 1/density over samples is the area, where the density is nowhere small."""
    x = np.random.default_rng(0).normal(size=(300, n)) + 0.3
    parameters = SAMPLERS[name].fit(1.5 * x)
    radius = float(getattr(parameters, "radius", n**0.5))
    z = SAMPLERS[name].sample(parameters, jax.random.key(0), 50_000)
    inverse = np.exp(-weigh(name, parameters, z) - log_area(n, radius))
    error = inverse.std() / len(inverse) ** 0.5
    assert abs(inverse.mean() - 1.0) < 4 * error + 1e-4
    assert error < 0.05


@pytest.mark.parametrize("n", [2, 3, 10, 50])
def test_vmf_density_is_that_of_scipy(n):
    parameters, radius = fitted("vmf", n)
    direction = np.asarray(parameters.direction, np.float64)
    law = stats.vonmises_fisher(direction / np.linalg.norm(direction), float(parameters.kappa))
    z = cloud(n)[:30].astype(np.float64)
    expected = law.logpdf(z / np.linalg.norm(z, axis=1, keepdims=True)) - (n - 1) * np.log(radius)
    found = weigh("vmf", parameters, z.astype(np.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


def test_vmf_density_of_a_tight_island_is_that_of_a_gaussian_around_it():
    n, sine = 128, 1e-4
    x = np.zeros((2, n))
    x[:, 0], x[0, 1], x[1, 1] = 3.0, 3.0 * sine, -3.0 * sine
    parameters = SAMPLERS["vmf"].fit(x)
    expected = 0.5 * (n - 1) * math.log(float(parameters.kappa) / (2 * math.pi * 9))
    found = weigh("vmf", parameters, jnp.asarray(x[:1], jnp.float32))
    expected -= 0.5 * float(parameters.kappa) * sine**2
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("n", [2, 3, 8, 128, 1000])
def test_the_integral_over_the_radius(n):
    """In float64, against parabolic cylinder functions of forty digits."""
    means = [-200.0, -10.0, -1.0, 0.0, 1.0, 2.5, 10.0, 300.0]
    with jax.enable_x64(True):
        found = jax.jit(log_radial, static_argnums=0)(n, jnp.array(means))
        slope = jax.jit(jax.grad(lambda m: log_radial(n, m).sum()))(jnp.array(means))
    for m, ours, derivative in zip(map(mpmath.mpf, means), found, slope, strict=True):
        with mpmath.workdps(40):

            def log_moment(power, m):  # Γ(n) e^{-m²/4} D_{-n}(-m)
                value = mpmath.gamma(power) * mpmath.exp(-m * m / 4) * mpmath.pcfd(-power, -m)
                return mpmath.log(value)

            expected = float(log_moment(n, m))
            following = float(mpmath.exp(log_moment(n + 1, m) - log_moment(n, m)))
        np.testing.assert_allclose(ours, expected, rtol=2e-9, atol=2e-8)
        np.testing.assert_allclose(derivative, following - float(m), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("n", [3, 128])
def test_the_projected_density_is_an_integral_along_a_ray(n):
    x = cloud(n, 400)
    parameters = SAMPLERS["projected_gaussian"].fit(x)
    radius = float(parameters.radius)
    law = stats.multivariate_normal(x.mean(0, np.float64), np.cov(x, rowvar=False))
    z = x[:4].astype(np.float64)
    for u, found in zip(z, weigh("projected_gaussian", parameters, x[:4]), strict=True):
        u = u / np.linalg.norm(u)
        grid = np.linspace(0, 5 * radius, 20_001)[1:]
        logs = law.logpdf(grid[:, None] * u) + (n - 1) * np.log(grid)
        integral = integrate.simpson(np.exp(logs - logs.max()), x=grid)
        expected = np.log(integral) + logs.max() - (n - 1) * np.log(radius)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


# ------------------------------------------------------------------------------------ of them all


@pytest.mark.parametrize("name", DENSE)
def test_a_density_is_of_float32_and_its_gradient_finite(name):
    parameters, _ = fitted(name, 5)
    z = jnp.asarray(cloud(5)[:20])
    log_prob = jitted(name)
    found = log_prob(parameters, z)
    assert found.shape == (20,)
    assert found.dtype == jnp.float32
    assert log_prob(parameters, z.astype(jnp.bfloat16)).dtype == jnp.float32
    slope = np.asarray(gradient(name)(z, parameters))
    assert np.isfinite(slope).all()
    if name in ON_SPHERE:  # a density of directions doesn't change along the radius
        size = 1e-4 * (1 + np.abs(slope).max())
        np.testing.assert_allclose(np.sum(slope * np.asarray(z), axis=1), 0.0, atol=size)
    with pytest.raises(TypeError, match="z must be a floating-point"):
        log_prob(parameters, z.astype(jnp.int32))
    with jax.enable_x64(True):
        wide = log_prob(parameters, z.astype(jnp.float64))
    assert wide.dtype == np.float64
    np.testing.assert_allclose(found, wide, rtol=1e-4, atol=1e-4)
