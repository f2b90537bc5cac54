"""Any input: whatever the shape, dtype and values, a finite answer, NaN for NaN, or a named error.

Programs hold all functions at once and shapes are few, as compiling is what takes the time.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hsjax import batches, coordinates, losses, samplers, statistics
from hsjax.metrics import latents
from hsjax.metrics.frechet import frechet_distance, moments
from hsjax.metrics.kid import kernel_distance
from hsjax.metrics.neighbours import knn_accuracy, linear_probe_accuracy
from hsjax.metrics.prdc import precision_recall_density_coverage
from hsjax.samplers import SAMPLERS

SPECIAL = [0.0, -0.0, 1e-45, 1e-40, 1.2e-38, 1e-30, 1e-20, 1e-4, 1.0, 1e4, 1e12, 1e20, 1e30]
BAD = st.sampled_from([np.nan, np.inf, -np.inf])


def numbers(largest):
    """float32 from subnormal to `largest`, zeros and the edges of its range among them."""
    some = [sign * value for value in SPECIAL if value <= largest for sign in (1, -1)]
    edges = st.sampled_from([float(np.float32(x)) for x in some])
    most = float(np.float32(largest))
    return st.floats(-most, most, width=32) | st.floats(-2, 2, width=32) | edges


@st.composite
def arrays(draw, shape, largest=1e30):
    """Some rows equal, some of one value, the others anything."""
    x = draw(hnp.arrays(np.float32, shape, elements=numbers(largest)))
    how = draw(st.sampled_from(["any", "any", "equal rows", "one value", "zero tails"]))
    if x.size and how == "equal rows":
        x[...] = x.reshape(-1, shape[-1])[0]
    elif x.size and how == "one value":
        x[...] = x.flat[0]
    elif how == "zero tails":
        x[..., 1:] = 0.0
    return x


def assert_finite(tree, x):
    for leaf in jax.tree.leaves(tree):
        assert np.isfinite(np.asarray(leaf, np.float64)).all(), (x, leaf)


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def at(index, tree):
    return jax.tree.map(lambda y: y[index], tree)


# ------------------------------------------------------------------------------------ coordinates

SHAPES = [
    ((2,), "float32"),
    ((3, 5), "float32"),
    ((2, 2, 40), "float32"),
    ((0, 4), "float32"),
    ((2, 0, 3), "float32"),
    ((3, 5), "float16"),
    ((3, 5), "bfloat16"),
]


def transforms(x):
    radius, angles = coordinates.to_spherical(x)
    return {
        "radius": coordinates.radius(x),
        "cosines": coordinates.cosines(x),
        "cosines_eps": coordinates.cosines(x, eps=1e-3),
        "spherical": (radius, angles),
        "back": coordinates.to_cartesian(radius, angles),
        "any_angles": coordinates.to_cartesian(x[..., 0], x[..., 1:]),
        "project": coordinates.project(x),
        "log_volume": coordinates.log_volume(radius, angles),
        "any_log_volume": coordinates.log_volume(x[..., 0], x[..., 1:]),
    }


COMPOSED = {"back", "log_volume"}  # where a large derivative meets a large radius


@functools.cache
def transforms_and_gradients(shape, dtype):
    """The jitted transforms of one shape, the same by vmap, and the gradient of each one's sum."""

    def gradients(x):
        def total(name, x):
            return sum(jnp.sum(y.astype("float32")) for y in jax.tree.leaves(transforms(x)[name]))

        return {
            name: jax.grad(functools.partial(total, name))(x)
            for name in jax.eval_shape(transforms, x).keys() - COMPOSED
        }

    mapped = transforms
    for _ in shape[:-1]:
        mapped = jax.vmap(mapped)
    return jax.jit(lambda x: (transforms(x), mapped(x), gradients(x)))


@pytest.mark.parametrize(("shape", "dtype"), SHAPES, ids=str)
def test_transforms_of_any_vectors(shape, dtype):
    n = shape[-1]
    program = transforms_and_gradients(shape, dtype)
    digits = {"float32": 2e-6, "float16": 2e-3, "bfloat16": 2e-2}[dtype]
    least = max(1e-37, float(jnp.finfo(dtype).smallest_subnormal))

    @settings(max_examples=60 if np.prod(shape) else 3, deadline=None)
    @given(arrays(shape, 1e3 if dtype == "float16" else 1e30), st.data())
    def check(values, data):
        x = jnp.asarray(values, dtype)
        found, mapped, gradients = program(x)
        assert {y.dtype for y in jax.tree.leaves((found, gradients))} == {x.dtype}
        assert found["radius"].shape == found["log_volume"].shape == shape[:-1]
        assert found["cosines"].shape == found["spherical"][1].shape == (*shape[:-1], n - 1)
        assert found["back"].shape == found["project"].shape == shape
        assert_finite(found, x)
        assert_same(found, mapped)
        if dtype == "float16":  # whose largest number a derivative may pass
            assert not any(np.isnan(g).any() for g in gradients.values())
        else:
            assert_finite(gradients, x)

        wide = np.asarray(x, np.float64)
        wide = np.where(np.abs(wide) < 1.2e-38, 0.0, wide)  # a subnormal counts as zero
        norms = np.linalg.norm(wide, axis=-1)
        radius, angles = (np.asarray(y, np.float64) for y in found["spherical"])
        np.testing.assert_allclose(radius, norms, rtol=digits, atol=least)
        assert np.all((angles >= (0 if n > 2 else -np.pi - 0.01)) | (np.arange(n - 1) == n - 2))
        assert np.all(np.abs(angles) <= np.pi + 0.01)
        for name in ("cosines", "cosines_eps"):
            assert np.all(np.abs(np.asarray(found[name], np.float64)) <= 1 + digits)
        projected = np.linalg.norm(np.asarray(found["project"], np.float64), axis=-1)
        np.testing.assert_allclose(
            projected, np.where(norms > 1e-37, n**0.5, projected), rtol=digits
        )

        if not values.size:
            return
        # One bad number spoils what it enters, and no other row.
        bad = data.draw(BAD)
        place = data.draw(st.tuples(*(st.integers(0, size - 1) for size in shape)))
        row, k = place[:-1], place[-1]
        spoilt, _, _ = program(x.at[place].set(bad))
        for name in ("radius", "project"):
            assert not np.isfinite(spoilt[name][row]).any()
        if np.isnan(bad):
            for name in ("cosines", "cosines_eps"):
                assert np.isnan(spoilt[name][row][: k + 1]).all()
            assert np.isnan(spoilt["spherical"][0][row])
            assert np.isnan(spoilt["spherical"][1][row][: k + 1]).all()
            assert np.isnan(spoilt["any_angles"][row][-1])
            assert np.isnan(spoilt["any_log_volume"][row]) or k == n - 1
        for other in np.ndindex(*shape[:-1]):
            if other != row:
                assert_same(*(at(other, tree) for tree in (found, spoilt)))

    check()


@pytest.mark.parametrize("size", [4e37, 8e37, 9e37, 1e38, 2e38, 2.4e38])
def test_the_largest_numbers_have_a_length_and_a_direction(size):
    """Whose reciprocals are subnormal, and XLA divides by multiplying."""
    x = jnp.array([[size, -size, 1.0], [size, 1.0, 1.0]])
    np.testing.assert_allclose(coordinates.radius(x), [2**0.5 * size, size], rtol=1e-6)
    np.testing.assert_allclose(coordinates.to_spherical(x)[0], [2**0.5 * size, size], rtol=1e-6)
    expected = [[0.5**0.5, -(0.5**0.5), 0.0], [1.0, 0.0, 0.0]]
    np.testing.assert_allclose(coordinates.project(x, 1.0), expected, rtol=1e-6, atol=1e-37)
    cosines = coordinates.cosines(x)
    np.testing.assert_allclose(cosines, [[0.5**0.5, -1.0], [1.0, 0.5**0.5]], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_what_exceeds_the_dtype_is_infinite_as_documented(dtype):
    most = float(jnp.finfo(dtype).max)
    x = jnp.full((2, 3), most, dtype)
    assert np.isinf(coordinates.radius(x)).all()
    assert np.isinf(coordinates.to_spherical(x)[0]).all()
    expected = 3**-0.5 if dtype == "float16" else 0.0  # whose norm is a number of float32
    np.testing.assert_allclose(np.asarray(coordinates.cosines(x)[:, 0], float), expected, 1e-3)


def test_eps_of_any_kind():
    x = jnp.array([[3.0, 0.0, 4.0], [0.0, 0.0, 0.0]])
    exact = coordinates.cosines(x)
    for eps in (0, 0.0, -0.0, 1e-300, 1e-40, np.float32(0), np.float64(1e-200)):
        np.testing.assert_array_equal(coordinates.cosines(x, eps=eps), exact)
    for eps in (1e-37, 1e-25, 1e-3, 1e30, np.inf, jnp.float32(1e-3), np.float32(1e-3)):
        assert np.isfinite(coordinates.cosines(x, eps=eps)).all()
    for eps in (-1, -1e-45, np.nan, -np.inf, np.float32(-1), np.float64(np.nan)):
        with pytest.raises(ValueError, match="eps must be >= 0"):
            coordinates.cosines(x, eps=eps)
    gradient = jax.grad(lambda x: coordinates.cosines(x, eps=1e-25).sum())(x)
    assert np.isfinite(gradient).all()


# ----------------------------------------------------------------------------------------- losses


def objectives(mean, std):
    found = {
        "squared_error": losses.squared_error(mean, std),
        "gaussian_kl": losses.gaussian_kl(mean, jnp.clip(mean - std, -1e14, 80.0)),
        "cartesian_kl": losses.cartesian_kl(mean, std),
    }
    if len(mean) > 1:
        for name, make in (("paper", losses.paper_spec), ("published", losses.published_spec)):
            spec = make(mean.shape[1])
            terms = losses.spherical_kl(mean, std, spec)
            found |= {f"{name}_{term}": value for term, value in terms._asdict().items()}
            found[name] = losses.total(terms, spec)
        found["statistics"] = sum(map(jnp.sum, statistics.coordinate_moments(mean, 1e-3)))
    return found


@functools.cache
def objectives_and_gradients(shape, dtype):
    def one(name, mean, std):
        return jax.value_and_grad(lambda *x: objectives(*x)[name], (0, 1))(mean, std)

    names = jax.eval_shape(objectives, jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)).keys()
    return jax.jit(lambda mean, std: {name: one(name, mean, std) for name in names})


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((1, 3), "float32"), ((2, 2), "float32"), ((5, 40), "float32"), ((3, 4), "bfloat16")],
    ids=str,
)
def test_objectives_of_any_latents(shape, dtype):
    program = objectives_and_gradients(shape, dtype)

    @settings(max_examples=60, deadline=None)
    @given(arrays(shape, 1e14), arrays(shape, 1e14), st.data())
    def check(mean, std, data):
        mean, std = jnp.asarray(mean, dtype), jnp.abs(jnp.asarray(std, dtype))
        found = program(mean, std)
        assert_finite(found, (mean, std))
        for name, (value, gradients) in found.items():
            assert value.dtype == jnp.float32
            assert [g.dtype for g in gradients] == [mean.dtype] * 2
            assert value >= -1e-6 or name == "statistics"
        # One bad number anywhere is no plausible loss.
        bad = data.draw(BAD)
        place = data.draw(st.tuples(*(st.integers(0, size - 1) for size in shape)))
        for name, (value, _) in program(mean.at[place].set(bad), std).items():
            if not name.startswith(("paper_", "published_")) and name != "gaussian_kl":
                assert not np.isfinite(value), name
        for name, (value, _) in program(mean, std.at[place].set(bad)).items():
            if name in ("squared_error", "cartesian_kl", "paper", "published"):
                assert not np.isfinite(value), name

    check()


@settings(max_examples=60, deadline=None)
@given(arrays((3, 4), 1e14), arrays((3, 4), 80.0), st.data())
def test_gaussian_kl_of_any_latents(mean, log_variance, data):
    expected = 0.5 * np.mean(
        np.sum(mean.astype(float) ** 2 + np.expm1(log_variance.astype(float)) - log_variance, 1)
    )
    found = jax.jit(losses.gaussian_kl)(mean, log_variance)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    bad, place = data.draw(BAD), data.draw(st.tuples(st.integers(0, 2), st.integers(0, 3)))
    for array in (mean, log_variance):
        before, array[place] = array[place], bad
        assert not np.isfinite(jax.jit(losses.gaussian_kl)(mean, log_variance))
        array[place] = before


@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 0, 3, 2)], ids=str)
def test_coordinate_moments_take_any_leading_axes(shape):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    mean, variance = statistics.coordinate_moments(x, 1e-3)
    assert mean.shape == variance.shape == (*shape[:-2], shape[-1])
    for index in np.ndindex(*shape[:-2]):
        np.testing.assert_allclose(
            mean[index], statistics.coordinate_moments(x[index], 1e-3)[0], 1e-5
        )


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.float32, 4, elements=st.floats(0, float(np.float32(1e30)), width=32)),
    st.floats(float(np.float32(1e-3)), float(np.float32(1e30)), width=32),
    st.sampled_from(losses.ANNEALINGS),
)
def test_annealing_of_any_epoch(epochs, length, form):
    factor = losses.annealing(epochs, form=form, length=length)
    assert factor.dtype == jnp.float32
    counted = epochs >= (1 if form.startswith("published") else 0)  # from 1, without annealing
    np.testing.assert_array_equal(np.isfinite(factor), counted | (form == "none"))
    assert np.all(factor[counted] >= 0)
    if form == "sqrt":
        assert np.all(factor <= 1)
    if form != "none":
        epochs[2] = np.nan
        assert np.isnan(losses.annealing(epochs, form=form, length=length)[2])


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda x: losses.squared_error(x[0, 0], x[0, 0]), "a batch of at least 1, got shape ()"),
        (lambda x: losses.squared_error(x[:0], x[:0]), "a batch of at least 1, got shape (0, 4)"),
        (lambda x: losses.gaussian_kl(x[:0], x[:0]), "must both be [batch, n], got (0, 4)"),
        (lambda x: losses.gaussian_kl(x[0], x[0]), "must both be [batch, n], got (4,)"),
        (lambda x: losses.cartesian_kl(x[:0], x[:0]), "must both be [batch, n], got (0, 4)"),
        (lambda x: losses.cartesian_kl(x, x, prior_mean=x), "a prior has shape (3, 4)"),
        (lambda x: losses.cartesian_kl(x, x, prior_std=x[0, :3]), "a prior has shape (3,)"),
        (lambda x: losses.spherical_kl(x[:0], x[:0], losses.paper_spec(4)), "must both be"),
        (lambda x: statistics.coordinate_moments(x[:, :1], 1e-3), "2 rows of 2 coordinates"),
        (lambda x: losses.paper_spec(4, mean_target=x[0]), "broadcast"),
        (lambda x: losses.paper_spec(4, spread_target=x), "broadcast"),
        (lambda x: samplers.slerp(x, x, x[0]), "got (3, 4), (3, 4) and (4,)"),
        (lambda x: samplers.slerp(x[0], x[0, :3], x[0]), "got (4,), (3,) and (4,)"),
        (lambda x: samplers.slerp(x[0], x[0], x[0, 0]), "got (4,), (4,) and ()"),
        (lambda x: samplers.slerp(x[0, :1], x[0, :1], x[0]), "x needs at least 2"),
        (lambda x: samplers.slerp(x[0].astype(int), x[0], x[0]), "start must be a floating-point"),
        (lambda x: samplers.slerp(x[0], x[0], x[0].astype(int)), "fractions must be a floating"),
    ],
)
def test_shapes_and_dtypes_that_mean_nothing_are_named(call, text):
    for transform in (lambda f: f, jax.jit):
        with pytest.raises((TypeError, ValueError)) as caught:
            transform(call)(jnp.ones((3, 4)))
        assert text in str(caught.value)


# --------------------------------------------------------------------------------------- samplers


# Without own, which has the method's prior instead, and those that test_learned_samplers.py trains.
FITTED = [name for name, sampler in SAMPLERS.items() if name != "own" and not sampler.learned]


@functools.cache
def sampled(name):
    return jax.jit(SAMPLERS[name].sample, static_argnums=2)


@pytest.mark.parametrize("count", [2, 20])
@pytest.mark.parametrize("name", FITTED)
def test_samplers_fitted_to_any_embeddings(name, count):
    @settings(max_examples=15, deadline=None)
    @given(arrays((count, 4), 9e29), st.sampled_from(["float32", "float64", "bfloat16"]), st.data())
    def check(values, dtype, data):
        x = np.array(values, np.float64 if dtype == "float64" else jnp.dtype(dtype))
        parameters = SAMPLERS[name].fit(x)
        z = np.asarray(sampled(name)(parameters, jax.random.key(0), 3))
        assert z.shape == (3, 4)
        assert z.dtype == np.float32
        assert np.isfinite(z).all(), x
        radii = np.linalg.norm(z.astype(np.float64), axis=1)
        mean = np.linalg.norm(x.astype(np.float64), axis=1).mean()
        if name not in ("prior", "uniform_sphere", "gaussian", "gmm") and mean > 1e-20:
            # A mixture around 0 without a spread has no direction.
            assert np.all((np.abs(radii / mean - 1) < 1e-4) | (radii == 0.0))
        bad = data.draw(BAD | st.just(1e31))
        x[data.draw(st.integers(0, count - 1)), data.draw(st.integers(0, 3))] = bad
        with pytest.raises(ValueError, match=f"1 of {count} embeddings hold a NaN or more"):
            SAMPLERS[name].fit(x)

    check()


@pytest.mark.parametrize("name", FITTED)
@pytest.mark.parametrize("shape", [(), (0,), (5,), (0, 3), (1, 3), (5, 0), (5, 1), (2, 3, 4)])
def test_what_no_sampler_can_be_fitted_to(name, shape):
    with pytest.raises(ValueError, match="both at least 2"):
        SAMPLERS[name].fit(np.ones(shape))


@pytest.mark.parametrize("name", FITTED)
def test_no_sample_is_an_empty_array(name):
    parameters = SAMPLERS[name].fit(np.random.default_rng(0).normal(size=(5, 4)))
    assert sampled(name)(parameters, jax.random.key(0), 0).shape == (0, 4)


FRACTIONS = jnp.linspace(0.0, 1.0, 5)


@functools.cache
def slerp_and_gradient():
    gradient = jax.grad(lambda *x: samplers.slerp(*x, FRACTIONS).sum(), (0, 1))
    return jax.jit(lambda *x: (samplers.slerp(*x, FRACTIONS), gradient(*x)))


@settings(max_examples=60, deadline=None)
@given(arrays((3,)), arrays((3,)), st.data())
def test_slerp_between_any_vectors(start, end, data):
    path, gradient = slerp_and_gradient()(start, end)
    assert_finite(path, (start, end))
    lengths = [np.linalg.norm(x.astype(np.float64)) for x in (start, end)]
    between = np.interp(FRACTIONS, [0, 1], lengths)
    assert np.all(np.linalg.norm(np.asarray(path, np.float64), axis=1) <= 10 * between + 1e-30)
    opposite = start.astype(np.float64) @ end < -0.99 * np.prod(lengths)
    if min(lengths) > 1e-10 and max(lengths) < 1e10 and not opposite:
        np.testing.assert_allclose(path[0], start, atol=1e-5 * lengths[0])
        np.testing.assert_allclose(path[-1], end, atol=1e-5 * lengths[1])
        assert_finite(gradient, (start, end))
    start[data.draw(st.integers(0, 2))] = np.nan
    assert np.isnan(slerp_and_gradient()(start, end)[0]).all()


# ---------------------------------------------------------------------------------- other arrays


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([(2, 0, 4, 6, 1), (4, 6, 1), (2, 4, 0, 3)]),
    st.integers(0, 2**32 - 1),
    st.data(),
)
def test_images_of_any_leading_axes(shape, seed, data):
    images = data.draw(hnp.arrays(np.uint8, shape))
    prepared = batches.prepare(images, jax.random.key(seed), flip=True)
    assert prepared.shape == shape
    assert prepared.dtype == jnp.float32
    assert np.all((prepared >= 0) & (prepared <= 1))
    both = np.stack([images, images[..., ::-1, :]]).astype(np.float32) / 255
    assert np.all(np.isclose(prepared, both).any(axis=0))
    padded = batches.pad(images, 4)
    assert padded.shape == (*shape[:-3], 4, 8 if shape[-2] else 0, shape[-1])
    np.testing.assert_array_equal(batches.crop(padded, *shape[-3:-1]), images)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "int64", "uint8"])
def test_metrics_of_any_features(dtype):
    labels = np.arange(12) % 2

    @jax.numpy_rank_promotion("allow")
    @settings(max_examples=10, deadline=None)
    @given(*[arrays((12, 3), 1e4 if dtype == "float16" else 1e30) for _ in range(2)])
    def check(x, y):
        if dtype in ("int64", "uint8"):
            x, y = np.clip(x, 0, 200), np.clip(y, 0, 200)
        x, y = x.astype(jnp.dtype(dtype)), y.astype(jnp.dtype(dtype))
        distance = frechet_distance(moments(x), moments(y))
        size = max(np.abs(v.astype(np.float64)).max() for v in (x, y))
        assert 0.0 <= distance < np.inf
        assert frechet_distance(moments(x), moments(x)) <= 1e-6 * size**2
        assert np.isfinite(kernel_distance(x, y)).all()
        shares = precision_recall_density_coverage(x, y, 2)
        assert min(shares) >= 0.0
        assert max(shares.precision, shares.recall, shares.coverage) <= 1.0
        assert 0.0 <= knn_accuracy(x, labels, y, labels, 3) <= 1.0
        assert 0.0 <= linear_probe_accuracy(x, labels, y, labels) <= 1.0
        assert_finite(latents.diagnostics(x, labels), x)
        assert_finite(latents.groups(x), x)
        assert_finite(latents.geometry(x), x)

    check()
