"""Reads the authors' checkpoints, and gives our networks their names and layouts.

The network is that of `hsjax.models`, written in PyTorch. All names are those of the checkpoint in
github.com/aleazk/cond-ad-hyperspherical-compressed-vae, whose network has three stages and 32×32
pixels; those of other sizes follow the rule of its code. The encoder names a block by the side of
its feature map. The decoder counts sides from 4, whatever they are. An image that isn't square has
the names of a square one.
"""

import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from hsjax import training
from hsjax.config import validate
from hsjax.configs import cifar
from hsjax.errors import UserError
from hsjax.methods import METHODS
from hsjax.metrics import torch_files

# Arrays of ours and their names in PyTorch, in its order.
_LAYER = {"kernel": "weight", "bias": "bias"}
_NORM = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
# Modules of a residual block likewise.
_BLOCK = {
    "skip": ("conv_expand", _LAYER),
    "conv1": ("conv1", _LAYER),
    "norm1": ("bn1", _NORM),
    "conv2": ("conv2", _LAYER),
    "norm2": ("bn2", _NORM),
}
# What the metadata say of a config.
_RECORDED = {"beta_target": "loss.beta", "normalize_samples": "model.project"}


class Published(NamedTuple):
    """What a checkpoint of the authors holds."""

    config: ConfigDict  # every field, as in configs/default.py
    params: dict  # nested, as in `training.TrainState`
    batch_stats: dict
    epoch: int  # the last one, counted from 0
    metadata: dict[str, Any]  # saved beside the weights
    shape: tuple[int, int, int]  # of an image: height, width, channels


def read(path: str | os.PathLike) -> Published:
    """A file of torch.save({"epoch": ..., "state_dict": ..., "metadata": {...}}).

    Epoch and metadata may be missing, or all but the state dict itself. Nothing is executed, and
    PyTorch isn't needed. The config is that of configs/cifar.py:published_near, or
    published_classes where the metadata have a class_axis_stride, with the file's sizes, for
    samplers that need no embeddings. Images are taken to be square, and data that aren't
    32×32×3 have no name.

    Raises:
      UserError: it is no such file, is damaged, or its tensors aren't those of this network.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        tree = torch_files.contents(data)
        tensors = tree.get("state_dict", tree)
        tensors = {name: x for name, x in tensors.items() if isinstance(x, np.ndarray)}
        if sum(x.nbytes for x in tensors.values()) > len(data):  # views that repeat their bytes
            raise ValueError("its tensors are larger than the file")
        shape, stages, n = _sizes(tensors)
        epoch, metadata = tree.get("epoch", 0), tree.get("metadata", {})
        if type(epoch) is not int or not 0 <= epoch < 2**31 - 1 or not isinstance(metadata, dict):
            raise ValueError("its epoch or its metadata are something else")
    except (OSError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        why = ascii(str(error) or type(error).__name__)[1:-1][:200]
        raise UserError(
            f"{path} is no published model ({why}): give a whole file of torch.save with the "
            "state_dict of the authors' network"
        ) from error
    config = _config(shape, stages, n, metadata)
    for name, field in _RECORDED.items():
        group, last = field.split(".")
        if type(metadata.get(name)) is type(config[group][last]):
            config[group][last] = metadata[name]
    try:
        validate(config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    setup = training.build(
        training.static(config), METHODS[config.method.name], shape, config.train.batch_size
    )
    like = setup.like(training.build_objective(config))
    params, batch_stats = from_state_dict(tensors, like.params, like.batch_stats, path)
    known = {name for row in _table(like.params, like.batch_stats) for name in row.names}
    if others := [name for name in tensors if name not in known]:
        raise UserError(
            f"{path}: {str(others[0])!a} is no tensor of a network of stages {stages}: give "
            "the state dict of the authors' network, whole and alone"
        )
    return Published(config, params, batch_stats, epoch, metadata, shape)


def _sizes(tensors: Mapping[str, np.ndarray]) -> tuple[tuple[int, int, int], tuple[int, ...], int]:
    """Shape of an image, stages and n of a network of square images."""
    wanted = "encoder.main.0.weight", "decoder.L2F.0.weight"
    if missing := [name for name in wanted if name not in tensors]:
        raise ValueError(f"{missing[0]} is missing")
    stem, head = (tensors[name] for name in wanted)
    found = (re.fullmatch(r"encoder\.main\.res_in_(\d+)\.conv1\.weight", str(x)) for x in tensors)
    sides = sorted(((int(match[1]), match[0]) for match in found if match), reverse=True)
    stages = (stem.shape[0], *(tensors[name].shape[0] for _, name in sides[:-1]))
    features, n = head.shape
    side = math.isqrt(features // max(stages[-1], 1))
    if not side or features != side**2 * stages[-1]:
        raise ValueError("its images aren't square")
    shape = (side << len(stages), side << len(stages), stem.shape[1])
    if not 0 < math.prod(shape) < 2**28:  # so much memory is needed to find the sizes of layers
        raise ValueError(f"its images are of {shape}")
    return shape, stages, n


def _config(
    shape: tuple[int, int, int], stages: tuple[int, ...], n: int, metadata: dict[str, Any]
) -> ConfigDict:
    stride, last = (metadata.get(name) for name in ("class_axis_stride", "end_compress"))
    config = cifar.get_config("published_near")
    if isinstance(stride, int) and isinstance(last, int):  # the follow-up's
        config = cifar.get_config("published_classes")
        config.method.class_stride, config.method.compressed_angles = stride, last + 1
    if shape != (32, 32, 3):
        config.data.name = "unknown"
    config.model.stages, config.model.latent_dim = stages, n
    config.sample.sampler, config.evaluate.samplers = "prior", ("prior", "uniform_sphere")
    return config


def state_dict(params: Mapping, batch_stats: Mapping) -> dict[str, np.ndarray]:
    """The arrays of a ResNet of `hsjax.models`, by PyTorch's names, in its layouts and order.

    Kernels [height, width, inputs, outputs] become [outputs, inputs, height, width], matrices are
    transposed, and features go from [height, width, channels] to [channels, height, width]. What
    the method learns besides is left out.

    Args:
      params: as in `training.TrainState`, of any stages, n, channels and size of images.
      batch_stats: likewise.

    Raises:
      UserError: they are those of another network.
    """
    arrays = {}
    leaves = flatten_dict({"params": params, "batch_stats": batch_stats})
    for row in _table(params, batch_stats):
        x = np.asarray(leaves[row.path]).reshape(row.split).transpose(row.order)
        arrays[row.names[0]] = x.reshape(row.shape).copy()
        arrays |= {name: np.zeros((), np.int64) for name in row.names[1:]}
    return arrays


def from_state_dict(
    tensors: Mapping[str, np.ndarray],
    like_params: Mapping,
    like_batch_stats: Mapping,
    where: Any = "the state dict",
) -> tuple[dict, dict]:
    """The inverse of `state_dict`: params and batch_stats.

    Args:
      tensors: by PyTorch's names; any floats. Others are ignored.
      like_params: arrays or jax.ShapeDtypeStructs of the wanted shapes and dtypes.
      like_batch_stats: likewise.
      where: their place, as messages name it.

    Raises:
      UserError: a tensor is missing or has another shape, or they are those of another network.
    """
    leaves = flatten_dict({"params": like_params, "batch_stats": like_batch_stats})
    arrays = {}
    for row in _table(like_params, like_batch_stats):
        like, x = leaves[row.path], tensors.get(row.names[0])
        if x is None or x.shape != row.shape or x.dtype.kind != "f":
            there = "missing" if x is None else f"{x.dtype} {x.shape}"
            raise UserError(
                f"{where}: {row.names[0]} is {there}, not floats {row.shape}: give the state dict "
                "of a network of the same sizes"
            )
        x = x.reshape([row.split[axis] for axis in row.order]).transpose(np.argsort(row.order))
        arrays[row.path] = np.array(x.reshape(like.shape), like.dtype, order="C")
    trees = unflatten_dict(arrays)
    return trees["params"], trees["batch_stats"]


class _Row(NamedTuple):
    """An array of ours and its form in PyTorch: reshaped to `split`, transposed, then reshaped."""

    path: tuple  # in {"params": ..., "batch_stats": ...}
    names: tuple[str, ...]  # in PyTorch; a running variance is followed by its count of batches
    split: tuple[int, ...]
    order: tuple[int, ...]
    shape: tuple[int, ...]  # there


def _table(params: Mapping, batch_stats: Mapping) -> list[_Row]:
    """A row for each array of the networks, in PyTorch's order."""
    trees = {"params": params, "batch_stats": batch_stats}
    networks = {
        name: {k: v for k, v in tree.items() if k != "method"} for name, tree in trees.items()
    }
    leaves = flatten_dict(networks)
    rows = []
    try:
        *_, channels = params["encoder"]["last"]["conv2"]["kernel"].shape
        pixels = params["encoder"]["head"]["kernel"].shape[0] // channels
        for module, name, arrays in _modules(params, math.isqrt(pixels)):
            for ours, theirs in arrays.items():
                tree = "batch_stats" if theirs.startswith("running") else "params"
                if (path := (tree, *module, ours)) in leaves:
                    counted = ("num_batches_tracked",) if theirs == "running_var" else ()
                    names = tuple(f"{name}.{x}" for x in (theirs, *counted))
                    shape = leaves[path].shape
                    rows.append(_Row(path, names, *_layout(module, shape, pixels, channels)))
    except (AttributeError, KeyError, TypeError):
        rows = []
    if {row.path for row in rows} != leaves.keys():
        raise UserError(
            "these networks are not the ResNets of hsjax.models, whose names in PyTorch are known: "
            "export them with --format=safetensors or npz"
        )
    return rows


def _modules(params: Mapping, side: int) -> Iterator[tuple[tuple, str, dict[str, str]]]:
    """Paths of modules, their names in PyTorch, and their arrays."""
    halvings, doublings = (len(params[name].get("blocks", ())) for name in ("encoder", "decoder"))
    yield ("encoder", "stem"), "encoder.main.0", _LAYER
    yield ("encoder", "norm"), "encoder.main.1", _NORM
    yield from _blocks("encoder", [side << i for i in range(halvings, -1, -1)])
    yield ("encoder", "head"), "encoder.F2L.0", _LAYER
    yield ("decoder", "head"), "decoder.L2F.0", _LAYER
    yield ("decoder", "norm"), "decoder.L2F.1", _NORM
    yield from _blocks("decoder", [4 << i for i in range(doublings + 1)])
    yield ("decoder", "out"), "decoder.main.predict", _LAYER


def _blocks(network: str, sides: list[int]) -> Iterator[tuple[tuple, str, dict[str, str]]]:
    places = [*(("blocks", i) for i in range(len(sides) - 1)), ("last",)]
    for place, side in zip(places, sides, strict=True):
        for part, (name, arrays) in _BLOCK.items():
            yield (network, *place, part), f"{network}.main.res_in_{side}.{name}", arrays


def _layout(module: tuple, shape: tuple[int, ...], pixels: int, channels: int) -> tuple:
    """Split, order and shape of a `_Row`."""
    split: tuple[int, ...] = shape
    match module, len(shape):
        case _, 4:
            return shape, (3, 2, 0, 1), tuple(shape[axis] for axis in (3, 2, 0, 1))
        case ("encoder", "head"), 2:
            split = (pixels, channels, shape[1])
        case ("decoder", "head"), 2:
            split = (shape[0], pixels, channels)
        case ("decoder", "head" | "norm"), 1:
            split = (pixels, channels)
    return split, tuple(reversed(range(len(split)))), shape[::-1]
