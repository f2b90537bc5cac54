"""Folders of images: classes, scaling, damage; and sets that stay on the host while training."""

import json
import logging
import os
import signal
import threading
import time

import jax
import numpy as np
import pytest
from PIL import Image

from configs import celeba_compressed
from hsjax import batches, data, decoded, experiment
from hsjax.checkpoints import Checkpoints
from hsjax.config import UserError
from hsjax.logs import read_metrics

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "hsjax"


def picture(height, width, channels=3):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


@pytest.fixture
def classes(tmp_path):
    """Cats and dogs, 6 and 4 of them, lossless."""
    folder = tmp_path / "pets"
    pixels = {}
    for split, count in (("train", 3), ("test", 2)):
        for name in ("cat", "dog"):
            for i in range(count):
                path = folder / split / name / f"{i}.{('png', 'bmp', 'tiff')[i]}"
                pixels[split, name, i] = picture(6, 8)
                save(path, pixels[split, name, i])
    (folder / "train" / "notes.txt").write_text("not an image")
    return folder, pixels


def fails(match, name, **options):
    with pytest.raises(UserError, match=match) as caught:
        data.load(f"{name}/", **options)
    assert "\n" not in str(caught.value)


def test_folders_are_classes_and_pixels_come_back(classes, monkeypatch):
    folder, pixels = classes
    pets = data.load(f"{folder}/")
    assert pets.name == f"{folder}/"
    np.testing.assert_array_equal(pets.train_labels, [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(pets.test_labels, [0, 0, 1, 1])
    expected = [pixels["train", name, i] for name in ("cat", "dog") for i in range(3)]
    np.testing.assert_array_equal(pets.train_images, expected)
    np.testing.assert_array_equal(pets.test_images[2], pixels["test", "dog", 0])
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("HOME", str(folder.parent))
    for name in (str(folder), "pets/", "./pets", "~/pets"):
        np.testing.assert_array_equal(data.load(name).train_images, expected)


def test_it_is_decoded_once_and_again_when_a_file_changes(classes, cache, monkeypatch):
    folder, _ = classes
    first = np.array(data.load(f"{folder}/").train_images)
    assert isinstance(data.load(f"{folder}/").train_images, np.memmap)
    (kept,) = cache.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(decoded, "_decode", None)
        np.testing.assert_array_equal(data.load(f"{folder}/").train_images, first)
    save(folder / "train" / "cat" / "0.png", picture(6, 8))
    assert not np.array_equal(data.load(f"{folder}/").train_images, first)
    data.load(f"{folder}/", size=4)
    assert len(list(cache.iterdir())) == 2
    assert kept.is_dir()


def test_the_middle_square_is_cut_out_and_scaled(tmp_path):
    wide, tall = picture(6, 10), picture(9, 7)
    for split in ("train", "test"):
        save(tmp_path / "x" / split / "1.png", wide)
        save(tmp_path / "x" / split / "2.png", tall)
    images = data.load(f"{tmp_path}/x/", crop=4).train_images
    np.testing.assert_array_equal(images, [wide[1:5, 3:7], tall[2:6, 1:5]])
    ramp = np.repeat(np.arange(64, dtype=np.uint8)[None, :, None] * 4, 64, axis=0).repeat(3, 2)
    for split in ("train", "test"):
        for name in "12":
            save(tmp_path / "y" / split / f"{name}.png", ramp)
    images = data.load(f"{tmp_path}/y/", size=16).train_images
    assert images.shape == (2, 16, 16, 3)
    means = ramp[:16].reshape(16, 16, 4, 3).mean(2)  # a straight line stays one away from its ends
    assert np.abs(images[0] - means)[:, 2:-2].max() <= 1


def test_the_way_a_camera_was_held_is_undone(tmp_path):
    upright = picture(4, 4)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned to the left
    for split in ("train", "test"):
        for name in "12":
            save(tmp_path / split / f"{name}.png", np.rot90(upright), exif=exif)
    np.testing.assert_array_equal(data.load(f"{tmp_path}/").train_images[0], upright)


def test_grey_images_stay_grey_unless_there_is_colour(tmp_path):
    for split in ("train", "test"):
        for name in "12":
            save(tmp_path / split / f"{name}.png", picture(4, 5, 1))
    images = data.load(f"{tmp_path}/").train_images
    assert images.shape == (2, 4, 5, 1)
    save(tmp_path / "train" / "3.png", picture(4, 5))
    fails("1 of the 5 images .* train/3.png .it has colours, the first image has none", tmp_path)
    save(tmp_path / "train" / "0.png", picture(4, 5))  # the first one now
    rgb = data.load(f"{tmp_path}/").train_images
    np.testing.assert_array_equal(rgb[1:3], images.repeat(3, axis=-1))


@pytest.fixture
def damaged(classes):
    """Of 10 images, 5 in the training split can't be read."""
    folder, _ = classes
    train = folder / "train"
    whole = (train / "cat" / "0.png").read_bytes()
    (train / "cat" / "0.png").write_bytes(whole[: len(whole) // 2])
    (train / "cat" / "1.bmp").write_bytes(b"")
    (train / "cat" / "2.tiff").write_text("hello")
    save(train / "dog" / "0.png", RNG.integers(0, 2**16, (6, 8), dtype=np.uint16))
    (train / "dog" / "3.jpg").symlink_to("nowhere")
    return folder


def test_damaged_images_are_named_and_counted_and_refused_or_skipped(
    classes, damaged, cache, caplog
):
    fails(
        r"^5 of the 11 images of .*/pets/ can't be read: train/cat/0.png, train/cat/1.bmp, "
        r"train/cat/2.tiff, train/dog/0.png, train/dog/3.jpg \(.+\); mend the set, or leave them "
        "out with --config.data.corrupt=skip$",
        damaged,
    )
    assert not list(cache.iterdir())
    _, pixels = classes
    for _ in range(2):  # decoded, then from the cache
        caplog.clear()
        pets = data.load(f"{damaged}/", corrupt="skip")
        (line,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        assert "5 of the 11 images" in line
        np.testing.assert_array_equal(pets.train_labels, [1, 1])
        np.testing.assert_array_equal(
            pets.train_images, [pixels["train", "dog", 1], pixels["train", "dog", 2]]
        )
    fails("5 of the 11 images", damaged)  # though they are in the cache
    (index,) = cache.glob("*/index.json")
    assert len(json.loads(index.read_text())["skipped"]) == 5


def test_more_damaged_images_than_a_line_holds(tmp_path):
    for split in ("train", "test"):
        for i in range(20):
            path = tmp_path / split / f"{i:02}.jpg"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"no")
    names = ", ".join(f"train/{i:02}.jpg" for i in range(5))
    fails(f"40 of the 40 images of .*: {names} and 35 more", tmp_path)
    fails("train_images would be empty", tmp_path, corrupt="skip")


def test_other_mistakes_are_one_line(classes, tmp_path):
    folder, _ = classes
    fails("train: no such folder: a folder of images holds them in its folders train", tmp_path)
    fails("pets/ .*train/cat/0.png.*8x6 pixels are fewer than data.crop=7", folder, crop=7)
    save(folder / "train" / "cat" / "9.png", picture(5, 5))
    fails(r"images of \(6, 8, 3\) and \(5, 5, 3\): .* --config.data.size=PIXELS", folder)
    save(folder / "train" / "1.png", picture(6, 8))
    fails("put all of its images into folders of their classes, or none", folder)
    with pytest.raises(UserError, match="can't scale digits"):
        data.load("digits", size=16)


def test_batches_from_the_host_are_those_of_the_order():
    images = picture(50 * 4, 5).reshape(50, 4, 5, 3)
    order = np.asarray(batches.epoch_order(jax.random.key(3), 50, 8))
    found = list(batches.stream(images, order))
    assert all(isinstance(batch, jax.Array) for batch in found)
    np.testing.assert_array_equal(found, images[order])
    next(batches.stream(images, order))  # not to the end
    deadline = time.monotonic() + 20
    while reading := [t for t in threading.enumerate() if t.name.startswith("grain-prefetch")]:
        assert time.monotonic() < deadline, reading
        time.sleep(0.01)


@pytest.fixture
def undrawn(monkeypatch):
    monkeypatch.setattr(experiment, "_evaluate", lambda *args: {})


def state_of(config, workdir):
    dataset = data.of_config(config.data)
    initial = experiment.train.create(
        config, dataset.train_images.shape[1:], len(dataset.train_images)
    )[1]
    with Checkpoints(workdir / "checkpoints", 3) as checkpoints:
        return checkpoints.restore(initial)


def test_a_streamed_run_is_the_resident_one_also_when_stopped_midway(
    config, tmp_path, undrawn, monkeypatch, capsys
):
    experiment.train_and_evaluate(config, tmp_path / "resident")
    assert "streamed" not in capsys.readouterr().out
    config.data.device_share = 0.0
    stream, steps = batches.stream, []

    def stopping(images, order):
        for batch in stream(images, order):
            yield batch
            steps.append(1)
            if len(steps) == 9:  # in the middle of the second epoch
                os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(batches, "stream", stopping)
        with pytest.raises(experiment.Interrupted):
            experiment.train_and_evaluate(config, tmp_path / "streamed")
    experiment.train_and_evaluate(config, tmp_path / "streamed")
    output = capsys.readouterr().out
    assert "batches of 8 an epoch (the last one filled up with 4 seen twice), streamed" in output
    assert "after epoch 1, step 10" in output
    one, two = (read_metrics(tmp_path / name) for name in ("resident", "streamed"))
    for row in one + two:
        del row["seconds"], row["images_per_second"]
    assert one == two
    states = (state_of(config, tmp_path / name) for name in ("resident", "streamed"))
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(a, b)


def test_64x64_images_train(tmp_path, undrawn, capsys):
    for split in ("train", "test"):
        for i in range(12):
            save(tmp_path / "faces" / split / f"{i}.jpg", picture(180 + i, 160))
    config = celeba_compressed.get_config()
    config.data.name = f"{tmp_path}/faces/"
    config.data.device_share = 0.0
    config.model.stages = (2, 2, 4, 4)
    config.train.batch_size, config.train.epochs = 6, 1
    experiment.train_and_evaluate(config, tmp_path / "run")
    assert "12 training images of 64x64x3, 2 batches of 6 an epoch, str" in capsys.readouterr().out
    (row,) = read_metrics(tmp_path / "run")
    assert np.isfinite(row["loss"])
