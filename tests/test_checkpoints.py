"""A checkpoint comes back exactly, or the one before it does."""

import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hsjax import checkpoints as checkpoints_module
from hsjax.checkpoints import Checkpoints
from hsjax.errors import UserError


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


def test_a_state_whose_regulariser_was_called_kl_comes_back(tmp_path):
    """The new name stands elsewhere in the order."""
    numbers = {name: jnp.float32(i) for i, name in enumerate(("beta", "kl", "loss", "mse"))}
    with Checkpoints(tmp_path / "old", keep=1) as checkpoints:
        checkpoints.save(1, {"history": numbers, "step": jnp.int32(9)})
        numbers["regulariser"] = numbers.pop("kl")
        expected = {"history": numbers, "step": jnp.int32(9)}
        assert_same(checkpoints.restore(jax.tree.map(jnp.zeros_like, expected)), expected)


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


@pytest.mark.parametrize("name", ["lr[0.1]", "a[b", "back\\slash", "a*b", "?", "a b#c%20", "é"])
def test_any_name_of_a_folder_will_do(tmp_path, name):
    """Libraries that orbax uses take some of them for patterns."""
    with Checkpoints(tmp_path / name / "run" / "checkpoints", keep=1) as checkpoints:
        (tmp_path / name / "run").mkdir(parents=True)
        checkpoints.probe()
        assert not list((tmp_path / name / "run").iterdir())
        for step in (1, 2):
            checkpoints.save(step, tree(float(step)))
        assert_same(checkpoints.restore(tree(0.0)), tree(2.0))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_folder_that_cannot_be_read_back_is_refused_at_once(tmp_path, monkeypatch):
    """Also where the few arrays of the probe could be."""

    def unreadable(*_, **__):
        raise RuntimeError("no such array")

    folder = tmp_path / "checkpoints"
    with Checkpoints(folder, keep=1) as checkpoints:
        checkpoints.probe()
        monkeypatch.setattr(checkpoints._orbax, "restore", unreadable)
        for attempt in (checkpoints.probe, lambda: checkpoints.save(1, tree(1.0))):
            with pytest.raises(UserError, match=r"can't be read back from there \(no such array\)"):
                attempt()
        assert checkpoints.steps() == []
    assert not list(tmp_path.glob("**/.*"))


def test_what_others_put_into_a_checkpoint_is_no_damage(saved, tmp_path, caplog):
    folder = shutil.copytree(saved, tmp_path / "c")
    for name in (".DS_Store", "default/._d", "default/.nfs000000000012", "note.txt", "default/x/y"):
        (folder / "3" / name).parent.mkdir(exist_ok=True)
        (folder / "3" / name).write_text("x")
    for name in ("4", "note"):  # beside the checkpoints, too
        (folder / name).write_text("x")
    for name in ("007", "٣", "-1", "5 (1)", "99999999999"):
        (folder / name).mkdir()
    with Checkpoints(folder, keep=2) as checkpoints:
        assert checkpoints.steps() == [2, 3]
        assert_same(checkpoints.restore(tree(0.0)), tree(3.0))
        checkpoints.save(4, tree(4.0))
        assert checkpoints.steps() == [3, 4]
    assert not caplog.text


def test_files_that_systems_add_while_it_is_saved_may_vanish(tmp_path):
    (tmp_path / "._manifest").write_text("x")
    (tmp_path / "manifest").write_text("x")
    assert list(checkpoints_module._sums(tmp_path)) == ["manifest"]


def test_to_restore_without_moving(saved, tmp_path, caplog):
    folder = shutil.copytree(saved, tmp_path / "c")
    damage(folder / "3" / "sha256.json", "truncated")
    before = sorted(tmp_path.rglob("*"))
    with caplog.at_level(logging.WARNING), Checkpoints(folder, keep=2) as checkpoints:
        assert_same(checkpoints.restore(tree(0.0), move=False), tree(2.0))
    assert caplog.messages == ["the checkpoint of step 3 is damaged: using the one before it"]
    assert sorted(tmp_path.rglob("*")) == before


def test_sums_of_nothing_are_damage(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "c")
    for sums in ("{}", "[]", "0", '{"../c": 5}', '{"default": "x"}'):
        (folder / "3" / "sha256.json").write_text(sums)
        with Checkpoints(folder, keep=2) as checkpoints:
            assert_same(checkpoints.restore(tree(0.0), move=False), tree(2.0))


def test_arrays_of_other_shapes_are_named(saved):
    other = tree(0.0) | {"b": (jnp.zeros(4, jnp.int32), {0: jnp.zeros(6, jnp.int32)})}
    with Checkpoints(saved, keep=2) as checkpoints, pytest.raises(UserError) as caught:
        checkpoints.restore(other)
    text = "is of another run of this config (['b'][0] is (), here (4,) and 1 more): go on with"
    assert text in str(caught.value)


def test_links_are_read_and_replaced(saved, tmp_path, caplog):
    """Whatever they point to stays as it is."""
    elsewhere = shutil.copytree(saved, tmp_path / "elsewhere")
    damage(elsewhere / "3" / "sha256.json", "truncated")
    before = {path: path.stat().st_mtime_ns for path in elsewhere.rglob("*")}
    folder = tmp_path / "run" / "checkpoints"
    folder.parent.mkdir()
    folder.symlink_to(elsewhere)
    with Checkpoints(folder, keep=1) as checkpoints:
        checkpoints.probe()
        assert_same(checkpoints.restore(tree(0.0)), tree(2.0))
        checkpoints.save(4, tree(4.0))
        assert f"{folder} was a link to {elsewhere}: it is a folder now" in caplog.text
        for name in ("5", ".old", ".unfinished-1"):
            (folder / name).symlink_to(elsewhere)
        (folder / "6").symlink_to("nowhere")
        (folder.parent / "checkpoints-damaged").symlink_to(elsewhere)
        assert_same(checkpoints.restore(tree(0.0)), tree(4.0))
        for step in (5, 6, 7):
            checkpoints.save(step, tree(float(step)))
        assert_same(checkpoints.restore(tree(0.0)), tree(7.0))
    assert sorted(path.name for path in folder.iterdir()) == ["7"]
    assert before == {path: path.stat().st_mtime_ns for path in elsewhere.rglob("*")}
