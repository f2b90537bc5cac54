"""The authors' networks: a NumPy one of PyTorch's names and layouts, and files made by hand."""

import contextlib
import functools
import io
import pickle

import jax
import numpy as np
import pytest
import test_inception
from conftest import tiny_config
from test_inception import Evil, Tensor

import hsjax
from hsjax import exporting, published, training
from hsjax.errors import UserError
from hsjax.metrics import torch_files

SIZES = [  # shape, stages, n
    ((32, 32, 3), (16, 32, 64), 128),
    ((8, 8, 1), (3, 5), 4),
    ((16, 16, 2), (4, 4, 6), 7),
    ((4, 4, 3), (2,), 3),
    ((24, 24, 3), (4, 3, 2), 5),
]
FEW = [*SIZES[:2], *(pytest.param(*size, marks=pytest.mark.slow) for size in SIZES[2:])]


@functools.cache
def built(shape, stages, n):
    config = tiny_config("nowhere.npz")
    config.model.stages, config.model.latent_dim = stages, n
    setup = training.build(training.static(config), training.METHODS["spherical"], shape, 8)
    return setup, config, setup.like(training.build_objective(config))


def made(shape, stages, n):
    """A setup and a state whose every number is another; none is negative, as variances must be."""
    setup, config, like = built(shape, stages, n)
    rng = np.random.default_rng(0)
    params, batch_stats = jax.tree.map(
        lambda x: (rng.uniform(0.1, 1, x.shape) / np.prod(x.shape[:-1])).astype(np.float32),
        (like.params, like.batch_stats),
    )
    return setup, config, params, batch_stats


def nested(tensors, **beside):
    """A file's tree: what stands beside the tensors is as in the authors'."""
    metadata = {"beta_target": 25.0, "channels": [2, 4], "normalize_samples": False, "note": "a"}
    state = {name: Tensor(x) if isinstance(x, np.ndarray) else x for name, x in tensors.items()}
    return {"epoch": 11, "state_dict": state, "metadata": metadata | {"in": {"x": None}}} | beside


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)
        assert x.dtype == y.dtype


# The oracle: the authors' network in NumPy, [batch, channels, height, width], by their names.


def convolve(tensors, name, x):
    kernel = tensors[f"{name}.weight"].astype(np.float64)
    pad = kernel.shape[-1] // 2
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    patches = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[2:], (2, 3))
    y = np.einsum("bihwkl,oikl->bohw", patches, kernel)
    return y + tensors[f"{name}.bias"][:, None, None] if f"{name}.bias" in tensors else y


def normalise(tensors, name, x):
    parts = ("weight", "bias", "running_mean", "running_var")
    gain, shift, mean, var = (
        tensors[f"{name}.{part}"].astype(np.float64).reshape(-1, *[1] * (x.ndim - 2))
        for part in parts
    )
    return gain * (x - mean) / np.sqrt(var + 1e-5) + shift


def leaky(x):
    return np.where(x > 0, x, 0.2 * x)


def halve(x):
    return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4


def block(tensors, at, x):
    y = leaky(normalise(tensors, f"{at}.bn1", convolve(tensors, f"{at}.conv1", x)))
    y = normalise(tensors, f"{at}.bn2", convolve(tensors, f"{at}.conv2", y))
    skip = f"{at}.conv_expand"
    return leaky(y + (convolve(tensors, skip, x) if f"{skip}.weight" in tensors else x))


def linear(tensors, name, x):
    return x @ tensors[f"{name}.weight"].astype(np.float64).T + tensors[f"{name}.bias"]


def encode(tensors, x, halvings):
    x = halve(leaky(normalise(tensors, "encoder.main.1", convolve(tensors, "encoder.main.0", x))))
    for _ in range(halvings - 1):
        x = halve(block(tensors, f"encoder.main.res_in_{x.shape[-1]}", x))
    x = block(tensors, f"encoder.main.res_in_{x.shape[-1]}", x)
    return linear(tensors, "encoder.F2L.0", x.reshape(len(x), -1)), x.shape[1:]


def decode(tensors, z, small, doublings):
    x = leaky(normalise(tensors, "decoder.L2F.1", linear(tensors, "decoder.L2F.0", z)))
    x = x.reshape(-1, *small)
    for i in range(doublings):
        x = block(tensors, f"decoder.main.res_in_{4 * 2**i}", x).repeat(2, -1).repeat(2, -2)
    x = block(tensors, f"decoder.main.res_in_{4 * 2**doublings}", x)
    return 1 / (1 + np.exp(-convolve(tensors, "decoder.main.predict", x)))


@pytest.mark.parametrize(("shape", "stages", "n"), FEW)
def test_the_names_and_layouts_are_those_of_the_authors_network(shape, stages, n):
    setup, config, params, batch_stats = made(shape, stages, n)
    tensors = published.state_dict(params, batch_stats)
    rng = np.random.default_rng(1)
    images, z = rng.uniform(0, 1, (2, *shape)).astype(np.float32), rng.normal(size=(2, n))
    model = training.Model(setup, training.build_objective(config), params, batch_stats)
    outputs, small = encode(tensors, images.transpose(0, 3, 1, 2), len(stages))
    found = jax.jit(model.networks.encode)(images)
    np.testing.assert_allclose(found, outputs, rtol=1e-4, atol=1e-5)
    z *= np.sqrt(n) / np.linalg.norm(z, axis=1, keepdims=True)
    decoded = decode(tensors, z, small, len(stages)).transpose(0, 2, 3, 1)
    found = jax.jit(model.decode)(z.astype(np.float32))
    np.testing.assert_allclose(found, decoded, rtol=1e-5, atol=1e-5)
    assert decoded.std() > 1e-3


def test_the_names_are_the_checkpoints():
    _, _, params, batch_stats = made(*SIZES[0])
    tensors = published.state_dict(params, batch_stats)
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")

    def block(at, skip):
        layers = ["conv_expand"] * skip + ["conv1", "bn1", "conv2", "bn2"]
        return [f"{at}.{x}.{y}" for x in layers for y in (norm if x[0] == "b" else ["weight"])]

    wanted = ["encoder.main.0.weight", *(f"encoder.main.1.{x}" for x in norm)]
    wanted += block("encoder.main.res_in_16", True) + block("encoder.main.res_in_8", True)
    wanted += block("encoder.main.res_in_4", False)
    wanted += [f"{x}.{y}" for x in ("encoder.F2L.0", "decoder.L2F.0") for y in norm[:2]]
    wanted += [f"decoder.L2F.1.{x}" for x in norm] + block("decoder.main.res_in_4", False)
    wanted += block("decoder.main.res_in_8", True) + block("decoder.main.res_in_16", True)
    wanted += block("decoder.main.res_in_32", False)
    wanted += ["decoder.main.predict.weight", "decoder.main.predict.bias"]
    assert list(tensors) == wanted
    assert len(tensors) == 105
    tracked = [x for name, x in tensors.items() if name.endswith("tracked")]
    assert {(x.shape, x.dtype.name, int(x)) for x in tracked} == {((), "int64", 0)}
    weights = [x for name, x in tensors.items() if name.endswith(("weight", "bias"))]
    assert sum(x.size for x in weights) == 660_995
    assert tensors["encoder.F2L.0.weight"].shape == (256, 1024)
    assert tensors["decoder.main.res_in_16.conv_expand.weight"].shape == (16, 32, 1, 1)


@pytest.mark.parametrize(("shape", "stages", "n"), [*SIZES, ((6, 12, 1), (2,), 3)])
def test_from_state_dict_is_the_inverse(shape, stages, n):
    *_, params, batch_stats = made(shape, stages, n)
    params["method"] = {"means": np.ones((2, n), np.float32)}
    tensors = published.state_dict(params, batch_stats)
    del params["method"]
    like = jax.eval_shape(lambda: (params, batch_stats))
    assert_equal(published.from_state_dict(tensors, *like), (params, batch_stats))
    half = {name: x.astype(np.float64) for name, x in tensors.items()}
    assert_equal(published.from_state_dict(half, *like), (params, batch_stats))


@pytest.mark.parametrize(("shape", "stages", "n"), FEW[:3])
@pytest.mark.parametrize("layout", ["zip", "legacy"])
def test_a_file_is_read_to_the_bit(shape, stages, n, layout, tmp_path):
    *_, params, batch_stats = made(shape, stages, n)
    tensors = published.state_dict(params, batch_stats)
    test_inception.write(tmp_path / "model.pt", nested(tensors), layout)
    found = published.read(tmp_path / "model.pt")
    assert_equal((found.params, found.batch_stats), (params, batch_stats))
    assert (found.epoch, found.shape) == (11, shape)
    config = found.config
    assert (tuple(config.model.stages), config.model.latent_dim) == (stages, n)
    assert (config.loss.beta, config.model.project, config.method.name) == (
        25.0,
        False,
        "spherical",
    )
    assert config.data.name == ("cifar10" if shape == (32, 32, 3) else "unknown")
    assert found.metadata["in"] == {"x": None}
    test_inception.write(tmp_path / "bare.pt", tensors, layout)
    bare = published.read(tmp_path / "bare.pt")
    assert_equal((bare.params, bare.batch_stats), (params, batch_stats))
    assert (bare.epoch, bare.metadata, bare.config.loss.beta) == (0, {}, 2500.0)


def test_a_file_is_loaded_sampled_and_exported(tmp_path):
    setup, config, params, batch_stats = made(*SIZES[1])
    path = tmp_path / "model.pt"
    test_inception.write(path, nested(published.state_dict(params, batch_stats)), "zip")
    run = hsjax.load(path)
    assert (run.epoch, run.latent_dim, run.shape, run.metrics) == (12, 4, (8, 8, 1), {})
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)
    model = training.Model(setup, training.build_objective(config), params, batch_stats)
    want = jax.jit(model.encode)(images / np.float32(255)).mean
    np.testing.assert_allclose(run.encode(images).mean, want, rtol=1e-4, atol=1e-5)
    for name in (None, "own", "prior", "uniform_sphere"):
        assert run.sample(3, name).shape == (3, 8, 8, 1)
    with pytest.raises(
        UserError, match=r"model.pt has no embeddings .* own, prior, uniform_sphere$"
    ):
        run.sample(3, "gmm")
    exporting.write(run, tmp_path / "out", format="torch-state-dict-names")
    assert_equal(hsjax.load(tmp_path / "out").state.params, params)


def test_other_networks_are_refused():
    *_, params, batch_stats = made(*SIZES[1])
    other = {name: dict(tree) for name, tree in params.items()}
    other["encoder"]["more"] = {"kernel": np.zeros((2, 2), np.float32)}
    for wrong in ({}, {"encoder": {}, "decoder": {}}, other, params | {"third": other["encoder"]}):
        with pytest.raises(UserError, match="these networks are not the ResNets"):
            published.state_dict(wrong, batch_stats)
    tensors = published.state_dict(params, batch_stats)
    (*_, others, statistics) = made((8, 8, 1), (3, 6), 4)
    with pytest.raises(UserError, match=r"^the state dict: .* is float32 \(5, .*, not floats \(6,"):
        published.from_state_dict(tensors, others, statistics)


def test_each_missing_or_misshapen_tensor_is_named():
    *_, params, batch_stats = made(*SIZES[1])
    tensors = published.state_dict(params, batch_stats)
    for name, x in tensors.items():
        if name.endswith("tracked"):
            continue
        for wrong in (None, np.ones((3, 7), np.float32), x.T[..., None], x.astype(np.int64)):
            found = {key: x for key, x in tensors.items() if key != name}
            with pytest.raises(UserError, match=f"^here: {name} is "):
                published.from_state_dict(
                    found if wrong is None else found | {name: wrong}, params, batch_stats, "here"
                )


def refusal(path) -> str:
    with pytest.raises(UserError) as caught:
        hsjax.load(path)
    message = str(caught.value)
    assert message.isprintable()
    assert str(path) in message
    return message


def test_wrong_files_are_one_line(tmp_path):
    *_, params, batch_stats = made(*SIZES[1])
    tensors = published.state_dict(params, batch_stats)
    path, marker = tmp_path / "model.pt", tmp_path / "marker"

    def without(name):
        return {key: x for key, x in tensors.items() if key != name}

    scalar, huge = np.float32(0).reshape(()), np.zeros((1, 1), np.float32)
    trees = {
        "nothing": ({}, "encoder.main.0.weight is missing"),
        "no tensors": ({"state_dict": {}}, "encoder.main.0.weight is missing"),
        "a list": ({"state_dict": [1]}, "no published model"),
        "code": (nested(tensors, more=Evil(marker)), "posix.system"),
        "code inside": (nested(tensors, metadata={"a": [Evil(marker)]}), "posix.system"),
        "epoch": (nested(tensors, epoch="11"), "its epoch"),
        "negative": (nested(tensors, epoch=-1), "its epoch"),
        "metadata": (nested(tensors, metadata=[1]), "its metadata"),
        "beta": (nested(tensors, metadata={"beta_target": -1.0}), "loss.beta is -1.0"),
        "another": (
            nested(tensors | {"classifier.weight": huge}),
            "'classifier.weight' is no tensor",
        ),
        "a number": (nested(tensors | {"encoder.main.0.weight": scalar}), "no published model"),
        "sides": (nested(tensors | {"decoder.L2F.0.weight": huge}), "aren't square"),
        "n": (
            nested(tensors | {"decoder.L2F.0.weight": np.ones((20, 1), np.float32)}),
            "latent_dim",
        ),
    }
    trees["without one"] = nested(without("decoder.main.predict.bias")), "predict.bias is missing"
    for name, (tree, why) in trees.items():
        test_inception.write(path, tree, "zip")
        assert why in refusal(path), name
    for content in (b"", b"PK", b"no such file", pickle.dumps(Evil(marker), 2), pickle.dumps({})):
        path.write_bytes(content)
        assert "no published model" in refusal(path)
    file = io.BytesIO()
    np.savez(file, **tensors)
    path.write_bytes(file.getvalue())
    assert "no published model" in refusal(path)
    assert not marker.exists()
    with pytest.raises(UserError, match="no published model"):
        published.read(tmp_path)


@pytest.mark.parametrize("layout", ["zip", "legacy"])
def test_damaged_files_are_refused_or_read(layout, tmp_path):
    path = tmp_path / "model.pt"
    *_, params, batch_stats = made(*SIZES[3])
    test_inception.write(path, nested(published.state_dict(params, batch_stats)), layout)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for length in rng.integers(0, len(whole), 30):
        path.write_bytes(whole[:length])
        refusal(path)
    for _ in range(60):
        damaged = bytearray(whole)
        for place in rng.integers(len(whole), size=3):
            damaged[place] = rng.integers(256)
        with contextlib.suppress(torch_files.Unreadable):
            torch_files.contents(bytes(damaged))
        path.write_bytes(damaged)
        with contextlib.suppress(UserError):
            published.read(path)


def test_images_too_large_for_memory_are_refused(tmp_path):
    """A small file may tell of many halvings."""
    sides = [2**i * 100 for i in range(10)]
    tensors = {f"encoder.main.res_in_{side}.conv1.weight": np.ones((1, 1)) for side in sides}
    tensors["encoder.main.0.weight"] = np.ones((1, 3, 5, 5))
    tensors["decoder.L2F.0.weight"] = np.ones((100**2, 2))
    test_inception.write(
        tmp_path / "model.pt", {k: x.astype(np.float32) for k, x in tensors.items()}, "zip"
    )
    assert "its images are of (102400, 102400, 3)" in refusal(tmp_path / "model.pt")


def test_tensors_that_repeat_their_bytes_are_refused(tmp_path):
    class Repeated(Tensor):
        def where(self):
            return (*super().where()[:2], (2**20, 2**20), (0, 0))

    *_, params, batch_stats = made(*SIZES[3])
    tensors = published.state_dict(params, batch_stats)
    tree = nested(tensors | {"decoder.L2F.0.weight": Repeated(np.ones(1, np.float32))})
    test_inception.write(tmp_path / "model.pt", tree, "zip")
    assert "larger than the file" in refusal(tmp_path / "model.pt")


def test_files_of_pytorch_itself_are_read(tmp_path):
    torch = pytest.importorskip("torch", exc_type=ImportError)
    *_, params, batch_stats = made(*SIZES[1])
    tensors = published.state_dict(params, batch_stats)
    state = {name: torch.tensor(x) for name, x in tensors.items()}
    metadata = {
        "channels": [3, 5],
        "beta_target": 25.0,
        "more": {"done": True, "no": None, "s": ()},
    }
    tree = {"epoch": 299, "state_dict": state, "metadata": metadata}
    for new in (True, False):
        torch.save(tree, tmp_path / "model.pt", _use_new_zipfile_serialization=new)
        found = published.read(tmp_path / "model.pt")
        assert_equal((found.params, found.batch_stats), (params, batch_stats))
        assert (found.epoch, found.metadata) == (299, metadata)
