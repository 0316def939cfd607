"""Write what this version of fastopt saves into a folder of its own, for all later versions to read.

    cd tests && python migration/write.py [NAME]

Run it with the version whose files are to be kept, once: when the state format has got a new version, before the first
release that writes it. NAME is that of the folder, the version of fastopt by default. The files of a version that is
already here are never written again: they are what users have on their disks, and a later version would write others.
What is in a folder is said in cases.py; tests/test_migration.py and tests/pytorch/test_migration_torch.py read all of
them.

Gradients are sines of their indices, computed in float64 and rounded. They are kept beside the files, and so are some
results of `pow` and `cos`: the bits of the steps depend on these, and other C libraries may have other last places.
"""

from __future__ import annotations

import json
import math
import pickle
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from migration import cases, torch_cases

import fastopt
import fastopt.torch
from fastopt import schedules

# Name, type, shape and memory order of each parameter.
PARAMS: list[tuple[str, type, tuple[int, ...], Any]] = [
    ("weight", np.float32, (2, 3), "C"),
    ("scale", np.float64, (3,), "C"),  # without a gradient in one step
    ("kernel", np.float32, (3, 2), "F"),
    ("gain", np.float32, (), "C"),
    ("nothing", np.float64, (0,), "C"),
    ("frozen", np.float32, (2,), "C"),  # without a gradient in any step
]
FROZEN = 5
NONE = {(1, 1), *((which, FROZEN) for which in (0, 1, 2, 3, 4, "bad"))}
"""(set of gradients, parameter) where the gradient is None."""
BEFORE, AFTER = [0, 1, 2], [3, 4]
LATE = {"RAdam": [0, 1, 2, 0, 1]}  # so that the steps after lead over its threshold
LIBM = ("Adam", "AdamW", "Adamax", "NAdam", "RAdam")

# Every option that is off by default is on here.
ON: dict[str, Any] = {
    "lr": 0.0625, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.125, "amsgrad": True, "momentum": 0.75,
    "nesterov": True, "centered": True, "alpha": 0.8, "rho": 0.8, "lr_decay": 0.25, "momentum_decay": 0.01,
    "initial_accumulator_value": 0.5, "eps_root": 1e-4, "dampening": 0.25, "bias_correction": True,
}  # fmt: skip
PLACEMENTS = ("outside", "inside", "outside_uncorrected", "inside_uncorrected")


def arrays() -> dict[str, np.ndarray]:
    """Parameters and gradients, by their names in ``arrays.npz``."""
    found = {}
    for i, (_, dtype, shape, order) in enumerate(PARAMS):
        k = np.arange(math.prod(shape), dtype=np.float64).reshape(shape)
        found[f"start.{i}"] = np.array(np.cos(k + 10 * i), dtype, order=order)
        for which in range(5):
            if (which, i) not in NONE:
                found[f"grad.{which}.{i}"] = np.array(np.sin(1 + k + 10 * i + 100 * which), dtype, order=order)
        if ("bad", i) not in NONE:
            found[f"grad.bad.{i}"] = np.full_like(found[f"start.{i}"], np.inf)
    return found


def libm() -> list[list[Any]]:
    """Results of the C library that steps and schedules depend on: function, arguments, result."""
    powers = [(base, float(t)) for base in (0.8, 0.9, 0.95, 0.99, 0.999, 0.96) for t in range(1, 9)]
    powers += [(0.96, t * decay) for decay in (0.004, 0.01) for t in range(1, 9)]
    angles = [math.pi * k / 10 for k in range(11)]
    return [["pow", list(x), math.pow(*x).hex()] for x in powers] + [["cos", [x], math.cos(x).hex()] for x in angles]


def offered(cls: type[fastopt.Optimizer], convention: str) -> dict[str, Any]:
    """Every option that a convention has, switched on."""
    having = cls.conventions[convention].defaults
    options = {key: value for key, value in ON.items() if key in having}
    if cls is fastopt.SGD and convention == "torch":
        del options["nesterov"]  # which goes without dampening
    return options


def every_case() -> Iterator[tuple[str, dict[str, Any]]]:
    """Name of a case, and what differs from `case`."""
    for cls in fastopt.OPTIMIZERS.values():
        for k, convention in enumerate(cls.conventions):
            about = {"class": cls.__name__, "convention": convention, "named": k % 2 == 0}
            needed = [key for key, value in cls.conventions[convention].defaults.items() if value is None]
            first = {key: {"lr": 0.02, "weight_decay": 0.01}[key] for key in needed}
            yield f"{cls.__name__}-{convention}", {**about, "groups": [first, offered(cls, convention)]}

    def of(cls: str, convention: str, *groups: dict[str, Any], **more: Any) -> tuple[str, dict[str, Any]]:
        what = more.pop("what")
        about = {"class": cls, "convention": convention, "named": False, "groups": list(groups), **more}
        return f"{cls}-{convention}-{what}", about

    yield of("SGD", "torch", {"momentum": 0.5, "nesterov": True}, {"momentum": 0.5}, what="nesterov", named=True)
    yield of("SGD", "keras", {"momentum": 0.5}, {}, what="momentum")
    yield of("SGD", "torch", {"lr": np.float32(0.1), "momentum": 0.5}, what="single", single=True,
             own_keys={"initial_lr": 0.25, "label": "all"})  # fmt: skip
    yield of("Momentum", "paper", {"decoupled_weight_decay": True, "weight_decay": 0.125}, {}, what="decoupled")
    yield of("RMSprop", "torch", {"centered": True}, {"momentum": 0.5}, what="centered")
    yield of("RMSprop", "optax", {"lr": 0.02, "bias_correction": True, "eps_placement": "outside"},
             {"lr": 0.02, "momentum": 0.5, "initial_accumulator_value": 0.5}, what="corrected")  # fmt: skip
    yield of("Adam", "torch", *({"eps": 1e-3, "eps_placement": p, "bias_correction": k % 2 == 0} for k, p in
             enumerate(PLACEMENTS)), what="placements", split=[[0], [1, FROZEN], [2, 3], [4]])  # fmt: skip
    yield of("Adam", "torch", {"decoupled_weight_decay": True, "weight_decay": 0.125}, {}, {}, what="decoupled",
             split=[[0, 1, 2], [], [3, 4, FROZEN]])  # fmt: skip
    yield of("Adam", "thinc", {"decoupled_weight_decay": False, "weight_decay": 0.125}, {}, what="coupled")
    yield of("Adam", "paper", {"amsgrad": True, "bias_correction": False, "eps": 0.0}, {}, what="amsgrad", named=True)
    yield of("Adam", "torch", {}, {"amsgrad": True}, what="unstepped", before=[])
    yield of("AdamW", "torch", {"maximize": True}, {"flush_subnormal": False}, what="skipped", named=True,
             settings={"nonfinite": "skip", "n_threads": 1, "copy_grads": True}, before=[0, "bad", 1, 2])  # fmt: skip
    warm = schedules.Warmup(2, schedules.Cosine(0.125, 10), start=0.01)
    plateau = schedules.ReduceOnPlateau(0.125, patience=2, best=0.5, bad_updates=1)
    yield of("Adam", "torch", {"lr": warm, "betas": (schedules.Linear(0.5, 0.9, 4), 0.99)},
             {"lr": plateau, "weight_decay": schedules.Step(0.125, 2)}, what="schedules", named=True)  # fmt: skip
    yield of("SGD", "optax", {"lr": warm, "momentum": schedules.Linear(0.5, 0.9, 4)},
             {"lr": schedules.Join([0.5, schedules.Exponential(0.25, 0.5)], [3])}, what="schedules")  # fmt: skip


def case(about: dict[str, Any]) -> dict[str, Any]:
    """A case as ``cases.json`` has it, but for what it becomes."""
    single = about.get("single", False)
    split = about.get("split") or ([[0]] if single else [[0, 1, FROZEN], [2, 3, 4]])
    order = [i for indices in split for i in indices]
    return {
        "class": about["class"], "convention": about["convention"], "single": single,
        "names": [PARAMS[i][0] for i in order] if about["named"] else None,
        "groups": [
            {"params": indices, "options": {key: cases.encoded(value) for key, value in options.items()},
             "own_keys": about.get("own_keys", {})}
            for indices, options in zip(split, about["groups"], strict=True)
        ],
        "settings": about.get("settings", {}),
        "before": about.get("before", LATE.get(about["class"], BEFORE)), "after": AFTER,
    }  # fmt: skip


def filled(known: dict[str, Any], groups: list[dict[str, Any]]) -> dict[str, Any]:
    """A case with all options that its groups have: a later version may have other defaults."""
    for group, options in zip(known["groups"], groups, strict=True):
        group["options"] = {
            key: cases.encoded(value) for key, value in options.items()
            if key not in ("params", "param_names", *group["own_keys"])
        }  # fmt: skip
    text = json.dumps(known["groups"])
    known["libm"] = known["class"] in LIBM or '"bias_correction": true' in text or '"schedule"' in text
    return known


def write(folder: cases.Folder) -> None:
    """The files of fastopt's own classes, and their cases."""
    for name, about in every_case():
        known = case(about)
        opt = cases.build(known, cases.starts(folder, known))
        folder.cases[name] = filled(known, opt.param_groups)
        cases.step(opt, folder, known, known["before"])
        saved = opt.state_dict()
        known["fastopt"], known["saved"] = saved["fastopt"], cases.described(opt, known)
        opt.save(folder.path / f"{name}.safetensors")
        # Protocol 4: arrays pickled by 5 name a module that NumPy 1.26 does not have.
        (folder.path / f"{name}.state.pickle").write_bytes(pickle.dumps(saved, 4))
        (folder.path / f"{name}.optimizer.pickle").write_bytes(pickle.dumps(opt, 4))
        cases.step(opt, folder, known, known["after"])
        known["end"] = cases.described(opt, known)


# --- PyTorch


def every_torch_case() -> Iterator[tuple[str, dict[str, Any]]]:
    """The same for `fastopt.torch`."""
    for k, name in enumerate(fastopt.torch.__all__):
        cls = getattr(fastopt.torch, name).core
        convention = next(iter(cls.conventions))
        about = {"class": name, "convention": convention, "named": k % 2 == 0}
        yield name, {**about, "groups": [{}, offered(cls, convention)]}
    about = {"class": "SGD", "convention": "torch", "named": False}
    yield "SGD-nesterov", {**about, "groups": [{"momentum": 0.5, "nesterov": True}, {"momentum": 0.5}]}
    yield "RMSprop-centered", {**about, "class": "RMSprop", "groups": [{"centered": True}, {"momentum": 0.5}]}
    yield "NAdam-decoupled", {**about, "class": "NAdam", "groups": [
        {"decoupled_weight_decay": True, "weight_decay": 0.125}, {}]}  # fmt: skip


def write_torch(folder: cases.Folder) -> None:
    """The files of the classes over tensors, and their cases."""
    for name, about in every_torch_case():
        known = case({**about, "split": [[0, FROZEN], [1, 3]]})
        params = torch_cases.tensors(cases.starts(folder, known))
        opt = torch_cases.build(known, params)
        folder.cases[name] = filled(known, opt.param_groups)
        torch_cases.step(opt, params, folder, known, known["before"])
        known["saved"] = torch_cases.described(opt, params)
        torch.save(opt.state_dict(), folder.path / f"{name}.pt")
        torch_cases.reloaded(opt, known)
        torch_cases.step(opt, params, folder, known, known["after"])
        known["end"] = torch_cases.described(opt, params)


def finish(folder: cases.Folder, **versions: str) -> None:
    """Write ``cases.json``, a line for each case."""
    where = {
        "version": fastopt.__version__, "python": platform.python_version(), "numpy": np.__version__, **versions,
        "machine": platform.machine(), "system": platform.system(), "libc": " ".join(platform.libc_ver()),
    }  # fmt: skip
    lines = [f'  "{key}": {json.dumps(value)}' for key, value in {**where, "libm": libm()}.items()]
    entries = [f'    "{name}": {json.dumps(known)}' for name, known in folder.cases.items()]
    text = "{\n" + ",\n".join(lines) + ',\n  "cases": {\n' + ",\n".join(entries) + "\n  }\n}\n"
    (folder.path / "cases.json").write_text(text, "utf-8", newline="\n")


def main() -> None:
    path = Path(__file__).parent / (sys.argv[1] if len(sys.argv) > 1 else fastopt.__version__)
    if path.exists():
        sys.exit(f"{path.name} is there; the files of a version are written once")
    (path / "torch").mkdir(parents=True)
    np.savez_compressed(path / "arrays.npz", **arrays())
    ours, tensors = (cases.Folder(place, {}, arrays(), True) for place in (path, path / "torch"))
    write(ours)
    finish(ours)
    write_torch(tensors)
    finish(tensors, torch=torch.__version__)


if __name__ == "__main__":
    main()
