"""Train a VAE and judge it, or judge a trained one again: see hsjax/cli.py.

python main.py --config=configs/cifar_compressed.py --config.train.epochs=50
"""

import sys

try:
    from hsjax import cli
except (ModuleNotFoundError, ValueError) as error:
    line = f"JAX can't start ({error}): mend that environment variable"
    if isinstance(error, ModuleNotFoundError):
        line = f"{error.name} is not installed: pip install -e '.[train]'"
    print(f"error: {line}", file=sys.stderr)
    sys.exit(2)

if __name__ == "__main__":
    cli.run_experiment(sys.argv)
