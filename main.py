"""Train a VAE and judge it, or judge a trained one again: see hsjax/cli.py.

python main.py --config=configs/cifar_compressed.py --config.train.epochs=50
"""

import sys


def fail(line: str) -> None:
    """End the program with one line; hsjax's own function for that may not be importable."""
    print(f"error: {line}", file=sys.stderr)
    sys.exit(2)


try:
    from hsjax import cli
except ModuleNotFoundError as missing:
    fail(f"{missing.name} is not installed: pip install -e '.[train]'")
except ValueError as error:
    fail(f"JAX can't start ({error}): mend that environment variable")

if __name__ == "__main__":
    cli.run_experiment(sys.argv)
