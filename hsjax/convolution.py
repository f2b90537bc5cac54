"""The convolution of the network, with a derivative in its kernel that is fast on a CPU as well.

For the gradient of a kernel, XLA's CPU backend takes a convolution with a window as large as the
image, whose rearranged operands don't fit a cache. Here a CPU sums matrix products instead, a few
images at a time. Other platforms run the same program as without this file.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero

from hsjax import devices
from hsjax.coordinates import computed_in

_OWN = ContextVar("_OWN", default=True)  # whether `convolve` has a derivative of its own
_PIXELS = 2048  # of a group of images: what is laid out for 16 channels is less than 1 MB


@contextmanager
def without_own_derivative() -> Iterator[None]:
    """Programs traced inside use XLA's derivatives, for comparison with ours."""
    token = _OWN.set(False)
    try:
        yield
    finally:
        _OWN.reset(token)


def convolve(x: Array, kernel: Array) -> Array:
    """A convolution with stride 1 and zero padding that keeps the size.

    Args:
      x: [batch, height, width, inputs].
      kernel: [size, size, inputs, outputs], of x's dtype.

    Returns:
      [batch, height, width, outputs].

    Raises:
      TypeError: x and kernel are of two dtypes.
      ValueError: they have different numbers of inputs.
    """
    # Small images fit a cache, and a loop takes longer to compile.
    small = x.shape[1] * x.shape[2] < 256 or kernel.shape[0] == 1
    if small or not _OWN.get() or not _shared_on_cpu(len(x)):
        return plain(x, kernel)
    return _convolve(x, kernel)


def _shared_on_cpu(batch: int) -> bool:
    """Whether a CPU's devices can each compute their share of the batch in this way."""
    several = devices.that_share()
    one_process = jax.default_backend() == "cpu" and jax.process_count() == 1
    return several == 1 or (one_process and batch % several == 0)


def plain(x: Array, kernel: Array) -> Array:
    """`convolve` without a derivative of its own."""
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


_convolve = jax.custom_jvp(plain)


def _derivative(primals, tangents):
    x, kernel = primals
    y = _convolve(x, kernel)
    x_dot, kernel_dot = tangents
    y_dot = jnp.zeros_like(y)
    if not isinstance(x_dot, SymbolicZero):
        y_dot += _convolve(x_dot, kernel)
    if not isinstance(kernel_dot, SymbolicZero):
        y_dot += _along_kernel(x, kernel_dot)
    return y, y_dot


_convolve.defjvp(_derivative, symbolic_zeros=True)


@jax.checkpoint  # the gradient lays out x again, so only x is stored
def _along_kernel(x: Array, kernel: Array) -> Array:
    """The convolution as a linear function of the kernel; its transpose is the gradient."""

    def product(x, kernel):
        return lax.platform_dependent(x, kernel, cpu=_products, default=plain)

    return devices.each_its_share(product)(x, kernel)


def _products(x: Array, kernel: Array) -> Array:
    """The convolution as matrix products, group by group.

    Each row of pixels, with neighbours in the row, is multiplied by all rows of the kernel at once,
    and the products are added to the rows above and below. The gradient of that needs
    2·size·channels values per pixel; patches would need size²·channels.
    """
    size, _, inputs, outputs = kernel.shape
    batch, height, width, _ = x.shape
    images = next(i for i in range(max(1, _PIXELS // (height * width)), 0, -1) if batch % i == 0)
    before, after = (size - 1) // 2, size // 2
    # The gradient is summed over the groups: not in bfloat16.
    wide = computed_in(x.dtype)
    matrix = kernel.astype(wide).transpose(1, 2, 0, 3).reshape(size * inputs, size * outputs)

    @jax.checkpoint
    def group(x):
        x = jnp.pad(x, ((0, 0), (0, 0), (before, after), (0, 0)))
        rows = jnp.concatenate([x[:, :, j : j + width] for j in range(size)], -1).astype(wide)
        # One product of two matrices, whose gradient is one as well, and no sum over axes.
        products = (rows.reshape(-1, size * inputs) @ matrix).reshape(*rows.shape[:3], -1)
        zero, same = jnp.zeros((), wide), (0, 0, 0)
        taller = [
            lax.pad(part, zero, (same, (size - 1 - i, i, 0), same, same))
            for i, part in enumerate(jnp.split(products, size, axis=-1))
        ]
        return sum(taller)[:, after : after + height].astype(kernel.dtype)

    groups = x.reshape(-1, images, height, width, inputs)
    return lax.map(group, groups).reshape(batch, height, width, outputs)
