"""The Inception network against NumPy in float64; its loader against files made by hand."""

import collections
import contextlib
import io
import os
import pickle
import re
import sys
import types
import zipfile
from unittest import mock

import jax
import numpy as np
import pytest
from PIL import Image

from hsjax.errors import UserError
from hsjax.metrics import inception, torch_files

# The oracle: the published network, NCHW, batch norm unfolded, PyTorch's names.


class Oracle:
    """Makes up a parameter when a layer first asks for it, in `state`."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.state = collections.OrderedDict()

    def parameters(self, name, outputs, inputs, size):
        def keep(suffix, values):
            return self.state.setdefault(f"{name}.{suffix}", values.astype(np.float32))

        if f"{name}.conv.weight" not in self.state:
            rng = self.rng
            fan_in = inputs * size[0] * size[1]
            kernel = rng.standard_normal((outputs, inputs, *size), np.float32)
            # As if ported from TensorFlow: the bytes in the order height, width, inputs, outputs.
            kernel = np.ascontiguousarray(kernel.transpose(2, 3, 1, 0)).transpose(3, 2, 0, 1)
            keep("conv.weight", kernel * np.float32(np.sqrt(2 / fan_in)))
            keep("bn.weight", rng.uniform(0.5, 1.5, outputs))
            keep("bn.bias", rng.normal(0, 0.3, outputs))
            keep("bn.running_mean", rng.normal(0, 0.3, outputs))
            keep("bn.running_var", rng.uniform(0.3, 2, outputs))
        names = "conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"
        return [self.state[f"{name}.{suffix}"].astype(np.float64) for suffix in names]

    def unit(self, x, name, outputs, size, stride=1, padding=(0, 0)):
        kernel, *norm = self.parameters(name, outputs, x.shape[1], size)
        patches = windows(x, size, stride, padding, 0)
        y = np.tensordot(patches, kernel, ((1, 4, 5), (1, 2, 3))).transpose(0, 3, 1, 2)
        gamma, beta, mean, var = (p[:, None, None] for p in norm)
        return np.maximum(gamma * (y - mean) / np.sqrt(var + 0.001) + beta, 0)

    def layers(self, x):
        found = {}
        x = self.unit(x, "Conv2d_1a_3x3", 32, (3, 3), stride=2)
        x = self.unit(x, "Conv2d_2a_3x3", 32, (3, 3))
        x = self.unit(x, "Conv2d_2b_3x3", 64, (3, 3), padding=(1, 1))
        x = found["pool1"] = max_pool(x, stride=2)
        x = self.unit(x, "Conv2d_3b_1x1", 80, (1, 1))
        x = self.unit(x, "Conv2d_4a_3x3", 192, (3, 3))
        x = found["pool2"] = max_pool(x, stride=2)
        x = found["Mixed_5b"] = self.block_a(x, "Mixed_5b.", 32)
        x = found["Mixed_5c"] = self.block_a(x, "Mixed_5c.", 64)
        x = found["Mixed_5d"] = self.block_a(x, "Mixed_5d.", 64)
        x = found["Mixed_6a"] = self.block_b(x, "Mixed_6a.")
        x = found["Mixed_6b"] = self.block_c(x, "Mixed_6b.", 128)
        x = found["Mixed_6c"] = self.block_c(x, "Mixed_6c.", 160)
        x = found["Mixed_6d"] = self.block_c(x, "Mixed_6d.", 160)
        x = found["Mixed_6e"] = self.block_c(x, "Mixed_6e.", 192)
        x = found["Mixed_7a"] = self.block_d(x, "Mixed_7a.")
        x = found["Mixed_7b"] = self.block_e(x, "Mixed_7b.", mean_pool(x))
        x = found["Mixed_7c"] = self.block_e(x, "Mixed_7c.", max_pool(x, stride=1, padding=1))
        found["mean"] = x.mean((2, 3))
        return found

    def block_a(self, x, at, pooled):
        a = self.unit(x, at + "branch1x1", 64, (1, 1))
        b = self.unit(x, at + "branch5x5_1", 48, (1, 1))
        b = self.unit(b, at + "branch5x5_2", 64, (5, 5), padding=(2, 2))
        c = self.unit(x, at + "branch3x3dbl_1", 64, (1, 1))
        c = self.unit(c, at + "branch3x3dbl_2", 96, (3, 3), padding=(1, 1))
        c = self.unit(c, at + "branch3x3dbl_3", 96, (3, 3), padding=(1, 1))
        d = self.unit(mean_pool(x), at + "branch_pool", pooled, (1, 1))
        return np.concatenate([a, b, c, d], 1)

    def block_b(self, x, at):
        a = self.unit(x, at + "branch3x3", 384, (3, 3), stride=2)
        b = self.unit(x, at + "branch3x3dbl_1", 64, (1, 1))
        b = self.unit(b, at + "branch3x3dbl_2", 96, (3, 3), padding=(1, 1))
        b = self.unit(b, at + "branch3x3dbl_3", 96, (3, 3), stride=2)
        return np.concatenate([a, b, max_pool(x, stride=2)], 1)

    def block_c(self, x, at, c7):
        row, column = {"size": (1, 7), "padding": (0, 3)}, {"size": (7, 1), "padding": (3, 0)}
        a = self.unit(x, at + "branch1x1", 192, (1, 1))
        b = self.unit(x, at + "branch7x7_1", c7, (1, 1))
        b = self.unit(b, at + "branch7x7_2", c7, **row)
        b = self.unit(b, at + "branch7x7_3", 192, **column)
        c = self.unit(x, at + "branch7x7dbl_1", c7, (1, 1))
        c = self.unit(c, at + "branch7x7dbl_2", c7, **column)
        c = self.unit(c, at + "branch7x7dbl_3", c7, **row)
        c = self.unit(c, at + "branch7x7dbl_4", c7, **column)
        c = self.unit(c, at + "branch7x7dbl_5", 192, **row)
        d = self.unit(mean_pool(x), at + "branch_pool", 192, (1, 1))
        return np.concatenate([a, b, c, d], 1)

    def block_d(self, x, at):
        a = self.unit(x, at + "branch3x3_1", 192, (1, 1))
        a = self.unit(a, at + "branch3x3_2", 320, (3, 3), stride=2)
        b = self.unit(x, at + "branch7x7x3_1", 192, (1, 1))
        b = self.unit(b, at + "branch7x7x3_2", 192, (1, 7), padding=(0, 3))
        b = self.unit(b, at + "branch7x7x3_3", 192, (7, 1), padding=(3, 0))
        b = self.unit(b, at + "branch7x7x3_4", 192, (3, 3), stride=2)
        return np.concatenate([a, b, max_pool(x, stride=2)], 1)

    def block_e(self, x, at, pooled):
        row, column = {"size": (1, 3), "padding": (0, 1)}, {"size": (3, 1), "padding": (1, 0)}
        a = self.unit(x, at + "branch1x1", 320, (1, 1))
        b = self.unit(x, at + "branch3x3_1", 384, (1, 1))
        b1 = self.unit(b, at + "branch3x3_2a", 384, **row)
        b2 = self.unit(b, at + "branch3x3_2b", 384, **column)
        c = self.unit(x, at + "branch3x3dbl_1", 448, (1, 1))
        c = self.unit(c, at + "branch3x3dbl_2", 384, (3, 3), padding=(1, 1))
        c1 = self.unit(c, at + "branch3x3dbl_3a", 384, **row)
        c2 = self.unit(c, at + "branch3x3dbl_3b", 384, **column)
        d = self.unit(pooled, at + "branch_pool", 192, (1, 1))
        return np.concatenate([a, b1, b2, c1, c2, d], 1)


def windows(x, size, stride, padding, fill):
    """[N, C, H, W] -> [N, C, H', W', *size]."""
    pads = [(0, 0), (0, 0), (padding[0], padding[0]), (padding[1], padding[1])]
    x = np.pad(x, pads, constant_values=fill)
    return np.lib.stride_tricks.sliding_window_view(x, size, (2, 3))[:, :, ::stride, ::stride]


def max_pool(x, stride, padding=0):
    return windows(x, (3, 3), stride, (padding, padding), -np.inf).max((4, 5))


def mean_pool(x):
    return np.nanmean(windows(x, (3, 3), 1, (1, 1), np.nan), (4, 5))


def pillow_resize(image):
    """uint8 [H, W, C] -> float [299, 299, C], a channel at a time in Pillow's float mode."""
    planes = [Image.fromarray(plane) for plane in np.moveaxis(image, -1, 0).astype(np.float32)]
    return np.stack([plane.resize((299, 299), Image.Resampling.BICUBIC) for plane in planes], -1)


# PyTorch's two formats, written without PyTorch. `Evil` and bare objects are pickled as they are.

TORCH, UTILS = types.ModuleType("torch"), types.ModuleType("torch._utils")
TORCH._utils = UTILS


def stand_in(module, name):
    """What pickle writes as `module.name`."""
    setattr(module, name, type(name, (), {"__module__": module.__name__}))


for name in ("FloatStorage", "LongStorage"):
    stand_in(TORCH, name)
for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter"):
    stand_in(UTILS, name)


class Storage:
    def __init__(self, array):
        self.array = array

    def content(self):
        """The bytes, in the order they have in memory."""
        return self.array.transpose(np.argsort(self.array.strides)[::-1]).tobytes()


class Tensor:
    def __init__(self, array):
        self.array = array

    def where(self):
        strides = tuple(s // self.array.itemsize for s in self.array.strides)
        return Storage(self.array), 0, self.array.shape, strides

    def __reduce__(self):
        return UTILS._rebuild_tensor_v2, (*self.where(), False, collections.OrderedDict())


class OldTensor(Tensor):
    def __reduce__(self):
        return UTILS._rebuild_tensor, self.where()


class Parameter(Tensor):
    def __reduce__(self):
        return UTILS._rebuild_parameter, (Tensor(self.array), True, collections.OrderedDict())


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def write(path, state, layout, protocol=2):
    """A state dict as torch.save writes it: layout is "legacy" or "zip"."""
    storages = {}
    like = collections.OrderedDict(
        (name, Tensor(value) if isinstance(value, np.ndarray) else value)
        for name, value in state.items()
    )
    like._metadata = collections.OrderedDict([("", {"version": 1}), ("fc", {"version": 1})])

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            if not isinstance(value, Storage):
                return None
            key = str(len(storages))
            storages[key] = value
            kind = TORCH.LongStorage if value.array.dtype == np.int64 else TORCH.FloatStorage
            description = ("storage", kind, key, "cpu", value.array.size)
            return description if layout == "zip" else (*description, None)

    def dump(value, file):
        Pickler(file, protocol).dump(value)

    with mock.patch.dict(sys.modules, {"torch": TORCH, "torch._utils": UTILS}):
        if layout == "zip":
            index = io.BytesIO()
            dump(like, index)
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("archive/data.pkl", index.getvalue())
                for key, storage in storages.items():
                    archive.writestr(f"archive/data/{key}", storage.content())
                archive.writestr("archive/version", "3\n")
            return
        with open(path, "wb") as file:
            dump(0x1950A86A20F9469CFC6C, file)
            dump(1001, file)
            dump({"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}, file)
            dump(like, file)
            dump(sorted(storages), file)
            for key in sorted(storages):
                size = storages[key].array.size
                file.write(size.to_bytes(8, "little") + storages[key].content())


@pytest.fixture(scope="module")
def oracle():
    """The oracle, an input that keeps 2×3 of the last blocks' pixels, and what it gives there."""
    oracle = Oracle(0)
    x = np.random.default_rng(1).uniform(-1, 1, (1, 3, 107, 139))
    layers = oracle.layers(x)
    oracle.state["fc.weight"] = np.ones((1008, 2048), np.float32)
    oracle.state["Mixed_7c.branch_pool.bn.num_batches_tracked"] = np.array(7)
    return oracle, x, layers


@pytest.fixture(scope="module")
def files(oracle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("inception")
    for layout in ("legacy", "zip"):
        write(folder / layout, oracle[0].state, layout)
    return folder


@pytest.fixture
def small(monkeypatch):
    """A network of one convolution, so that a file of it is small."""
    monkeypatch.setattr(inception, "_kernel_shapes", lambda: {"a": (1, 2, 3, 4)})
    oracle = Oracle(2)
    oracle.parameters("a", 4, 3, (1, 2))
    oracle.state["a.bn.num_batches_tracked"] = np.array(7)
    return oracle


def refusal(path, **arguments):
    with pytest.raises(UserError) as caught:
        inception.read(path, **({"sha256_prefix": ""} | arguments))
    message = str(caught.value)
    assert message.isprintable()
    assert str(path) in message
    assert "put there" in message
    return message


def test_every_layer_is_the_published_networks(oracle, files):
    _, x, want = oracle
    weights, _ = inception.read(files / "legacy", "")
    got = jax.jit(inception.features)(weights, x.transpose(0, 2, 3, 1).astype(np.float32))
    assert got.keys() == want.keys()
    assert got["mean"].shape == (1, inception.DIMENSION)
    for name, expected in want.items():
        found = np.asarray(got[name])
        found = found if name == "mean" else found.transpose(0, 3, 1, 2)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found / scale, expected / scale, rtol=0, atol=3e-6, err_msg=name)


def test_both_formats_hold_the_same_weights(files):
    legacy, one = inception.read(files / "legacy", "")
    zipped, other = inception.read(files / "zip", "")
    assert one != other
    assert legacy.keys() == zipped.keys()
    for name in legacy:
        np.testing.assert_array_equal(legacy[name].kernel, zipped[name].kernel)
        np.testing.assert_array_equal(legacy[name].bias, zipped[name].bias)


def test_features_of_images_are_those_of_pillow_and_numpy(small, tmp_path, monkeypatch):
    def one_layer(unit, x):
        return {"mean": unit(x, "a", 4, (1, 2), 1, "VALID").mean((1, 2))}

    monkeypatch.setattr(inception, "_network", one_layer)
    monkeypatch.setattr(inception, "DIMENSION", 4)
    write(tmp_path / "zip", small.state, "zip")
    images = np.random.default_rng(3).integers(0, 256, (3, 8, 8, 1), dtype=np.uint8)
    extract, about = inception.load(tmp_path / "zip", "", batch_size=2)
    got = extract(images)
    resized = np.clip(pillow_resize(np.repeat(images[2], 3, -1)), 0, 255)
    x = (resized / 255).astype(np.float64).transpose(2, 0, 1)[None] * 2 - 1
    want = small.unit(x, "a", 4, (1, 2)).mean((2, 3))[0]
    assert got.shape == (3, 4)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got[2], want, rtol=0, atol=1e-5 * np.abs(want).max())
    assert np.abs(got[1] - want).max() > 1e-3 * np.abs(want).max()  # another image, other features
    assert about["file"] == "zip"
    assert about["dimension"] == 4
    assert re.fullmatch("[0-9a-f]{64}", about["sha256"])
    for wrong in (images / 255, images[0], np.zeros((1, 8, 8, 2), np.uint8)):
        with pytest.raises(ValueError, match=r"uint8 \[N, H, W, 1 or 3\]"):
            extract(wrong)


@pytest.mark.parametrize(
    ("side", "grey_levels"),
    [(8, 4e-4), (32, 5e-4), (299, 4e-5), (320, 2e-2)],  # float32 places pixels less well far out
)
def test_resizing_is_pillows(side, grey_levels):
    images = np.random.default_rng(side).integers(0, 256, (2, side, side, 3), dtype=np.uint8)
    got = (np.asarray(inception.preprocess(images)) + 1) / 2 * 255
    want = np.clip(np.stack([pillow_resize(image) for image in images]), 0, 255)
    np.testing.assert_allclose(got, want, rtol=0, atol=grey_levels)
    assert got.min() >= 0
    assert got.max() <= 255.0001


@pytest.mark.parametrize("form", [OldTensor, Parameter])
def test_other_forms_of_a_tensor_are_read(form, small, tmp_path):
    path, other = tmp_path / "weights", tmp_path / "other"
    write(path, small.state, "legacy")
    write(other, {name: form(value) for name, value in small.state.items()}, "legacy")
    (want, _), (got, _) = inception.read(path, ""), inception.read(other, "")
    np.testing.assert_array_equal(got["a"].kernel, want["a"].kernel)
    np.testing.assert_array_equal(got["a"].bias, want["a"].bias)


@pytest.mark.parametrize("layout", ["legacy", "zip"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_what_stands_beside_the_tensors_is_left_out(layout, protocol, small, tmp_path):
    path = tmp_path / "weights"
    more = {"epoch": 3, "loss": 0.5, "done": True, "name": "a", "no": None, "sizes": [1, (2, 3)]}
    inner = {0: {"step": 2**40}, "kept": Tensor(np.zeros(3, np.float32))}
    write(path, small.state | more | {"nested": inner}, layout, protocol)
    whole = torch_files.contents(path.read_bytes())
    assert {name: whole[name] for name in more} == more
    assert whole["nested"][0] == {"step": 2**40}
    np.testing.assert_array_equal(whole["nested"]["kept"], np.zeros(3))
    got = torch_files.tensors(path.read_bytes())
    assert got.keys() == small.state.keys()
    for name, array in got.items():
        np.testing.assert_array_equal(array, small.state[name])


@pytest.mark.parametrize("layout", ["legacy", "zip"])
def test_what_is_inside_is_plain_whole_and_no_larger_than_the_file(layout, small, tmp_path):
    """Lists of lists that a file holds once may be endless, and so may their text."""
    path = tmp_path / "weights"
    endless, doubled = [], [0]
    endless.append(endless)
    for _ in range(60):
        doubled = [doubled, doubled]
    forged = Tensor(np.zeros(3, np.float32))
    forged.where = lambda: (Storage(forged.array), 1, (3,), (1,))
    wrong = {
        "a list in itself": endless,
        "doubled": doubled,
        "inside.1.x is cut": [0, {"x": forged}],
    }
    wrong |= {"a type": [TORCH.FloatStorage], "a storage": {"x": Storage(forged.array)}}
    for name, inside in wrong.items():
        write(path, small.state | {"inside": inside}, layout)
        for read in (torch_files.contents, torch_files.tensors):
            with pytest.raises(torch_files.Unreadable) as caught:
                read(path.read_bytes())
        assert not name.startswith("inside") or name in str(caught.value)
    path.write_bytes(pickle.dumps([1], 2))
    with pytest.raises(torch_files.Unreadable):
        torch_files.contents(path.read_bytes())


@pytest.mark.parametrize("layout", ["legacy", "zip"])
def test_a_damaged_file_is_refused(layout, small, tmp_path):
    path = tmp_path / "weights"
    write(path, small.state, layout)
    weights, digest = inception.read(path, "")
    assert weights["a"].kernel.shape == (1, 2, 3, 4)
    assert inception.read(path, digest[:8])[1] == digest
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 11), len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert "isn't" in refusal(path, sha256_prefix=digest[:8])
        refusal(path)
    rng = np.random.default_rng(4)
    for _ in range(200):  # a flipped byte may leave a readable file, but never another exception
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] = rng.integers(256)
        path.write_bytes(damaged)
        with contextlib.suppress(UserError):
            inception.read(path, "")


def test_another_file_is_refused_by_its_hash(small, tmp_path):
    path = tmp_path / "weights"
    write(path, small.state, "legacy")
    message = refusal(path, sha256_prefix=inception.SHA256)
    assert "6726825d" in message
    assert inception.URL in message
    with pytest.raises(UserError, match="isn't pt_inception"):
        inception.load(path)


def test_a_missing_file_is_refused(tmp_path):
    assert "No such file" in refusal(tmp_path / "absent")
    refusal(tmp_path)


@pytest.mark.parametrize("layout", ["legacy", "zip"])
def test_a_missing_or_misshapen_tensor_is_named(layout, small, tmp_path):
    path = tmp_path / "weights"
    write(path, small.state | {"a.bn.bias": np.zeros(5, np.float32)}, layout)
    assert "a.bn.bias is (5,), not (4,)" in refusal(path)
    del small.state["a.bn.running_var"]
    write(path, small.state, layout)
    assert "a.bn.running_var is missing" in refusal(path)


@pytest.mark.parametrize("layout", ["legacy", "zip"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_code_in_a_file_is_not_executed(layout, protocol, small, tmp_path):
    path, marker = tmp_path / "weights", tmp_path / "marker"
    evil = Evil(marker)
    pickle.loads(pickle.dumps(evil, protocol))
    assert marker.exists()  # a pickle that is loaded does execute it
    marker.unlink()
    write(path, small.state | {"a.bn.weight": evil}, layout, protocol)
    message = refusal(path)
    assert "posix.system" in message
    write(path, small.state | {"unused": evil}, layout, protocol)
    refusal(path)
    path.write_bytes(pickle.dumps(evil, protocol))
    refusal(path)
    assert not marker.exists()


def test_a_compressed_file_is_refused(small, tmp_path):
    path = tmp_path / "weights"
    write(path, small.state, "zip")
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    assert "compressed" in refusal(path)


@pytest.mark.parametrize(
    ("offset", "shape", "strides"), [(1, (4,), (1,)), (-1, (4,), (1,)), (0, (2**40,), (1,))]
)
def test_a_tensor_outside_its_storage_is_refused(offset, shape, strides, small, tmp_path):
    class Forged(Tensor):
        def where(self):
            return Storage(self.array), offset, shape, strides

    path = tmp_path / "weights"
    write(path, small.state | {"a.bn.bias": Forged(small.state["a.bn.bias"])}, "legacy")
    assert "a.bn.bias is cut short" in refusal(path)
