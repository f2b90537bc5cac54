"""The step and the epoch: the right loss, every batch, the same numbers either way."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import tiny_config
from flax import nnx

from hsjax import data, losses, posteriors, training
from hsjax.config import method_fields
from hsjax.errors import UserError
from hsjax.methods import METHODS

# The same step; their terms are tested in test_methods.py.
OTHERS = ("standard", "cartesian", "published")


def start(config):
    dataset = data.load(config.data.name)
    images = jnp.asarray(dataset.train_images)
    setup, state = training.create(config, images.shape[1:], len(images))
    return setup, state, (images, jnp.asarray(dataset.train_labels))


def run_epochs(config, epochs, scan):
    config.model.stages = (2,)  # which compiles sooner
    setup, state, examples = start(config)
    programs = training.compile_programs(setup, 44)
    objective = training.build_objective(config)
    for _ in range(epochs):
        state = training.train_epoch(programs, objective, state, examples, scan=scan)
    return state


@pytest.mark.slow
def test_a_callers_settings_of_numbers_leave_a_run_alone(config):
    """64 bits where nothing is said, promotion refused, NumPy's errors raised."""
    config.data.flip = True
    expected = run_epochs(config, 1, scan=False)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"), np.errstate(all="raise"):
        state = run_epochs(config, 1, scan=False)
    for ours, plain in zip(*map(jax.tree.leaves, (state, expected)), strict=True):
        assert ours.dtype == plain.dtype
    # Not all parameters: a bias before a BatchNorm follows rounding alone.
    for name, row in expected.history.items():
        np.testing.assert_allclose(state.history[name], row, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "kind", ["paper", *(pytest.param(x, marks=pytest.mark.slow) for x in OTHERS)]
)
def test_a_step_follows_the_gradient_of_equation_2_or_6(config, kind):
    """Loss, terms and parameters after one step, against the loss written out here."""
    config.method = method_fields(kind if kind in ("standard", "cartesian") else "spherical")
    if kind == "published":
        config.method.spec = "published"
    config.loss.beta = 0.7
    setup, state, (images, _) = start(config)
    batch, objective = images[:8], training.build_objective(config)
    after = jax.jit(lambda s: training.train_step(setup, objective, s, batch))(state)

    keys = jax.random.split(jax.random.wrap_key_data(state.key))
    _, noise_key = jax.random.split(jax.random.fold_in(keys[0], 0))
    beta = 0.7 * (1 / 4) ** 0.5  # first of four epochs of annealing

    def loss_of(params):
        networks = nnx.merge(setup.graph, params, state.batch_stats)
        x = batch / 255.0
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))  # 6x10 to 8x12
        latent = posteriors.Gaussian(*jnp.split(networks.encode(padded, train=True), 2, axis=1))
        z = latent.mean + latent.std * jax.random.normal(noise_key, (8, 4))
        output = networks.decode(z, train=True)
        mse = jnp.sum((x - output[:, 1:-1, 1:-1]) ** 2) / 8
        if kind == "standard":
            kl = losses.gaussian_kl(latent.mean, latent.log_variance)
        elif kind == "cartesian":
            kl = losses.cartesian_kl(latent.mean, latent.std)
        else:
            spec = (losses.paper_spec if kind == "paper" else losses.published_spec)(4)
            kl = losses.total(losses.spherical_kl(latent.mean, latent.std, spec), spec)
        return mse + beta * kl, (mse, kl)

    (loss, (mse, kl)), gradients = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(state.params)
    history = {name: float(row[0]) for name, row in after.history.items()}
    for name, value in (("loss", loss), ("mse", mse), ("regulariser", kl), ("beta", beta)):
        np.testing.assert_allclose(history[name], value, rtol=1e-4)
    if config.method.name == "spherical":
        assert set(losses.SphericalTerms._fields) < set(history)
    optimizer = optax.adam(config.train.learning_rate)
    updates, _ = optimizer.update(gradients, optimizer.init(state.params))
    expected = optax.apply_updates(state.params, updates)
    # Adam's first step is the gradient's sign. A bias before a BatchNorm has none but rounding's.
    largest = max(np.abs(g).max() for g in jax.tree.leaves(gradients))
    moved = zip(*map(jax.tree.leaves, (gradients, after.params, expected)), strict=True)
    for gradient, a, b in moved:
        clear = np.abs(gradient) > 1e-4 * largest
        np.testing.assert_allclose(a[clear], b[clear], rtol=1e-4, atol=2e-6)
    assert int(after.step) == 1


def test_every_field_of_the_loss_reaches_the_objective(config):
    method = config.method
    config.loss.beta, config.loss.annealing_epochs = 0.3, 7
    method.compression, method.compressed_angles = "half", 2
    method.angle_gain, method.radius_gain, method.eps, method.variance_eps = 2.0, 3.0, 0.01, 0.02
    made = training.build_objective(config)
    assert (made.beta, made.annealing_epochs) == (np.float32(0.3), 7)
    diagonal = 1 / np.sqrt([4, 3, 2])
    np.testing.assert_allclose(made.hyper.mean_target[0], [*diagonal[:2], 0, 2], rtol=1e-6)
    np.testing.assert_allclose(made.hyper.spread_target[0], [*diagonal, 0], rtol=1e-6)
    assert made.hyper.term_gains == (2.0, 3.0, 2.0, 3.0)
    np.testing.assert_allclose((made.hyper.eps, made.hyper.variance_eps), (0.01, 0.02), rtol=1e-6)
    method.mean_target, method.spread_target = 0.25, 0.1
    made = training.build_objective(config)
    np.testing.assert_allclose(made.hyper.mean_target[0], [0.25, 0.25, 0, 2], rtol=1e-6)
    np.testing.assert_allclose(made.hyper.spread_target[0], [0.1, 0.1, diagonal[2], 0], rtol=1e-6)
    method.spec, method.std_radius, method.std_angle_gain = "published", 0.5, 9.0
    made = training.build_objective(config)
    radii = [3.5**0.5, 0.5 * 3.5**0.5]
    np.testing.assert_allclose(made.hyper.mean_target[:, -1], radii, rtol=1e-6)
    assert made.hyper.term_gains.std_angles == 9.0


def test_scan_and_steps_give_the_same_numbers(config):
    by_scan, by_steps = (run_epochs(config, 2, scan) for scan in (True, False))
    assert int(by_scan.step) == int(by_steps.step) == 12
    for name, row in by_scan.history.items():
        np.testing.assert_allclose(row, by_steps.history[name], rtol=1e-3)
    setup, _, (images, _) = start(config)
    objective = training.build_objective(config)
    encode = jax.jit(lambda state: setup.model(objective, state).encode(images[:8] / 255.0).mean)
    np.testing.assert_allclose(encode(by_scan), encode(by_steps), rtol=1e-2, atol=1e-3)


def test_the_same_seed_gives_the_same_numbers_and_another_does_not(config):
    first, again = (run_epochs(config, 1, False) for _ in range(2))
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
    config.seed = 1
    other = run_epochs(config, 1, False)
    assert not np.array_equal(first.history["loss"], other.history["loss"])


def test_an_epoch_shows_every_image_and_the_next_another_order(config):
    setup, state, _ = start(config)
    programs = training.compile_programs(setup, 44)
    orders = [
        np.asarray(programs.order(state._replace(step=jnp.int32(step)))) for step in (0, 3, 6)
    ]
    assert orders[0].shape == (6, 8)
    assert set(orders[0].ravel()) == set(range(44))
    np.testing.assert_array_equal(orders[0], orders[1])  # the same epoch, resumed
    assert not np.array_equal(orders[0], orders[2])


def test_an_epoch_compiles_once(config):
    setup, state, examples = start(config)
    programs, objective = training.compile_programs(setup, 44), training.build_objective(config)
    for _ in range(3):
        state = training.train_epoch(programs, objective, state, examples, scan=False)
    assert programs.step._cache_size() == 1


def test_sweeping_beta_and_targets_reuses_the_program(config):
    setup, state, examples = start(config)
    programs = training.compile_programs(setup, 44)
    for beta, target in ((1.0, 1.0), (0.1, 0.0)):
        config.loss.beta, config.method.mean_target = beta, target
        copy = jax.tree.map(jnp.copy, state)
        training.train_epoch(programs, training.build_objective(config), copy, examples, scan=False)
    assert programs.step._cache_size() == 1


def test_learning_rate_decays_after_its_epochs_and_gradients_are_clipped(config):
    config.train.decay_epochs, config.train.decay_factor = (1,), 0.5
    state = run_epochs(config, 2, False)
    np.testing.assert_allclose(state.history["learning_rate"], 5e-4, rtol=1e-6)
    np.testing.assert_allclose(state.history["beta"], (2 / 4) ** 0.5, rtol=1e-6)
    config.train.gradient_clip = 1e-12  # far below Adam's own epsilon: nothing moves
    _, before, _ = start(config)
    after = run_epochs(config, 1, False)
    for a, b in zip(jax.tree.leaves(before.params), jax.tree.leaves(after.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.fixture(scope="module")
def stepping(images_file):
    """(state, step): a standard VAE's compiled step; 6 steps an epoch, 4 epochs of annealing."""
    config = tiny_config(images_file)
    config.method, config.loss.beta = method_fields("standard"), 0.7
    config.train.decay_epochs, config.train.decay_factor = (1,), 0.5
    setup, state, (images, _) = start(config)
    objective = training.build_objective(config)
    step = jax.jit(lambda s: training.train_step(setup, objective, s, images[:8]))
    return state, step


def test_numbers_of_a_step_follow_its_epoch_and_stand_at_its_place(stepping):
    state, step = stepping
    state = state._replace(beta_scale=jnp.float32(3.0))
    for done, epoch in ((0, 1), (5, 1), (6, 2), (23, 4), (33, 6)):
        history = step(state._replace(step=jnp.int32(done))).history
        beta = 0.7 * 3.0 * (min(epoch, 4) / 4) ** 0.5
        for name, value in (("beta", beta), ("learning_rate", 1e-3 if epoch == 1 else 5e-4)):
            row = np.zeros(6)
            row[done % 6] = value
            np.testing.assert_allclose(history[name], row, rtol=1e-6)


def test_a_step_leaves_all_that_the_next_one_needs(stepping):
    before, step = stepping
    after = step(step(before))
    statistics = (jax.tree.leaves(state.batch_stats) for state in (before, after))
    assert all(np.any(a != b) for a, b in zip(*statistics, strict=True))
    counts = [x for x in jax.tree.leaves(after.optimizer) if x.dtype == jnp.int32]
    assert counts
    assert all(count == 2 for count in counts)


def test_the_same_images_are_seen_with_other_noise_in_every_step_and_epoch(stepping):
    state, step = stepping
    errors = [step(state._replace(step=jnp.int32(done))).history["mse"].sum() for done in range(13)]
    assert len(set(map(float, errors))) == 13


def test_flips_and_noise_have_a_key_of_their_own_in_every_step(config, monkeypatch):
    """The keys that a step hands to whatever flips, and to the model."""
    config.data.flip = True
    setup, state, (images, _) = start(config)
    objective, keys = training.build_objective(config), []

    class Noisy:
        def sample(self, key):
            keys.append(key)
            raise Enough

    class Enough(Exception):
        pass

    def flipped(images, key, *, flip):
        assert flip
        keys.append(key)
        return images

    monkeypatch.setattr(training.batches, "prepare", flipped)
    monkeypatch.setattr(training.Model, "encode", lambda *_, train: Noisy())
    for done in range(13):
        at = state._replace(step=jnp.int32(done))
        with pytest.raises(Enough):
            training.train_step(setup, objective, at, images[:8])
    assert len({tuple(np.asarray(jax.random.key_data(key))) for key in keys}) == 2 * 13


def test_gradients_are_clipped_before_adam_sees_them(config):
    """Adam by hand, on gradients of norm 50 and 0.5 cut to 1; and a decay from step 6 on."""
    config.train.gradient_clip, config.train.adam_eps = 1.0, 0.1
    config.train.decay_epochs, config.train.decay_factor = (1,), 0.5
    optimizer = training.build(
        training.static(config), METHODS["spherical"], (6, 10, 1), 44
    ).optimizer
    given = np.array([[30.0, -40.0], [0.3, 0.4]] * 4)
    weights = jnp.zeros(2)
    state, mean, square, expected = optimizer.init(weights), 0.0, 0.0, np.zeros(2)
    for i, gradient in enumerate(given):
        updates, state = optimizer.update(jnp.asarray(gradient, jnp.float32), state, weights)
        weights = optax.apply_updates(weights, updates)
        gradient = gradient / max(1.0, np.linalg.norm(gradient))
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        size = np.sqrt(square / (1 - 0.999 ** (i + 1))) + 0.1
        rate = 1e-3 if i < 6 else 0.5e-3
        expected = expected - rate * mean / (1 - 0.9 ** (i + 1)) / size
        np.testing.assert_allclose(weights, expected, rtol=1e-4)


def test_steps_stay_within_32_bits(config):
    config.train.decay_epochs = (1, 10**9)  # the second is never reached
    setup = training.build(training.static(config), METHODS["spherical"], (6, 10, 1), 44)
    np.testing.assert_allclose(jax.jit(setup.learning_rate)(7), 0.5e-3)
    config.train.epochs = 10**9
    with pytest.raises(UserError, match="an epoch has 6 steps, so make it at most 357913941"):
        training.build(training.static(config), METHODS["spherical"], (6, 10, 1), 44)
    config.train.epochs = 357913941
    training.build(training.static(config), METHODS["spherical"], (6, 10, 1), 44)


@pytest.mark.slow
def test_bfloat16_convolutions_keep_everything_else_float32(config):
    config.model.dtype = "bfloat16"
    state = run_epochs(config, 1, False)
    dtypes = {x.dtype for x in jax.tree.leaves((state.params, state.batch_stats, state.history))}
    assert dtypes == {jnp.dtype(jnp.float32)}
    config.model.dtype = "float32"
    wide = run_epochs(config, 1, False)
    np.testing.assert_allclose(state.history["mse"], wide.history["mse"], rtol=0.05)


def test_flips_change_what_is_seen(config):
    plain = run_epochs(config, 1, False)
    config.data.flip = True
    flipped = run_epochs(config, 1, False)
    assert not np.array_equal(plain.history["mse"], flipped.history["mse"])


def rates(config, steps):
    config.train.learning_rate = 1e-3
    setup = training.build(training.static(config), METHODS["spherical"], (6, 10, 1), 44)
    return np.array([setup.learning_rate(step) for step in range(steps)])


@pytest.mark.parametrize("warm", [0.0, 1.5])
def test_schedules_of_the_learning_rate(config, warm):
    """Epochs of 6 steps, 4 of them, by their formulas."""
    config.train.epochs, config.train.warmup_epochs = 4, warm
    first, step = int(6 * warm), np.arange(24)
    growth = np.minimum(step / first, 1.0) if warm else np.ones(24)
    config.train.decay_epochs, config.train.decay_factor = (1, 3), 0.1
    after = 0.1 ** ((np.maximum(step, first) >= 6) * 1.0 + (step >= 18))
    np.testing.assert_allclose(rates(config, 24), 1e-3 * growth * after, rtol=1e-5)
    config.train.schedule = "constant"
    np.testing.assert_allclose(rates(config, 24), 1e-3 * growth, rtol=1e-5)
    config.train.schedule = "cosine"
    along = np.clip(step - first, 0, None) / (24 - first)
    expected = 1e-3 * growth * 0.5 * (1 + np.cos(np.pi * along))
    np.testing.assert_allclose(rates(config, 24), expected, rtol=1e-5, atol=1e-9)


def test_weight_decay_is_of_kernels_alone(config):
    config.model.stages = (2,)
    setup, state, (images, _) = start(config)
    objective = training.build_objective(config)
    config.train.weight_decay = 0.3
    decaying, begun, _ = start(config)
    plain, decayed = (
        jax.jit(training.train_step, static_argnums=0)(s, objective, x, images[:8]).params
        for s, x in ((setup, state), (decaying, begun))
    )
    leaves, _ = jax.tree_util.tree_flatten_with_path(state.params)
    for (path, x), a, b in zip(leaves, *map(jax.tree.leaves, (plain, decayed)), strict=True):
        decay = 1e-3 * 0.3 * x if path[-1].key == "kernel" else 0.0 * x
        np.testing.assert_allclose(a - b, decay, atol=2e-7)


def test_averages_of_the_weights(config):
    """By hand, in float64; training itself goes on without them."""
    config.model.stages = (2,)
    _, plain, (images, _) = start(config)
    assert plain.ema is None
    assert plain.averaged is plain
    objective, histories = training.build_objective(config), []
    for ema in (0.0, 0.9):
        config.train.ema = ema
        setup, state, _ = start(config)
        step = jax.jit(training.train_step, static_argnums=0)
        trees = [(state.params, state.batch_stats)]
        for i in range(12):
            state = step(setup, objective, state, images[i : i + 8])
            trees.append((state.params, state.batch_stats))
        histories.append(state.history["loss"])
    np.testing.assert_allclose(*histories, rtol=1e-5)
    expected = jax.tree.map(lambda x: np.asarray(x, np.float64), trees[0])
    for i, tree in enumerate(trees[1:]):
        keep = min(0.9, (1 + i) / (10 + i))
        expected = jax.tree.map(lambda e, x, k=keep: k * e + (1 - k) * x, expected, tree)
    found = state.averaged
    for x, e in zip(
        jax.tree.leaves((found.params, found.batch_stats)), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(x, e, rtol=1e-4, atol=1e-6)
    raw, averaged = (tree["decoder"]["out"]["bias"] for tree in (trees[-1][0], found.params))
    assert abs(raw - averaged).max() > 0


def test_a_state_without_options_is_what_it_was(config):
    """Checkpoints from before these options have the same arrays in the same order."""
    _, state, _ = start(config)
    adam = optax.chain(optax.identity(), optax.adam(lambda step: 1e-3))
    like = jax.eval_shape(adam.init, state.params)
    assert jax.tree.structure(like) == jax.tree.structure(state.optimizer)
    assert len(jax.tree.leaves(state)) == len(jax.tree.leaves(state[:7]))
