"""VQ-VAE (van den Oord et al., 2017, https://arxiv.org/abs/1711.00937).

The n outputs are tokens of a few values each (16 × 8 at n = 128), and each token is replaced by the
nearest code of a codebook. The codebook follows the tokens by a running average (their appendix
A.1). Rarely used codes are reset to tokens of the batch, as all codes are in the first step. `own`
draws each token by its codes' frequencies; the sampler `codes` learns how tokens depend on each
other.
"""

import dataclasses
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.scipy.special import entr

from hsjax.methods.base import Bounds, Method, outputs_of_point

DECAY = 0.99  # of the running averages (their γ)
LEAST = 0.05  # share of the mean use of a code, below which it is reset


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Hyper:
    """Choices of the method."""

    codes: int = dataclasses.field(metadata={"static": True})
    token_size: int = dataclasses.field(metadata={"static": True})


def hyper(
    n: int,
    *,
    codes: Annotated[int, Bounds(2, 100_000)] = 512,
    token_size: Annotated[int, Bounds(1, 100_000)] = 8,
) -> Hyper:
    """Choices of the method.

    Args:
      n: latent dimension.
      codes: number of codes in the codebook, which all tokens share.
      token_size: values per token; if it does not divide n, the largest divisor of n below it.
    """
    size = next(size for size in range(min(token_size, n), 0, -1) if n % size == 0)
    return Hyper(codes, size)


class Quantised(NamedTuple):
    """An encoder's outputs, and the codes nearest to them."""

    mean: Array  # [batch, n], the codes, whose derivative is that of the outputs
    outputs: Array  # [batch, n], of the encoder
    codes: Array  # int32 [batch, tokens]

    def sample(self, key: Array) -> Array:
        """The codes, whatever the key, [batch, n]."""
        return self.mean


def statistics(key: Array, n: int, hyper: Hyper, images) -> dict:
    """An unused codebook [codes, size], its sums, and how often each token uses each code."""
    codebook = jax.random.normal(key, (hyper.codes, hyper.token_size), jnp.float32)
    uses = jnp.zeros((n // hyper.token_size, hyper.codes), jnp.float32)
    return {"codebook": codebook, "sums": jnp.zeros_like(codebook), "uses": uses}


def posterior(outputs: Array, *, variables: dict, **_) -> Quantised:
    """The nearest codes of outputs [batch, n]; the gradient goes straight through."""
    codebook = variables["codebook"]
    tokens = outputs.reshape(len(outputs), -1, codebook.shape[1])
    products = jnp.einsum("btd,kd->btk", tokens, codebook, precision="highest")
    codes = jnp.argmin(jnp.sum(codebook**2, axis=1) - 2.0 * products, axis=-1).astype(jnp.int32)
    quantised = codebook[codes].reshape(outputs.shape)
    return Quantised(outputs + lax.stop_gradient(quantised - outputs), outputs, codes)


def regulariser(numbers: Hyper, posterior: Quantised, z, *, variables, **_) -> dict:
    """The commitment: squared distance of the outputs from their codes, summed over n.

    The authors' weight is 0.25 for mean errors: for sums β is 0.25 values / n, which is 1.5 for
    MNIST at n = 128. `perplexity` is exp of the entropy of the batch's codes, and `dead_codes` is
    the number of codes that are reset.
    """
    gap = posterior.outputs - lax.stop_gradient(z)
    share = jnp.mean(jax.nn.one_hot(posterior.codes, numbers.codes), axis=(0, 1))
    return {
        "regulariser": jnp.mean(jnp.sum(gap**2, axis=1)),
        "perplexity": jnp.exp(jnp.sum(entr(share))),
        "dead_codes": jnp.sum(_dead(variables["uses"])),
    }


def _dead(uses: Array) -> Array:
    """Which codes are used less than `LEAST` of the mean, [codes]; all of an unused codebook."""
    total = jnp.sum(uses, axis=0)
    return total <= LEAST * jnp.mean(total)


def update(hyper: Hyper, posterior: Quantised, z, *, variables, key, **_) -> dict:
    """The running averages, updated with this batch; dead codes are reset to tokens of it."""
    tokens = posterior.outputs.reshape(-1, hyper.token_size)
    hits = jax.nn.one_hot(posterior.codes, hyper.codes, dtype=jnp.float32)  # [batch, tokens, codes]
    sums = jnp.einsum("tk,td->kd", hits.reshape(-1, hyper.codes), tokens, precision="highest")
    uses = DECAY * variables["uses"] + (1.0 - DECAY) * jnp.sum(hits, axis=0)
    sums = DECAY * variables["sums"] + (1.0 - DECAY) * sums
    # A code that is reset gets the average use in a batch, so that it has time to be found.
    dead, start = _dead(uses) | (jnp.sum(variables["uses"]) == 0), len(tokens) / hyper.codes
    chosen = tokens[jax.random.randint(key, (hyper.codes,), 0, len(tokens))]
    uses = jnp.where(dead, start / len(uses), uses)
    sums = jnp.where(dead[:, None], start * chosen, sums)
    return {"codebook": sums / jnp.sum(uses, axis=0)[:, None], "sums": sums, "uses": uses}


def prior(key: Array, count: int, n: int, *, variables, **_) -> Array:
    """New latents [count, n]: each token's code, independently, by how often it is used there."""
    log_uses = jnp.log(variables["uses"])
    codes = jax.random.categorical(key, log_uses, shape=(count, len(log_uses)))
    return variables["codebook"][codes].reshape(count, n)


def notes(hyper: Hyper, terms: dict[str, float]) -> list[str]:
    """Whether the codebook has collapsed."""
    found, codes = [], hyper.codes
    if (used := terms["perplexity"]) < 0.1 * codes:
        found.append(f"the codebook has collapsed: its {codes} codes are used like {used:.1f}")
    if (dead := terms["dead_codes"]) > 0.1 * codes:
        found.append(f"{dead:.0f} of the {codes} codes are dead")
    return found


vqvae = Method(
    head=outputs_of_point,
    hyper=hyper,
    posterior=posterior,
    regulariser=regulariser,
    prior=prior,
    statistics=statistics,
    update=update,
    notes=notes,
)
