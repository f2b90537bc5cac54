"""One question, one script, one table: run from the top folder with python -m benchmarks.NAME."""
