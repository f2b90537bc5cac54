"""The log likelihood of S-VAE on binarised MNIST, as Davidson et al. report it.

    python -m benchmarks.likelihood [--quick] [--data=DIR] [--d=10]
        [--epochs=200] [--out=FILE.json] [KIND ...]

Table 1 of https://arxiv.org/abs/1804.00891: networks of 256 and 128 units,
pixels drawn anew in every epoch, Adam at 1e-3 with batches of 64, a KLD that
grows over the first 100 epochs, 500 importance samples an image. d is the
dimension of the space: d coordinates of a normal posterior, d + 1 of one on a
sphere. --data is a prepared folder of tensorflow-datasets. Here the number of
epochs is fixed, while the authors stop early, by held-out images.
"""

import functools
import math
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.scipy.special import logsumexp

from benchmarks.measure import parser, write
from hsjax import data, devices, losses, posteriors
from hsjax.coordinates import log_area
from hsjax.methods import METHODS
from hsjax.terminal import command, tell

PAPER = {  # by d: normal and von Mises-Fisher
    10: {"von_mises_fisher": -93.16},
    2: {"normal": -135.7, "von_mises_fisher": -132.5},
    5: {"normal": -110.2, "von_mises_fisher": -108.4},
    20: {"normal": -88.9, "von_mises_fisher": -89.0},
    40: {"normal": -88.9, "von_mises_fisher": -90.9},
}
KINDS = ("normal", "von_mises_fisher", "power_spherical")
BATCH, SAMPLES = 64, 500

TAKES = "It says every 50 epochs how many seconds went by (--quick: a minute or two)."


def dense(key, sizes):
    """Weights and biases of layers, uniform within 1/√(fan in)."""
    keys = jax.random.split(key, len(sizes) - 1)
    return [
        jax.random.uniform(key, (a + 1, b), minval=-(a**-0.5), maxval=a**-0.5)
        for key, a, b in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


def apply(layers, x):
    """[..., first] -> [..., last], with ReLU between the layers."""
    for i, layer in enumerate(layers):
        x = x @ layer[:-1] + layer[-1]
        x = x if i == len(layers) - 1 else jax.nn.relu(x)
    return x


def posterior(kind, outputs):
    """The posterior for [batch, outputs], normal or on the unit sphere."""
    if kind == "normal":
        return posteriors.gaussian(outputs)
    svae, n = METHODS["svae"], outputs.shape[-1] - 1
    law = svae.posterior(outputs, hyper=svae.hyper(n, law=kind, kappa_scale=1.0 / n))
    return type(law)(law.direction, law.kappa)


def log_likelihood(layers, z, x):
    """log p(x|z) of binary pixels, [...]."""
    logits = apply(layers, z)
    return jnp.sum(x * logits - jax.nn.softplus(logits), axis=-1)


def bound(kind, params, x, key, weight):
    """The negative evidence lower bound, with the KLD times `weight`."""
    q = posterior(kind, apply(params["encoder"], x))
    if kind == "normal":
        kl = losses.gaussian_kl(q.mean, q.log_variance)
    else:
        kl = jnp.mean(q.kl_to_uniform())
    return weight * kl - jnp.mean(log_likelihood(params["decoder"], q.sample(key), x))


def importance(kind, params, x, key):
    """log p(x) of each image by importance samples of its posterior, [batch]."""
    q = posterior(kind, apply(params["encoder"], x))

    def one(key):
        z = q.sample(key)
        if kind == "normal":
            noise = (z - q.mean) / q.std
            prior = -0.5 * jnp.sum(z**2 - noise**2 - q.log_variance, axis=-1)
        else:
            prior = -log_area(z.shape[-1]) - q.log_prob(z)
        return log_likelihood(params["decoder"], z, x) + prior

    return logsumexp(lax.map(one, jax.random.split(key, SAMPLES)), axis=0) - math.log(SAMPLES)


def measure(kind, d, images, test, epochs, seed):
    """Train and judge one kind: its row."""
    n = d if kind == "normal" else d + 1
    outputs = 2 * d if kind == "normal" else n + 1
    key = jax.random.key(seed)
    params = {
        "encoder": dense(jax.random.fold_in(key, 0), (784, 256, 128, outputs)),
        "decoder": dense(jax.random.fold_in(key, 1), (n, 128, 256, 784)),
    }
    adam = optax.adam(1e-3)
    steps = len(images) // BATCH

    @functools.partial(jax.jit, donate_argnums=0)
    def epoch(carry, key, weight):
        order = jax.random.permutation(key, len(images))[: steps * BATCH].reshape(steps, BATCH)

        def step(carry, batch):
            params, state, key = carry
            key, pixel_key, noise_key = jax.random.split(key, 3)
            x = images[batch].astype(jnp.float32) / 255.0
            x = jax.random.bernoulli(pixel_key, x).astype(jnp.float32)
            gradient = jax.grad(functools.partial(bound, kind))(params, x, noise_key, weight)
            updates, state = adam.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state, key), None

        return lax.scan(step, (*carry, key), order)[0][:2]

    start, carry = time.monotonic(), (params, adam.init(params))
    for i in range(epochs):
        carry = epoch(carry, jax.random.fold_in(key, 2 + i), min(1.0, (i + 1) / min(100, epochs)))
        if (i + 1) % 50 == 0:
            jax.block_until_ready(carry)
            tell(f"{kind}: epoch {i + 1}, {time.monotonic() - start:.0f} s")
    judge = jax.jit(functools.partial(importance, kind))
    pixels = jax.random.bernoulli(key, jnp.asarray(test, jnp.float32) / 255.0).astype(jnp.float32)
    blocks = [judge(carry[0], x, key) for x in jnp.split(pixels, len(pixels) // 500)]
    values = np.concatenate(blocks)
    return {
        "kind": kind,
        "d": d,
        "seed": seed,
        "epochs": epochs,
        "test_images": len(values),
        "log_likelihood": float(values.mean()),
        "standard_error": float(values.std() / len(values) ** 0.5),
        "paper": PAPER.get(d, {}).get(kind),
    }


@command
def main() -> None:
    """Train, judge, print, write."""
    flags = parser(__doc__, "likelihood", TAKES, "two epochs, to see it work")
    flags.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)}")
    flags.add_argument("--data", default="", metavar="DIR", help="where MNIST is, or will be put")
    flags.add_argument("--d", type=int, default=10, help="dimension of the space (%(default)s)")
    flags.add_argument("--epochs", type=int, default=200, help="number of epochs (%(default)s)")
    flags.add_argument("--seed", type=int, default=0, help="random seed (%(default)s)")
    arguments = flags.parse_args()
    tell(f"{TAKES}\n")
    devices.start()
    mnist = data.load("mnist", arguments.data)
    images = jnp.asarray(mnist.train_images).reshape(-1, 784)
    test = mnist.test_images.reshape(-1, 784)
    if arguments.quick:
        images, test = images[:6400], test[:500]
    rows = []
    for kind in arguments.kinds or KINDS:
        epochs = 2 if arguments.quick else arguments.epochs
        rows.append(measure(kind, arguments.d, images, test, epochs, arguments.seed))
        row = rows[-1]
        paper = f", {row['paper']} there" if row["paper"] else ""
        value = f"{row['log_likelihood']:.2f} ± {row['standard_error']:.2f}"
        tell(f"{kind}, d = {arguments.d}: {value} nats{paper}")
        write(arguments.out, rows)


if __name__ == "__main__":
    main()
