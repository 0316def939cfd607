"""fastopt compare with settings of one's own: nothing is claimed that is not so, and nothing ends in a traceback."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from fastopt import OPTIMIZERS
from fastopt._compare import learning, pictures, rates, stage
from fastopt._compare.findings import (
    RATES,
    all_before,
    at_rest,
    before,
    best_rate,
    came_down,
    crossings,
    ended,
    in_order,
    left_saddle,
    length,
    moved,
    over_seeds,
    overshoot,
    said,
    settled,
)
from fastopt._compare.race import Finding, Path, Race, Runner, run, run_scene
from fastopt._compare.rates import suited
from fastopt._compare.report import Section
from fastopt._compare.scenes import SCENES, changed
from fastopt.cli import compare, main


def race(name, **changes):
    return run_scene(changed(SCENES[name], **changes))


def verdicts(raced):
    return {finding.claim: finding.holds for finding in raced.found}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", SCENES)
@pytest.mark.parametrize(
    "changes", [{"steps": 1}, {"steps": 3}, {"lr": 1e-320}, {"lr": 1e4}, {"lr": 1e300}, {"start": 0.0}], ids=str
)
def test_settings_that_nothing_comes_of_are_reported(name, changes):
    if "start" in changes:
        changes = {"start": (0.0,) * SCENES[name].surface.dimensions}
    if name in ("saddle", "beale") and "steps" not in changes:
        changes = {**changes, "steps": 30}
    raced = race(name, **changes)
    assert raced.headline and all(finding.measured for finding in raced.found)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("saddle", {"steps": 5}, "In 5 steps none of them leaves the saddle"),
        ("saddle", {"steps": 400, "optimizers": ["SGD"]}, "SGD leaves the saddle after 349 steps"),
        ("saddle", {}, "RMSprop leaves the saddle after 6 steps, SGD not in 120"),
        ("himmelblau", {"steps": 1}, "In 1 steps none of them gets to a minimum"),
        ("himmelblau", {}, "One start, 2 of four minima: 6 of 7 go to (3, 2), Momentum to another"),
        ("dip", {}, "Out of the local minimum: SGD, rate 0.9 and Momentum, rate 0.1"),
        ("dip", {"lr": 3.0}, "Out of the local minimum: Adam"),
        ("overshoot", {}, "Momentum shoots 1.42 beyond the floor of the valley, NAG 0.67"),
    ],
)
def test_a_headline_says_what_is_so(name, changes, said):
    assert race(name, **changes).headline == said


def test_rates_that_did_not_fade_are_not_said_to():
    assert "fade" in race("rates").headline and "fade" not in race("rates", steps=1).headline


def test_those_who_come_at_the_same_step_are_all_named():
    paths = {
        name: made([(0, 9)] * k + [(0, 0)] * (9 - k), optimizer=name) for name, k in (("A", 2), ("B", 5), ("C", 5))
    }
    title = pictures._first_down(Race(replace(SCENES["overshoot"], start=(0.0, 9.0), steps=8), paths))
    assert title == "First to stay below a hundredth of the starting height: A, after 2 steps; last: B and C, after 5"


def test_who_is_thrown_up_again_is_not_down():
    swings, settles = (
        made([(0, 9), (0, 0), (0, 9), (0, 0), (0, 9)]),
        made([(0, 9)] * 3 + [(0, 0)] * 2, optimizer="Adam"),
    )
    title = pictures._first_down(Race(replace(SCENES["overshoot"], steps=4), {"SGD": swings, "Adam": settles}))
    assert "height: Adam, after 3 steps" in title and title.endswith("not in 4: SGD")
    assert "SGD, rate 0.9" not in pictures._first_down(race("dip"))  # hits the minimum after 3 steps, and leaves it


# --- Who did nothing is not praised


@pytest.mark.parametrize("name", ["ravine", "seven", "overshoot", "batches", "order", "first-steps"])
def test_who_barely_moves_wins_nothing(name):
    raced = race(name)
    still = Runner("Lion", {"lr": 1e-4}, batch_size=raced.scene.runners[-1].batch_size)
    raced = replace(raced, paths={**raced.paths, "Lion": run(raced.scene, still)})
    assert not came_down(raced, raced.paths["Lion"])
    assert "Lion" not in raced.headline or "Lion 0.0001" in raced.headline  # where it lists what everybody did
    title = pictures._lengths(raced)
    assert "Lion" not in title.partition("; not yet down: ")[0] and "not yet down" in title
    assert "Lion" not in pictures._first_down(raced).partition("; not in ")[0]


@pytest.mark.parametrize("name", SCENES)
def test_of_those_who_did_not_move_nothing_is_told(name):
    scene = replace(SCENES[name], steps=min(SCENES[name].steps, 20))
    still = [replace(r, options={**r.options, "lr": 1e-12}) for r in scene.runners]
    raced = run_scene(replace(scene, runners=tuple(still)))
    told = [finding for finding in raced.found if "too little to tell" in finding.measured]
    assert told and all(finding.holds is None for finding in told)
    own = {
        "ravine": 2, "saddle": 1, "beale": 2, "rates": 1,  # claims with runs of their own
    }  # fmt: skip
    assert len(raced.found) - len(told) == own.get(name, 0)
    assert pictures._lengths(raced) == raced.headline  # nobody has the longest or the shortest way


def test_a_wall_alone_is_not_the_way_down():
    raced = race("overshoot")  # SGD loses nine tenths of its height down the wall, and stays at the far end
    sgd = raced.paths["SGD"]
    assert sgd.losses[-1] < 0.1 * sgd.losses[0] and not came_down(raced, sgd)
    assert pictures._lengths(raced).endswith("NAG the shortest, 9.46; not yet down: SGD")


def test_a_start_in_the_minimum_makes_nobody_the_first():
    assert race("beale", start=(3.0, 0.45), steps=5).headline.startswith("The start is within 0.1 of the minimum")


@pytest.mark.parametrize("name", SCENES)
def test_an_optimizer_that_a_scene_does_not_list_gets_a_rate_that_suits_it(name):
    known = {runner.optimizer for runner in SCENES[name].runners}
    scene = changed(SCENES[name], [other for other in OPTIMIZERS if other not in known])
    raced = run_scene(replace(scene, steps=min(scene.steps, 1000)))
    floor = scene.surface.floor
    for path in raced.paths.values():
        assert path.runner.options == suited(path.name, SCENES[name]) and moved(raced, path)
        assert path.finite and path.losses[-10:].mean() - floor < 0.5 * (path.losses[0] - floor), path.name
    assert dict(changed(scene, ["Lion"]).runners[0].options) == dict(scene.others.get("Lion", {"lr": 0.13}))


@pytest.mark.parametrize("name", SCENES)
def test_an_optimizer_that_nobody_told_of_runs_in_every_scene(name, newcomer):
    raced = run_scene(changed(SCENES[name], [newcomer], steps=5))
    (path,) = raced.paths.values()
    assert path.finite and moved(raced, path) and raced.headline
    at_adams = [runner.options["lr"] for runner in SCENES[name].runners if runner.optimizer == "Adam"]
    assert path.runner.options == {"lr": at_adams[0] if at_adams else suited("Adam", SCENES[name])["lr"]}


def test_an_optimizer_without_a_rate_takes_that_of_one_like_it(monkeypatch):
    """By its base class, else by what it has: asked of those that have a rate, as if they had none."""
    monkeypatch.setattr(rates, "_VALLEY", {"NAG": {}, "Adam": {}})
    adams = dict.fromkeys(("Adam", "AdamW", "Adamax", "NAdam", "RAdam", "Lion"), "Adam")
    others = {"SGD": "SGD", "Momentum": "Momentum", "NAG": "Momentum", "Adagrad": "Adagrad", "Adadelta": "RMSprop",
              "RMSprop": "RMSprop"}  # fmt: skip
    wanted = {**others, **adams}
    assert {name: rates.like(name) for name in wanted} == wanted
    monkeypatch.setitem(OPTIMIZERS, "Mine", type("Mine", (OPTIMIZERS["NAG"],), {}))
    assert rates.like("Mine") == "NAG"
    assert rates.suited("Mine", SCENES["beale"]) == {"lr": 0.01}  # NAG's there


# --- Three verdicts


@pytest.mark.parametrize(
    ("first", "then", "verdict"),
    [
        ([10], [12], True),
        ([10], [None], True),
        ([10], [11], True),
        ([100], [109], None),  # by less than a tenth
        ([10], [10], None),
        ([None], [None], None),
        ([12], [10], False),
        ([None], [10], False),
        ([109], [100], None),
        ([5, 10], [8, 20], False),  # one of the others is before one of the first
        ([5, 10], [10, 20], None),
        ([5, None], [None, 20], False),
    ],
)
def test_before_by_a_tenth_after_by_a_tenth_or_nobody_knows(first, then, verdict):
    steps = {**{f"a{i}": k for i, k in enumerate(first)}, **{f"b{i}": k for i, k in enumerate(then)}}
    found = before(steps, [f"a{i}" for i in range(len(first))], [f"b{i}" for i in range(len(then))])
    assert found is verdict


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        (([1, 1], [2, 2]), True),
        (([0, 0], [2, 2]), True),
        (([1, 1], [2, 1.05]), None),  # with one seed by less than a tenth
        (([1, 3], [2, 2]), None),  # the seeds do not agree
        (([2, 2], [1, 1]), False),
        (([1, 1], [2, 2], [4, 4]), True),
        (([1, 1], [4, 4], [2, 2]), False),
        (([1, 1], [2, 2], [2, 2]), None),
        (([1, 1], [math.nan, 2]), None),
    ],
)
def test_an_order_holds_with_every_seed_or_cannot_be_told(values, verdict):
    assert in_order(*values) is verdict


def test_samples_that_are_drawn_are_drawn_again_with_other_seeds():
    raced = race("batches")
    values = over_seeds(raced, "Stochastic", length)
    assert len(values) == len(set(values)) == 5 and values[0] == length(raced.paths["Stochastic"])
    assert values[1] == length(run(raced.scene, raced.paths["Stochastic"].runner, 1))
    assert len(set(over_seeds(raced, "Full batch", length))) == 1
    assert over_seeds(run_scene(raced.scene, 1), "Stochastic", length)[0] == values[1]


def test_terminal_and_summary_have_a_third_verdict():
    found = tuple(Finding(f"Claim {holds}", "notes", holds, "3 and 2") for holds in (True, False, None))
    section = Section("a", "A", "", stage.table(race("dip", steps=2)), found)
    text = compare._as_text(section)
    assert "cannot tell:   Claim None (notes)" in text and "does not hold: Claim False" in text
    assert compare._summary([section]).endswith("Of 3 findings 1 hold, 1 do not, 1 cannot be told.")
    assert json.loads(json.dumps(stage.as_json(race("dip", steps=2), section)))["findings"][2]["holds"] is None


def test_a_learning_rate_of_ones_own_is_in_no_label():
    paths = race("dip", lr=0.05).paths
    assert list(paths) == ["SGD", "Momentum", "NAG", "Adam"]


@pytest.mark.parametrize("lr", [1e-6, 1.0])
def test_descent_that_has_not_come_to_rest_is_in_no_local_minimum(lr):
    assert not any(verdicts(race("rastrigin", lr=lr)).values())


@pytest.mark.parametrize(
    ("name", "changes", "claim"),
    [
        ("ravine", {"lr": 0.1}, "SGD zig-zags"),
        ("ravine", {"start": (-7.0, 0.0)}, "Momentum damps"),
        ("dip", {"start": (-1.5,)}, "Momentum leaves"),
        ("batches", {"lr": 1e-6}, "The full batch converges steadily"),
        ("rates", {"steps": 1}, "AdaGrad's effective learning rate goes to zero"),
    ],
)
def test_a_finding_can_fail(name, changes, claim):
    judged = [holds for text, holds in verdicts(race(name, **changes)).items() if text.startswith(claim)]
    assert judged and not any(judged)


def test_momentum_is_not_at_the_minimum_when_it_swings_past():
    (measured,) = (f.measured for f in race("ravine").found if f.claim.startswith("Momentum reaches"))
    assert measured.endswith("Momentum 0.1 49, SGD 0.1 263, SGD 0.95 27")


@pytest.mark.parametrize("name", ["Adagrad", "Adadelta", "RMSprop", "SGD", "Momentum", "NAG"])
def test_the_best_rate_is_none_of_the_outermost(name):
    raced = race("saddle")
    _, rate = best_rate(raced, raced.paths[name].runner, left_saddle)
    assert RATES[0] < rate < RATES[-1]


def test_files_that_would_have_one_name_are_refused(tmp_path, capsys):
    for module in ("matplotlib", "PIL", "sklearn", "tqdm"):
        pytest.importorskip(module)
    rows = "a,t\n" + "".join(f"{i},{i % 2}\n" for i in range(20))
    files = [tmp_path / "a b.csv", tmp_path / "a-b.csv"]
    for file in files:
        file.write_text(rows)
    assert main(["compare", *(f"--data={file}" for file in files), "--out", str(tmp_path / "out")]) == 2
    assert "'a b'" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["ascii", "cp949"])
def test_an_encoding_without_a_letter_does_not_end_the_run(encoding, monkeypatch, tmp_path):
    for module in ("matplotlib", "PIL", "sklearn", "tqdm"):
        pytest.importorskip(module)
    out = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr(sys, "stdout", out)
    arguments = ["--data=diabetes", "--epochs=1", "--repeats=1", "--optimizer=SGD", "--format=png", f"--out={tmp_path}"]
    assert main(["compare", *arguments]) == 0


def test_a_folder_where_a_file_should_go_is_one_line(tmp_path, capsys):
    for module in ("matplotlib", "PIL", "sklearn", "tqdm"):
        pytest.importorskip(module)
    (tmp_path / "index.html").mkdir()
    assert main(["compare", "dip", "--steps=2", "--format=png", "--quiet", "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_seed_may_be_any_whole_number(tmp_path):
    for module in ("matplotlib", "PIL", "sklearn", "tqdm"):
        pytest.importorskip(module)
    arguments = ["--data=diabetes", "--epochs=1", "--repeats=1", "--optimizer=SGD", "--format=png", "--quiet"]
    assert main(["compare", *arguments, f"--seed={2**32}", f"--out={tmp_path}"]) == 0


# --- The measures themselves, on paths made by hand


def made(points, finite=True, optimizer="SGD", scene="overshoot"):
    """A path through these points."""
    where = np.array(points, float)
    surface = SCENES[scene].surface
    losses = np.array([surface.at(at) for at in where])
    steps = np.zeros((len(where) - 1, where.shape[1]))
    return Path(Runner(optimizer), where, losses, steps, steps, np.zeros(len(where)), finite)


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_overshoot_is_beyond_the_floor_on_the_side_that_it_did_not_start_from(side):
    path = made([(0, 3 * side), (0, -1 * side), (0, 2 * side)])
    assert (overshoot(path), crossings(path), length(path)) == (1.0, 2, 7.0)
    assert overshoot(made([(0, 3 * side), (0, 1 * side)])) == 0.0


def test_a_group_is_before_another_only_if_its_slowest_is_before_the_fastest():
    arrivals = {"A": 1, "B": 4, "C": 3, "D": 6}
    paths = {name: made([(0, 9)] * k + [(0, 0)], optimizer=name) for name, k in arrivals.items()}
    raced = Race(SCENES["overshoot"], paths)

    def arrived(path):
        return path.first(path.points[:, 1] == 0)

    assert all_before(raced, ["A"], ["C", "D"], arrived) == (True, "steps: A 1, C 3, D 6")
    assert not all_before(raced, ["A", "B"], ["C", "D"], arrived)[0]
    assert not all_before(raced, ["A"], ["A"], arrived)[0]
    assert settled(made([(0, 9), (0, 0), (0, 9), (0, 0), (0, 0)]), [(0.0, 0.0)]) == 3
    assert settled(made([(0, 0), (0, 9)]), [(0.0, 0.0)]) is None
    assert settled(made([(0, 9), (0, 0)], finite=False), [(0.0, 0.0)]) is None


def test_the_first_in_the_headline_is_the_first_in_the_table():
    raced = race("beale")
    rows = {row[0]: row[5] for row in stage.table(raced).rows}
    first = min((int(after), name) for name, after in rows.items() if after != "never")
    assert raced.headline.startswith(f"{first[1]} is the first") and f"after {first[0]} steps" in raced.headline


def test_that_nag_overshoots_less_at_all_rates_is_measured():
    paths, scene = dict(race("overshoot").paths), SCENES["overshoot"]
    claim = "NAG overshoots less at other learning rates (0.02 to 0.2) and momenta (0.8 to 0.95), too"
    assert verdicts(Race(scene, paths))[claim]
    on_the_floor = replace(scene, start=(-10.0, 0.0))  # nobody overshoots
    # So steep that NAG flies apart at the largest of the rates, before Momentum does.
    steep = replace(scene.surface, value=lambda x, y: x**2 / 200 + 5 * y**2, slope=lambda x, y: (x / 100, 10 * y))
    for other in (on_the_floor, replace(scene, surface=steep)):
        assert not verdicts(Race(other, paths))[claim]


# --- What is written


def test_a_table_says_what_the_paths_did():
    raced = race("overshoot", steps=30)
    rows = stage.table(raced).rows
    assert len(rows) == 3
    for path, row in zip(raced.paths.values(), rows, strict=True):
        name, settings, steps, ends, value, after, way = row
        assert (name, settings, steps) == (path.name, path.runner.settings, "30")
        assert ends == ", ".join(f"{number:.3g}" for number in path.points[-1]) and value == f"{path.losses[-1]:.3g}"
        assert after == said(settled(path, [(0.0, 0.0)])) and way == f"{length(path):.3g}"
    assert stage.table(race("ravine", lr=1e300)).rows[0][-1] == "diverged"


def test_json_and_csv_hold_the_paths(tmp_path):
    raced = race("ravine", lr=20.0, steps=300)
    report = stage.as_json(raced, Section("", "", "", stage.table(raced)))
    assert [path["diverged"] for path in report["paths"]] == [not path.finite for path in raced.paths.values()]
    assert {path["diverged"] for path in report["paths"]} == {True, False}
    stage.write_paths(raced, tmp_path / "paths.csv")
    with open(tmp_path / "paths.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["optimizer"] == "Adam"]
    adam = raced.paths["Adam"]
    assert [float(row["rate_y"]) for row in rows[1:]] == adam.rates[:, 1].tolist() and rows[0]["rate_y"] == ""
    assert [float(row["f"]) for row in rows] == adam.losses.tolist()


# --- The command's options reach what they are for


def run_compare(tmp_path, *arguments):
    """Run the command on data; its exit code, and what it wrote as JSON."""
    for module in ("matplotlib", "PIL", "sklearn", "tqdm"):
        pytest.importorskip(module)
    common = ["--format=png", "--epochs=2", "--repeats=1", "--json", f"--out={tmp_path}"]
    code = main(["compare", "--data=diabetes", *common, *arguments])
    return code, json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["diabetes"]


def test_options_for_data_are_heeded(tmp_path):
    arguments = "--optimizer=adam,sgd --lr=0.003 --seed=5 --repeats=2 --to-loss=0.7 --scale=minmax --batch-size=50"
    code, report = run_compare(tmp_path, *arguments.split(), "--quiet")
    assert code == 0
    assert [(run["optimizer"], run["options"], run["seed"]) for run in report["runs"]] == [
        (name, {"lr": 0.003}, seed) for seed in (5, 6) for name in ("Adam", "SGD")
    ]
    assert (report["to_loss"], report["scale"], report["batch_size"], report["epochs"]) == (0.7, "minmax", 50, 2)


def test_tuning_tries_other_rates_with_a_seed_that_is_not_raced_with(tmp_path, monkeypatch):
    seeds = []
    split = learning.split
    monkeypatch.setattr(learning, "split", lambda dataset, seed: seeds.append(seed) or split(dataset, seed))
    _, plain = run_compare(tmp_path, "--optimizer=sgd", "--lr=1e-5", "--quiet")
    assert set(seeds) == {0}
    seeds.clear()
    _, tuned = run_compare(tmp_path, "--optimizer=sgd", "--lr=1e-5", "--tune", "--quiet")
    assert tuned["runs"][0]["options"]["lr"] > plain["runs"][0]["options"]["lr"] == 1e-5
    assert set(seeds) == {0, 1}


def test_data_of_which_nobody_learns_anything_end_with_exit_code_1(tmp_path, capsys):
    code, report = run_compare(tmp_path, "--optimizer=sgd", "--lr=1e9")
    assert code == 1 and not report["runs"][0]["learned"]
    assert capsys.readouterr().err == "fastopt compare: diabetes: nothing was learned by any optimizer\n"


def test_the_terminal_says_which_findings_hold_and_counts_them(tmp_path, capsys):
    for module in ("matplotlib", "PIL", "sklearn", "tqdm"):
        pytest.importorskip(module)
    assert main(["compare", "dip", "--format=png", "--json", f"--out={tmp_path}"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    findings = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["dip"]["findings"]
    for finding in findings:
        assert f"{'holds:' if finding['holds'] else 'does not hold:'} {finding['claim']}" in text
    held = sum(finding["holds"] for finding in findings)
    assert 0 < held < len(findings)
    assert f"Of {len(findings)} findings {held} hold, {len(findings) - held} do not." in text


@pytest.mark.skipif(sys.platform == "win32", reason="has no pseudo-terminals")
def test_a_terminal_sees_a_bar_that_comes_to_its_end_and_a_pipe_sees_none(tmp_path):
    for module in ("matplotlib", "PIL", "sklearn", "tqdm"):
        pytest.importorskip(module)
    import fcntl
    import pty
    import struct
    import termios

    command = [sys.executable, "-m", "fastopt", "compare", "dip", "--steps=5", "--format=png", f"--out={tmp_path}"]
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 90, 0, 0))
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs)
    os.close(theirs)
    pieces = []
    with contextlib.suppress(OSError):  # what Linux has at the end of a terminal
        while piece := os.read(ours, 4096):
            pieces.append(piece)
    os.close(ours)
    assert running.wait(120) == 0
    seen = b"".join(pieces).decode()
    assert "reading:   0%" in seen and "dip: 100%" in seen and "Warning" not in seen
    piped = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert piped.stderr == "" and "%|" not in piped.stdout


@pytest.mark.parametrize(
    ("name", "changes", "claims"),
    [
        ("dip", {"steps": 3}, ["Too small", "Too large", "A large", "Momentum leaves", "NAG"]),
        ("dip", {"steps": 40}, ["Momentum leaves"]),
        ("rastrigin", {"steps": 10}, ["Momentum can"]),
        ("overshoot", {"steps": 5}, ["NAG overshoots", "NAG oscillates", "A momentum that is let down"]),
        ("overshoot", {"lr": 0.01}, ["A momentum that is let down"]),  # five times less: neither stopped nor not
    ],
    ids=str,
)
def test_who_is_still_on_the_way_proves_nothing(name, changes, claims):
    found = verdicts(race(name, **changes))
    for start in claims:
        assert {holds for claim, holds in found.items() if claim.startswith(start)} == {None}


def test_who_creeps_or_swings_is_not_at_rest():
    def path(x):
        points = np.array(x)[:, None]
        return Path(Runner("SGD"), points, points[:, 0], points[1:], points[1:], np.zeros(len(x)), finite=True)

    steps = np.arange(100.0)
    assert at_rest(path(np.exp(-steps / 5)))
    assert not at_rest(path(steps))  # creeps
    assert not at_rest(path(np.cos(steps)))
    assert not at_rest(path(np.exp(-steps[:15])))  # too few steps
    assert ended(path(np.exp(-steps / 5)), steps > 50) is True
    assert ended(path(np.cos(steps)), steps > 50) is None
    assert ended(path(np.cos(steps)), steps > 50, rest=False) is True
    assert ended(path(np.cos(steps)), steps > 90, rest=False) is None


@pytest.mark.parametrize("name", ["ravine", "himmelblau"])
def test_lion_comes_down_with_the_rate_that_it_gets(name):
    raced = race(name, optimizers=["Lion"])
    assert came_down(raced, raced.paths["Lion"])
    if name == "himmelblau":
        assert settled(raced.paths["Lion"], raced.scene.surface.minima)
