"""How much of a sampler's distance is contrast? Latents scaled before decoding, without training.

    python -m benchmarks.scale WORKDIR ... [--count=5000] [--out=FILE.json]

Where a model projects its latents, μ has about √2 times the share of a decoded vector that it has
in a training step, where the noise takes the rest. This decodes s μ, and s times samples fitted to
the training means, without any projection: for a standard VAE s = 1 is what `evaluate` does, for
one that projects s = 1 is about that and s = 0.71 about the mean of a sampled z.
"""

import argparse
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measure import write
from configs import default
from hsjax import batches, data, evaluate, experiment
from hsjax.checkpoints import Checkpoints
from hsjax.config import UserError
from hsjax.metrics.frechet import frechet_distance, moments
from hsjax.samplers import SAMPLERS

SCALES = (0.71, 1.0, 1.5, 2.0, 2.5)
FITTED = ("projected_gaussian", "projected_gmm")


def config_of(workdir: Path):
    """The config of a trained workdir.

    Raises:
      UserError: it has none.
    """
    file = workdir / "config.json"
    if not file.is_file():
        raise UserError(f"{workdir} has no config.json: train it first")
    config = default.get_config()
    config.update(json.loads(file.read_text()))
    config.model.stages = tuple(config.model.stages)
    config.train.decay_epochs = tuple(config.train.decay_epochs)
    config.evaluate.feature_seeds = tuple(config.evaluate.feature_seeds)
    return config


def measure(workdir: Path, count: int) -> list[dict]:
    """A row for each scale: reconstruction error, distance of reconstructions and of samples."""
    config = config_of(workdir)
    run = experiment._open(config, workdir, data.of_config(config.data))
    with Checkpoints(workdir / "checkpoints", config.train.checkpoints_kept) as checkpoints:
        state = checkpoints.restore(run.experiment.initial(config.seed), move=False)
    if state is None:
        raise UserError(f"{workdir} has no good checkpoint: train it first")

    @jax.jit
    def decoder(state, z):
        model = run.experiment.model(state.params, state.batch_stats)
        return run.experiment.crop(model.decoder(z, train=False))

    plain = run.model._replace(decode=decoder)
    size = config.train.batch_size
    network = evaluate.feature_networks(config, run.dataset)[0]

    def distance(images):
        return frechet_distance(moments(network.extract(images)), of_test)

    images = run.dataset.test_images[:count]
    of_test = moments(network.extract(images))
    test = evaluate.embed(run.model, state, images, size).mean
    bank = evaluate.embed(run.model, state, run.dataset.train_images[:10_000], size).mean
    samples = {}
    for name in FITTED:
        sampler = SAMPLERS[name]
        key = jax.random.key(config.seed)
        samples[name] = np.asarray(sampler.sample(sampler.fit(bank), key, len(images)))
    rows = []
    for scale in SCALES:
        z = np.float32(scale) * test
        blocks = batches.eval_batches(len(z), size)
        errors = [
            np.sum((batches.prepare(images[i]) - decoder(state, z[i])) ** 2, axis=(1, 2, 3))[mask]
            for i, mask in blocks
        ]
        row = {
            "workdir": workdir.name,
            "scale": scale,
            "mse_sum": float(jnp.mean(jnp.concatenate(errors))),
            "distance": network.distance,
            "reconstructions": distance(evaluate.decode(plain, state, z, size)),
        }
        for name, latents in samples.items():
            scaled = np.float32(scale) * latents
            row[name] = distance(evaluate.decode(plain, state, scaled, size))
        rows.append(row)
    return rows


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdirs", nargs="+", type=Path)
    parser.add_argument("--count", type=int, default=5000, help="test images and samples")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/scale.json"))
    arguments = parser.parse_args()
    columns = ("mse_sum", "reconstructions", *FITTED)
    table = []
    print(f"{'':>24}  scale" + "".join(f"{name:>20}" for name in columns), flush=True)
    try:
        for workdir in arguments.workdirs:
            for row in measure(workdir, arguments.count):
                cells = "".join(f"{row[name]:>20.4g}" for name in columns)
                print(f"{row['workdir']:>24}  {row['scale']:>5}{cells}", flush=True)
                table.append(row)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    write(arguments.out, table)


if __name__ == "__main__":
    main()
