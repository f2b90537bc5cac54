"""Samplers against closed forms, rejection sampling and the embeddings they were fitted to."""

import itertools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from scipy import stats

from hsjax import coordinates, samplers
from hsjax.samplers import SAMPLERS

# Without own, which has the method's prior instead, and those that test_learned_samplers.py trains.
FITTED = [name for name, sampler in SAMPLERS.items() if name != "own" and not sampler.learned]
SPHERICAL = [name for name in FITTED if name not in ("prior", "gaussian", "gmm")]


def embeddings(count=3000, n=6, spread=0.2):
    """An elongated cloud around (1, ..., 1) on the sphere of radius √n."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, n)) @ rng.normal(size=(n, n)) * spread + 1.0
    return (np.sqrt(n) * x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def draw(name, x, count, key=0):
    sampler = SAMPLERS[name]
    return np.asarray(sampler.sample(sampler.fit(x), jax.random.key(key), count))


@pytest.mark.parametrize("name", FITTED)
def test_samples_have_the_shape_and_follow_the_key(name):
    sampler = SAMPLERS[name]
    parameters = sampler.fit(embeddings())
    jitted = jax.jit(sampler.sample, static_argnums=2)
    first = jitted(parameters, jax.random.key(0), 100)
    assert first.shape == (100, 6)
    assert first.dtype == jnp.float32
    np.testing.assert_array_equal(first, jitted(parameters, jax.random.key(0), 100))
    assert np.abs(first - jitted(parameters, jax.random.key(1), 100)).max() > 0
    if name in SPHERICAL:
        np.testing.assert_allclose(np.linalg.norm(first, axis=1), 6**0.5, rtol=1e-5)


def test_own_draws_from_the_prior_that_it_is_given():
    def prior(scale, key, count):
        return scale * jax.random.normal(key, (count, 3), jnp.float32)

    prior, key = jax.tree_util.Partial(prior, jnp.float32(2.0)), jax.random.key(0)
    own = SAMPLERS["own"]
    parameters = own.fit(embeddings(), prior=prior, key=key, posterior=None)
    z = jax.jit(own.sample, static_argnums=2)(parameters, key, 5)
    np.testing.assert_allclose(z, prior(key, 5), rtol=1e-6)
    with pytest.raises(TypeError, match="prior"):
        own.fit(embeddings())


@pytest.mark.parametrize("name", FITTED)
def test_a_fit_takes_what_else_the_caller_has(name):
    context = {"posterior": None, "key": jax.random.key(0), "prior": None, "decode": None}
    expected = SAMPLERS[name].fit(embeddings(30))
    found = SAMPLERS[name].fit(embeddings(30), **context, encode=None)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("name", ["prior", "uniform_sphere"])
def test_prior_and_uniform_sphere_have_unit_covariance(name):
    z = draw(name, embeddings(), 50_000)
    np.testing.assert_allclose(z.mean(0), np.zeros(6), atol=0.03)
    np.testing.assert_allclose(np.cov(z, rowvar=False), np.eye(6), atol=0.04)


@pytest.mark.parametrize(
    "name", ["gaussian", "gmm", "projected_gaussian", "projected_gmm", "angles"]
)
def test_samplers_with_a_covariance_keep_mean_and_shape_of_the_cloud(name):
    x = embeddings(spread=0.1)
    z = draw(name, x, 50_000)
    np.testing.assert_allclose(z.mean(0), x.mean(0), atol=0.05)
    shape = np.cov(x, rowvar=False)
    np.testing.assert_allclose(np.cov(z, rowvar=False), shape, atol=0.15 * shape.max())


def test_mixture_finds_clusters_that_one_gaussian_bridges():
    rng = np.random.default_rng(0)
    centres = 3.0 * np.eye(10)
    x = (centres[rng.integers(0, 10, 4000)] + 0.1 * rng.normal(size=(4000, 10))).astype(np.float32)

    def distance(z):
        return np.min(np.linalg.norm(z[:, None] - centres[None], axis=2), axis=1)

    assert np.quantile(distance(draw("projected_gmm", x, 2000)), 0.95) < 0.6
    assert np.median(distance(draw("projected_gaussian", x, 2000))) > 1.5


def test_a_mixture_draws_each_cluster_as_often_as_it_is_met():
    rng = np.random.default_rng(0)
    centres = np.where(rng.random(3000) < 0.9, 3.0, -3.0)
    x = rng.normal(size=(3000, 4)) * 0.3
    x[:, 0] += centres
    z = draw("projected_gmm", x.astype(np.float32), 5000)
    assert abs(np.mean(z[:, 0] > 0) - np.mean(centres > 0)) < 0.03


@pytest.mark.parametrize("name", ["vmf", "projected_gaussian", "projected_gmm", "angles"])
def test_the_radius_is_the_mean_of_the_embeddings(name):
    radii = np.where(np.arange(200) < 150, 1.0, 5.0)
    x = embeddings(200) / 6**0.5 * radii[:, None]
    np.testing.assert_allclose(SAMPLERS[name].fit(x).radius, 2.0, rtol=1e-4)


def test_angles_have_the_marginals_of_the_embeddings():
    rng = np.random.default_rng(1)
    # Two islands in the first angle, and a last angle around π, where atan2 is cut.
    x = rng.normal(size=(4000, 5)) * [0.1, 0.3, 0.3, 0.1, 0.1] + [0.0, 1.0, 1.0, -1.0, 0.0]
    x[:, 0] += np.where(rng.random(4000) < 0.5, 2.0, -2.0)
    x = x.astype(np.float32)
    z = draw("angles", x, 4000)
    ours, theirs = (np.asarray(coordinates.to_spherical(v)[1]) for v in (z, x))
    for k in range(3):
        assert stats.ks_2samp(ours[:, k], theirs[:, k]).statistic < 0.04
    turn = [np.mod(a[:, 3], 2 * np.pi) for a in (ours, theirs)]
    assert stats.ks_2samp(*turn).statistic < 0.04


@pytest.mark.parametrize(
    "n", [2, 3, 10, 63, 128, 1000, pytest.param(10_000, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("relative", [1e-3, 0.1, 1.0, 10.0])
def test_mean_resultant_length_and_its_inverse(n, relative):
    """Against Bessel functions of forty digits, and against itself."""
    kappa = relative * n
    terms = {"maxterms": 10**6}
    with mpmath.workdps(40):
        order = mpmath.mpf(n) / 2
        ratio = mpmath.besseli(order, kappa, **terms) / mpmath.besseli(order - 1, kappa, **terms)
        expected = float(ratio)
        rest = float(1 - ratio)
    length = samplers.mean_resultant_length(n, kappa)
    assert abs(length - expected) < 1e-13 * expected + 1e-12 * rest
    np.testing.assert_allclose(samplers.concentration(n, expected), kappa, rtol=1e-9)


@pytest.mark.parametrize("n", [3, 128, 1000, 10_000])
@pytest.mark.parametrize("relative", [100.0, 1e4])
def test_the_concentration_of_a_tight_island(n, relative):
    """As compression makes them; the length's own rounding in float64 is what limits κ here."""
    kappa = relative * n
    with mpmath.workdps(40):
        order = mpmath.mpf(n) / 2
        length = float(mpmath.besseli(order, kappa) / mpmath.besseli(order - 1, kappa))
    np.testing.assert_allclose(samplers.concentration(n, length), kappa, rtol=1e-6)


def test_mean_resultant_length_has_the_closed_form_of_three_dimensions():
    for kappa in (0.1, 1.0, 50.0, 1e6):
        expected = 1 / np.tanh(kappa) - 1 / kappa
        np.testing.assert_allclose(samplers.mean_resultant_length(3, kappa), expected, rtol=1e-9)
    assert samplers.mean_resultant_length(7, 0.0) == 0.0
    assert samplers.concentration(7, 0.0) == 0.0
    with pytest.raises(ValueError, match="length must be in"):
        samplers.concentration(7, 1.0)


def by_rejection(n, kappa, count, seed=0):
    """Cosines to the mean direction by Wood's (1994) rejection, in float64."""
    rng = np.random.default_rng(seed)
    b = (n - 1) / (2 * kappa + np.sqrt(4 * kappa**2 + (n - 1) ** 2))
    x0 = (1 - b) / (1 + b)
    c = kappa * x0 + (n - 1) * np.log(1 - x0**2)
    cosines = np.empty(0)
    while len(cosines) < count:
        z = rng.beta((n - 1) / 2, (n - 1) / 2, count)
        w = (1 - (1 + b) * z) / (1 - (1 - b) * z)
        keep = kappa * w + (n - 1) * np.log(1 - x0 * w) - c >= np.log(rng.random(count))
        cosines = np.concatenate([cosines, w[keep]])
    return cosines[:count]


@pytest.mark.parametrize(
    "n", [2, 3, 200, *(pytest.param(n, marks=pytest.mark.slow) for n in (4, 50, 1000, 10_000))]
)
@pytest.mark.parametrize("relative", [0.05, 1.0, 20.0])
def test_vmf_samples_pass_a_test_against_rejection(n, relative):
    """Fitted to embeddings whose mean has the length for that κ; the cosines are then compared."""
    kappa, count = relative * n, 3000
    length = samplers.mean_resultant_length(n, kappa)
    parameters = samplers.vmf.fit(pair(n, np.sqrt(1 - length**2)))
    np.testing.assert_allclose(parameters.kappa, kappa, rtol=1e-6)
    z = np.asarray(samplers.vmf.sample(parameters, jax.random.key(1), count))
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 2.0, rtol=1e-5)
    cosines = z[:, 0] / 2.0
    assert stats.ks_2samp(cosines, by_rejection(n, kappa, count)).pvalue > 1e-3
    if n == 2:
        return
    # The rest of a sample is uniform around the axis.
    assert stats.kstest(np.arctan2(z[:, 1], z[:, 2]), "uniform", (-np.pi, 2 * np.pi)).pvalue > 1e-3


def test_vmf_matches_mean_and_total_variance_of_what_it_was_fitted_to():
    x = embeddings(n=40, spread=0.05)
    z = draw("vmf", x, 20_000)
    np.testing.assert_allclose(z.mean(0), x.mean(0), atol=0.05)
    np.testing.assert_allclose(np.trace(np.cov(z.T)), np.trace(np.cov(x.T)), rtol=0.02)


def pair(n, sine, radius=2.0):
    """Two vectors as far from axis 0, whose mean resultant length is then the cosine."""
    x = np.zeros((2, n))
    x[:, 0], x[0, 1], x[1, 1] = np.sqrt(1 - sine**2), sine, -sine
    return radius * x


@pytest.mark.parametrize("n", [2, 3, 32, 1000])
@pytest.mark.parametrize("sine", [1e-3, 1e-5, 1e-7])
def test_vmf_of_a_tight_island_is_a_gaussian_around_it(n, sine):
    """κ ‖z/r - direction‖² then has a χ² law of n - 1 degrees; cosines would all be 1."""
    parameters = samplers.vmf.fit(pair(n, sine))
    np.testing.assert_allclose(parameters.kappa, (n - 1) / sine**2, rtol=1e-4)
    z = np.asarray(samplers.vmf.sample(parameters, jax.random.key(0), 3000), np.float64)
    squares = np.sum(z[:, 1:] ** 2, axis=1) / 4  # along axis 0, float32 has 1 alone
    assert stats.kstest(squares * (n - 1) / sine**2, "chi2", (n - 1,)).pvalue > 1e-3


@pytest.mark.parametrize("n", [2, 3, 32, 1000])
def test_vmf_has_one_concentration_where_two_formulas_meet(n):
    for square in (0.999e-4, 1.001e-4):  # 1 - length²
        kappa = float(samplers.vmf.fit(pair(n, square**0.5)).kappa)
        length = samplers.mean_resultant_length(n, kappa)
        np.testing.assert_allclose(1 - length**2, square, rtol=1e-6)


@pytest.mark.parametrize("name", ["vmf", "projected_gaussian", "projected_gmm", "angles"])
@pytest.mark.parametrize("spread", [1e-2, 1e-5])
def test_an_island_keeps_its_width_wherever_it_is(name, spread):
    """And its shape, where a sampler has one: it is ten times as narrow at its end."""
    rng = np.random.default_rng(0)
    shape = spread * np.logspace(0, -1, 16) * rng.normal(size=(3000, 16))
    places = [rng.normal(size=16), 4 * np.eye(16)[0], -4 * np.eye(16)[-1]]
    sample = jax.jit(SAMPLERS[name].sample, static_argnums=2)
    for x in ((place + shape).astype(np.float32) for place in places):
        z = np.asarray(sample(SAMPLERS[name].fit(x), jax.random.key(0), 4000), np.float64)
        x = x.astype(np.float64)
        radii = np.linalg.norm(x, axis=1)
        on_sphere = (x / radii[:, None] * radii.mean()).var(axis=0)
        np.testing.assert_allclose(z.var(axis=0).sum(), on_sphere.sum(), rtol=0.05)
        if name.startswith("projected"):
            wide = on_sphere > 1e-3 * on_sphere.max()  # but along the radius, if that is an axis
            np.testing.assert_allclose(z.var(axis=0)[wide], on_sphere[wide], rtol=0.15)


@pytest.mark.parametrize("name", ["vmf", "projected_gaussian", "projected_gmm"])
def test_equal_embeddings_give_equal_samples(name):
    x = np.tile([[3.0, 0.1, -2.0]], (50, 1))
    np.testing.assert_allclose(draw(name, x, 20), x[:20], atol=1e-6)


@pytest.mark.parametrize("name", FITTED)
def test_a_caller_may_have_numpy_raise(name):
    for x in (embeddings(count=200), 1e-30 * embeddings(count=30), pair(5, 1e-7)):
        expected = SAMPLERS[name].fit(x)
        with np.errstate(all="raise"):
            found = SAMPLERS[name].fit(x)
        jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("name", FITTED)
def test_samples_are_the_same_where_64_bits_are_enabled(name):
    expected = draw(name, embeddings(count=50), 20)
    with jax.enable_x64(True):
        z = draw(name, embeddings(count=50), 20)
    assert z.dtype == np.float32
    np.testing.assert_allclose(z, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [*SPHERICAL, "gaussian"])
@pytest.mark.parametrize("case", ["few", "two", "equal", "zero", "flat", "opposite"])
def test_degenerate_embeddings_give_finite_samples(name, case):
    x = {
        "few": embeddings(count=4),
        "two": embeddings(count=2),
        "equal": np.ones((20, 6)),
        "zero": np.zeros((20, 6)),
        "flat": embeddings() * np.array([1.0, 0.0, 1.0, 1.0, 1.0, 0.0]),  # without variance in two
        "opposite": np.concatenate([np.eye(6), -np.eye(6)]),  # without a mean direction
    }[case]
    z = draw(name, np.asarray(x, np.float32), 50)
    assert z.shape == (50, 6)
    assert np.isfinite(z).all()


@pytest.mark.parametrize("name", ["vmf", "projected_gaussian", "projected_gmm", "angles"])
@pytest.mark.parametrize("case", ["one", "none", "nan", "infinite", "flat"])
def test_what_nothing_can_be_fitted_to_is_refused_in_one_line(name, case):
    x = embeddings(count=20)
    x[3, 1] = {"nan": np.nan, "infinite": np.inf}.get(case, x[3, 1])
    x = {"one": x[:1], "none": x[:0], "flat": x[0]}.get(case, x)
    text = "1 of 20 embeddings" if case in ("nan", "infinite") else "at least 2"
    with pytest.raises(ValueError, match=text) as caught:
        SAMPLERS[name].fit(x)
    assert "\n" not in str(caught.value)


def test_slerp():
    a, b = jnp.array([2.0, 0.0, 0.0]), jnp.array([0.0, 4.0, 0.0])
    path = samplers.slerp(a, b, jnp.array([0.0, 0.5, 1.0]))
    half = 3.0 * np.sqrt(0.5)
    np.testing.assert_allclose(path, [[2, 0, 0], [half, half, 0], [0, 4, 0]], atol=1e-6)
    still = samplers.slerp(a, a, jnp.linspace(0.0, 1.0, 5))
    np.testing.assert_allclose(still, np.tile(a, (5, 1)), atol=1e-6)
    z = jax.random.normal(jax.random.key(0), (2, 50))
    steps = samplers.slerp(z[0], z[1], jnp.linspace(0.0, 1.0, 11))
    units = steps / np.linalg.norm(steps, axis=1, keepdims=True)
    np.testing.assert_allclose(np.sum(units[1:] * units[:-1], axis=1).std(), 0.0, atol=1e-6)


def test_slerp_between_nearly_equal_and_nearly_opposite_vectors():
    """In float32 against long doubles: on the sphere, and off the way by no more than rounding a
    vector turns it."""
    rng = np.random.default_rng(0)
    fractions = np.linspace(0.0, 1.0, 9)
    slerp = jax.jit(samplers.slerp)
    for sign, size in itertools.product((1.0, -1.0), (1.0, 1e-2, 1e-3, 1e-4)):
        start = rng.normal(size=50).astype(np.float32)
        end = (1.7 * (sign * start + size * rng.normal(size=50))).astype(np.float32)
        a, b = (x / np.linalg.norm(x) for x in (start.astype("g"), end.astype("g")))
        angle = 2 * np.arctan2(np.linalg.norm(a - b), np.linalg.norm(a + b))
        weights = (np.sin(f * angle)[:, None] / np.sin(angle) for f in (1 - fractions, fractions))
        expected = sum(weight * x for weight, x in zip(weights, (a, b), strict=True))
        radii = np.interp(fractions, [0, 1], [np.linalg.norm(x) for x in (start, end)])
        ours = np.asarray(slerp(start, end, fractions.astype(np.float32)), "g") / radii[:, None]
        np.testing.assert_allclose(np.linalg.norm(ours, axis=1).astype(float), 1.0, rtol=5e-7)
        error = np.linalg.norm(ours - expected, axis=1).max()
        assert error < 5e-7 / (1.0 if sign > 0 else np.sin(angle)), (sign, size)


def test_slerp_from_a_zero_vector_is_a_line():
    end, fractions = jnp.array([1.0, -2.0, 2.0]), jnp.linspace(0.0, 1.0, 5)
    line = fractions[:, None] * end[None]
    np.testing.assert_allclose(samplers.slerp(jnp.zeros(3), end, fractions), line, rtol=1e-6)
    back = samplers.slerp(end, jnp.zeros(3), 1.0 - fractions)
    np.testing.assert_allclose(back, line, rtol=1e-6)
