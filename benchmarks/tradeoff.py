"""The sweep under the name that it had as a benchmark: see hsjax/sweep.py.

python -m benchmarks.tradeoff --quick
"""

from hsjax.sweep import main

if __name__ == "__main__":
    main()
