"""Write fastopt/functional.pyi: what fastopt.functional makes from the classes, for type checkers and editors.

    python tools/write_stubs.py            with the fastopt of this checkout, or an installed one of the same sources

A test fails where the file is not what this writes.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastopt.typing
from fastopt import functional

STUB = Path(__file__).resolve().parents[1] / "fastopt" / "functional.pyi"
HEAD = "# Written by tools/write_stubs.py (`make stubs`).\n"


def text() -> str:
    """The stub file."""
    functions = "\n".join(function(name) for name in functional.__all__ if name.endswith("_"))
    written = "\n".join([bound(), of_source(functional.bind), of_source(functional.make_state), functions])
    names = set(re.findall(r"\w+", written))
    ours = ", ".join(sorted(names & {*fastopt.typing.__all__}))
    imports = (
        "from collections.abc import Callable, Sequence\nfrom typing import Any, Literal, SupportsIndex\n\n"
        f"from fastopt.optimizer import Optimizer\nfrom fastopt.typing import {ours}\n"
    )
    return f"{HEAD}\n{imports}\n__all__: list[str]\n\n{written}"


def bound() -> str:
    """The class that `bind` returns."""
    doc = functional.Bound.__doc__.rstrip()
    written = "\n".join([of_source(functional.Bound.step), of_source(functional.Bound.rebind)])
    methods = "\n".join(f"    {line}".rstrip() for line in written.splitlines())
    about = f'"""{functional.Bound.grad_norm.__doc__}"""'
    norm = f"    @property\n    def grad_norm(self) -> float | None:\n        {about}"
    return f'class Bound:\n    """{doc}\n    """\n\n{methods}\n\n{norm}\n'


def of_source(made: Callable[..., Any]) -> str:
    """A function that is written out in the source, by its signature and docstring."""
    lines, by_name = [], False
    for p in inspect.signature(made).parameters.values():
        if p.kind is p.KEYWORD_ONLY and not by_name:
            lines.append("*")
            by_name = True
        stars = "**" if p.kind is p.VAR_KEYWORD else ""
        annotation = "" if p.annotation is p.empty else f": {p.annotation}"
        default = "" if p.default is p.empty else f" = {p.default!r}"
        lines.append(f"{stars}{p.name}{annotation}{default}")
    doc = textwrap.indent(inspect.getdoc(made), "    ").strip()
    returns = inspect.signature(made).return_annotation
    arguments = "".join(f"    {x},\n" for x in lines)
    return f'def {made.__name__}(\n{arguments}) -> {returns}:\n    """{doc}\n    """\n'


def function(name: str) -> str:
    """One function, with its docstring, which editors show."""
    made = getattr(functional, name)
    lines, by_name = [], False
    for p in inspect.signature(made).parameters.values():
        if p.kind is p.KEYWORD_ONLY and not by_name:
            lines.append("*")
            by_name = True
        default = "" if p.default is p.empty else f" = {p.default!r}".replace("'", '"')
        lines.append(f"{p.name}: {p.annotation}".replace("'", '"') + default)
    first, *rest = made.__doc__.strip().splitlines()
    doc = "\n".join([first, *(f"    {line}".rstrip() for line in rest)])
    return f"def {name}(\n" + "".join(f"    {x},\n" for x in lines) + f') -> bool:\n    """{doc}\n    """\n'


if __name__ == "__main__":
    STUB.write_text(text(), encoding="utf-8")
