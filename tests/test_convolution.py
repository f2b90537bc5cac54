"""The network's convolution: derivatives against loops and JAX's own, the program elsewhere."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hsjax import devices
from hsjax.convolution import convolve, plain, without_own_derivative

ROOT = Path(__file__).parents[1]

# (batch, height, width, inputs, outputs, size): a batch that can't be split into pairs, sides that
# differ, a kernel of even size, more inputs than outputs, and images too small for products.
SHAPES = [
    (4, 16, 16, 3, 5, 5),
    (7, 32, 20, 4, 4, 3),
    (3, 16, 17, 2, 6, 1),
    (2, 16, 16, 6, 2, 3),
    (2, 20, 16, 2, 3, 2),
    (4, 6, 5, 2, 3, 3),
]


def drawn(shape, dtype="float32"):
    batch, height, width, inputs, outputs, size = shape
    rng = np.random.default_rng(0)
    sizes = (
        (batch, height, width, inputs),
        (size, size, inputs, outputs),
        (batch, height, width, outputs),
    )
    *arguments, cotangent = (jnp.asarray(rng.standard_normal(size), dtype) for size in sizes)
    return arguments, cotangent


def by_loops(x, kernel, cotangent):
    """Output, gradient in x and in the kernel, float64, from the definition."""
    x, kernel, cotangent = (np.asarray(a, np.float64) for a in (x, kernel, cotangent))
    height, width = x.shape[1:3]
    size = len(kernel)
    before = (size - 1) // 2
    margins = [(0, 0), (before, size // 2), (before, size // 2), (0, 0)]
    padded = np.pad(x, margins)
    y, in_padded, in_kernel = np.zeros(cotangent.shape), np.zeros_like(padded), 0 * kernel
    for i in range(size):
        for j in range(size):
            window = slice(None), slice(i, i + height), slice(j, j + width)
            y += padded[window] @ kernel[i, j]
            in_padded[window] += cotangent @ kernel[i, j].T
            in_kernel[i, j] = np.einsum("bhwi,bhwo->io", padded[window], cotangent)
    inside = slice(None), slice(before, before + height), slice(before, before + width)
    return y, in_padded[inside], in_kernel


@pytest.mark.parametrize("shape", SHAPES)
def test_value_and_gradients_are_those_of_the_definition(shape):
    arguments, cotangent = drawn(shape)
    y, pull = jax.jit(jax.vjp, static_argnums=0)(convolve, *arguments)
    found = y, *pull(cotangent)
    for mine, exact in zip(found, by_loops(*arguments, cotangent), strict=True):
        np.testing.assert_allclose(mine, exact, atol=2e-6 * np.abs(exact).max())


def test_gradient_in_bfloat16_is_summed_in_float32():
    arguments, cotangent = drawn((50, 16, 16, 2, 3, 3), "bfloat16")
    _, in_kernel = jax.vjp(convolve, *arguments)[1](cotangent)
    assert in_kernel.dtype == jnp.bfloat16
    exact = by_loops(*arguments, cotangent)[2]
    # Half a unit in the last place of bfloat16; sums in bfloat16 are off by a tenth.
    np.testing.assert_allclose(in_kernel.astype(jnp.float32), exact, rtol=0.004, atol=0.05)


def test_all_of_jax_can_differentiate_it():
    (x, kernel), _ = drawn((4, 16, 16, 3, 5, 3))

    def loss(function, scale, kernel):
        return jnp.sum(function(scale * x, scale * kernel) ** 3)

    for derivative in (jax.jacfwd, jax.jacrev, jax.hessian):
        mine = derivative(lambda s: loss(convolve, s, kernel))(0.5)
        np.testing.assert_allclose(
            mine, derivative(lambda s: loss(plain, s, kernel))(0.5), rtol=1e-5
        )
    several = jnp.stack([kernel, 2 * kernel])
    gradient = jax.vmap(jax.grad(lambda k: loss(convolve, 0.5, k)))(several)
    expected = jax.vmap(jax.grad(lambda k: loss(plain, 0.5, k)))(several)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("platform", ["cuda", "tpu", "cpu"])
def test_only_a_cpu_gets_another_program(platform):
    arguments, cotangent = drawn((4, 16, 16, 3, 5, 3))

    def operations(function):
        step = jax.jit(lambda x, kernel, c: jax.vjp(function, x, kernel)[1](c))
        text = step.trace(*arguments, cotangent).lower(lowering_platforms=(platform,)).as_text()
        return [text.count(f"stablehlo.{name}") for name in ("convolution", "dot_general", "while")]

    assert operations(plain) == [2, 0, 0]
    assert operations(convolve) == ([1, 1, 1] if platform == "cpu" else [2, 0, 0])
    with without_own_derivative():
        assert operations(convolve) == [2, 0, 0]


def on_devices():
    """The gradient in the kernel where four devices share the batch, and where each has its own."""
    (x, kernel), cotangent = drawn((16, 16, 16, 3, 5, 3))

    def gradient(x, kernel, cotangent):
        x, cotangent = devices.split(x), devices.split(cotangent)
        return jax.vjp(convolve, x, kernel)[1](cotangent)[1]

    shared = jax.jit(gradient, in_shardings=devices.replicated(), out_shardings=None)
    arguments = devices.replicate((x, kernel, cotangent))
    program = shared.lower(*arguments).compile()
    mesh = jax.make_mesh((4,), ("run",), (jax.sharding.AxisType.Auto,))
    rows = jax.sharding.PartitionSpec("run")
    own = jax.shard_map(
        lambda x, c: devices.apart()(gradient)(x, kernel, c)[None],
        mesh=mesh,
        in_specs=(rows, rows),
        out_specs=rows,
        check_vma=False,
    )
    text = program.as_text()
    return {
        "shared": program(*arguments),
        "own": jax.jit(own)(x, cotangent),
        "has_loop": "while" in text,
        "gathers": "all-gather" in text,
    }


def test_devices_compute_their_shares_and_add_them(tmp_path):
    subprocess.run(
        [sys.executable, __file__, tmp_path / "found.npz"],
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "4", "PYTHONPATH": str(ROOT)},
        check=True,
    )
    with np.load(tmp_path / "found.npz") as file:
        found = dict(file)
    arguments, cotangent = drawn((16, 16, 16, 3, 5, 3))
    exact = by_loops(*arguments, cotangent)[2]
    np.testing.assert_allclose(found["shared"], exact, atol=2e-6 * np.abs(exact).max())
    assert found["has_loop"]
    assert not found["gathers"]
    for i in range(4):
        mine = slice(4 * i, 4 * i + 4)
        exact = by_loops(arguments[0][mine], arguments[1], cotangent[mine])[2]
        np.testing.assert_allclose(found["own"][i], exact, atol=2e-6 * np.abs(exact).max())


if __name__ == "__main__":
    np.savez(sys.argv[1], **on_devices())
