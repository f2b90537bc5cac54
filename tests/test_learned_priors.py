"""Mixture, VampPrior, VQ-VAE and the learned variance: by scipy, float64 loops and by hand."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config
from scipy import stats
from scipy.special import logsumexp

from hsjax import experiment, posteriors, training
from hsjax.checkpoints import Checkpoints
from hsjax.config import method_fields
from hsjax.methods import METHODS

mixture, vampprior, vqvae = (
    importlib.import_module(f"hsjax.methods.{name}") for name in ("mixture", "vampprior", "vqvae")
)
KEY = jax.random.key(0)
B, N, K = 5, 3, 4


def values(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def log_density(z, log_weights, means, log_variances):
    """log Σ_k w_k N(z; means_k, diag exp(log_variances_k)), and the responsibilities."""
    joint = np.array(
        [
            w + stats.multivariate_normal(m, np.diag(np.exp(v))).logpdf(z)
            for w, m, v in zip(log_weights, means, log_variances, strict=True)
        ]
    ).T.reshape(len(z), -1)
    total = logsumexp(joint, axis=1)
    return total, np.exp(joint - total[:, None])


def kld_by_hand(mean, log_variance, z, *prior):
    mean, log_variance, z, *prior = (
        np.asarray(x, np.float64) for x in (mean, log_variance, z, *prior)
    )
    found, responsibilities = log_density(z, *prior)
    own = np.sum(stats.norm.logpdf(z, mean, np.exp(0.5 * log_variance)), axis=1)
    share = responsibilities.mean(axis=0)
    information = stats.entropy(share) - stats.entropy(responsibilities, axis=1).mean()
    return {
        "regulariser": np.mean(own - found),
        "effective_components": np.exp(information),
        "responsibility": responsibilities.max(axis=1).mean(),
    }


def bounded(x):
    return 4 * np.tanh((np.asarray(x, np.float64) + 2) / 4) - 2


def test_the_kld_from_a_mixture_is_of_joint_densities():
    """Not of densities per coordinate, which would be those of n mixtures."""
    method, hyper = METHODS["mixture"], METHODS["mixture"].hyper(N, components=K)
    variables = {
        "logits": values(K, seed=1),
        "means": 0.3 * values(K, N, seed=2),  # near enough for several to count
        "log_variances": values(K, N, seed=3),
    }
    outputs = values(B, 2 * N)
    posterior = method.posterior(outputs, hyper=hyper, variables=variables)
    np.testing.assert_allclose(posterior.log_variance, bounded(outputs[:, N:]), rtol=1e-5)
    z = posterior.sample(KEY)
    found = jax.jit(method.regulariser)(hyper, posterior, z, variables=variables)
    log_weights = np.log(np.exp(variables["logits"]) / np.exp(variables["logits"]).sum())
    prior = log_weights, variables["means"], bounded(variables["log_variances"])
    expected = kld_by_hand(*posterior, z, *prior)
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, err_msg=name)


def test_samples_of_a_mixture_are_of_its_components():
    method = METHODS["mixture"]
    variables = {
        "logits": np.log([0.25, 0.75]).astype(np.float32),
        "means": np.array([[-9.0, 0.0], [9.0, 0.0]], np.float32),
        "log_variances": np.array([[-4.0, 1.0], [1.0, -4.0]], np.float32),
    }
    z = np.asarray(method.prior(KEY, 20_000, 2, variables=variables))
    right = z[:, 0] > 0
    np.testing.assert_allclose(right.mean(), 0.75, atol=0.01)
    for part, means, log_variances in zip(
        (z[~right], z[right]), variables["means"], variables["log_variances"], strict=True
    ):
        np.testing.assert_allclose(part.mean(axis=0), means, atol=0.06)
        np.testing.assert_allclose(part.std(axis=0), np.exp(bounded(log_variances) / 2), rtol=0.05)


def test_log_variances_keep_a_gradient_beyond_their_bounds():
    x = jnp.array([-30.0, -6.0, -2.0, 2.0, 12.0])
    found, gradient = jax.vmap(jax.value_and_grad(mixture.bounded))(x)
    np.testing.assert_allclose(found, bounded(x), rtol=1e-5)
    assert (np.abs(np.asarray(found) + 2) <= 4).all()
    assert (gradient >= 0).all()
    assert (gradient[1:] > 0).all()
    np.testing.assert_allclose(gradient[2], 1.0)


@pytest.mark.parametrize(
    ("means", "components", "responsibility", "said"),
    [
        (np.zeros((4, 1)), 1.0, 0.25, ["4 components count like 1.0"]),  # all alike
        ([[0.0], [900.0], [900.0], [900.0]], 1.0, 1.0, ["count like 1.0"]),  # all but one dead
        ([[-50.0], [0.0], [50.0], [100.0]], 4.0, 1.0, ["one-hot"]),
        ([[-50.0], [0.0], [900.0], [900.0]], 2.0, 1.0, ["one-hot"]),
    ],
)
def test_dead_components_and_one_hot_responsibilities_are_said(
    means, components, responsibility, said
):
    prior = mixture.Mixture(
        jnp.full(4, -np.log(4.0)), jnp.asarray(means, jnp.float32), jnp.zeros((4, 1))
    )
    alive = [m for m in np.ravel(means) if m < 900] if components > 1 else [0.0]
    z = jnp.asarray(np.repeat(alive, 3)[:, None], jnp.float32)
    terms = mixture.kld(prior, posteriors.Gaussian(z, jnp.zeros_like(z)), z)
    np.testing.assert_allclose(terms["effective_components"], components, rtol=1e-4)
    np.testing.assert_allclose(terms["responsibility"], responsibility, rtol=1e-4)
    notes = mixture.notes(mixture.hyper(1, components=4), jax.tree.map(float, terms))
    assert len(notes) == len(said)
    assert all(part in note for part, note in zip(said, notes, strict=True))


def test_the_vampprior_is_the_mean_of_its_pseudo_inputs_posteriors():
    method = METHODS["vampprior"]
    hyper = method.hyper(N, components=K)
    images = np.random.default_rng(2).uniform(size=(9, 1, N, 1)).astype(np.float32)
    variables = jax.jit(method.variables, static_argnums=1)(KEY, N, hyper, images)
    u = np.asarray(variables["pseudo_inputs"])
    assert {x.tobytes() for x in u} <= {x.tobytes() for x in images}
    assert len({x.tobytes() for x in u}) == K
    u = u - 0.3  # some pixels are negative now, and are cut off
    weight = values(N, 2 * N, seed=4)

    def encode(images, **given):
        assert not given  # with running statistics
        outputs = jnp.reshape(images, (-1, N)) @ weight
        return method.posterior(outputs, hyper=hyper, variables={})

    posterior = method.posterior(values(B, 2 * N), hyper=hyper, variables={})
    z = posterior.sample(KEY)

    def regulariser(u):
        context = {"variables": {"pseudo_inputs": u}, "encode": encode}
        return method.regulariser(hyper, posterior, z, **context)

    found = jax.jit(regulariser)(u)
    outputs = np.clip(u, 0, 1).reshape(K, N).astype(np.float64) @ weight
    prior = np.full(K, -np.log(K)), outputs[:, :N], bounded(outputs[:, N:])
    for name, value in kld_by_hand(*posterior, z, *prior).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, err_msg=name)
    gradient = jax.jit(jax.grad(lambda u: regulariser(u)["regulariser"]))(u)
    assert (gradient != 0).all()  # of pixels that are cut off, too
    z = vampprior.prior(KEY, 4000, N, variables={"pseudo_inputs": u}, encode=encode)
    np.testing.assert_allclose(z.mean(axis=0), prior[1].mean(axis=0), atol=0.15)


def test_few_images_begin_several_pseudo_inputs():
    images = np.random.default_rng(2).uniform(size=(3, 1, 2, 1)).astype(np.float32)
    hyper = METHODS["vampprior"].hyper(N, components=7)
    found = vampprior.variables(KEY, N, hyper, jnp.asarray(images))["pseudo_inputs"]
    counts = [sum((x == image).all() for x in found) for image in images]
    assert sorted(counts) == [2, 2, 3]


@pytest.mark.parametrize(
    ("n", "token_size", "expected"), [(128, 8, 8), (200, 8, 8), (50, 8, 5), (11, 8, 1), (6, 100, 6)]
)
def test_tokens_divide_the_latent(n, token_size, expected):
    assert vqvae.hyper(n, token_size=token_size).token_size == expected


def codebook_and_outputs():
    method, hyper = METHODS["vqvae"], METHODS["vqvae"].hyper(6, codes=5, token_size=2)
    kept = {"codebook": values(5, 2, seed=1), "sums": values(5, 2, seed=2)}
    kept["uses"] = np.random.default_rng(3).uniform(1.0, 3.0, (3, 5)).astype(np.float32)
    return method, hyper, kept, values(B, 6)


def test_tokens_become_their_nearest_codes_and_gradients_go_straight_through():
    method, hyper, kept, outputs = codebook_and_outputs()
    posterior = method.posterior(outputs, hyper=hyper, variables=kept)
    for i in range(B):
        for j in range(3):
            token = outputs[i, 2 * j : 2 * j + 2].astype(np.float64)
            distances = [np.sum((token - code) ** 2) for code in kept["codebook"]]
            assert posterior.codes[i, j] == np.argmin(distances)
            nearest = kept["codebook"][np.argmin(distances)]
            np.testing.assert_allclose(posterior.mean[i, 2 * j : 2 * j + 2], nearest, rtol=1e-5)
    weights = values(B, 6, seed=8)
    gradient = jax.grad(
        lambda x: jnp.sum(weights * method.posterior(x, hyper=hyper, variables=kept).sample(KEY))
    )(outputs)
    np.testing.assert_array_equal(gradient, weights)
    found = method.regulariser(hyper, posterior, posterior.mean, variables=kept)
    gap = outputs - np.asarray(posterior.mean, np.float64)
    np.testing.assert_allclose(found["regulariser"], np.mean(np.sum(gap**2, axis=1)), rtol=1e-5)
    share = np.bincount(np.ravel(posterior.codes), minlength=5) / (3 * B)
    np.testing.assert_allclose(found["perplexity"], np.exp(stats.entropy(share)), rtol=1e-5)


def test_the_codebook_follows_by_a_running_average_over_three_steps():
    method, hyper, kept, _ = codebook_and_outputs()
    sums, uses, codebook = (kept[name].astype(np.float64) for name in ("sums", "uses", "codebook"))
    for step in range(3):
        outputs = values(B, 6, seed=20 + step)
        posterior = method.posterior(outputs, hyper=hyper, variables=kept)
        kept = method.update(hyper, posterior, posterior.mean, variables=kept, key=KEY)
        tokens = outputs.reshape(B, 3, 2).astype(np.float64)
        hits, pulls = np.zeros((3, 5)), np.zeros((5, 2))
        for i in range(B):
            for j in range(3):
                k = np.argmin(np.sum((codebook - tokens[i, j]) ** 2, axis=1))
                hits[j, k] += 1
                pulls[k] += tokens[i, j]
        uses, sums = 0.99 * uses + 0.01 * hits, 0.99 * sums + 0.01 * pulls
        codebook = sums / uses.sum(axis=0)[:, None]
        for name, expected in (("uses", uses), ("sums", sums), ("codebook", codebook)):
            np.testing.assert_allclose(kept[name], expected, rtol=1e-4, err_msg=name)
    with jax.enable_x64(True):
        kept = method.update(hyper, posterior, posterior.mean, variables=kept, key=KEY)
    assert {x.dtype.name for x in jax.tree.leaves(kept)} == {"float32"}


def test_codes_that_nobody_uses_begin_anew_at_tokens_of_the_batch():
    method, hyper, kept, outputs = codebook_and_outputs()
    kept["uses"][:, 2] = 1e-3
    posterior = method.posterior(outputs, hyper=hyper, variables=kept)
    told = method.regulariser(hyper, posterior, posterior.mean, variables=kept)
    assert told["dead_codes"] == 1
    tokens = outputs.reshape(-1, 2)
    after = method.update(hyper, posterior, posterior.mean, variables=kept, key=KEY)
    nearest = [np.abs(tokens - code).max(axis=1).min() for code in np.asarray(after["codebook"])]
    assert nearest[2] < 1e-6
    assert min(nearest[:2] + nearest[3:]) > 1e-4
    np.testing.assert_allclose(after["uses"][:, 2].sum(), len(tokens) / 5, rtol=1e-5)
    # In the first step, all of them.
    kept = method.statistics(KEY, 6, hyper, None)
    posterior = method.posterior(outputs, hyper=hyper, variables=kept)
    after = method.update(hyper, posterior, posterior.mean, variables=kept, key=KEY)
    for code in np.asarray(after["codebook"]):
        assert np.abs(tokens - code).max(axis=1).min() < 1e-6


def test_new_codes_are_drawn_as_often_as_each_token_uses_them():
    method, hyper, kept, _ = codebook_and_outputs()
    z = np.asarray(method.prior(KEY, 20_000, 6, hyper=hyper, variables=kept)).reshape(-1, 3, 2)
    for j, uses in enumerate(kept["uses"]):
        for k, code in enumerate(kept["codebook"]):
            share = np.mean((z[:, j] == code).all(axis=1))
            np.testing.assert_allclose(share, uses[k] / uses.sum(), atol=0.015)


def test_a_collapsed_codebook_is_said():
    hyper = vqvae.hyper(6, codes=100)
    assert vqvae.notes(hyper, {"perplexity": 60.0, "dead_codes": 3.0}) == []
    (note,) = vqvae.notes(hyper, {"perplexity": 2.0, "dead_codes": 0.0})
    assert "collapsed: its 100 codes are used like 2.0" in note
    (note,) = vqvae.notes(hyper, {"perplexity": 60.0, "dead_codes": 40.0})
    assert "40 of the 100 codes are dead" in note


def test_the_decoders_variance_is_the_running_mean_error_of_a_value():
    method = METHODS["standard"]
    hyper = method.hyper(N, decoder_variance="learned")
    posterior = posteriors.gaussian(jnp.asarray(values(B, 2 * N)))
    kld = METHODS["standard"].regulariser(method.hyper(N), posterior, None)["regulariser"]
    kept, average, weight = method.statistics(KEY, N, hyper, None), 0.0, 0.0
    for step in range(4):
        found = method.regulariser(hyper, posterior, None, variables=kept)
        variance = average / weight if step else 1.0
        np.testing.assert_allclose(found["decoder_variance"], variance, rtol=1e-5)
        np.testing.assert_allclose(found["regulariser"], 2 * variance * kld, rtol=1e-5)
        images, others = (values(B, 2, 2, 1, seed=10 * step + i) for i in range(2))
        context = {"variables": kept, "images": images, "reconstructions": others}
        kept = method.update(hyper, posterior, None, **context)
        average = 0.99 * average + 0.01 * np.mean((images - others) ** 2, dtype=np.float64)
        weight = 0.99 * weight + 0.01
    assert method.statistics(KEY, N, method.hyper(N), None) == {}


@pytest.mark.parametrize("name", ["vqvae", pytest.param("standard", marks=pytest.mark.slow)])
def test_statistics_are_trained_kept_and_restored(name, images_file, tmp_path):
    """In steps, in the checkpoint, and in what is said at the end."""
    config = tiny_config(images_file)
    config.method = method_fields(name)
    if name == "standard":
        config.method.decoder_variance = "learned"
    else:
        config.method.codes = 9
    config.loss.annealing = "none"
    config.train.epochs, config.sample.sampler = 1, "own"
    config.evaluate.samplers, config.evaluate.features = (), "none"
    config.evaluate.metrics = ("knn",)
    numbers = experiment.train_and_evaluate(config, tmp_path)
    _, initial = training.create(config, (6, 10, 1), 44)
    with Checkpoints(tmp_path / "checkpoints", 3) as checkpoints:
        state = checkpoints.restore(initial)
    before, after = (x.batch_stats["method"] for x in (initial, state))
    assert all(np.any(before[key] != after[key]) for key in before)
    assert state.variables == after
    if name == "standard":
        found = float(after["decoder_variance"] / after["weight"])
        np.testing.assert_allclose(numbers["terms"]["decoder_variance"], found, rtol=1e-5)
    else:
        assert 1.0 <= numbers["terms"]["perplexity"] <= 9.0
        assert {"perplexity", "dead_codes"} <= set(state.history)


def test_a_methods_first_variables_see_training_images(images_file):
    config = tiny_config(images_file)
    config.method = method_fields("vampprior")
    config.method.components = 10
    run = experiment._open(config, images_file.parent / "nowhere", None)
    state = experiment._initial(run)
    found = np.rint(255 * np.asarray(state.params["method"]["pseudo_inputs"])).astype(np.uint8)
    known = {image.tobytes() for image in run.dataset.train_images}
    assert {image.tobytes() for image in found} <= known
    assert len({image.tobytes() for image in found}) == 10
