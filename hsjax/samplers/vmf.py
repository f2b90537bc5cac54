"""The von Mises-Fisher distribution: C_n(κ) exp(κ direction·x) per area of the unit sphere in R^n.

    C_n(κ) = κ^{n/2-1} / ((2π)^{n/2} I_{n/2-1}(κ))

Mardia and Jupp, Directional Statistics, 2000, section 9.3; Banerjee et al., 2005,
https://www.jmlr.org/papers/v6/banerjee05a.html. The functions of (n, κ) are computed on the host in
float64, for an integer n >= 2 and any κ >= 0. Bessel functions come from their ratios, computed
downwards from an order so high that a bound can serve as the value, and from Debye's expansion.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from hsjax.coordinates import log_area, project, widened
from hsjax.samplers.base import Sampler, checked, directions, float32

# ------------------------------------------------------------------------- functions of n and κ


@np.errstate(under="ignore")
def mean_resultant_length(n: int, kappa: float) -> float:
    """A_n(κ) = I_{n/2}(κ) / I_{n/2-1}(κ), the length of the von Mises-Fisher mean.

    Accurate to float64 for any n >= 2 and κ >= 0.

    Example:
      >>> round(mean_resultant_length(3, 2.0), 6)  # coth κ - 1/κ in three dimensions
      0.537315
    """
    return float(_bessel_ratios(n, kappa)[-1]) if kappa else 0.0


@np.errstate(under="ignore")
def concentration(n: int, length: float) -> float:
    """κ with A_n(κ) = length: the maximum likelihood estimate if a mean of unit vectors is so long.

    Args:
      n: dimension, >= 2.
      length: norm of the mean of unit vectors, in [0, 1).

    Raises:
      ValueError: length outside of [0, 1); all vectors equal would need an infinite κ.

    Example:
      >>> round(concentration(3, 0.537315), 4)
      2.0
    """
    if not 0.0 <= length < 1.0:
        raise ValueError(f"length must be in [0, 1), got {length}")
    kappa = length * (n - length**2) / (1.0 - length**2)  # Banerjee et al., 2005
    for _ in range(20):
        a = mean_resultant_length(n, kappa)
        slope = 1.0 - a * a - (n - 1) * a / kappa if kappa else 1.0 / n
        step = (a - length) / slope
        kappa = max(kappa - step, 0.5 * kappa)
        if abs(step) <= 1e-12 * kappa:
            break
    return float(kappa)


def log_normaliser(n: int, kappa: float) -> float:
    """log C_n(κ); at κ = 0 minus the log of the unit sphere's area.

    Example:
      >>> import math
      >>> round(log_normaliser(3, 2.0) - math.log(2.0 / (4 * math.pi * math.sinh(2.0))), 12)
      0.0
    """
    return -log_area(n) - _log_mean_exp(n, kappa)


def entropy(n: int, kappa: float) -> float:
    """Differential entropy on the unit sphere, -log C_n(κ) - κ A_n(κ), in nats.

    Example:
      >>> entropy(3, 0.0) == log_area(3)
      True
    """
    return log_area(n) - kl_to_uniform(n, kappa)


def kl_to_uniform(n: int, kappa: float) -> float:
    """KLD from the uniform distribution on the sphere, κ A_n(κ) + log C_n(κ) - log C_n(0), in nats.

    The regulariser of Davidson et al., 2018 (https://arxiv.org/abs/1804.00891, section 3.2).

    Example:
      >>> round(kl_to_uniform(128, 1e-3) / (0.5 * 1e-6 / 128), 6)  # κ²/2n for a small κ
      1.0
    """
    return kappa * mean_resultant_length(n, kappa) - _log_mean_exp(n, kappa)


@np.errstate(under="ignore")
def _bessel_ratios(n: int, kappa: float) -> list[float]:
    """I_v(κ) / I_{v-1}(κ) for v = n/2 + 4999, ..., n/2 + 1, n/2.

    I_v / I_{v-1} = 1 / (2v/κ + I_{v+1} / I_v), run downwards from a bound (Amos, 1974).
    """
    steps = 5000
    v = 0.5 * n + steps
    ratio = kappa / (v - 0.5 + np.sqrt((v + 0.5) ** 2 + kappa**2))
    ratios = []
    for k in range(1, steps + 1):
        ratio = 1.0 / (2.0 * (v - k) / kappa + ratio)
        ratios.append(ratio)
    return ratios


@np.errstate(under="ignore")
def _log_mean_exp(n: int, kappa: float, peak: float = 0.0) -> float:
    """log of E exp(κ direction·x) over the uniform distribution, less `peak`, which is 0 or κ.

    It is log F_{n/2-1} with F_v = Γ(v+1) (2/κ)^v I_v(κ), and no term of it cancels another: it
    keeps its relative accuracy for κ << 1, and with peak = κ for κ >> n. Debye's expansion
    (https://dlmf.nist.gov/10.41.E3, with Stirling's) gives it at an order 500 higher, up to terms
    of the order's -4th power; from there F_{v-1} = F_v (1 + κ I_{v+1}(κ) / 2v I_v(κ)).
    """
    if kappa == 0.0:
        return 0.0
    steps = 500
    v = 0.5 * n + np.arange(steps)
    ratios = np.array(_bessel_ratios(n, kappa)[-2 : -2 - steps : -1])
    order = v[-1]
    z = kappa / order
    s = np.hypot(1.0, z)
    u, p = 0.5 * z * (z / (1.0 + s)), 1.0 / s  # s = 1 + 2u
    main = 1.0 / (s + z) - 1.0 if peak else 2.0 * u  # s - 1 - z or s - 1
    debye = order * (main - np.log1p(u)) - 0.5 * np.log1p(2.0 * u)
    debye += 2.0 * u * p * (5.0 * p * p + 5.0 * p + 2.0) / (24.0 * order)
    debye += 2.0 * u * p * (1.0 + p) * p * p * (1.0 - 5.0 * p * p) / (16.0 * order**2)
    return float(debye + np.log1p(kappa * ratios / (2.0 * v)).sum())


# --------------------------------------------------------------------------------- the sampler


class VonMisesFisher(NamedTuple):
    """The distribution, scaled to a radius, and a table for sampling it; float32."""

    direction: Array  # [n], unit
    kappa: Array  # scalar
    radius: Array  # scalar, what unit samples are multiplied by
    angle: Array  # [nodes], decreasing angles between direction and x, in radians
    cumulative: Array  # [nodes], the probability of a larger angle
    log_peak: Array  # scalar, log density at radius * direction


@np.errstate(under="ignore")
def fit(means, **_) -> VonMisesFisher:
    """The maximum likelihood fit to the means' directions, and their mean radius.

    Args:
      means: [count, n].

    Raises:
      ValueError: fewer than 2 means, or a NaN or more than 1e30 among them.
    """
    units, radius = directions(checked(means))
    n = units.shape[1]
    mean = units.mean(axis=0)
    length = float(np.linalg.norm(mean))
    direction = mean / length if length > 0 else np.eye(n)[0]
    # 1 - length², accurate even for a very tight island; a zero vector adds 1 to the sum.
    deficit = np.mean(np.sum((units - mean) ** 2, axis=1)) + np.mean(~units.any(axis=1))
    if (
        deficit < 1e-4
    ):  # 1 - A_n² = (n-1)/κ - (n-1)(n-2)/2κ² + ...; below 1e-15 float32 has one point
        kappa = (n - 1) / max(deficit, 1e-15) - 0.5 * (n - 2)
    else:
        kappa = concentration(n, length)

    # The angle from the mean direction has a density ∝ sin(angle)^{n-2} e^{κ cos(angle)}. Its
    # inverse distribution function is tabulated around the mode.
    ratio = 0.5 * (n - 2) / max(kappa, 1e-100)
    mode = 2.0 * np.arcsin(np.sqrt(ratio / (1.0 + ratio + np.hypot(1.0, ratio))))
    spread = 1.0 / np.sqrt(n - 1 + kappa)  # no narrower than half of the true one
    angle = np.linspace(min(mode + 40 * spread, np.pi), max(mode - 40 * spread, 0.0), 16_384)
    with np.errstate(divide="ignore"):
        power = (n - 2) * np.log(np.sin(angle)) if n > 2 else 0.0
    log_density = power - 2.0 * kappa * np.sin(0.5 * angle) ** 2
    density = np.exp(log_density - log_density.max())
    cumulative = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]))])
    log_peak = -log_area(n, max(radius, 1e-30)) - _log_mean_exp(n, kappa, peak=kappa)
    table = angle, cumulative / cumulative[-1]
    return VonMisesFisher(*float32(direction, kappa, radius, *table, log_peak))


def sample(parameters: VonMisesFisher, key: Array, count: int) -> Array:
    """Points of the sphere, float32 [count, n]: random angles to the direction, random tangents."""
    angle_key, tangent_key = jax.random.split(key)
    uniform = jax.random.uniform(angle_key, (count,), jnp.float32)
    angle = jnp.interp(uniform, parameters.cumulative, parameters.angle)[:, None]
    direction = parameters.direction
    tangent = jax.random.normal(tangent_key, (count, direction.size), jnp.float32)
    along = jnp.matmul(tangent, direction, precision="highest")[:, None]
    tangent = project(tangent - along * direction[None], 1.0)
    return parameters.radius * (jnp.cos(angle) * direction[None] + jnp.sin(angle) * tangent)


def log_prob(parameters: VonMisesFisher, z: ArrayLike) -> Array:
    """log C_n(κ) + κ direction·z/‖z‖ - (n-1) log radius, per area of the sphere of that radius.

    Args:
      parameters: from `fit`.
      z: [count, n] floating-point; only its direction matters.

    Returns:
      [count], float32 or wider.

    Raises:
      TypeError: z is not floating-point.
    """
    z = widened(z, "z")
    direction, kappa, _, _, _, log_peak = (a.astype(z.dtype) for a in parameters)
    # 1 - cos = ‖difference of units‖²/2, which keeps its digits near the direction.
    gap = project(z, 1.0) - direction[None]
    return log_peak - 0.5 * kappa * jnp.sum(gap * gap, axis=-1)


vmf = Sampler(fit, sample, log_prob, parameters=VonMisesFisher)
"""The maximum likelihood von Mises-Fisher distribution (section 4.4).

It matches the embeddings' mean direction and the trace of their covariance, not the covariance
itself: its single κ is the same in all directions. Sampling needs no rejection.
"""
