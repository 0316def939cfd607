"""``fastopt demo``: real data learned with every optimizer in turn, beside the NumPy reference.

A small multilayer perceptron, in NumPy, learns the handwritten digits that scikit-learn ships. Each optimizer
starts from the same weights and sees the same batches. The reference steps its own copy with the very same
gradients, so that at the end the two can be compared bit for bit.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import OPTIMIZERS
from .._compare.data import load, split
from .._compare.models import HIDDEN, LEARNING_RATES, OPTIONS, accuracy, initial_weights, loss_and_gradients
from .._compare.results import whole_file, write_json
from ..training import MinimizeState, minimize
from ._arguments import above_zero, made_folder, need, optimizers, printer, whole

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = ["add_parser", "run"]

# --- the command line


def add_parser(commands: Any) -> None:
    """Add the command to the parser's commands."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "demo",
        help="learn handwritten digits with every optimizer, beside the NumPy reference",
        description="Train a small neural network on scikit-learn's handwritten digits with every optimizer "
        "in turn. Each step is repeated by the NumPy reference, timed, and compared bit for bit. "
        'Defaults are in parentheses. Needs pip install "fastopt[demo]".',
        epilog="exit code: 0 good, 1 if bits differ or an optimizer does not learn, 2 if it could not start",
    )
    parser.add_argument(
        "--optimizer",
        action="append",
        metavar="NAME[,NAME...]",
        help="only these, in this order; upper or lower case; may be repeated (all)",
    )
    parser.add_argument(
        "--dtype",
        choices=["float32", "float64"],
        default="float32",
        help="of weights, data and gradients (%(default)s)",
    )
    parser.add_argument(
        "--epochs", type=whole(1), default=15, metavar="N", help="passes through the data (%(default)s)"
    )
    parser.add_argument("--batch-size", type=whole(1), default=32, metavar="N", help="samples in a step (%(default)s)")
    parser.add_argument("--lr", type=above_zero, metavar="X", help="learning rate of all of them (one that suits each)")
    parser.add_argument("--threads", type=whole(1), metavar="N", help="threads of the optimizer step (automatic)")
    parser.add_argument(
        "--seed", type=whole(0), default=0, metavar="N", help="for weights, split and shuffles (%(default)s)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("fastopt-demo"),
        metavar="DIR",
        help="folder for the picture, made if missing (%(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="also write results.json, with the curves")
    parser.add_argument("--quiet", action="store_true", help="print nothing but what went wrong")
    parser.set_defaults(run=run, command="demo")


def load_digits(seed: int, dtype: str) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Return the training and the test samples of the digits, standardized."""
    parts = split(load("digits"), seed, dtype)
    return parts.train, parts.test


# --- the run


class SideBySide:
    """An optimizer and its reference, stepped with the same gradients and timed one by one."""

    def __init__(self, optimizer: Any) -> None:
        from ..reference import twin

        self.optimizer = optimizer
        self.twin = twin(optimizer)
        self.times: list[int] = []
        self.reference_times: list[int] = []
        if hasattr(optimizer, "lookahead"):
            self.lookahead = optimizer.lookahead

    def step(self, grads: list[Array]) -> None:
        """Step both; only the steps are timed."""
        start = perf_counter_ns()
        self.optimizer.step(grads)
        between = perf_counter_ns()
        self.twin.step(grads)
        end = perf_counter_ns()
        self.times.append(between - start)
        self.reference_times.append(end - between)

    def equal_bits(self, params: list[Array]) -> bool:
        """Return whether the reference went exactly the same way; a NaN equals a NaN."""
        pairs = zip(params, self.twin.params, strict=True)
        return all(_without_nans(a) == _without_nans(b) for a, b in pairs)


def _without_nans(a: Array) -> bytes:
    """Return where the NaNs stand, and the bits of everything else: a NaN's payload is nobody's promise."""
    nan = np.isnan(a)
    return bytes(nan.tobytes() + a[~nan].tobytes())


@dataclass(frozen=True)
class Row:
    """What one optimizer did."""

    optimizer: str
    lr: float
    initial_loss: float
    final_loss: float
    test_accuracy: float
    steps: int
    fastopt_us: float
    numpy_us: float
    ratio: float
    equal_bits: bool
    reason: str
    losses: list[float] = field(repr=False)

    @property
    def learned(self) -> bool:
        """Whether it came to an end, and lower than it began."""
        return self.reason != "nonfinite" and self.final_loss < self.initial_loss


def train(name: str, cls: Any, args: argparse.Namespace, train_set: Any, test_set: Any, bar: Any) -> Row:
    """Train the network with one optimizer."""
    rng = np.random.default_rng(args.seed)
    params = initial_weights((train_set[0].shape[1], HIDDEN, 10), rng, args.dtype)
    initial_loss, _ = loss_and_gradients(params, train_set)
    lr = args.lr or LEARNING_RATES.get(name)
    optimizer = cls(params, lr=lr, n_threads=args.threads, **OPTIONS.get(name, {}))
    pair = SideBySide(optimizer)

    def show(state: MinimizeState) -> None:
        bar.set_postfix_str(f"loss {state.loss:.3f}", refresh=False)
        bar.update()

    bar.set_description(name)
    result = minimize(
        loss_and_gradients,
        params,
        pair,
        data=train_set,
        batch_size=args.batch_size,
        max_steps=args.epochs * steps_per_epoch(train_set, args.batch_size),
        callback=show,
        rng=rng,
    )
    final_loss, _ = loss_and_gradients(params, train_set)
    fast = median(pair.times or [0]) / 1000
    slow = median(pair.reference_times or [0]) / 1000
    return Row(
        optimizer=name,
        lr=optimizer.param_groups[0]["lr"],
        initial_loss=initial_loss,
        final_loss=final_loss,
        test_accuracy=accuracy(params, test_set),
        steps=result.steps,
        fastopt_us=fast,
        numpy_us=slow,
        ratio=slow / fast if fast else math.nan,
        equal_bits=pair.equal_bits(params),
        reason=result.reason,
        losses=result.losses.tolist(),
    )


def steps_per_epoch(data: tuple[Array, Array], batch_size: int) -> int:
    """Return the number of batches, the short one included."""
    return math.ceil(len(data[1]) / batch_size)


def run(args: argparse.Namespace) -> int:
    """Train with each optimizer, print the table, write the picture; return the exit code."""
    need("demo", "matplotlib", "sklearn", "tqdm")
    from tqdm import tqdm

    classes = optimizers(args.optimizer) or dict(OPTIMIZERS)
    made_folder(args.out)
    train_set, test_set = load_digits(args.seed, args.dtype)
    per_epoch = steps_per_epoch(train_set, args.batch_size)
    sizes = (train_set[0].shape[1], HIDDEN, 10)
    n_params = sum(a.size for a in initial_weights(sizes, np.random.default_rng(0), args.dtype))

    rows = []
    # disable=None: a bar only where standard error is a terminal
    bar = tqdm(total=len(classes) * args.epochs * per_epoch, unit="step", leave=False, disable=args.quiet or None)
    say = printer(args.quiet)

    with bar:
        say(
            f"Handwritten digits, 8x8 pixels: {len(train_set[1])} training, {len(test_set[1])} test images.\n"
            f"Network {'-'.join(map(str, sizes))}: {n_params:,} parameters in 4 arrays, {args.dtype}; "
            f"batches of {args.batch_size}, {args.epochs} epoch{'s' * (args.epochs > 1)}.\n"
        )
        say(HEADER)
        for name, cls in classes.items():
            with np.errstate(all="ignore"):  # a learning rate that is too large shows in the table
                rows.append(train(name, cls, args, train_set, test_set, bar))
            say(line_of(rows[-1]))

    picture = args.out / "learning_curves.png"
    draw(rows, picture, window=max(1, args.epochs * per_epoch // 20))
    say(
        "\nFinal loss: mean cross-entropy over the training images. Times: median of one optimizer step.\n"
        "NumPy: fastopt's own reference, written to be read, not to be fast.\n"
        "Equal bits: the reference, stepped with the same gradients, ended at the very same weights."
    )
    say(f"\nLearning curves: {picture}")
    if args.json:
        say(f"Results: {write_results(rows, args)}")

    failed = [f"{row.optimizer}: bits differ from the reference" for row in rows if not row.equal_bits]
    failed += [f"{row.optimizer}: training failed ({failure_of(row)})" for row in rows if not row.learned]
    for line in failed:
        print(f"fastopt demo: {line}", file=sys.stderr)
    return 1 if failed else 0


# --- the report

HEADER = (
    f"{'optimizer':<10}{'lr':>8}{'final loss':>12}{'test acc.':>11}{'steps':>7}"
    f"{'fastopt us':>12}{'NumPy us':>10}{'ratio':>8}  equal bits"
)


def line_of(row: Row) -> str:
    """Return the row as a line of the table."""
    loss = f"{row.final_loss:.4f}" if row.final_loss < 1000 else f"{row.final_loss:.3g}"
    return (
        f"{row.optimizer:<10}{row.lr:>8g}{loss:>12}{row.test_accuracy:>11.1%}{row.steps:>7}"
        f"{row.fastopt_us:>12.1f}{row.numpy_us:>10.1f}{row.ratio:>7.1f}x  {'yes' if row.equal_bits else 'NO'}"
    )


def failure_of(row: Row) -> str:
    """Return why the row does not count as learned."""
    if row.reason == "nonfinite":
        return f"loss or gradient not finite after {row.steps} steps"
    return f"loss {row.initial_loss:.4g} before, {row.final_loss:.4g} after"


def write_results(rows: list[Row], args: argparse.Namespace) -> Path:
    """Write settings and results, and return where."""
    settings = {key: getattr(args, key) for key in ("dtype", "epochs", "batch_size", "lr", "threads", "seed")}
    report = {"settings": settings, "results": [asdict(row) for row in rows]}
    return write_json(report, args.out / "results.json")


def draw(rows: list[Row], path: Path, window: int) -> None:
    """Draw the learning curves: one panel for each optimizer, the others behind it in grey."""
    # Twelve curves in one panel hide each other (Adam and NAdam go the same way), and no dozen colours
    # suits every eye.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(4, len(rows))
    lines = math.ceil(len(rows) / columns)
    figure = Figure(figsize=(7.5, 1.6 + 1.5 * lines), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)  # draws to memory, whatever backend the user has chosen
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flat
    curves = [smoothed(row.losses, window) for row in rows]
    for i, axes in enumerate(panels):
        if i >= len(rows):
            axes.set_visible(False)
            continue
        for other in curves:
            axes.plot(*other, color="0.8", linewidth=0.7)
        axes.plot(*curves[i], color="#0072B2", linewidth=1.8)
        axes.set_yscale("log")
        axes.set_title(rows[i].optimizer, loc="left", fontsize=10, fontweight="bold")
        axes.set_title(f"{100 * rows[i].test_accuracy:.1f} %", loc="right", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8, labelbottom=i + columns >= len(rows))  # the lowest panel of each column
    figure.suptitle(finding(rows), x=0.01, ha="left", fontsize=11)
    notes = [f"loss: mean of the last {window} batches"] * (window > 1)
    notes += ["grey: the other optimizers"] * (len(rows) > 1)
    figure.supxlabel(f"step ({'; '.join(notes)})" if notes else "step", fontsize=9)
    figure.supylabel("training loss", fontsize=9)
    with whole_file(path) as file:
        figure.savefig(file)


def smoothed(losses: list[float], window: int) -> tuple[Array, Array]:
    """Return steps and running means, without what a logarithmic axis cannot show."""
    from .._compare.pictures import smoothed as running_mean

    means = running_mean(np.array(losses, np.float64), window)
    steps = np.arange(len(losses) - len(means) + 1, len(losses) + 1)
    shown = np.isfinite(means) & (means > 0)
    return steps[shown], means[shown]


def finding(rows: list[Row]) -> str:
    """Return what the picture shows, in one sentence."""
    good = [row for row in rows if row.learned]
    if not good:
        return "No optimizer learns the digits with these settings"
    low, high = (f"{100 * pick(row.test_accuracy for row in good):.0f}" for pick in (min, max))
    right = f"{low} % of unseen images right" if low == high else f"{low} to {high} % of unseen images right"
    best = min(good, key=lambda row: row.final_loss).optimizer
    if len(rows) == 1:
        return f"{best} learns the digits: {right}"
    every = "Both" if len(rows) == 2 else f"All {len(rows)}"
    who = every if len(good) == len(rows) else f"{len(good)} of {len(rows)}"
    return f"{who} optimizers learn the digits: {right}\n{best} ends with the lowest training loss"
