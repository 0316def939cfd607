"""What the torch examples share: training twice from one seed, fairly interleaved, and comparing the two.

A run is a model, its optimizer and its stream of batches. The two runs differ in one line, in `optimizer_class`:
where the optimizer's class comes from. They take turns of a few steps each, so that whatever else the machine does
meets both.
"""

from __future__ import annotations

import argparse
import csv
import inspect
import math
import os
import sys
from pathlib import Path
from statistics import mean, median
from time import perf_counter

ALGORITHMS = {
    name.lower(): name
    for name in ("SGD", "Adagrad", "Adadelta", "RMSprop", "Adam", "AdamW", "Adamax", "NAdam", "RAdam")
}

# Where the default of the class is not what small networks like.
OPTIONS = {"SGD": {"lr": 0.05, "momentum": 0.9}, "RMSprop": {"lr": 1e-3}, "NAdam": {"lr": 1e-3}}

TURN = 10  # steps that a run takes before the other goes on

# How far apart the two loss curves may be, relative to torch's. fastopt and torch compute the same formula, but round
# it in another order (torch contracts to fused multiply-adds, and cuts tensors differently), which is one unit in the
# last place now and then. Training then amplifies it as it amplifies anything: a ReLU that switches in one run and not
# yet in the other, the maximum of a pool that is another pixel. After a few hundred steps float32, which starts with
# 1e-7, may be on another path through the same valley; so would be torch itself with another number of threads. Its
# curves must agree closely at first, and come to the same level. float64 starts with 1e-16 and has room to the end.
# In bfloat16 torch rounds after every operation of a step, and fastopt once; weights may differ in their last digit, a
# hundredth, from the first step on.
TOLERANCE = {"float32": 2e-6, "float64": 1e-9, "bfloat16": 0.05}
TIGHT_STEPS = {"float32": 10, "float64": None, "bfloat16": 10}  # those that the tolerance is for; None: all of them
LEVEL_TOLERANCE = 0.1  # for the mean loss of the last tenth of the steps
FLOOR = 1e-3  # added to the loss in the denominator: a cross-entropy near zero is a difference of large numbers

BUSY = ": the machine is too busy for the time in all to mean much"


# --- the one line


def optimizer_class(library: str, algorithm: str) -> type:
    """The optimizer of this name: ``from torch.optim import AdamW``, or ``from fastopt.torch import AdamW``."""
    if library == "torch":
        import torch.optim as optim
    else:
        import fastopt.torch as optim
    return getattr(optim, algorithm)


# --- the command line


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage."""

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def parser(prog: str, description: str, steps: int | None = None, steps_help: str = "") -> Parser:
    """The options that the examples share."""
    p = Parser(
        prog=prog,
        description=f"{description} Defaults are in parentheses.",
        epilog="exit code: 0 good, 1 if the loss curves differ or training failed, 2 if it could not start",
    )
    add = p.add_argument
    add("--optimizer", choices=["torch", "fastopt", "both"], default="both",
        help="whose: both trains twice, in turns, and compares (%(default)s)")  # fmt: skip
    add("--algorithm", type=str.lower, choices=list(ALGORITHMS), default="adamw", metavar="NAME",
        help=f"{', '.join(ALGORITHMS)} (%(default)s)")  # fmt: skip
    add("--steps", type=whole(1), default=steps, metavar="N", help=steps_help or "optimizer steps (%(default)s)")
    add("--lr", type=rate, metavar="X", help="learning rate (one that suits the algorithm)")
    add("--dtype", choices=list(TOLERANCE), default="float32",
        help="of weights and data; in float64 the two curves must stay together to the end (%(default)s)")  # fmt: skip
    add("--fused", action="store_true", help="torch's fused kernel, where it has one: SGD, Adagrad, Adam, AdamW")
    add("--threads", type=whole(1, 1024), metavar="N", help="threads of torch and of fastopt (automatic)")
    add("--seed", type=whole(0), default=0, metavar="N", help="for weights and batches (%(default)s)")
    add("--out", type=Path, metavar="DIR", help="write the loss curves there, as PNG and CSV")
    add("--quiet", action="store_true", help="print nothing but what went wrong")
    return p


def whole(least: int, most: int = 2**63 - 1):
    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} to {most}")
        return number

    return parse


def rate(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def decay(text: str) -> float:
    number = rate(text)
    if number >= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not below 1")
    return number


def main(p: Parser, make_task, argv=None) -> int:
    """Parse, train, report; returns the exit code. `make_task(args)` makes what is to be learned."""
    args = p.parse_args(argv)
    if args.threads:
        # torch reads it when it is loaded; fastopt takes no more threads than torch.
        os.environ["OMP_NUM_THREADS"] = str(args.threads)
    try:
        libraries = ["torch", "fastopt"] if args.optimizer == "both" else [args.optimizer]
        if args.out:
            make_folder(args.out)
            import matplotlib  # noqa: F401
        import tqdm  # noqa: F401

        task = make_task(args)
        for library in libraries:
            optimizer_class(library, ALGORITHMS[args.algorithm])
    except ImportError as error:
        p.error(f'{error}; pip install "fastopt[demo,torch]" brings what the examples need')
    except OSError as error:
        p.error(f"{error.filename}: {error.strerror or error}")
    except ValueError as error:
        p.error(str(error))

    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a sample may hold what the terminal's encoding does not
    try:
        code = train_and_report(p.prog, task, args, libraries)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print(f"{p.prog}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, `head` for one, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def make_folder(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(13, "not writable", str(folder))


# --- training


class Task:
    """What is to be learned: the data, the model, and whatever of a training loop is not the same for all."""

    title: str
    network: str
    steps: int
    max_norm: float | None = None
    ema: float | None = None
    stored: dict[str, object] = {}  # how fastopt stores weights and state
    whole_step = False  # whether clip, step, average and zero_grad are timed together

    def model(self):
        """A new model, of weights that come from torch's global random numbers."""
        raise NotImplementedError

    def batches(self, generator):
        """Batches without end."""
        raise NotImplementedError

    def loss(self, model, batch):
        raise NotImplementedError

    def measure(self, model) -> tuple[str, str]:
        """What to judge the trained model by: its name and its value."""
        raise NotImplementedError

    def groups(self, model):
        return model.parameters()

    def schedule(self, opt):
        return None

    def clip(self, model) -> None:
        if self.max_norm is not None:
            from torch.nn.utils import clip_grad_norm_

            clip_grad_norm_(model.parameters(), self.max_norm)

    def sample(self, model) -> str:
        return ""


class Run:
    """A model that trains with one library's optimizer, and what came of it."""

    def __init__(self, library: str, task, args: argparse.Namespace) -> None:
        import torch

        self.library, self.task = library, task
        self.losses: list[float] = []
        self.seconds: list[float] = []  # of each step, all in all
        self.optimizer_seconds: list[float] = []  # of each opt.step()
        self.around_seconds: list[float] = []  # of each clip, step, average and zero_grad together

        torch.manual_seed(args.seed)
        self.model = task.model().to(getattr(torch, args.dtype))
        self.batches = task.batches(torch.Generator().manual_seed(args.seed))

        cls = optimizer_class(library, ALGORITHMS[args.algorithm])
        options = dict(OPTIONS.get(cls.__name__, {}))
        if args.lr:
            options["lr"] = args.lr
        if args.fused and "fused" in inspect.signature(getattr(torch.optim, cls.__name__)).parameters:
            options["fused"] = True  # fastopt accepts it, and is fused anyway
        whole = {"clip_norm": task.max_norm, "ema_decay": task.ema, "zero_grads": True} if task.whole_step else {}
        self.one_call = library == "fastopt" and bool(whole)
        if self.one_call:
            options |= whole
        if library == "fastopt":
            options |= task.stored
        self.opt = cls(task.groups(self.model), **options)
        self.average = None if self.one_call or task.ema is None else averaged(self.model, task.ema)
        self.schedule = task.schedule(self.opt)
        self.called = f"{cls.__module__.rpartition('.')[0] if library == 'torch' else cls.__module__}.{cls.__name__}"
        said = {"lr": self.opt.defaults["lr"], **options}
        self.called += f"({', '.join(f'{key}={value}' for key, value in said.items())})"

    def step(self) -> None:
        """One step, as in any training loop, with a clock."""
        start = perf_counter()
        loss = self.task.loss(self.model, next(self.batches))
        loss.backward()
        around = perf_counter()
        if not self.one_call:
            self.task.clip(self.model)
        before = perf_counter()
        self.opt.step()
        after = perf_counter()
        if self.average is not None:
            self.average.update_parameters(self.model)
        if not self.one_call:
            self.opt.zero_grad()
        done = perf_counter()
        if self.schedule is not None:
            self.schedule.step()
        end = perf_counter()
        self.losses.append(loss.item())
        self.seconds.append(end - start)
        self.optimizer_seconds.append(after - before)
        self.around_seconds.append(done - around)

    def measure_average(self) -> tuple[str, str]:
        """The task's measure of the averaged weights."""
        if self.average is not None:
            return self.task.measure(self.average.module)
        with self.opt.averaged():
            return self.task.measure(self.model)


def averaged(model, ema: float):
    """The average of a model's weights, as PyTorch keeps it."""
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(ema))


def train(runs: list[Run], steps: int, progress) -> None:
    """Train all of them for so many steps, in turns; who begins alternates."""
    order = list(runs)
    for done in range(0, steps, TURN):
        for run in order:
            for _ in range(min(TURN, steps - done)):
                run.step()
        order.reverse()
        progress(min(done + TURN, steps))


def train_and_report(prog: str, task, args: argparse.Namespace, libraries: list[str]) -> int:
    import torch

    # Once in every process torch loads modules at an optimizer's first step, and libraries make their plans: a few
    # steps of throw-away runs take that out of the comparison.
    for library in libraries:
        train([Run(library, task, args)], 3, lambda done: None)

    runs = [Run(library, task, args) for library in libraries]
    parameters = list(runs[0].model.parameters())
    say = (lambda *lines: None) if args.quiet else (lambda *lines: print(*lines, sep="\n", flush=True))
    size, threads = sum(p.numel() for p in parameters), torch.get_num_threads()
    say(
        task.title,
        f"{task.network}: {size:,} parameters in {len(parameters)} tensors.",
        f"{task.steps:,} steps, {args.dtype}, {threads} thread{'s' * (threads > 1)}.",
        *(f"{run.library + ':':<9}{run.called}{note(run, args)}" for run in runs),
    )
    with Progress(runs, task.steps, args.quiet) as progress:
        train(runs, task.steps, progress)

    say("", *table(runs, task))
    verdict = Verdict(runs, args.dtype) if len(runs) == 2 else None
    if verdict:
        say("", *verdict.lines())
    if sample := task.sample(runs[-1].model):
        say("", f"A sample, by the model trained with {runs[-1].library}:", *("    " + s for s in sample.split("\n")))
    if args.out:
        heading = f"{type(runs[0].opt).__name__}, {args.dtype}"
        picture = draw(runs, verdict, heading, args.out / f"{prog}.png")
        say("", f"Loss curves: {picture}, {write_csv(runs, args.out / f'{prog}.csv')}")

    failed = [f"{run.library}: training failed: {what}" for run in runs if (what := failure(run))]
    if verdict and not failed:
        failed = verdict.failures()
    for line in failed:
        print(f"{prog}: {line}", file=sys.stderr)
    return 1 if failed else 0


def note(run: Run, args: argparse.Namespace) -> str:
    """What torch ran, which its arguments alone do not say."""
    if run.library != "torch":
        return ""
    if "fused=True" in run.called:
        return ", its fused kernel"
    missing = "it has no fused form; " if args.fused else ""
    return f" ({missing}its default: a loop over the tensors, an operation at a time)"


def failure(run: Run) -> str:
    """Why a training is not worth comparing; empty if it is."""
    bad = next((i for i, loss in enumerate(run.losses, 1) if not math.isfinite(loss)), None)
    return f"the loss is {run.losses[bad - 1]} at step {bad}" if bad else ""


class Progress:
    """A bar on a terminal; plain lines, ten of them, where standard error is anything else."""

    def __init__(self, runs: list[Run], steps: int, quiet: bool) -> None:
        from tqdm import tqdm

        self.runs, self.steps, self.said = runs, steps, 0
        self.lines = not quiet and not sys.stderr.isatty()
        self.bar = tqdm(total=steps, unit="step", leave=False, disable=quiet or self.lines)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def __call__(self, done: int) -> None:
        losses = ", ".join(f"{run.library} {run.losses[-1]:.4f}" for run in self.runs)
        self.bar.set_postfix_str(f"loss: {losses}", refresh=False)
        self.bar.update(done - self.bar.n)
        if self.lines and done * 10 // self.steps > self.said:
            self.said = done * 10 // self.steps
            print(f"step {done} of {self.steps}, loss: {losses}", file=sys.stderr, flush=True)


# --- the comparison


class Verdict:
    """How the run with fastopt compares with the run with torch."""

    def __init__(self, runs: list[Run], dtype: str) -> None:
        torch_run, fast_run = runs
        self.fused = "fused=True" in torch_run.called
        self.tolerance = TOLERANCE[dtype]
        self.differences = [difference(*pair) for pair in zip(fast_run.losses, torch_run.losses, strict=True)]
        self.largest = max(self.differences)
        self.at = self.differences.index(self.largest) + 1
        self.tight = self.differences[: TIGHT_STEPS[dtype]]
        self.tight_steps = "all steps" if self.tight == self.differences else f"the first {len(self.tight)} steps"
        self.level = difference(level(fast_run), level(torch_run))
        # Of medians, which a machine that was busy for a while does not move; the sums are in the table.
        self.step_ratio = median(fast_run.optimizer_seconds) / median(torch_run.optimizer_seconds)
        self.time_ratio = median(fast_run.seconds) / median(torch_run.seconds)
        self.rest_ratio = median(rest(fast_run)) / median(rest(torch_run))

    def lines(self) -> list[str]:
        """What is printed below the table."""
        return [
            f"Time with fastopt / with torch (of the medians): {self.time_ratio:.3f} in all, "
            f"{self.step_ratio:.3f} in opt.step(),",
            f"{self.rest_ratio:.3f} in the rest, which is the same work{'' if self.quiet else BUSY}.",
            f"Largest relative difference of the loss curves: {self.largest:.1e}, at step {self.at};",
            f"in {self.tight_steps}: {max(self.tight):.1e} (tolerance {self.tolerance:g});",
            f"of their means over the last tenth of the steps: {self.level:.1e} (tolerance {LEVEL_TOLERANCE:g}).",
        ]

    @property
    def quiet(self) -> bool:
        """Whether the time in all says something: what is the same in both runs took about as long in both."""
        return abs(self.rest_ratio - 1) < 0.1

    def failures(self) -> list[str]:
        """What is not as it must be; nothing if all is well."""
        failed = []
        if not max(self.tight) <= self.tolerance:
            at = next(i for i, d in enumerate(self.tight, 1) if d > self.tolerance)
            how_far = f"{self.differences[at - 1]:.1e} at step {at}"
            failed.append(f"the loss curves differ by {how_far}, more than {self.tolerance:g}")
        if not self.level <= LEVEL_TOLERANCE:
            failed.append(f"the loss curves end {self.level:.1e} apart, more than {LEVEL_TOLERANCE:g}")
        return failed

    def finding(self) -> str:
        """The title of the picture."""
        if not math.isfinite(self.level):
            return "training failed"
        same = f"the same curve to {self.largest:.0e}" if self.largest < 1e-3 else f"curves end {self.level:.1%} apart"
        if self.failures():
            same = f"THE CURVES DIFFER, by {self.largest:.0e}"
        kind = "torch's fused kernel" if self.fused else "torch's default loop"
        training = f", training {100 * self.time_ratio:.0f} %" if self.quiet else ""
        return f"{same}\nopt.step() takes {100 * self.step_ratio:.0f} % of the time of {kind}{training}"


def rest(run: Run) -> list[float]:
    """The time of each step outside opt.step()."""
    return [all_in_all - part for all_in_all, part in zip(run.seconds, run.optimizer_seconds, strict=True)]


def alone(run: Run) -> str:
    """The title of a picture of one run."""
    share = sum(run.optimizer_seconds) / sum(run.seconds)
    return f"loss {run.losses[0]:.3g} to {level(run):.3g}\nopt.step() takes {100 * share:.1f} % of the time"


def difference(got: float, want: float) -> float:
    """The relative difference of two losses."""
    return abs(got - want) / (abs(want) + FLOOR)


def level(run: Run) -> float:
    """The loss that a run came to: the mean over the last tenth of its steps."""
    return mean(run.losses[-max(1, len(run.losses) // 10) :])


def table(runs: list[Run], task: Task) -> list[str]:
    import torch

    with torch.no_grad():
        measures = [task.measure(run.model) for run in runs]
    totals = [sum(run.seconds) for run in runs]
    steps = [sum(run.optimizer_seconds) for run in runs]
    rows = [
        ("", [run.library for run in runs]),
        ("training loss, last tenth", [f"{level(run):.4f}" for run in runs]),
        (measures[0][0], [value for _, value in measures]),
        ("seconds in all", [f"{seconds:.2f}" for seconds in totals]),
        ("of them in opt.step()", [f"{seconds:.2f}" for seconds in steps]),
        ("share of opt.step()", [f"{part / whole:.1%}" for part, whole in zip(steps, totals, strict=True)]),
        ("median of a step, ms", [f"{1000 * median(run.seconds):.2f}" for run in runs]),
        ("median of opt.step(), ms", [f"{1000 * median(run.optimizer_seconds):.3f}" for run in runs]),
    ]
    if task.whole_step:
        parts = [run.around_seconds for run in runs]
        rows += [
            ("clip, step, average, zero:", ["in one" if run.one_call else "apart" for run in runs]),
            ("  their share", [f"{sum(part) / whole:.1%}" for part, whole in zip(parts, totals, strict=True)]),
            ("  median, ms", [f"{1000 * median(part):.3f}" for part in parts]),
        ]
    if task.ema is not None:
        with torch.no_grad():
            rows.append((f"{measures[0][0]}, averaged", [run.measure_average()[1] for run in runs]))
    return [f"{name:<26}" + "".join(f"{value:>10}" for value in values) for name, values in rows]


def write_csv(runs: list[Run], path: Path) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["step", *(f"loss_{run.library}" for run in runs)])
        writer.writerows([i, *losses] for i, losses in enumerate(zip(*(run.losses for run in runs), strict=True), 1))
    return path


def draw(runs: list[Run], verdict: Verdict | None, heading: str, path: Path) -> Path:
    """The loss curves, torch's wide and fastopt's narrow on top of it, and how far apart they are."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    class Plain(LogFormatter):
        """0.2 instead of 2e-01."""

        def __call__(self, x, pos=None):
            return f"{x:g}" if super().__call__(x, pos) else ""

    figure = Figure(figsize=(7.5, 5.5 if verdict else 4), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)  # draws to memory, whatever backend the user has chosen
    heights = {"height_ratios": [2, 1]} if verdict else None
    upper, *lower = figure.subplots(1 + bool(verdict), 1, sharex=True, squeeze=False, gridspec_kw=heights).flat
    window = max(1, len(runs[0].losses) // 50)
    colors, widths = {"torch": "#E69F00", "fastopt": "#0072B2"}, {"torch": 5 if verdict else 1.5, "fastopt": 1.5}
    for run in runs:
        means = [mean(run.losses[max(0, i - window) : i]) for i in range(1, len(run.losses) + 1)]
        upper.plot(range(1, len(means) + 1), means, label=run.library,
                   color=colors[run.library], linewidth=widths[run.library])  # fmt: skip
    upper.set_yscale("log")
    upper.yaxis.set_major_formatter("{x:g}")
    upper.yaxis.set_minor_formatter(Plain(minor_thresholds=(2, 0.5)))
    upper.set_ylabel("training loss" + f", mean of {window} steps" * (window > 1))
    upper.legend(frameon=False)
    for axes in lower:
        at = [i for i, d in enumerate(verdict.differences, 1) if d > 0]  # zero has no place on a logarithmic axis
        axes.plot(at, [verdict.differences[i - 1] for i in at], ".", markersize=3, color="0.3")
        label = f"tolerance, {verdict.tight_steps}"
        axes.hlines(verdict.tolerance, 1, len(verdict.tight), color="#D55E00", label=label)
        axes.set_yscale("log")
        axes.set_ylabel("relative difference")
        axes.legend(frameon=False)
    for axes in (upper, *lower):
        axes.spines[["top", "right"]].set_visible(False)
    (upper, *lower)[-1].set_xlabel("step")
    figure.suptitle(f"{heading}: {verdict.finding() if verdict else alone(runs[0])}", x=0.01, ha="left", fontsize=11)
    figure.savefig(path)
    return path
