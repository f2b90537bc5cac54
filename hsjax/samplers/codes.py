"""A transformer over the tokens of a VQ-VAE (van den Oord et al., 2017, section 3.3).

It predicts each token's code from those before it, as their PixelCNN does: two layers of width 64
with four heads, trained on 64 latents a step. Tokens are drawn one after another.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hsjax.samplers import networks
from hsjax.samplers.base import Sampler

WIDTH, LAYERS, HEADS, BATCH = 64, 2, 4, 64


def initial(key: Array, tokens: int, codes: int) -> dict:
    """Initial parameters of the transformer."""
    keys = iter(jax.random.split(key, 3 + 4 * LAYERS))

    def table(rows):
        return 0.02 * jax.random.normal(next(keys), (rows, WIDTH), jnp.float32)

    def layer():
        sizes = {
            "attend": (WIDTH, 3 * WIDTH, 0.7),
            "attended": (WIDTH, WIDTH, 0.3),
            "hidden": (WIDTH, 4 * WIDTH, 1.0),
            "output": (4 * WIDTH, WIDTH, 0.3),
        }
        return {name: networks.dense(next(keys), *size) for name, size in sizes.items()}

    return {
        "codes": table(codes + 1),  # the last one marks the start
        "places": table(tokens),
        "layers": {str(i): layer() for i in range(LAYERS)},
        "logits": networks.dense(next(keys), WIDTH, codes, 0.02),
    }


def _normed(x: Array) -> Array:
    return jax.nn.standardize(x, axis=-1, epsilon=1e-5)


def logits(parameters: dict, codes: Array) -> Array:
    """Logits of each code given earlier ones: int32 [batch, tokens] -> [batch, tokens, codes]."""
    start = jnp.full((len(codes), 1), len(parameters["codes"]) - 1, codes.dtype)
    before = jnp.concatenate([start, codes[:, :-1]], axis=1)
    x = parameters["codes"][before] + parameters["places"]
    for i in range(LAYERS):
        layer = parameters["layers"][str(i)]
        parts = networks.apply(layer["attend"], _normed(x))
        parts = parts.reshape(*codes.shape, 3, HEADS, WIDTH // HEADS)
        attended = jax.nn.dot_product_attention(
            parts[:, :, 0], parts[:, :, 1], parts[:, :, 2], is_causal=True
        )
        x = x + networks.apply(layer["attended"], attended.reshape(x.shape))
        hidden = jax.nn.gelu(networks.apply(layer["hidden"], _normed(x)))
        x = x + networks.apply(layer["output"], hidden)
    return networks.apply(parameters["logits"], _normed(x))


def nats(parameters: dict, codes: Array) -> Array:
    """-log p of each row of codes, int32 [batch, tokens]: [batch]."""
    log_p = jax.nn.log_softmax(logits(parameters, codes))
    return -jnp.sum(jnp.take_along_axis(log_p, codes[:, :, None], axis=2)[:, :, 0], axis=1)


def loss(parameters: dict, constants: dict, posterior, key: Array) -> Array:
    """`nats`, mean over the batch."""
    return jnp.mean(nats(parameters, posterior.codes))


def build(job: networks.Job) -> dict:
    """Train the transformer.

    Returns:
      Arrays by name; under "report" log p of held-out latents, in nats per latent, and for
      comparison that of independent tokens with the frequencies of the training latents.
    """
    posterior, keys = job.posterior, job.keys
    if not hasattr(posterior, "codes"):
        raise ValueError("they have no codes, as those of vqvae have")
    codebook = jnp.asarray(job.variables["codebook"])
    parts = networks.split(posterior, keys[0])
    start = initial(keys[1], posterior.codes.shape[1], len(codebook))
    parameters, found = job.train(loss, start, {}, parts, keys[2], batch=BATCH)
    seen, held_out = (np.asarray(part.codes) for part in parts)
    counts = np.stack([np.bincount(token, minlength=len(codebook)) for token in seen.T]) + 1.0
    log_p = np.log(counts / counts.sum(axis=1, keepdims=True))
    report = {
        "held_out_nats": -found["held_out"],
        "independent_nats": float(log_p[np.arange(len(counts)), held_out].sum(axis=1).mean()),
        "step": found["step"],
    }
    return {"transformer": parameters, "codebook": codebook, "report": report}


@networks.lenient
def sample(parameters: dict, key: Array, count: int) -> Array:
    """float32 [count, n]: codes drawn one token after another, looked up in the codebook."""
    transformer, codebook = parameters["transformer"], parameters["codebook"]
    tokens = len(transformer["places"])

    def some(key):
        def draw(i, codes):
            found = logits(transformer, codes)[:, i]
            chosen = jax.random.categorical(jax.random.fold_in(key, i), found)
            return codes.at[:, i].set(chosen.astype(jnp.int32))

        return jax.lax.fori_loop(0, tokens, draw, jnp.zeros((500, tokens), jnp.int32))

    codes = jax.lax.map(some, jax.random.split(key, -(-count // 500)))
    return codebook[codes.reshape(-1, tokens)[:count]].reshape(count, -1)


fit = networks.fit_of("codes", build)

codes = Sampler(fit, sample, learned="codes")
"""A transformer over the codes of a VQ-VAE.

Its fit takes a posterior with `codes`, int32 [count, tokens], and variables with the "codebook",
[codes, size]; a posterior without codes is a ValueError.
"""
