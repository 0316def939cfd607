"""Optimizers side by side: the surfaces, the races, and what the lecture notes claim of them."""

from __future__ import annotations

import ast
import csv
import graphlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import fastopt
from fastopt import _compare
from fastopt._compare.findings import crossings, left_saddle, length, overshoot, settled, turns
from fastopt._compare.lessons import (
    ANEW,
    CORRECTED,
    DRAWN,
    FULL,
    LARGE,
    MINI,
    ONCE,
    ONE,
    ORDERED,
    ROLLED,
    ROLLING,
    SMALL,
    SUITED,
    TOP,
    UNCORRECTED,
)
from fastopt._compare.race import Runner, run, run_scene
from fastopt._compare.scenes import SCENES, changed
from fastopt._compare.surfaces import SURFACES
from fastopt.cli import main

ALL_SURFACES = [*SURFACES.values(), *(SCENES[name].surface for name in ("batches", "order", "seven"))]
RACES = {}


def race(name):
    if name not in RACES:
        RACES[name] = run_scene(SCENES[name])
    return RACES[name]


def exit_code(*arguments):
    try:
        return main(["compare", *map(str, arguments)])
    except SystemExit as stop:
        return stop.code


# --- surfaces


@pytest.mark.parametrize("surface", ALL_SURFACES, ids=lambda s: s.name)
def test_a_gradient_is_that_of_its_surface(surface):
    rng = np.random.default_rng(3)
    low, high = np.array(surface.window).T
    for point in rng.uniform(low, high, (20, surface.dimensions)):
        steps = 1e-6 * np.eye(surface.dimensions)
        differences = [(surface.at(point + h) - surface.at(point - h)) / 2e-6 for h in steps]
        np.testing.assert_allclose(surface.gradient(point), differences, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("surface", ALL_SURFACES, ids=lambda s: s.name)
def test_the_minima_are_the_lowest_points_of_the_window(surface):
    grids = np.meshgrid(*(np.linspace(*window, 201) for window in surface.window))
    for at in surface.minima:
        assert surface.at(np.array(at)) == pytest.approx(surface.floor, abs=1e-12)
        np.testing.assert_allclose(surface.gradient(np.array(at)), 0, atol=1e-12)
    if surface.minima:
        assert surface.value(*grids).min() >= surface.floor - 1e-12


# --- races


def test_a_path_is_what_the_optimizer_does():
    path = race("beale").paths["NAG"]
    point = np.array(SCENES["beale"].start)
    nag = fastopt.NAG(point, **path.runner.options)
    surface = SURFACES["beale"]
    for k in range(50):
        assert point.tobytes() == path.points[k].tobytes()
        assert path.losses[k] == surface.at(point)
        gradient = surface.gradient(nag.lookahead())
        assert gradient.tobytes() == path.gradients[k].tobytes()
        nag.step(gradient)


def test_effective_rates_are_those_of_the_formulas():
    paths = race("rates").paths
    squares = np.cumsum(paths["Adagrad"].gradients ** 2, axis=0)
    np.testing.assert_allclose(paths["Adagrad"].rates, 0.1 / np.sqrt(squares), rtol=1e-6)
    average = np.zeros(2)
    for k, g in enumerate(paths["RMSprop"].gradients):
        average = 0.99 * average + 0.01 * g**2
        np.testing.assert_allclose(paths["RMSprop"].rates[k], 0.01 / (np.sqrt(average) + 1e-8), rtol=1e-6)
    second = np.zeros(2)
    for k, g in enumerate(paths["Adam"].gradients):
        second = 0.999 * second + 0.001 * g**2
        want = 0.01 / (np.sqrt(second / (1 - 0.999 ** (k + 1))) + 1e-8)
        np.testing.assert_allclose(paths["Adam"].rates[k], want, rtol=1e-5)
    assert (paths["SGD"].rates == pytest.approx(0.02, rel=1e-9)) if paths["SGD"].rates.size else False
    assert (race("saddle").paths["Momentum"].rates == 0.01).all()


def test_a_race_can_be_repeated_to_the_bit_and_a_seed_changes_it():
    again, other = run_scene(SCENES["batches"]), run_scene(SCENES["batches"], seed=1)
    for name, path in race("batches").paths.items():
        assert path.points.tobytes() == again.paths[name].points.tobytes()
        assert (path.points.tobytes() == other.paths[name].points.tobytes()) == (name == FULL)


def test_a_path_that_diverges_ends_at_its_last_finite_point():
    scene = replace(SCENES["ravine"], steps=2000)
    path = run(scene, Runner("SGD", {"lr": 1.5}))
    assert not path.finite
    assert len(path.points) == len(path.losses) == len(path.gradients) + 1 == len(path.rates) + 1 < 2001
    assert np.isfinite(path.points).all() and np.isfinite(path.losses).all()


def test_a_changed_scene_keeps_what_was_not_asked_for():
    scene = changed(SCENES["saddle"], ["NAG", "AdamW"], lr=0.5, start=(1.0, 2.0))
    assert [dict(runner.options) for runner in scene.runners] == [{"lr": 0.5, "momentum": 0.9}, {"lr": 0.5}]
    assert (scene.start, scene.steps) == ((1.0, 2.0), SCENES["saddle"].steps)
    assert changed(SCENES["dip"]) == SCENES["dip"]
    two = changed(SCENES["batches"], ["Momentum", "Adam"])
    assert [runner.batch_size for runner in two.runners] == [1, 1]


def test_whoever_runs_up_the_walls_has_not_left_the_saddle():
    up = run(replace(SCENES["saddle"], steps=20), Runner("SGD", {"lr": 2.0}))
    assert np.abs(up.points[-1]).min() > 1
    assert left_saddle(up) is None


@pytest.mark.parametrize("name", SCENES)
def test_every_optimizer_can_run_in_every_scene(name):
    scene = changed(SCENES[name], list(fastopt.OPTIMIZERS), steps=3)
    raced = run_scene(scene)
    assert {path.runner.optimizer for path in raced.paths.values()} == set(fastopt.OPTIMIZERS)
    assert all(len(path.points) == 4 for path in raced.paths.values())
    assert scene.headline(raced)


def test_modules_import_each_other_one_way():
    """Each module stands above all that it imports, at its head or in a function."""
    folder = Path(_compare.__file__).parent
    modules = {path.stem: path for path in folder.glob("*.py") if path.stem != "__init__"}
    below = {}
    for name, path in modules.items():
        found = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.ImportFrom)]
        own = {part for node in found if node.level == 1 for part in [node.module, *(a.name for a in node.names)]}
        below[name] = own & modules.keys()
    layers = list(graphlib.TopologicalSorter(below).static_order())  # raises CycleError
    assert {*layers} == modules.keys() and below["curve_pictures"] >= {"curves"}


@pytest.mark.parametrize("name", SCENES)
@pytest.mark.parametrize("optimizer", ["SGD", "Adagrad", "Lion"])
def test_a_scene_with_one_optimizer_says_what_it_can(name, optimizer):
    raced = run_scene(changed(SCENES[name], [optimizer], steps=2))
    assert all(finding.measured for finding in raced.found)
    assert raced.headline


@pytest.mark.parametrize("name", SCENES)
@pytest.mark.parametrize("optimizers", [["SGD"], None])
def test_a_learning_rate_that_no_step_survives_is_no_error(name, optimizers):
    raced = run_scene(changed(SCENES[name], optimizers, lr=1e300, steps=3))
    assert all(len(path.points) == len(path.losses) <= 4 for path in raced.paths.values())
    assert raced.headline and isinstance(raced.found, list)


# --- what the lecture notes claim, as properties of the paths

# Does not hold: reported as such on the page. A change of either kind is to be noticed.
REFUTED = {
    "beale": [
        "With every method at its best learning rate, Momentum and NAG are the fastest to the minimum",
        "With every method at its best learning rate, AdaGrad and RMSProp are slower than AdaDelta",
        "AdaGrad, AdaDelta and RMSProp leave the saddle of Beale's function first",
    ],
    "dip": ["NAG, which brakes before a deep minimum is left, still leaves the shallow one"],
    "rates": ["AdaGrad's effective learning rate goes to zero whatever the gradients do"],
}


UNCLEAR = {"order": ["A new order for each epoch is better than one for all of them"]}


@pytest.mark.parametrize("name", SCENES)
def test_a_finding_holds_or_the_page_says_that_it_does_not(name):
    findings = race(name).found
    assert findings
    assert [f.claim for f in findings if f.holds is False] == REFUTED.get(name, [])
    assert [f.claim for f in findings if f.holds is None] == UNCLEAR.get(name, [])


@pytest.mark.parametrize("name", [name for name, scene in SCENES.items() if scene.samples is not None])
def test_no_seed_makes_a_verdict_its_contrary(name):
    def decided(raced):
        return {finding.claim: finding.holds for finding in raced.found if finding.holds is not None}

    scene = replace(SCENES[name], steps=min(SCENES[name].steps, 1000))
    first, *others = (decided(run_scene(scene, seed)) for seed in (0, 100))
    for other in others:
        assert all(first[claim] == holds for claim, holds in other.items() if claim in first)


def test_sgd_zig_zags_in_the_ravine():
    paths = race("ravine").paths
    assert crossings(paths["SGD"]) == 30 and turns(paths["SGD"]) > 150
    assert max(crossings(paths[name]) for name in ("Momentum", "Adagrad", "Adam")) <= 4
    assert length(paths["SGD"]) > 2 * length(paths["Adagrad"])


def test_momentum_leaves_the_local_minimum_in_which_gradient_descent_stays():
    paths = race("dip").paths
    local = 0.93040293
    assert paths[SUITED].points[-1, 0] == pytest.approx(local, abs=1e-3)
    assert paths[ROLLING].points[-1, 0] == pytest.approx(SURFACES["dip"].minima[0][0], abs=0.05)
    assert paths[SMALL].points[-1, 0] > local + 0.05
    assert paths[LARGE].points[-1, 0] < TOP and np.ptp(paths[LARGE].points[-10:]) > 0.2


def test_nag_overshoots_less_than_momentum():
    paths = race("overshoot").paths
    assert paths["NAG"].runner.options == paths["Momentum"].runner.options
    assert overshoot(paths["NAG"]) < 0.5 * overshoot(paths["Momentum"])


def test_adagrads_effective_rate_decays_and_those_of_rmsprop_and_adadelta_do_not():
    paths = race("rates").paths
    sum_of = {name: np.nanmedian(paths[name].rates[900:1100]) for name in ("Adagrad", "RMSprop", "Adadelta")}
    late = {name: np.nanmedian(paths[name].rates[-200:]) for name in sum_of}
    assert late["Adagrad"] / sum_of["Adagrad"] == pytest.approx(0.5, abs=0.06)  # fourfold steps: 1 / sqrt(4)
    assert np.nanmedian(paths["Adagrad"].rates[-20:]) < 0.1 * np.nanmedian(paths["Adagrad"].rates[0])
    assert min(late[name] / sum_of[name] for name in ("RMSprop", "Adadelta")) > 0.8


def test_the_adaptive_methods_leave_the_saddle_first():
    paths = race("saddle").paths
    adaptive = [left_saddle(paths[name]) for name in ("Adagrad", "Adadelta", "RMSprop")]
    others = [left_saddle(paths[name]) for name in ("SGD", "Momentum", "NAG")]
    assert max(adaptive) < min(k for k in others if k is not None)
    assert others[0] is None  # SGD


def test_after_the_saddle_momentum_and_nag_are_first_and_adagrad_and_rmsprop_slower_than_adadelta():
    paths = race("beale").paths
    steps = {name: settled(path, SURFACES["beale"].minima) or np.inf for name, path in paths.items()}
    assert set(sorted(steps, key=steps.__getitem__)[:2]) == {"Momentum", "NAG"}
    assert steps["Adadelta"] < steps["RMSprop"] < steps["Adagrad"]


def test_the_three_gradient_descents_differ_as_the_notes_say():
    paths = race("batches").paths
    assert (np.diff(paths[FULL].losses) < 1e-12).all()
    assert length(paths[FULL]) < length(paths[MINI]) < length(paths[ONE])
    assert length(paths[ROLLED]) < length(paths[ONE])
    assert [paths[name].samples[-1] for name in (FULL, MINI, ONE)] == [128 * 64, 128 * 8, 128]


def test_the_seven_methods_of_the_last_slide_are_in_one_picture():
    scene, paths = SCENES["seven"], race("seven").paths
    assert list(paths) == ["GD", "SGD", "Momentum", "NAG", "Adagrad", "RMSprop", "Adam"]
    assert {name: path.samples[-1] for name, path in paths.items()} == {**dict.fromkeys(paths, 40), "GD": 40 * 64}
    valley = run(replace(SCENES["ravine"], steps=40), paths["GD"].runner)
    np.testing.assert_allclose(paths["GD"].points, valley.points, atol=1e-12)  # the mean of the bowls is the valley
    x, y = scene.samples
    centers = np.stack([x, y], axis=1)[:, None]
    point = np.random.default_rng(0).normal(0, 3, (5, 2))
    apart = point - centers
    want = (apart[..., 0] ** 2 / 20 + apart[..., 1] ** 2).mean(axis=0)
    np.testing.assert_allclose(scene.surface.value(*point.T), want, rtol=1e-12)


def test_batches_of_neighbours_go_round_in_a_circle_and_shuffled_ones_do_not():
    raced = race("order")
    paths, floor = raced.paths, raced.scene.surface.floor
    assert (np.diff(raced.scene.samples[0]) > 0).all()  # sorted
    ordered = paths[ORDERED].points
    assert np.abs(ordered[-1] - ordered[-9]).max() < 1e-6 < np.abs(ordered[-1] - ordered[-5]).max()
    high = {name: (path.losses[120:] - floor).mean() for name, path in paths.items()}
    assert 5 * max(high[ONCE], high[ANEW]) < high[ORDERED] and high[ANEW] < high[DRAWN] < high[ORDERED]
    assert length(paths[ORDERED]) > 2 * length(paths[ANEW])
    once = paths[ONCE].gradients  # the batches come round again, so the gradients nearly do
    assert np.abs(once[-8:] - once[-16:-8]).max() < 0.01 < np.abs(paths[ANEW].gradients[-8:] - once[-8:]).max()


def test_adams_first_step_is_the_learning_rate_with_the_correction_only():
    paths = race("first-steps").paths
    np.testing.assert_allclose(np.abs(paths[CORRECTED].points[1] - paths[CORRECTED].points[0]), 0.3, rtol=1e-6)
    want = 0.3 * 0.1 / np.sqrt(0.001)
    np.testing.assert_allclose(np.abs(paths[UNCORRECTED].points[1] - paths[UNCORRECTED].points[0]), want, rtol=1e-5)


# --- the command


def test_the_list_names_every_scene(capsys):
    assert exit_code("--list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(SCENES)


def test_a_run_leaves_page_pictures_paths_and_results(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    pytest.importorskip("tqdm")
    out = tmp_path / "out"
    assert exit_code("dip", "overshoot", "--out", out, "--json", "--steps", 20, "--format", "png") == 0
    text, err = capsys.readouterr()
    assert err == ""
    assert "holds: " in text and "findings" in text and str(out / "index.html") in text
    names = {path.name for path in out.iterdir()}
    assert {"index.html", "results.json", "dip.csv", "overshoot.csv", "dip-paths.png", "overshoot-paths.png",
            "overshoot.gif"} <= names  # fmt: skip
    assert not any(name.endswith(".svg") for name in names)

    report = json.loads((out / "results.json").read_text(encoding="utf-8"))
    momentum = report["overshoot"]["paths"][1]
    assert momentum["name"] == "Momentum" and len(momentum["points"]) == 21
    with open(out / "overshoot.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["optimizer"] == "Momentum"]
    assert [[float(row["x"]), float(row["y"])] for row in rows] == momentum["points"]
    assert rows[0]["gradient_x"] == "" and float(rows[1]["gradient_y"]) == 4.0


def test_quiet_prints_nothing(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    pytest.importorskip("tqdm")
    arguments = ["dip", "--quiet", "--out", tmp_path, "--steps", 2, "--format", "png", "--no-animation"]
    assert exit_code(*arguments) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["nowhere"],
        ["dip", "--steps", "0"],
        ["dip", "--start", "1,2"],
        ["ravine", "--start", "1"],
        ["ravine", "--start", "1,2,3"],
        ["ravine", "--start", "nan,1"],
        ["ravine", "--start", "1e200,1"],
        ["ravine", "--start", "north"],
        ["ravine", "--lr", "-1"],
        ["ravine", "--seed", "-1"],
        ["ravine", "--optimizer", "adma"],
        ["ravine", "--format", "pdf"],
        ["ravine", "--epochs", "3"],
        ["ravine", "--target", "y"],
        ["--data", "digits", "--steps", "3"],
        ["--data", "no-such-file.csv"],
        ["--data", "digits", "--repeats", "0"],
        ["--data", "digits", "--scale", "max"],
    ],
    ids=" ".join,
)
def test_bad_arguments_are_one_line_and_exit_code_2(arguments, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    pytest.importorskip("tqdm")
    assert exit_code(*arguments, "--out", tmp_path / "out") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fastopt compare: error: ") and err.endswith(" (see fastopt compare --help)\n")
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()
