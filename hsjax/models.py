"""The networks of the ResNet VAE: encoder and decoder (paper, section 4.1)."""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jax.typing import DTypeLike

from hsjax import convolution, coordinates

# Flax's layers need it, even if the caller forbids implicit promotion.
_standard_promotion = jax.numpy_dtype_promotion("standard")


def _convolve(x: Array, kernel: Array, strides, padding, **settings) -> Array:
    return convolution.convolve(x, kernel)  # the settings below are the only ones it knows


class _How(NamedTuple):
    """What all layers of a network have in common."""

    dtype: DTypeLike
    initialisation: str
    rngs: nnx.Rngs


INITIALISATIONS = ("lecun_normal", "pytorch")


def _initialisers(kind: str, fan_in: int) -> dict:
    """Those of kernel and bias: "pytorch" is its default, U(-1/√fan_in, 1/√fan_in) for both."""
    if kind == "lecun_normal":
        return {}  # Flax's default, with biases of 0
    if kind != "pytorch":
        raise ValueError(f"initialisation must be one of {', '.join(INITIALISATIONS)}: {kind!r}")

    def uniform(key, shape, dtype=jnp.float32, **_):
        return jax.random.uniform(key, shape, dtype, -1.0, 1.0) / fan_in**0.5

    return {"kernel_init": uniform, "bias_init": uniform}


def _convolution(inputs: int, outputs: int, size: int, how: _How, *, bias=False) -> nnx.Conv:
    return nnx.Conv(
        inputs,
        outputs,
        kernel_size=(size, size),
        padding="SAME",
        use_bias=bias,
        dtype=how.dtype,
        conv_general_dilated=_convolve,
        rngs=how.rngs,
        **_initialisers(how.initialisation, inputs * size**2),
    )


def _linear(inputs: int, outputs: int, how: _How) -> nnx.Linear:
    initialisers = _initialisers(how.initialisation, inputs)
    return nnx.Linear(inputs, outputs, rngs=how.rngs, **initialisers)


class _BatchNorm(nnx.BatchNorm):
    """Flax's BatchNorm, applied to x minus one of its values.

    If a mean is far above the spread, E[x²] - E[x]² has few digits. Subtracting the mean first
    would cost a fifth more kernels on a GPU.
    """

    def __call__(self, x, use_running_average=None, *, mask=None):
        if use_running_average:
            return super().__call__(x, use_running_average=True)
        x = x.astype(jnp.float32)
        shift = lax.stop_gradient(x[(0,) * (x.ndim - 1)])
        y = super().__call__(x - shift, use_running_average=False)
        self.mean[...] += (1.0 - self.momentum) * shift
        return y


def _normalisation(features: int, dtype, rngs) -> nnx.BatchNorm:
    # momentum 0.9 here is PyTorch's default 0.1; statistics stay float32 whatever the dtype.
    return _BatchNorm(features, momentum=0.9, epsilon=1e-5, dtype=dtype, rngs=rngs)


def _activation(x: Array) -> Array:
    return nnx.leaky_relu(x, 0.2)


def _halve(x: Array) -> Array:
    """Means of 2×2 pixels, [B, 2H, 2W, C] -> [B, H, W, C]."""
    b, h, w, c = x.shape
    return jnp.mean(x.reshape(b, h // 2, 2, w // 2, 2, c), axis=(2, 4))


def _double(x: Array) -> Array:
    """Nearest-neighbour upsampling, [B, H, W, C] -> [B, 2H, 2W, C]."""
    b, h, w, c = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c))
    return x.reshape(b, 2 * h, 2 * w, c)


class Block(nnx.Module):
    """Two 3×3 convolutions beside a skip, which is a 1×1 convolution when the width changes."""

    def __init__(self, inputs: int, outputs: int, how: _How):
        self.conv1 = _convolution(inputs, outputs, 3, how)
        self.norm1 = _normalisation(outputs, how.dtype, how.rngs)
        self.conv2 = _convolution(outputs, outputs, 3, how)
        self.norm2 = _normalisation(outputs, how.dtype, how.rngs)
        self.skip = _convolution(inputs, outputs, 1, how) if inputs != outputs else None

    def __call__(self, x: Array, *, train: bool) -> Array:
        """[B, H, W, inputs] -> [B, H, W, outputs]."""
        y = _activation(self.norm1(self.conv1(x), use_running_average=not train))
        y = self.norm2(self.conv2(y), use_running_average=not train)
        return _activation(y + (x if self.skip is None else self.skip(x)))


def _blocks(widths, how: _How) -> nnx.List:
    return nnx.List([Block(a, b, how) for a, b in itertools.pairwise(widths)])


class Encoder(nnx.Module):
    """Images to numbers: a 5×5 convolution, then a residual block and a halving per stage."""

    def __init__(self, shape, outputs: int, stages, how: _How):
        height, width, channels = shape
        scale = 2 ** len(stages)
        features = height // scale * (width // scale) * stages[-1]
        self.stem = _convolution(channels, stages[0], 5, how)
        self.norm = _normalisation(stages[0], how.dtype, how.rngs)
        self.blocks = _blocks(stages, how)
        self.last = Block(stages[-1], stages[-1], how)
        self.head = _linear(features, outputs, how)

    def __call__(self, x: Array, *, train: bool) -> Array:
        """[B, H, W, C] -> [B, outputs], float32."""
        x = _halve(_activation(self.norm(self.stem(x), use_running_average=not train)))
        for block in self.blocks:
            x = _halve(block(x, train=train))
        x = self.last(x, train=train)
        return self.head(x.reshape(x.shape[0], -1).astype(jnp.float32))


class Decoder(nnx.Module):
    """Latents to images in [0, 1]: the encoder's stages backwards, with doublings."""

    def __init__(self, shape, latent_dim: int, stages, how: _How):
        height, width, channels = shape
        scale = 2 ** len(stages)
        self.small = (height // scale, width // scale, stages[-1])
        features = math.prod(self.small)
        self.dtype = how.dtype
        self.head = _linear(latent_dim, features, how)
        self.norm = _normalisation(features, how.dtype, how.rngs)
        widths = [stages[-1], *reversed(stages)]
        self.blocks = _blocks(widths, how)
        self.last = Block(stages[0], stages[0], how)
        self.out = _convolution(stages[0], channels, 5, how, bias=True)

    def __call__(self, z: Array, *, train: bool) -> Array:
        """[B, n] -> [B, H, W, C]."""
        x = self.head(z).astype(self.dtype)
        x = _activation(self.norm(x, use_running_average=not train))
        x = x.reshape(-1, *self.small)
        for block in self.blocks:
            x = _double(block(x, train=train))
        x = self.out(self.last(x, train=train))
        return nnx.sigmoid(x.astype(jnp.float32))


Networks = Callable[..., tuple[nnx.Module, nnx.Module]]
"""``(shape, latent_dim, outputs, *, rngs)`` -> your own encoder and decoder.

The shape is (height, width, channels) of an image. The encoder takes ``(images, train=...)``,
float32 [batch, height, width, channels] in [0, 1], and gives [batch, outputs]; the decoder takes
``(z, train=...)``, [batch, latent_dim], and gives images. What gradients change is `nnx.Param`, and
running statistics are `nnx.BatchStat`; other variables are not kept.
"""


class VAE(nnx.Module):
    """The ResNets of a VAE, or another autoencoder, for images whose sides 2^stages divides.

    The encoder's outputs become a posterior by `hsjax.posteriors`, or a method's own function.
    660,995 parameters at latent_dim 128, 882,323 at 200, for 32×32×3 images and the default stages.

    Args:
      shape: (height, width, channels) of an image.
      latent_dim: n, >= 2.
      stages: channels after each halving of the image; as many halvings as entries.
      dtype: of the convolutions and their activations; parameters, batch statistics, the encoder's
        outputs and the images are float32.
      outputs: of the encoder, for each image; 2n if not given, a Gaussian's μ and log σ².
      project: rescale every z to ‖z‖ = √n before decoding (below equation 8).
      initialisation: "lecun_normal", with biases of 0, or "pytorch", the default of the authors'
        framework, which has a third of that variance and biases like the weights.
      networks: builds another encoder and decoder in the place of the ResNets; see `Networks`.
        Stages, dtype and initialisation are then ignored.
      rngs: for the initial parameters.

    Raises:
      ValueError: a side that 2^len(stages) does not divide, latent_dim < 2, or an unknown
        initialisation.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        latent_dim: int,
        stages: tuple[int, ...] = (16, 32, 64),
        dtype=jnp.float32,
        *,
        outputs: int | None = None,
        project: bool = False,
        initialisation: str = "lecun_normal",
        networks: Networks | None = None,
        rngs: nnx.Rngs,
    ):
        if latent_dim < 2:
            raise ValueError(f"latent_dim must be at least 2, got {latent_dim}")
        self.latent_dim = latent_dim
        self.project = project
        outputs = outputs or 2 * latent_dim
        if networks:
            self.encoder, self.decoder = networks(shape, latent_dim, outputs, rngs=rngs)
            return
        if any(side % 2 ** len(stages) for side in shape[:2]):
            raise ValueError(f"shape {tuple(shape)}: sides must be multiples of {2 ** len(stages)}")
        how = _How(dtype, initialisation, rngs)
        self.encoder = Encoder(shape, outputs, stages, how)
        self.decoder = Decoder(shape, latent_dim, stages, how)

    @_standard_promotion
    def encode(self, images: Array, *, train: bool = False) -> Array:
        """[batch, height, width, channels] in [0, 1] -> [batch, outputs]."""
        return self.encoder(images, train=train)

    @_standard_promotion
    def decode(self, z: Array, *, train: bool = False, scale: float = 1.0) -> Array:
        """z [batch, n] -> images in [0, 1], of scale · z, or of scale √n z / ‖z‖ if it projects."""
        return self.decoder(scale * (coordinates.project(z) if self.project else z), train=train)
