"""The objectives against the equations written as float64 loops, and their derivative."""

import dataclasses
import math
import re
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from hsjax import losses, statistics


def latents(batch=12, n=7, seed=0):
    rng = np.random.default_rng(seed)
    mean = rng.normal(size=(batch, n)) + 0.5
    std = np.exp(0.3 * rng.normal(size=(batch, n)) - 0.5)
    return mean.astype(np.float32), std.astype(np.float32)


def columns_by_loop(x, eps):
    """Cosines and radius of each row of a float64 array, entry by entry."""
    batch, n = x.shape
    columns = np.zeros((batch, n))
    for b in range(batch):
        for k in range(n - 1):
            columns[b, k] = x[b, k] / math.sqrt(sum(v * v for v in x[b, k:]) + eps)
        columns[b, n - 1] = math.sqrt(sum(v * v for v in x[b]))
    return columns


def test_squared_error_sums_an_image_and_averages_the_batch():
    x, y = np.zeros((4, 2, 3, 1), np.float32), np.full((4, 2, 3, 1), 0.5, np.float32)
    assert losses.squared_error(x, y) == 6 * 0.25
    y[0] = 0.0
    assert losses.squared_error(x, y) == 6 * 0.25 * 3 / 4
    with pytest.raises(ValueError, match="reconstruction has shape"):
        losses.squared_error(x, y[:, :1])


def test_gaussian_kl_is_equation_1():
    mean, std = latents()
    m, s = mean.astype(np.float64), std.astype(np.float64)
    expected = np.mean(-0.5 * np.sum(1 + np.log(s**2) - m**2 - s**2, axis=1))
    np.testing.assert_allclose(losses.gaussian_kl(mean, 2 * np.log(std)), expected, rtol=1e-5)
    assert losses.gaussian_kl(np.zeros((3, 5)), np.zeros((3, 5))) == 0.0


def test_cartesian_kl_is_equation_3_and_the_mean_distance_to_the_prior():
    mean, std = latents()
    m, s = mean.astype(np.float64), std.astype(np.float64)
    prior_mean = np.linspace(0, 1, 7, dtype=np.float32)
    by_statistics = sum(
        (s[:, k].mean() - 0.5) ** 2
        + s[:, k].var()
        + (m[:, k].mean() - prior_mean[k]) ** 2
        + m[:, k].var()
        for k in range(7)
    )
    by_distance = np.mean(np.sum((s - 0.5) ** 2 + (m - prior_mean) ** 2, axis=1))
    ours = losses.cartesian_kl(mean, std, prior_mean=prior_mean, prior_std=0.5)
    np.testing.assert_allclose(ours, by_statistics, rtol=1e-5)
    np.testing.assert_allclose(ours, by_distance, rtol=1e-5)


@pytest.mark.parametrize("n", [2, 7, 50])
def test_coordinate_moments_are_those_of_the_columns(n):
    x = np.stack(latents(n=n))
    mean, variance = statistics.coordinate_moments(x, 1e-3)
    for row in range(2):
        columns = columns_by_loop(x[row].astype(np.float64), 1e-3)
        np.testing.assert_allclose(mean[row], columns.mean(0), rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(variance[row], columns.var(0, ddof=1), rtol=1e-4, atol=1e-9)


def test_variance_survives_compression():
    """Mean 0.9, spread 1e-3: E[c²] - E[c]² would be off by half in float32."""
    rng = np.random.default_rng(0)
    cosine = 0.9 + 1e-3 * rng.normal(size=200)
    x = np.stack([cosine, np.sqrt(1 - cosine**2)], axis=1).astype(np.float32)
    _, variance = statistics.coordinate_moments(x, 1e-12)
    expected = columns_by_loop(x.astype(np.float64), 1e-12).var(0, ddof=1)
    np.testing.assert_allclose(variance[0], expected[0], rtol=1e-3)


def naive_statistics(x, eps):
    """The masked O(n²) form of the paper's appendix, left to autodiff."""
    n = x.shape[-1]
    mask = jnp.triu(jnp.ones((n, n), x.dtype))
    tails = jnp.sqrt(jnp.einsum("...j,kj->...k", x * x, mask, precision="highest") + eps)
    radius = jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True))
    columns = jnp.concatenate([(x / tails)[..., :-1], radius], axis=-1)
    return jnp.mean(columns, axis=-2), jnp.var(columns, axis=-2, ddof=1)


@partial(jax.jit, static_argnums=0)
@partial(jax.grad, argnums=2)
def gradient(statistics, weights, x):
    mean, variance = statistics(x, jnp.asarray(1e-3, x.dtype))
    # Nonlinear, so that cotangents depend on the statistics.
    return jnp.sum(weights[0] * jnp.sin(mean) + weights[1] * jnp.cos(3 * variance))


@settings(max_examples=15, deadline=None)
@given(  # few shapes: each is compiled
    st.sampled_from([(2, 2), (9, 5), (3, 70)]), st.integers(0, 1000), st.floats(-2, 2)
)
def test_closed_form_derivative_is_that_of_the_naive_form(shape, seed, decay):
    batch, n = shape
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2, batch, n)) * np.exp(-decay * np.arange(n) / n)
    weights = rng.normal(size=(2, 2, n))
    with jax.enable_x64(True):
        expected = gradient(naive_statistics, weights, x)
        wide = gradient(statistics.coordinate_moments, weights, x)
    np.testing.assert_allclose(wide, expected, rtol=1e-9, atol=1e-11)
    narrow = gradient(statistics.coordinate_moments, weights.astype("float32"), x.astype("float32"))
    # The cosine of a large variance magnifies what float32 rounds.
    np.testing.assert_allclose(narrow, expected, rtol=0, atol=5e-3 * np.abs(expected).max())


DERIVATIVES = {
    "forward": lambda f: lambda *at: jax.jvp(f, at, jax.tree.map(jnp.cos, at))[1],
    "linearized": lambda f: lambda *at: jax.linearize(f, *at)[1](*at),
    "reverse": lambda f: jax.grad(f, argnums=(0, 1)),
    "forward over reverse": lambda f: lambda *at: jax.jvp(jax.grad(f, (0, 1)), at, at)[1],
    "reverse over reverse": lambda f: (
        lambda *at: jax.grad(
            lambda *at: sum(jnp.sum(jnp.sin(g)) for g in jax.grad(f, (0, 1))(*at)), argnums=(0, 1)
        )(*at)
    ),
    "hessian": lambda f: jax.hessian(f, argnums=(0, 1)),
    "mapped": lambda f: jax.vmap(jax.grad(f, argnums=(0, 1)), in_axes=(-1, None)),
    "mapped forward": lambda f: lambda x, eps: jax.vmap(jax.jacfwd(f, 1), (None, 0))(x, eps[None]),
}


@pytest.mark.parametrize("kind", DERIVATIVES)
def test_all_derivatives_in_latents_and_eps_are_those_of_the_naive_form(kind):
    """For more coordinates than a block of the running sums, but where that would be a matrix."""
    batch, n = (3, 4) if kind == "hessian" else (4, 70)
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=(2, batch, n)), rng.normal(size=(2, 2, n))

    def value(statistics, x, eps):
        mean, variance = statistics(x, eps)
        return jnp.sum(weights[0] * jnp.sin(mean) + weights[1] * jnp.cos(3 * variance))

    with jax.enable_x64(True):
        at = (np.stack([x, 2 * x], axis=-1) if kind == "mapped" else x), np.float64(0.3)
        ours, naive = (
            jax.jit(DERIVATIVES[kind](partial(value, form)))(*at)
            for form in (statistics.coordinate_moments, naive_statistics)
        )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-10), ours, naive)


def test_every_number_of_a_spec_has_its_derivative():
    mean, std = latents()

    @jax.jit
    def value(spec):
        return losses.total(losses.spherical_kl(mean.astype(float), std.astype(float), spec), spec)

    with jax.enable_x64(True):
        spec = jax.tree.map(lambda v: np.asarray(v, np.float64), losses.paper_spec(7))
        gradient = jax.grad(value)(spec)
        for name in ("eps", "variance_eps"):
            step = 1e-4 * getattr(spec, name)
            low, high = (
                value(dataclasses.replace(spec, **{name: getattr(spec, name) + s}))
                for s in (-step, step)
            )
            np.testing.assert_allclose(getattr(gradient, name), (high - low) / (2 * step), 1e-5)


def test_nothing_of_the_latents_size_is_kept_for_the_gradient_but_they():
    x = jnp.asarray(np.stack(latents(batch=20, n=40)))
    pull = jax.vjp(statistics.coordinate_moments, x, jnp.float32(1e-3))[1]
    (kept,) = (leaf for leaf in jax.tree.leaves(pull) if leaf.size > x.size // 10)
    np.testing.assert_array_equal(kept, x)


def test_statistics_need_one_running_sum_each_way_and_nothing_larger_than_the_latents():
    """What makes the objective O(n), read off the programs: in the jaxpr and as compiled here."""
    batch, n = 8, 512
    spec = losses.paper_spec(n)

    def objective(mean, std):
        return losses.total(losses.spherical_kl(mean, std, spec), spec)

    gradient = jax.jit(jax.value_and_grad(objective, argnums=(0, 1)))
    x = jnp.ones((batch, n))
    program = jax.make_jaxpr(gradient)(x, x)
    # Forward once; the backward pass repeats it and adds its own. Compiled, the two forward ones
    # are one: on a CPU a running sum of 512 is two triangular products.
    assert str(program).count("cumsum[") == 3
    text = gradient.lower(x, x).compile().as_text()
    assert text.count(" dot(") == 2 * 2
    shapes = re.findall(r"\w+\[([\d,]+)\]", f"{program} {text}")
    assert max(math.prod(map(int, shape.split(","))) for shape in shapes) == 2 * batch * n


def test_accelerators_and_cpus_sum_to_the_same_statistics_and_gradient():
    """The form for accelerators is compiled elsewhere: here it takes the place of the CPU's."""
    x = np.stack(latents(n=75))

    def value(x):
        mean, variance = statistics.coordinate_moments(x, 1e-3)
        return jnp.sum(jnp.sin(mean) + jnp.cos(3 * variance))

    here = jax.jit(jax.value_and_grad(value))(x)
    with mock.patch.object(lax, "platform_dependent", lambda x, *, cpu, default: default(x)):
        there = jax.jit(jax.value_and_grad(value))(x[None])  # of another shape, so traced anew
    there = there[0], there[1][0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), here, there)


@pytest.mark.parametrize("n", [33, 1024, 1100])
def test_small_tails_keep_their_digits_at_any_length(n):
    """Sums by blocks, with rows that fall by 1e-6 from end to end, against float64."""
    rng = np.random.default_rng(n)
    x = (rng.normal(size=(2, 5, n)) * np.logspace(0, -6, n)).astype(np.float32)
    mean, _ = statistics.coordinate_moments(x, 1e-20)
    squares = x.astype(np.float64) ** 2
    tails = np.sqrt(np.cumsum(squares[..., ::-1], axis=-1)[..., ::-1])
    expected = (x / tails)[..., :-1].mean(axis=1)
    np.testing.assert_allclose(mean[..., :-1], expected, atol=2e-6)


TERMS = ("mean_angles", "mean_radius", "std_angles", "std_radius")


@pytest.mark.parametrize("compression", ["full", "half", "none"])
def test_paper_spec_is_equations_4_and_5(compression):
    batch, n = 12, 7
    mean, std = latents(batch, n)
    expected = dict.fromkeys(TERMS, 0.0)
    for name, x in (("mean", mean), ("std", std)):
        columns = columns_by_loop(x.astype(np.float64), 1e-3)
        location = columns.mean(0)
        spread = np.sqrt(columns.var(0, ddof=1) + 1e-4)
        for k in range(n - 1):
            diagonal = 1 / math.sqrt(n - k)
            targets = {"full": 1.0, "half": diagonal, "none": 0.0}
            a = targets[compression] if name == "mean" else diagonal
            b = diagonal if name == "mean" else 0.0
            part = (location[k] - a) ** 2 + (spread[k] - b) ** 2
            expected[f"{name}_angles"] += part / math.sqrt(k + 1)
        expected[f"{name}_radius"] = (location[-1] - math.sqrt(n)) ** 2 + spread[-1] ** 2
    spec = losses.paper_spec(n, compression=compression, angle_gain=20.0, radius_gain=3.0)
    terms = losses.spherical_kl(mean, std, spec)
    assert terms._fields == TERMS
    for name in TERMS:
        np.testing.assert_allclose(getattr(terms, name), expected[name], rtol=1e-5)
    whole = sum(expected[t] * (20.0 if t.endswith("angles") else 3.0) for t in TERMS)
    np.testing.assert_allclose(losses.total(terms, spec), whole, rtol=1e-5)


@pytest.mark.parametrize("compression", ["full", "half"])
@pytest.mark.parametrize("std_radius", [1.0, 0.001])
def test_published_spec_has_every_constant_of_the_code(compression, std_radius):
    batch, n = 12, 7
    mean, std = latents(batch, n)

    def g(s):
        return s**2 - math.log(s**2) - 1

    expected = dict.fromkeys(TERMS, 0.0)
    radius_target = math.sqrt(n - 0.5)
    for name, x in (("mean", mean), ("std", std)):
        columns = columns_by_loop(x.astype(np.float64), 1e-3)
        location = columns.mean(0)
        spread = np.sqrt(columns.var(0, ddof=1) + 1e-4)
        for k in range(n - 1):
            diagonal = 1 / math.sqrt(n - k + 1e-3)  # of (1, ..., 1), whose tails get ε as well
            a = 1.0 if (name == "mean" and compression == "full") else diagonal
            b = diagonal if name == "mean" else 0.0
            part = 0.05 * (location[k] - a) ** 2 + g(spread[k] + 1 - b)
            expected[f"{name}_angles"] += 50 * math.sqrt(n) / math.sqrt(k + 1) * part
        if name == "mean":
            part = (location[-1] - radius_target) ** 2 + g(spread[-1] + 1)
        else:
            part = (location[-1] - std_radius * radius_target) ** 2
            part += g(spread[-1] / math.sqrt(0.5))
        expected[f"{name}_radius"] = 50 * part
    spec = losses.published_spec(n, compression, std_radius=std_radius, std_angle_gain=50_000.0)
    terms = losses.spherical_kl(mean, std, spec)
    for name in TERMS:
        np.testing.assert_allclose(getattr(terms, name), expected[name], rtol=1e-4)
    gains = dict(zip(TERMS, (1000, 300, 50_000, 500), strict=True))
    whole = sum(gains[t] * expected[t] for t in TERMS)
    np.testing.assert_allclose(losses.total(terms, spec), whole, rtol=1e-4)


def test_targets_can_be_given_as_numbers_or_arrays():
    spec = losses.paper_spec(5, mean_target=0.25, spread_target=np.arange(4, dtype=np.float32))
    np.testing.assert_allclose(spec.mean_target[0], [0.25] * 4 + [math.sqrt(5)], rtol=1e-6)
    np.testing.assert_allclose(spec.spread_target[0], [0, 1, 2, 3, 0])


def test_compression_can_stop_after_some_angles():
    spec = losses.paper_spec(5, spread_target=0.0, compressed_angles=2)
    np.testing.assert_allclose(spec.mean_target[0], [1, 1, 0, 0, math.sqrt(5)], rtol=1e-6)
    prior = 1 / np.sqrt([3, 2])  # 1/√(n-k+1), k = 3 and 4
    np.testing.assert_allclose(spec.spread_target[0], [0, 0, *prior, 0], rtol=1e-6)
    every = losses.paper_spec(5, compressed_angles=4)
    np.testing.assert_array_equal(every.mean_target, losses.paper_spec(5).mean_target)
    for wrong in (0, 5):
        with pytest.raises(ValueError, match="n = 5 has 4 angles"):
            losses.paper_spec(5, compressed_angles=wrong)


def test_a_perfect_batch_costs_nothing():
    """Every target met: cosines of the diagonal, radius √n, no spread but the root's epsilon."""
    n = 6
    ones = np.ones((4, n), np.float32)
    spec = losses.paper_spec(n, compression="half", spread_target=0.0, eps=1e-12, variance_eps=1e-9)
    terms = losses.spherical_kl(ones, ones, spec)
    np.testing.assert_allclose(terms, np.zeros(4), atol=1e-6)


@pytest.mark.parametrize("make", [losses.paper_spec, losses.published_spec])
@pytest.mark.parametrize("case", ["zero", "equal rows", "zero tails", "tiny", "large"])
def test_values_and_gradients_are_finite_where_training_can_land(make, case):
    mean, std = latents()
    if case == "zero":
        mean, std = np.zeros_like(mean), np.zeros_like(std)
    elif case == "equal rows":
        mean, std = np.tile(mean[:1], (12, 1)), np.tile(std[:1], (12, 1))
    elif case == "zero tails":
        mean[:, 3:], std[:, 3:] = 0.0, 0.0
    else:
        factor = np.float32(1e-20 if case == "tiny" else 1e12)
        mean, std = mean * factor, std * factor
    spec = make(7)

    def objective(mean, std):
        return losses.total(losses.spherical_kl(mean, std, spec), spec)

    value, gradients = jax.value_and_grad(objective, argnums=(0, 1))(mean, std)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in gradients)


def test_a_sweep_over_the_numbers_of_a_spec_compiles_once():
    mean, std = latents()
    traces = []

    @jax.jit
    def objective(spec):
        traces.append(1)
        return losses.total(losses.spherical_kl(mean, std, spec), spec)

    values = {
        float(objective(losses.paper_spec(7, mean_target=a, angle_gain=w)))
        for a in (0.0, 0.5, 1.0)
        for w in (1.0, 10.0)
    }
    assert len(values) == 6
    assert len(traces) == 1
    objective(losses.published_spec(7))
    assert len(traces) == 2


def test_half_precision_latents_are_judged_in_float32():
    mean, std = (jnp.asarray(x, jnp.bfloat16) for x in latents())
    spec = losses.paper_spec(7)
    terms = losses.spherical_kl(mean, std, spec)
    wide = losses.spherical_kl(mean.astype(jnp.float32), std.astype(jnp.float32), spec)
    assert {t.dtype for t in terms} == {jnp.dtype(jnp.float32)}
    np.testing.assert_array_equal(terms, wide)


def test_vmap_over_specs():
    mean, std = latents()
    specs = [losses.paper_spec(7, angle_gain=w) for w in (1.0, 2.0, 5.0)]
    stacked = jax.tree.map(lambda *x: jnp.stack([jnp.asarray(v) for v in x]), *specs)
    many = jax.vmap(lambda s: losses.total(losses.spherical_kl(mean, std, s), s))(stacked)
    one = [losses.total(losses.spherical_kl(mean, std, s), s) for s in specs]
    np.testing.assert_allclose(many, one, rtol=1e-6)


def test_annealing():
    epochs = np.array([1, 4, 25, 100, 101, 300])
    np.testing.assert_allclose(
        losses.annealing(epochs), np.sqrt([0.01, 0.04, 0.25, 1, 1, 1]), rtol=1e-6
    )
    epochs = np.array([1, 5, 26, 101, 102, 290])  # e = 0, 4, 25, 100, 101, 289 of the authors' code
    np.testing.assert_allclose(losses.annealing(epochs[:4], form="published"), [1, 3, 6, 11])
    np.testing.assert_allclose(losses.annealing(290, form="published"), 18)
    np.testing.assert_allclose(losses.annealing(epochs, form="published_drop"), [1, 3, 6, 11, 1, 1])
    np.testing.assert_allclose(losses.annealing(epochs, form="none"), np.ones(6))
    np.testing.assert_allclose(losses.annealing(5, length=20), 0.5)
    with pytest.raises(ValueError, match="form must be one of"):
        losses.annealing(1, form="linear")


def test_bad_arguments_are_named():
    mean, std = latents()
    spec = losses.paper_spec(7)
    with pytest.raises(ValueError, match="n must be at least 2"):
        losses.paper_spec(1)
    with pytest.raises(ValueError, match="compression must be one of full, half, none"):
        losses.published_spec(7, "quarter")
    with pytest.raises(ValueError, match="the spec is for n = 7"):
        losses.spherical_kl(mean[:, :5], std[:, :5], spec)
    with pytest.raises(ValueError, match="mean and std must both be"):
        losses.spherical_kl(mean, std[:3], spec)
    with pytest.raises(ValueError, match="at least 2 rows"):
        losses.spherical_kl(mean[:1], std[:1], spec)
    with pytest.raises(ValueError, match="mean and log_variance"):
        losses.gaussian_kl(mean, std[:, :2])
    with pytest.raises(TypeError, match="std must be a floating-point array, got int32"):
        losses.spherical_kl(mean, np.ones((12, 7), np.int32), spec)
    with pytest.raises(TypeError, match="x must be a floating-point array, got uint8"):
        losses.squared_error(np.ones((2, 3), np.uint8), mean[:2, :3])
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.eps = 0.0


def by_class_in_float64(mean, std, spec, labels, classes, stride):
    """The terms by loops over classes and coordinates."""
    spec = jax.tree.map(lambda x: np.asarray(x, np.float64), spec)
    (*targets,), angles, absent = (spec.mean_target, spec.spread_target), 0.0, 0
    n = mean.shape[1]
    for label in range(classes):
        rows = [np.roll(row, -stride * label) for row in mean[labels == label].astype(np.float64)]
        if len(rows) < 2:
            absent += 1
            continue
        for k in range(n - 1):
            column = [row[k] / np.sqrt((row[k:] ** 2).sum() + spec.eps) for row in rows]
            spread = np.sqrt(np.var(column, ddof=1) + spec.variance_eps)
            angles += spec.mean_gain[0, k] * (np.mean(column) - targets[0][0, k]) ** 2
            s = spec.spread_scale[0, k] * spread + 1.0 - targets[1][0, k]
            if spec.form == "squared":
                angles += spec.spread_gain[0, k] * (spread - targets[1][0, k]) ** 2
            else:
                angles += spec.spread_gain[0, k] * (s**2 - np.log(s**2) - 1.0)
    return angles, absent


@pytest.mark.parametrize("build", [losses.paper_spec, losses.published_spec])
@pytest.mark.parametrize(
    ("batch", "n", "classes", "stride"),
    [(40, 12, 3, 4), pytest.param(9, 5, 4, 7, marks=pytest.mark.slow)],
)
def test_an_axis_for_each_class(build, batch, n, classes, stride):
    """Against float64 loops; what the whole batch says of radius and σ stays."""
    rng = np.random.default_rng(0)
    mean = rng.normal(size=(batch, n)).astype(np.float32) + 1.0
    std = rng.uniform(0.5, 1.5, (batch, n)).astype(np.float32)
    labels = np.r_[0, np.arange(batch - 1) % (classes - 1) + 1].astype(np.int32)  # 0 has one
    spec = build(n, compressed_angles=2)

    @jax.jit
    def by_class(mean, std, labels):
        return losses.spherical_kl_by_class(mean, std, spec, labels, classes=classes, stride=stride)

    terms, absent = by_class(mean, std, labels)
    angles, lacking = by_class_in_float64(mean, std, spec, labels, classes, stride)
    np.testing.assert_allclose(terms.mean_angles, angles, rtol=2e-5)
    assert (absent, lacking) == (1, 1)
    whole = jax.jit(losses.spherical_kl)(mean, std, spec)
    np.testing.assert_allclose(terms[1:], whole[1:], rtol=1e-6)
    order = rng.permutation(batch)
    shuffled, _ = by_class(mean[order], std[order], labels[order])
    np.testing.assert_allclose(shuffled.mean_angles, terms.mean_angles, rtol=1e-5)
    gradient = jax.grad(lambda mean: by_class(mean, std, labels)[0].mean_angles)(jnp.asarray(mean))
    assert np.isfinite(gradient).all()
    assert not gradient[0].any()
    assert gradient[1:].all(axis=1).any()
    one = jax.jit(losses.spherical_kl_by_class, static_argnames=("classes", "stride"))
    one, _ = one(mean, std, spec, np.zeros(batch, np.int32), classes=1, stride=stride)
    np.testing.assert_allclose(one.mean_angles, whole.mean_angles, rtol=1e-5)


def test_labels_of_another_shape_are_refused():
    ones = jnp.ones((4, 3))
    with pytest.raises(ValueError, match=r"labels have shape \(3,\): make it \(4,\)"):
        losses.spherical_kl_by_class(
            ones, ones, losses.paper_spec(3), jnp.zeros(3, jnp.int32), classes=1
        )


def test_the_published_mean_weights_and_the_first_angles():
    spec = losses.published_spec(5, compressed_angles=2, mean_weights=jnp.array([100, 1, 1, 0.0]))
    plain = losses.published_spec(5)
    np.testing.assert_array_equal(spec.mean_target[0, :4], [1, 1, 0, 0])
    np.testing.assert_allclose(spec.mean_gain[0, :4] / plain.mean_gain[0, :4], [100, 1, 1, 0])
    np.testing.assert_array_equal(spec.mean_gain[:, 4], plain.mean_gain[:, 4])
    np.testing.assert_array_equal(spec.mean_gain[1], plain.mean_gain[1])
    with pytest.raises(ValueError, match="compressed_angles is 5: n = 5 has 4 angles"):
        losses.published_spec(5, compressed_angles=5)
