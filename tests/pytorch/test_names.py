"""The names of fastopt.torch: what it forwards to torch.optim, and how tools find its classes."""

from __future__ import annotations

import ast
import copy
import inspect
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path

import pytest
from support import optimizer_of

torch = pytest.importorskip("torch")

import fastopt.torch as ft  # noqa: E402

TWINS = [name for name in ft.__all__ if name in torch.optim.__all__]


def run(program):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- import fastopt.torch as optim


@pytest.mark.parametrize("name", torch.optim.__all__)
def test_every_name_of_torch_optim_is_there(name):
    ours = getattr(ft, name)
    if name in ft.__all__:
        assert ours.__module__ == "fastopt.torch" and issubclass(ours, getattr(torch.optim, name))
    else:
        assert ours is getattr(torch.optim, name)


def test_a_tutorial_runs_with_one_import_changed():
    run("""
import torch
import fastopt.torch as optim
from fastopt.torch import LBFGS, Optimizer, lr_scheduler

model = torch.nn.Linear(3, 1)
opt = optim.AdamW(model.parameters(), lr=0.1)
schedule = optim.lr_scheduler.StepLR(opt, 1)
averaged = optim.swa_utils.AveragedModel(model)
for _ in range(2):
    model(torch.ones(3)).sum().backward()
    opt.step()
    schedule.step()
    averaged.update_parameters(model)
assert isinstance(opt, optim.Optimizer) and Optimizer is torch.optim.Optimizer
assert LBFGS is torch.optim.LBFGS and lr_scheduler is torch.optim.lr_scheduler
assert abs(opt.param_groups[0]["lr"] - 0.001) < 1e-12
""")


@pytest.mark.parametrize("module", ["lr_scheduler", "optimizer", "swa_utils"])
@pytest.mark.parametrize("program", ["import fastopt.torch.{0}", "from fastopt.torch.{0} import *"])
def test_modules_without_optimizers_can_be_imported(module, program):
    run(f"{program.format(module)}; import sys, torch.optim.{module} as m; "
        f"assert sys.modules['fastopt.torch.{module}'] is m")  # fmt: skip


def test_modules_that_hold_a_class_of_pytorch_cannot():
    with pytest.raises(ModuleNotFoundError, match="fastopt.torch.adamw"):
        import_module("fastopt.torch.adamw")


def test_a_star_import_brings_the_classes_alone():
    program = "before = {*globals(), 'before'}; from fastopt.torch import *; print(*sorted({*globals()} - before))"
    assert run(program).split() == sorted(ft.__all__)


def test_completion_offers_what_is_meant_to_be_used():
    shown = {name for name in dir(ft) if not name.startswith("__")}
    own = {"install", "installed", "uninstall", "clip_grad_norm_", "clip_grad_value_"}
    assert shown == {*ft.__all__, *torch.optim.__all__, *own}
    assert {"__name__", "__all__", "__doc__", "__file__"} <= {*dir(ft)}


@pytest.mark.parametrize("name", ["AdamZ", "_multi_tensor", "__path__", "__wrapped__"])
def test_an_unknown_name_is_an_error_with_the_name_of_the_module(name):
    with pytest.raises(AttributeError, match=f"'fastopt.torch' has no attribute '{name}'") as caught:
        getattr(ft, name)
    assert caught.value.name == name and caught.value.obj is ft


def test_type_checkers_are_told_of_every_forwarded_name():
    tree = ast.parse(Path(ft.__file__).read_text("utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    told = {alias.asname for node in block.body for alias in node.names}
    assert told == {*torch.optim.__all__} - {*ft.__all__}


# --- How tools find the classes


def test_importing_fastopt_leaves_the_short_names_of_pytorch_unambiguous():
    """By jsonargparse's rule: every subclass by its shortest path, without those whose path has an underscore."""

    def classes(cls):
        return {cls}.union(*map(classes, cls.__subclasses__()))

    paths = []
    for cls in classes(torch.optim.Optimizer):
        parts = cls.__module__.split(".")
        prefixes = [".".join(parts[: k + 1]) for k in range(len(parts))]
        found = [path for path in prefixes if getattr(import_module(path), cls.__qualname__, None) is cls]
        if found and cls.__module__.startswith(("torch.optim", "fastopt")):
            paths.append(f"{found[0]}.{cls.__qualname__}")
    public = [path for path in paths if "._" not in path]
    counts = Counter(path.rpartition(".")[2] for path in public)
    assert {name: counts[name] for name in TWINS} == dict.fromkeys(TWINS, 1)


@pytest.mark.parametrize("name", ft.__all__)
def test_a_class_is_found_by_its_module_and_its_qualified_name(name):
    cls = getattr(ft, name)
    assert cls.__name__ == name and cls.__module__ == "fastopt.torch"
    assert getattr(ft, cls.__qualname__) is cls


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", ft.__all__)
def test_pickles_name_fastopt_torch(name, protocol):
    cls = getattr(ft, name)
    opt = optimizer_of(cls)
    written = pickle.dumps(opt, protocol)
    assert b"fastopt.torch" in written
    assert type(pickle.loads(written)) is type(copy.deepcopy(opt)) is cls
    assert pickle.loads(pickle.dumps(cls, protocol)) is cls


OURS = (
    "n_threads", "flush_subnormal", "fallback", "clip_norm", "norm_type", "clip_group", "clip_value", "clip_norm_each",
    "ema_decay", "ema_start", "zero_grads", "state_dtype", "split", "rounding", "seed",
    "mirrors",
)  # fmt: skip
"""The arguments that are not PyTorch's."""


def shown_to_checkers(name):
    """The arguments of the constructor that only type checkers see: name, whether by name only, default."""
    classes = {node.name: node for node in ast.parse(Path(ft.__file__).read_text("utf-8")).body
               if isinstance(node, ast.ClassDef)}  # fmt: skip
    (block,) = (node for node in classes[name].body if isinstance(node, ast.If))
    taken = block.body[0].args
    defaults = [inspect.Parameter.empty] * (len(taken.args) - len(taken.defaults)) + taken.defaults
    both = [(arg, False, value) for arg, value in zip(taken.args, defaults, strict=True)][1:]
    both += [(arg, True, value) for arg, value in zip(taken.kwonlyargs, taken.kw_defaults, strict=True)]
    return [(arg.arg, by_name, ast.literal_eval(value) if isinstance(value, ast.AST) else value)
            for arg, by_name, value in both]  # fmt: skip


@pytest.mark.parametrize("name", ft.__all__)
def test_signatures_are_real(name):
    cls = getattr(ft, name)
    parameters = inspect.signature(cls).parameters
    assert next(iter(parameters)) == "params" and tuple(parameters)[-len(OURS) :] == OURS
    assert not any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters.values())
    if name in TWINS:
        stock = inspect.signature(getattr(torch.optim, name)).parameters
        assert [*parameters.values()][: -len(OURS)] == [*stock.values()]
    assert shown_to_checkers(name) == [(p.name, p.kind is p.KEYWORD_ONLY, p.default) for p in parameters.values()]
    # jsonargparse reads the constructor itself; what a callable is given comes first.
    assert [*inspect.signature(cls.__init__).parameters][:2] == ["self", "params"]


@pytest.mark.parametrize(
    ("arguments", "path", "options"),
    [
        (["--optimizer=Adam"], "torch.optim.Adam", {"lr": 0.001}),
        (["--optimizer=fastopt.torch.AdamW", "--optimizer.lr=0.5"], "fastopt.torch.AdamW", {"lr": 0.5}),
        (["--optimizer=fastopt.torch.SGD", "--optimizer.n_threads=2"], "fastopt.torch.SGD", {"n_threads": 2}),
        (["--optimizer=Lion", "--optimizer.betas=[0.8, 0.9]"], "fastopt.torch.Lion", {"betas": (0.8, 0.9)}),
    ],
)
@pytest.mark.parametrize("kind", ["class", "callable"])
def test_jsonargparse_builds_the_class_that_is_named(kind, arguments, path, options):
    jsonargparse = pytest.importorskip("jsonargparse")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    if kind == "class":
        parser.add_subclass_arguments(torch.optim.Optimizer, "optimizer", skip={"params"}, instantiate=False)
    else:
        parser.add_argument("--optimizer", type=Callable[[Iterable], torch.optim.Optimizer])
    config = parser.parse_args(arguments)
    assert "params" not in config.optimizer.init_args
    params = [torch.nn.Parameter(torch.ones(3))]
    cls = getattr(import_module(path.rpartition(".")[0]), path.rpartition(".")[2])
    if kind == "class":
        module, _, name = config.optimizer.class_path.rpartition(".")
        opt = getattr(import_module(module), name)(params, **vars(config.optimizer.init_args))
    else:
        opt = parser.instantiate(config).optimizer(params)
    assert type(opt) is cls
    settings = {**opt.defaults, **getattr(opt, "_settings", {})}
    assert {key: settings[key] for key in options} == options


# --- What a class may be combined with


def test_a_class_may_have_abstract_and_generic_bases():
    import abc
    from typing import Generic, TypeVar

    class Base(ft.Adam, abc.ABC):
        @abc.abstractmethod
        def name(self): ...

    class Own(Base, Generic[TypeVar("T")]):
        def name(self):
            return "own"

    with pytest.raises(TypeError, match="abstract"):
        optimizer_of(Base)
    opt = optimizer_of(Own)
    assert isinstance(opt, Base) and isinstance(opt, ft.Adam) and isinstance(opt, torch.optim.Adam)
    assert not isinstance(optimizer_of(torch.optim.Adam), ft.Adam)
