"""Persistence against spanning trees and shapes whose loops are known."""

import importlib.util

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial.distance import pdist, squareform

from configs import default
from hsjax import data, evaluation, report
from hsjax.errors import UserError
from hsjax.metrics.topology import READING, persistence, topology


def normal(count, n, seed=0):
    return np.random.default_rng(seed).normal(size=(count, n))


def circle(count, n=2):
    turn = 2 * np.pi * np.arange(count) / count
    return np.stack([np.cos(turn), np.sin(turn), *np.zeros((n - 2, count))], axis=1)


def of(points):
    return persistence(squareform(pdist(points)))


@pytest.mark.parametrize("n", [1, 3, 64])
def test_the_total_of_h0_is_the_length_of_the_minimum_spanning_tree(n):
    distances = squareform(pdist(normal(80, n)))
    expected = minimum_spanning_tree(distances).sum()
    np.testing.assert_allclose(persistence(distances)["h0_total"], expected, rtol=1e-6)


def test_a_circle_has_one_loop():
    """Born with the sides of a polygon of 60, it dies with those of an equilateral triangle."""
    found = of(circle(60))
    expected = np.sqrt(3.0) - 2.0 * np.sin(np.pi / 60)
    np.testing.assert_allclose(found["h1_longest"], expected, rtol=1e-6)
    np.testing.assert_allclose(found["h1_total"], expected, rtol=1e-6)
    np.testing.assert_allclose(found["h0_total"], 59 * 2.0 * np.sin(np.pi / 60), rtol=1e-6)


def test_two_circles_have_two_loops():
    found = of(np.concatenate([circle(60), 2.0 * circle(60) + [10.0, 0.0]]))
    side = np.sqrt(3.0) - 2.0 * np.sin(np.pi / 60)
    np.testing.assert_allclose(found["h1_longest"], 2.0 * side, rtol=1e-6)
    np.testing.assert_allclose(found["h1_total"], 3.0 * side, rtol=1e-6)


def test_points_on_a_line_have_no_loop():
    assert list(of(np.arange(9.0)[:, None] * [1.0, 2.0]).values())[1:] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("x", "angular"),
    [
        (normal(400, 3) * [1.0, 2.0, 4.0] - 5.0, False),
        (normal(400, 30) * np.linspace(1.0, 2.0, 30), False),
        # Projected, an even or a narrow one, which has the same moments again.
        (normal(400, 3), True),
        (normal(400, 30) + 20.0, True),
    ],
)
def test_a_gaussian_is_like_a_gaussian(x, angular):
    found = topology(x, size=100, angular=angular)
    assert found.pop("points") == 100
    assert found.keys() == READING.keys()
    assert abs(found["h0_total"]["ratio"] - 1.0) < 0.06
    assert abs(found["h1_longest"]["ratio"] - 1.0) < 0.5


def test_a_ring_and_clumps_are_told_from_a_gaussian():
    ring = topology(5.0 * circle(300, 10) + 0.3 * normal(300, 10))
    assert ring["points"] == 150
    assert ring["h1_longest"]["ratio"] > 2.0
    clumps = topology(10.0 * np.eye(10)[np.arange(300) % 5] + 0.1 * normal(300, 10))
    assert clumps["h0_total"]["ratio"] < 0.5


def test_the_numbers_are_means_and_spreads_over_subsamples_in_units_of_the_median():
    """By the same random numbers, with scipy's cosine distances and spanning trees."""
    x, generator = normal(60, 5) + 1.0, np.random.default_rng(3)
    units = x / np.linalg.norm(x, axis=1, keepdims=True)
    lengths = []
    for _ in range(4):
        some = generator.choice(units, 20, replace=False)
        generator.standard_normal((20, 5))
        angles = np.arccos(1.0 - pdist(some, "cosine"))
        lengths.append(minimum_spanning_tree(squareform(angles / np.median(angles))).sum())
    found = topology(x, 3, angular=True, subsamples=4, size=20)["h0_total"]
    np.testing.assert_allclose(found["mean"], np.mean(lengths), rtol=1e-6)
    np.testing.assert_allclose(found["spread"], np.std(lengths, ddof=1), rtol=1e-5)
    np.testing.assert_allclose(found["ratio"], found["mean"] / found["null_mean"])
    scaled = topology(7.0 * x, 3, angular=True, subsamples=4, size=20)["h0_total"]
    np.testing.assert_allclose(scaled["ratio"], found["ratio"], rtol=1e-6)
    moved = topology(7.0 * x + 3.0, size=20)["h1_total"]
    np.testing.assert_allclose(moved["ratio"], topology(x, size=20)["h1_total"]["ratio"], rtol=1e-6)


def test_where_a_gaussian_has_no_loop_there_is_no_ratio():
    found = topology(normal(4, 3))
    assert found["points"] == 2
    assert found["h1_total"]["ratio"] is found["h1_total"]["ratio_spread"] is None
    assert found["h0_total"]["ratio"] == 1.0  # the one distance is the unit
    line = report.topology({"embeddings": found})[-1].splitlines()[-1]
    assert line.split() == ["embeddings", "1.000", "±", "0.000", "-", "-"]


@given(
    arrays(np.float32, st.tuples(st.integers(4, 12), st.integers(2, 4)), elements=st.floats(-4, 4)),
    st.booleans(),
)
@settings(max_examples=30, deadline=None)
def test_any_latents_have_finite_numbers(x, angular):
    found = topology(np.asarray(x, np.float32), angular=angular)
    found.pop("points")
    values = [v for row in found.values() for v in row.values() if v is not None]
    assert np.isfinite(values).all()
    assert min(values) >= 0.0


def test_what_cannot_be_judged_is_refused():
    with pytest.raises(ValueError, match="needs 4 latents at least, got 3"):
        topology(normal(3, 5))
    with pytest.raises(ValueError, match="hold a NaN or an infinity"):
        topology(normal(9, 5) * np.nan)


def test_a_missing_package_is_one_line_before_the_evaluation(monkeypatch):
    config = default.get_config()
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "gudhi" else find(name)
    )
    evaluation.check(config, None)  # which doesn't ask for it
    config.evaluate.metrics = ("topology",)
    with pytest.raises(UserError, match=r"gudhi is not installed: .*'.\[topology\]'"):
        evaluation.check(config, None)


def test_too_few_images_are_one_line_before_the_training():
    config = default.get_config()
    config.evaluate.metrics = ("topology",)
    images = np.zeros((4, 6, 10, 1), np.uint8)
    evaluation.check(config, data.Dataset("four", images, None, images, None))
    with pytest.raises(UserError, match="needs 4 test images and samples, and there are 3"):
        evaluation.check(config, data.Dataset("three", images, None, images[:3], None))
    config.sample.count = 3
    with pytest.raises(UserError, match="needs 4 test images and samples, and there are 3"):
        evaluation.check(config, data.Dataset("four", images, None, images, None))
