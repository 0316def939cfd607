"""A small network for scikit-learn's handwritten digits: three layers, in NumPy, its gradients by hand."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

SIZES = (64, 64, 32, 10)


def load(seed):
    """Images and labels, to learn from and held out: standardized, float32."""
    x, y = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.2, random_state=seed, stratify=y)
    scaler = StandardScaler().fit(x_train)
    x_train, x_test = (scaler.transform(part).astype(np.float32) for part in (x_train, x_test))
    return (x_train, y_train), (x_test, y_test)


def initial(rng):
    """He's normal weights and no biases, by name: W1, b1, W2, b2, W3, b3."""
    params = {}
    for i, (n_in, n_out) in enumerate(zip(SIZES, SIZES[1:], strict=False), 1):
        params[f"W{i}"] = rng.normal(0, np.sqrt(2 / n_in), (n_in, n_out)).astype(np.float32)
        params[f"b{i}"] = np.zeros(n_out, np.float32)
    return params


def layers(params, x):
    """The input, the two hidden layers after their ReLU, and the scores of the ten digits."""
    h1 = np.maximum(x @ params["W1"] + params["b1"], 0)
    h2 = np.maximum(h1 @ params["W2"] + params["b2"], 0)
    return x, h1, h2, h2 @ params["W3"] + params["b3"]


def loss_and_gradients(params, batch):
    """The mean cross-entropy of a batch, and its gradient: the chain rule, from the last layer to the first."""
    x, y = batch
    *inputs, z = layers(params, x)
    z = z - z.max(axis=1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    rows = np.arange(len(y))
    d = np.exp(log_p)
    d[rows, y] -= 1
    d /= len(y)
    grads = {}
    for i in (3, 2, 1):
        h = inputs[i - 1]
        grads[f"W{i}"], grads[f"b{i}"] = h.T @ d, d.sum(axis=0)
        if i > 1:
            d = (d @ params[f"W{i}"].T) * (h > 0)
    return -log_p[rows, y].mean(), grads


def accuracy(params, data):
    x, y = data
    return np.mean(layers(params, x)[-1].argmax(axis=1) == y)
