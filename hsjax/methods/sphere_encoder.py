"""The Sphere Encoder (Yue et al., 2026, https://arxiv.org/abs/2602.15030).

An autoencoder whose codes fill the sphere: training decodes points turned away from the code by up
to an angle, and `own` decodes uniform points, in one step or several. The paper's perceptual loss,
a part of both image terms, needs pretrained weights and is left out: expect blurrier images.
"""

import dataclasses
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from hsjax import coordinates, losses
from hsjax.methods.base import Bounds, Method, NonNegative, outputs_of_point, uniform


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Hyper:
    """Numbers of the method, and a choice."""

    angle: Array | float
    small_share: Array | float
    pixel_gain: Array | float
    latent_gain: Array | float
    decay: bool = dataclasses.field(metadata={"static": True})


def hyper(
    n: int,
    *,
    angle: Annotated[float, Bounds(0.0, 89.9)] = 85.0,
    small_share: Annotated[float, Bounds(0.0, 1.0)] = 0.5,
    pixel_gain: NonNegative = 0.5,
    latent_gain: NonNegative = 0.1,
    decay: bool = False,
) -> Hyper:
    """Numbers of the method, and a choice.

    Args:
      n: latent dimension.
      angle: α in degrees; the noise has a standard deviation of up to tan α. The authors use 80
        for CIFAR10 and 85 otherwise.
      small_share: the small noise, which reconstructions get, is up to this share of the large one.
      pixel_gain: weight of the pixel consistency, relative to the error.
      latent_gain: weight of the latent consistency, relative to the mean error per value.
      decay: whether `own` multiplies its noise before decoding t of T (t from 0) by 1 - t/T.
    """
    return Hyper(angle, small_share, pixel_gain, latent_gain, decay)


class Noisy(NamedTuple):
    """A point of the sphere of radius √n, to which noise of a random size is added."""

    mean: Array  # [batch, n]
    most: Array  # [batch], the largest standard deviation of the noise
    share: Array  # [batch], the largest share of it in a sample

    def both(self, key: Array) -> tuple[Array, Array]:
        """w and V, [batch, n] each: the point with small and with large noise in one direction.

        The large noise has a uniform size, stratified over the batch so that it has all sizes.
        """
        noise_key, order_key, size_key, share_key = jax.random.split(key, 4)
        batch = len(self.mean)
        order = jax.random.permutation(order_key, batch).astype(jnp.float32)
        size = (order + jax.random.uniform(size_key, (batch,), jnp.float32)) / batch
        share = self.share * jax.random.uniform(share_key, (batch,), jnp.float32)
        noise = jax.random.normal(noise_key, self.mean.shape, jnp.float32)
        noise = (size * self.most)[:, None] * noise
        small = coordinates.project(self.mean + share[:, None] * noise)
        return small, coordinates.project(self.mean + noise)

    def sample(self, key: Array) -> Array:
        """w, the point with small noise, [batch, n]."""
        return self.both(key)[0]


def posterior(outputs: Array, *, hyper: Hyper, **_) -> Noisy:
    """v, the outputs [batch, n] on the sphere of radius √n, and its noise."""
    most = jnp.full(len(outputs), jnp.tan(jnp.deg2rad(hyper.angle)), jnp.float32)
    share = jnp.full(len(outputs), hyper.small_share, jnp.float32)
    return Noisy(coordinates.project(outputs), most, share)


def regulariser(
    numbers: Hyper, posterior: Noisy, z, *, sample_key, reconstructions, encode, decode, **_
) -> dict:
    """Pixel and latent consistency, in units of the error.

    Pixels: V should decode to what w decodes to. Latents: the code of V's image should be that of
    the original image. This is 1 - cosine, times the number of values in an image, over which the
    error is summed. V is decoded and encoded with running statistics, as new latents are.
    """
    images = decode(posterior.both(sample_key)[1])
    pixels = losses.squared_error(lax.stop_gradient(reconstructions), images)
    codes = coordinates.project(encode(images).mean, 1.0)
    wanted = lax.stop_gradient(coordinates.project(posterior.mean, 1.0))
    latents = jnp.mean(1.0 - jnp.sum(codes * wanted, axis=-1))
    values = reconstructions[0].size
    total = numbers.pixel_gain * pixels + numbers.latent_gain * values * latents
    return {"regulariser": total, "pixels": pixels, "latents": latents}


def prior(
    key: Array, count: int, n: int, *, hyper: Hyper, encode, decode, steps: int = 1, **_
) -> Array:
    """Latents [count, n] for the last of `steps` decodings, which is left to the caller.

    The first is uniform on the sphere; each further one is the code of the decoded image, with
    noise.
    """
    z = uniform(key, count, n)
    for t in range(1, steps):
        noise = jax.random.normal(jax.random.fold_in(key, t), (count, n), jnp.float32)
        noise *= jnp.tan(jnp.deg2rad(hyper.angle)) * (1.0 - t / steps if hyper.decay else 1.0)
        z = coordinates.project(encode(decode(z)).mean + noise)
    return z


sphere_encoder = Method(
    head=outputs_of_point,
    hyper=hyper,
    posterior=posterior,
    regulariser=regulariser,
    prior=prior,
)
