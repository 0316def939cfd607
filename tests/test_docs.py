"""The documentation: nothing is left out, the code in the pages runs, the links lead somewhere.

``make docs`` checks the same and more on the built pages; this needs no Sphinx.
"""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from support import FENCE, README, build, python_blocks, readme_blocks, runs_when_pasted

import fastopt
from fastopt import schedules
from fastopt.declare import arrays_of

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
if not (DOCS / "conf.py").exists():
    pytest.skip("the documentation is not beside the tests", allow_module_level=True)


sys.path.insert(0, str(DOCS / "_ext"))
library, pages = importlib.import_module("library"), importlib.import_module("pages")
sys.path.remove(str(DOCS / "_ext"))

PAGES = sorted(path for path in DOCS.rglob("*.md") if not {"_build", "_generated"} & set(path.parts))
OTHERS = [ROOT / name for name in ("README.md", "SECURITY.md", "CHANGELOG.md", "CONTRIBUTING.md", "examples/README.md")]
every_optimizer = pytest.mark.parametrize("cls", fastopt.OPTIMIZERS.values(), ids=lambda cls: cls.__name__)


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# --- Nothing is left out


GENERATED = {
    "optimizers/index.md": ("optimizer-index", lambda: pages.index() + pages.contents()),
    "choosing.md": ("optimizer-families", pages.families),
    "genealogy.md": ("genealogy-table", pages.genealogy),
    "conventions.md": ("convention-table", library.conventions),
}
"""Pages that name every optimizer -> the directive that writes the names, and what it writes."""


def test_every_optimizer_has_a_page():
    for name in fastopt.OPTIMIZERS:
        pages.page(name)  # raises ValueError: docs/optimizers/NAME.md is missing, or lacks a line of its header


def test_what_combines_is_what_is_meant_to():
    """The table of half_precision.md is made by taking steps: a cell that changes is a promise that changes."""
    narrow = {"float32", "bfloat16, `split`", "bfloat16, stochastic", "bfloat16, nearest"}
    for parameters in library.STORED:
        for other in library.COMBINED:
            want = "yes" if parameters in narrow else "`DTypeError`"
            if parameters == "bfloat16, nothing said":
                want = "`HyperparameterError`"
            if parameters == "float64" and other in ("clipping", "`ema_decay`", "`zero_grads`", "`nonfinite`"):
                want = "yes"
            assert library.combined(parameters, other) == want, (parameters, other)


def test_every_state_is_in_the_table_of_narrow_state():
    table = library.narrowed()
    for name, cls in fastopt.OPTIMIZERS.items():
        for slot in arrays_of(cls):
            assert f"| {name} | `{slot.name}`" in table


def with_page() -> list[str]:
    return [name for name in fastopt.OPTIMIZERS if (DOCS / "optimizers" / f"{name.lower()}.md").exists()]


def complete() -> bool:
    try:
        return bool(pages.pages())
    except ValueError:
        return False


needs_all_pages = pytest.mark.skipif(not complete(), reason="test_every_optimizer_has_a_page says what is missing")


@pytest.mark.parametrize("name", with_page())
def test_the_page_of_an_optimizer_has_all_parts(name):
    text = (DOCS / "optimizers" / f"{name.lower()}.md").read_text("utf-8")
    for part in ("autoclass:: ", "{optimizer-options} ", "{optimizer-state} ", "{drawing} portrait-"):
        assert re.search(rf"{re.escape(part)}{name}$", text, re.M), part
    assert f"# {name}\n" in text


@needs_all_pages
@pytest.mark.parametrize("page", GENERATED)
def test_every_optimizer_is_on_the_pages_that_list_them(page):
    directive, write = GENERATED[page]
    text = (DOCS / page).read_text("utf-8")
    assert f"```{{{directive}}}\n" in text
    for name in fastopt.OPTIMIZERS:
        assert re.search(rf"\[{name}\]\((optimizers/)?{name.lower()}\.md\)", write()), name
    assert re.findall(r"^([a-z]+)$", pages.contents(), re.M) == [name.lower() for name in fastopt.OPTIMIZERS]


@needs_all_pages
def test_every_optimizer_is_in_the_options_and_in_the_family_tree():
    text = (DOCS / "conventions.md").read_text("utf-8")
    assert "```{all-options}\n" in text and "```{own-options}\n" in text
    tree = [pages.FIRST, *pages.pages()]
    places = pages.places(tree)
    assert {*fastopt.OPTIMIZERS} < places.keys() and len(set(places.values())) == len(places)
    for member in tree:
        assert all(places[parent][1] < places[member.name][1] for parent in member.parents), member.name
        assert len(member.idea) <= 18 and re.search(rf"\b{member.name}\b", pages.descent())


@pytest.mark.parametrize("text, said", [
    ("# Adam\n", "header of these lines: short, year, by"), ("---\nshort: a\nyear: 1\n---\n", "header of these lines"),
    ("{}family: none\nparents: SGD\n---\n", "family has to be one of"),
    ("{}family: both\nparents: SGDD\n---\n", "parents has 'SGDD', which is no optimizer"), (None, "adam.md is missing"),
])  # fmt: skip
def test_what_is_wrong_with_a_header_is_said(text, said, tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "FOLDER", tmp_path)
    if text is not None:
        text = text.replace("{}", "---\nshort: a\nyear: 1\nby: a\nnew: b\nidea: c\n")
        (tmp_path / "adam.md").write_text(text, "utf-8")
    with pytest.raises(ValueError, match=said):
        pages.page("Adam")


@needs_all_pages
def test_a_full_row_of_the_family_tree_gets_wider_and_then_goes_on_below():
    many = [pages.AMSGRAD._replace(name=f"A{k}", parents=("Adam",)) for k in range(9)]
    places = pages.places([*many, *pages.pages(), pages.FIRST])
    assert len(set(places.values())) == len(places) == len(many) + len(fastopt.OPTIMIZERS) + 1
    assert max(x for x, _ in places.values()) == pages.MOST_COLUMNS - 0.5
    with pytest.raises(ValueError, match="their own ancestors: A and B"):
        pages.places([many[0]._replace(name=a, parents=(b,)) for a, b in ("AB", "BA")])


def test_every_schedule_is_drawn():
    fences = FENCE.findall((DOCS / "schedules.md").read_text("utf-8"))
    drawn = " ".join(body for kind, body in fences if kind == "{schedules}")
    assert not [name for name in schedules.__all__ if name != "Schedule" and f"{name}(" not in drawn]


def test_every_command_shows_its_help():
    page = (DOCS / "command_line.md").read_text("utf-8")
    assert not [name for name in ("fastopt", *library.commands()) if f"{{command-help}} {name}\n" not in page]


def test_every_public_name_is_in_the_reference():
    """As the sources ask for it; the build looks at what came out, members of classes included."""
    text = "\n".join(path.read_text("utf-8") for path in [*DOCS.glob("api/*.rst"), *DOCS.glob("optimizers/*.md")])
    modules = set(re.findall(r"^\.\. automodule:: (\S+)\n   :members:$", text, re.M))
    single = set(re.findall(r"^\.\. auto(?:class|exception|function|data):: (\w+)$", text, re.M))
    missing = {
        f"{path}.{name}"
        for path in library.MODULES if path not in modules
        for name in set(library.exported(importlib.import_module(path))) - single
    }  # fmt: skip
    without_page = {f"fastopt.{name}" for name in fastopt.OPTIMIZERS} - {f"fastopt.{name}" for name in with_page()}
    assert not missing - modules - without_page  # test_every_optimizer_has_a_page says it of these
    assert ".. torch-classes::" in text
    assert not [name for name in library.ADAPTERS if f".. adapter:: {name}\n" not in text]


@pytest.mark.parametrize("name", library.ADAPTERS)
def test_the_reference_of_an_adapter_is_what_it_says_of_itself(name):
    (_, _, text), *entries = library.adapter_entries(name)
    shown = {signature.partition("(")[0] for kind, signature, text in entries if text and kind != "method"}
    assert shown == {*library.exported_by(library.torch_module(f"fastopt.{name}"))} and text
    needed = {"thinc": "thinc", "sklearn": "sklearn", "scipy": "scipy", "keras": "keras"}[name]
    if importlib.util.find_spec(needed) is None:
        return
    os.environ.setdefault("KERAS_BACKEND", "torch")
    module = importlib.import_module(f"fastopt.{name}")
    assert inspect.getdoc(module) == text and shown <= {*module.__all__}


# --- What is taken from the library is right


def cells(table: str) -> list[list[str]]:
    """A table in Markdown, row by row."""
    lines = [line.strip("| ").split("|") for line in table.split("\n")]
    return [[cell.strip(" *").strip("`") for cell in line] for line in (lines[0], *lines[2:])]


@every_optimizer
def test_the_defaults_shown_are_those_of_the_optimizer(cls):
    heads, *rows = cells(library.options(cls))
    assert [head.strip('"') for head in heads[1:]] == list(cls.conventions)
    for column, convention in enumerate(cls.conventions, 1):
        shown = {row[0]: row[column] for row in rows}
        needed = {key: 0.125 for key, value in shown.items() if value == "give one"}
        assert set(needed) == {key for key, value in cls.conventions[convention].defaults.items() if value is None}
        made = cls(np.zeros(1), convention=convention, **needed).defaults
        for key in cls.hyperparameters:
            if shown[key] not in ("give one", library.NONE):
                assert shown[key].removeprefix("always ") == library.number(made[key]), (convention, key)
        decays = {key for key, value in shown.items() if key.startswith("decoupled") and value != library.NONE}
        assert decays == {f"decoupled_weight_decay={choice}" for choice in cls.conventions[convention].decay}


@every_optimizer
def test_the_state_shown_is_that_of_the_optimizer(cls):
    _, *rows = cells(library.state(cls))
    for convention, offered in cls.conventions.items():
        always = {under(names, convention) for names, _, when in rows if when.startswith("always")} - {None}
        plain = {"momentum": 0.0, "nesterov": False} if "momentum" in offered.defaults else {}
        plain = {key: plain[key] for key in plain if key in offered.defaults and arrays_of(cls, optional=True)}
        assert always == set(build(cls, np.zeros(1), convention, **plain).state[0])
        for names, _, when in rows:
            if when.startswith("always"):
                continue
            assert when.startswith("with ")
            for option in re.findall(r"\w+", when.removeprefix("with ")):
                if option in offered.defaults:
                    value = True if isinstance(offered.defaults[option], bool) else 0.5
                    made = build(cls, np.zeros(1), convention, **{option: value})
                    made.step(np.ones(1))
                    assert under(names, convention) in made.state[0], (names, option)


def under(names: str, convention: str) -> str | None:
    """What the state called `a` (torch, optax); `b` (keras) is called under a convention."""
    for part in names.split("; "):
        name, where = re.fullmatch(r"`?(\w+)`?(?: \((.*)\))?", part).groups()
        if where is None or convention in where.split(", "):
            return None if name == "none" else name
    raise AssertionError(f"nothing of {convention} in {names!r}")


def test_the_table_of_meanings_has_every_pair_of_names_once():
    _, *rows = cells(library.meanings())
    assert len(rows) == len({tuple(row[:3]) for row in rows}) == 2 + 2 + 2 + 2 + 4
    assert {row[0]: row[3].split(":")[0] for row in rows} == {
        "SGD": "converted", "RMSprop": "converted", "Adam": "refused", "Adamax": "refused", "NAdam": "refused",
    }  # fmt: skip


def test_the_signatures_of_the_torch_classes_are_right():
    pytest.importorskip("torch")
    module = importlib.import_module("fastopt.torch")
    assert set(library.torch_names()) == set(module.__all__)
    for name in library.torch_names():
        parameters = inspect.signature(getattr(module, name)).parameters
        by_position = [key for key, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
        shown = library.torch_defaults(name)
        assert by_position[: len(shown) + 1] == ["params", *shown], name
        for key, value in shown.items():
            assert float(np.sum(parameters[key].default)) == float(np.sum(value)), (name, key)
        assert {"n_threads", "flush_subnormal", "fallback"} <= parameters.keys()
        assert library.torch_docstrings()[name] == inspect.getdoc(getattr(module, name))


def test_the_functions_of_the_torch_module_are_in_the_reference():
    pytest.importorskip("torch")
    module = importlib.import_module("fastopt.torch")
    assert {*library.torch_functions()} == {name for name in dir(module) if inspect.isfunction(vars(module).get(name))
                                          and not name.startswith("_")}  # fmt: skip
    for name, (signature, text) in library.torch_functions().items():
        function = getattr(module, name)
        shown = ast.parse(f"def {signature}: ...").body[0].args
        parameters = [*shown.args, *([shown.vararg] if shown.vararg else [])]
        assert [p.arg for p in parameters] == [*inspect.signature(function).parameters]
        assert signature.startswith(f"{name}(") and text == inspect.getdoc(function)
        assert f"fastopt.torch.{name}" in library.public_names()


# --- The code in the pages


def code(path: Path) -> list[str]:
    return python_blocks(path.read_text("utf-8"))


def page_name(path: Path) -> str:
    return path.relative_to(DOCS).with_suffix("").as_posix()


RUN = [path for path in PAGES if page_name(path) not in library.NOT_RUN and code(path)]


@pytest.mark.parametrize("path", RUN, ids=named)
def test_the_code_of_a_page_runs(path):
    run_page(path)


def test_the_code_for_pytorch_runs():
    pytest.importorskip("torch")
    run_page(DOCS / "pytorch.md")


def run_page(path: Path) -> None:
    """From top to bottom, in one namespace: programs as they are, dialogues with their answers."""
    names: dict[str, object] = {}
    for k, block in enumerate(code(path)):
        if block.startswith(">>>"):
            test = doctest.DocTestParser().get_doctest(block, names, f"{named(path)}, block {k}", None, None)
            test.globs = names  # the parser copies them
            runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
            report: list[str] = []
            runner.run(test, out=report.append, clear_globs=False)
            assert not runner.failures, "".join(report)
        else:
            exec(compile(block, f"{named(path)}, block {k}", "exec"), names)


def test_blocks_of_readme_say_what_they_are():
    assert {kind for kind, _ in FENCE.findall(README.read_text("utf-8"))} == {"python", "console"}


@pytest.mark.parametrize("block", readme_blocks(torch=False))
def test_each_block_of_readme_runs_when_pasted(block, tmp_path):
    """By itself; those with PyTorch are run in tests/pytorch."""
    printed = runs_when_pasted(readme_blocks(torch=False)[block], tmp_path)
    for shown in re.findall(r"print\(.*\) +# (.*)", readme_blocks(torch=False)[block]):
        assert shown in printed


def test_pages_that_do_not_run_are_pages():
    assert {page_name(path) for path in PAGES if code(path)} >= {*library.NOT_RUN}
    assert len(RUN) >= 8


# --- Links


def anchors(path: Path) -> set[str]:
    """The anchors that headings get, here and on the pages of a forge."""
    text = FENCE.sub("", path.read_text("utf-8"))
    heads = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("path", [*PAGES, *(path for path in OTHERS if path.exists())], ids=named)
def test_relative_links_lead_somewhere(path):
    text = re.sub(r"`[^`\n]*`", "", FENCE.sub("", path.read_text("utf-8")))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://|mailto:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert not file.startswith("/") and target.is_relative_to(ROOT.resolve()), link
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def example_files() -> list[tuple[str, str]]:
    """The example of CONTRIBUTING: the file of each block, and the block."""
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    part = text[text.index("### An example: AdaBelief") : text.index("### What is not said elsewhere")]
    return re.findall(r"^`([^`]+)`:\n\n```\w+\n(.*?)\n```$", part, re.M | re.S)


@pytest.mark.parametrize(("path", "block"), example_files(), ids=lambda x: x if "/" in x and "\n" not in x else "")
def test_the_example_of_contributing_is_what_the_sources_have(path, block):
    source = (ROOT / path).read_text("utf-8")
    at = 0
    for piece in re.split(r"^ *…\n", block, flags=re.M):  # which stands for what is left out
        found = source.find(piece.rstrip("\n"), at)
        assert found >= 0, f"{path} does not have:\n{piece}"
        at = found + len(piece.rstrip("\n"))


def test_the_example_of_contributing_is_whole():
    files = {path for path, _ in example_files()}
    assert files == {
        "fastopt/kernels/rules.pxi", "fastopt/reference.py", "fastopt/adabelief.py", "fastopt/__init__.py",
        "tests/facts.py", "tests/test_paper.py", "tests/peers/oracles.py",
    }  # fmt: skip
