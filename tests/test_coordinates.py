"""Coordinates against loops and sums in higher precision, and where the map is singular."""

import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from benchmarks.accuracy import KINDS, TINY, reference, rows
from hsjax import coordinates


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [2, 3, 7, 200, 1000, 100_000])
def test_float32_accuracy(kind, n):
    x = rows(kind, n)
    radius, cosines, angles = reference(x)
    np.testing.assert_allclose(coordinates.radius(x), radius, rtol=5e-7)
    np.testing.assert_allclose(coordinates.cosines(x), cosines, rtol=1e-6, atol=TINY)
    r, phi = coordinates.to_spherical(x)
    np.testing.assert_allclose(r, radius, rtol=5e-7)
    np.testing.assert_allclose(phi, angles.astype(np.float64), rtol=0, atol=1e-6)
    back = np.asarray(coordinates.to_cartesian(r, phi), np.float64)
    limit = 1e-6 if n <= 1000 else 1e-5
    assert np.max(np.abs(back - x) / radius[:, None]) < limit


def test_a_million_coordinates():
    x = rows("gaussian", 1_000_000, count=1)
    radius, cosines, _ = reference(x)
    np.testing.assert_allclose(coordinates.cosines(x), cosines, rtol=1e-6)
    back = coordinates.to_cartesian(*coordinates.to_spherical(x))
    assert np.max(np.abs(np.asarray(back) - x)) < 1e-5 * radius[0]
    gradient = jax.grad(lambda x: coordinates.cosines(x, eps=1e-3).sum())(jnp.asarray(x))
    assert np.isfinite(gradient).all()


def test_definition_by_a_loop():
    """x from its angles and angles from x, coordinate by coordinate (A.1)."""
    r, phi = 2.5, [0.3, 1.2, 2.9, -2.0]
    x, product = [], r
    for angle in phi:
        x.append(product * math.cos(angle))
        product *= math.sin(angle)
    x.append(product)
    ours = coordinates.to_cartesian(jnp.float32(r), jnp.array(phi, jnp.float32))
    np.testing.assert_allclose(ours, x, rtol=1e-6)
    radius, angles = coordinates.to_spherical(jnp.array(x, jnp.float32))
    np.testing.assert_allclose(radius, r, rtol=1e-6)
    np.testing.assert_allclose(angles, phi, rtol=1e-6)


@pytest.mark.parametrize(("dtype", "digits"), [("float16", 2e-3), ("bfloat16", 1e-2)])
def test_half_precision_is_computed_in_float32(dtype, digits):
    x = jnp.asarray(rows("gaussian", 5000)).astype(dtype)
    radius, cosines, angles = reference(np.asarray(x, np.float32))
    assert coordinates.radius(x).dtype == coordinates.cosines(x).dtype == jnp.dtype(dtype)
    # Summed in half precision, 5000 squares would stop growing at 2048 (float16) or 256.
    np.testing.assert_allclose(np.asarray(coordinates.radius(x), np.float64), radius, rtol=digits)
    np.testing.assert_allclose(
        np.asarray(coordinates.cosines(x), np.float64), cosines, rtol=digits, atol=1e-7
    )
    ours = np.asarray(coordinates.to_spherical(x)[1], np.float64)
    np.testing.assert_allclose(ours, angles.astype(np.float64), rtol=digits)


def test_float64_keeps_its_digits():
    with jax.enable_x64(True):
        x = np.random.default_rng(0).normal(size=(2, 500)) * 10.0 ** np.linspace(150, -150, 500)
        radius, cosines, angles = reference(x)
        assert coordinates.cosines(x).dtype == jnp.float64
        np.testing.assert_allclose(coordinates.cosines(x), cosines.astype(float), rtol=1e-14)
        r, phi = coordinates.to_spherical(x)
        np.testing.assert_allclose(phi, angles.astype(float), atol=1e-14)
        back = coordinates.to_cartesian(r, phi)
        assert np.max(np.abs(back - x) / radius[:, None]) < 1e-14


def test_eps_is_added_under_the_root():
    x = rows("compressed", 50)
    sums = np.cumsum((x.astype(np.float64) ** 2)[:, ::-1], axis=1)[:, ::-1]
    expected = (x / np.sqrt(sums + 1e-3))[:, :-1]
    np.testing.assert_allclose(coordinates.cosines(x, eps=1e-3), expected, rtol=1e-6)
    traced = jax.jit(lambda x, eps: coordinates.cosines(x, eps=eps))(x, 1e-3)
    np.testing.assert_allclose(traced, expected, rtol=1e-6)


def test_leading_axes_vmap_and_jit_agree():
    x = jnp.asarray(rows("gaussian", 12, count=6)).reshape(2, 3, 12)
    plain = coordinates.to_spherical(x)
    mapped = jax.vmap(jax.vmap(coordinates.to_spherical))(x)
    jitted = jax.jit(coordinates.to_spherical)(x)
    for a, b, c in zip(plain, mapped, jitted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
        np.testing.assert_allclose(a, c, rtol=1e-6)
    np.testing.assert_allclose(coordinates.to_cartesian(*plain), x, atol=1e-6)


def test_project():
    x = jnp.asarray(rows("gaussian", 64))
    np.testing.assert_allclose(np.linalg.norm(coordinates.project(x), axis=1), 8.0, rtol=1e-6)
    np.testing.assert_allclose(coordinates.radius(coordinates.project(x, 3.0)), 3.0, rtol=1e-6)
    np.testing.assert_allclose(
        coordinates.cosines(coordinates.project(x)), coordinates.cosines(x), rtol=1e-5, atol=1e-7
    )
    assert not coordinates.project(jnp.zeros(4)).any()


def test_diagonal_cosines_are_those_of_ones():
    np.testing.assert_allclose(
        coordinates.diagonal_cosines(30), coordinates.cosines(jnp.ones(30)), rtol=1e-6
    )


@pytest.mark.parametrize("n", [2, 3, 6, 11])
def test_log_volume_is_the_log_determinant_of_the_jacobian(n):
    radius, angles = coordinates.to_spherical(jnp.asarray(rows("gaussian", n, count=1)[0]))

    def point(packed):
        return coordinates.to_cartesian(packed[0], packed[1:])

    jacobian = jax.jacfwd(point)(jnp.concatenate([radius[None], angles]))
    _, expected = np.linalg.slogdet(np.asarray(jacobian, np.float64))
    np.testing.assert_allclose(coordinates.log_volume(radius, angles), expected, atol=1e-5)


def test_compression_shrinks_the_volume_element():
    equator = jnp.full(31, jnp.pi / 2)
    compressed = jnp.full(31, 1.0)
    assert abs(coordinates.log_volume(jnp.float32(1.0), equator)) < 1e-6
    expected = sum(31 - k for k in range(1, 31)) * math.log(math.sin(1.0))
    ours = coordinates.log_volume(jnp.float32(1.0), compressed)
    np.testing.assert_allclose(ours, expected, rtol=1e-6)


def naive_cosines(x):
    tails = jnp.sqrt(jnp.cumsum((x * x)[..., ::-1], axis=-1)[..., ::-1])
    return (x / tails)[..., :-1]


@pytest.mark.parametrize("n", [2, 5, pytest.param(40, marks=pytest.mark.slow)])
def test_derivatives_equal_those_of_the_definition_in_float64(n):
    x = rows("gaussian", n, count=1, seed=n)[0]
    weights = np.random.default_rng(1).normal(size=n - 1)
    with jax.enable_x64(True):
        wide = jnp.asarray(x, jnp.float64)
        w = jnp.asarray(weights)
        expected = jax.grad(lambda x: w @ jnp.sin(naive_cosines(x)))(wide)
        hessian = jax.hessian(lambda x: w @ naive_cosines(x))(wide)
        ours_hessian = jax.hessian(lambda x: w @ coordinates.cosines(x))(wide)
        by_angles = jax.grad(lambda x: w @ jnp.cos(coordinates.to_spherical(x)[1]))(wide)
        of_cosines = jax.grad(lambda x: w @ naive_cosines(x))(wide)
    ours = jax.grad(lambda x: jnp.float32(weights) @ jnp.sin(coordinates.cosines(x)))(
        jnp.asarray(x)
    )
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ours_hessian, hessian, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(by_angles, of_cosines, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("eps", [0.0, 1e-12, 1e-3])
@pytest.mark.parametrize("derivative", [jax.jacrev, jax.jacfwd])
def test_every_derivative_of_a_cosine_keeps_its_digits_near_a_pole(eps, derivative):
    """Each entry by itself, against forty digits: 1 - cos² has none left in float32."""
    n, sizes = 6, np.float32([1, 1e-1, 1e-2, 1e-3, 1e-4, 1e-8, 1e-15])
    x = sizes[:, None] * np.random.default_rng(0).normal(size=(len(sizes), n)).astype(np.float32)
    x[:, 0], x[-1, 2] = -1.3, 0.5  # the second angle then ends at the equator
    expected = np.zeros((len(x), n - 1, n))
    with mpmath.workdps(40):
        for row, k in np.ndindex(len(x), n - 1):
            tail = [mpmath.mpf(float(v)) for v in x[row, k:]]
            later = mpmath.fsum(v * v for v in tail[1:]) + mpmath.mpf(float(np.float32(eps)))
            cube = (later + tail[0] ** 2) ** 1.5
            expected[row, k, k:] = [later / cube, *(-tail[0] * v / cube for v in tail[1:])]
    ours = jax.vmap(derivative(lambda x: coordinates.cosines(x, eps=eps)))(jnp.asarray(x))
    np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-30)


def test_round_trip_has_the_identity_as_its_derivative():
    x = jnp.asarray(rows("gaussian", 20, count=1)[0])
    jacobian = jax.jacrev(lambda x: coordinates.to_cartesian(*coordinates.to_spherical(x)))(x)
    np.testing.assert_allclose(jacobian, np.eye(20), atol=1e-5)


def test_derivative_at_poles_and_through_exact_zeros():
    """P_{k+1} = P_k sin φ_k is differentiable where a sine is 0; sums of logarithms are not."""
    jacobian = jax.jacfwd(lambda a: coordinates.to_cartesian(jnp.float32(1.0), a))(
        jnp.array([0.0, 0.5, 0.0])
    )
    expected = np.zeros((4, 3))
    expected[1:, 0] = [math.cos(0.5), math.sin(0.5), 0.0]  # x_k / sin φ_1
    np.testing.assert_allclose(jacobian, expected, atol=1e-6)


LANDINGS = {
    "zero": [0.0, 0.0, 0.0, 0.0],
    "negative zero": [-0.0, 0.0, -0.0, -0.0],
    "pole": [1.0, 0.0, 0.0, 0.0],
    "south pole": [-1.0, 0.0, 0.0, 0.0],
    "last axis": [0.0, 0.0, 0.0, -1.0],
    "zero tail": [1.0, 2.0, 0.0, 0.0],
    "deep tail": [1.0, 1e-20, 1e-30, 1e-37],
    "smallest": [2e-38, 2e-38, 2e-38, 2e-38],
    "subnormal": [1e-40, 1e-39, 1e-41, 1e-40],
    "largest": [1e38, 1e38, 1e38, 1e38],
}


SINGLE = (
    coordinates.radius,
    coordinates.cosines,
    lambda x: coordinates.cosines(x, eps=1e-3),
    coordinates.to_spherical,
    coordinates.project,
)
COMPOSED = (
    lambda x: coordinates.to_cartesian(*coordinates.to_spherical(x)),
    lambda x: coordinates.log_volume(*coordinates.to_spherical(x)),
)


def assert_finite(x, *functions):
    x = jnp.asarray(x, jnp.float32)
    for function in functions:
        for leaf in jax.tree.leaves(function(x)):
            assert np.isfinite(leaf).all(), (x, leaf)


def derivatives(functions):
    return [derived(f) for f in functions for derived in (jax.jacrev, jax.jacfwd)]


@pytest.mark.parametrize("name", LANDINGS)
def test_finite_where_the_map_is_singular(name):
    assert_finite(LANDINGS[name], *SINGLE, *COMPOSED, *derivatives(SINGLE + COMPOSED))


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(
        np.float32,
        4,
        elements=st.floats(-(2.0**126), 2.0**126, width=32) | st.floats(-2, 2, width=32),
    )
)
def test_finite_for_any_row(x):
    """But for the product of two derivatives, where one is the radius and one a small tail's."""
    assert_finite(x, *SINGLE, *COMPOSED, *derivatives(SINGLE))


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(np.float32, 5, elements=st.floats(-(2.0**60), 2.0**60, width=32)))
def test_any_row_comes_back(x):
    x = np.where(np.abs(x) < TINY, np.float32(0), x)
    radius, angles = coordinates.to_spherical(x)
    assert np.all((angles[:-1] >= 0) & (angles[:-1] <= np.float32(np.pi)))
    back = np.asarray(coordinates.to_cartesian(radius, angles), np.float64)
    # A coordinate that falls among the subnormals is lost.
    assert np.max(np.abs(back - x)) <= 1e-6 * np.linalg.norm(x.astype(np.float64)) + TINY


@pytest.mark.parametrize("name", ["radius", "cosines", "to_spherical", "project"])
def test_bad_vectors_are_named(name):
    function = getattr(coordinates, name)
    with pytest.raises(TypeError, match=r"x must be .*int32"):
        function(np.arange(4, dtype=np.int32))
    for short in (np.float32(1.0), np.ones(1, np.float32), np.ones((3, 0), np.float32)):
        with pytest.raises(ValueError, match="x needs at least 2"):
            function(short)


@pytest.mark.parametrize("name", ["to_cartesian", "log_volume"])
def test_bad_radius_and_angles_are_named(name):
    function = getattr(coordinates, name)
    one, angles = np.ones(3, np.float32), np.ones((3, 4), np.float32)
    with pytest.raises(TypeError, match=r"radius must be .*int"):
        function(one.astype(int), angles)
    with pytest.raises(TypeError, match=r"angles must be .*int"):
        function(one, angles.astype(int))
    with pytest.raises(ValueError, match="angles needs at least 1"):
        function(one, angles[:, :0])
    for radius in (np.float32(1.0), one[:2], np.ones((3, 1), np.float32)):
        with pytest.raises(ValueError, match="radius has shape"):
            function(radius, angles)


def test_negative_eps_is_refused():
    with pytest.raises(ValueError, match="eps must be >= 0"):
        coordinates.cosines(np.ones(3, np.float32), eps=-1.0)


def test_no_square_of_n_anywhere():
    """O(n) memory: no intermediate value of a vector of 512 has 512 x 512 entries."""
    x = jnp.ones(512)
    for function in (
        coordinates.cosines,
        jax.grad(lambda x: coordinates.cosines(x).sum()),
        jax.grad(lambda x: coordinates.to_cartesian(*coordinates.to_spherical(x)).sum()),
    ):
        text = jax.jit(function).lower(x).compile().as_text()
        assert "512,512" not in text
