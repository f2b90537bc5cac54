"""Every image in every epoch, and images there and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsjax import batches
from hsjax.errors import UserError


def _images(count, shape=(5, 4, 3)):
    return np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)


_sizes = st.integers(2, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(2, n)))


@settings(deadline=None, max_examples=60)
@given(_sizes, st.integers(0, 2**31 - 1))
def test_epoch_order_shows_every_image(sizes, seed):
    count, batch_size = sizes
    key = jax.random.key(seed)
    order = batches.epoch_order(key, count, batch_size)
    steps = batches.steps_per_epoch(count, batch_size)
    assert order.shape == (steps, batch_size)
    assert order.dtype == jnp.int32
    flat = np.asarray(order).ravel()
    assert sorted(flat[:count]) == list(range(count))
    np.testing.assert_array_equal(flat[count:], flat[: steps * batch_size - count])
    np.testing.assert_array_equal(order, batches.epoch_order(key, count, batch_size))
    for batch in np.asarray(order):
        assert len(set(batch)) == batch_size


def test_epoch_order_differs_between_keys_and_jits():
    order = jax.jit(batches.epoch_order, static_argnums=(1, 2))
    one, two = (order(jax.random.key(seed), 100, 32) for seed in (0, 1))
    assert np.any(one != two)
    np.testing.assert_array_equal(one, batches.epoch_order(jax.random.key(0), 100, 32))


def test_batch_size_out_of_range_is_one_line():
    with pytest.raises(UserError, match="batch_size=1: make it 2 or more"):
        batches.steps_per_epoch(10, 1)
    with pytest.raises(UserError, match="batch_size=11: there are 10 training images"):
        batches.epoch_order(jax.random.key(0), 10, 11)
    assert batches.steps_per_epoch(10, 10) == 1


@given(st.integers(0, 50), st.integers(1, 60))
def test_eval_batches_cover_each_index_once(count, batch_size):
    seen = []
    for indices, mask in batches.eval_batches(count, batch_size):
        assert indices.shape == mask.shape == (batch_size,)
        assert indices.dtype == np.int32
        assert mask.dtype == bool
        assert np.array_equal(indices, (indices[0] + np.arange(batch_size)) % count)
        assert mask.any()
        seen += list(indices[mask])
    assert seen == list(range(count))


def test_prepare_scales_to_the_unit_interval():
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    out = batches.prepare(images)
    assert out.dtype == jnp.float32
    assert out.min() == 0
    assert out.max() == 1
    np.testing.assert_allclose(out, images / 255, rtol=2e-7)
    np.testing.assert_array_equal(out, jax.jit(batches.prepare)(images))


def test_prepare_mirrors_about_half_of_the_images():
    images = _images(200).reshape(2, 100, 5, 4, 3)
    out = jax.jit(batches.prepare, static_argnames="flip")(images, jax.random.key(0), flip=True)
    plain, mirrored = batches.prepare(images), batches.prepare(images[..., ::-1, :])
    is_plain = np.all(out == plain, axis=(-3, -2, -1))
    is_mirrored = np.all(out == mirrored, axis=(-3, -2, -1))
    assert np.all(is_plain ^ is_mirrored)
    assert 70 < is_mirrored.sum() < 130
    with pytest.raises(ValueError, match="pass a key"):
        batches.prepare(images, flip=True)


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.integers(1, 3), max_size=2),
    st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 3)),
    st.integers(1, 8),
    st.sampled_from([np.uint8, np.float32]),
)
def test_crop_undoes_pad(leading, shape, multiple, dtype):
    images = _images(1, (*leading, *shape))[0].astype(dtype)
    padded = batches.pad(images, multiple)
    assert padded.dtype == dtype
    assert padded.shape[:-3] == images.shape[:-3]
    for new, old in zip(padded.shape[-3:-1], shape[:2], strict=True):
        assert new % multiple == 0
        assert old <= new < old + multiple
    assert np.asarray(padded).sum(dtype=float) == images.sum(dtype=float)
    np.testing.assert_array_equal(batches.crop(padded, *shape[:2]), images)


def test_pad_puts_the_odd_pixel_after():
    padded = batches.pad(np.ones((1, 3, 4, 1), np.uint8), 4)
    np.testing.assert_array_equal(padded[0, :, 0, 0], [1, 1, 1, 0])
    with pytest.raises(ValueError, match="larger than"):
        batches.crop(padded, 5, 4)
