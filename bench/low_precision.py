"""What low precision costs in loss: the language model of examples/torch_charlm.py, with weights and state stored so.

    python bench/low_precision.py losses.json --steps 600 --seeds 3
    python bench/low_precision.py losses.json --draw docs/figures --table

The first trains (twenty minutes on one core), each seed with every way of storing; the others draw the picture and
print the table of docs/half_precision.md. Every way has the weights, batches and schedule of its seed. So that nothing
but the storage differs, the model computes in float32: weights in bfloat16 are widened for it, and gradients rounded.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean, median

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

# Name -> (whose step, the example's arguments). The first is what the others are compared with.
WAYS = {
    "float32": ("fastopt", []),
    "float32, state bfloat16": ("fastopt", ["--state", "bfloat16"]),
    "float32, state 8 bits": ("fastopt", ["--state", "8bit"]),
    "split": ("fastopt", ["--dtype", "bfloat16", "--rounding", "split", "--state", "float32"]),
    "split, state 8 bits": ("fastopt", ["--dtype", "bfloat16", "--rounding", "split", "--state", "8bit"]),
    "stochastic": ("fastopt", ["--dtype", "bfloat16", "--rounding", "stochastic"]),
    "stochastic, state 8 bits": ("fastopt", ["--dtype", "bfloat16", "--rounding", "stochastic", "--state", "8bit"]),
    "nearest": ("fastopt", ["--dtype", "bfloat16"]),
    "nearest, PyTorch": ("torch", ["--dtype", "bfloat16"]),
}
LAST = 10  # of a curve's steps, one in so many is what the run came to


def widened(task) -> Callable[[], None]:
    """Have a task's optimizer step weights in bfloat16, and its model compute in float32; to call before a step."""
    import torch

    pairs: list[tuple] = []
    groups = task.groups

    def narrow(model) -> list[dict]:
        made = []
        for group in groups(model):
            twins = [torch.nn.Parameter(p.detach().bfloat16()) for p in group["params"]]
            pairs.extend(zip(group["params"], twins, strict=True))
            made.append({**group, "params": twins})
        return made

    def clip(model) -> None:
        type(task).clip(task, model)
        for p, twin in pairs:
            twin.grad, p.grad = p.grad.bfloat16(), None

    def widen() -> None:
        with torch.no_grad():
            for p, twin in pairs:
                p.copy_(twin)

    task.groups, task.clip = narrow, clip
    return widen


def train(way: str, seed: int, steps: int) -> dict:
    """One training: its losses, what it came to, and what its optimizer took."""
    import torch
    import torch_charlm
    from _torch_common import Run

    library, more = WAYS[way]
    common = ["--steps", str(steps), "--seed", str(seed), "--optimizer", library, "--threads", "1", "--lr", "2e-3"]
    args = torch_charlm.arguments().parse_args([*common, *more])
    torch.set_num_threads(1)
    task = torch_charlm.CharacterModel(args)
    widen = widened(task) if args.dtype == "bfloat16" else None
    args.dtype = "float32"
    run = Run(library, task, args)
    for _ in range(steps):
        if widen is not None:
            widen()
        run.step()
    if widen is not None:
        widen()
    with torch.no_grad():
        held_out = float(task.measure(run.model)[1])
    params = [p for group in run.opt.param_groups for p in group["params"]]
    size, held = sum(p.numel() for p in params), sum(p.nbytes for p in params)
    held += sum(x.nbytes for state in run.opt.state.values() for name, x in state.items() if name != "step")
    return {"way": way, "seed": seed, "losses": run.losses, "held_out": held_out, "bytes": held / size,
            "ms": 1000 * median(run.optimizer_seconds)}  # fmt: skip


def write(path: Path, steps: int, seeds: int) -> None:
    """Train all, and write after each; what the file has already is not trained again."""
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    done = {(one["way"], one["seed"]) for one in found}
    for seed in range(seeds):
        for way in WAYS:
            if (way, seed) not in done:
                found.append(train(way, seed, steps))
                print(f"{way}, seed {seed}: held-out loss {found[-1]['held_out']:.4f}", flush=True)
                path.write_text(json.dumps(found), encoding="utf-8")


def level(one: dict) -> float:
    return mean(one["losses"][-max(1, len(one["losses"]) // LAST) :])


def rows(found: list[dict]) -> Iterator[list[str]]:
    """Of each way: bytes of weights and state for each weight, milliseconds of a step, losses beside float32's."""
    base = {one["seed"]: one for one in found if one["way"] == next(iter(WAYS))}
    for way in WAYS:
        runs = [one for one in found if one["way"] == way]
        if not runs:
            continue
        apart = [[measure(one) - measure(base[one["seed"]]) for one in runs]
                 for measure in (lambda one: one["held_out"], level)]  # fmt: skip
        yield [
            way, f"{runs[0]['bytes']:.2f}", f"{median(one['ms'] for one in runs):.2f}",
            f"{mean(one['held_out'] for one in runs):.4f}",
            *("–" if way == next(iter(WAYS)) else f"{mean(x):+.4f} ({min(x):+.4f} to {max(x):+.4f})" for x in apart),
        ]  # fmt: skip


def table(found: list[dict]) -> str:
    header = ["stored", "bytes a weight", "ms of `opt.step()`", "held-out loss", "against float32", "training loss"]
    lines = [header, ["---"] + 5 * ["---:"], *rows(found)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw(found: list[dict], folder: Path) -> None:
    """How far the training loss of each way is from float32's, as means of a tenth of the steps and of the seeds."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    base = {one["seed"]: one["losses"] for one in found if one["way"] == next(iter(WAYS))}
    steps = len(next(iter(base.values())))
    tenth = max(1, steps // LAST)
    at = range(tenth, steps + 1, max(1, tenth // 4))
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    colors = ("#0072B2", "#56B4E9", "#009E73", "#66C2A5", "#E69F00", "#F0C75E", "#D55E00", "#CC79A7")
    for color, way in zip(colors, [way for way in WAYS if way != next(iter(WAYS))], strict=True):
        runs = [one for one in found if one["way"] == way]
        gaps = [mean(mean(one["losses"][i - tenth : i]) - mean(base[one["seed"]][i - tenth : i]) for one in runs)
                for i in at]  # fmt: skip
        dashed = "8 bits" in way or "PyTorch" in way
        axes.plot(at, gaps, color=color, label=way, linewidth=1.8, linestyle="--" if dashed else "-")
    axes.axhline(0, color="0.3", linewidth=0.8)
    axes.set_xlabel("step")
    axes.set_ylabel("training loss, less that of float32")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, ncols=2)
    axes.set_title("Rounding weights to the nearest loses; by chance, or split, does not", loc="left", fontsize=11)
    figure.savefig(folder / "low_precision.svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path, help="where the losses are kept, as JSON")
    parser.add_argument("--steps", type=int, default=400, help="of each training (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each way (%(default)s)")
    parser.add_argument("--draw", type=Path, metavar="DIR", help="draw the picture there; do not train")
    parser.add_argument("--table", action="store_true", help="print the table; do not train")
    args = parser.parse_args()
    if not (args.draw or args.table):
        write(args.file, args.steps, args.seeds)
        return
    found = json.loads(args.file.read_text(encoding="utf-8"))
    if args.table:
        print(table(found))
    if args.draw:
        draw(found, args.draw)


if __name__ == "__main__":
    main()
