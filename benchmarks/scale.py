"""How much of a sampler's distance is contrast? Latents scaled before decoding.

    python -m benchmarks.scale WORKDIR ... [--count=5000] [--out=FILE.json]

Where a model projects its latents, μ has about √2 times the share of a decoded
vector that it has in a training step, where the noise takes the rest. This
decodes s μ, and s times samples fitted to the training means, without any
projection or training: for a standard VAE s = 1 is what `evaluate` does, for
one that projects s = 1 is about that and s = 0.71 about the mean of a sampled
z.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measure import command, parser, write
from configs import default
from hsjax import batches, data, devices, evaluate, experiment
from hsjax.checkpoints import Checkpoints
from hsjax.errors import UserError
from hsjax.metrics.frechet import frechet_distance, moments
from hsjax.samplers import SAMPLERS
from hsjax.terminal import tell

LEGEND = """\
Latents times `scale` are decoded; the last three columns are distances to test
images (Fréchet, named in the JSON).
  mse_sum          error of the reconstructions, summed over an image's values
  reconstructions  of test images
  projected_...    samples of this sampler, fitted to the training means
"""
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


@command
def main() -> None:
    """Measure, print, write."""
    flags = parser(__doc__, "scale")
    flags.add_argument("workdirs", nargs="+", type=Path, metavar="WORKDIR", help="of a trained run")
    flags.add_argument(
        "--count", type=int, default=5000, help="test images and samples (%(default)s)"
    )
    arguments = flags.parse_args()
    devices.start()
    columns = ("mse_sum", "reconstructions", *FITTED)
    table = []
    tell(LEGEND)
    tell("scale" + "".join(f"{name:>18}" for name in columns))
    for workdir in arguments.workdirs:
        tell(workdir.name)
        for row in measure(workdir, arguments.count):
            tell(f"{row['scale']:>5}" + "".join(f"{row[name]:>18.4g}" for name in columns))
            table.append(row)
    write(arguments.out, table)


if __name__ == "__main__":
    main()
