"""Linear and logistic regression by full-batch, mini-batch and stochastic gradient descent, beside scikit-learn.

    python regression.py --out pictures

The three differ in how many samples each step looks at: all, 32, or one. That makes "faster" a matter of what is
counted: after equally many samples the stochastic step is ahead, after equally many steps the full batch is. A constant
learning rate leaves the small batches to wander about the minimum; here it falls with the step, as Robbins and Monro
(1951) ask for. At last the full batch, with momentum, goes on until its gradient vanishes, and is compared with the
solution of scikit-learn.
"""

from __future__ import annotations

import sys

import numpy as np
from _common import BLUE, GREEN, ORANGE, figure, parser, tidy, verdict
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

import fastopt
from fastopt.schedules import InverseTime

BATCH_SIZES = {"full batch": None, "mini-batch of 32": 32, "stochastic": 1}
COLORS = dict(zip(BATCH_SIZES, (BLUE, ORANGE, GREEN), strict=True))
PASSES = 50  # through the data, for each of the three


# --- Two models: the mean loss of a batch, and its gradient


class Linear:
    """Half the mean square of x w + b - y: the progress of diabetes, standardized, from ten measurements."""

    name, about = "linear regression", "diabetes"
    curvature = 1.0  # the largest second derivative of the loss with respect to x w + b

    def __init__(self):
        self.x, y = load_diabetes(return_X_y=True)
        self.y = StandardScaler().fit_transform(y[:, None])[:, 0]

    def loss(self, params, batch):
        w, b = params
        x, y = batch
        error = x @ w + b - y
        return np.mean(error**2) / 2, [x.T @ error / len(y), error.mean(keepdims=True)]

    def solution(self, x, y):
        model = LinearRegression().fit(x, y)
        return [model.coef_, np.array([model.intercept_])]


class Logistic:
    """The mean of log(1 + exp(-y (x w + b))), plus a ridge on w: is a tumour benign (y = 1) or malignant (-1)?"""

    name, about = "logistic regression", "breast cancer"
    curvature = 0.25

    def __init__(self):
        self.x, y = load_breast_cancer(return_X_y=True)
        self.y = np.where(y == 1, 1.0, -1.0)
        self.ridge = 1 / len(y)  # scikit-learn's C=1: it takes the sum over the samples, we the mean

    def loss(self, params, batch):
        w, b = params
        x, y = batch
        z = x @ w + b
        dz = -y / (1 + np.exp(y * z))
        loss = np.logaddexp(0, -y * z).mean() + self.ridge / 2 * (w @ w)
        return loss, [x.T @ dz / len(y) + self.ridge * w, dz.mean(keepdims=True)]

    def solution(self, x, y):
        model = LogisticRegression(C=1.0, solver="newton-cholesky", tol=1e-12, max_iter=1000).fit(x, y)
        return [model.coef_[0], model.intercept_]


# --- Three ways down


def descend(task, data, batch_size, best, rng):
    """Rows of (steps, samples seen, how far the loss over all the data is above the best), at ever wider intervals."""
    x, y = data
    n = len(y)
    size = batch_size or n
    per_pass = -(-n // size)
    steps = PASSES * per_pass
    watched = set(np.unique(np.geomspace(1, steps, 120).astype(int)))
    # The largest curvature of the mean loss, and of any one sample's. With batches of m, a rate of about
    # 1 / (mean + one / m) is still stable; half of that for the second term, and they wander less.
    mean = task.curvature * np.linalg.norm(x.T @ x / n, 2)
    one = task.curvature * np.max(np.sum(x**2, axis=1) + 1)
    lr = 1 / mean if batch_size is None else InverseTime(1 / (mean + 2 * one / size), 1.0, decay_steps=5 * n // size)
    params = [np.zeros(x.shape[1]), np.zeros(1)]
    optimizer = fastopt.SGD(params, lr=lr)
    curve = [(0, 0, task.loss(params, data)[0] - best)]

    def watch(state):
        if state.step in watched:
            seen = state.epoch * n + state.step % per_pass * size
            curve.append((state.step, seen, task.loss(params, data)[0] - best))

    fastopt.minimize(
        task.loss, params, optimizer, data=data, batch_size=batch_size, max_steps=steps, callback=watch, rng=rng
    )
    return np.array(curve)


def converge(task, data):
    """The full batch, with Nesterov's momentum, until the gradient is as good as zero."""
    x, y = data
    params = [np.zeros(x.shape[1]), np.zeros(1)]
    lr = 1 / (task.curvature * np.linalg.norm(x.T @ x / len(y), 2))
    optimizer = fastopt.SGD(params, lr=lr, momentum=0.95, nesterov=True)
    return fastopt.minimize(task.loss, params, optimizer, data=data, tol=1e-10, max_steps=20_000)


def above_best(curve, column, at):
    """How far above the best, after that many steps (column 0) or samples (column 1)."""
    return np.interp(at, curve[:, column], curve[:, 2])


# --- The comparison


def draw(path, results):
    fig = figure("Sample for sample small batches are ahead; step for step the full batch is", height=5.2)
    panels = fig.subplots(len(results), 2, sharey=True)
    for row, (task, curves) in zip(panels, results.items(), strict=True):
        for axes, column, what in zip(row, (1, 0), ("samples", "steps"), strict=True):
            for way, curve in curves.items():
                axes.plot(curve[1:, column], curve[1:, 2], color=COLORS[way], label=way, linewidth=1.8)
            axes.set_xscale("log")
            axes.set_yscale("log")
            tidy(axes, f"counted in {what}")
        row[0].set_ylabel(f"{task.name}\n({task.about})\nloss above the best", fontsize=9)
    panels[-1][0].set_xlabel("samples seen", fontsize=9)
    panels[-1][1].set_xlabel("optimizer steps", fontsize=9)
    handles, labels = panels[0][0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    fig.savefig(path)


def main() -> int:
    args = parser(__doc__).parse_args()
    rng = np.random.default_rng(args.seed)
    results, claims = {}, {}
    bar = tqdm(total=6, unit="run", leave=False, disable=None)  # None: only where there is a terminal
    for task in (Linear(), Logistic()):
        data = StandardScaler().fit_transform(task.x), task.y
        n = len(task.y)
        solution = task.solution(*data)
        best = task.loss(solution, data)[0]
        curves = results[task] = {}
        print(f"{task.name} ({task.about}): {n} samples, best loss {best:.6f}; how far above it:")
        print(f"  {'':<18}{'after 1 pass':>14}{f'{PASSES} passes':>14}{f'{PASSES} steps':>14}")
        for way, batch_size in BATCH_SIZES.items():
            curve = curves[way] = descend(task, data, batch_size, best, rng)
            figures = above_best(curve, 1, n), curve[-1, 2], above_best(curve, 0, PASSES)
            print(f"  {way:<18}" + "".join(f"{figure:>14.2g}" for figure in figures))
            bar.update()

        end = converge(task, data)
        off = max(np.abs(p - s).max() for p, s in zip(end.params, solution, strict=True))
        print(f"  full batch, momentum, {end.steps} steps: every coefficient within {off:.1g} of scikit-learn's\n")
        full, mini, one = curves.values()
        claims |= {
            f"{task.name}: after one pass, small batches are below the full batch": (
                max(above_best(one, 1, n), above_best(mini, 1, n)) < above_best(full, 1, n)
            ),
            f"{task.name}: after {PASSES} steps, the larger the batch the lower the loss": (
                above_best(full, 0, PASSES) < above_best(mini, 0, PASSES) < above_best(one, 0, PASSES)
            ),
            f"{task.name}: after {PASSES} passes, all three have come 95 % of the way down": (
                max(curve[-1, 2] / curve[0, 2] for curve in curves.values()) < 0.05
            ),
            f"{task.name}: run to the end, scikit-learn's coefficients to six digits": off < 1e-6,
        }
    bar.close()
    picture = args.out / "regression.png"
    draw(picture, results)
    return verdict(claims, picture)


if __name__ == "__main__":
    sys.exit(main())
