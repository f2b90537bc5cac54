"""Anomaly scores and their rates, against scikit-learn, loops in float64 and counting by hand."""

import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from hsjax.metrics import ood

# Few different values give many ties; others are as wild as float64 is.
TIED = st.lists(st.integers(-4, 4), min_size=1, max_size=60)
WILD = st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=30)
SCORES = st.one_of(st.tuples(TIED, TIED), st.tuples(WILD, WILD))


def counted(negative, positive, wanted=Fraction(19, 20)):
    """The false positive rate where the curve by exact fractions first reaches the wanted rate."""
    before = Fraction(0), Fraction(0)
    for threshold in sorted({*negative, *positive}, reverse=True):
        false, true = (
            Fraction(sum(x >= threshold for x in scores), len(scores))
            for scores in (negative, positive)
        )
        if true >= wanted:
            return before[0] + (wanted - before[1]) / (true - before[1]) * (false - before[0])
        before = false, true
    raise AssertionError("the curve ends at 1")


@settings(deadline=None)
@given(SCORES)
def test_rates_are_those_of_counting_by_hand(scores):
    inside, outside = scores
    found = ood.detection(inside, outside)
    pairs = [(a < b) + 0.5 * (a == b) for a in inside for b in outside]
    np.testing.assert_allclose(found["auroc"], np.mean(pairs), rtol=1e-12)
    np.testing.assert_allclose(
        found["fpr95_ood_positive"], float(counted(inside, outside)), rtol=1e-12, atol=1e-14
    )
    reverse = counted([-x for x in outside], [-x for x in inside])
    np.testing.assert_allclose(found["fpr95_in_positive"], float(reverse), rtol=1e-12, atol=1e-14)


@settings(deadline=None)
@given(SCORES)
def test_rates_are_scikit_learns(scores):
    inside, outside = (np.array(x, np.float64) for x in scores)
    found = ood.detection(inside, outside)
    both = np.concatenate([inside, outside])
    is_outside = np.repeat([0, 1], [len(inside), len(outside)])
    np.testing.assert_allclose(found["auroc"], roc_auc_score(is_outside, both), rtol=1e-12)
    for name, truth, sign in (("ood", is_outside, 1), ("in", 1 - is_outside, -1)):
        false, true, _ = roc_curve(truth, sign * both)
        theirs = np.interp(0.95, true, false)
        if 0.95 in true:  # on a whole level piece of the curve, of which ours is the first point
            theirs = false[true >= 0.95][0]
        ours = found[f"fpr95_{name}_positive"]
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-14)
    false, true = ood.roc(inside, outside)
    area = np.sum(np.diff(false) * (true[1:] + true[:-1]) / 2)
    np.testing.assert_allclose(area, found["auroc"], rtol=1e-12, atol=1e-14)
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)


def test_what_is_positive_is_what_the_name_says():
    """A tenth of the unusual images look more usual than all usual ones."""
    usual, unusual = np.arange(100.0), np.full(100, 200.0)
    unusual[:10] = -1.0
    found = ood.detection(usual, unusual)
    assert found["auroc"] == 0.9
    assert found["fpr95_in_positive"] == pytest.approx(0.1)  # these pass with 95 of the usual
    assert found["fpr95_ood_positive"] == 1.0  # to refuse them, all of the usual are refused
    # A tenth of the usual images look more unusual than all unusual ones: the other way round.
    usual[:10] = 300.0
    found = ood.detection(usual, unusual[10:])
    assert found["fpr95_in_positive"] == 1.0
    assert found["fpr95_ood_positive"] == pytest.approx(0.1)


def test_a_rate_between_two_thresholds_is_interpolated():
    """True rates of 0.5 and 1, false ones of 0.2 and 0.6: nine tenths of the way."""
    inside, outside = [3, 2, 2, 1, 1], [3, 2]
    assert ood.false_positive_rate(inside, outside) == pytest.approx(0.2 + 0.9 * 0.4)
    assert ood.false_positive_rate(inside, outside, 0.5) == pytest.approx(0.2)
    assert ood.false_positive_rate(inside, outside, 0.25) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("inside", "outside", "text"),
    [
        ([], [1.0], "one or more"),
        ([1.0], [[1.0]], r"got shape \(1, 1\)"),
        ([1.0, np.nan], [1.0], "1 of 2 scores are not finite"),
        ([1.0], [np.inf, -np.inf, 0.0], "2 of 3 scores are not finite"),
    ],
)
def test_scores_that_are_none_are_refused(inside, outside, text):
    for function in (ood.detection, ood.auroc, ood.roc, ood.false_positive_rate):
        with pytest.raises(ValueError, match=text):
            function(inside, outside)


def loop(bank, queries, k):
    """Mean distance to the k nearest, one distance at a time."""
    bank, queries = (np.asarray(x, np.float64) for x in (bank, queries))
    return [np.mean(sorted(np.sqrt(np.sum((q - b) ** 2)) for b in bank)[:k]) for q in queries]


@pytest.mark.parametrize("k", [1, 3, 40])
@pytest.mark.parametrize(("offset", "scale"), [(0.0, 1.0), (1e5, 1e-2), (0.0, 1e-20), (0.0, 1e18)])
def test_distances_are_those_of_a_loop(k, offset, scale):
    """Also of an island far from the origin, where products alone have no digit left."""
    rng = np.random.default_rng(0)
    bank, queries = (offset + scale * rng.normal(size=(count, 6)) for count in (40, 25))
    queries[:5] = bank[:5]
    found = ood.knn_distances(bank, queries, k)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, loop(bank, queries, k), rtol=1e-9)
    if k == 1:
        np.testing.assert_array_equal(found[:5], 0.0)  # copies, to the bit


def test_distances_of_copies_of_one_point():
    bank = np.full((30, 4), 0.3, np.float32)
    np.testing.assert_array_equal(ood.knn_distances(bank, bank[:3], 3), 0.0)


def test_distances_never_stand_in_memory_all_at_once():
    rng = np.random.default_rng(0)
    bank, queries = rng.normal(size=(20_000, 8)), rng.normal(size=(2000, 8))
    ood.knn_distances(bank[:50], queries[:50])  # what is imported
    tracemalloc.start()
    try:
        ood.knn_distances(bank, queries)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2000 * 20_000 * 8 / 10  # of the distances alone; of the differences, 80


def test_radii_deviate_to_both_sides():
    bank = np.array([[3.0, 4.0], [0.0, 7.0]])  # radii 5 and 7
    queries = np.array([[6.0, 0.0], [0.0, 2.0], [6.0, 8.0]], np.float32)
    np.testing.assert_allclose(ood.radius_deviations(bank, queries), [0.0, 4.0, 4.0])


def test_each_score_is_of_what_it_says():
    rng = np.random.default_rng(0)
    bank, means, errors = rng.normal(size=(30, 3)), rng.normal(size=(9, 3)), rng.random(9)
    found = {n: score(ood.Encoded(bank, means, errors)) for n, score in ood.SCORES.items()}
    np.testing.assert_allclose(found["knn"], loop(bank, means, 3))
    np.testing.assert_array_equal(found["radius"], ood.radius_deviations(bank, means))
    np.testing.assert_array_equal(found["error"], errors)
    two = ood.Encoded(bank[:2], means, errors)  # fewer than the usual neighbours
    np.testing.assert_allclose(ood.SCORES["knn"](two), loop(bank[:2], means, 2))


@pytest.mark.parametrize(
    ("bank", "queries", "k", "text"),
    [
        (np.zeros((2, 3)), np.zeros((4, 3)), 3, "neighbour 3 of 2 latents does not exist"),
        (np.zeros((2, 3)), np.zeros((4, 3)), 0, "neighbour 0 of 2"),
        (np.zeros((2, 3)), np.zeros((4, 1)), 1, "3 and 1 coordinates do not compare"),
        (np.full((2, 3), np.nan), np.zeros((4, 3)), 1, "2 of 2 rows of the bank hold a NaN"),
        (np.zeros((2, 3)), np.full((4, 3), np.inf), 1, "4 of 4 rows of the queries hold"),
        (np.zeros(3), np.zeros((4, 3)), 1, "the bank must be"),
    ],
)
def test_latents_that_do_not_compare_are_refused(bank, queries, k, text):
    with pytest.raises(ValueError, match=text):
        ood.knn_distances(bank, queries, k)
