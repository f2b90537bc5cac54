"""A checkpoint comes back exactly, or the one before it does."""

import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hsjax.checkpoints import Checkpoints


def tree(value):
    return {
        "a": [jnp.full((300, 7), value), jnp.float32(value)],
        "b": (jnp.int32(value), {0: jnp.arange(5) + int(value)}),
    }


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    with Checkpoints(folder, keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, tree(float(step)))
    return folder


def test_the_newest_comes_back_and_the_last_two_are_kept(saved):
    with Checkpoints(saved, keep=2) as checkpoints:
        assert checkpoints.steps() == [2, 3]
        assert_same(checkpoints.restore(tree(0.0)), tree(3.0))
    assert not (saved.parent / "checkpoints-damaged").exists()


def test_arrays_of_one_shape_are_not_confused(tmp_path):
    arrays = [jnp.int32(i) for i in range(12)]
    with Checkpoints(tmp_path / "many", keep=1) as checkpoints:
        checkpoints.save(1, arrays)
        assert checkpoints.restore([jnp.int32(0)] * 12) == arrays


def test_nothing_to_restore(tmp_path):
    with Checkpoints(tmp_path / "none", keep=1) as checkpoints:
        assert checkpoints.restore(tree(0.0)) is None


def damage(path, how):
    content = path.read_bytes()
    if how == "removed":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 64]) + content[middle + 1 :])


@pytest.mark.parametrize("how", ["removed", "truncated", "flipped"])
def test_any_damaged_file_falls_back_with_a_warning(saved, tmp_path, how, caplog):
    names = [f.relative_to(saved / "3") for f in (saved / "3").rglob("*") if f.is_file()]
    assert len(names) > 5
    for i, name in enumerate(names):
        folder = tmp_path / str(i)
        shutil.copytree(saved, folder)
        damage(folder / "3" / name, how)
        caplog.clear()
        with caplog.at_level(logging.WARNING), Checkpoints(folder, keep=2) as checkpoints:
            assert_same(checkpoints.restore(tree(0.0)), tree(2.0))
            assert "checkpoint of step 3 is damaged" in caplog.text
            checkpoints.save(3, tree(3.5))  # the run goes on and reaches that step again
            assert_same(checkpoints.restore(tree(0.0)), tree(3.5))
        assert (tmp_path / f"{i}-damaged" / "3").is_dir()


def test_all_damaged(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "c")
    for step in "23":
        damage(tmp_path / "c" / step / "sha256.json", "truncated")
    with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
        assert checkpoints.restore(tree(0.0)) is None
