"""Reverse-mode automatic differentiation in a hundred lines, with an optimizer of its own over `fastopt.functional`.

    python autograd.py --out pictures

For authors of a framework: `Tensor` records what made it, and `backward` walks that record from the loss to the
parameters, by the chain rule (Linnainmaa, 1970). `AdamW` below is the framework's own class. It keeps parameters,
moments and the step count as it likes, and calls `fastopt.functional.adamw_`, which keeps nothing. A network of two
hidden layers learns the two moons; the gradients are checked by finite differences, the steps against `fastopt.AdamW`.
"""

from __future__ import annotations

import sys

import numpy as np
from _common import BLUE, ORANGE, figure, parser, tidy, verdict
from sklearn.datasets import make_moons
from tqdm import tqdm

import fastopt
from fastopt.functional import adamw_

STEPS, BATCH = 1000, 50


# --- The framework: arrays that know where they come from


class Tensor:
    """An array, its gradient, and for each tensor that it was made of how a gradient goes back there."""

    def __init__(self, data, parents=()):
        self.data = np.asarray(data)
        self.grad = None
        self.parents = parents  # pairs (tensor, function of the gradient of self)

    def backward(self):
        """Fill in `grad` of all that this scalar depends on."""
        self.grad = np.ones_like(self.data)
        for node in reversed(in_order(self)):
            for parent, back in node.parents:
                grad = fit(back(node.grad), parent.data.shape)
                parent.grad = grad if parent.grad is None else parent.grad + grad

    def __add__(self, other):
        other = tensor(other)
        return Tensor(self.data + other.data, [(self, lambda g: g), (other, lambda g: g)])

    def __mul__(self, other):
        other = tensor(other)
        return Tensor(self.data * other.data, [(self, lambda g: g * other.data), (other, lambda g: g * self.data)])

    def __matmul__(self, other):
        return Tensor(self.data @ other.data, [(self, lambda g: g @ other.data.T), (other, lambda g: self.data.T @ g)])

    def __neg__(self):
        return self * -1.0

    def __sub__(self, other):
        return self + -tensor(other)

    def __getitem__(self, index):
        def back(g):
            grad = np.zeros_like(self.data)
            np.add.at(grad, index, g)
            return grad

        return Tensor(self.data[index], [(self, back)])

    def sum(self, axis=None, keepdims=False):
        def back(g):
            return np.broadcast_to(g if axis is None or keepdims else np.expand_dims(g, axis), self.data.shape)

        return Tensor(self.data.sum(axis=axis, keepdims=keepdims), [(self, back)])

    def mean(self):
        return self.sum() * (1 / self.data.size)

    def exp(self):
        out = np.exp(self.data)
        return Tensor(out, [(self, lambda g: g * out)])

    def log(self):
        return Tensor(np.log(self.data), [(self, lambda g: g / self.data)])

    def tanh(self):
        out = np.tanh(self.data)
        return Tensor(out, [(self, lambda g: g * (1 - out**2))])

    def relu(self):
        return Tensor(np.maximum(self.data, 0), [(self, lambda g: g * (self.data > 0))])

    def log_softmax(self):
        """Over the last axis; the largest value is taken off first, a constant, so that exp cannot overflow."""
        z = self - self.data.max(axis=-1, keepdims=True)
        return z - z.exp().sum(axis=-1, keepdims=True).log()


def tensor(value):
    return value if isinstance(value, Tensor) else Tensor(value)


def fit(grad, shape):
    """A gradient of this shape: summed over the axes along which the value was broadcast."""
    grad = grad.sum(axis=tuple(range(grad.ndim - len(shape))))
    stretched = tuple(i for i, n in enumerate(shape) if n == 1 and grad.shape[i] > 1)
    return grad.sum(axis=stretched, keepdims=True) if stretched else grad


def in_order(last):
    """All that `last` was made of, each after its parents."""
    order, seen = [], set()

    def visit(node):
        if id(node) not in seen:
            seen.add(id(node))
            for parent, _ in node.parents:
                visit(parent)
            order.append(node)

    visit(last)
    return order


class AdamW:
    """The framework's optimizer: the state is its own, the arithmetic fastopt's."""

    def __init__(self, params, **options):
        self.params, self.options, self.count = params, options, 0
        self.m = [np.zeros_like(p.data) for p in params]
        self.v = [np.zeros_like(p.data) for p in params]

    def step(self):
        self.count += 1
        arrays, grads = [p.data for p in self.params], [p.grad for p in self.params]
        adamw_(arrays, grads, self.m, self.v, step=self.count, **self.options)
        for p in self.params:
            p.grad = None


# --- What it is used for


def network(rng, sizes=(2, 16, 16, 2)):
    """Weights and biases of each layer."""
    params = []
    for n_in, n_out in zip(sizes, sizes[1:], strict=False):
        params += [Tensor(rng.normal(0, np.sqrt(1 / n_in), (n_in, n_out))), Tensor(np.zeros(n_out))]
    return params


def scores(params, x):
    w1, b1, w2, b2, w3, b3 = params
    return ((Tensor(x) @ w1 + b1).tanh() @ w2 + b2).relu() @ w3 + b3


def cross_entropy(params, x, y):
    return -scores(params, x).log_softmax()[np.arange(len(y)), y].mean()


def accuracy(params, x, y):
    return np.mean(scores(params, x).data.argmax(axis=1) == y)


def gradient_error(params, x, y, h=1e-5):
    """The largest difference between `backward` and central differences of the loss."""
    cross_entropy(params, x, y).backward()
    worst = 0.0
    for p in params:
        for index in np.ndindex(p.data.shape):
            old = p.data[index]
            p.data[index] = old + h
            above = cross_entropy(params, x, y).data
            p.data[index] = old - h
            below = cross_entropy(params, x, y).data
            p.data[index] = old
            worst = max(worst, abs((above - below) / (2 * h) - p.grad[index]))
        p.grad = None
    return worst


def draw(path, params, x, y, curve):
    right = f"{accuracy(params, x, y):.1%} of unseen points right"
    fig = figure(f"The network bends its border between the moons: {right}", height=3.4)
    left, plane = fig.subplots(1, 2, width_ratios=[1, 1.5])
    window = 25
    means = np.convolve(curve, np.full(window, 1 / window), mode="valid")
    left.plot(np.arange(window, len(curve) + 1), means, color=BLUE)
    left.set_ylim(0)
    left.set_xlabel("step", fontsize=9)
    left.set_ylabel(f"loss, mean of {window} batches", fontsize=9)
    tidy(left, "training")
    low, high = x.min(axis=0) - 0.3, x.max(axis=0) + 0.3
    grid = np.stack(np.meshgrid(*np.linspace(low, high, 200).T), axis=-1)
    z = scores(params, grid.reshape(-1, 2)).data
    plane.contourf(*np.moveaxis(grid, -1, 0), (z[:, 1] - z[:, 0]).reshape(200, 200), levels=[-1e9, 0, 1e9],
                   colors=["#FBE9C6", "#CCE3F0"])  # fmt: skip
    for label, color, marker in ((0, ORANGE, "o"), (1, BLUE, "^")):
        plane.scatter(*x[y == label].T, s=10, color=color, marker=marker, linewidth=0)
    plane.set_xlabel("first coordinate", fontsize=9)
    plane.set_ylabel("second coordinate", fontsize=9)
    tidy(plane, "unseen points, and what it says where")
    fig.savefig(path)


def main() -> int:
    args = parser(__doc__).parse_args()
    rng = np.random.default_rng(args.seed)
    points, labels = make_moons(1500, noise=0.15, random_state=args.seed)
    x, y, x_test, y_test = points[:1000], labels[:1000], points[1000:], labels[1000:]

    params = network(rng)
    error = gradient_error(params, x[:20], y[:20])
    options = {"lr": 0.01, "weight_decay": 1e-3}
    optimizer = AdamW(params, **options)
    copies = [p.data.copy() for p in params]
    twin = fastopt.AdamW(copies, **options)  # the class, fed with the same gradients
    curve = []
    for _ in tqdm(range(STEPS), unit="step", leave=False, disable=None):
        batch = rng.choice(len(y), BATCH, replace=False)
        loss = cross_entropy(params, x[batch], y[batch])
        loss.backward()
        twin.step([p.grad for p in params])
        optimizer.step()
        curve.append(float(loss.data))

    right = accuracy(params, x_test, y_test)
    size = sum(p.data.size for p in params)
    first, last = np.mean(curve[:20]), np.mean(curve[-20:])
    print(f"{size} parameters, {STEPS} steps: loss {first:.3f} at first, {last:.3f} at last")
    print(f"unseen points right: {right:.1%}")
    picture = args.out / "autograd.png"
    draw(picture, params, x_test, y_test, curve)
    claims = {
        f"backward agrees with finite differences: within {error:.1g}": error < 1e-7,
        "adamw_ and the class fastopt.AdamW end at the same bits": all(
            p.data.tobytes() == copy.tobytes() for p, copy in zip(params, copies, strict=True)
        ),
        "over 95 % of unseen points are right": right > 0.95,
    }
    return verdict(claims, picture)


if __name__ == "__main__":
    sys.exit(main())
