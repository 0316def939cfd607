"""The pictures, animations and the page of ``fastopt compare``."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastopt
from fastopt._compare import page, report, style
from fastopt._compare.race import Finding, Race, Runner, Scene, run_scene
from fastopt._compare.report import Picture, Section, Table
from fastopt._compare.scenes import SCENES
from fastopt._compare.surfaces import SURFACES

matplotlib = pytest.importorskip("matplotlib")  # the extra "demo"

from fastopt._compare import animation, pictures, portraits, terrain  # noqa: E402

SEVEN = ("SGD", "Momentum", "NAG", "Adagrad", "Adadelta", "RMSprop", "Adam")
PNG = b"\x89PNG\r\n\x1a\n"


def scene(surface="ravine", start=(-7.0, 2.0), steps=12, runners=("SGD", "Adam"), **others):
    runners = tuple(
        Runner(runner, {} if runner == "Adadelta" else {"lr": 0.3}) if isinstance(runner, str) else runner
        for runner in runners
    )
    return Scene(
        "little", "A little scene", "", SURFACES[surface], start, steps, runners, lambda race: [],
        lambda race: "Some of them arrive & some do not", **others,
    )  # fmt: skip


def racing(*arguments, **settings):
    return run_scene(scene(*arguments, **settings))


def with_path(race, name, **changes):
    return Race(race.scene, {**race.paths, name: replace(race.paths[name], **changes)})


def drawing(sketch, race):
    """Return the drawing as it goes into the file."""
    with style.house():
        sketched = sketch(race)
        if sketched is not None:
            style.entitle(sketched.figure, sketched.title)
            if sketched.ratio is not None:
                terrain.fit(sketched.figure, sketched.ratio)
            sketched.figure.draw_without_rendering()
        return sketched


def all_bytes(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def image(file):
    from PIL import Image

    return Image.open(file)


# --- files


def test_every_picture_is_in_a_file_of_each_format(tmp_path):
    drawn = pictures.draw(racing(panels=True), tmp_path / "made" / "here")
    stems = ["little-paths", "little-panels", "little-loss", "little-rates"]
    assert [[file.name for file in picture.files] for picture in drawn] == [
        [f"{stem}.png", f"{stem}.svg"] for stem in stems
    ]
    for picture in drawn:
        png, svg = picture.files
        assert png.read_bytes().startswith(PNG)
        assert image(png).width == 1200 and 300 < image(png).height < 1400
        pixels = np.asarray(image(png).convert("L"))
        assert all((edge == 255).all() for edge in (pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:]))
        words = "".join(ElementTree.parse(svg).getroot().itertext())
        assert picture.title in words
        assert svg.stat().st_size < 300_000
        areas = [element for element in ElementTree.parse(svg).iter() if element.tag.endswith("}image")]
        panels = {"little-paths": 1, "little-panels": 2}.get(svg.stem, 0)
        assert len(areas) == panels  # the tints; all else is strokes
        assert "SGD" in picture.alt and "Adam" in picture.alt
    assert drawn[0].title == "Some of them arrive & some do not"


def test_only_the_formats_asked_for_are_written(tmp_path):
    for picture in pictures.draw(racing(runners=("SGD",)), tmp_path, formats=("svg",)):
        assert [file.suffix for file in picture.files] == [".svg"]
    assert {file.suffix for file in tmp_path.iterdir()} == {".svg"}


@pytest.mark.parametrize("name", SURFACES)
def test_every_surface_can_be_drawn(name):
    surface = SURFACES[name]
    start = tuple(0.8 * low + 0.2 * high for low, high in surface.window)
    assert drawing(pictures.paths, racing(name, start, 3)).figure.axes


def test_the_same_race_gives_the_same_bytes_whatever_the_user_has_set(tmp_path):
    for name, theirs in (("a", {}), ("b", {"lines.linewidth": 9, "font.size": 20, "axes.facecolor": "red"})):
        with matplotlib.rc_context(theirs):
            pictures.draw(racing(steps=4), tmp_path / name)
            pictures.animate(racing(steps=4), tmp_path / name / "little.gif")
            pictures.portrait("NAG", tmp_path / name / "nag.svg")
    assert all_bytes(tmp_path / "a") == all_bytes(tmp_path / "b")


def test_matplotlib_is_as_it_was_afterwards(tmp_path):
    before = dict(matplotlib.rcParams)
    pictures.portrait("SGD", tmp_path / "sgd.png")
    pictures.animate(racing(steps=1), tmp_path / "little.gif")
    assert dict(matplotlib.rcParams) == before


def test_importing_the_package_does_not_import_matplotlib():
    code = "import sys, fastopt._compare as c; assert 'matplotlib' not in sys.modules; print(c.portrait.__module__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("fastopt._compare.portraits\n", "")


# --- what is drawn


def test_panels_where_the_scene_asks_for_them():
    assert pictures.panels(racing()) is None
    drawn = drawing(pictures.panels, racing(runners=SEVEN, panels=True))
    shown = [axes for axes in drawn.figure.axes if axes.get_visible()]
    assert len(shown) == 8  # the last one has them all
    assert shown[-1].get_title(loc="left") == "all"
    assert len(drawing(pictures.panels, racing(runners=SEVEN[:4], panels=True)).figure.axes) == 4


def test_a_function_of_one_variable_has_a_panel_for_each_runner():
    race = racing("dip", (1.5,), runners=SEVEN)
    shown = [axes for axes in pictures.paths(race).figure.axes if axes.get_visible()]
    assert len(shown) == 7
    ends = [axes.lines[-1].get_xydata()[-1] for axes in shown]
    wanted = [(path.points[-1, 0], path.losses[-1]) for path in race.paths.values()]
    np.testing.assert_array_equal(ends, wanted)


def test_paths_end_where_the_runners_ended():
    race = racing()
    (axes,) = pictures.paths(race).figure.axes
    marks = [tuple(line.get_xydata()[-1]) for line in axes.lines if line.get_marker() in "o*"]
    for path in race.paths.values():
        assert tuple(path.points[-1]) in marks


def test_circles_are_circles():
    """The rings of x² + y² would be; height over width of the axes is that of the window."""
    race = racing("himmelblau", (0.0, 0.0), runners=SEVEN)
    box = drawing(pictures.paths, race).figure.axes[0].get_window_extent()
    (left, right), (low, high) = terrain.view(race)
    assert box.height / box.width == pytest.approx((high - low) / (right - left), rel=0.01)


@pytest.mark.parametrize(
    "surface, names",
    [("ravine", SEVEN), ("saddle", ("a rather long name for a runner", "SGD")), ("ravine", ("a rather long name",))],
)
def test_nothing_is_cut_off(surface, names):
    runners = tuple(Runner("SGD", {"lr": 0.01}, name) if name not in SEVEN else name for name in names)
    race = racing(surface, (-1.0, 0.1), runners=runners, panels=True)
    for sketch in (pictures.paths, pictures.panels, pictures.losses, pictures.rates):
        drawn = drawing(sketch, race)
        if drawn is not None:
            tight = drawn.figure.get_tightbbox()
            width, height = drawn.figure.get_size_inches()
            assert tight.x0 > -0.01 and tight.y0 > -0.01, drawn.name
            assert tight.x1 < width + 0.01 and tight.y1 < height + 0.01, drawn.name


def test_heights_are_above_the_minimum_and_the_saddle_has_none():
    race = racing("dip", (1.5,))
    path = race.paths["SGD"]
    np.testing.assert_array_equal(pictures.above(path, race), path.losses - SURFACES["dip"].floor)
    assert pictures.losses(race).figure.axes[0].get_yscale() == "log"
    saddle = racing("saddle", (-1.0, 0.1))
    np.testing.assert_array_equal(pictures.above(saddle.paths["SGD"], saddle), saddle.paths["SGD"].losses)
    axes = pictures.losses(saddle).figure.axes[0]
    assert axes.get_yscale() == "linear" and axes.get_ylim()[0] < 0


def test_with_samples_the_loss_is_drawn_against_them_too():
    x = np.array([1.0, 2.0, 3.0, 4.0])
    race = racing(
        samples=(x, x), batch_gradient=lambda at, batch: at * len(batch[0]) / 4,
        runners=(Runner("SGD", {"lr": 0.1}, "one", batch_size=1), Runner("SGD", {"lr": 0.1}, "all")),
    )  # fmt: skip
    steps, samples = pictures.losses(race).figure.axes
    assert [axes.get_xlabel() for axes in (steps, samples)] == ["step", "samples seen"]
    assert [line.get_xdata()[-1] for line in samples.lines] == [12, 48]


def test_rates_are_drawn_where_one_changes():
    assert pictures.rates(racing(runners=("SGD", "Momentum"))) is None
    race = racing(runners=("SGD", "Adagrad"))
    drawn = drawing(pictures.rates, race)
    assert [axes.get_title(loc="left") for axes in drawn.figure.axes] == ["along x", "along y"]
    for column, axes in enumerate(drawn.figure.axes):
        for line, path in zip(axes.lines, race.paths.values(), strict=True):
            np.testing.assert_array_equal(line.get_ydata(), path.rates[:, column])
    fallen = np.exp(np.log(race.paths["Adagrad"].rates[-1] / race.paths["Adagrad"].rates[0]).mean())
    assert drawn.title == f"Effective learning rate: that of Adagrad falls to {100 * fallen:.2g} % of its first value"


def test_the_title_of_the_losses_says_who_is_first():
    race = racing(steps=3, runners=("SGD", "Adam", "Lion"))
    falls = {"SGD": [1.0, 0.5, 0.01, 0], "Adam": [1.0, 0.009, 0, 0], "Lion": [1.0, 1, 1, 1]}
    for name, losses in falls.items():
        race = with_path(race, name, losses=np.array(losses) * SURFACES["ravine"].at(np.array([-7.0, 2.0])))
    assert pictures.losses(race).title == (
        "First to stay below a hundredth of the starting height: Adam, after 1 step; last: SGD, after 2; not in 3: Lion"
    )


@pytest.mark.parametrize("scene", SCENES.values(), ids=lambda scene: scene.name)
def test_the_variables_are_called_as_in_the_formula(scene):
    assert f"f({', '.join(scene.surface.variables)})" in scene.surface.formula


# --- colours


def test_every_optimizer_has_a_look_of_its_own():
    without = fastopt.OPTIMIZERS.keys() - style.COLORS.keys()
    assert len(without) <= len(style.SPARE_COLORS), f"give some of {without} a colour in fastopt/_compare/style.py"
    every = [style.look(name) for name in fastopt.OPTIMIZERS]
    assert len({look.color for look in every}) == len(every)
    own = [style.look(name) for name in style.COLORS]
    assert len({look.color for look in own}) == len({look.marker for look in own}) == len(own)
    assert style.COLORS.keys() == style.DASHES.keys() == style.MARKERS.keys()


def test_spare_looks_are_given_in_turn(monkeypatch):
    names = [f"New{k}" for k in range(len(style.SPARE_COLORS) + 1)]
    for name in names:
        monkeypatch.setitem(fastopt.OPTIMIZERS, name, fastopt.Adam)
    colors = [style.look(name).color for name in names if name in fastopt.OPTIMIZERS]
    n = len(style.SPARE_COLORS)
    assert len({*colors[:n]}) == n and not {*colors} & {*style.COLORS.values(), style.OTHER}
    assert colors[n] == colors[0] and style.look("Unheard").color == style.OTHER


def test_the_seven_of_the_notes_are_told_apart_in_grey():
    grey = sorted(lightness(style.COLORS[name]) for name in SEVEN)
    assert np.diff(grey).min() > 7  # of 100
    assert max(grey) < 75  # white is 100


def lightness(color):
    """L* of CIELAB."""
    parts = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return 116 * np.cbrt(linear @ [0.2126, 0.7152, 0.0722]) - 16


@pytest.mark.parametrize("optimizer", ["SGD", "Adadelta", "Adam", "Unheard"])
def test_runs_of_one_optimizer_differ_in_colour_dash_and_mark(optimizer):
    runners = [Runner(optimizer, {}, label) for label in ("slow", "medium", "fast", "faster")]
    found = style.looks([*runners, Runner("Lion")])
    assert len({look.color for look in found.values()}) == 5
    four = [found[runner.name] for runner in runners]
    assert four[0].color == style.look(optimizer).color
    assert len({look.marker for look in four}) == len({str(look.trail_dash) for look in four}) == 4
    assert found["Lion"] == style.look("Lion")


def test_more_variants_than_there_are_looks():
    assert len(style.looks(Runner("SGD", {}, str(k)) for k in range(9))) == 9


def test_lines_below_are_wider():
    widths = [look.width for look in style.overlaid(style.looks(map(Runner, SEVEN))).values()]
    assert widths == sorted(widths, reverse=True) and len(set(widths)) == 7


# --- the window


def test_a_path_is_cut_at_the_border():
    window = ((0.0, 1.0), (0.0, 1.0))
    path = np.array([[0.5, 0.5], [0.75, 0.5], [2.75, 0.5], [2.75, 3.0], [-1.0, 0.5], [-1.0, 0.0], [1.0, 1.0]])
    pieces, exits = terrain.within(path, window)
    gap = [np.nan, np.nan]
    wanted = [[0.5, 0.5], [0.75, 0.5], [1, 0.5], gap, [0, 0.5], [1, 1], gap]
    np.testing.assert_allclose(pieces, wanted)
    np.testing.assert_allclose(exits, [[1, 0.5]])
    across, _ = terrain.within(np.array([[-1.0, 0.5], [2.0, 0.5]]), window)
    np.testing.assert_allclose(across[:2], [[0, 0.5], [1, 0.5]])


coordinates = st.one_of(st.floats(-3, 3), st.sampled_from([0.0, 1.0, 0.5, -1e100, 1e100]))


@given(st.lists(st.tuples(coordinates, coordinates), max_size=12).map(lambda rows: np.array(rows).reshape(-1, 2)))
def test_what_is_drawn_lies_in_the_window_and_what_lies_there_is_drawn(points):
    pieces, exits = terrain.within(points, ((0.0, 1.0), (0.0, 1.0)))
    assert len(points) < 2 or not len(pieces) or np.nanmin(pieces) > -1e-9 and np.nanmax(pieces) < 1 + 1e-9
    inside = points[((points >= 0) & (points <= 1)).all(axis=1)]
    assert len(points) < 2 or {tuple(row) for row in inside.tolist()} <= {tuple(row) for row in pieces.tolist()}
    for at in exits:
        assert np.isclose(at, 0).any() or np.isclose(at, 1).any()


def test_the_window_holds_what_happens_and_not_much_more():
    race = racing("rastrigin", (2.4, 1.6), runners=(Runner("SGD", {"lr": 0.002}),))
    view = np.array(terrain.view(race))
    window = np.array(SURFACES["rastrigin"].window)
    seen = np.concatenate([race.paths["SGD"].points, [(0.0, 0.0), (2.4, 1.6)]])
    inside = np.clip(seen, *window.T)
    assert (inside >= view[:, 0]).all() and (inside <= view[:, 1]).all()
    assert (view[:, 0] >= window[:, 0]).all() and (view[:, 1] <= window[:, 1]).all()
    assert ((view[:, 1] - view[:, 0]) < 0.9 * (window[:, 1] - window[:, 0])).any()


def test_a_start_outside_the_window_is_shown():
    race = racing(start=(-30.0, 9.0))
    (left, _), (_, top) = terrain.view(race)
    assert left <= -30 and top >= 9
    drawing(pictures.paths, race)


@pytest.mark.parametrize("name", [name for name, surface in SURFACES.items() if surface.dimensions == 2])
def test_contours_show_both_the_minimum_and_the_walls(name):
    surface = SURFACES[name]
    x, y = np.meshgrid(*(np.linspace(*side, 81) for side in surface.window))
    heights = surface.value(x, y) - surface.floor
    levels = terrain.levels(heights, bool(surface.minima))
    assert 8 <= len(levels) <= 20
    assert (np.diff(levels) > 0).all() and levels[0] > heights.min() and levels[-1] < heights.max()
    if surface.minima:
        assert np.mean(heights < levels[0]) < 0.2
    else:
        np.testing.assert_allclose(levels, -levels[::-1], atol=1e-12)


# --- paths that end early


def cut(race, length, finite=False):
    for name, path in race.paths.items():
        race = with_path(
            race, name, finite=finite, points=path.points[:length], losses=path.losses[:length],
            samples=path.samples[:length], gradients=path.gradients[: max(length - 1, 0)],
            rates=path.rates[: max(length - 1, 0)],
        )  # fmt: skip
    return race


def far_outside(race):
    path = race.paths["SGD"]
    to_and_fro = np.where(np.arange(len(path.points)) % 2, 1.7e308, -1.7e308)  # the way from one to the next overflows
    return with_path(race, "SGD", points=to_and_fro[:, None] * np.ones_like(path.points))


def one_of_two(race):
    return with_path(cut(race, 0), "Adam", **vars(race.paths["Adam"]))


def no_rates(race):
    return with_path(race, "SGD", rates=np.full_like(race.paths["SGD"].rates, np.nan))


@pytest.mark.parametrize(
    "change, surface",
    [
        pytest.param(lambda race: cut(race, 5), "ravine", id="left the finite numbers"),
        pytest.param(lambda race: cut(race, 2, finite=True), "saddle", id="one step"),
        pytest.param(lambda race: cut(race, 1, finite=True), "ravine", id="no step"),
        pytest.param(lambda race: cut(race, 1, finite=True), "dip", id="no step on a curve"),
        pytest.param(lambda race: cut(race, 0), "ravine", id="no finite point"),
        pytest.param(lambda race: cut(race, 0), "saddle", id="no finite point without a minimum"),
        pytest.param(lambda race: cut(race, 0), "dip", id="no finite point on a curve"),
        pytest.param(one_of_two, "ravine", id="one has no finite point"),
        pytest.param(no_rates, "ravine", id="no rates"),
        pytest.param(far_outside, "saddle", id="far outside"),
        pytest.param(far_outside, "dip", id="far outside on a curve"),
    ],
)
def test_paths_that_end_early_are_drawn(tmp_path, change, surface):
    start = {"ravine": (-7.0, 2.0), "saddle": (-1.0, 0.1), "dip": (1.5,)}[surface]
    race = change(racing(surface, start, panels=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        drawn = [*pictures.draw(race, tmp_path, formats=("png",)), pictures.animate(race, tmp_path / "a.gif")]
    assert all(file.stat().st_size for picture in drawn for file in picture.files)
    assert image(tmp_path / "a.gif").n_frames <= pictures.frames(race)


def test_a_real_divergence_is_drawn(tmp_path):
    race = racing(start=(-7.0, 2.0), steps=3000, runners=(Runner("SGD", {"lr": 50.0}), "Adam"))
    assert not race.paths["SGD"].finite
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        drawn = pictures.draw(race, tmp_path, formats=("png",))
    assert "SGD leaves the finite numbers" in drawn[0].alt


@pytest.mark.parametrize("surface", ["ravine", "saddle", "beale", "dip"])
def test_a_start_where_the_surface_is_infinite_is_drawn(tmp_path, surface):
    race = racing(surface, (1e200,) * SURFACES[surface].dimensions)
    assert not len(race.paths["SGD"].points)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        pictures.draw(race, tmp_path, formats=("svg",))


def test_names_may_be_anything(tmp_path):
    names = ["_hidden", "$x", "$\\nosuch$", "<b>&", "한글 λ", "start"]
    race = racing(runners=tuple(Runner("SGD", {"lr": 0.1}, name) for name in names), panels=True)
    race = Race(replace(race.scene, title=names[2], headline=lambda race: " ".join(names)), race.paths)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # matplotlib's own font has no Hangul
        warnings.simplefilter("error", UserWarning, append=True)
        pictures.draw(race, tmp_path, formats=("svg",))
        pictures.animate(race, tmp_path / "a.gif")
    (legend,) = [axes.get_legend() for axes in pictures.losses(race).figure.axes]
    assert sorted(text.get_text() for text in legend.get_texts()) == sorted(names)


# --- the animation


@pytest.mark.parametrize("steps, wanted", [(0, 1), (1, 2), (40, 41), (99, 100)])
def test_short_races_have_a_frame_for_each_step(steps, wanted):
    assert pictures.frames(cut(racing(steps=max(steps, 1)), steps + 1)) == wanted


@pytest.mark.parametrize("steps", [150, 5000])
def test_long_races_have_no_more_than_120_frames(steps):
    shown = animation._shown(racing(steps=steps, runners=("SGD",)))
    assert 60 < len(shown) <= 120
    assert shown[0] == 0 and shown[-1] == steps and (np.diff(shown) > 0).all()


@pytest.mark.parametrize("surface, start", [("ravine", (-7.0, 2.0)), ("dip", (1.5,))])
def test_the_animation_shows_the_paths_grow(tmp_path, surface, start):
    race = racing(surface, start, runners=("SGD", "NAG", "Adagrad", "Adam"), steps=20)
    calls = []
    picture = pictures.animate(race, tmp_path / "made" / "little.gif", lambda: calls.append(1))
    gif = image(picture.files[0])
    assert len(calls) == pictures.frames(race) == gif.n_frames == 21
    assert gif.info["loop"] == 0
    assert picture.files[0].stat().st_size < 150_000  # what does not change from frame to frame is not repeated
    counts = []
    for frame in (0, 10, 20):
        gif.seek(frame)
        pixels = np.asarray(gif.convert("RGB")).astype(int)
        counts.append([_pixels_like(pixels, style.COLORS[name]) for name in ("NAG", "Adagrad", "Adam")])
    assert gif.info["duration"] == 2000  # of the last one
    first, middle, last = np.array(counts)
    assert (middle > first + 20).all() and (last > first + 20).all()
    assert tuple(pixels[-1, -1]) == (255, 255, 255)


def _pixels_like(pixels, color):
    wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(pixels - wanted).max(axis=2) < 40).sum())


# --- portraits


@pytest.mark.parametrize("name", fastopt.OPTIMIZERS)
def test_every_optimizer_has_a_portrait(tmp_path, name):
    file = tmp_path / "made" / f"{name}.svg"
    assert pictures.portrait(name, file) == file
    words = "".join(ElementTree.parse(file).getroot().itertext())
    title = re.search(rf"{name} is (down to a hundredth of the starting height after (\d+) steps|at \d+%)", words)
    assert title, words
    path = portraits._way(name)
    if title[2]:
        low = path.losses < 0.01 * path.losses[0]
        assert low[int(title[2]) :].all() and not low[int(title[2]) - 1]


def test_an_optimizer_that_nobody_told_of_has_a_portrait_too(tmp_path, newcomer):
    file = pictures.portrait(newcomer, tmp_path / "newcomer.png")
    assert file.read_bytes().startswith(PNG)
    portraits._way.cache_clear()


def test_crossings_count_what_can_be_seen():
    path = portraits._way("SGD")
    heights = np.array([2, -1, 0.5, -0.2, 0.01, -0.01, 0.01])
    swinging = replace(path, points=np.stack([heights, heights], axis=1))
    assert portraits._crossings(swinging, 6) == 3
    assert portraits._crossings(swinging, 2) == 2


# --- the page

CONTROLS = "\x00\x08\x0b\x0c\x0e\x1f\x7f\x9f\ud800\udfff\ufffe\uffff"
HOSTILE = f"\"><script>alert(1)</script> & 'x' {CONTROLS} </style> --> <!--"
FINDINGS = (
    Finding("It falls", "notes 1", True, "from 3 to 2"),
    Finding("It rises", "notes 2", False, "from 3 to 2, x < y"),
)
TABLE = Table(
    ("optimizer", "settings", "steps", "settled"), (("SGD", "lr 0.1", "30", "never"), ("Adam", "", "5", "12"))
)


class Reader(HTMLParser):
    """Notes elements, and complains about what is not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text, self.open = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        self.elements.append((tag, dict(attributes)))

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def drawn(folder):
    race = racing(steps=3)
    return [*pictures.draw(race, folder), pictures.animate(race, folder / "little #1.gif")]


def section(name="little", **changes):
    return Section(**{"name": name, "title": f"The {name} one", "story": "A story.", "table": TABLE, **changes})


def written(sections, folder, **changes):
    settings = {"title": "Side by side", "facts": [("seed", "0")], **changes}
    file = page.write(sections, folder / "index.html", **settings)
    return file.read_text(encoding="utf-8")


def test_the_page_needs_nothing_else(folder, drawn):
    (folder / "little.csv").write_text("x\n")
    sections = [section(findings=FINDINGS, pictures=tuple(drawn), files=(folder / "little.csv",)), section("Little!")]
    text = written(sections, folder)
    read = Reader(text)
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in read.elements}
    assert "@import" not in text and "url(" not in text and "http:" not in text and "https:" not in text
    images = read.all("img")
    assert [one["src"].split(",")[0] for one in images] == ["data:image/svg+xml;base64"] * 3 + ["data:image/gif;base64"]
    assert all(one["alt"] for one in images)
    ids = [attributes["id"] for _, attributes in read.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [one["href"] for one in read.all("a")]
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
    files = [unquote(link) for link in links if not link.startswith("#")]
    assert len(files) == 2 * 3 + 1 + 1 and all((folder / file).is_file() for file in files)
    levels = [int(tag[1]) for tag, _ in read.elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1 and levels.count(1) == 1 and max(np.diff(levels)) <= 1


def test_the_page_is_strict_xml_in_english(folder, drawn):
    text = written([section(findings=FINDINGS, pictures=tuple(drawn))], folder)
    assert text.startswith("<!DOCTYPE html>\n")
    root = ElementTree.fromstring(text.split("\n", 1)[1])
    assert root.tag == "html" and root.attrib == {"lang": "en"}
    assert [child.tag for child in root] == ["head", "body"]


def test_hostile_text_is_text(folder, drawn):
    picture = Picture(drawn[0].files, HOSTILE, HOSTILE)
    hostile = Section(
        HOSTILE, HOSTILE, HOSTILE, Table((HOSTILE,), ((HOSTILE,),)),
        (Finding(HOSTILE, HOSTILE, True, HOSTILE),), (picture,), (folder / 'a"><b>.csv',),
    )  # fmt: skip
    text = written([hostile, hostile], folder, title=HOSTILE, facts=[(HOSTILE, HOSTILE)])
    ElementTree.fromstring(text.split("\n", 1)[1])
    read = Reader(text)
    assert not read.all("script") and len(read.all("style")) == 1 and not read.all("b")
    clean = HOSTILE.replace(CONTROLS, "\ufffd" * len(CONTROLS))
    assert read.all("img")[0]["alt"] == clean
    # Title and heading, a fact's name and value; for each section: contents, claim and link in the summary, heading,
    # story, claim with source and figures, caption, table head and cell.
    assert "".join(read.text).count(clean) == 4 + 2 * 11


def test_findings_are_marked_in_words_and_summed_up(tmp_path):
    text = " ".join("".join(Reader(written([section(findings=FINDINGS)], tmp_path)).text).split())
    assert "1 hold \u2713 It falls (The little one) 1 do not hold here \u2717 It rises (The little one)" in text
    assert "\u2713 holds: It falls (notes 1) from 3 to 2" in text
    assert "\u2717 does not hold here: It rises (notes 2) from 3 to 2, x < y" in text


def test_a_finding_that_cannot_be_told_is_neither_yes_nor_no(tmp_path):
    text = written([section(findings=(Finding("It stays", "notes 3", None, "3 and 3"),))], tmp_path)
    assert '<li class="open">' in text and 'class="yes"' not in text and 'class="no"' not in text
    words = " ".join("".join(Reader(text).text).split())
    assert "1 cannot be told ? It stays" in words and "? cannot tell: It stays (notes 3) 3 and 3" in words


def test_without_findings_there_is_no_summary(tmp_path):
    assert "Findings" not in "".join(Reader(written([section()], tmp_path)).text)


def test_numbers_stand_to_the_right(tmp_path):
    assert report.numbers(TABLE) == [False, False, True, True]
    read = Reader(written([section()], tmp_path))
    assert [cell.get("class") for cell in read.all("th")] == [None, None, "number", "number"]
    assert [cell.get("class") for cell in read.all("td")] == [None, None, "number", "number"] * 2


def test_of_a_large_drawing_the_page_holds_the_png(tmp_path):
    def shown(svg_bytes, *suffixes):
        for suffix in suffixes:
            (tmp_path / f"a{suffix}").write_bytes(b" " * svg_bytes)
        return page._shown(Picture(tuple(tmp_path / f"a{suffix}" for suffix in suffixes), "", "")).suffix

    assert shown(1000, ".png", ".svg") == ".svg"
    assert shown(10**6, ".png", ".svg") == ".png"
    assert shown(10**6, ".svg") == ".svg"
    assert shown(10, ".png") == ".png"


def test_a_page_of_nothing(tmp_path):
    assert Reader(written([], tmp_path, facts=())).all("h1")
    assert Reader(written([section(table=Table((), ()), story="")], tmp_path)).all("table") == []


def test_every_text_keeps_its_contrast():
    """At least 4.5 to 1 on white for every colour of text in the page's style."""
    colors = re.findall(r"(?<![-\w])color: (#[0-9a-f]{3,6})", page.STYLE)
    assert len(colors) >= 4
    for color in colors:
        six = color if len(color) == 7 else "#" + "".join(2 * digit for digit in color[1:])
        luminance = ((lightness(six) + 16) / 116) ** 3
        assert 1.05 / (luminance + 0.05) > 4.5, color


# --- text


def test_as_text_lines_the_columns_up():
    assert report.as_text(TABLE) == (
        "optimizer  settings  steps  settled\nSGD        lr 0.1       30    never\nAdam                     5       12"
    )


def test_paths_in_windows_folders_are_links(tmp_path):
    nested = tmp_path / "a b" / "c%d.csv"
    assert page._link(nested, tmp_path, "c") == '<a href="a%20b/c%25d.csv">c</a>'
    assert Path(nested).name == "c%d.csv"


def test_a_noisy_curve_is_drawn_as_a_running_mean():
    assert pictures.smoothed(np.array([4.0, 2.0, 0.0, 6.0]), 2).tolist() == [3.0, 1.0, 3.0]
    assert pictures.smoothed(np.array([4.0, 2.0]), 5).tolist() == [3.0]
    assert pictures.smoothed(np.array([4.0, 2.0]), 1).tolist() == [4.0, 2.0]
    assert pictures.smoothed(np.array([]), 3).size == 0
