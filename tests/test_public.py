"""What a user sees of the package: names, docstrings, examples, and how little an import does."""

import doctest
import importlib
import inspect
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

import fastopt

MODULES = [
    f"fastopt{x}"
    for x in ("", ".schedules", ".functional", ".reference", ".training", ".preprocessing", ".norms", ".typing")
]
SCHEDULES = [getattr(fastopt.schedules, name) for name in fastopt.schedules.__all__]
WITH_EXAMPLES = [*fastopt.OPTIMIZERS.values(), *SCHEDULES]


def public(module):
    names = getattr(module, "__all__", None) or [
        name for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]  # fmt: skip
    return {name: getattr(module, name) for name in names}


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_is_documented(name):
    missing = []
    for key, value in public(importlib.import_module(name)).items():
        known = {*fastopt.reference.RULES, *fastopt.reference.STAGES}
        rule = name == "fastopt.reference" and (
            key.removesuffix("_scalars") in known or key.partition("_")[2] in fastopt.reference.FORMATS)
        # An alias has its text beside it, for the documentation. Python 3.10 takes Callable[...] for a class.
        alias = name == "fastopt.typing" and not issubclass(type(value), type)
        if not callable(value) or alias or rule or key in ("Array", "State", "Scalars", "X"):
            continue
        if not inspect.getdoc(value):
            missing.append(key)
        if inspect.isclass(value) and value.__module__.startswith("fastopt"):
            missing += [
                f"{key}.{member}" for member, what in vars(value).items()
                if not member.startswith("_") and (inspect.isfunction(what) or isinstance(what, property))
                and not inspect.getdoc(getattr(value, member))
            ]  # fmt: skip
    assert not missing


@pytest.mark.parametrize("cls", fastopt.OPTIMIZERS.values(), ids=lambda c: c.__name__)
def test_the_docstring_of_an_optimizer_names_everything_it_takes_and_keeps(cls):
    text = inspect.getdoc(cls)
    for key in cls.hyperparameters:
        assert key in text, key
    for section in ("Parameters", "Notes", "Examples", "References"):
        assert f"{section}\n---" in text, section
    for slot in cls(np.zeros(1)).state[0]:
        assert slot == "step" or slot in text, slot


def test_the_options_that_all_optimizers_have_are_in_the_docstring_of_the_base_class():
    common = inspect.signature(fastopt.Optimizer.__init__).parameters.values()
    text = inspect.getdoc(fastopt.Optimizer)
    for parameter in common:
        if parameter.kind is parameter.KEYWORD_ONLY:
            assert f"{parameter.name} : " in text
            assert f"``{parameter.name}``" in inspect.getdoc(fastopt.SGD)


@pytest.mark.parametrize("name", sorted({*MODULES, "fastopt._config", *(cls.__module__ for cls in WITH_EXAMPLES)}))
def test_the_examples_in_the_docstrings_are_true(name):
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert failed == 0
    if name not in ("fastopt", "fastopt.typing"):
        assert tried > 0


@pytest.mark.parametrize("cls", WITH_EXAMPLES, ids=lambda cls: cls.__name__)
def test_every_optimizer_and_schedule_has_an_example(cls):
    examples = doctest.DocTestParser().get_examples(vars(cls)["__doc__"])
    assert any(cls.__name__ in example.source for example in examples) or cls is fastopt.schedules.Schedule
    assert sum(bool(example.want) for example in examples) > 0


def test_all_names_of_the_package_can_be_had():
    for name in fastopt.__all__:
        assert getattr(fastopt, name) is not None
    assert set(fastopt.__all__) <= set(dir(fastopt))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = fastopt.no_such_name


def test_an_import_is_silent_and_loads_nothing_but_numpy():
    code = (
        "import os, sys, warnings; import numpy; before = set(sys.modules); env = dict(os.environ);"
        "filters = list(warnings.filters); import fastopt; new = {m.split('.')[0] for m in set(sys.modules) - before};"
        "assert env == dict(os.environ); assert filters == list(warnings.filters);"
        "print(sorted(m for m in new if m in ('torch', 'sklearn', 'matplotlib', 'tqdm', 'scipy', 'threadpoolctl')))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n" and run.stderr == ""


# --- Where nothing was compiled


@pytest.fixture
def in_a_checkout(tmp_path):
    """Runs Python in a folder that has the package without its compiled part; gives what it says on standard error."""
    source = pathlib.Path(fastopt.__file__).parent
    shutil.copytree(source, tmp_path / "fastopt", ignore=shutil.ignore_patterns("*.so", "*.pyd", "__pycache__"))
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONSAFEPATH")}

    def run(*arguments, engine=None):
        if engine is not None:
            (tmp_path / "fastopt" / "engine.py").write_text(engine)
        done = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=60
        )
        assert done.returncode != 0 and done.stdout == ""
        return done.stderr

    run.folder = tmp_path / "fastopt"
    return run


@pytest.mark.parametrize("arguments", [("-c", "import fastopt"), ("-c", "import fastopt.torch"), ("-m", "fastopt")])
def test_without_the_compiled_engine_the_import_says_what_to_do(in_a_checkout, arguments):
    said = in_a_checkout(*arguments)
    assert "circular import" not in said
    assert f"fastopt has no compiled engine for Python {sys.version_info[0]}.{sys.version_info[1]}" in said
    assert str(in_a_checkout.folder) in said
    assert "another folder" in said and "python setup.py build_ext --inplace" in said


@pytest.mark.parametrize("error", ["ImportError('libgomp.so.1: no such file')", "ModuleNotFoundError(name='numpy')"])
def test_an_engine_that_fails_keeps_its_own_error(in_a_checkout, error):
    said = in_a_checkout("-c", "import fastopt", engine=f"raise {error}")
    assert "no compiled engine" not in said and "engine.py" in said
    assert error.partition("(")[0] in said.splitlines()[-1]


# --- Without PyTorch, or with one that will not do


@pytest.mark.parametrize(
    ("torch", "says"),
    [
        (None, 'MissingExtraError: fastopt.torch needs PyTorch: pip install "fastopt[torch]"'),
        ("__version__ = '2.9.1+cpu'", "MissingExtraError: fastopt.torch needs PyTorch 2.10 or newer, not 2.9.1+cpu: "
         'pip install --upgrade "fastopt[torch]"'),
        ("import filelock_of_torch", "ModuleNotFoundError: No module named 'filelock_of_torch'"),
        ("raise ImportError('libtorch.so: no such file')", "ImportError: libtorch.so: no such file"),
    ],
)  # fmt: skip
def test_importing_fastopt_torch_says_what_is_missing(tmp_path, torch, says):
    code = "import sys; "
    if torch is None:
        code += "sys.modules['torch'] = None; "
    else:
        (tmp_path / "torch.py").write_text(torch + "\n")
        code += f"sys.path.insert(0, {str(tmp_path)!r}); "
    done = subprocess.run([sys.executable, "-c", code + "import fastopt.torch"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].removeprefix("fastopt.errors.") == says
