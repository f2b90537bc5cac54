"""Distances between samples against POT, exhaustive transport and float64 loops."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import ot
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsjax import distances

SLICED = jax.jit(distances.sliced_wasserstein)
UNIFORM = jax.jit(distances.spherical_sliced_wasserstein_uniform)
SPHERICAL = jax.jit(distances.spherical_sliced_wasserstein)
MMD = jax.jit(distances.maximum_mean_discrepancy, static_argnames=("kernel", "scales"))


def on_sphere(count, n, seed, shift=0.0):
    x = np.random.default_rng(seed).normal(size=(count, n))
    x[:, 0] += shift
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def of_pot(planes):
    """Planes [count, 2, n] as POT takes them."""
    return np.asarray(planes, np.float64).transpose(0, 2, 1)


def test_directions_and_planes_are_orthonormal_and_uniform():
    lines = np.asarray(distances.directions(jax.random.key(0), 4000, 3))
    planes = np.asarray(distances.planes(jax.random.key(1), 4000, 3))
    np.testing.assert_allclose(np.linalg.norm(lines, axis=1), 1.0, rtol=1e-6)
    products = planes @ planes.transpose(0, 2, 1)
    np.testing.assert_allclose(products, np.broadcast_to(np.eye(2), (4000, 2, 2)), atol=1e-5)
    for vectors in (lines, planes[:, 0], planes[:, 1]):
        np.testing.assert_allclose(vectors.mean(axis=0), 0.0, atol=0.05)
        np.testing.assert_allclose(vectors.T @ vectors / 4000, np.eye(3) / 3, atol=0.03)


@pytest.mark.parametrize(("count", "n"), [(2, 2), (40, 5), (64, 128)])
def test_sliced_distances_are_pots(count, n):
    """POT returns roots, and needs to be told how many projections there are."""
    lines = distances.directions(jax.random.key(0), 30, n)
    planes = distances.planes(jax.random.key(0), 30, n)
    x, y = on_sphere(count, n, 0), on_sphere(count, n, 1, shift=1.0)
    a, b = x.astype(np.float64), y.astype(np.float64)
    wanted = ot.sliced_wasserstein_distance(a, b, projections=np.asarray(lines, np.float64).T) ** 2
    np.testing.assert_allclose(SLICED(x, y, lines), wanted, rtol=1e-5)
    options = {"n_projections": 30, "projections": of_pot(planes)}
    wanted = ot.sliced_wasserstein_sphere_unif(a, **options) ** 2
    np.testing.assert_allclose(UNIFORM(x, planes), wanted, rtol=1e-4, atol=1e-7)
    wanted = ot.sliced_wasserstein_sphere(a, b, p=2, **options) ** 2
    np.testing.assert_allclose(SPHERICAL(x, y, planes), wanted, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(SPHERICAL(3.0 * x, 0.1 * y, planes), wanted, rtol=1e-4, atol=1e-7)


def transport(u, v):
    """W_2² on a circle of length 1 by every assignment of as many points."""
    gap = np.abs(u[:, None] - v[None]) % 1.0
    costs = np.minimum(gap, 1.0 - gap) ** 2
    rows = np.arange(len(u))
    return min(costs[rows, list(order)].mean() for order in itertools.permutations(rows))


@given(st.integers(1, 6), st.integers(0, 10_000), st.floats(0.0, 3.0))
@settings(max_examples=60, deadline=None)
def test_transport_on_a_circle_is_the_best_assignment(count, seed, spread):
    """Points that are close together, spread out or on both sides of where the circle is cut."""
    rng = np.random.default_rng(seed)
    angles = rng.uniform(0, 2 * np.pi, (2, 1)) + spread * rng.normal(size=(2, count))
    x, y = (np.stack([np.cos(a), np.sin(a)], axis=1).astype(np.float32) for a in angles)
    circle = np.eye(2, dtype=np.float32)[None]
    wanted = transport(*(angles / (2 * np.pi)))
    np.testing.assert_allclose(SPHERICAL(x, y, circle), wanted, atol=2e-6)


@given(st.integers(1, 40), st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_the_uniform_law_is_many_points_at_equal_distances(count, seed):
    rng = np.random.default_rng(seed)
    angles = rng.uniform(0, 2 * np.pi, count)
    x = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    circle = np.eye(2, dtype=np.float32)[None]
    # As many points of the law for each of x: the best shift of these, in float64.
    fine = 200
    t = np.sort((angles / (2 * np.pi)) % 1.0).repeat(fine)
    grid = (np.arange(count * fine) + 0.5) / (count * fine)
    wanted = np.var(t - grid) + 1 / (12 * (count * fine) ** 2)
    np.testing.assert_allclose(UNIFORM(x, circle), wanted, atol=1e-6)
    assert 1 / (12 * count**2) - 1e-7 <= UNIFORM(x, circle) <= 1 / 12 + 1e-6


def loop_mmd(x, y, kernel, scales):
    x, y = x.astype(np.float64), y.astype(np.float64)
    widths = [2 * x.shape[1] * scale for scale in scales]

    def k(a, b):
        square = np.sum((a - b) ** 2)
        return sum(
            width / (width + square) if kernel == "imq" else np.exp(-square / width)
            for width in widths
        )

    def within(a):
        pairs = itertools.permutations(range(len(a)), 2)
        return np.mean([k(a[i], a[j]) for i, j in pairs])

    return within(x) + within(y) - 2 * np.mean([k(a, b) for a in x for b in y])


@pytest.mark.parametrize("kernel", ["imq", "rbf"])
@pytest.mark.parametrize("far", [0.0, 1e3])
def test_mmd_is_a_float64_loops(kernel, far):
    rng = np.random.default_rng(0)
    x = (far + rng.normal(size=(12, 8))).astype(np.float32)
    y = (far + 0.5 + rng.normal(size=(9, 8))).astype(np.float32)
    for scales in ((1.0,), (0.1, 10.0)):
        wanted = loop_mmd(x, y, kernel, scales)
        found = MMD(x, y, kernel=kernel, scales=scales)
        np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=2e-5 if far else 2e-6)


def test_each_is_least_for_the_law_it_is_of():
    """n = 128 and 200 points: uniform, an island, a tenth of the directions."""
    uniform, again, island = (
        on_sphere(200, 128, 0),
        on_sphere(200, 128, 1),
        on_sphere(200, 128, 2, 8.0),
    )
    flat = uniform * (np.arange(128) < 12)
    planes = distances.planes(jax.random.key(0), 200, 128)
    lines = distances.directions(jax.random.key(1), 200, 128)
    floor = UNIFORM(uniform, planes)
    np.testing.assert_allclose(floor, 1 / (12 * 200), rtol=0.2)  # of points at random
    assert UNIFORM(island, planes) > 10 * floor
    assert UNIFORM(flat, planes) > 1.02 * floor
    for distance, made in ((SPHERICAL, planes), (SLICED, lines)):
        assert distance(uniform, island, made) > 5 * distance(uniform, again, made)
        assert distance(uniform, uniform, made) < 1e-10
    root = 128**0.5
    assert abs(MMD(root * uniform, root * again)) < 0.01
    assert MMD(root * uniform, root * island) > 0.1


DEGENERATE = {
    "equal rows": lambda n: np.ones((6, n)),
    "two rows": lambda n: np.eye(n)[:2],
    "antipodes": lambda n: np.concatenate([np.eye(n)[:2], -np.eye(n)[:2]]),
    "zeros": lambda n: np.zeros((4, n)),
    "some zeros": lambda n: np.eye(max(n, 4))[:4, :n],
    "tiny": lambda n: 1e-25 * np.eye(n)[:2],
    "huge": lambda n: 1e15 * np.eye(n)[:2],
    "one row": lambda n: np.ones((1, n)),
}


@pytest.mark.parametrize("n", [2, 5])
@pytest.mark.parametrize("name", DEGENERATE)
def test_values_and_derivatives_are_finite_for_degenerate_batches(name, n):
    """Against itself, where all distances are 0, and against some other batch."""
    x = DEGENERATE[name](n).astype(np.float32)
    y = np.random.default_rng(0).normal(size=x.shape).astype(np.float32)
    lines = distances.directions(jax.random.key(0), 9, n)
    planes = distances.planes(jax.random.key(0), 9, n)
    planes = jnp.concatenate([planes, jnp.eye(n)[None, :2]])  # with points right at its centre
    functions = [
        lambda x, y: distances.sliced_wasserstein(x, y, lines),
        lambda x, y: distances.spherical_sliced_wasserstein(x, y, planes),
        lambda x, y: distances.spherical_sliced_wasserstein_uniform(x, planes),
    ]
    if len(x) > 1:
        functions += [
            functools.partial(distances.maximum_mean_discrepancy, kernel=kernel)
            for kernel in ("imq", "rbf")
        ]

    @jax.jit
    def everything(x, y):
        return [jax.value_and_grad(f, argnums=(0, 1))(x, y) for f in functions]

    for other in (x, y):
        assert all(np.isfinite(a).all() for a in jax.tree.leaves(everything(x, other)))


def test_gradients_are_those_of_differences():
    """In float64, where the order of the points does not change."""
    with jax.enable_x64(True):
        x, y = (on_sphere(7, 4, seed).astype(np.float64) for seed in (0, 1))
        lines = np.asarray(distances.directions(jax.random.key(0), 5, 4), np.float64)
        planes = np.asarray(distances.planes(jax.random.key(0), 5, 4), np.float64)
        step = 1e-6 * np.random.default_rng(5).normal(size=x.shape)
        for function, arguments in (
            (distances.sliced_wasserstein, (y, lines)),
            (distances.spherical_sliced_wasserstein, (y, planes)),
            (distances.spherical_sliced_wasserstein_uniform, (planes,)),
            (distances.maximum_mean_discrepancy, (y,)),
        ):
            function = jax.jit(function)
            slope = np.sum(jax.jit(jax.grad(function))(x, *arguments) * step)
            change = (function(x + step, *arguments) - function(x - step, *arguments)) / 2
            np.testing.assert_allclose(slope, change, rtol=1e-5)


def test_wrong_input_is_refused_in_one_line():
    x, y = np.zeros((3, 4), np.float32), np.zeros((5, 4), np.float32)
    lines = distances.directions(jax.random.key(0), 2, 4)
    planes = distances.planes(jax.random.key(0), 2, 4)
    with pytest.raises(ValueError, match=r"same shape, got \(3, 4\) and \(5, 4\)"):
        distances.sliced_wasserstein(x, y, lines)
    with pytest.raises(ValueError, match="same shape"):
        distances.spherical_sliced_wasserstein(x, y, planes)
    with pytest.raises(ValueError, match="at least 2 points each, got 1 and 5"):
        distances.maximum_mean_discrepancy(x[:1], y)
    with pytest.raises(ValueError, match="imq or rbf: 'cosine'"):
        distances.maximum_mean_discrepancy(x, y, kernel="cosine")
