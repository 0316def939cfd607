"""What fastopt says of its types: true when it runs, and what mypy and pyright make of it."""

from __future__ import annotations

import ast
import builtins
import doctest
import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
import typing
from pathlib import Path

import numpy as np
import pytest
from support import README, python_blocks

import fastopt
from fastopt import engine, functional
from fastopt.declare import FLAGS
from fastopt.optimizer import Optimizer
from fastopt.typing import CommonOptions, Nonfinite

ROOT = Path(__file__).resolve().parents[1]
FILES = Path(__file__).parent / "typing"
STUBS = ROOT / "tools" / "write_stubs.py"
TOOLS = ("mypy", "pyright")
every_optimizer = pytest.mark.parametrize("cls", fastopt.OPTIMIZERS.values(), ids=lambda cls: cls.__name__)


# --- Signatures


def parameters(function) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(function).parameters)


@every_optimizer
def test_the_signature_of_a_class_is_what_it_declares(cls):
    shown = parameters(cls)
    assert list(shown) == ["params", *cls.hyperparameters, "convention", *CommonOptions.__annotations__]
    common = parameters(Optimizer.__init__)
    for key, parameter in shown.items():
        assert parameter.kind is not parameter.VAR_KEYWORD
        if key in cls.hyperparameters:
            kind = "bool" if key in FLAGS else "Hyperparameter" if key in engine.SCHEDULABLE else "Number"
            kind = "Betas" if key == "betas" else "Pair" if key in engine.PAIRS else kind
            assert parameter.default is None
            assert key == "eps_placement" or parameter.annotation == f"{kind} | None", key
        elif key not in ("params", "convention"):
            assert parameter == common[key]


@every_optimizer
def test_the_words_that_a_constructor_takes_are_those_of_the_class(cls):
    hints = typing.get_type_hints(cls.__init__)
    assert words(hints["convention"]) == list(cls.conventions)
    if "eps_placement" in hints:
        assert words(hints["eps_placement"]) == list(cls.eps_placements)


def words(hint) -> list[str]:
    """Those of Literal[...] | None."""
    (literal,) = (part for part in typing.get_args(hint) if part is not type(None))
    return list(typing.get_args(literal))


def test_the_words_for_nonfinite_are_those_of_the_engine():
    opt = fastopt.SGD(np.ones(3))
    for word in typing.get_args(Nonfinite):
        opt.nonfinite = word
    with pytest.raises(fastopt.HyperparameterError) as caught:
        opt.nonfinite = "misspelt"
    assert re.findall(r"'(\w+)'", str(caught.value))[-3:] == list(typing.get_args(Nonfinite))


def test_the_options_of_every_optimizer_are_those_of_the_base_class():
    taken = parameters(Optimizer.__init__)
    by_name = [key for key, p in taken.items() if p.kind is p.KEYWORD_ONLY and key != "convention"]
    assert sorted(CommonOptions.__annotations__) == sorted(by_name)
    hints, base = typing.get_type_hints(CommonOptions), typing.get_type_hints(Optimizer.__init__)
    assert all(hints[key] == base[key] for key in hints)


def test_a_class_of_a_user_shows_its_own_constructor():
    class Wrapped(fastopt.Adam):
        def __init__(self, params, rate=0.1, **options):
            super().__init__(params, rate, **options)

    class Passing(fastopt.Adam):
        def __init__(self, params, **common: typing.Any):
            super().__init__(params, **common)

    Passing.__init__.__annotations__["common"] = "Unpack[CommonOptions]"
    assert list(parameters(Wrapped)) == ["params", "rate", "options"]
    assert list(parameters(Passing)) == ["params", *CommonOptions.__annotations__]
    assert list(parameters(type("Bare", (fastopt.Adam,), {}))) == list(parameters(fastopt.Adam))


def test_a_class_without_a_constructor_takes_its_hyperparameters_by_name():
    class Plain(fastopt.Optimizer):
        hyperparameters = ("lr", "momentum")
        conventions = {"mine": fastopt.Convention({"lr": 0.1, "momentum": 0.0})}
        slots = (fastopt.Slot("momentum_buffer", optional=True),)
        rule = staticmethod(lambda group, convention: "sgd")

    w = np.ones(3)
    opt = Plain(w, lr=0.5)
    opt.step(np.ones(3))
    assert w.tolist() == [0.5, 0.5, 0.5] and opt.defaults["momentum"] == 0.0
    with pytest.raises(fastopt.UnknownOptionError, match="did you mean 'momentum'"):
        Plain(w, momentun=0.5)


@every_optimizer
def test_the_docstring_names_the_default_of_every_hyperparameter(cls):
    """That of the first convention, where it has one."""
    text = inspect.getdoc(cls) + ("" if cls is not fastopt.AdamW else inspect.getdoc(fastopt.Adam))
    for key, value in next(iter(cls.conventions.values())).defaults.items():
        for part in value if isinstance(value, tuple) else (value,):
            assert any(form in text for form in (str(part), f"{part}", *short(part))), (key, part)


def short(value) -> list[str]:
    """A number as one would type it: 1e-8, not 1e-08, and 0, not 0.0."""
    if not isinstance(value, float):
        return []
    return [f"{value:g}", f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")]


@pytest.mark.skipif(not STUBS.exists(), reason="the sources are not beside the tests")
def test_the_stub_of_the_functions_is_what_the_classes_say():
    spec = importlib.util.spec_from_file_location("write_stubs", STUBS)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert tool.STUB.read_text("utf-8") == tool.text(), "fastopt/functional.pyi is out of date: make stubs"


def test_the_annotations_of_the_functions_can_be_read():
    for name in functional.__all__:
        function = functional.Bound.step if name == "Bound" else getattr(functional, name)
        assert typing.get_type_hints(function).keys() == {*parameters(function), "return"} - {"self"}


# --- Completion

OF_USERS = [
    "add_param_group", "averaged", "averages", "clip_norm", "convention", "copy_grads", "defaults",
    "export_state_dict", "grad_norm",
    "load", "load_state_dict", "n_threads", "nonfinite", "norm_type", "param_groups", "params", "rebind", "save",
    "skipped_steps", "state", "state_dict", "state_factory", "step", "steps",
]  # fmt: skip


def public(names) -> list[str]:
    return [name for name in names if not name.startswith("_")]


@every_optimizer
def test_completion_shows_what_users_need(cls):
    own = ["lookahead"] if cls is fastopt.NAG else []
    assert public(dir(cls(np.ones(3)))) == sorted([*OF_USERS, *own])


def test_completion_shows_what_a_user_has_added():
    class Mine(fastopt.Adam):
        def decayed(self):
            """A method."""

    opt = Mine(np.ones(3))
    opt.note = "of a user"
    assert {"decayed", "note"} <= {*dir(opt)} and "decayed" in dir(Mine)


def test_a_class_may_have_bases_with_a_metaclass_of_their_own():
    class Steps(typing.Protocol):
        def step(self, grads): ...

    class Meta(type):
        pass

    class Mine(fastopt.Adam, Steps):
        pass

    class Other(fastopt.Adam, metaclass=Meta):
        pass

    for cls in (Mine, Other):
        assert isinstance(cls(np.ones(3)), fastopt.Optimizer)


def test_signatures_of_derived_classes():
    class Own(fastopt.Adam):
        def __init__(self, params, n_threads=4, **common: Unpack[CommonOptions]):  # noqa: F821
            super().__init__(params, n_threads=n_threads, **common)

    class Wrapped(fastopt.Adam):
        def __init__(*args, **options):
            fastopt.Adam.__init__(*args, **options)

    class Called(fastopt.Adam):
        def __call__(self, closure):
            return closure()

    own = inspect.signature(Own).parameters
    assert list(own)[:2] == ["params", "n_threads"] and own["n_threads"].default == 4 and "nonfinite" in own
    assert str(inspect.signature(Wrapped)) == "(*args, **options)"
    assert str(inspect.signature(Called(np.ones(3)))) == "(closure)"


def test_completion_on_the_package_shows_its_names_and_no_imports():
    assert public(dir(fastopt)) == sorted([*fastopt.__all__, "typing"])
    assert all(hasattr(fastopt, name) for name in dir(fastopt))


# --- What type checkers say


def marked(file: Path) -> list[int]:
    """The numbers of the lines that have to be refused."""
    lines = file.read_text("utf-8").splitlines()
    return [number for number, line in enumerate(lines, 1) if line.endswith("  # error")]


def test_every_line_that_has_to_be_refused_fails_when_it_is_run():
    lines, wrong = (FILES / "refused.py").read_text("utf-8").splitlines(), marked(FILES / "refused.py")
    names: dict[str, object] = {}
    exec("\n".join(line for number, line in enumerate(lines, 1) if number not in wrong), names)
    passed = []
    for number in wrong:
        try:
            exec(lines[number - 1], names)
        except (TypeError, ValueError, AttributeError) as error:
            assert type(error).__module__.startswith("fastopt") or isinstance(error, (TypeError, AttributeError))
        else:
            passed.append(lines[number - 1])
    assert len(wrong) > 40 and not passed


def test_what_has_to_be_accepted_runs():
    pytest.importorskip("safetensors")
    exec(compile((FILES / "accepted.py").read_text("utf-8"), "accepted.py", "exec"), {"__name__": "accepted"})


def snippets(page: str) -> str:
    """The Python code of a page as one module; names that it leaves to the reader are declared as Any."""
    blocks = python_blocks(page)
    code = "\n".join(doctest.script_from_examples(block) if ">>>" in block else block for block in blocks)
    nodes = list(ast.walk(ast.parse(code)))
    used = {node.id: type(node.ctx) for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    bound = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    bound |= {(a.asname or a.name).split(".")[0] for node in nodes
              if isinstance(node, (ast.Import, ast.ImportFrom)) for a in node.names}  # fmt: skip
    bound |= {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    bound |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    free = sorted(used.keys() - bound - {*dir(builtins)})
    return "from typing import Any\n\n" + "".join(f"{name}: Any = ...\n" for name in free) + "\n" + code


def test_snippets_are_taken_from_a_page_and_checked_as_one_program():
    page = "```python\nimport fastopt\nw = weights()\n```\n```\nno code\n```\n```python\n>>> fastopt.SGD(w)\nSGD\n```"
    assert snippets(page).splitlines()[2:] == ["weights: Any = ...", "", "import fastopt", "w = weights()", "",
                                               "fastopt.SGD(w)", "# Expected:", "## SGD"]  # fmt: skip


@pytest.mark.parametrize("tool", TOOLS)
def test_type_checkers_accept_what_is_right_and_refuse_what_is_wrong(tool, tmp_path):
    """The files of tests/typing, line by line, and the Python code of the README."""
    pytest.importorskip(tool)
    wanted = []
    for file in sorted(FILES.glob("*.py")):
        (tmp_path / file.name).write_text(file.read_text("utf-8"))
        wanted += [(file.name, line) for line in marked(file)]
    (tmp_path / "readme.py").write_text(snippets(README.read_text("utf-8")) if README.exists() else "")
    found = said_by(tool, tmp_path)
    assert not {where: text for where, text in found.items() if where not in wanted}
    assert not {where for where in wanted if where not in found}


def said_by(tool: str, folder: Path) -> dict[tuple[str, int], str]:
    """The errors that a type checker finds in the files of a folder, by file and line."""
    # Where the package is not installed but lies in a checkout.
    place = Path(fastopt.__file__).resolve().parents[1]
    tree = [] if place.name == "site-packages" else [str(place)]
    env = {**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1", "MYPYPATH": os.pathsep.join(tree)}
    if tool == "mypy":
        # Code in a page has no annotations, and uses a name again for something else.
        cache = ROOT / ".mypy_cache" / "typing"
        options = ["--strict", "--output=json", f"--cache-dir={cache}", "--follow-imports=silent",
                   "--allow-redefinition", "--allow-untyped-defs", "--allow-untyped-calls",
                   "--ignore-missing-imports", "."]  # fmt: skip
    else:
        (folder / "pyrightconfig.json").write_text(json.dumps(
            {"typeCheckingMode": "standard", "extraPaths": tree, "reportMissingImports": False,
             "reportMissingModuleSource": False, "reportPossiblyUnboundVariable": False}))  # fmt: skip
        options = ["--outputjson", f"--pythonpath={sys.executable}"]
    done = subprocess.run([sys.executable, "-m", tool, *options], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode in (0, 1) and done.stdout, done.stdout + done.stderr
    if tool == "mypy":
        reports = [json.loads(line) for line in done.stdout.splitlines()]
        found = [(r["file"], r["line"], r["severity"], r["message"]) for r in reports]
    else:
        reports = json.loads(done.stdout)["generalDiagnostics"]
        found = [(r["file"], r["range"]["start"]["line"] + 1, r["severity"], r["message"]) for r in reports]
    errors = {(Path(file).name, line): text for file, line, severity, text in found if severity == "error"}
    return dict(sorted(errors.items()))
