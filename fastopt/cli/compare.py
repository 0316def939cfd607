"""``fastopt compare``: optimizers side by side, on surfaces that can be drawn and on real data.

Every step is one of the compiled kernels. What the lecture notes claim of the optimizers is measured on the paths,
and said to hold or not, or that it cannot be told.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import HyperparameterError
from ._arguments import above_zero, made_folder, near, need, optimizers, printer, whole

if TYPE_CHECKING:
    from .._compare.report import Section
    from .._compare.stage import Part

    Done = dict[str, tuple[Section, dict[str, Any]]]
    """What each part came to, by its name: for the page, and for results.json."""

__all__ = ["add_parser", "run"]

FORMATS = ("png", "svg")
FOR_DATA = ("target", "task", "scale", "epochs", "batch_size", "repeats", "to_loss", "tune")
FOR_SCENES = ("steps", "start")
REPEATS = 3
FARTHEST = 1000.0  # from where there is still something to see


# --- the command line


def add_parser(commands: Any) -> None:
    """Add the command to the parser's commands."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "compare",
        help="let optimizers run side by side: pictures, findings, one page",
        description="Let optimizers run side by side from one starting point, on surfaces that can be drawn or on real "
        "data, and collect pictures, tables and findings in one HTML page. Without arguments: every scene. "
        'Defaults are in parentheses. Needs pip install "fastopt[demo]".',
        epilog="exit code: 0 good, 1 if no optimizer learns anything of the data, 2 if it could not start, 130 after "
        "Ctrl-C, which leaves the page of what was done",
    )
    parser.add_argument("scene", nargs="*", metavar="SCENE", help="only these; --list shows them (all)")
    parser.add_argument("--list", action="store_true", help="list the scenes and stop")
    parser.add_argument(
        "--optimizer",
        action="append",
        metavar="NAME[,NAME...]",
        help="only these, in this order; upper or lower case; may be repeated; one that a scene does not list gets a "
        "learning rate that suits it (those of the scene)",
    )
    parser.add_argument("--lr", type=above_zero, metavar="X", help="learning rate of all of them (one that suits each)")
    parser.add_argument("--seed", type=whole(0), default=0, metavar="N", help="for shuffles and splits (%(default)s)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("fastopt-compare"),
        metavar="DIR",
        help="folder for the page, the pictures and the paths as CSV, made if missing (%(default)s)",
    )
    parser.add_argument(
        "--format",
        type=_formats,
        default=FORMATS,
        metavar="NAME[,NAME]",
        help="png, svg or both, for the pictures (png,svg)",
    )
    parser.add_argument("--no-animation", action="store_true", help="no GIFs, which take the most time")
    parser.add_argument("--json", action="store_true", help="also write results.json, with paths and findings")
    parser.add_argument("--quiet", action="store_true", help="print nothing but what went wrong")

    scenes = parser.add_argument_group("on surfaces")
    scenes.add_argument("--steps", type=whole(1), metavar="N", help="steps of each optimizer (the scene's)")
    scenes.add_argument(
        "--start",
        type=_point,
        metavar="X[,Y]",
        help="starting point; for negative numbers --start=-1,2 (the scene's)",
    )

    data = parser.add_argument_group("on real data")
    data.add_argument(
        "--data",
        action="append",
        metavar="NAME|FILE.csv",
        help="digits, breast_cancer, diabetes, or a CSV file with a header; may be repeated",
    )
    data.add_argument("--target", metavar="COLUMN", help="column of the file that is to be learned (the last)")
    data.add_argument(
        "--task",
        choices=("classification", "regression"),
        help="learn the target's values as names of classes, or as numbers (by the values: numbers if every one is a "
        "number, but for few distinct whole ones)",
    )
    data.add_argument(
        "--scale",
        choices=("standard", "minmax"),
        help="normalize features to mean 0 and deviation 1, or to the range from 0 to 1 (standard)",
    )
    data.add_argument("--epochs", type=whole(1), metavar="N", help="passes through the data (15)")
    data.add_argument("--batch-size", type=whole(1), metavar="N", help="samples in a step (32)")
    data.add_argument(
        "--repeats", type=whole(1), metavar="N", help="seeds, from --seed on; the band shows them all (3)"
    )
    data.add_argument("--to-loss", type=above_zero, metavar="X", help="training loss to race to (one that most reach)")
    data.add_argument(
        "--tune",
        action="store_true",
        default=None,
        help="draw the race in which each has the best learning rate of five, by the test loss with one seed more; "
        "findings are the same either way",
    )
    parser.set_defaults(run=run, command="compare")


def _formats(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip().lower() for name in text.split(",")))
    if not names or not set(names) <= set(FORMATS):
        raise argparse.ArgumentTypeError(f"{text!r} is none of png, svg and png,svg")
    return names


def _point(text: str) -> tuple[float, ...]:
    try:
        point = tuple(float(number) for number in text.split(","))
    except ValueError:
        point = ()
    if not 1 <= len(point) <= 2 or not all(abs(number) <= FARTHEST for number in point):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not one number, or two with a comma between them, of at most {FARTHEST:g}"
        )
    return point


# --- what is to be done


def _check(args: argparse.Namespace) -> None:
    """Refuse what has no effect, or does not fit."""
    from .._compare.data import BUNDLED
    from .._compare.scenes import SCENES

    for name in args.scene:
        if name not in SCENES:
            data = name in BUNDLED or Path(name).suffix.lower() == ".csv"
            meant = f"; did you mean --data {name}?" if data else near(name, SCENES)
            raise HyperparameterError(f"{name!r} is no scene: there are {', '.join(SCENES)}{meant}")
    surfaces = bool(args.scene or not args.data)
    for options, given, wanted in ((FOR_DATA, args.data, "--data"), (FOR_SCENES, surfaces, "a scene")):
        for option in options:
            if getattr(args, option) is not None and not given:
                raise HyperparameterError(f"--{option.replace('_', '-')} is for {wanted}")


def _parts(args: argparse.Namespace) -> list[Part]:
    """Return the scenes and data sets that were asked for, changed as was asked for."""
    from .._compare.report import stem
    from .._compare.scenes import SCENES

    names = list(dict.fromkeys(args.scene)) or ([] if args.data else list(SCENES))
    parts = [_scene(name, args) for name in names] + [_data(name, args) for name in args.data or ()]
    for i, part in enumerate(parts):
        twin = next((other for other in parts[:i] if stem(other.name).lower() == stem(part.name).lower()), None)
        if twin is not None:
            raise HyperparameterError(f"--data: the files of {twin.name!r} and {part.name!r} would have the same names")
    return parts


def _scene(name: str, args: argparse.Namespace) -> Part:
    from .._compare import stage
    from .._compare.scenes import SCENES, changed

    dimensions = SCENES[name].surface.dimensions
    if args.start is not None and len(args.start) != dimensions:
        wanted = "one number" if dimensions == 1 else "two numbers, X,Y"
        raise HyperparameterError(f"--start: {name} takes {wanted}")
    chosen = optimizers(args.optimizer)
    scene = changed(SCENES[name], None if chosen is None else list(chosen), args.lr, args.steps, args.start)
    return stage.of_scene(scene, args.out, args.format, not args.no_animation, args.seed)


def _data(name: str, args: argparse.Namespace) -> Part:
    from .._compare import data, learning, stage
    from .._compare.scenes import SEVEN

    dataset = data.load(name, args.target, args.task, args.scale or "standard")
    runners = learning.entrants(dataset, list(optimizers(args.optimizer) or SEVEN), args.lr)
    asked = {key: getattr(args, key) for key in ("epochs", "batch_size") if getattr(args, key) is not None}
    seeds = range(args.seed, args.seed + (args.repeats or REPEATS))
    return stage.of_data(dataset, runners, args.out, args.format, seeds, bool(args.tune), args.to_loss, **asked)


# --- the run


def run(args: argparse.Namespace) -> int:
    """Run what was asked for, print tables and findings, write the page; return the exit code."""
    if args.list:
        return _list()
    need("compare", "matplotlib", "PIL", "sklearn", "tqdm")
    _check(args)
    names: list[str] = []
    done: Done = {}
    try:
        _perform(args, names, done)
        index = _write(args, done)
    except BaseException as error:  # Ctrl-C above all; but whatever it is, what was done before is good
        _rescue(args, names, done, error)
        raise
    if not args.quiet:
        print(_summary([section for section, _ in done.values()]))
        print(f"Everything on one page: {index}")
    nothing = [name for name, (_, result) in done.items() if "runs" in result and not _learned(result)]
    for name in nothing:
        print(f"fastopt compare: {name}: nothing was learned by any optimizer", file=sys.stderr)
    return 1 if nothing else 0


def _perform(args: argparse.Namespace, names: list[str], done: Done) -> None:
    """Do one part after the other and print what it came to; note the names of all, and what is done."""
    from tqdm import tqdm

    bar = tqdm(
        total=1,
        desc="reading: ",
        bar_format="{desc}{percentage:3.0f}%|{bar}| about {remaining} left",
        leave=False,
        disable=args.quiet or None,  # None: a bar only where standard error is a terminal
    )

    def tick(work: float) -> None:
        bar.update(min(work, bar.total - bar.n))  # parts of a whole may add up to a little more

    say = printer(args.quiet)

    with bar:
        parts = _parts(args)
        made_folder(args.out)
        names += [part.name for part in parts]
        bar.reset(total=sum(part.work for part in parts))
        about = [_filled(part.about, "  ") for part in parts if part.about]
        if about:
            say("\n".join([*about, ""]))
        for part in parts:
            bar.set_description(part.name)
            done[part.name] = part.perform(tick)
            say(_as_text(done[part.name][0]))


def _write(args: argparse.Namespace, done: Done, warning: str = "") -> Path:
    """Write the page of what is done, and results.json if asked for; return where the page is."""
    from .._compare import page
    from .._compare.results import write_json

    sections = [section for section, _ in done.values()]
    index = args.out / "index.html"
    page.write(sections, index, title="Optimizers side by side", facts=_facts(args), warning=warning)
    if args.json:
        write_json({name: result for name, (_, result) in done.items()}, args.out / "results.json")
    return index


def _rescue(args: argparse.Namespace, names: Sequence[str], done: Done, error: BaseException) -> None:
    """Write the page of a run that did not come to its end, if anything was done, and say where it is."""
    if not done:
        return
    reason = str(error) or type(error).__name__
    how = "was interrupted" if isinstance(error, KeyboardInterrupt) else f"ended early ({reason})"
    number = f"{len(done)} of {len(names)} parts"
    missing = ", ".join(name for name in names if name not in done)
    try:
        index = _write(args, done, f"The run {how}: this page has {number}. Missing: {missing}." if missing else "")
    except (OSError, MemoryError):  # no better than the error of which we come, which is printed
        return
    print(f"fastopt compare: what was done, {number}, is on one page: {index}", file=sys.stderr)


def _learned(result: dict[str, Any]) -> bool:
    """Return whether any optimizer learned the data set, with any seed."""
    return any(run["learned"] for run in result["runs"])


def _list() -> int:
    from .._compare.scenes import SCENES

    width = max(map(len, SCENES))
    for scene in SCENES.values():
        print(f"{scene.name:<{width}}  {scene.title}")
    return 0


# --- the report


def _as_text(section: Section) -> str:
    """Return a section as the terminal shows it."""
    from .._compare.report import as_text

    indent = " " * 15
    lines = [section.title, "", as_text(section.table), ""]
    for finding in section.findings:
        verdict = {True: "holds:", False: "does not hold:", None: "cannot tell:"}[finding.holds]
        said = f"{verdict:<15}{finding.claim} ({finding.source})", indent + finding.measured
        lines += [_filled(text, indent) for text in said]
    return "\n".join([*lines, ""] if section.findings else lines)


def _filled(text: str, indent: str) -> str:
    """Return text in lines that fit the terminal."""
    import shutil
    import textwrap

    return textwrap.fill(text, min(shutil.get_terminal_size((100, 24)).columns, 120), subsequent_indent=indent)


def _summary(sections: Sequence[Section]) -> str:
    findings = [finding for section in sections for finding in section.findings]
    pictures = sum(len(section.pictures) for section in sections)
    text = f"{pictures} pictures."
    if findings:
        held, refuted, unclear = (sum(f.holds is verdict for f in findings) for verdict in (True, False, None))
        text += f" Of {len(findings)} findings {held} hold, {refuted} do not"
        text += f", {unclear} cannot be told." if unclear else "."
    return text


def _facts(args: argparse.Namespace) -> list[tuple[str, str]]:
    """Return what one needs to know to repeat the run."""
    import platform

    import numpy as np

    from .. import __version__

    return [
        ("fastopt", __version__),
        ("NumPy", np.__version__),
        ("Python", platform.python_version()),
        ("seed", str(args.seed)),
        ("command", _command(args)),
    ]


def _command(args: argparse.Namespace) -> str:
    """Return the command line that does the same, but for where it writes."""
    import shlex

    words = ["fastopt", "compare", *args.scene]
    for key in ("optimizer", "lr", "steps", "start", "data", *FOR_DATA, "seed"):
        value = getattr(args, key)
        for item in value if isinstance(value, list) else [value]:
            if item is True:
                words.append(f"--{key}")
            elif item is not None:
                text = ",".join(map(str, item)) if isinstance(item, tuple) else str(item)
                words.append(f"--{key.replace('_', '-')}={text}")
    return shlex.join(words)
