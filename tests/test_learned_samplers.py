"""Samplers that are trained: densities, bounds and weights against closed forms and float64."""

import importlib
import logging
from types import SimpleNamespace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import of_judgement, tiny_config
from scipy import stats

from configs import default
from hsjax import experiment, posteriors
from hsjax.methods.vqvae import Quantised
from hsjax.samplers import SAMPLERS, Sampler, networks
from hsjax.sampling import Sampling

codes, flow, ncp, two_stage = (
    importlib.import_module(f"hsjax.samplers.{name}")
    for name in ("codes", "flow", "ncp", "two_stage")
)
LEARNED = [name for name, sampler in SAMPLERS.items() if sampler.learned]
KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Networks that train in a second."""
    for module, width in ((two_stage, 32), (ncp, 64), (flow, 32), (codes, 32)):
        monkeypatch.setattr(module, "WIDTH", width)


def embeddings(count=60, n=6):
    rng = np.random.default_rng(0)
    return (rng.normal(size=(count, n)) @ rng.normal(size=(n, n)) + 1.0).astype(np.float32)


def quantised(rows):
    """Posteriors of codes, int32 [count, 2], with three values each."""
    mean = jnp.repeat(jnp.asarray(rows, jnp.float32), 3, axis=1)
    return Quantised(mean, mean, jnp.asarray(rows, jnp.int32))


def fitted(name, x, **options):
    options = {"fit_steps": 25, "key": KEY} | options
    if name == "codes":
        rows = np.random.default_rng(1).integers(0, 4, (len(x), 2))
        options |= {"posterior": quantised(rows), "variables": {"codebook": np.eye(4, 3)}}
    return SAMPLERS[name].fit(x, **options)


@pytest.mark.parametrize(
    "name",
    ["flow", *(pytest.param(x, marks=pytest.mark.slow) for x in ("two_stage", "ncp", "codes"))],
)
def test_a_fit_follows_its_key_and_may_be_kept(name):
    """Also of latents that are all equal; for a caller who forbids promotions."""
    said = []
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        first, second, other = (
            fitted(name, embeddings(), key=jax.random.key(seed), say=said.append)
            for seed in (0, 0, 1)
        )
        draw = jax.jit(SAMPLERS[name].sample, static_argnums=2)
        z = draw(first, KEY, 7)
        equal = draw(fitted(name, np.ones_like(embeddings())), KEY, 7)
    assert (z.shape, z.dtype) == ((7, 6), jnp.float32)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((first, z, equal)))
    np.testing.assert_array_equal(z, draw(jax.tree.map(np.asarray, second), KEY, 7))
    differ = [np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (first, other)), strict=True)]
    assert any(differ)
    assert isinstance(first, dict)
    assert all(isinstance(key, str) for key in first)
    assert any("step 5 of 25" in text for text in said)
    assert 0 < first["report"]["step"] <= 25


@pytest.mark.parametrize("name", LEARNED)
def test_too_few_latents_are_refused(name):
    with pytest.raises(ValueError, match="20 of them at least, got 19"):
        fitted(name, embeddings(19))


def test_the_held_out_tenth_is_never_trained_on_and_decides():
    """Targets of the two parts disagree: the best for what is held out is before any training."""
    trained, held_out = networks.split(posteriors.Point(jnp.arange(60.0)[:, None]), KEY)
    assert len(held_out.mean) == 6
    assert sorted(np.concatenate([trained.mean, held_out.mean])[:, 0]) == list(range(60))
    parts = posteriors.Point(jnp.ones((54, 1))), posteriors.Point(-jnp.ones((6, 1)))
    told = []
    best, found = networks.train(
        _towards, {"x": jnp.zeros(1)}, {}, parts, KEY, steps=4000, say=told.append, name="test"
    )
    assert found["step"] == 200  # the first look; the last is a quarter of the steps later
    assert len(told) == 2
    assert 0.0 < float(best["x"][0]) < 0.3


def _towards(parameters, constants, posterior, key):
    return jnp.mean((parameters["x"] - posterior.mean) ** 2)


def test_a_flow_integrates_to_one_and_is_its_own_inverse():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 2)) * [1.0, 0.3]
    x[:, 1] += 0.5 * x[:, 0] ** 2  # a banana
    parameters = SAMPLERS["flow"].fit(x.astype(np.float32), key=KEY, fit_steps=300)
    density = jax.jit(SAMPLERS["flow"].log_prob)
    side, step = np.linspace(-6, 7, 261, retstep=True)
    grid = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2).astype(np.float32)
    total = np.exp(np.asarray(density(parameters, grid), np.float64)).sum() * step**2
    np.testing.assert_allclose(total, 1.0, atol=5e-3)
    report = parameters["report"]
    assert report["held_out_nats"] > report["gaussian_nats"] + 0.1

    # Its samples come from N(0, I), and their density is that of the change of variables.
    given = parameters["couplings"], parameters["constants"]
    z = SAMPLERS["flow"].sample(parameters, KEY, 5)
    u, _ = flow.to_normal(*given, z)
    np.testing.assert_allclose(u, jax.random.normal(KEY, (5, 2)), atol=1e-4)
    jacobian = jax.vmap(jax.jacfwd(lambda z: flow.to_normal(*given, z[None])[0][0]))(z)
    expected = stats.norm.logpdf(np.asarray(u, np.float64)).sum(axis=1)
    expected += np.linalg.slogdet(np.asarray(jacobian, np.float64))[1]
    np.testing.assert_allclose(density(parameters, z), expected, rtol=1e-3, atol=1e-3)


def test_a_flow_begins_as_the_gaussian_of_the_latents():
    x = embeddings()
    parameters = SAMPLERS["flow"].fit(x, key=KEY, fit_steps=1)
    # In more than two dimensions an order is not its own inverse.
    z = SAMPLERS["flow"].sample(parameters, KEY, 5)
    u, _ = flow.to_normal(parameters["couplings"], parameters["constants"], z)
    np.testing.assert_allclose(u, jax.random.normal(KEY, (5, 6)), atol=1e-4)
    identities = flow.initial(KEY, 6)
    found = flow._log_prob(identities, parameters["constants"], jnp.asarray(x))
    wide = x.astype(np.float64)
    gaussian = stats.multivariate_normal(wide.mean(axis=0), np.cov(wide, rowvar=False))
    np.testing.assert_allclose(found, gaussian.logpdf(wide), rtol=1e-3)


def test_the_second_stages_bound_is_its_formula():
    n, count = 3, 5
    parameters = two_stage.initial(jax.random.key(3), n)
    z = np.random.default_rng(2).normal(size=(count, n)).astype(np.float32)
    found, gamma = two_stage.bound(parameters, jnp.asarray(z), KEY)
    wide = jax.tree.map(lambda x: np.asarray(x, np.float64), parameters)

    def network(name, x):
        h = x
        for i in range(3):
            layer = wide[name][str(i)]
            h = np.maximum(h @ layer["kernel"] + layer["bias"], 0.0)
        head = wide[f"{name}_head"]
        return np.concatenate([h, x], axis=1) @ head["kernel"] + head["bias"]

    mean, log_variance = np.split(network("encoder", z.astype(np.float64)), 2, axis=1)
    u = mean + np.exp(0.5 * log_variance) * np.asarray(jax.random.normal(KEY, (count, n)))
    gap = z - network("decoder", u)
    np.testing.assert_allclose(gamma**2, np.mean(gap**2), rtol=1e-5)
    gamma = np.mean(gap**2) ** 0.5  # where the bound is highest
    error = np.sum(gap**2 / (2 * gamma**2) + np.log(gamma) + 0.5 * np.log(2 * np.pi), axis=1)
    kld = 0.5 * np.sum(mean**2 + np.exp(log_variance) - log_variance - 1, axis=1)
    np.testing.assert_allclose(found, np.mean(error + kld), rtol=1e-5)


@pytest.mark.slow
def test_the_second_stage_finds_what_a_gaussian_does_not():
    """Two clusters; its samples lie in them, in the units of the latents."""
    rng = np.random.default_rng(0)
    x = 10.0 + 4.0 * rng.choice([-1.0, 1.0], (1500, 1)) * [1, 1] + 0.4 * rng.normal(size=(1500, 2))
    parameters = SAMPLERS["two_stage"].fit(x.astype(np.float32), key=KEY, fit_steps=1000)
    for name in ("two_stage", "two_stage_gmm"):
        z = np.asarray(SAMPLERS[name].sample(parameters, KEY, 500))
        np.testing.assert_allclose(z.mean(axis=0), 10.0, atol=0.7)
        assert np.mean(np.abs(np.abs(z - 10.0) - 4.0) < 1.5) > 0.7


def test_the_ratio_of_ncp_is_that_of_two_known_gaussians():
    """Of N(m, I) over N(0, I): z·m - ‖m‖²/2."""
    n, shift = 2, np.array([1.0, -0.5], np.float32)
    base = {"log_weights": np.zeros(1), "means": np.zeros((1, n)), "factors": np.eye(n)[None]}
    constants = {
        "base": jax.tree.map(jnp.float32, base | {"radius": 1.0}),
        "mean": jnp.zeros(n),
        "deviation": jnp.ones(n),
    }
    x = posteriors.Point(jax.random.normal(KEY, (20_000, n)) + shift)
    parts, start = networks.split(x, KEY), ncp.initial(jax.random.key(1), n)
    how = {"steps": 300, "say": networks.silent, "name": "ncp"}
    classifier, _ = networks.train(ncp.loss, start, constants, parts, KEY, **how)
    z = jax.random.normal(jax.random.key(5), (500, n)) + shift / 2
    exact = z @ shift - 0.5 * shift @ shift
    found = ncp.log_ratio(classifier, constants, z)
    assert np.abs(found - exact).mean() < 0.2
    # Resampled by it, the base is the other one.
    chosen = ncp.sample({"classifier": classifier, "constants": constants}, KEY, 3000)
    np.testing.assert_allclose(chosen.mean(axis=0), shift, atol=0.12)
    np.testing.assert_allclose(np.cov(chosen, rowvar=False), np.eye(n), atol=0.15)


@pytest.mark.slow
def test_effective_proposals_are_those_of_the_weights():
    x = np.concatenate([embeddings(), 30 + embeddings()])
    parameters = fitted("ncp", x, fit_steps=150)
    _, logits = ncp._proposals(parameters, jax.random.key(9), 400)
    assert logits.shape == (400, ncp.PROPOSALS)
    r = np.exp(np.asarray(logits, np.float64))
    expected = np.mean(r.sum(axis=1) ** 2 / np.sum(r**2, axis=1))
    found = parameters["report"]["effective_proposals"]
    np.testing.assert_allclose(found, expected, rtol=0.2)
    assert 1 <= found < 95


@pytest.mark.slow
def test_the_transformer_learns_how_tokens_hang_together():
    """The second token follows from the first: half the nats of independent tokens."""
    rng = np.random.default_rng(0)
    first = rng.integers(0, 4, 2000)
    rows = np.stack([first, (first + 1) % 4], axis=1)
    codebook = np.arange(12.0).reshape(4, 3).astype(np.float32)
    posterior = quantised(rows)
    parameters = SAMPLERS["codes"].fit(
        posterior.mean,
        posterior=posterior,
        variables={"codebook": codebook},
        key=KEY,
        fit_steps=300,
    )
    report = parameters["report"]
    np.testing.assert_allclose(report["independent_nats"], -2 * np.log(4), atol=0.02)
    np.testing.assert_allclose(report["held_out_nats"], -np.log(4), atol=0.1)
    z = np.asarray(SAMPLERS["codes"].sample(parameters, KEY, 300)).reshape(300, 2, 3)
    drawn = z[:, :, 0] / 3
    assert (z == codebook[drawn.astype(int)]).all()
    assert np.mean((drawn[:, 0] + 1) % 4 == drawn[:, 1]) > 0.9
    assert np.bincount(drawn[:, 0].astype(int), minlength=4).min() > 40


def test_a_token_does_not_see_itself_or_those_after_it():
    parameters = codes.initial(KEY, 5, 7)
    rows = np.random.default_rng(0).integers(0, 7, (3, 5)).astype(np.int32)
    found = codes.logits(parameters, jnp.asarray(rows))
    for i in range(5):
        other = rows.copy()
        other[:, i:] = (other[:, i:] + 1) % 7
        np.testing.assert_allclose(codes.logits(parameters, other)[:, : i + 1], found[:, : i + 1])
        if i < 4:
            assert np.abs(codes.logits(parameters, other)[:, i + 1 :] - found[:, i + 1 :]).min() > 0


def test_codes_need_tokens():
    with pytest.raises(ValueError, match="no codes, as those of vqvae"):
        SAMPLERS["codes"].fit(embeddings())


def counted(calls):
    """A sampler whose fit notes that it was called."""

    def fit(means, *, fit_steps, **_):
        calls.append(fit_steps)
        report = {"held_out_nats": 1.5, "step": fit_steps}
        return {"layer": {"kernel": jnp.asarray(means)}, "report": report}

    return Sampler(fit, None, learned="toy")


def test_a_fit_is_kept_until_something_it_depends_on_changes(tmp_path, caplog):
    calls = []
    given = {
        "posterior": posteriors.Point(np.ones((3, 2), np.float32)),
        "variables": {"codebook": np.ones(4)},
        "seed": 0,
        "fit_steps": 5,
    }

    def fit(step=6, **changed):
        found = SimpleNamespace(**given | changed)
        config = default.get_config()
        config.sample.fit_steps, config.seed = found.fit_steps, found.seed
        state = SimpleNamespace(step=step, variables=found.variables)
        toys = {"toy": counted(calls)}
        with mock.patch.dict(SAMPLERS, toys):
            return Sampling(
                config,
                None,
                state,
                lambda: found.posterior,
                {},
                batch_size=2,
                folder=tmp_path / "fits",
            ).fit("toy")

    first, again = fit(), fit()
    assert len(calls) == 1
    assert jax.tree.structure(first) == jax.tree.structure(again)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    for changed in (
        {"fit_steps": 6},
        {"seed": 1},
        {"posterior": posteriors.Point(np.zeros((3, 2), np.float32))},
        {"variables": {"codebook": np.zeros(4)}},
    ):
        before = len(calls)
        fit(**changed)
        fit(**changed)
        assert len(calls) == before + 1, changed
    files = sorted((tmp_path / "fits").iterdir())
    assert len(files) == 5
    assert {name.name.rpartition("-")[0] for name in files} == {"6-toy"}
    for file in files:
        file.write_bytes(file.read_bytes()[:-20])
    with caplog.at_level(logging.WARNING):
        jax.tree.map(np.testing.assert_array_equal, first, fit())
    assert "fitting toy again" in caplog.text
    before = len(calls)
    fit()
    assert len(calls) == before
    # A run that has gone on leaves none of its earlier fits behind.
    fit(step=12)
    (kept,) = (tmp_path / "fits").iterdir()
    assert kept.name.startswith("12-toy-")


@pytest.mark.slow
def test_an_evaluation_fits_keeps_and_reports(images_file, tmp_path):
    config = tiny_config(images_file)
    config.train.epochs = 1
    config.sample.sampler, config.sample.fit_steps = "flow", 3
    config.evaluate.samplers, config.evaluate.metrics = (), ("frechet",)
    config.evaluate.features = "random"
    first = experiment.train_and_evaluate(config, tmp_path)
    assert set(first["fits"]["flow"]) == {"held_out_nats", "gaussian_nats", "step"}
    with mock.patch.object(networks, "train", None):
        assert experiment.evaluate(tmp_path, of_judgement(config)) == first
