"""The Inception network of FID (2015-12-05), its weights read from a local file."""

import functools
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from hsjax.errors import UserError
from hsjax.metrics import torch_files

FILE = "pt_inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE}"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
DIMENSION = 2048
SIDE = 299


class Unit(NamedTuple):
    """A convolution with its batch norm folded in, float32."""

    kernel: Array  # [height, width, inputs, outputs]
    bias: Array  # [outputs]


# The network. Block and branch names are those of the file.


def features(weights: dict[str, Unit], x: Array) -> dict[str, Array]:
    """Every block's output by name.

    It differs from the common Inception v3: average pools don't count the padding, and the pool of
    the last block is a maximum.

    Args:
      weights: from `read`.
      x: [N, H, W, 3] in [-1, 1]; H and W are 299 for FID, at least 75 in any case.

    Returns:
      pool1, pool2, Mixed_5b ... Mixed_7c, [N, H', W', C] each, and mean [N, 2048], the features.
    """

    def unit(x, name, outputs, size, stride, padding):
        return _convolve(x, weights[name], stride, padding)

    return _network(unit, x)


def preprocess(images: Array) -> Array:
    """uint8 [N, H, W, 1 or 3] -> [N, 299, 299, 3] in [-1, 1], grey repeated as red, green and blue.

    Clean-fid's resize: bicubic with a = -1/2, antialiased when it shrinks, clipped but not rounded
    (Parmar, Zhang and Zhu, 2022). The scale is pytorch-fid's x/255·2 - 1, for which these weights
    were ported; clean-fid's own port takes (x - 128)/128.
    """
    count, _, _, channels = images.shape
    x = jax.image.resize(images.astype(jnp.float32), (count, SIDE, SIDE, channels), "cubic")
    x = jnp.clip(x, 0, 255) / 255 * 2 - 1
    return jnp.broadcast_to(x, (count, SIDE, SIDE, 3))


def _convolve(x: Array, unit: Unit, stride: int, padding: str) -> Array:
    # The highest precision, or a GPU rounds the products to 10 bits and FID depends on the device.
    x = jax.lax.conv_general_dilated(
        x,
        unit.kernel,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=jax.lax.Precision.HIGHEST,
    )
    return nnx.relu(x + unit.bias)


def _mean_3x3(x: Array) -> Array:
    # Flax counts in float64 where a caller has enabled it.
    return nnx.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False).astype(x.dtype)


def _max_3x3(x: Array) -> Array:
    return nnx.max_pool(x, (3, 3), padding="SAME")


def _halve(x: Array) -> Array:
    return nnx.max_pool(x, (3, 3), strides=(2, 2))


def _network(unit: Callable, x: Array) -> dict[str, Array]:
    """The architecture: `unit(x, name, outputs, (height, width), stride, padding)` convolves."""

    def chain(x, name, *convolutions, stride=1, padding="SAME"):
        """(outputs, height, width) one after another; stride and padding are the last one's."""
        for i, (outputs, *size) in enumerate(convolutions, 1):
            last = (stride, padding) if i == len(convolutions) else (1, "SAME")
            suffix = f"_{i}" if len(convolutions) > 1 else ""
            x = unit(x, name + suffix, outputs, tuple(size), *last)
        return x

    layers = {}
    x = chain(x, "Conv2d_1a_3x3", (32, 3, 3), stride=2, padding="VALID")
    x = chain(x, "Conv2d_2a_3x3", (32, 3, 3), padding="VALID")
    x = chain(x, "Conv2d_2b_3x3", (64, 3, 3))
    x = layers["pool1"] = _halve(x)
    x = chain(x, "Conv2d_3b_1x1", (80, 1, 1))
    x = chain(x, "Conv2d_4a_3x3", (192, 3, 3), padding="VALID")
    x = layers["pool2"] = _halve(x)
    for name, block, *options in (
        ("Mixed_5b", _wide, 32),
        ("Mixed_5c", _wide, 64),
        ("Mixed_5d", _wide, 64),
        ("Mixed_6a", _first_reduction),
        ("Mixed_6b", _factorised, 128),
        ("Mixed_6c", _factorised, 160),
        ("Mixed_6d", _factorised, 160),
        ("Mixed_6e", _factorised, 192),
        ("Mixed_7a", _second_reduction),
        ("Mixed_7b", _split, _mean_3x3),
        ("Mixed_7c", _split, _max_3x3),
    ):

        def branch(x, branch_name, *convolutions, prefix=name, **last):
            return chain(x, f"{prefix}.{branch_name}", *convolutions, **last)

        x = layers[name] = jnp.concatenate(block(branch, x, *options), axis=-1)
    layers["mean"] = jnp.mean(x, axis=(1, 2))
    return layers


def _wide(branch, x, pooled):  # 35×35
    return [
        branch(x, "branch1x1", (64, 1, 1)),
        branch(x, "branch5x5", (48, 1, 1), (64, 5, 5)),
        branch(x, "branch3x3dbl", (64, 1, 1), (96, 3, 3), (96, 3, 3)),
        branch(_mean_3x3(x), "branch_pool", (pooled, 1, 1)),
    ]


def _first_reduction(branch, x):  # 35×35 to 17×17
    down = {"stride": 2, "padding": "VALID"}
    return [
        branch(x, "branch3x3", (384, 3, 3), **down),
        branch(x, "branch3x3dbl", (64, 1, 1), (96, 3, 3), (96, 3, 3), **down),
        _halve(x),
    ]


def _factorised(branch, x, c):  # 17×17
    return [
        branch(x, "branch1x1", (192, 1, 1)),
        branch(x, "branch7x7", (c, 1, 1), (c, 1, 7), (192, 7, 1)),
        branch(x, "branch7x7dbl", (c, 1, 1), (c, 7, 1), (c, 1, 7), (c, 7, 1), (192, 1, 7)),
        branch(_mean_3x3(x), "branch_pool", (192, 1, 1)),
    ]


def _second_reduction(branch, x):  # 17×17 to 8×8
    down = {"stride": 2, "padding": "VALID"}
    return [
        branch(x, "branch3x3", (192, 1, 1), (320, 3, 3), **down),
        branch(x, "branch7x7x3", (192, 1, 1), (192, 1, 7), (192, 7, 1), (192, 3, 3), **down),
        _halve(x),
    ]


def _split(branch, x, pool):  # 8×8
    single = branch(x, "branch3x3_1", (384, 1, 1))
    double = branch(x, "branch3x3dbl", (448, 1, 1), (384, 3, 3))
    return [
        branch(x, "branch1x1", (320, 1, 1)),
        branch(single, "branch3x3_2a", (384, 1, 3)),
        branch(single, "branch3x3_2b", (384, 3, 1)),
        branch(double, "branch3x3dbl_3a", (384, 1, 3)),
        branch(double, "branch3x3dbl_3b", (384, 3, 1)),
        branch(pool(x), "branch_pool", (192, 1, 1)),
    ]


def _kernel_shapes() -> dict[str, tuple[int, ...]]:
    """[height, width, inputs, outputs] of every kernel, from a run of the network on shapes."""
    shapes = {}

    def unit(x, name, outputs, size, stride, padding):
        shapes[name] = (*size, x.shape[-1], outputs)
        zeros = Unit(*(jnp.zeros(size, x.dtype) for size in (shapes[name], outputs)))
        return _convolve(x, zeros, stride, padding)

    image = jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.float32)
    jax.eval_shape(functools.partial(_network, unit), image)
    return shapes


# The weights.


def load(
    path: str | os.PathLike, sha256_prefix: str = SHA256, batch_size: int = 50
) -> tuple[Callable[[np.ndarray], np.ndarray], dict[str, Any]]:
    """The network of a local file as a function of images.

    Args:
      path: of pt_inception-2015-12-05-6726825d.pth (see `URL`), or another state dict of this
        network that PyTorch saved, in either of its formats.
      sha256_prefix: what the file's SHA-256, in hexadecimal, must begin with.
      batch_size: images in one call of the network; the last batch is padded.

    Returns:
      extract, uint8 [N, H, W, 1 or 3] -> float32 [N, 2048], a ValueError on anything else; and
      about, the file's name and SHA-256, and the dimension.

    Raises:
      UserError: as `read`.
    """
    weights, digest = read(path, sha256_prefix)
    network = jax.jit(lambda weights, images: features(weights, preprocess(images))["mean"])

    def extract(images: np.ndarray) -> np.ndarray:
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
            raise ValueError(
                f"images must be uint8 [N, H, W, 1 or 3], got {images.dtype} {images.shape}"
            )
        found = np.empty((len(images), DIMENSION), np.float32)
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            padding = [(0, batch_size - len(batch)), (0, 0), (0, 0), (0, 0)]
            output = np.asarray(network(weights, np.pad(batch, padding)))
            found[start : start + len(batch)] = output[: len(batch)]
        return found

    return extract, {"sha256": digest, "file": Path(path).name, "dimension": DIMENSION}


def read(path: str | os.PathLike, sha256_prefix: str = SHA256) -> tuple[dict[str, Unit], str]:
    """The weights of a local file, by name, and the file's SHA-256. Nothing in it is executed.

    Raises:
      UserError: the file is missing, has another hash, is damaged, names anything but tensors, or
        lacks a tensor of this network.
    """
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            data = file.read() if digest.startswith(sha256_prefix) else None
    except OSError as error:
        raise UserError(
            f"{path} can't be read ({error.strerror}): put there the file (96 MB) of {URL}"
        ) from error
    if data is None:
        raise UserError(
            f"{path} isn't {FILE} (its SHA-256 is {digest[:8]}..., not {sha256_prefix[:8]}...): "
            f"put there the file of {URL}"
        )
    try:
        tensors = torch_files.tensors(data)
        weights = {name: _fold(tensors, name, shape) for name, shape in _kernel_shapes().items()}
    except (ValueError, FloatingPointError) as error:
        reason = ascii(str(error))[1:-1][:200]
        raise UserError(
            f"{path} doesn't hold the weights of {FILE} ({reason}): put there the file of {URL}"
        ) from error
    return weights, digest


@np.errstate(invalid="raise", over="raise", divide="raise")
def _fold(tensors: dict[str, np.ndarray], name: str, shape: tuple[int, ...]) -> Unit:
    """A layer of the file. ValueError names a tensor that doesn't fit, FloatingPointError a value.

    Args:
      shape: [height, width, inputs, outputs] of its kernel.
    """
    height, width, inputs, outputs = shape

    def tensor(suffix, *shape):
        found = tensors.get(f"{name}.{suffix}")
        if found is None or found.shape != shape:
            raise ValueError(
                f"{name}.{suffix} is {'missing' if found is None else found.shape}, not {shape}"
            )
        return found.astype(np.float64)

    kernel = tensor("conv.weight", outputs, inputs, height, width)
    gain, shift, mean, variance = (
        tensor(f"bn.{part}", outputs) for part in ("weight", "bias", "running_mean", "running_var")
    )
    scale = gain / np.sqrt(variance + 1e-3)
    kernel = np.transpose(kernel, (2, 3, 1, 0)) * scale
    bias = shift - mean * scale
    return Unit(jnp.asarray(kernel.astype(np.float32)), jnp.asarray(bias.astype(np.float32)))
