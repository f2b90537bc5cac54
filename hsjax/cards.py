"""The card that describes a trained model, as JSON and as Markdown."""

import subprocess
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from hsjax import __version__, training

_ROWS = {
    "mse_sum": "squared error of a reconstruction, summed over an image",
    "mse_per_value_x1000": "1000 x squared error per value",
    "knn_accuracy": "k-NN accuracy of the latents",
    "linear_probe_accuracy": "linear probe accuracy of the latents",
}


def card(
    config: ConfigDict,
    setup: training.Setup,
    state: training.TrainState,
    numbers: dict[str, Any],
    data: dict[str, Any],
    note: str = "",
) -> dict[str, Any]:
    """A dictionary that JSON can hold.

    Args:
      config: of the run.
      setup: of the run.
      state: of the model that the card describes.
      numbers: of its evaluation, as in metrics.json; may be empty.
      data: as in data.json.
      note: further remarks, such as where the model was trained.
    """
    fields = config.to_dict()
    fields["data"]["dir"] = ""  # differs between machines
    return {
        "hsjax": __version__,
        "commit": commit(),
        "shape": list(setup.shape),
        "steps_per_epoch": setup.steps,
        "step": int(state.step),
        "epoch": int(state.step) // setup.steps,
        "parameters": sum(int(x.size) for x in jax.tree.leaves(state.params)),
        "note": note,
        "data": data,
        "config": fields,
        "numbers": numbers,
    }


def markdown(card: dict[str, Any], name: str) -> str:
    """The card as Markdown, for people.

    Args:
      card: of `card`.
      name: of the model, and of its folder.
    """
    config, numbers = card["config"], card["numbers"]
    height, width, channels = card["shape"]
    commit = f", commit {card['commit'][:12]}" if card["commit"] else ""
    method = config["method"]
    fields = ", ".join(f"{key} {value}" for key, value in method.items() if key != "name")
    lines = [
        f"# {name}",
        "",
        f"An autoencoder of {height}x{width}x{channels} images, made with hsjax {card['hsjax']}"
        f"{commit}.",
        "",
        *([card["note"], ""] if card["note"] else []),
        "| what | |",
        "|---|---|",
        f"| method | `{method['name']}`{f' ({fields})' if fields else ''} |",
        f"| latent dimension | {config['model']['latent_dim']} |",
        f"| parameters | {card['parameters']:,} |",
        f"| data | {config['data']['name']}, {_count(card)} training images |",
        f"| training | {card['epoch']} epochs of {card['steps_per_epoch']} steps, batch "
        f"{config['train']['batch_size']}, β {config['loss']['beta']:g}, seed {config['seed']} |",
    ]
    if numbers:
        images = f"{numbers['test_images']} {numbers['split']} images"
        lines += ["", f"On {images}:", "", "| measure | |", "|---|---|"]
        lines += [f"| {_ROWS[key]} | {numbers[key]:.4g} |" for key in _ROWS if key in numbers]
    for row in numbers.get("generation", ()):
        lines += ["", *_samples(row, numbers["sample_count"])]
    lines += [
        "",
        "```python",
        "import hsjax",
        "",
        f'run = hsjax.load("{name}")  # the folder of this card',
        f'images = run.sample(16, sampler="{config["sample"]["sampler"]}")  # in [0, 1]',
        "posterior = run.encode(images)",
        "```",
    ]
    if numbers.get("notes"):
        lines += ["", "Notes:", "", *(f"- {note}" for note in numbers["notes"])]
    return "\n".join(lines) + "\n"


def _count(card) -> str:
    count = card["data"].get("training_images")
    return f"{count:,}" if count else "?"


def _samples(row: dict[str, Any], count: int) -> list[str]:
    """A table of the samplers, judged by one feature network."""
    lines = [
        f"{count} samples of each sampler, by {row['distance']}, lower is better:",
        "",
        "| sampler | to test images | to reconstructions |",
        "|---|---|---|",
    ]
    for name, values in row["samplers"].items():
        if "to_test" in values:
            pair = f"{values['to_test']:.4g} | {values['to_reconstructions']:.4g}"
            lines.append(f"| `{name}` | {pair} |")
    return lines if len(lines) > 4 else []


def commit() -> str | None:
    """The commit of this package, if it is used from its own repository."""
    here = Path(__file__)
    for command in (("ls-files", "--error-unmatch", here.name), ("rev-parse", "HEAD")):
        try:
            done = subprocess.run(
                ["git", "-C", here.parent, *command], capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return None
    return done.stdout.strip()
