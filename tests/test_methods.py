"""Methods: each as its paper has it, and any of them through training, checkpoints and samples."""

import functools
import importlib
import inspect
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config

from hsjax import data, distances, experiment, losses, posteriors, samplers, training
from hsjax.checkpoints import Checkpoints
from hsjax.config import method_fields
from hsjax.configs import default
from hsjax.errors import UserError
from hsjax.inference import build_inference
from hsjax.methods import METHODS, Method
from hsjax.methods.base import normal, outputs_of_point

spherical = importlib.import_module("hsjax.methods.spherical")
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
    mean = images.reshape(-1, N) - 0.5
    return posteriors.Gaussian(mean, jnp.full_like(mean, -1.0))


IMAGES = np.random.default_rng(3).uniform(size=(7, 2, 3, 1)).astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def variables(method, hyper):
    """What a method has besides the networks, as training begins."""
    given = jax.random.key(2), N, hyper, jnp.asarray(IMAGES)
    return method.variables(*given) | method.statistics(*given)


def posterior_of(method, hyper, values):
    return method.posterior(values, hyper=hyper, variables=variables(method, hyper))


def terms(method, hyper, values):
    posterior = posterior_of(method, hyper, values)
    key, sample_key = jax.random.split(jax.random.key(1))
    context = {"key": key, "sample_key": sample_key, "params": PARAMS}
    context |= {"encode": encode, "decode": decode, "variables": variables(method, hyper)}
    z = posterior.sample(sample_key)
    return method.regulariser(hyper, posterior, z, reconstructions=decode(z), **context)


CHOICES = [(name, {}) for name in METHODS] + [
    ("svae", {"law": "power_spherical"}),
    ("swae", {"target": "uniform_sphere"}),
    ("wae", {"target": "uniform_sphere", "kernel": "rbf"}),
    ("spherical_swae", {"target": "von_mises_fisher"}),
    ("sphere_encoder", {"decay": True}),
    ("standard", {"decoder_variance": "learned"}),
]


@functools.partial(jax.jit, static_argnums=(0, 2, 3))
def draw(method, hyper, count=5, steps=3):
    context = {"hyper": hyper, "encode": encode, "decode": decode, "steps": steps}
    context["variables"] = variables(method, hyper)
    return method.prior(jax.random.key(0), count, N, **context)


@pytest.mark.parametrize(("name", "fields"), CHOICES)
def test_terms_are_finite_scalars_and_so_are_their_derivatives(name, fields):
    """Also of a batch whose rows are equal and of one of zeros."""
    method = METHODS[name]
    hyper = method.hyper(N, **fields)

    @jax.jit
    def everything(values):
        found = terms(method, hyper, values)
        gradient = jax.grad(lambda v: terms(method, hyper, v)["regulariser"])(values)
        posterior = posterior_of(method, hyper, values)
        latents = posterior.mean, posterior.sample(jax.random.key(0))
        return found, gradient, latents, draw(method, hyper)

    values = outputs(method)
    for batch in (values, jnp.ones_like(values), jnp.zeros_like(values)):
        found, gradient, latents, z = everything(batch)
        assert all(term.shape == () and np.isfinite(term) for term in found.values())
        assert np.isfinite(gradient).all()
        assert [x.shape for x in latents] == [(B, N), (B, N)]
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


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("sphere_ae", {}),
        ("svae", {}),
        ("svae", {"law": "power_spherical"}),
        ("swae", {"target": "uniform_sphere"}),
        ("wae", {"target": "uniform_sphere"}),
        ("spherical_swae", {}),
        ("spherical_swae", {"target": "von_mises_fisher", "kappa": 30.0}),
        ("sphere_encoder", {}),
    ],
)
def test_latents_and_new_ones_lie_on_the_sphere_of_radius_root_n(name, fields):
    method = METHODS[name]
    hyper = method.hyper(N, **fields)
    posterior = method.posterior(outputs(method), hyper=hyper)
    for z in (posterior.mean, posterior.sample(jax.random.key(0)), draw(method, hyper, 50)):
        np.testing.assert_allclose(np.linalg.norm(z, axis=1), N**0.5, rtol=1e-5)


def test_svae_has_n_plus_1_outputs_a_direction_and_kappa():
    method = METHODS["svae"]
    assert method.head(N) == N + 1
    values = outputs(method)
    for law, fields in (("VonMisesFisher", {}), ("PowerSpherical", {"law": "power_spherical"})):
        hyper = method.hyper(N, least_kappa=0.5, kappa_scale=2.0, **fields)
        posterior = method.posterior(values, hyper=hyper)
        assert type(posterior).__name__ == law
        units = values[:, :N] / np.linalg.norm(values[:, :N], axis=1, keepdims=True)
        np.testing.assert_allclose(posterior.mean, N**0.5 * units, rtol=1e-5)
        kappa = 0.5 + 2.0 * N * np.log1p(np.exp(np.asarray(values[:, N], np.float64)))
        np.testing.assert_allclose(posterior.kappa, kappa, rtol=1e-5)
        found = terms(method, hyper, values)
        np.testing.assert_allclose(found["regulariser"], np.mean(posterior.kl_to_uniform()), 1e-5)


def test_swae_compares_with_its_target_and_counts_the_distance_n_times():
    method, hyper = METHODS["swae"], METHODS["swae"].hyper(N, slices=400)
    z = np.asarray(outputs(method), np.float64)
    z = np.concatenate([z] * 50)
    for scale in (1.0, 3.0):  # W_2² of N(0, s²) and N(0, 1) is (s - 1)², in each of n coordinates
        rows = np.random.default_rng(1).normal(size=z.shape).astype(np.float32) * scale
        key = jax.random.key(0)
        found = jax.jit(method.regulariser)(hyper, None, rows, key=key)["regulariser"]
        np.testing.assert_allclose(found, N * (scale - 1) ** 2, rtol=0.1, atol=0.5)


def test_wae_is_the_mmd_of_its_kernel():
    method = METHODS["wae"]
    z, key = outputs(method), jax.random.key(3)
    target = normal(key, B, N)
    for fields, options in (
        ({}, {}),
        ({"scale": 2.0}, {"scales": (0.2, 0.4, 1.0, 2.0, 4.0, 10.0, 20.0)}),
        ({"kernel": "rbf"}, {"kernel": "rbf", "scales": (1.0,)}),
    ):
        found = method.regulariser(method.hyper(N, **fields), None, z, key=key)["regulariser"]
        wanted = distances.maximum_mean_discrepancy(z, target, **options)
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_an_island_is_nearer_to_its_own_samples():
    method = METHODS["spherical_swae"]
    island = method.hyper(N, target="von_mises_fisher", kappa=30.0)
    uniform = method.hyper(N)
    context = {"key": jax.random.key(1)}
    for own, other in ((island, uniform), (uniform, island)):
        distance = jax.jit(functools.partial(method.regulariser, own, None))
        near, far = (distance(draw(method, h, 100), **context)["regulariser"] for h in (own, other))
        assert far > 3 * near
    cosines = draw(method, island, 500).mean(axis=1)  # with (1, ..., 1), over √n twice
    wanted = posteriors.VonMisesFisher(jnp.eye(N)[0], jnp.float32(30.0)).mean_cosine()
    np.testing.assert_allclose(cosines.mean(), wanted, atol=0.01)


def test_noise_of_the_sphere_encoder_has_all_sizes_up_to_the_angle():
    """σ e has about the length of v, so V is turned by up to α; w by up to half of σ."""
    method, n, batch = METHODS["sphere_encoder"], 4000, 300
    values = np.random.default_rng(0).normal(size=(batch, n)).astype(np.float32)
    posterior = method.posterior(values, hyper=method.hyper(n, angle=60.0))
    near, far = posterior.both(jax.random.key(0))
    np.testing.assert_array_equal(near, posterior.sample(jax.random.key(0)))

    def tangents(z):
        cosine = np.sum(np.asarray(z, np.float64) * posterior.mean, axis=1) / n
        return np.tan(np.arccos(cosine))

    size = tangents(far) / np.tan(np.deg2rad(60.0))
    # Stratified: a tenth of the batch in each tenth, but for the noise's own length.
    counts, _ = np.histogram(size, np.arange(0.0, 0.85, 0.1))
    np.testing.assert_allclose(counts, batch / 10, atol=4)
    assert 0.9 < size.max() < 1.15
    share = tangents(near) / tangents(far)
    assert share.max() < 0.56  # where both angles are small, their ratio is right to a few %
    assert 0.2 < share.mean() < 0.3
    # Both are turned the same way.
    units = np.asarray(posterior.mean, np.float64) / n**0.5
    a, b = (z - np.sum(z * units, axis=1, keepdims=True) * units for z in (near, far))
    cosine = np.sum(a * b, axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert np.median(cosine) > 0.999


def test_the_sphere_encoder_is_consistent_in_pixels_and_in_latents():
    """Terms by hand; of the pixels, only what is decoded from V learns."""
    method = METHODS["sphere_encoder"]
    hyper = method.hyper(N, pixel_gain=2.0, latent_gain=0.3)
    values, key = outputs(method), jax.random.key(4)
    posterior = method.posterior(values, hyper=hyper)
    near, far = posterior.both(key)
    context = {"sample_key": key, "encode": encode, "decode": decode}
    found = method.regulariser(hyper, posterior, near, reconstructions=decode(near), **context)
    pixels = np.mean(np.sum((np.asarray(decode(near)) - decode(far)) ** 2, axis=(1, 2, 3)))
    codes = np.array(encode(decode(far)).mean)
    codes /= np.linalg.norm(codes, axis=1, keepdims=True)
    latents = 1.0 - np.mean(np.sum(codes * posterior.mean, axis=1)) / N**0.5
    np.testing.assert_allclose(found["pixels"], pixels, rtol=1e-5)
    np.testing.assert_allclose(found["latents"], latents, rtol=1e-4)
    np.testing.assert_allclose(found["regulariser"], 2.0 * pixels + 0.3 * 6 * latents, rtol=1e-5)

    def learning(reconstructions):
        terms = method.regulariser(
            hyper, posterior, near, reconstructions=reconstructions, **context
        )
        return terms["regulariser"]

    assert not jax.grad(learning)(decode(near)).any()


def test_the_sphere_encoder_samples_in_steps():
    """Each is the code of the image before, with noise; the last is for the caller to decode."""
    method = METHODS["sphere_encoder"]
    hyper, images = method.hyper(N, angle=0.0), []

    def seen(z, **_):
        images.append(z)
        return decode(z)

    for steps in (1, 2, 4):
        images.clear()
        context = {"hyper": hyper, "encode": encode, "decode": seen, "steps": steps}
        z = method.prior(jax.random.key(0), 50, N, **context)
        assert len(images) == steps - 1
        first = images[0] if images else z
        np.testing.assert_allclose(first, draw(method, hyper, 50, 1), rtol=1e-5)
        if images:  # without noise, z is the code of the last image
            code = np.array(encode(decode(images[-1])).mean)
            code *= N**0.5 / np.linalg.norm(code, axis=1, keepdims=True)
            np.testing.assert_allclose(z, code, rtol=1e-4, atol=1e-5)
    noisy = [draw(method, method.hyper(N, decay=decay), 50, 2) for decay in (False, True)]
    turned = [np.linalg.norm(z - draw(method, hyper, 50, 2), axis=1).mean() for z in noisy]
    assert turned[0] > turned[1] > 0.1


def numeric(name):
    """Fields that are numbers; what shapes the program is static."""
    hyper = METHODS[name].hyper(N)
    fields = getattr(hyper, "__dataclass_fields__", {}).values()
    static = {field.name for field in fields if field.metadata.get("static")}
    static |= {"classes", "class_stride"}  # of spherical, if there are any
    parameters = inspect.signature(METHODS[name].hyper).parameters
    return [
        field
        for field, p in parameters.items()
        if p.kind is p.KEYWORD_ONLY
        and not isinstance(p.default, str | bool)
        and field not in static
    ]


@pytest.mark.parametrize("name", ["standard", *filter(numeric, METHODS)])
def test_runs_that_differ_in_any_number_share_their_program(name, images_file):
    """One tracing of the step for the defaults and for a sweep over every numeric field."""
    config = tiny_config(images_file)
    config.method, config.model.stages = method_fields(name), (2,)
    setup, state = training.create(config, (6, 10, 1), 44)
    traced = []

    @jax.jit
    def step(objective, state, images):
        traced.append(1)
        return training.train_step(setup, objective, state, images)

    images = np.zeros((8, 6, 10, 1), np.uint8)
    fields = [(config.method, field, 0.5 if "target" in field else 2) for field in numeric(name)]
    for group, field, value in [(config.loss, "beta", 0.3), *fields]:
        group[field] = type(group[field])(value) if group[field] is not None else value
        step.lower(training.build_objective(config), state, images)
    assert len(traced) == 1


# A method that uses all there is: a learned shift of the posterior, pulled to the labels' mean.


def shift(key, n, hyper, images):
    assert images.shape[1:] == (6, 10, 1)
    return {"shift": jax.random.normal(key, (n,))}


def shifted(values, *, variables, **_):
    return posteriors.Point(values + variables["shift"])


def everything(
    hyper, posterior, z, *, key, variables, encode, decode, images, labels, params, **kept
):
    assert set(kept) - {"epoch"} == {"reconstructions", "sample_key"}
    again = encode(images)  # on running statistics
    return {
        "regulariser": jnp.mean((z - jnp.mean(labels.astype(jnp.float32))) ** 2),
        "pictures": jnp.mean(decode(again.mean)),
        "norm": jnp.sum(variables["shift"] ** 2),
        "noise": jax.random.uniform(key),
        "same": jnp.sum((params["method"]["shift"] - variables["shift"]) ** 2),
    }


STEPS = []


def around_the_shift(key, count, n, *, variables, steps, **_):
    STEPS.append(steps)
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
    config.train.epochs, config.model.stages = 1, (2,)
    config.sample.sampler, config.evaluate.samplers = "own", ()
    config.evaluate.metrics, config.evaluate.features = ("knn",), "none"
    with mock.patch.dict(METHODS, toy=TOY):
        config.method = method_fields("toy")
        config.sample.steps = 3
        numbers = experiment.train_and_evaluate(config, tmp_path)
        assert STEPS == [3]
        setup, initial = training.create(config, (6, 10, 1), 44)
        objective = training.build_objective(config)
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
        config.method, config.model.stages = method_fields("told"), (2,)
        setup, state = training.create(config, (6, 10, 1), 44)
        programs = training.compile_programs(setup, 44)
        objective = training.build_objective(config)
    for put in (jnp.asarray, np.asarray):
        examples = put(images), put(labels)
        copy = jax.tree.map(jnp.copy, state)
        after = training.train_epoch(programs, objective, copy, examples, scan=False)
        assert after.history["regulariser"].max() < 1e-3


def test_what_is_not_training_sees_the_statistics_from_before(images_file):
    """Whatever a step has encoded and decoded in between; no derivative goes through them."""
    config = tiny_config(images_file)
    setup, state = training.create(config, (6, 10, 1), 44)
    objective = training.build_objective(config)
    images = np.random.default_rng(0).uniform(size=(8, 6, 10, 1)).astype(np.float32)

    @jax.jit
    def outputs(images):
        model = setup.model(objective, state)
        z = model.encode(images).mean
        before = z, model.decode(z)
        model.decode(model.encode(images, train=True).mean, train=True)
        return before, (model.encode(images).mean, model.decode(z))

    for before, after in zip(*outputs(images), strict=True):
        np.testing.assert_array_equal(before, after)


def test_a_plain_autoencoder_is_its_error_alone(images_file):
    config = tiny_config(images_file)
    config.method = method_fields("autoencoder")
    setup, state = training.create(config, (6, 10, 1), 44)
    images = np.random.default_rng(0).integers(0, 256, (8, 6, 10, 1), dtype=np.uint8)
    step = jax.jit(training.train_step, static_argnums=0)
    history = step(setup, training.build_objective(config), state, images).history
    assert history["loss"][0] == history["mse"][0] > 0


def test_compression_by_class_is_trained_and_told(images_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(experiment, "_draw", lambda folder, *_: folder.mkdir())
    config = tiny_config(images_file)
    config.method.classes, config.method.class_stride = 3, 1
    config.train.epochs, config.model.stages = 1, (2,)
    config.evaluate.metrics, config.evaluate.features, config.evaluate.samplers = (), "none", ()
    numbers = experiment.train_and_evaluate(config, tmp_path / "run")
    assert numbers["terms"]["absent_classes"] == 0
    assert "note: a batch of 8 lacks 0.59 of the 3 classes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"classes": 2}, r"^method.classes is 2, and there are labels up to 2"),
        ({"classes": 5}, r"^method.classes is 5, and a batch has 8 images: raise train.batch_size"),
        ({"classes": 3, "labels": None}, r"^method.classes needs labels, and the data set has non"),
    ],
)
def test_data_that_compression_by_class_cannot_take_are_one_line(
    images_file, tmp_path, change, text
):
    config, dataset = tiny_config(images_file), data.load(str(images_file))
    config.method.classes, config.method.class_stride = change["classes"], 1
    config.model.latent_dim = 6
    if "labels" in change:
        dataset = dataset._replace(train_labels=None, test_labels=None)
    with pytest.raises(UserError, match=text):
        experiment.train_and_evaluate(config, tmp_path / "run", dataset=dataset)
    assert not (tmp_path / "run" / "config.json").exists()


def test_the_published_classes_have_the_follow_ups_weights():
    hyper = METHODS["spherical"].hyper(128, spec="published", classes=10, std_radius=0.001)
    assert (hyper.classes, hyper.stride) == (10, 10)
    plain = losses.published_spec(128, std_radius=0.001)
    weights = hyper.spec.mean_gain[0] / plain.mean_gain[0]
    np.testing.assert_allclose(weights, np.r_[100.0, np.ones(125), 0.0, 1.0])
    for epoch, first, others in ((1, 1, 1), (101, 1, 1), (102, 1.5, 1), (111, 1.5, 4)):
        gains = spherical.grown(hyper.spec, epoch).mean_gain
        growth = np.r_[first, np.full(126, others), 1.0]
        np.testing.assert_allclose(gains[0], growth * hyper.spec.mean_gain[0], rtol=1e-6)
        np.testing.assert_array_equal(gains[1], hyper.spec.mean_gain[1])
    posterior = posteriors.Gaussian(jnp.ones((40, 128)), jnp.zeros((40, 128)))
    labels = jnp.arange(40) % 10
    early, late = (
        METHODS["spherical"].regulariser(hyper, posterior, None, labels=labels, epoch=epoch)
        for epoch in (1, 300)
    )
    assert late["regulariser"] > early["regulariser"]
    config = default.get_config("published_classes")
    config.model.latent_dim, config.model.stages = 12, (2,)
    config.method.class_stride, config.method.std_angle_gain = 1, 1.0
    setup, state = training.create(config, (4, 4, 1), 400)
    images = np.zeros((40, 4, 4, 1), np.uint8)
    program, key = build_inference(setup, training.build_objective(config)), jax.random.key(0)
    embeddings = program.encode(state, images)
    early, late = (
        program.terms(state._replace(step=epoch * setup.steps), embeddings, key, images, labels)
        for epoch in (1, 300)
    )
    assert late["regulariser"] > early["regulariser"]
    with pytest.raises(ValueError, match="class_stride is 16: two of 10 classes would have one ax"):
        METHODS["spherical"].hyper(32, classes=10, class_stride=16)
    assert float(hyper.spec.mean_target[1, -1]) == pytest.approx(0.001 * 127.5**0.5)
