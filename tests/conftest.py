"""Strict settings for every test: one CPU device."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
