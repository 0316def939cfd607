"""A scene or a data set from start to end: run, measured, drawn, written, and made into a section of the page."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import learning
from .data import Dataset
from .findings import length, said, settled
from .race import Finding, Race, Runner, Scene, run_scene
from .race import Path as Way
from .report import Section, Table, stem
from .results import whole_file

__all__ = ["Part", "of_curves", "of_data", "of_scene"]

# What the parts of a run take, in seconds on one core; a progress bar needs no more than a guess.
STEP, DRAWING, ANIMATION, LEARNING_STEP = 1e-4, 6.0, 6.0, 6e-5

Tick = Callable[[float], Any]


@dataclass(frozen=True)
class Part:
    """Something to be done, and how long it will take."""

    name: str
    work: float
    """Seconds, roughly."""
    perform: Callable[[Tick], tuple[Section, dict[str, Any]]]
    """Told how to report work done, it returns the section, and the results as JSON takes them."""
    about: str = ""
    """What is worth knowing before it begins."""


# --- surfaces


def of_scene(scene: Scene, folder: Path, formats: Sequence[str], animated: bool, seed: int) -> Part:
    """Return the part that runs a scene and draws it."""
    from . import pictures

    animated = animated and scene.animated
    work = STEP * scene.steps * len(scene.runners) + DRAWING + (ANIMATION if animated else 0)

    def perform(tick: Tick) -> tuple[Section, dict[str, Any]]:
        race = run_scene(scene, seed, lambda steps: tick(STEP * steps))
        findings = tuple(race.found)
        drawn = pictures.draw(race, folder, formats)
        tick(DRAWING)
        if animated:
            share = ANIMATION / pictures.frames(race)
            drawn.append(pictures.animate(race, folder / f"{scene.name}.gif", lambda: tick(share)))
        paths = write_paths(race, folder / f"{scene.name}.csv")
        section = Section(scene.name, scene.title, scene.story, table(race), findings, tuple(drawn), (paths,))
        return section, as_json(race, section)

    return Part(scene.name, work, perform)


def table(race: Race) -> Table:
    """Return what each runner did, a line each."""
    surface = race.scene.surface
    heads = ["optimizer", "settings", "steps", "ends at", "f there", "way"]
    if surface.minima:
        heads.insert(5, "within 0.1 after")
    rows = []
    for path in race.paths.values():
        way = f"{length(path):.3g}" if path.finite else "diverged"
        settings = path.runner.settings
        if path.runner.batch_size is not None:
            settings += f"{', ' * bool(settings)}batch {path.runner.batch_size}"
        row = [path.name, settings, str(len(path.points) - 1), place(path), f"{path.losses[-1]:.3g}", way]
        if surface.minima:
            row.insert(5, said(settled(path, surface.minima)))
        rows.append(tuple(row))
    return Table(tuple(heads), tuple(rows))


def place(path: Way) -> str:
    """Return where a path ends."""
    return ", ".join(f"{number:.3g}" for number in path.points[-1])


def write_paths(race: Race, file: Path) -> Path:
    """Write every point of every path: optimizer, step, coordinates, loss, samples, gradients and effective rates."""
    axes = race.scene.surface.variables
    heads = ["optimizer", "step", *axes, "f", "samples", *(f"gradient_{a}" for a in axes), *(f"rate_{a}" for a in axes)]
    with whole_file(file) as whole, open(whole, "w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(heads)
        for path in race.paths.values():
            writer.writerows(_rows(path))
    return file


def _rows(path: Way) -> Iterable[list[Any]]:
    """Return the rows of one path. The gradient and the rate in a row are those of the step that led there."""
    none = np.full((1, path.points.shape[1]), np.nan)
    columns = (path.points, path.losses[:, None], path.samples[:, None], np.vstack([none, path.gradients]),
               np.vstack([none, path.rates]))  # fmt: skip
    for step, row in enumerate(np.hstack(columns).tolist()):
        yield [path.name, step, *("" if number != number else number for number in row)]


def as_json(race: Race, section: Section) -> dict[str, Any]:
    """Return settings, paths and findings as plain data."""
    scene = race.scene
    return {
        "surface": scene.surface.name,
        "formula": scene.surface.formula,
        "start": list(scene.start),
        "steps": scene.steps,
        "findings": [asdict(finding) for finding in section.findings],
        "paths": [
            {
                "name": path.name,
                "optimizer": path.runner.optimizer,
                "options": dict(path.runner.options),
                "batch_size": path.runner.batch_size,
                "diverged": not path.finite,
                "points": path.points.tolist(),
                "losses": path.losses.tolist(),
                "rates": path.rates.tolist(),
            }
            for path in race.paths.values()
        ],
    }


# --- real data


def of_data(
    dataset: Dataset,
    runners: Sequence[Runner],
    folder: Path,
    formats: Sequence[str],
    seeds: Sequence[int],
    tune: bool,
    to_loss: float | None,
    **settings: Any,
) -> Part:
    """Return the part that lets optimizers learn a data set.

    They race with the rates that they come with, and each with the fastest one of a few, found with a seed that is not
    raced with. Both decide on the findings, which are therefore the same with `tune` and without. With `tune`, curves,
    table and pictures are those of a race with the rates that have the lowest test loss, else those of the first; what
    is claimed of the test samples rests on such a race, too. Where nothing is claimed of those who run, only the race
    that is shown takes place. `settings` are the others of `learning.race`.
    """
    from . import curves

    spare = max(seeds) + 1
    twice = curves.anything_claimed(runner.name for runner in runners)
    generalizing = [runner for runner in runners if runner.name in curves.GENERALIZING]
    to_test = runners if tune else generalizing if len(generalizing) == len(curves.GENERALIZING) else []
    racing = [*(runners if twice or not tune else ()), *(runners if twice else ()), *to_test]
    steps = learning.total_steps(dataset, racing, seeds=seeds, **settings)
    if tune or twice:
        steps += len(learning.FACTORS) * learning.total_steps(dataset, runners, seeds=(spare,), **settings)

    def perform(tick: Tick) -> tuple[Section, dict[str, Any]]:
        def on_step(name: str, made: int) -> None:
            tick(LEARNING_STEP * made)

        def race(entrants: Sequence[Runner], goal: float | None = to_loss) -> learning.Curves:
            return learning.race(dataset, entrants, seeds=seeds, to_loss=goal, on_step=on_step, **settings)

        plain = race(runners) if twice or not tune else None
        fast = by_test = None
        if twice or tune:
            goal = math.nan if plain is None else plain.to_loss  # without a claim nobody asks for the fastest
            best, fastest = learning.tuned(dataset, runners, seed=spare, to_loss=goal, on_step=on_step, **settings)
            if twice:
                fast = race(fastest, None if math.isnan(goal) else goal)
            if to_test:
                names = {runner.name for runner in to_test}
                by_test = race([runner for runner in best if runner.name in names])
        shown = by_test if tune else plain
        assert shown is not None
        found = curves.findings(plain, fast, by_test) if plain is not None else []
        section = of_curves(shown, folder, formats, found)
        tick(DRAWING)
        return section, {**shown.as_json(), "findings": [asdict(finding) for finding in section.findings]}

    return Part(dataset.name, LEARNING_STEP * steps + DRAWING, perform, f"{dataset.name}: {dataset.description}")


def of_curves(
    raced: learning.Curves, folder: Path, formats: Sequence[str] = ("png", "svg"), found: Sequence[Finding] = ()
) -> Section:
    """Draw the curves into a folder, write them as CSV beside, and return all that is to be said.

    Parameters
    ----------
    raced : learning.Curves
        From `learning.race`.
    folder : pathlib.Path
        Where the files go, ``NAME-curves.png`` and so on, with the data set's name. Made if missing.
    formats : sequence of str, optional
        The endings of the pictures.
    found : sequence of Finding, optional
        What is claimed, and whether it holds; it may rest on more than these curves.
    """
    from . import curve_pictures, curves

    folder.mkdir(parents=True, exist_ok=True)
    name = stem(raced.dataset.name)
    return Section(
        name=name,
        title=f"Real data: {raced.dataset.name}",
        story=curves.story(raced),
        table=curves.table(raced),
        findings=tuple(found),
        pictures=tuple(curve_pictures.draw(raced, folder / name, tuple(formats))),
        files=(curves.write_csv(raced, folder / f"{name}-curves.csv"),),
    )
