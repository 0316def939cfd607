"""What the pages say of fastopt, taken from fastopt itself. Nothing of Sphinx in here: the tests read it, too."""

from __future__ import annotations

import argparse
import ast
import contextlib
import inspect
import itertools
import os
from collections.abc import Iterable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import fastopt
from fastopt import engine, reference
from fastopt.declare import (
    DECOUPLED,
    DECOUPLED_LAST,
    DECOUPLED_WITHOUT_LR,
    FLAGS,
    L2,
    NEUTRAL,
    arrays_of,
    chosen_rule,
    counts_in_state,
    numbers_of,
    with_defaults,
)
from fastopt.errors import HyperparameterError
from fastopt.optimizer import Optimizer
from fastopt.state import CONVERSIONS, MEANINGS

MODULES = ("fastopt", "fastopt.errors", "fastopt.functional", "fastopt.reference", "fastopt.schedules",
           "fastopt.typing")  # fmt: skip
DECAY = {
    L2: "added to the gradient",
    DECOUPLED: "shrinks first",
    DECOUPLED_WITHOUT_LR: "shrinks first, without lr",
    DECOUPLED_LAST: "shrinks last",
}
LIKE = {"parameter": "like the parameter", "row": "one element a row", "column": "one element a column",
        "one": "one element"}  # fmt: skip
NONE = "–"  # where a library has no such thing
NOT_RUN = {"scaling": "parts of programs that need several processes", "pytorch": "needs PyTorch",
           "frameworks": "run by tests/frameworks",
           **dict.fromkeys(("clients/keras", "clients/recipes", "clients/thinc"), "run by tests/clients")}
"""Pages whose Python code is not run with the others, and why not."""
ADAPTERS = ("thinc", "sklearn", "scipy", "keras")
"""The modules of fastopt that step for another library."""

# --- Tables


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    lines = [list(heads), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: Any) -> str:
    """A default as one would type it: 1e-8, not 1e-08; strings without their quotes."""
    if isinstance(value, tuple):
        return "(" + ", ".join(map(number, value)) + ")"
    if isinstance(value, float):
        short = f"{value:.0e}"
        plain = value == 0 or value != float(short) or 1e-3 <= abs(value) < 1e5
        return (f"{value:g}" if plain else short).replace("e-0", "e-").replace("e+0", "e")
    return str(value)


def default(cls: type[Optimizer], convention: str, key: str) -> str:
    """What a convention makes of an option: its default, what it is fixed to, or that there is none."""
    offered = cls.conventions[convention]
    if key in offered.defaults:
        value = offered.defaults[key]
        return "give one" if value is None else number(value)
    if key in cls.always_offered:
        return number(cls.always_offered[key])
    return f"always {number(offered.fixed[key])}" if key in offered.fixed else NONE


def options(cls: type[Optimizer]) -> str:
    """The options of an optimizer and their defaults, by convention."""
    names = list(cls.conventions)
    rows = [[f"`{key}`", *(default(cls, name, key) for name in names)] for key in cls.hyperparameters]
    decays = [cls.conventions[name].decay for name in names]
    if any(decays):
        for choice in (False, True):
            if any(choice in decay for decay in decays):
                cells = [DECAY[decay[choice]] if choice in decay else NONE for decay in decays]
                cells = [f"{cell} *" if cell != NONE and choice == next(iter(decay)) else cell
                         for cell, decay in zip(cells, decays, strict=True)]  # fmt: skip
                rows.append([f"`decoupled_weight_decay={choice}`", *cells])
    return table(["option", *(f'`"{name}"`' for name in names)], rows)


def brought_by(cls: type[Optimizer], slot: str) -> list[str]:
    """The options that bring a state slot which not every rule of the class has."""
    found = []
    for convention in cls.conventions:
        group = with_defaults(cls, convention, {})
        group["momentum"] = group.get("momentum") and 0.0
        for key in cls.hyperparameters:
            if NEUTRAL.get(key) not in (0, False) or key in found:
                continue
            try:
                _, slots = chosen_rule(cls, {**group, key: True if key in FLAGS else 0.5}, convention)
            except HyperparameterError:  # an option that needs another one
                continue
            if slot in slots:
                found.append(key)
    return found


def state(cls: type[Optimizer]) -> str:
    """The state of an optimizer: slots, shapes, when they are there."""
    counted = "always" if counts_in_state(cls) else "always; not in `state_dict()`, as in PyTorch"
    rows = [["`step`", "one number", counted]]
    rows += [[names(cls, slot.name), "one number", "always"] for slot in numbers_of(cls) if slot.like == "number"]
    for optional in (False, True):
        for slot in arrays_of(cls, optional):
            options = ", ".join(f"`{key}`" for key in brought_by(cls, slot.name)) if optional else ""
            rows.append([names(cls, slot.name), LIKE[slot.like], f"with {options}" if optional else "always"])
    return table(["state", "shape and type", "when"], rows)


def kinds(cls: type[Optimizer], name: str) -> dict[str, list[str]]:
    """What a piece of state is called -> the conventions that call it so; empty: those that do without it."""
    found: dict[str, list[str]] = {}
    options = brought_by(cls, name) if name in {slot.name for slot in arrays_of(cls, True)} else []
    for convention, offered in cls.conventions.items():
        if not options or any(key in offered.defaults for key in options):
            found.setdefault(offered.names.get(name, name), []).append(convention)
    return found


def names(cls: type[Optimizer], name: str) -> str:
    """What a piece of state is called, under which conventions."""
    found = kinds(cls, name)
    if len(found) == 1:
        return f"`{next(iter(found))}`"
    return "; ".join(f"{f'`{key}`' if key else 'none'} ({', '.join(where)})" for key, where in found.items())


def meanings() -> str:
    """State that is not the same under all conventions of an optimizer, and what becomes of it in a load."""
    rows = []
    for title, cls in fastopt.OPTIMIZERS.items():
        for slot in (slot for slot in cls.slots if slot.is_array or slot.like == "number"):
            found = kinds(cls, slot.name)
            for source, target in itertools.permutations(found, 2) if len(found) > 1 else ():
                said = CONVERSIONS.get((source, target), ("refused",))[0]
                if source:
                    rows.append([title, f"`{source}` ({', '.join(found[source])}): {MEANINGS[source]}",
                                 f"`{target}` ({', '.join(found[target])})" if target
                                 else f"none ({', '.join(found[target])})",
                                 said if said == "refused" else f"converted: `{said}`"])  # fmt: skip
    return table(["optimizer", "from", "to", "a load"], rows)


STORED: dict[str, tuple[type, dict[str, Any]]] = {
    "float32": (np.float32, {}),
    "bfloat16, `split`": (np.uint16, {"param_dtype": "bfloat16", "split": True}),
    "bfloat16, stochastic": (np.uint16, {"param_dtype": "bfloat16", "rounding": "stochastic"}),
    "bfloat16, nearest": (np.uint16, {"param_dtype": "bfloat16", "rounding": "nearest"}),
    "bfloat16, nothing said": (np.uint16, {"param_dtype": "bfloat16"}),
    "float64": (np.float64, {}),
    "float16": (np.float16, {}),
}
"""Parameters -> their type, and what is said of them. Arrays of uint16 are bfloat16 that needs no other library."""
COMBINED: dict[str, tuple[type | None, dict[str, Any]]] = {
    "float32 gradients": (np.float32, {}),
    "bfloat16 gradients": (np.uint16, {"grad_dtype": "bfloat16"}),
    "float16 gradients": (np.float16, {}),
    "state `\"bfloat16\"`": (None, {"state_dtype": "bfloat16"}),
    "state `\"8bit\"`": (None, {"state_dtype": "8bit"}),
    "clipping": (None, {"clip_norm": 1.0, "clip_norm_each": 1.0, "clip_value": 1.0}),
    "`ema_decay`": (None, {"ema_decay": 0.9}),
    "`mirrors`": (None, {"mirrors": np.uint16}),
    "`zero_grads`": (None, {"zero_grads": True}),
    "`nonfinite`": (None, {"nonfinite": "skip"}),
}
"""What they are combined with -> the type of the gradients (None: that of the parameters), and the options."""


def combined(parameters: str, other: str) -> str:
    """Whether a step can be taken so: "yes", or the error, found by taking one."""
    (dtype, said), (grad_dtype, options) = STORED[parameters], COMBINED[other]
    p, g = np.zeros(5000, dtype), np.zeros(5000, grad_dtype or dtype)
    options = {**said, **options}
    if "mirrors" in options:
        options["mirrors"] = [np.zeros_like(p, options["mirrors"])]
    try:
        fastopt.AdamW([p], lr=0.1, **options).step([g], grad_scale=2.0)
    except fastopt.FastoptError as error:
        return f"`{type(error).__name__}`"
    return "yes"


def combinations() -> str:
    """What combines with what."""
    rows = ([parameters, *(combined(parameters, other) for other in COMBINED)] for parameters in STORED)
    return table(["parameters", *COMBINED], rows)


NARROWED = {
    "moment": ("nearest", "sign and 7 bits, nearest"), "square": ("stochastic", "8 bits, stochastic"),
    "sign": ("nearest", "float32"), None: ("float32", "float32"),
}  # fmt: skip
"""`Slot.narrow` -> what state_dtype="bfloat16" makes of it, and "8bit"."""


def narrowed() -> str:
    """What becomes of the state of each optimizer."""
    rows = []
    for name, cls in fastopt.OPTIMIZERS.items():
        for slot in arrays_of(cls):
            bfloat16, bits = NARROWED[slot.narrow]
            beside = f" (float32 beside `{slot.wide_beside}`)" if slot.wide_beside else ""
            rows.append([name, f"`{slot.name}`{beside}", bfloat16, bits])
    return table(["optimizer", "state", '`"bfloat16"`', '`"8bit"`'], rows)


def conventions() -> str:
    """Which optimizer exists in which convention."""
    names = list(dict.fromkeys(name for cls in fastopt.OPTIMIZERS.values() for name in cls.conventions))
    rows = []
    for name, cls in fastopt.OPTIMIZERS.items():
        marks = ["default" if key == next(iter(cls.conventions)) else "yes" if key in cls.conventions else NONE
                 for key in names]  # fmt: skip
        rows.append([f"[{name}](optimizers/{name.lower()}.md)", *marks])
    return table(["", *(f'`"{name}"`' for name in names)], rows)


def rules() -> str:
    """The rules of the kernel table: hyperparameters and constants, state arrays, and who steps by them."""
    rows = []
    for name, (hyper, n_states, _) in engine.rules().items():
        if name in reference.RULES:
            rows.append([f"`{name}`", " ".join(f"`{x}`" for x in hyper), str(n_states), used_by(name)])
    return table(["rule", "takes", "state arrays", "used by"], rows)


def used_by(rule: str) -> str:
    """The optimizers that step by a rule under some convention, by default or with options that are switches."""
    found = []
    for name, cls in fastopt.OPTIMIZERS.items():
        for convention in cls.conventions:
            group = with_defaults(cls, convention, {})
            switches = [key for key in ("momentum", "nesterov", "centered", "amsgrad") if key in group]
            for values in itertools.product((0, 1), repeat=len(switches)):
                on = {key: 0.5 * value if key == "momentum" else bool(value)
                      for key, value in zip(switches, values, strict=True)}  # fmt: skip
                with contextlib.suppress(HyperparameterError):
                    if chosen_rule(cls, {**group, **on}, convention)[0] == rule and name not in found:
                        found.append(name)
    return ", ".join(f"[{name}](optimizers/{name.lower()}.md)" for name in found)


# --- The command line


def command_help(command: str) -> str:
    """What ``fastopt COMMAND --help`` prints; the whole program's for "fastopt"."""
    from fastopt.cli import build_parser

    before = {key: os.environ.get(key) for key in ("COLUMNS", "NO_COLOR")}
    os.environ.update(COLUMNS="88", NO_COLOR="1")
    try:
        parser = build_parser()
        return (parser if command == "fastopt" else parsers(parser)[command]).format_help()
    finally:
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})


def parsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers of the commands, by name."""
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return dict(commands.choices)


def commands() -> list[str]:
    """The names of all commands."""
    from fastopt.cli import build_parser

    return list(parsers(build_parser()))


# --- fastopt.torch, without PyTorch: from its source


def torch_module(name: str = "fastopt.torch") -> ast.Module:
    """The syntax tree of fastopt.torch, or of a module that it is made of."""
    spec = find_spec(name)
    assert spec is not None and spec.origin is not None
    return ast.parse(Path(spec.origin).read_text("utf-8"))


def torch_names() -> list[str]:
    """``fastopt.torch.__all__``, in the order of the classes."""
    named = {
        target.id: node.value
        for node in torch_module().body if isinstance(node, ast.Assign)
        for target in node.targets if isinstance(target, ast.Name)
    }  # fmt: skip
    exported = ast.literal_eval(named["__all__"])
    return [node.name for node in torch_module().body if isinstance(node, ast.ClassDef) and node.name in exported]


def torch_docstrings() -> dict[str, str]:
    """The docstrings of the module (""), of its classes, and of the methods that they share ("step" ...)."""
    tree = torch_module()
    found = {"": ast.get_docstring(tree) or ""}
    for node in tree.body:
        if not isinstance(node, ast.ClassDef):
            continue
        if node.name in torch_names():
            found[node.name] = ast.get_docstring(node) or ""
        elif node.name == "_Compiled":
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                    found[method.name] = ast.get_docstring(method) or ""
    return found


def torch_methods() -> dict[str, str | None]:
    """What the classes of fastopt.torch share: name -> signature without annotations, None for a property."""
    shared = next(node for node in torch_module().body if isinstance(node, ast.ClassDef) and node.name == "_Compiled")
    found: dict[str, str | None] = {}
    for method in shared.body:
        if not isinstance(method, ast.FunctionDef) or method.name.startswith("_") or method.name in found:
            continue
        if any(isinstance(decorator, ast.Name) and decorator.id == "property" for decorator in method.decorator_list):
            found[method.name] = None
            continue
        for argument in (*method.args.args, *method.args.kwonlyargs):
            argument.annotation = None
        del method.args.args[0]  # self
        found[method.name] = f"{method.name}({ast.unparse(method.args)})"
    return {**found, "step": "step(closure=None)"}  # which is written out in its docstring


def torch_functions() -> dict[str, tuple[str, str]]:
    """The functions of fastopt.torch: how each is called, and its docstring."""
    modules = (torch_module(f"fastopt._torch_{part}") for part in ("clip", "install"))
    functions = (node for module in modules for node in module.body if isinstance(node, ast.FunctionDef))
    return {
        node.name: (f"{node.name}({ast.unparse(node.args)})", ast.get_docstring(node) or "")
        for node in functions if not node.name.startswith("_")
    }  # fmt: skip


def torch_defaults(name: str) -> dict[str, Any]:
    """The options of a class of fastopt.torch that PyTorch takes by position, with their defaults."""
    cls = fastopt.OPTIMIZERS[name]
    offered = next(iter(cls.conventions.values())).defaults
    parameters = inspect.signature(cls).parameters
    by_name = inspect.Parameter.KEYWORD_ONLY  # what fastopt adds
    return {key: offered[key] for key in cls.hyperparameters if key in offered and parameters[key].kind != by_name}


def torch_signature(name: str) -> str:
    """How a class of fastopt.torch is called."""
    given = "".join(f"{key}={number(value)}, " for key, value in torch_defaults(name).items())
    return f"{name}(params, {given}*, n_threads=None, flush_subnormal=True, fallback='warn', **options)"


# --- The adapters, without the libraries that they are for: from their sources


def adapter_entries(name: str) -> list[tuple[str, str, str]]:
    """What an adapter defines of its ``__all__``: "class", "function" or "method", how it is called, its docstring.

    Methods follow their class. The first entry is the module, with an empty name.
    """
    tree = torch_module(f"fastopt.{name}")
    entries = [("module", "", ast.get_docstring(tree) or "")]
    public = exported_by(tree)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name in public:
            entries.append(("function", called(node), ast.get_docstring(node) or ""))
        elif isinstance(node, ast.ClassDef) and node.name in public:
            methods = {method.name: method for method in node.body if isinstance(method, ast.FunctionDef)}
            made = called(methods["__init__"], node.name) if "__init__" in methods else node.name
            entries.append(("class", made, ast.get_docstring(node) or ""))
            entries += [
                ("method", called(method), ast.get_docstring(method) or "")
                for method in methods.values() if not method.name.startswith("_") and ast.get_docstring(method)
            ]  # fmt: skip
    return entries


def exported_by(tree: ast.Module) -> list[str]:
    """The names that are written out in ``__all__``."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            assert isinstance(node.value, ast.List)
            return [one.value for one in node.value.elts if isinstance(one, ast.Constant)]
    return []


def called(function: ast.FunctionDef, name: str = "") -> str:
    """How a function is called, without annotations and without self."""
    arguments = function.args
    for argument in (*arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg):
        if argument is not None:
            argument.annotation = None
    if arguments.args and arguments.args[0].arg == "self":
        del arguments.args[0]
    return f"{name or function.name}({ast.unparse(arguments)})"


# --- What has to be documented


def exported(module: ModuleType) -> list[str]:
    """The public names of a module: its ``__all__``, or what is defined in it without an underscore."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [name for name, value in vars(module).items()
            if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__]  # fmt: skip


def members(cls: type) -> Iterator[str]:
    """The public methods and properties that a class adds to what its bases have."""
    for name, value in vars(cls).items():
        if not name.startswith("_") and not any(hasattr(base, name) for base in cls.__bases__) and (
            inspect.isfunction(value) or isinstance(value, (property, classmethod, staticmethod))
        ):  # fmt: skip
            yield name


def public_names() -> set[str]:
    """Every name that a user may use, in full."""
    names = {*MODULES, "fastopt.torch", *(f"fastopt.torch.{name}" for name in (*torch_names(), *torch_functions()))}
    for adapter in ADAPTERS:
        names |= {f"fastopt.{adapter}.{name}" for name in exported_by(torch_module(f"fastopt.{adapter}"))}
    for path in MODULES:
        module = import_module(path)
        for name in exported(module):
            value = getattr(module, name)
            names.add(f"{path}.{name}")
            if inspect.isclass(value) and value.__module__.startswith("fastopt"):
                names |= {f"{path}.{name}.{member}" for member in members(value)}
    return names | {f"fastopt.Optimizer.{key}" for key in Optimizer.__annotations__ if hasattr(Optimizer, key)}
