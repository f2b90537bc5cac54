"""Every data set comes back whole or as one clear line; batches show each image."""

import io
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import default
from hsjax import data, decoded, experiment, files, sources
from hsjax.errors import UserError

_SPLITS = {"train": 7, "test": 3}


def _images(count, shape=(5, 4, 3), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def _arrays():
    return {
        "train_images": _images(7),
        "train_labels": np.arange(7),
        "test_images": _images(3, seed=1),
        "test_labels": np.arange(3),
    }


def _same(a, b):
    for x, y in zip(a[1:], b[1:], strict=True):
        assert (x is None) == (y is None)
        if x is not None:
            assert x.dtype == y.dtype
            np.testing.assert_array_equal(x, y)


def _copy(dataset):
    """Of what is mapped from files that a test damages."""
    return data.Dataset(dataset.name, *map(np.array, dataset[1:]))


def _fails(match, name, directory=""):
    """One line of UserError, which the pattern finds."""
    with pytest.raises(UserError, match=match) as caught:
        data.load(str(name), str(directory))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- digits ---------------------------------------------------------------------------------


def test_digits_are_scikit_learns_split_in_five():
    from sklearn.datasets import load_digits

    source = load_digits()
    digits = data.load("digits")
    assert digits.name == "digits"
    assert digits.train_images.shape == (1437, 8, 8, 1)
    assert digits.test_images.shape == (360, 8, 8, 1)
    assert digits.train_images.dtype == digits.test_images.dtype == np.uint8
    assert digits.train_labels.dtype == digits.test_labels.dtype == np.int32
    assert set(digits.train_labels) == set(digits.test_labels) == set(range(10))
    assert digits.train_images.max() == 255
    np.testing.assert_array_equal(digits.test_labels, source.target[::5])
    joined = np.empty((1797, 8, 8), np.uint8)  # both splits put back: each image exactly once
    test = np.arange(1797) % 5 == 0
    joined[test], joined[~test] = digits.test_images[..., 0], digits.train_images[..., 0]
    np.testing.assert_array_equal(np.rint(joined / 255 * 16), source.images)


# --- a user's .npz --------------------------------------------------------------------------


def test_npz_with_and_without_labels_and_channels(tmp_path):
    arrays = _arrays()
    np.savez(tmp_path / "full.npz", **arrays)
    full = data.load(str(tmp_path / "full.npz"))
    np.testing.assert_array_equal(full.train_images, arrays["train_images"])
    np.testing.assert_array_equal(full.test_labels, arrays["test_labels"])
    assert full.train_labels.dtype == np.int32
    grey = {k: v[..., 0] for k, v in arrays.items() if "images" in k}
    np.savez_compressed(tmp_path / "grey.npz", **grey)
    loaded = data.load(str(tmp_path / "grey.npz"))
    assert loaded.train_images.shape == (7, 5, 4, 1)
    assert loaded.train_labels is None
    assert loaded.test_labels is None


WRONG_ARRAYS = [
    ({"train_images": None}, "train_images is missing"),
    ({"test_images": None}, "test_images is missing"),
    ({"train_images": _images(7) / 255}, "train_images is float64: convert it to uint8"),
    ({"test_images": _images(3).astype(np.int64)}, "test_images is int64"),
    ({"train_images": _images(7)[..., 0, 0]}, r"train_images has shape \(7, 5\)"),
    ({"train_images": _images(7)[None]}, r"train_images has shape \(1, 7"),
    (
        {"train_images": _images(7, (3, 8, 6))},
        r"\(7, 3, 8, 6\), which is 6 channels: .* train_images.transpose\(0, 2, 3, 1\)",
    ),
    (
        {"test_images": _images(8, (6, 1, 5))},
        r"\(8, 6, 1, 5\), which is 5 channels: .* test_images.transpose\(3, 0, 1, 2\)",
    ),
    ({"train_images": _images(7, (5, 4, 4))}, r"4 channels: .*\[N, height, width, 1 or 3\]$"),
    ({"test_images": _images(3, (5, 4, 2))}, "2 channels"),
    (
        {"train_images": _images(0), "train_labels": np.zeros(0, int)},
        "2 or more images",
    ),
    ({"test_images": _images(1), "test_labels": np.zeros(1, int)}, "2 or more images"),
    ({"test_images": _images(3, (5, 0, 3))}, "2 or more images"),
    ({"test_images": _images(3, (4, 4, 3))}, r"\(5, 4, 3\) and test_images \(4, 4, 3\)"),
    ({"train_labels": np.arange(6)}, r"train_labels has shape \(6,\).*\(7,\)"),
    ({"train_labels": np.zeros((7, 10), int)}, r"train_labels has shape \(7, 10\)"),
    ({"test_labels": np.ones(3)}, "test_labels is float64: convert it to integers"),
    ({"test_labels": np.array(["a", "b", "c"])}, "test_labels is <U1"),
    ({"test_labels": np.array([0, -1, 2])}, "test_labels leaves"),
    ({"test_labels": np.array([0, 2**31, 2])}, "test_labels leaves"),
    ({"test_labels": None}, "test_labels is missing: give labels to both"),
    ({"train_labels": None}, "train_labels is missing: give labels to both"),
]


@pytest.mark.parametrize(("change", "match"), WRONG_ARRAYS)
def test_wrong_arrays_given_in_python_are_one_line(change, match):
    dataset = data.Dataset("mine", **(_arrays() | change))
    with pytest.raises(UserError, match=match) as caught:
        data.checked(dataset)
    assert str(caught.value).startswith("mine: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("dataset", "match"),
    [
        (_arrays(), "the data set is a dict: make it an hsjax.data.Dataset"),
        (data.Dataset("mine", [[1]], None, [[1]], None), "train_images is a list: make it a NumPy"),
        (
            data.Dataset("mine", _images(4) / 255, None, _images(4) / 255, None),
            "mine: train_images is float64: convert it to uint8",
        ),
    ],
)
def test_a_run_checks_the_data_set_it_is_given_before_anything_else(
    config, tmp_path, dataset, match
):
    with pytest.raises(UserError, match=match):
        experiment.train_and_evaluate(config, tmp_path / "run", dataset=dataset)
    assert not (tmp_path / "run").exists()


@given(count=st.integers(2, 255), share=st.floats(0.0, 1.0), labelled=st.booleans())
def test_held_out_images_are_whole_and_apart(count, share, labelled):
    """Each image is on one side, with its label, whatever the share."""
    numbers = np.arange(count)
    images = numbers.astype(np.uint8).reshape(-1, 1, 1, 1) + np.zeros((1, 2, 2, 1), np.uint8)
    labels = (numbers.astype(np.int32), np.zeros(3, np.int32)) if labelled else (None, None)
    test = np.zeros((3, 2, 2, 1), np.uint8)
    dataset = data.Dataset("mine", images, labels[0], test, labels[1])
    held = round(share * count)
    if share and not 2 <= held <= count - 2:
        with pytest.raises(UserError, match=f"holds out {held} of {count} training images"):
            data.hold_out(dataset, share)
        return
    found = data.hold_out(dataset, share)
    assert found.test_images is test
    assert len(found.train_images) == count - held
    if not share:
        assert found is dataset
        with pytest.raises(UserError, match="needs images held out"):
            data.hold_out(dataset, share, "validation")
        return
    judged = data.hold_out(dataset, share, "validation")
    np.testing.assert_array_equal(judged.train_images, found.train_images)
    both = np.concatenate([judged.train_images, judged.test_images])
    np.testing.assert_array_equal(np.sort(both[:, 0, 0, 0]), np.sort(images[:, 0, 0, 0]))
    if labelled:
        for x, y in ((judged.train_images, judged.train_labels), judged[3:]):
            np.testing.assert_array_equal(x[:, 0, 0, 0], y.astype(np.uint8))
        every = np.concatenate([judged.train_labels, judged.test_labels])
        np.testing.assert_array_equal(np.sort(every), numbers)


def _numbered(labels, first=0):
    """Images that hold their number, and these labels."""
    numbers = np.arange(first, first + len(labels), dtype=np.uint8)
    images = numbers[:, None, None, None] + np.zeros((1, 2, 2, 1), np.uint8)
    return images, np.array(labels, np.int32)


LABELLED = st.lists(st.integers(0, 3), min_size=2, max_size=40)


@given(LABELLED, LABELLED, st.sets(st.integers(0, 4)), st.sampled_from(["test", "validation"]))
def test_classes_are_left_out_whole_and_nothing_else_is(train, test, classes, judged):
    dataset = data.Dataset("mine", *_numbered(train), *_numbered(test, 100))
    if unknown := classes - {*train, *test}:
        with pytest.raises(UserError, match=f"mine has no class {min(unknown)}: choose from its"):
            data.leave_out(dataset, sorted(classes))
        return
    splits = {"train": train, "test": test}
    stays = {
        split: [i for i, c in enumerate(of, start) if c not in classes]
        for (split, of), start in zip(splits.items(), (0, 100), strict=True)
    }
    if few := [split for split in splits if len(stays[split]) < 2]:
        counts = f"leaves {len(stays[few[0]])} of {len(splits[few[0]])} {few[0]} images"
        with pytest.raises(UserError, match=counts):
            data.leave_out(dataset, sorted(classes))
        return
    found, images = data.leave_out(dataset, sorted(classes), judged)
    if not classes:
        assert found is dataset
    for split, of, start in (("train", train, 0), ("test", test, 100)):
        pixels = getattr(found, f"{split}_images")[:, 0, 0, 0]
        np.testing.assert_array_equal(pixels, stays[split])
        labels = getattr(found, f"{split}_labels")
        np.testing.assert_array_equal(labels, [of[i - start] for i in pixels])
        assert labels.dtype == np.int32
    of, start = (train, 0) if judged == "validation" else (test, 100)
    wanted = [i for i, c in enumerate(of, start) if c in classes] if classes else []
    assert images.shape[1:] == (2, 2, 1)
    np.testing.assert_array_equal(images[:, 0, 0, 0], wanted)


def test_a_set_without_labels_has_no_classes_to_leave_out():
    dataset = data.Dataset("mine", _images(7), None, _images(3), None)
    assert data.leave_out(dataset, ())[0] is dataset
    with pytest.raises(UserError, match=r"data.leave_out=\(3,\): mine has no labels"):
        data.leave_out(dataset, (3,))


def test_classes_of_images_on_the_device_are_left_out_there():
    images, labels = _numbered([0, 1, 2, 0, 1, 2])
    dataset = data.Dataset("mine", jnp.asarray(images), labels, jnp.asarray(images), labels)
    found, others = data.leave_out(dataset, (1,))
    assert isinstance(found.train_images, jax.Array)
    assert isinstance(others, np.ndarray)
    np.testing.assert_array_equal(found.train_images[:, 0, 0, 0], [0, 2, 3, 5])
    np.testing.assert_array_equal(others[:, 0, 0, 0], [1, 4])


def test_colours_become_grey_as_pillow_does_it():
    from PIL import Image

    images = _images(50, (20, 30, 3))
    images[0, :, :, :] = 255
    found = data.fitted(images, (20, 30, 1))
    assert found.dtype == np.uint8
    theirs = [np.asarray(Image.fromarray(image).convert("L")) for image in images]
    np.testing.assert_array_equal(found[..., 0], theirs)


SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 6), st.sampled_from([1, 3]))


@given(SHAPES, SHAPES)
def test_images_are_fitted_to_the_middle_of_black(own, shape):
    (height, width, channels), (high, wide, wanted) = own, shape
    images = 1 + _images(3, own) // 2
    if height > high or width > wide:
        with pytest.raises(ValueError, match=f"images of {height}x{width} are larger than {high}x"):
            data.fitted(images, shape)
        return
    found = data.fitted(images, shape)
    assert found.shape == (3, *shape)
    top, left = (high - height) // 2, (wide - width) // 2
    middle = found[:, top : top + height, left : left + width]
    if channels == 3 and wanted == 1:
        middle, images = middle.astype(float), images @ np.array([[0.299], [0.587], [0.114]])
        np.testing.assert_allclose(middle, images, atol=0.51)
    else:
        np.testing.assert_array_equal(middle, np.broadcast_to(images, middle.shape))
    assert found.astype(int).sum() == middle.astype(int).sum()  # all else is black
    black = np.ones((high, wide), bool)
    black[top : top + height, left : left + width] = False
    assert not found[:, black].any()


def test_another_set_is_read_as_the_runs_own(tmp_path, home):
    fields = default.get_config().data
    fields.name, fields.size, fields.crop = "nowhere", 2, 4
    np.savez(tmp_path / "mine.npz", **_arrays())
    for name, shape in (("digits", (8, 8, 1)), (str(tmp_path / "mine.npz"), (5, 4, 3))):
        assert data.of_config(fields, name).test_images.shape[1:] == shape
    _prepare(tmp_path / "sets" / "tiny" / "1.0.0")
    fields.dir = str(tmp_path / "sets")
    assert data.of_config(fields, "tiny").test_images.shape == (3, 2, 2, 3)
    fields.name = "digits"
    with pytest.raises(UserError, match="can't scale digits"):
        data.of_config(fields)


def test_images_on_the_device_are_held_out_there():
    images = _images(40)
    dataset = data.Dataset("mine", images, None, _images(3), None)
    found = data.hold_out(dataset._replace(train_images=jnp.asarray(images)), 0.25)
    assert isinstance(found.train_images, jax.Array)
    wanted = data.hold_out(dataset, 0.25).train_images
    np.testing.assert_array_equal(found.train_images, wanted)


def test_right_arrays_given_in_python_stay_where_they_are():
    arrays = _arrays()
    labels = np.arange(7, dtype=np.int64), jnp.arange(3)
    on_device = jnp.asarray(arrays["train_images"])
    grey = data.Dataset("mine", on_device[..., 0], labels[0], arrays["test_images"][..., 0], None)
    found = data.checked(
        data.Dataset(Path("mine"), on_device, labels[0], arrays["test_images"], labels[1])
    )
    assert found.name == "mine"
    assert found.train_images is on_device
    assert found.test_images is arrays["test_images"]
    for split, array in (("train", found.train_labels), ("test", found.test_labels)):
        assert isinstance(array, np.ndarray)
        assert array.dtype == np.int32
        np.testing.assert_array_equal(array, arrays[f"{split}_labels"])
    found = data.checked(grey._replace(train_labels=None))
    assert isinstance(found.train_images, jax.Array)
    assert found.train_images.shape == (7, 5, 4, 1)
    assert found.train_labels is found.test_labels is None


@pytest.mark.parametrize(
    ("change", "match"),
    [
        *WRONG_ARRAYS,
        ({"train_images": np.array([{}], object)}, "train_images cannot be read .*allow_pickle"),
        ({"train_labels": np.array([{}] * 7, object)}, "train_labels cannot be read"),
    ],
)
def test_npz_with_a_wrong_array_is_one_line(tmp_path, change, match):
    arrays = {k: v for k, v in (_arrays() | change).items() if v is not None}
    np.savez(tmp_path / "mine.npz", **arrays)
    assert str(tmp_path / "mine.npz") in _fails(match, tmp_path / "mine.npz")


def test_npz_that_is_no_file_or_no_zip_is_one_line(tmp_path):
    _fails("none.npz: no such file", tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("hello")
    _fails("text.npz: the file cannot be read", tmp_path / "text.npz")
    (tmp_path / "empty.npz").touch()
    _fails("empty.npz: the file cannot be read", tmp_path / "empty.npz")
    (tmp_path / "dir.npz").mkdir()
    _fails("dir.npz: the file cannot be read", tmp_path / "dir.npz")
    with zipfile.ZipFile(tmp_path / "other.npz", "w") as archive:
        archive.writestr("train_images.npy", b"no array")
    _fails("other.npz: train_images cannot be read", tmp_path / "other.npz")


def _as_bytes(save=np.savez):
    file = io.BytesIO()
    save(file, **_arrays())
    return file.getvalue()


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_npz_damaged_anywhere_is_read_right_or_refused(draw):
    whole = _as_bytes(draw.draw(st.sampled_from([np.savez, np.savez_compressed])))
    at = draw.draw(st.integers(0, len(whole) - 1))
    if draw.draw(st.booleans()):
        damaged = whole[:at]
    else:
        damaged = whole[:at] + bytes([whole[at] ^ draw.draw(st.integers(1, 255))]) + whole[at + 1 :]
    try:
        arrays = files.read_npz(io.BytesIO(damaged), data._ARRAYS)
    except UserError:
        return
    for name, array in arrays.items():  # a damaged name hides an array, which _checked reports
        np.testing.assert_array_equal(array, _arrays()[name])


# --- tensorflow-datasets --------------------------------------------------------------------


def _prepare(folder, *, features=None, examples=None, file_format="array_record"):
    """Writes the prepared set folder (name/version) by hand, as tfds would with TensorFlow."""
    with sources.quiet():
        import tensorflow_datasets as tfds
        from array_record.python.array_record_module import ArrayRecordWriter
        from tensorflow_datasets.proto import tf_example_pb2

    if features is None:
        features = {
            "image": tfds.features.Image(shape=(5, 4, 3)),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
    if examples is None:
        arrays = _arrays()
        examples = {
            split: list(zip(arrays[f"{split}_images"], arrays[f"{split}_labels"], strict=True))
            for split in _SPLITS
        }
    target = Path(folder)
    name, version = target.parts[-2:]
    target.mkdir(parents=True)
    tfds.features.FeaturesDict(features).save_config(target)
    info = {"name": name, "version": version, "fileFormat": file_format, "splits": []}
    for split, records in examples.items():
        path = target / f"{name}-{split}.{file_format}-00000-of-00001"
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for image, label in records:
            example = tf_example_pb2.Example()
            example.features.feature["image"].bytes_list.value.append(_png(image))
            example.features.feature["label"].int64_list.value.append(int(label))
            writer.write(example.SerializeToString())
        writer.close()
        info["splits"].append(
            {
                "name": split,
                "shardLengths": [str(len(records))],
                "numBytes": str(path.stat().st_size),
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            }
        )
    (target / "dataset_info.json").write_text(json.dumps(info))


def _png(image):
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Where the user's cache falls back to."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "hsjax"


@pytest.fixture
def tiny(tmp_path, home):
    """A folder with one prepared set, "tiny"."""
    _prepare(tmp_path / "sets" / "tiny" / "1.0.0")
    return tmp_path / "sets"


@pytest.fixture
def decodes(monkeypatch):
    """Counts the times a set is decoded."""
    calls, decode = [], decoded._decode
    monkeypatch.setattr(decoded, "_decode", lambda *args: calls.append(1) or decode(*args))
    return calls


def _logged(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_tfds_set_is_decoded_once_and_kept_beside_it(tiny, home, decodes, caplog, capfd):
    first = data.load("tiny", str(tiny))
    _same(first, ("tiny", *_arrays_as_loaded()))
    assert sorted(path.name for path in tiny.iterdir()) == ["hsjax-tiny-1.0.0", "tiny"]
    assert not home.exists()
    second = data.load("tiny", str(tiny))
    _same(first, second)
    _same(first, data.load("tiny:1.0.0", str(tiny)))
    assert len(decodes) == 1
    assert not _logged(caplog)
    assert capfd.readouterr() == ("", "")


def _arrays_as_loaded():
    return [v.astype(np.int32) if "labels" in k else v for k, v in _arrays().items()]


@pytest.mark.parametrize(
    "damage", ["truncated", "removed", "flipped", "index", "a file", "another's"]
)
def test_damaged_cache_is_rebuilt(tiny, home, decodes, caplog, damage):
    first = _copy(data.load("tiny", str(tiny)))
    folder = tiny / "hsjax-tiny-1.0.0"
    images, index = folder / "train_images", folder / "index.json"
    content = bytearray(images.read_bytes())
    if damage == "truncated":
        images.write_bytes(content[: len(content) // 2])
    elif damage == "removed":
        images.unlink()
    elif damage == "flipped":
        content[5] ^= 1
        images.write_bytes(content)
    elif damage == "index":
        index.write_text(index.read_text()[:-3])
    elif damage == "a file":
        shutil.rmtree(folder)
        folder.touch()
    else:
        index.write_text(index.read_text().replace('"info": "', '"info": "0'))
    _same(first, data.load("tiny", str(tiny)))
    (line,) = _logged(caplog)
    assert re.search(r"hsjax-tiny-1.0.0 is damaged or out of date", line)
    # A file stays where it is: the user's own cache serves instead.
    assert home.exists() == (damage == "a file")
    count = len(decodes)
    assert count > 1
    _same(first, data.load("tiny", str(tiny)))
    assert len(decodes) == count


def test_index_damaged_anywhere_is_noticed(tiny, decodes):
    first = _copy(data.load("tiny", str(tiny)))
    index = tiny / "hsjax-tiny-1.0.0" / "index.json"
    whole = index.read_bytes()
    rng = np.random.default_rng(0)
    for at in rng.choice(len(whole), 60, replace=False):
        index.write_bytes(
            whole[:at] + bytes([whole[at] ^ (1 << rng.integers(8))]) + whole[at + 1 :]
        )
        _same(first, data.load("tiny", str(tiny)))
    assert len(decodes) > 40  # where a blank became another, nothing is wrong


def test_two_processes_that_decode_at_once_leave_one_cache(tiny, home, monkeypatch, caplog):
    decode, others = decoded._decode, []

    def slowly(*args):
        if not others:
            others.append(1)
            others.append(data.load("tiny", str(tiny)))  # begins later and is done before
        return decode(*args)

    monkeypatch.setattr(decoded, "_decode", slowly)
    _same(data.load("tiny", str(tiny)), others[1])
    assert sorted(path.name for path in tiny.iterdir()) == ["hsjax-tiny-1.0.0", "tiny"]
    assert not home.exists()
    assert not _logged(caplog)


def test_what_killed_processes_left_is_removed_once_nobody_writes_it(tiny):
    old, new = tiny / ".hsjax-tiny-1.0.0.1234", tiny / ".hsjax-tiny-1.0.0.5678"
    for folder, age in ((old, 7200), (new, 60)):
        folder.mkdir()
        (folder / "train_images").touch()
        for path in (folder / "train_images", folder):
            os.utime(path, times=(time.time() - age,) * 2)
    data.load("tiny", str(tiny))
    assert not old.exists()
    assert new.exists()


def test_what_killed_processes_left_goes_with_a_start_that_decodes_nothing(tiny, decodes):
    data.load("tiny", str(tiny))
    left = tiny / ".hsjax-other-1.0.0.1234"
    left.mkdir()
    os.utime(left, times=(time.time() - 7200,) * 2)
    data.load("tiny", str(tiny))
    assert len(decodes) == 1
    assert not left.exists()


@pytest.mark.parametrize("name", ["a[b]", "back\\slash", "a*b"])
def test_a_folder_of_prepared_sets_may_have_any_name(tiny, tmp_path, name):
    """Libraries take some for patterns; the decoded images stay beside the set all the same."""
    shutil.copytree(tiny, tmp_path / name)
    _same(data.load("tiny", str(tmp_path / name)), ("tiny", *_arrays_as_loaded()))
    assert (tmp_path / name / "hsjax-tiny-1.0.0" / "index.json").is_file()


def test_cache_of_another_preparation_is_rebuilt(tiny, decodes, caplog):
    data.load("tiny", str(tiny))
    info = tiny / "tiny" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text() + "\n")
    _same(data.load("tiny", str(tiny)), ("tiny", *_arrays_as_loaded()))
    assert len(decodes) == 2
    assert len(_logged(caplog)) == 1
    data.load("tiny", str(tiny))
    assert len(decodes) == 2


def _refuse_writes_below(monkeypatch, folder):
    """As a folder mounted read-only does, which root too has to obey."""
    mkdir = Path.mkdir

    def refuse(path, *args, **options):
        if Path(path).is_relative_to(folder) and not path.exists():
            raise OSError(30, "Read-only file system", str(path))
        mkdir(path, *args, **options)

    monkeypatch.setattr(Path, "mkdir", refuse)


@pytest.mark.parametrize("how", ["mounted", "marked"])
def test_read_only_folder_is_cached_in_the_users(tiny, home, decodes, caplog, monkeypatch, how):
    if how == "mounted":
        _refuse_writes_below(monkeypatch, tiny)
    else:  # root could still write there, and must not
        tiny.chmod(0o555)
    first = data.load("tiny", str(tiny))
    assert [path.name for path in tiny.iterdir()] == ["tiny"]
    (path,) = home.iterdir()
    assert re.fullmatch(r"hsjax-tiny-1.0.0-[0-9a-f]{12}", path.name)
    _same(first, data.load("tiny", str(tiny)))
    assert len(decodes) == 1
    assert not _logged(caplog)


def test_without_any_place_to_write_the_run_goes_on(tiny, home, decodes, caplog, monkeypatch):
    _refuse_writes_below(monkeypatch, tiny)
    home.parent.write_text("a file where the folder should be")
    _same(data.load("tiny", str(tiny)), ("tiny", *_arrays_as_loaded()))
    (line,) = _logged(caplog)
    assert re.search("tiny in .* could not be kept", line)
    data.load("tiny", str(tiny))
    assert len(decodes) == 2


def test_full_disk_leaves_no_file_and_no_error(tiny, home, caplog):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150, hard))  # bytes a file may grow to
    try:
        dataset = data.load("tiny", str(tiny))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    _same(dataset, ("tiny", *_arrays_as_loaded()))
    assert [path.name for path in tiny.iterdir()] == ["tiny"]
    assert not list(home.iterdir())
    (line,) = _logged(caplog)
    assert "could not be kept" in line


def test_validation_stands_in_for_test_and_withheld_labels_for_none(tmp_path, home):
    images = _images(7)
    examples = {"train": [(x, 1) for x in images], "validation": [(x, -1) for x in images[:2]]}
    _prepare(tmp_path / "tiny" / "1.0.0", examples=examples)
    dataset = data.load("tiny", str(tmp_path))
    _same(dataset, ("tiny", images, None, images[:2], None))
    _same(data.load("tiny", str(tmp_path)), dataset)


def test_tfds_images_are_cropped_and_scaled(tiny):
    arrays, cropped = _arrays(), data.load("tiny", str(tiny), crop=2)
    np.testing.assert_array_equal(cropped.train_images, arrays["train_images"][:, 1:3, 1:3])
    np.testing.assert_array_equal(cropped.train_labels, arrays["train_labels"])
    assert data.load("tiny", str(tiny), size=3).test_images.shape == (3, 3, 3, 3)
    names = sorted(path.name for path in tiny.iterdir())
    assert names == ["hsjax-tiny-1.0.0-3", "hsjax-tiny-1.0.0-crop2", "tiny"]


def test_set_that_is_not_of_images_is_one_line(tmp_path, home):
    import tensorflow_datasets as tfds

    label = tfds.features.ClassLabel(num_classes=10)
    examples = {split: [(x, 1) for x in _images(3)] for split in _SPLITS}
    folder = tmp_path / "tiny" / "1.0.0"
    for number, features in enumerate(
        [{"label": label}, {"image": tfds.features.Image(dtype=np.uint16), "label": label}]
    ):
        _prepare(tmp_path / f"{number}" / "tiny" / "1.0.0", features=features, examples=examples)
        _fails("no uint8 feature 'image'", "tiny", tmp_path / f"{number}")
    free = {"image": tfds.features.Image(shape=(None, None, 3)), "label": label}
    examples["train"].append((_images(1, (6, 4, 3))[0], 1))
    _prepare(folder, features=free, examples=examples)
    _fails(r"\(5, 4, 3\) and \(6, 4, 3\)", "tiny", tmp_path)
    _prepare(tmp_path / "2" / "tiny" / "1.0.0", examples={"train": examples["train"][:3]})
    _fails("has no validation split|has no test split", "tiny", tmp_path / "2")
    assert not list(tmp_path.rglob("hsjax-*"))


def test_records_missing_damaged_or_in_another_format_are_one_line(tiny, tmp_path):
    (record,) = tiny.rglob("tiny-test*")
    os.truncate(record, 70_000)
    _fails("3 of the 10 images of tiny in .* can't be read: test image 0, test im", "tiny", tiny)
    record.unlink()
    _fails("images of tiny in .* can't be read: .*No such file", "tiny", tiny)
    _prepare(tmp_path / "tf" / "tiny" / "1.0.0", file_format="tfrecord")
    _fails("is prepared as tfrecord, .* --config.data.dir=DIR", "tiny", tmp_path / "tf")
    (tiny / "tiny" / "1.0.0" / "dataset_info.json").write_text("{")
    _fails("cannot open data set 'tiny'", "tiny", tiny)


@pytest.mark.parametrize("name", ["nonsuch", "mnist/nonsuch", "mnist:9.9.9", "a b", "/x.npy", ""])
def test_unknown_name_is_one_line(tmp_path, name):
    _fails(r"data set '.*digits.*\.npz.*tensorflow-datasets", name, tmp_path)


def test_set_not_prepared_without_tensorflow_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_has_tensorflow", lambda: False)
    monkeypatch.chdir(tmp_path)
    line = _fails(r"mnist is not prepared .*'.\[data\]'.*--config.data.dir=DIR", "mnist", "here")
    assert str(tmp_path / "here" / "mnist") in line


def test_set_not_prepared_is_prepared_with_tensorflow(tmp_path, home, monkeypatch):
    import tensorflow_datasets as tfds

    def prepare(self):
        assert self.info.file_format is tfds.core.FileFormat.ARRAY_RECORD
        if not (tmp_path / "network").exists():
            raise OSError("no route to host\nand more")
        images = [(x[..., 0], 1) for x in _images(4, (28, 28, 1))]
        features = {"image": tfds.features.Image(shape=(28, 28, 1))}
        _prepare(self.data_path, features=features, examples=dict.fromkeys(_SPLITS, images))
        self.info.read_from_directory(self.data_path)

    monkeypatch.setattr(sources, "_has_tensorflow", lambda: True)
    monkeypatch.setattr(sources, "_hide_gpus_from_tensorflow", lambda: None)
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", prepare)
    _fails(r"preparing it failed \(no route to host\): .*", "mnist", tmp_path)
    (tmp_path / "network").touch()
    dataset = data.load("mnist", str(tmp_path))
    assert dataset.train_images.shape == (4, 28, 28, 1)
    assert set(dataset.train_labels) == set(dataset.test_labels) == {1}


def test_imports_are_light_and_the_terminal_stays_clean(tiny):
    code = """if True:
        import sys
        from hsjax import data
        assert not {"tensorflow", "tensorflow_datasets", "sklearn"} & set(sys.modules)
        data.load("tiny", sys.argv[1])
        assert "tensorflow" not in sys.modules
    """
    command = [sys.executable, "-W", "error", "-c", code, str(tiny)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("name", "shape", "count"), [("mnist", (28, 28, 1), 60000), ("cifar10", (32, 32, 3), 50000)]
)
def test_real_sets(name, shape, count, tmp_path, monkeypatch):
    folder = os.environ.get("HSJAX_TFDS_DIR", "")
    if not os.path.isdir(os.path.join(folder, name)) or not folder:
        pytest.skip(f"HSJAX_TFDS_DIR does not name a folder with a prepared {name}")
    monkeypatch.setattr(sources, "_tfds_caches", lambda *_: [tmp_path / "cache"])
    first = data.load(name, folder)
    assert first.train_images.shape == (count, *shape)
    assert first.test_images.shape == (10000, *shape)
    assert set(first.train_labels) == set(first.test_labels) == set(range(10))
    _same(first, data.load(name, folder))
