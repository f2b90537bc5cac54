"""Folders of images: classes, scaling, damage; and sets that stay on the host while training."""

import hashlib
import json
import logging
import os
import shutil
import signal
import threading
import time

import jax
import numpy as np
import pytest
from PIL import Image

from configs import celeba_compressed
from hsjax import batches, data, decoded, experiment, training
from hsjax.checkpoints import Checkpoints
from hsjax.errors import UserError
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


@pytest.fixture
def greys(tmp_path):
    """A folder of two grey images in each split, and those of the training split."""
    pixels = {split: [picture(4, 5, 1) for _ in "12"] for split in ("train", "test")}
    for split, images in pixels.items():
        for i, image in enumerate(images):
            save(tmp_path / "grey" / split / f"{i + 1}.png", image)
    return tmp_path / "grey", np.stack(pixels["train"])[..., None]


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("name", ["train/0.png", "train/3.png", "test/3.png"])
def test_grey_images_stay_grey_unless_one_has_colours(greys, cache, name, kept):
    folder, images = greys
    np.testing.assert_array_equal(data.load(f"{folder}/").train_images, images)
    if not kept:
        shutil.rmtree(cache)
        cache.write_text("a file where the folder should be")
    colour = picture(4, 5)
    save(folder / name, colour)
    found = data.load(f"{folder}/")
    expected = list(images.repeat(3, axis=-1))
    if name == "test/3.png":
        np.testing.assert_array_equal(found.test_images[2], colour)
    else:
        expected.insert(int(name[6]), colour)
    np.testing.assert_array_equal(found.train_images, expected)


def test_what_cannot_be_read_does_not_decide_on_colour(greys):
    folder, images = greys
    save(folder / "train" / "0.png", picture(40, 50))
    content = (folder / "train" / "0.png").read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"hello"):
        (folder / "train" / "0.png").write_bytes(damaged)
        found = data.load(f"{folder}/", corrupt="skip")
        np.testing.assert_array_equal(found.train_images, images)
    save(folder / "train" / "0.png", RNG.integers(0, 2**16, (4, 5), dtype=np.uint16))
    np.testing.assert_array_equal(data.load(f"{folder}/", corrupt="skip").train_images, images)


def test_a_palette_has_the_colours_that_are_seen(greys):
    folder, images = greys
    image = Image.fromarray(images[0, ..., 0]).convert("P")  # whose palette is all greys
    image.save(folder / "train" / "1.png")
    np.testing.assert_array_equal(data.load(f"{folder}/").train_images, images)
    palette = image.getpalette()
    unseen = next(i for i in range(256) if i not in images[0])
    palette[3 * unseen : 3 * unseen + 3] = 255, 0, 0
    image.putpalette(palette)
    image.save(folder / "train" / "1.png")
    np.testing.assert_array_equal(data.load(f"{folder}/").train_images, images)
    image.putpixel((0, 0), unseen)
    image.save(folder / "train" / "1.png")
    found = data.load(f"{folder}/").train_images
    np.testing.assert_array_equal(found[0, 0, 0], [255, 0, 0])
    np.testing.assert_array_equal(found[1], images[1].repeat(3, axis=-1))


def test_what_is_transparent_becomes_white(tmp_path):
    alpha = np.array([[0, 255, 51, 128]], np.uint8).repeat(4, axis=0)

    def on_white(pixels):
        share = alpha[..., None] / 255
        return share * pixels + (1 - share) * 255

    colour, grey = picture(4, 4), picture(4, 4, 1)
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([9, 9, 9, 70, 0, 80])
    palette.putpixel((0, 0), 0)
    for split in ("train", "test"):
        save(tmp_path / "rgba" / split / "0.png", np.dstack([colour, alpha]))
        save(tmp_path / "rgba" / split / "1.tif", np.dstack([colour, alpha]))
        save(tmp_path / "la" / split / "0.png", np.dstack([grey, alpha]))
        (tmp_path / "keyed" / split).mkdir(parents=True)
        palette.save(tmp_path / "keyed" / split / "0.png", transparency=0)
        Image.new("RGB", (4, 4), (1, 2, 3)).save(
            tmp_path / "keyed" / split / "1.png", transparency=(1, 2, 3)
        )
        save(tmp_path / "la" / split / "1.png", grey)
    found = data.load(f"{tmp_path}/rgba/").train_images
    for image in found:
        assert np.abs(image - on_white(colour)).max() <= 0.51
    found = data.load(f"{tmp_path}/la/").train_images
    assert found.shape == (2, 4, 4, 1)
    assert np.abs(found[0] - on_white(grey[..., None])).max() <= 0.51
    np.testing.assert_array_equal(found[1, ..., 0], grey)
    first, second = data.load(f"{tmp_path}/keyed/").train_images
    np.testing.assert_array_equal(first[0, 0], [255, 255, 255])
    np.testing.assert_array_equal(first[1, 1], [70, 0, 80])
    assert (second == 255).all()


def test_links_are_followed_but_not_back(classes, tmp_path):
    folder, _ = classes
    whole = data.load(f"{folder}/")
    far = tmp_path / "far"
    far.mkdir()
    for number, name in enumerate(["train/dog", "test", "train/cat/1.bmp"]):
        (folder / name).rename(far / f"{number}")
        (folder / name).symlink_to(far / f"{number}")
    (folder / "train" / "cat" / "more").mkdir()
    (folder / "train" / "cat" / "0.png").rename(folder / "train" / "cat" / "more" / "0.png")
    (folder / "train" / "cat" / "back").symlink_to("..")
    (folder / "train" / "all").symlink_to(folder)
    (far / "0" / "self").symlink_to("self")
    (far / "0" / "here").symlink_to(".")
    fails("train/dog/self is a link to nowhere: mend or remove it", folder)
    (far / "0" / "self").unlink()
    found = data.load(f"{folder}/")
    np.testing.assert_array_equal(found.train_labels, whole.train_labels)
    np.testing.assert_array_equal(found.train_images[3:], whole.train_images[3:])
    np.testing.assert_array_equal(found.train_images[[2, 0, 1]], whole.train_images[:3])
    np.testing.assert_array_equal(found.test_images, whole.test_images)


def test_what_archives_and_systems_leave_is_no_data(classes):
    folder, _ = classes
    whole = np.array(data.load(f"{folder}/").train_images)
    (folder / "train" / "._0.png").write_bytes(b"\0\5\x16\7" + bytes(100))
    for name in ("__MACOSX", "@eaDir", ".thumbnails", "cat/@eaDir"):
        save(folder / "train" / name / "0.png", picture(6, 8))
    found = data.load(f"{folder}/")
    np.testing.assert_array_equal(found.train_images, whole)
    assert set(found.train_labels) == {0, 1}


def test_a_folder_without_splits_is_split(tmp_path, cache):
    folder = tmp_path / "flat"
    pixels = [picture(4, 5) for _ in range(40)]
    for i, image in enumerate(pixels):
        save(folder / f"{i:02}.png", image)

    def places(**options):
        """Where the images of each split are in the folder."""
        found = data.load(f"{folder}/", **options)
        assert found.train_labels is None
        return [
            [next(i for i, pixel in enumerate(pixels) if np.array_equal(pixel, x)) for x in images]
            for images in (found.train_images, found.test_images)
        ]

    train, test = places()
    ranks = [hashlib.sha256(f"{i:02}.png".encode()).hexdigest() for i in range(40)]
    assert test == sorted(sorted(range(40), key=lambda i: ranks[i])[:4])
    assert sorted(train + test) == list(range(40))
    assert train == sorted(train)
    few, many = places(test_share=0.001)[1], places(test_share=0.5)[1]
    assert (len(few), len(many)) == (2, 20)
    assert set(few) < set(test) < set(many)
    assert places() == [train, test]
    assert len(list(cache.iterdir())) == 3


def test_folders_of_a_folder_without_splits_are_classes(tmp_path):
    folder = tmp_path / "flat"
    for name, value in (("cat", 10), ("dog", 20)):
        for i in range(10):
            save(folder / name / "more" / f"{i}.png", np.full((4, 5), value, np.uint8))
    found = data.load(f"{folder}/", test_share=0.4)
    assert (len(found.train_images), len(found.test_images)) == (12, 8)
    for images, labels in (found[1:3], found[3:5]):
        np.testing.assert_array_equal(images[:, 0, 0, 0], 10 * labels + 10)
    save(folder / "1.png", picture(4, 5))
    fails("put all of its images into folders of their classes, or none", folder)
    (folder / "1.png").unlink()
    (folder / "dog").rename(folder / "Val")
    fails("flat/Val looks like a split: give data.name the folder that holds train", folder)
    fails("flat/Val looks like a split", tmp_path)
    (folder / "Val").rename(folder / "train")
    fails("flat/test can't be read .No such file.*", folder)


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
    fails(
        "pets/t(rain|est) looks like a split: give data.name the folder that holds train", tmp_path
    )
    missing = tmp_path / "none" / "pets"
    fails("none/pets can't be read .No such file .*: a folder of images holds them", missing)
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
    count, *shape = dataset.train_images.shape
    _, initial = training.create(config, tuple(shape), count)
    with Checkpoints(workdir / "checkpoints", 3) as checkpoints:
        return checkpoints.restore(initial)


def not_judged(config):
    """Training alone, which is what is looked at."""
    config.evaluate.features, config.evaluate.samplers, config.evaluate.metrics = "none", (), ()


@pytest.mark.slow
def test_a_streamed_run_is_the_resident_one_also_when_stopped_midway(
    config, tmp_path, undrawn, monkeypatch, capsys
):
    not_judged(config)
    experiment.train_and_evaluate(config, tmp_path / "resident")
    assert "streamed" not in capsys.readouterr().out
    config.data.device_share = 0.0
    stream, steps = batches.stream, []

    def stopping(examples, order):
        for batch in stream(examples, order):
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


@pytest.mark.slow
def test_64x64_images_train(tmp_path, undrawn, capsys):
    for split in ("train", "test"):
        for i in range(12):
            save(tmp_path / "faces" / split / f"{i}.jpg", picture(180 + i, 160))
    config = celeba_compressed.get_config()
    config.data.name = f"{tmp_path}/faces/"
    config.data.device_share = 0.0
    config.model.stages = (2, 2, 4, 4)
    config.train.batch_size, config.train.epochs = 6, 1
    not_judged(config)
    experiment.train_and_evaluate(config, tmp_path / "run")
    assert "12 training images of 64x64x3, 2 batches of 6 an epoch, str" in capsys.readouterr().out
    (row,) = read_metrics(tmp_path / "run")
    assert np.isfinite(row["loss"])
