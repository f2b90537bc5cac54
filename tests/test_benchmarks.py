"""The benchmarks compare ways to the same numbers, and say what they measured."""

import json

import jax
import numpy as np
import pytest

from benchmarks import measure, objective, overhead, scale
from hsjax import experiment, losses
from hsjax.config import UserError


@pytest.mark.parametrize("form", [measure.masked_statistics, measure.cumulative_statistics])
def test_every_form_gives_the_same_statistics(form):
    x = jax.random.normal(jax.random.key(0), (2, 9, 30))
    for a, b in zip(form(x, 1e-3), losses.batch_statistics(x, 1e-3), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_objective_rows(tmp_path):
    row = objective.measure(batch=8, n=6, rounds=2)
    assert row["over_ours"]["ours gradient"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert {"ours gradient", "autodiff gradient", "masked gradient"} < set(row["milliseconds"])
    measure.write(tmp_path / "a" / "o.json", [row])
    assert json.loads((tmp_path / "a" / "o.json").read_text())["rows"] == [row]


def test_overhead_measures_the_form_it_names():
    """The masked step holds an n x n product; ours does not."""
    for kind, has in (("standard", False), ("spherical", False), ("masked", True)):
        run, program = overhead.stepper(kind, 250, "float32", 4, 1)
        assert ("250,250" in program.as_text()) == has
        assert int(run().step) == 1


def test_latents_scaled_by_one_are_those_that_evaluate_judges(config, tmp_path):
    config.loss.kind, config.model.project = "standard", False
    numbers = experiment.train_and_evaluate(config, tmp_path / "run")
    rows = scale.measure(tmp_path / "run", count=5000)
    assert [row["scale"] for row in rows] == list(scale.SCALES)
    one = next(row for row in rows if row["scale"] == 1.0)
    np.testing.assert_allclose(one["mse_sum"], numbers["mse_sum"], rtol=1e-5)
    (network,) = numbers["generation"]
    np.testing.assert_allclose(one["reconstructions"], network["reconstructions_to_test"])
    assert len({row["projected_gmm"] for row in rows}) == len(rows)
    with pytest.raises(UserError, match="train it first"):
        scale.measure(tmp_path, count=5000)
