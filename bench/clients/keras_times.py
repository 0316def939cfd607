"""Keras' optimizers and those of `fastopt.keras`: whole trainings by fit(), and steps alone.

    python bench/clients/keras_times.py [--json FILE]

On the torch backend, with one thread; on the NumPy backend, which has no fit(), steps alone. Needs the extra `keras`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import keras
import numpy as np
from timing import json_argument, pairs, report, row

import fastopt.keras

BACKEND = keras.backend.backend()
if BACKEND == "torch":
    import torch

    torch.set_num_threads(1)
MODULES = (keras.optimizers, fastopt.keras)


def wide() -> tuple[Any, Any, Any]:
    """Embeddings of 20,000 words by 64, four words an example: 1.3 million parameters, few operations beside."""
    rng = np.random.default_rng(0)
    model = keras.Sequential([
        keras.Input((4,), dtype="int32"), keras.layers.Embedding(20_000, 64), keras.layers.Flatten(),
        keras.layers.Dense(1),
    ])  # fmt: skip
    return model, rng.integers(0, 20_000, (1024, 4)).astype("int32"), rng.normal(size=(1024, 1)).astype("float32")


def small() -> tuple[Any, Any, Any]:
    """An MLP of 20, 32, 32 and one: 1,761 parameters in six arrays."""
    rng = np.random.default_rng(0)
    layers = [keras.layers.Dense(32, activation="relu"), keras.layers.Dense(32, activation="relu")]
    model = keras.Sequential([keras.Input((20,)), *layers, keras.layers.Dense(1)])
    return model, rng.normal(size=(2048, 20)).astype("float32"), rng.normal(size=(2048, 1)).astype("float32")


def training(make: Callable[[], Any], name: str, options: dict[str, Any]) -> tuple[float, float]:
    """The seconds of one step of fit() with batches of 32, Keras' and fastopt's."""
    calls = []
    for module in MODULES:
        keras.utils.set_random_seed(0)
        model, x, y = make()
        model.compile(optimizer=getattr(module, name)(1e-3, **options), loss="mse")
        calls.append(lambda model=model, x=x, y=y: model.fit(x, y, batch_size=32, verbose=0, shuffle=False))
    stock, ours = pairs(*calls, repeats=11)
    return stock / (len(x) / 32), ours / (len(x) / 32)


def step(name: str, options: dict[str, Any], n: int, shape: tuple[int, ...]) -> tuple[float, float]:
    """The seconds of apply() for n variables."""
    calls = []
    for module in MODULES:
        rng = np.random.default_rng(0)
        variables = [keras.Variable(rng.normal(size=shape).astype("float32")) for _ in range(n)]
        grads = [rng.normal(size=shape).astype("float32") for _ in range(n)]
        if BACKEND == "torch":
            grads = [torch.from_numpy(grad) for grad in grads]
        optimizer = getattr(module, name)(1e-3, **options)
        calls.append(lambda o=optimizer, g=grads, v=variables: o.apply(g, v))
    return pairs(*calls, repeats=11, number=max(2, 100_000 // (n * int(np.prod(shape)) + 1000)))


TRAININGS = [
    ("wide model, Adam", wide, "Adam", {}),
    ("wide model, AdamW, global_clipnorm, use_ema", wide, "AdamW", {"global_clipnorm": 1.0, "use_ema": True}),
    ("wide model, SGD, momentum", wide, "SGD", {"momentum": 0.9}),
    ("small model, Adam", small, "Adam", {}),
    ("small model, AdamW, global_clipnorm, use_ema", small, "AdamW", {"global_clipnorm": 1.0, "use_ema": True}),
    ("small model, SGD", small, "SGD", {}),
]
STEPS = [
    (f"{name}{''.join(f', {key}' for key in options)}, {n} of {'x'.join(map(str, shape))}", name, options, n, shape)
    for name, options in (("Adam", {}), ("SGD", {}), ("Nadam", {}), ("Adam", {"clipnorm": 1.0, "use_ema": True}),
                          ("Adam", {"gradient_accumulation_steps": 4}))
    for n, shape in ((4, (32, 32)), (100, (32, 32)), (4, (1000, 1000)))
]  # fmt: skip


def measured() -> list[dict[str, Any]]:
    rows = []
    if BACKEND == "torch":
        rows += [row("keras", f"fit, {what}", *training(*given)) for what, *given in TRAININGS]
    rows += [row("keras", f"{BACKEND} step, {what}", *step(*given)) for what, *given in STEPS]
    return rows


def on_numpy() -> list[dict[str, Any]]:
    """The same in a process with the other backend."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.json"
        environ = {**os.environ, "KERAS_BACKEND": "numpy"}
        subprocess.run([sys.executable, __file__, "--json", str(path)], env=environ, check=True, capture_output=True)
        return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    path = json_argument()
    report(measured() + (on_numpy() if BACKEND == "torch" else []), path)
