"""Methods: each as its paper has it, and any of them through training, checkpoints and samples."""

import inspect
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config

from hsjax import experiment, losses, posteriors, samplers, train
from hsjax.checkpoints import Checkpoints
from hsjax.config import method_fields
from hsjax.inference import build_inference
from hsjax.methods import METHODS, Method
from hsjax.methods.base import normal, outputs_of_point

B, N = 12, 6


def outputs(method, seed=0):
    """What an encoder might say."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=(B, method.head(N))), jnp.float32)


PARAMS = {
    "encoder": {"head": {"kernel": jnp.full((2, 3), 5.0)}},
    "decoder": {
        "blocks": {0: {"conv": {"kernel": jnp.full((3, 2), 2.0), "bias": jnp.full(2, 7.0)}}},
        "norm": {"scale": jnp.full(2, 3.0)},
        "head": {"kernel": jnp.ones((4, 1))},
    },
}


def decode(z, **_):
    """Some images: [batch, 2, 3, 1]."""
    return jax.nn.sigmoid(z.reshape(-1, 2, 3, 1))


def encode(images, **_):
    return posteriors.Point(images.reshape(-1, N) - 0.5)


def terms(method, hyper, values):
    posterior = method.posterior(values, hyper=hyper, variables={})
    key, sample_key = jax.random.split(jax.random.key(1))
    context = {"key": key, "sample_key": sample_key, "params": PARAMS}
    context |= {"encode": encode, "decode": decode}
    z = posterior.sample(sample_key)
    return method.regulariser(hyper, posterior, z, reconstructions=decode(z), **context)


@pytest.mark.parametrize("name", METHODS)
def test_terms_are_finite_scalars_and_so_are_their_derivatives(name):
    method = METHODS[name]
    values = outputs(method)
    found = terms(method, method.hyper(N), values)
    assert all(term.shape == () and np.isfinite(term) for term in found.values())
    gradient = jax.grad(lambda v: terms(method, method.hyper(N), v)["regulariser"])(values)
    assert np.isfinite(gradient).all()
    hyper = method.hyper(N)
    posterior = method.posterior(values, hyper=hyper, variables={})
    assert posterior.mean.shape == posterior.sample(jax.random.key(0)).shape == (B, N)
    z = method.prior(jax.random.key(0), 5, N, hyper=hyper, encode=encode, decode=decode, steps=3)
    assert (z.shape, z.dtype) == ((5, N), jnp.float32)


def test_sigma_is_the_root_of_the_variance_and_scales_the_noise():
    mean, variance = jnp.zeros((2, 3)), jnp.asarray([[0.25, 1.0, 9.0]] * 2)
    posterior = posteriors.gaussian(jnp.concatenate([mean, jnp.log(variance)], axis=1))
    np.testing.assert_allclose(posterior.std, [[0.5, 1.0, 3.0]] * 2, rtol=1e-6)
    key = jax.random.key(0)
    noise = jax.random.normal(key, (2, 3))
    np.testing.assert_allclose(posterior.sample(key), posterior.std * noise, rtol=1e-6)
    assert (posteriors.point(mean).sample(key) == mean).all()


def test_the_papers_methods_are_its_equations():
    """Terms against hsjax.losses, which has its own oracles."""
    values = outputs(METHODS["standard"])
    mean, log_variance = jnp.split(values, 2, axis=1)
    std = jnp.exp(0.5 * log_variance)
    kld = losses.gaussian_kl(mean, log_variance)
    spec = losses.paper_spec(N, compression="half", angle_gain=3.0)
    parts = losses.spherical_kl(mean, std, spec)
    for name, fields, expected in (
        ("standard", {}, kld),
        ("standard", {"spec": "published"}, kld / N),
        ("standard_projected", {}, kld),
        ("cartesian", {}, losses.cartesian_kl(mean, std)),
        ("spherical", {"compression": "half", "angle_gain": 3.0}, losses.total(parts, spec)),
    ):
        method = METHODS[name]
        found = terms(method, method.hyper(N, **fields), values)
        np.testing.assert_allclose(found["regulariser"], expected, rtol=1e-6)
    np.testing.assert_allclose([found[k] for k in parts._fields], parts, rtol=1e-6)
    assert [n for n, method in METHODS.items() if method.project] == ["standard_projected"]


def test_rae_is_half_the_squared_norm_and_the_decoders_kernels():
    z = np.asarray(outputs(METHODS["rae"]), np.float64)
    found = terms(
        METHODS["rae"], METHODS["rae"].hyper(N, decoder_weight=0.3), outputs(METHODS["rae"])
    )
    latents, decoder = 0.5 * np.mean(np.sum(z**2, axis=1)), 6 * 4.0 + 4.0
    np.testing.assert_allclose(found["latents"], latents, rtol=1e-6)
    np.testing.assert_allclose(found["decoder"], decoder, rtol=1e-6)
    np.testing.assert_allclose(found["regulariser"], latents + 0.3 * decoder, rtol=1e-6)


def test_spherical_codes_are_centred_and_of_norm_root_n():
    values = outputs(METHODS["sphere_ae"])
    for z in (
        METHODS["sphere_ae"].posterior(values).mean,
        METHODS["sphere_ae"].prior(jax.random.key(0), 50, N),
    ):
        np.testing.assert_allclose(np.sum(z, axis=1), 0.0, atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(z, axis=1), N**0.5, rtol=1e-5)
    expected = np.asarray(values, np.float64)
    expected -= expected.mean(axis=1, keepdims=True)
    expected *= N**0.5 / np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(METHODS["sphere_ae"].posterior(values).mean, expected, rtol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_runs_that_differ_in_any_number_share_their_program(name, images_file):
    """One tracing of the step for the defaults and for a sweep over every numeric field."""
    config = tiny_config(images_file)
    config.method = method_fields(name)
    setup, state = train.create(config, (6, 10, 1), 44)
    traced = []

    @jax.jit
    def step(objective, state, images):
        traced.append(1)
        return train.train_step(setup, objective, state, images)

    images = np.zeros((8, 6, 10, 1), np.uint8)
    numeric = [
        (config.method, field, 0.5 if "target" in field else 2)
        for field, p in inspect.signature(METHODS[name].hyper).parameters.items()
        if p.kind is p.KEYWORD_ONLY and not isinstance(p.default, str | bool) and field != "slices"
    ]
    for group, field, value in [(config.loss, "beta", 0.3), *numeric]:
        group[field] = type(group[field])(value) if group[field] is not None else value
        step.lower(train.build_objective(config), state, images)
    assert len(traced) == 1


# A method that uses all there is: a learned shift of the posterior, pulled to the labels' mean.


def shift(key, n, hyper, shape):
    assert shape == (6, 10, 1)
    return {"shift": jax.random.normal(key, (n,))}


def shifted(values, *, variables, **_):
    return posteriors.Point(values + variables["shift"])


def everything(
    hyper, posterior, z, *, key, variables, encode, decode, images, labels, params, **kept
):
    assert set(kept) == {"reconstructions", "sample_key"}
    again = encode(images)  # on running statistics
    return {
        "regulariser": jnp.mean((z - jnp.mean(labels.astype(jnp.float32))) ** 2),
        "pictures": jnp.mean(decode(again.mean)),
        "norm": jnp.sum(variables["shift"] ** 2),
        "noise": jax.random.uniform(key),
        "same": jnp.sum((params["method"]["shift"] - variables["shift"]) ** 2),
    }


def around_the_shift(key, count, n, *, variables, **_):
    return variables["shift"] + 1e-3 * normal(key, count, n)


TOY = Method(
    head=outputs_of_point,
    hyper=lambda n: (),
    posterior=shifted,
    regulariser=everything,
    prior=around_the_shift,
    variables=shift,
)


def test_a_method_of_ones_own_trains_learns_is_kept_and_samples(config, tmp_path):
    """Its variables are in Adam and in the checkpoint, its terms in the history and the report."""
    config.train.epochs = 1
    config.sample.sampler, config.evaluate.samplers = "own", ()
    config.evaluate.metrics, config.evaluate.features = ("knn",), "none"
    with mock.patch.dict(METHODS, toy=TOY):
        config.method = method_fields("toy")
        numbers = experiment.train_and_evaluate(config, tmp_path)
        setup, initial = train.create(config, (6, 10, 1), 44)
        objective = train.build_objective(config)
        assert set(initial.history) >= {"loss", "regulariser", "pictures", "norm", "noise", "same"}
        with Checkpoints(tmp_path / "checkpoints", 3) as checkpoints:
            state = checkpoints.restore(initial)
    before, after = (s.params["method"]["shift"] for s in (initial, state))
    assert np.abs(after - before).min() > 0
    assert set(numbers["terms"]) == {"pictures", "norm", "noise", "same"}
    np.testing.assert_allclose(numbers["terms"]["norm"], np.sum(after**2), rtol=1e-5)
    assert numbers["terms"]["same"] == 0.0
    assert "method/shift" in (tmp_path / "parameters.txt").read_text()
    prior = partial(build_inference(setup, objective).prior, state, steps=1)
    z = samplers.own.sample(samplers.own.fit(None, prior=prior), jax.random.key(0), 20)
    np.testing.assert_allclose(np.mean(z, axis=0), after, atol=1e-2)


def test_labels_are_those_of_the_batchs_images(config):
    """Every image is as bright as its label says, resident and streamed."""

    def told(hyper, posterior, z, *, images, labels, **_):
        brightness = 255.0 * images.mean(axis=(1, 2, 3))
        return {"regulariser": jnp.max(jnp.abs(brightness - labels))}

    labels = np.random.default_rng(0).permutation(44).astype(np.int32)
    images = np.broadcast_to(labels[:, None, None, None], (44, 6, 10, 1)).astype(np.uint8)
    with mock.patch.dict(METHODS, told=TOY._replace(regulariser=told)):
        config.method = method_fields("told")
        setup, state = train.create(config, (6, 10, 1), 44)
        programs = train.compile_programs(setup, 44)
        objective = train.build_objective(config)
    for put in (jnp.asarray, np.asarray):
        examples = put(images), put(labels)
        copy = jax.tree.map(jnp.copy, state)
        after = train.train_epoch(programs, objective, copy, examples, scan=False)
        assert after.history["regulariser"].max() < 1e-3


def test_a_plain_autoencoder_is_its_error_alone(images_file):
    config = tiny_config(images_file)
    config.method = method_fields("autoencoder")
    setup, state = train.create(config, (6, 10, 1), 44)
    images = np.random.default_rng(0).integers(0, 256, (8, 6, 10, 1), dtype=np.uint8)
    step = jax.jit(train.train_step, static_argnums=0)
    history = step(setup, train.build_objective(config), state, images).history
    assert history["loss"][0] == history["mse"][0] > 0
