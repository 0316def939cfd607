"""Settings that the peers read at import time, so they are made before any test module is imported."""

import os

os.environ["KERAS_BACKEND"] = "jax"  # the one backend whose float64 is float64 throughout
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
