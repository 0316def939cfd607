"""A perceptron tells iris flowers apart where a straight line can; a hidden layer where it cannot.

    python perceptron.py --out pictures

Rosenblatt's perceptron of 1958 is one unit: it answers the sign of x w + b, and learns from its mistakes alone. If a
straight line separates the classes it finds one after finitely many mistakes (Novikoff, 1962); if none does, it goes
on for ever. One hidden layer bends the line: the network is written out in NumPy, its gradients by hand. `fastopt`
takes the steps of both.
"""

from __future__ import annotations

import sys

import numpy as np
from _common import BLUE, GREY, ORANGE, figure, parser, tidy, verdict
from matplotlib.patches import Patch
from sklearn.datasets import load_iris
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

import fastopt

PETAL = [2, 3]  # two measurements of the four, so that the plane can be drawn
HIDDEN = 8


# --- The perceptron


def perceptron(params, x):
    """x w + b: its sign is the answer, +1 or -1."""
    w, b = params
    return x @ w + b


def perceptron_loss(params, batch):
    """max(0, -y (x w + b)) and its gradient: -y x for a mistake, zero otherwise. With lr=1: Rosenblatt's rule."""
    x, y = batch
    margin = y * perceptron(params, x)
    push = np.where(margin <= 0, -y, 0.0) / len(y)
    return np.maximum(-margin, 0).mean(), [x.T @ push, push.sum(keepdims=True)]


def train_perceptron(x, y, rng):
    """One flower at a time, until an epoch ends with all of them right; at most 100 epochs."""
    params = [np.zeros(x.shape[1]), np.zeros(1)]

    def all_right(state):
        return state.step % len(y) == 0 and accuracy(perceptron, params, (x, y)) == 1

    result = fastopt.minimize(
        perceptron_loss, params, fastopt.SGD(params, lr=1.0),
        data=(x, y), batch_size=1, max_steps=100 * len(y), callback=all_right, rng=rng,
    )  # fmt: skip
    return params, result


# --- The network with one hidden layer


def network(params, x):
    """tanh(x W1 + b1) w2 + b2: its sign is the answer."""
    w1, b1, w2, b2 = params
    return np.tanh(x @ w1 + b1) @ w2 + b2


def network_loss(params, batch):
    """The logistic loss log(1 + exp(-y z)), and its gradient by the chain rule, from the output back to the input."""
    w1, b1, w2, b2 = params
    x, y = batch
    h = np.tanh(x @ w1 + b1)
    z = h @ w2 + b2
    dz = -y / (1 + np.exp(y * z)) / len(y)
    dh = np.outer(dz, w2) * (1 - h**2)  # tanh' = 1 - tanh^2
    return np.logaddexp(0, -y * z).mean(), [x.T @ dh, dh.sum(axis=0), h.T @ dz, dz.sum(keepdims=True)]


def train_network(x, y, rng):
    """Mini-batches of ten flowers."""
    params = [rng.normal(size=(x.shape[1], HIDDEN)), np.zeros(HIDDEN), rng.normal(size=HIDDEN) / HIDDEN, np.zeros(1)]
    result = fastopt.minimize(
        network_loss, params, fastopt.Adam(params, lr=0.02), data=(x, y), batch_size=10, max_steps=2000, rng=rng
    )
    return params, result


# --- The comparison


def accuracy(model, params, data):
    x, y = data
    return np.mean(np.sign(model(params, x)) == y)


def draw(path, runs, species, x, names):
    fig = figure("A perceptron draws a straight line; a hidden layer bends it", height=3.4)
    panels = fig.subplots(1, len(runs), sharex=True, sharey=True)
    low, high = x.min(axis=0) - 0.3, x.max(axis=0) + 0.3
    grid = np.stack(np.meshgrid(*np.linspace(low, high, 300).T), axis=-1)
    for axes, (title, model, params, right, _, target, _) in zip(panels, runs, strict=True):
        side = model(params, grid.reshape(-1, 2)).reshape(grid.shape[:2])
        axes.contourf(*np.moveaxis(grid, -1, 0), side, levels=[-np.inf, 0, np.inf], colors=["#FFFFFF", "#CCE3F0"])
        for s, marker, color in zip(range(3), "os^", (GREY, ORANGE, BLUE), strict=True):
            axes.scatter(*x[species == s].T, s=12, marker=marker, color=color, linewidth=0, label=names[s])
        axes.set_xlabel("petal length (standardized)", fontsize=9)
        tidy(axes, f"{title}: {right:.0%} right\n{names[target]} or not?")
    panels[0].set_ylabel("petal width (standardized)", fontsize=9)
    handles = [*panels[0].get_legend_handles_labels()[0], Patch(color="#CCE3F0", label="where it answers yes")]
    fig.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    fig.savefig(path)


def main() -> int:
    args = parser(__doc__).parse_args()
    rng = np.random.default_rng(args.seed)
    iris = load_iris()
    x = StandardScaler().fit_transform(iris.data[:, PETAL])
    train, test = train_test_split(np.arange(len(x)), test_size=1 / 3, random_state=args.seed, stratify=iris.target)

    setosa, versicolor = 0, 1
    runs = []
    print(f"{len(train)} flowers to learn from, {len(test)} held out\n")
    print(f"{'model':<14}{'looks for':<12}{'steps':>7}{'learned right':>15}{'held out right':>16}  stopped by")
    for title, model, train_model, target in [
        ("perceptron", perceptron, train_perceptron, setosa),
        ("perceptron", perceptron, train_perceptron, versicolor),
        ("hidden layer", network, train_network, versicolor),
    ]:
        y = np.where(iris.target == target, 1.0, -1.0)
        params, result = train_model(x[train], y[train], rng)
        right, right_unseen = (accuracy(model, params, (x[part], y[part])) for part in (train, test))
        runs.append((title, model, params, right, right_unseen, target, result.reason))
        name = iris.target_names[target]
        print(f"{title:<14}{name:<12}{result.steps:>7}{right:>15.1%}{right_unseen:>16.1%}  {result.reason}")

    picture = args.out / "perceptron.png"
    draw(picture, runs, iris.target, x, iris.target_names)
    (*_, all_right, _, _, why), (*_, line, _, _, why_not), (*_, bent, bent_unseen, _, _) = runs
    claims = {
        "the perceptron finds setosa without a mistake, and stops": all_right == 1 and why == "callback",
        "it never stops where no straight line separates: versicolor": line < 0.9 and why_not == "max_steps",
        "a hidden layer finds versicolor: over 90 % right, of those held out as well": min(bent, bent_unseen) > 0.9,
    }
    return verdict(claims, picture)


if __name__ == "__main__":
    sys.exit(main())
