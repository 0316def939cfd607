"""What this installation is made of, and what it chose on this machine: ``show_config`` and ``fastopt info``."""

from __future__ import annotations

import os
import platform
from typing import Any, Literal, overload

from . import _openmp
from .errors import HyperparameterError

__all__ = ["show_config"]

# Every fact has its heading and its words here, in the order in which they are shown; others would come at the end.
_LABELS = {
    "In use": {
        "version": "fastopt",
        "isa": "instruction set in use",
        "isa_forced": "forced by FASTOPT_ISA",
        "threads": "threads",
        "threads_reason": "because",
        "serial_below_bytes": "one thread below",
        "openmp_library": "OpenMP library in use",
        "openmp_runtimes": "OpenMP libraries loaded",
        "wait_policy": "waiting policy",
    },
    "Built with": {
        "isa_built": "instruction sets",
        "openmp": "OpenMP",
        "openmp_version": "OpenMP version",
        "compiler": "compiler",
        "compiler_flags": "flags",
        "cython": "Cython",
        "numpy_at_build": "NumPy at build",
    },
    "This machine": {
        "cpu_level": "highest level of the CPU",
        "isa_available": "instruction sets usable",
        "cpus": "CPUs",
        "numpy": "NumPy",
        "python": "Python",
        "platform": "platform",
    },
}


@overload
def show_config(mode: Literal["stdout"] = "stdout") -> None: ...
@overload
def show_config(mode: Literal["dicts"]) -> dict[str, Any]: ...
def show_config(mode: str = "stdout") -> dict[str, Any] | None:
    """Show what this installation is made of, and what it chose on this machine.

    Parameters
    ----------
    mode : {"stdout", "dicts"}
        Print it for people to read, or return it as plain data.

    Returns
    -------
    dict or None
        With ``mode="dicts"`` what ``fastopt info --json`` prints: version; instruction-set level in use, usable and
        built; threads, and why so many; the OpenMP library that steps run on, those in the process, and how idle
        threads wait; compiler with its flags, Cython and NumPy of the build; NumPy, Python and platform here.

    Raises
    ------
    HyperparameterError
        The mode is neither of the two.

    Examples
    --------
    >>> import fastopt
    >>> config = fastopt.show_config("dicts")
    >>> config["isa"] in config["isa_available"]
    True
    """
    if mode not in ("stdout", "dicts"):
        raise HyperparameterError(f"mode must be 'stdout' or 'dicts', not {mode!r}")
    report = collect()
    if mode == "dicts":
        return report
    print(as_text(report))
    return None


def collect() -> dict[str, Any]:
    """Return the report as plain data: the engine's own, with what surrounds it."""
    import numpy as np

    from . import __version__
    from .engine import info

    engine = info()
    found = {
        "version": __version__,
        **engine,
        "openmp_runtimes": _openmp_runtimes(),
        "wait_policy": _openmp.outcome if engine["openmp"] else "none: there are no threads to wait",
        "cpus": os.cpu_count(),
        "numpy": np.__version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": _platform(),
    }
    in_order = {key: found.pop(key) for labels in _LABELS.values() for key in labels if key in found}
    return {**in_order, **found}


def as_text(report: dict[str, Any]) -> str:
    """Return the report as aligned lines under headings."""
    rest = {key: key.replace("_", " ") for key in report if not any(key in labels for labels in _LABELS.values())}
    sections = {**_LABELS, "Other": rest}
    width = max(len(label) for labels in sections.values() for label in labels.values())
    blocks = [
        "\n".join([heading, *(f"  {label:<{width}}  {_text(key, report[key])}"
                              for key, label in labels.items() if key in report)])
        for heading, labels in sections.items() if any(key in report for key in labels)
    ]  # fmt: skip
    return "\n\n".join(blocks)


def _text(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if key == "serial_below_bytes":
        return f"{value:,} bytes read and written"
    return str(value) or "none"


def _platform() -> str:
    """Return system, release, machine and C library; `platform.platform` would start ``uname -p``."""
    uname = platform.uname()
    return "-".join(filter(None, [uname.system, uname.release, uname.machine, *platform.libc_ver()]))


def _openmp_runtimes() -> list[str]:
    """Return the OpenMP libraries in this process; two of them in one process share the cores badly."""
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return _openmp.loaded_runtimes()
    return sorted({pool["filepath"] for pool in threadpool_info() if pool["user_api"] == "openmp"})
