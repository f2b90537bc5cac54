"""Metrics against plain loops, closed forms, other algorithms and cases known by construction."""

import mpmath
import numpy as np
import pytest
import scipy.linalg
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hsjax.metrics import latents
from hsjax.metrics.frechet import Moments, frechet_distance, moments, rank_note
from hsjax.metrics.kid import kernel_distance
from hsjax.metrics.memorisation import share_nearest_to_training
from hsjax.metrics.neighbours import knn_accuracy, linear_probe_accuracy
from hsjax.metrics.prdc import precision_recall_density_coverage, radii


def normal(count, d, seed=0):
    return np.random.default_rng(seed).normal(size=(count, d))


def mixed(count, d, seed=0):
    """Correlated features around a mean."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d)


def distance(x, y):
    return frechet_distance(moments(x), moments(y))


# ------------------------------------------------------------------------------ Fréchet distance


@pytest.mark.parametrize("count", [2, 5000, 9001])
def test_moments_are_those_of_numpy(count):
    x = (mixed(count, 7) + 100.0).astype(np.float32)
    ours = moments(x)
    assert ours.count == count
    np.testing.assert_allclose(ours.mean, x.mean(axis=0, dtype=np.float64), rtol=1e-12)
    expected = np.cov(x.astype(np.float64), rowvar=False)
    np.testing.assert_allclose(ours.covariance, expected, rtol=1e-9, atol=1e-9)


def test_frechet_distance_has_its_closed_form_for_diagonal_covariances():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 30))
    s, t = rng.uniform(0.0, 3.0, (2, 30))
    s[:5] = 0.0
    ours = frechet_distance(Moments(a, np.diag(s**2), 100), Moments(b, np.diag(t**2), 100))
    np.testing.assert_allclose(ours, np.sum((a - b) ** 2) + np.sum((s - t) ** 2), rtol=1e-9)


def test_frechet_distance_agrees_with_a_matrix_square_root():
    x, y = mixed(300, 12), mixed(400, 12, seed=1)
    s, t = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(s @ t)
    expected = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(s + t - 2.0 * root.real)
    np.testing.assert_allclose(distance(x, y), expected, rtol=1e-9)


def test_frechet_distance_of_fewer_samples_than_features_agrees_with_a_nuclear_norm():
    x, y = mixed(20, 60), mixed(35, 60, seed=1)
    u, v = ((a - a.mean(0)) / np.sqrt(len(a) - 1) for a in (x, y))
    spread = np.sum(u * u) + np.sum(v * v) - 2.0 * np.linalg.norm(u @ v.T, "nuc")
    expected = np.sum((x.mean(0) - y.mean(0)) ** 2) + spread
    np.testing.assert_allclose(distance(x, y), expected, rtol=1e-6)


@pytest.mark.parametrize("count", [10, 500])
def test_frechet_distance_of_a_set_to_itself_and_to_its_shift(count):
    x = mixed(count, 40)
    size = np.trace(moments(x).covariance)
    assert 0.0 <= distance(x, x) < 1e-6 * size
    shift = normal(1, 40, seed=3)
    np.testing.assert_allclose(distance(x, x + shift), np.sum(shift**2), atol=1e-6 * size)


def test_rank_note_is_one_line_about_the_smaller_set():
    few, many = moments(normal(20, 30)), moments(normal(40, 30))
    expected = "the Fréchet distance is of rank-deficient covariances: 20 samples, 30 features"
    assert rank_note(many, few) == rank_note(few, many) == expected
    assert rank_note(many, many) is None
    assert rank_note(moments(normal(30, 30)), many) is not None  # 30 samples have rank 29


wild = st.integers(1, 6).flatmap(
    lambda d: st.tuples(*(_features(d), _features(d), st.integers(-30, 30)))
)


def _features(d):
    numbers = st.floats(-100, 100, width=32)
    return arrays(np.float32, st.tuples(st.integers(2, 9), st.just(d)), elements=numbers)


@settings(deadline=None, max_examples=200)
@given(wild)
def test_frechet_distance_is_finite_not_negative_and_symmetric_at_any_scale(case):
    x, y, power = case
    a, b = (moments((v * 10.0**power).astype(np.float32)) for v in (x, y))
    forward, backward = frechet_distance(a, b), frechet_distance(b, a)
    size = np.trace(a.covariance + b.covariance) + np.sum((a.mean - b.mean) ** 2)
    assert np.isfinite(forward)
    assert 0.0 <= forward <= size * (1 + 1e-9)
    assert abs(forward - backward) <= 1e-6 * size


# ------------------------------------------------------------------------------- kernel distance


def test_kernel_distance_is_that_of_a_double_loop():
    x, y = mixed(25, 6), mixed(25, 6, seed=1)

    def k(a, b):
        return (sum(p * q for p, q in zip(a, b, strict=True)) / 6 + 1) ** 3

    m = 25
    within = sum(
        k(v[i], v[j]) / (m * (m - 1)) for v in (x, y) for i in range(m) for j in range(m) if i != j
    )
    across = sum(k(a, b) / m**2 for a in x for b in y)
    mean, deviation = kernel_distance(x, y)  # fewer than 1000: one subset, all of both
    np.testing.assert_allclose(mean, within - 2.0 * across, rtol=1e-5)
    assert deviation == 0.0


def test_kernel_distance_averages_over_subsets():
    x, y = normal(400, 8), normal(300, 8, seed=1) + 0.5
    whole, _ = kernel_distance(x, y, size=300)
    mean, deviation = kernel_distance(x, y, subsets=200, size=50)
    assert deviation > 0.0
    assert abs(mean - whole) < 4 * deviation / 200**0.5
    assert kernel_distance(x, y, size=50) == kernel_distance(x, y, size=50)
    assert kernel_distance(x, y, size=50) != kernel_distance(x, y, size=50, seed=1)


def test_kernel_distance_of_one_law_is_zero_in_expectation_at_any_count():
    values = [
        kernel_distance(normal(30, 5, seed=i), normal(30, 5, seed=1000 + i))[0] for i in range(300)
    ]
    error = np.std(values) / 300**0.5
    assert abs(np.mean(values)) < 4 * error
    assert error < 0.02  # with the diagonal left in, 30 samples of this law would give above 0.3


@pytest.mark.parametrize("scale", [1e-20, 1e6, 1e30])
def test_kernel_distance_neither_overflows_nor_loses_a_scale(scale):
    x, y = normal(40, 5), normal(40, 5, seed=1) + 1.0
    mean, _ = kernel_distance((scale * x).astype(np.float32), (scale * y).astype(np.float32))
    if scale < 1:
        assert abs(mean) < 1e-6
    else:  # the cube prevails
        cubes = [(u @ v.T / 5) ** 3 for u, v in ((x, x), (y, y), (x, y))]
        for k in cubes[:2]:
            np.fill_diagonal(k, 0.0)
        expected = (cubes[0].sum() + cubes[1].sum()) / (40 * 39) - 2.0 * cubes[2].mean()
        np.testing.assert_allclose(mean, scale**6 * expected, rtol=1e-4)


# --------------------------------------------------- precision, recall, density and coverage


def naive(real, fake, k):
    """As Naeem et al.'s package prdc counts, in float64; what is on a ball's surface is outside."""
    real, fake = real.astype(np.float64), fake.astype(np.float64)

    def apart(x, y):
        return np.sqrt(np.sum((x[:, None] - y[None]) ** 2, axis=2))

    r, s = (np.sort(apart(x, x), axis=1)[:, k] for x in (real, fake))
    held, back = apart(fake, real) < r, apart(real, fake) < s
    return held.any(1).mean(), back.any(1).mean(), held.sum(1).mean() / k, held.any(0).mean()


@pytest.mark.parametrize(("count", "m", "k"), [(90, 60, 5), (60, 90, 1), (130, 600, 3)])
def test_shares_are_those_of_a_naive_loop(count, m, k):
    real, fake = mixed(count, 4), 0.7 * mixed(m, 4) + 0.3 * normal(m, 4, seed=1)
    shares = precision_recall_density_coverage(real, fake, k)
    np.testing.assert_allclose(shares, naive(real, fake, k), rtol=1e-6)
    assert 0.0 < shares.recall < 1.0
    expected = [np.partition(np.linalg.norm(real - a, axis=1), k)[k] for a in real]
    np.testing.assert_allclose(radii(real, k), expected, rtol=1e-5)


def test_shares_with_radii_computed_before_are_the_same():
    real, fake = normal(80, 5), normal(70, 5, seed=1)
    given = precision_recall_density_coverage(real, fake, 4, real_radii=radii(real, 4))
    assert given == precision_recall_density_coverage(real, fake, 4)
    with pytest.raises(ValueError, match=r"80 samples have radii of shape \(70,\)"):
        precision_recall_density_coverage(real, fake, 4, real_radii=radii(fake, 4))


def test_shares_of_known_cases():
    x = normal(200, 3)
    same = precision_recall_density_coverage(x, x.copy())
    assert same == (1.0, 1.0, 1.0, 1.0)
    half = precision_recall_density_coverage(x, x[::2], 2)  # each sample is on some real surfaces
    np.testing.assert_allclose(half, naive(x, x[::2], 2), rtol=1e-12)
    assert precision_recall_density_coverage(x, x + 100.0) == (0.0, 0.0, 0.0, 0.0)

    modes = np.concatenate([x, x + 50.0])
    one = precision_recall_density_coverage(modes, 0.5 * normal(400, 3, seed=1))
    assert one.precision > 0.95
    assert one.recall <= 0.5
    assert one.coverage <= 0.5

    # Samples that are all one real image: it is real, and it is all there is.
    collapsed = precision_recall_density_coverage(x, np.repeat(x[:1], 50, axis=0))
    assert collapsed.precision == 1.0
    assert collapsed.recall == 1 / 200
    assert collapsed.coverage < 0.2


@pytest.mark.parametrize(("scale", "shift"), [(1e-25, 0.0), (1e25, 0.0), (1.0, 1e6)])
def test_shares_know_neither_unit_nor_origin(scale, shift):
    real, fake = normal(100, 4), normal(100, 4, seed=1)
    expected = precision_recall_density_coverage(real, fake)
    assert precision_recall_density_coverage(scale * real + shift, scale * fake + shift) == expected


@pytest.mark.parametrize("apart", [1.0, 1e-3, 1e-5])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_shares_of_islands_much_smaller_than_the_way_between_them(apart, dtype):
    """In float32, |x|² + |y|² - 2 x·y would be a rounding error of |x|²."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 16))[rng.integers(0, 4, 400)]
    x = (centres + apart * rng.normal(size=centres.shape)).astype(dtype)
    real, fake = x[:200], x[200:]
    expected = naive(real, fake, 3)
    assert 0.1 < expected[3] < 1.0
    shares = precision_recall_density_coverage(real, fake, 3)
    np.testing.assert_allclose(shares, expected, rtol=1e-12)
    assert precision_recall_density_coverage(real, real.copy(), 3) == (1.0, 1.0, 1.0, 1.0)
    own = [sorted(np.linalg.norm((real - a).astype(float), axis=1))[3] for a in real]
    np.testing.assert_allclose(radii(real, 3), own, rtol=1e-6)


def test_duplicates_are_neighbours():
    """Balls of radius 0, which rounding must not empty: real copies of nine images, and samples."""
    images = normal(9, 128)
    real, fake = np.repeat(images, 30, axis=0), np.repeat(images, np.arange(4, 13), axis=0)
    assert precision_recall_density_coverage(real, fake, k=3) == (1.0, 1.0, 10.0, 1.0)


# ---------------------------------------------------------------------- what the metrics refuse


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(
    "metric",
    [
        moments,
        radii,
        lambda x: kernel_distance(normal(40, 6), x),
        lambda x: precision_recall_density_coverage(normal(40, 6), x),
        lambda x: knn_accuracy(normal(40, 6), np.arange(40) % 2, x, np.arange(40) % 2),
        lambda x: linear_probe_accuracy(x, np.arange(40) % 2, normal(40, 6), np.arange(40) % 2),
        latents.diagnostics,
        latents.groups,
        latents.tsne,
        latents.geometry,
    ],
)
def test_a_nan_or_an_infinity_is_refused_in_one_line(metric, bad):
    x = normal(40, 6)
    x[3, 2] = x[3, 4] = x[17, 0] = bad
    with pytest.raises(ValueError, match=r"^2 of 40 rows of .* hold a NaN or an infinity$"):
        metric(x)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: moments(normal(1, 4)), "at least 2 samples, got 1"),
        (lambda: moments(np.zeros(4)), r"must be \[count, d\], got shape \(4,\)"),
        (lambda: distance(normal(9, 4), normal(9, 5)), "4 and 5 features do not compare"),
        (lambda: kernel_distance(normal(9, 4), normal(9, 5)), "4 and 5 features do not compare"),
        (lambda: kernel_distance(normal(9, 4), normal(1, 4)), "at least 2 samples, got 100 of 1"),
        (lambda: radii(normal(5, 4), 5), "neighbour 5 of 5 samples does not exist"),
        (lambda: radii(normal(5, 4), 0), "neighbour 0 of 5"),
        (lambda: precision_recall_density_coverage(normal(9, 4), normal(5, 4)), "neighbour 5 of 5"),
        (lambda: precision_recall_density_coverage(normal(9, 4), normal(9, 5)), "do not compare"),
        (
            lambda: share_nearest_to_training(normal(3, 2) * np.nan, normal(9, 2), normal(9, 2)),
            "the features",
        ),
        (lambda: latents.diagnostics(normal(1, 4)), "needs 2 latents of 2 coordinates"),
        (lambda: latents.diagnostics(normal(9, 1)), "needs 2 latents of 2 coordinates"),
        (lambda: latents.diagnostics(normal(9, 4), np.zeros(8)), "9 latents have labels of shape"),
        (lambda: latents.geometry(normal(9, 1)), "needs 2 latents of 2 coordinates"),
        (lambda: latents.groups(normal(9, 2)), "three groups need at least 3 coordinates, got 2"),
        (lambda: latents.tsne(normal(1, 4)), "t-SNE takes 2 to 10,000 latents"),
        (lambda: latents.tsne(np.zeros((10_001, 2))), "t-SNE takes 2 to 10,000 latents"),
    ],
)
def test_what_cannot_be_judged_is_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "metric",
    [
        lambda x, labels: distance(x, 2 * x[::-1]),
        lambda x, labels: kernel_distance(x, x[::2]),
        lambda x, labels: precision_recall_density_coverage(x, x[::2]),
        lambda x, labels: knn_accuracy(x, labels, x, labels),
        lambda x, labels: linear_probe_accuracy(x, labels, x, labels),
        lambda x, labels: latents.diagnostics(x, labels)[0],
        lambda x, labels: latents.groups(x).sum(),
        lambda x, labels: latents.tsne(x).sum(),
        lambda x, labels: latents.geometry(x),
    ],
)
def test_a_caller_may_have_numpy_raise(metric):
    """What underflows does so in silence; here, in a coordinate and in squares of it."""
    x = normal(40, 5).astype(np.float32) * np.float32([1, 1, 1, 1e-20, 1e-36])
    labels = np.arange(40) % 2
    expected = metric(x, labels)
    with np.errstate(all="raise"):
        assert metric(x, labels) == expected


# ------------------------------------------------------------------------------- classes


def test_probe_finds_a_plane_whatever_the_units():
    """Classes a long way apart in one small coordinate, among large ones that tell nothing."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 900)
    x = np.stack(
        [1e-4 * (labels + 0.2 * rng.uniform(-1, 1, 900)), *1e4 * rng.normal(size=(3, 900))]
    )
    x = np.concatenate([x.T, np.full((900, 1), 7.0)], axis=1).astype(np.float32)
    split = x[:600], labels[:600], x[600:], labels[600:]
    assert linear_probe_accuracy(*split) > 0.99
    assert knn_accuracy(*split) < 0.5
    assert linear_probe_accuracy(*split) == linear_probe_accuracy(*split)


@pytest.mark.parametrize("k", [1, 3, 8])
def test_neighbours_vote_as_in_a_naive_loop(k):
    bank, queries = normal(60, 3), normal(200, 3, seed=1)
    labels = np.random.default_rng(2).integers(0, 2, 260)
    votes = []
    for query in queries:
        nearest = np.argsort(np.linalg.norm(bank - query, axis=1))[:k]
        votes.append(np.bincount(labels[:60][nearest]).argmax())  # a tie goes to the lower label
    share = np.mean(votes == labels[60:])
    assert knn_accuracy(bank, labels[:60], queries, labels[60:], k) == share


def test_probe_has_not_seen_the_queries():
    """Labels at random, as many coordinates as queries: who fits those knows them by heart."""
    labels = np.random.default_rng(0).integers(0, 2, 260)
    x = normal(260, 60)
    assert linear_probe_accuracy(x[60:], labels[60:], x[:60], labels[:60]) < 0.75


def test_neighbours_find_classes_that_no_plane_divides():
    x = normal(1200, 2)
    labels = (x[:, 0] > 0) ^ (x[:, 1] > 0)
    split = x[:900], labels[:900], x[900:], labels[900:]
    assert knn_accuracy(*split) > 0.9
    assert linear_probe_accuracy(*split) < 0.7


def test_probe_of_an_unending_fit_stops_without_a_warning():
    x = mixed(400, 60)
    labels = np.random.default_rng(1).integers(0, 40, 400)
    assert linear_probe_accuracy(x, labels, x, labels) > 0.5


def test_a_bank_of_one_class_answers_with_it():
    queries, labels = normal(10, 3), np.array([4] * 7 + [5] * 3)
    assert linear_probe_accuracy(normal(20, 3), np.full(20, 4), queries, labels) == 0.7
    assert knn_accuracy(normal(20, 3), np.full(20, 4), queries, labels) == 0.7


# -------------------------------------------------------------------------------- latents


def uniform(count, n, seed=0):
    x = normal(count, n, seed)
    return (np.sqrt(n) * x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("n", [2, 3, 17])
def test_diagnostics_are_those_of_plain_loops(n):
    x = (mixed(40, n) + 0.5).astype(np.float32)
    labels = np.arange(40) % 3
    numbers, figures = latents.diagnostics(x, labels)
    x = x.astype(np.float64)

    sizes = [np.sqrt(sum(v * v for v in row)) for row in x]
    cosines = [[row[k] / np.linalg.norm(row[k:]) for k in range(n - 1)] for row in x]
    pairs, same = [], []
    for i in range(40):
        for j in range(i):
            pairs.append(x[i] @ x[j] / (sizes[i] * sizes[j]))
            same.append(labels[i] == labels[j])
    pairs, same = np.array(pairs), np.array(same)
    values = np.linalg.eigvalsh(np.cov(x, rowvar=False))
    shares = values / values.sum()
    expected = {
        "radius_mean": np.mean(sizes),
        "radius_std": np.std(sizes),
        "overlap_mean": pairs.mean(),
        "overlap_std": pairs.std(),
        "overlap_within": pairs[same].mean(),
        "overlap_between": pairs[~same].mean(),
        "effective_rank": np.exp(-sum(s * np.log(s) for s in shares)),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(numbers[name], value, rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(figures["cosine_mean"], np.mean(cosines, axis=0), atol=1e-6)
    np.testing.assert_allclose(figures["cosine_spread"], np.std(cosines, axis=0), atol=1e-6)
    counts, edges = np.histogram(pairs, bins=200, range=(-1, 1))
    np.testing.assert_allclose(figures["overlap_edges"], edges)
    np.testing.assert_array_equal(figures["overlap_counts"], counts)


def test_log_volume_has_the_closed_forms_of_two_and_three_dimensions():
    """On S² the element is sin φ_1, whose mean logarithm over the sphere is log 2 - 1."""
    angles = np.linspace(0.3, 2.5, 7)
    x = 5.0 * np.stack([np.cos(angles), np.sin(angles) * 0.6, -np.sin(angles) * 0.8], axis=1)
    expected = (np.mean(np.log(np.sin(angles))) - (np.log(2) - 1)) / 3
    np.testing.assert_allclose(latents.log_volume_excess(x), expected, rtol=1e-5)
    assert latents.log_volume_excess(normal(10, 2)) == 0.0


@pytest.mark.parametrize("n", [3, 30, 200])
def test_uniform_directions_read_as_uniform(n):
    numbers, figures = latents.diagnostics(uniform(5000, n))
    np.testing.assert_allclose(numbers["radius_mean"], n**0.5, rtol=1e-5)
    assert abs(numbers["overlap_mean"]) < 0.01
    np.testing.assert_allclose(numbers["overlap_std"], n**-0.5, rtol=0.02)
    assert abs(numbers["log_volume_mean"]) < 0.01
    assert 0.95 * n < numbers["effective_rank"] <= n
    expected = 1 / np.sqrt(np.arange(n, 1, -1))
    np.testing.assert_allclose(figures["cosine_spread"], expected, rtol=0.06)
    assert figures["overlap_counts"].sum() == 3000 * 2999 / 2
    assert "overlap_within" not in numbers


def test_an_island_reads_as_one():
    x = np.array([8.0] + [0.0] * 63) + 0.05 * normal(500, 64)
    numbers, _ = latents.diagnostics(x, np.arange(500) % 2)
    assert numbers["overlap_mean"] > 0.99
    assert abs(numbers["overlap_within"] - numbers["overlap_between"]) < 0.01
    assert numbers["log_volume_mean"] < -1.0


def test_clusters_read_as_clusters():
    labels = np.arange(600) % 4
    x = 5.0 * np.eye(4, 20)[labels] + 0.1 * normal(600, 20)
    numbers, figures = latents.diagnostics(x, labels)
    assert numbers["overlap_within"] > 0.9
    assert abs(numbers["overlap_between"]) < 0.05
    counts, middle = (
        figures["overlap_counts"],
        0.5 * np.convolve(figures["overlap_edges"], [1, 1])[1:-1],
    )
    assert counts[(middle > 0.3) & (middle < 0.7)].sum() == 0
    assert 3.0 < numbers["effective_rank"] < 4.0


def test_effective_rank_of_exact_cases():
    axes = np.concatenate([np.eye(6), -np.eye(6)])
    np.testing.assert_allclose(latents.effective_rank(axes), 6.0)
    np.testing.assert_allclose(latents.effective_rank(axes[:, :1] * np.ones(5)), 1.0)
    assert latents.effective_rank(np.full((20, 3), 0.1)) == 0.0


@pytest.mark.parametrize("x", [np.zeros((20, 5)), np.full((20, 5), 0.1), np.eye(2)])
def test_degenerate_latents_have_finite_diagnostics(x):
    numbers, figures = latents.diagnostics(x, np.zeros(len(x)))
    assert all(np.isfinite(v) for v in numbers.values())
    assert all(np.isfinite(v).all() for v in figures.values())
    assert "overlap_between" not in numbers


def test_every_diagnostic_has_one_line_on_how_to_read_it():
    numbers, figures = latents.diagnostics(normal(30, 5), np.arange(30) % 2)
    assert set(latents.READING) == set(numbers) | set(figures)
    assert all(line and "\n" not in line for line in latents.READING.values())
    assert all(type(value) is float for value in numbers.values())


@pytest.mark.parametrize("n", [2, 3, 17])
def test_the_geometry_is_that_of_plain_loops(n):
    x = (mixed(40, n) + 0.5).astype(np.float32)
    found = latents.geometry(x)["embeddings"]
    units = [row / np.linalg.norm(row) for row in x.astype(np.float64)]
    pairs = [abs(units[i] @ units[j]) for i in range(40) for j in range(i)]
    sizes = np.linalg.norm(x.astype(np.float64), axis=1)
    np.testing.assert_allclose(found["norm_spread"], sizes.std() / sizes.mean(), rtol=1e-6)
    np.testing.assert_allclose(found["abs_cosine_mean"], np.mean(pairs), rtol=1e-6)
    np.testing.assert_allclose(found["abs_cosine_spread"], np.std(pairs), rtol=1e-6)
    centre = sum(units) / np.linalg.norm(sum(units))
    within = [np.degrees(np.arccos(u @ centre)) <= found["cap_angle"] for u in units]
    assert sum(within) == 38  # of 40
    share = latents.log_cap_share(np.radians(found["cap_angle"]), n) / np.log(10)
    np.testing.assert_allclose(found["cap_log10_share"], share, rtol=1e-9)


@pytest.mark.parametrize("n", [2, 3, 30])
def test_a_gaussian_has_the_geometry_of_a_gaussian(n):
    numbers = latents.geometry(normal(40_000, n))
    assert set(latents.GEOMETRY) == set(numbers["embeddings"]) == set(numbers["normal"])
    for name, expected in numbers["normal"].items():
        close = {"atol": 0.005} if name == "cap_log10_share" else {"rtol": 0.02}
        np.testing.assert_allclose(numbers["embeddings"][name], expected, **close)


def test_the_geometry_of_a_gaussian_in_closed_form():
    """Norms by the chi law of scipy; cosines and the cap of n = 3, where heights are uniform."""
    for n in (2, 3, 128, 1000):
        law = scipy.stats.chi(n)
        found = latents.geometry(np.eye(2, n))["normal"]
        np.testing.assert_allclose(found["norm_spread"], law.std() / law.mean(), rtol=1e-6)
    np.testing.assert_allclose(found["norm_spread"], 1 / np.sqrt(2 * n), rtol=1e-3)
    np.testing.assert_allclose(found["abs_cosine_mean"], np.sqrt(2 / (np.pi * n)), rtol=1e-3)
    found = latents.geometry(np.eye(2, 3))["normal"]
    np.testing.assert_allclose(found["abs_cosine_mean"], 0.5)
    np.testing.assert_allclose(found["abs_cosine_spread"], 12**-0.5)
    np.testing.assert_allclose(found["cap_angle"], np.degrees(np.arccos(-0.9)))


@pytest.mark.parametrize("angle", [1e-6, 0.1, 1.0, 1.57, 1.58, 2.5, np.pi])
def test_the_share_of_a_cap_has_the_closed_forms_of_two_and_three_dimensions(angle):
    np.testing.assert_allclose(latents.log_cap_share(angle, 2), np.log(angle / np.pi), atol=1e-12)
    expected = np.log(np.sin(angle / 2) ** 2)
    np.testing.assert_allclose(latents.log_cap_share(angle, 3), expected, atol=1e-12)


@pytest.mark.parametrize(("angle", "n"), [(0.3, 128), (0.01, 1000), (0.8, 4000), (0.5, 10)])
def test_the_share_of_a_cap_does_not_underflow(angle, n):
    """By mpmath with 40 digits."""
    with mpmath.workdps(40):
        x = mpmath.sin(mpmath.mpf(angle)) ** 2
        share = mpmath.betainc(mpmath.mpf(n - 1) / 2, 0.5, 0, x, regularized=True) / 2
        expected = float(mpmath.log(share))
    assert (expected < -700) == (n > 200)
    np.testing.assert_allclose(latents.log_cap_share(angle, n), expected, rtol=1e-12)


def test_the_series_of_a_cap_meets_the_incomplete_beta_function():
    angles = np.linspace(0.0046, 0.0054, 9)  # around the share of 1e-290 in R^128
    ours = np.array([latents.log_cap_share(angle, 128) for angle in angles])
    shares = scipy.special.betainc(63.5, 0.5, np.sin(angles) ** 2)
    assert shares[0] < 1e-290 < shares[-1]
    np.testing.assert_allclose(ours, np.log(shares / 2), rtol=1e-12)


@pytest.mark.parametrize("x", [np.zeros((20, 5)), np.full((20, 5), 0.1), np.eye(2), -np.eye(2)])
def test_degenerate_latents_have_a_finite_geometry(x):
    numbers = latents.geometry(x)
    assert all(np.isfinite(v) for row in numbers.values() for v in row.values())
    assert all(type(v) is float for row in numbers.values() for v in row.values())


def test_groups_by_hand():
    x = np.array([[1.0, 3.0, 0.0, 0.0, 1.0, 2.0, 3.0, -2.0], [0.0] * 8])
    expected = np.array([2.0, 0.0, 1.0]) / np.sqrt(5)  # groups of 2, 2 and 4
    np.testing.assert_allclose(latents.groups(x), [expected, np.zeros(3)])
    x = np.concatenate([np.full(42, 3.0), np.full(42, 4.0), np.zeros(44)])[None]
    np.testing.assert_allclose(latents.groups(x.astype(np.float32)), [[0.6, 0.8, 0.0]])


def test_tsne_keeps_clusters_apart():
    labels = np.arange(150) % 2
    x = 10.0 * labels[:, None] + normal(150, 60)
    plane = latents.tsne(x)
    assert plane.shape == (150, 2)
    assert knn_accuracy(plane[:100], labels[:100], plane[100:], labels[100:]) == 1.0


@pytest.mark.parametrize(("count", "n"), [(2, 2), (3, 60), (10, 5), (40, 60)])
def test_tsne_of_few_points(count, n):
    assert np.isfinite(latents.tsne(normal(count, n))).all()
    np.testing.assert_array_equal(latents.tsne(np.full((count, n), 0.1)), np.zeros((count, 2)))


def test_spread_of_cosines_near_a_pole():
    """cos φ = 1 - tan²/2 there: float32 has three bits of its spread for angles of 1e-3."""
    tangents = np.random.default_rng(0).uniform(0, 1e-3, 500).astype(np.float32)
    x = np.stack([np.ones(500, np.float32), tangents], axis=1)
    spread = latents.diagnostics(x)[1]["cosine_spread"]
    np.testing.assert_allclose(spread, np.std(0.5 * tangents.astype(float) ** 2), rtol=1e-5)


# ---------------------------------------------------------------------------------- memorisation


def test_who_is_nearest_is_found_by_all_pairs():
    """Also far from the origin, where single precision is coarse."""
    train, test, rows = (normal(count, 4, seed) for seed, count in enumerate((500, 300, 700)))

    def shortest(x, y):
        return np.linalg.norm(x[:, None] - y[None], axis=2)

    expected = np.mean(shortest(rows, train).min(axis=1) < shortest(rows, test).min(axis=1))
    for far in (0.0, 300.0):
        found = share_nearest_to_training(rows + far, train + far, test + far)
        np.testing.assert_allclose(found, expected, atol=0.003)
    others = shortest(test[:260], test)
    others[np.arange(260), np.arange(260)] = np.inf
    expected = np.mean(shortest(test[:260], train).min(axis=1) < others.min(axis=1))
    found = share_nearest_to_training(test[:260], train, test, are_test=True)
    np.testing.assert_allclose(found, expected, atol=0.005)


def test_copies_are_nearest_to_what_they_copy_and_ties_count_half():
    train, test = normal(100, 4), normal(100, 4, 1)
    assert share_nearest_to_training(train[:40], train, test) == 1.0
    assert share_nearest_to_training(test[:40], train, test) == 0.0
    assert share_nearest_to_training(normal(40, 4, 2), train, train) == 0.5
    train, test, shared = normal(100, 64), normal(100, 64, 1), normal(50, 64, 2)
    both = np.concatenate([train, shared]), np.concatenate([test[:7], shared, test[7:]])
    assert share_nearest_to_training(shared, *both) == 0.5
