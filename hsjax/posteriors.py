"""Posteriors: the distributions of a latent that an encoder gives for an image.

A posterior is a pytree whose leaves have the batch as their first axis. It has `mean` [batch, n],
which embeds the image, and `sample(key)` -> [batch, n]. `VonMisesFisher` and `PowerSpherical` are
distributions on a sphere that can also be used on their own.

Example:
  >>> posterior = gaussian(jnp.zeros((5, 16)))
  >>> posterior.mean.shape, posterior.sample(jax.random.key(0)).shape
  ((5, 8), (5, 8))
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from hsjax import coordinates
from hsjax.coordinates import log_area


class Gaussian(NamedTuple):
    """N(μ, σ²) in each coordinate: μ and log σ², [batch, n] each."""

    mean: Array
    log_variance: Array

    @property
    def std(self) -> Array:
        """σ, [batch, n]."""
        return jnp.exp(0.5 * self.log_variance)

    def sample(self, key: Array) -> Array:
        """μ + σ ε, reparameterised, [batch, n] (Kingma and Welling, arXiv 1312.6114)."""
        noise = jax.random.normal(key, self.mean.shape, jnp.float32)
        return self.mean + self.std * noise


class Point(NamedTuple):
    """A point mass: the latent itself, [batch, n]."""

    mean: Array

    def sample(self, key: Array) -> Array:
        """The point, whatever the key, [batch, n]."""
        return self.mean


def gaussian(outputs: Array, **_) -> Gaussian:
    """The Gaussian of 2n outputs of an encoder, [batch, 2n]: μ first, then log σ²."""
    return Gaussian(*jnp.split(outputs, 2, axis=-1))


def point(outputs: Array, **_) -> Point:
    """The point given by n outputs of an encoder, [batch, n]."""
    return Point(outputs)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class VonMisesFisher:
    """The von Mises-Fisher distribution: C_n(κ) exp(κ direction·x) per area of the unit sphere.

    All functions are accurate in float32 for n from 2 to 1000 and κ from 0 to 10⁴, and
    differentiable in direction and κ. Davidson et al., 2018 (https://arxiv.org/abs/1804.00891).

    Args:
      direction: [..., n], unit vectors.
      kappa: [...], the concentrations κ >= 0.
      radius: of the sphere on which samples lie; densities are per area of this sphere.

    Example:
      >>> vmf = VonMisesFisher(jnp.eye(3)[0], jnp.float32(2.0))
      >>> print(f"{vmf.mean_cosine():.5f}")  # coth κ - 1/κ in three dimensions
      0.53731
    """

    direction: Array
    kappa: Array
    radius: float = dataclasses.field(default=1.0, metadata={"static": True})

    @property
    def mean(self) -> Array:
        """The mean direction, on the sphere, [..., n]; the mean is `mean_cosine()` times this."""
        return self.radius * self.direction

    def mean_cosine(self) -> Array:
        """E direction·x = A_n(κ) = I_{n/2}(κ) / I_{n/2-1}(κ), [...]."""
        return _functions_of_kappa(self.direction.shape[-1], self.kappa)[1]

    def kl_to_uniform(self) -> Array:
        """The KLD from the uniform distribution, κ A_n(κ) + log C_n(κ) - log C_n(0), [...] in nats.

        Its derivative is κ A_n'(κ) (Davidson et al., section 3.2).
        """
        return _functions_of_kappa(self.direction.shape[-1], self.kappa)[2]

    def entropy(self) -> Array:
        """Differential entropy per area of the sphere, [...] in nats."""
        return log_area(self.direction.shape[-1], self.radius) - self.kl_to_uniform()

    def log_prob(self, z: Array) -> Array:
        """Log density per area of the sphere at the directions of z [..., n]: [...]."""
        n = self.direction.shape[-1]
        gap = coordinates.project(z, 1.0) - self.direction  # κ (cos - 1) = -κ ‖gap‖²/2
        along = -0.5 * self.kappa * jnp.sum(gap * gap, axis=-1)
        return along - _functions_of_kappa(n, self.kappa)[0] - log_area(n, self.radius)

    def sample(self, key: Array) -> Array:
        """Points of the sphere, [..., n], reparameterised.

        The cosine to the direction comes from the first accepted of 16 proposals (Ulrich, 1984;
        Davidson et al., algorithm 1), each accepted with a probability above 0.67. Its derivative
        is scaled so that the expected cosine has the exact derivative, A_n'(κ). The derivative of
        the accepted proposal is too small by a fifth at n = 3 and by a 200th at n = 128.
        """
        n, kappa = self.direction.shape[-1], lax.stop_gradient(self.kappa)
        gamma_key, uniform_key, tangent_key = jax.random.split(key, 3)
        # Proposals are w = (h - b g) / (h + b g), with g and h from Gamma((n-1)/2): all that
        # follows is written in g and h, so that nothing cancels where b is small.
        shape = (2, 16, *kappa.shape)
        g, h = jax.random.gamma(gamma_key, 0.5 * (n - 1), shape, kappa.dtype)
        b = (n - 1) / (2.0 * kappa + jnp.sqrt(4.0 * kappa**2 + (n - 1) ** 2))
        scale = h + b * g
        log_odds = 2.0 * kappa * b * (h - g) / ((1.0 + b) * scale)
        log_odds += (n - 1) * jnp.log((g + h) * (1.0 + b) / (2.0 * scale))
        uniform = jax.random.uniform(uniform_key, shape[1:], kappa.dtype)
        first = jnp.argmax(log_odds > jnp.log(uniform), axis=0, keepdims=True)
        g, h, scale = (jnp.take_along_axis(x, first, axis=0)[0] for x in (g, h, scale))
        cosine, sine = (h - b * g) / scale, 2.0 * jnp.sqrt(b * g * h) / scale
        # d cosine / dκ = sine² A' / E sine², where E sine² = (n-1) A / κ.
        some = jnp.maximum(kappa, 1e-20)
        _, ratio, _, slope = _bessel(n, some)
        speed = sine * slope * some / ((n - 1) * ratio)  # of the angle
        change = speed * (self.kappa - kappa)  # 0; only its derivative matters
        cosine, sine = cosine + sine * change, sine - cosine * change
        return self.radius * _around(self.direction, cosine, sine, tangent_key)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PowerSpherical:
    """The power spherical distribution: density ∝ (1 + direction·x)^κ per area of the unit sphere.

    Like a von Mises-Fisher distribution, with simpler functions and no rejection: the cosine to the
    direction is 2 Beta((n-1)/2 + κ, (n-1)/2) - 1. De Cao and Aziz, 2020 (https://arxiv.org/abs/2006.04437).

    Args:
      direction: [..., n], unit vectors.
      kappa: [...], the concentrations κ >= 0.
      radius: of the sphere on which samples lie; densities are per area of this sphere.

    Example:
      >>> distribution = PowerSpherical(jnp.eye(3)[0], jnp.float32(2.0))
      >>> print(f"{distribution.mean_cosine():.5f}")  # κ / (n - 1 + κ)
      0.50000
    """

    direction: Array
    kappa: Array
    radius: float = dataclasses.field(default=1.0, metadata={"static": True})

    @property
    def mean(self) -> Array:
        """The mean direction, on the sphere, [..., n]; the mean is `mean_cosine()` times this."""
        return self.radius * self.direction

    def mean_cosine(self) -> Array:
        """E direction·x = κ / (n - 1 + κ), [...]."""
        return self.kappa / (self.direction.shape[-1] - 1 + self.kappa)

    def kl_to_uniform(self) -> Array:
        """The KLD from the uniform distribution, the log area less the entropy, [...] in nats."""
        beta = 0.5 * (self.direction.shape[-1] - 1)
        return _gamma_terms(beta, self.kappa)[1] - _gamma_terms(2.0 * beta, self.kappa)[1]

    def entropy(self) -> Array:
        """Differential entropy per area of the sphere, [...] in nats."""
        return log_area(self.direction.shape[-1], self.radius) - self.kl_to_uniform()

    def log_prob(self, z: Array) -> Array:
        """Log density per area of the sphere at the directions of z [..., n]: [...].

        It is -inf opposite to the direction, unless κ = 0.
        """
        n = self.direction.shape[-1]
        sum_ = coordinates.project(z, 1.0) + self.direction  # (1 + cos)/2 = ‖sum‖²/4
        along = jax.scipy.special.xlogy(self.kappa, 0.25 * jnp.sum(sum_ * sum_, axis=-1))
        beta = 0.5 * (n - 1)
        normaliser = _gamma_terms(beta, self.kappa)[0] - _gamma_terms(2.0 * beta, self.kappa)[0]
        return along - normaliser - log_area(n, self.radius)

    def sample(self, key: Array) -> Array:
        """Points of the sphere, [..., n], reparameterised (De Cao and Aziz, algorithm 1)."""
        beta = 0.5 * (self.direction.shape[-1] - 1)
        g_key, h_key, tangent_key = jax.random.split(key, 3)
        g = jax.random.gamma(g_key, beta + self.kappa)  # with an implicit derivative
        h = jax.random.gamma(h_key, beta, g.shape, g.dtype)
        cosine, sine = (g - h) / (g + h), 2.0 * jnp.sqrt(g * h) / (g + h)
        return self.radius * _around(self.direction, cosine, sine, tangent_key)


def _around(direction: Array, cosine: Array, sine: Array, key: Array) -> Array:
    """Unit vectors [..., n] with these cosines [...] to the direction and random tangents."""
    noise = jax.random.normal(key, direction.shape, direction.dtype)
    along = jnp.sum(noise * direction, axis=-1, keepdims=True)
    tangent = coordinates.project(noise - along * direction, 1.0)
    return cosine[..., None] * direction + sine[..., None] * tangent


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _functions_of_kappa(n: int, kappa: Array) -> tuple[Array, Array, Array]:
    """log E exp(κ (x_1 - 1)) of the uniform distribution on the sphere, A_n(κ), and the KLD."""
    return _bessel(n, kappa)[:3]


@_functions_of_kappa.defjvp
def _functions_of_kappa_jvp(n, primals, tangents):
    (kappa,), (dkappa,) = primals, tangents
    *values, slope = _bessel(n, kappa)
    return tuple(values), ((values[1] - 1.0) * dkappa, slope * dkappa, kappa * slope * dkappa)


def _bessel(n: int, kappa: Array) -> tuple[Array, Array, Array, Array]:
    """log E exp(κ (x_1 - 1)), A_n(κ), the KLD and A_n'(κ).

    The first is log F_v - κ with v = n/2 - 1 and F_v = Γ(v+1) (2/κ)^v I_v(κ). Debye's expansion
    (https://dlmf.nist.gov/10.41.E3, with Stirling's of the gamma function) gives log F_v at v > 24
    up to terms of the order v^-4. With r_v = I_{v+1} / I_v, the next order below has
    F_{v-1} = F_v (1 + κ r_v / 2v) and r_{v-1} = κ / (2v + κ r_v). Because κ is subtracted, and
    κ (1 - r) is carried instead of r, no large terms cancel, as in A' = 1 - A² - (n-1) A/κ.
    """
    v = 0.5 * n - 1.0
    steps = max(1, math.ceil(24.0 - v))
    order = v + steps

    def debye(kappa):
        z = kappa / order
        s = jnp.sqrt(1.0 + z * z)
        u, p = 0.5 * z * z / (1.0 + s), 1.0 / s  # s = 1 + 2u
        q = p * p
        series = (p * (3.0 - 5.0 * q) + 2.0) / (24.0 * order)
        series += q * (1.0 - q * (6.0 - 5.0 * q)) / (16.0 * order**2)
        cubic = p * q * (375.0 - q * (4779.0 - q * (9945.0 - 5525.0 * q))) - 16.0
        series += cubic / (5760.0 * order**3)
        return order * (1.0 / (s + z) - 1.0 - jnp.log1p(u)) - 0.5 * jnp.log(s) + series

    def slope_of(function):
        return lambda kappa: jax.jvp(function, (kappa,), (jnp.ones_like(kappa),))

    def down(k, found):
        value, _, gap, slope = found  # gap = κ (1 - r)
        twice = 2.0 * (order - k)
        below = twice + kappa - gap
        value += jnp.log1p((kappa - gap) / twice)
        slope = (twice - kappa**2 * slope) / below**2
        return value, kappa / below, kappa * (twice - gap) / below, slope

    (value, less), (_, slope) = slope_of(slope_of(debye))(kappa)
    value, ratio, gap, slope = lax.fori_loop(0, steps, down, (value, value, -kappa * less, slope))
    return value, ratio, -gap - value, slope


def _gamma_terms(x: float, kappa: Array) -> tuple[Array, Array]:
    """L = log Γ(x+κ) - log Γ(x) and κ ψ(x+κ) - L, by Stirling's expansion at x + 8."""
    value = rest = jnp.zeros_like(kappa)
    for k in range(8):
        step = jnp.log1p(kappa / (x + k))
        value -= step
        rest += step - kappa / (x + k + kappa)
    x += 8
    y = x + kappa
    # κ log y is only in the first result: in the second it cancels.
    shared = (x - 0.5) * jnp.log1p(kappa / x) - kappa
    shared += (1.0 / y - 1.0 / x) / 12.0 - (1.0 / y**3 - 1.0 / x**3) / 360.0
    derivative = -0.5 / y - 1.0 / (12.0 * y**2) + 1.0 / (120.0 * y**4)  # ψ(y) - log y
    return value + shared + kappa * jnp.log(y), rest + kappa * derivative - shared
