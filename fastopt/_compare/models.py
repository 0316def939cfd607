"""The network that learns real data: one hidden layer, in NumPy, for classes and for numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "HIDDEN",
    "LEARNING_RATES",
    "OPTIONS",
    "REGRESSION_RATES",
    "accuracy",
    "cross_entropy",
    "initial_weights",
    "loss_and_gradients",
    "outputs",
    "r_squared",
    "squared_error",
]

Array = npt.NDArray[Any]
Loss = Callable[[Array, Array], tuple[float, Array]]
"""From the outputs and the truth to the mean loss and its derivative by the outputs."""

HIDDEN = 64

# Where the default of the class is not what this network likes; the other optimizers take their default.
LEARNING_RATES = {
    "SGD": 0.1,
    "Momentum": 0.02,
    "NAG": 0.02,
    "Adagrad": 0.02,
    "RMSprop": 1e-3,
    "Adam": 2e-3,
    "AdamW": 2e-3,
    "Adamax": 5e-3,
    "RAdam": 5e-3,
    "Lion": 5e-4,
}
# The noise of batches changes signs: steps of Rprop that could grow to 50 would leave.
OPTIONS: dict[str, dict[str, Any]] = {"Rprop": {"step_sizes": (1e-6, 0.01)}}
# The squared error's curvature is that of the hidden layer, some ten times that of cross-entropy.
REGRESSION_RATES = {**LEARNING_RATES, "SGD": 0.01, "Momentum": 2e-3, "NAG": 2e-3}


def initial_weights(sizes: tuple[int, int, int], rng: np.random.Generator, dtype: str) -> list[Array]:
    """Return weights and biases of two layers: He's normal weights, no biases."""
    n_in, n_hidden, n_out = sizes
    w1 = rng.normal(0, math.sqrt(2 / n_in), (n_in, n_hidden))
    w2 = rng.normal(0, math.sqrt(2 / n_hidden), (n_hidden, n_out))
    return [a.astype(dtype) for a in (w1, np.zeros(n_hidden), w2, np.zeros(n_out))]


def outputs(params: list[Array], x: Array) -> tuple[Array, Array]:
    """Return the hidden layer, after its ReLU, and the outputs: the scores of the classes, or one number."""
    w1, b1, w2, b2 = params
    hidden = np.maximum(x @ w1 + b1, 0)
    return hidden, hidden @ w2 + b2


def cross_entropy(z: Array, y: Array) -> tuple[float, Array]:
    """Return the mean cross-entropy of the scores `z` with the classes `y`, and its derivative by `z`."""
    rows = np.arange(len(y))
    z = z - z.max(axis=1, keepdims=True)  # so that exp cannot overflow
    exp = np.exp(z)
    total = exp.sum(axis=1, keepdims=True)
    loss = np.mean(np.log(total[:, 0]) - z[rows, y])

    dz = exp / total  # softmax - onehot, over the batch
    dz[rows, y] -= 1
    dz /= len(y)
    return float(loss), dz


def squared_error(z: Array, y: Array) -> tuple[float, Array]:
    """Return the mean squared error of the single output `z`, and its derivative by `z`."""
    error = z[:, 0] - y
    return float(np.mean(error**2)), (2 / len(y) * error)[:, None]


def loss_and_gradients(
    params: list[Array], batch: tuple[Array, Array], loss: Loss = cross_entropy
) -> tuple[float, list[Array]]:
    """Return the mean loss of the batch and its gradient."""
    x, y = batch
    hidden, z = outputs(params, x)
    value, dz = loss(z, y)
    dhidden = (dz @ params[2].T) * (hidden > 0)
    return value, [x.T @ dhidden, dhidden.sum(axis=0), hidden.T @ dz, dz.sum(axis=0)]


def accuracy(params: list[Array], data: tuple[Array, Array]) -> float:
    """Return the share of samples whose highest score is that of their class."""
    x, y = data
    return float(np.mean(outputs(params, x)[1].argmax(axis=1) == y))


def r_squared(params: list[Array], data: tuple[Array, Array]) -> float:
    """Return the share of the target's variance that the network explains; NaN where there is none."""
    x, y = data
    with np.errstate(all="ignore"):
        return float(1 - np.mean((outputs(params, x)[1][:, 0] - y) ** 2) / np.var(y))
