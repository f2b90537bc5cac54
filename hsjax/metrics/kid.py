"""How far apart are two sets of features? The kernel distance, which has no bias at any count.

The squared maximum mean discrepancy with the cubic kernel (x·y / d + 1)³ (Bińkowski et al., 2018,
"Demystifying MMD GANs"): unlike the Fréchet distance it assumes no Gaussian and, being unbiased,
may come out a little below 0 for sets of the same distribution.
"""

import jax
import jax.numpy as jnp
import numpy as np

from hsjax.metrics.frechet import finite_rows


@np.errstate(under="ignore")
def kernel_distance(
    x, y, subsets: int = 100, size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Unbiased MMD² with the cubic kernel, averaged over random subsets.

    Args:
      x: features [count, d].
      y: features [m, d] of the same network.
      subsets: number of pairs of subsets.
      size: samples in a subset, drawn without replacement; reduced to the smaller of count and m.
      seed: of the draws.

    Returns:
      Mean and standard deviation over the subsets; 0 deviation if a subset is all there is.

    Raises:
      ValueError: a NaN or an infinity, different d, fewer than 2 samples, or no subset.
    """
    x, y = finite_rows(x), finite_rows(y)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"{x.shape[1]} and {y.shape[1]} features do not compare")
    size = min(size, len(x), len(y))
    if size < 2 or subsets < 1:
        raise ValueError(f"needs a subset of at least 2 samples, got {subsets} of {size}")
    if len(x) == len(y) == size:
        subsets = 1  # they are all the same

    # k(x, y) = largest³ (u·v + bias)³ with rows u, v of norm <= 1: float32 cannot overflow.
    d = x.shape[1]
    x, y = x.astype(np.float64) / d**0.5, y.astype(np.float64) / d**0.5
    largest = 1.0 + max(np.sum(x * x, axis=1).max(), np.sum(y * y, axis=1).max())
    bias = 1.0 / largest
    x, y = ((v / largest**0.5).astype(np.float32) for v in (x, y))

    rng = np.random.default_rng(seed)
    values = np.empty(subsets)
    for i in range(subsets):
        a, b = (v[rng.choice(len(v), size, replace=False)] for v in (x, y))
        rows = jax.device_get(_row_sums(a, b, np.float32(bias)))
        aa, bb, ab = (np.sum(r, dtype=np.float64) for r in rows)
        pairs = aa - _self_similarity(a, bias) + bb - _self_similarity(b, bias)
        values[i] = pairs / (size * (size - 1)) - 2.0 * ab / size**2
    values *= largest**3
    return float(values.mean()), float(values.std())


@jax.jit
def _row_sums(a, b, bias):
    """Kernel sums over the second argument, for (a, a), (b, b), (a, b): three of [size]."""

    def kernel(u, v):
        k = jnp.matmul(u, v.T, precision="highest") + bias
        return jnp.sum(k * k * k, axis=1)  # a row in float32; the rows are added in float64

    return kernel(a, a), kernel(b, b), kernel(a, b)


def _self_similarity(a: np.ndarray, bias: float) -> float:
    """Sum of k(x, x), which the unbiased estimate leaves out."""
    return np.sum((np.sum(a.astype(np.float64) ** 2, axis=1) + bias) ** 3)
