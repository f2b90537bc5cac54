"""Figure 2's averages against numbers by hand; its picture is written and survives lost runs."""

import numpy as np
import pytest
from matplotlib.image import imread

from hsjax.tradeoff import average_seeds, tradeoff


def run(label, n, seed, mse, distances, **others):
    style = "solid" if label == "compressed" else "dashed"
    known = {"label": label, "style": style, "n": n, "seed": seed, "mse": mse}
    return known | {"distances": distances} | others


def test_seeds_are_averaged_and_points_are_in_order():
    rows = [
        run("compressed", 200, 0, 4.0, {"vmf": 30.0}),
        run("compressed", 50, 0, 6.0, {"vmf": 10.0}),
        run("compressed", 50, 1, 8.0, {"vmf": 16.0}),
        run("compressed", 50, 2, 1.0, {"prior": 1.0}),  # another sampler
        run("compressed", 50, 3, np.nan, {"vmf": 16.0}),
        run("standard", 50, 0, 2.0, {"vmf": np.inf}),
    ]
    curves = average_seeds(rows, "vmf", "n")
    assert list(curves) == ["compressed"]
    curve = curves["compressed"]
    np.testing.assert_array_equal(curve.along, [50, 200])
    np.testing.assert_allclose(curve.mse, [7.0, 4.0])
    np.testing.assert_allclose(curve.distance, [13.0, 30.0])
    np.testing.assert_allclose(curve.mse_spread, [2**0.5, 0.0])  # unbiased, none of one seed
    np.testing.assert_allclose(curve.distance_spread, [18**0.5, 0.0])


@pytest.mark.parametrize("case", ["missing", "one size", "strength", "lost"])
def test_tradeoff(tmp_path, case):
    """Distances of very different sizes, with bars that reach below zero."""
    sizes = (128,) if case in ("one size", "strength") else (50, 200, 1000)
    rows = [
        run(
            *(label, n, seed, 9 - n / 200 + seed),
            {"prior": n + 50.0 + seed, "vmf": (1 + 9 * seed) * (5.0 + n)},
            strength=s,
        )
        for label in ("standard", "compressed")
        for n in sizes
        for seed in (0, 1)
        for s in ((0.1, 1.0, 10.0) if case == "strength" else (1.0,))
    ]
    if case == "missing":
        for one in rows[:3]:
            del one["distances"]["prior"]
    if case == "lost":
        for one in rows:
            one["mse"] = np.nan
    join = "strength" if case == "strength" else "n"
    path = tmp_path / "new" / "x.png"
    tradeoff(path, rows, "digits", distance_name="FD[classifier-mnist]", join=join, useful=6.0)
    red, green, blue, _ = np.moveaxis(imread(path), -1, 0)
    coloured = np.maximum(abs(red - green), abs(green - blue)) > 0.1
    assert coloured.shape[1] == 1200
    assert coloured[:450].sum() > 200 or case == "lost"  # curves
    assert coloured[450:].sum() > 200  # the key, below them
