"""Write fastopt/functional.pyi: what fastopt.functional makes from the classes, for type checkers and editors.

    python tools/write_stubs.py            with the fastopt of this checkout, or an installed one of the same sources

A test fails where the file is not what this writes.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import fastopt.typing
from fastopt import functional

STUB = Path(__file__).resolve().parents[1] / "fastopt" / "functional.pyi"
HEAD = "# Written by tools/write_stubs.py (`make stubs`).\n"


def text() -> str:
    """The stub file."""
    functions = "\n".join(map(function, functional.__all__))
    names = set(re.findall(r"\w+", functions))
    ours = ", ".join(sorted(names & {*fastopt.typing.__all__}))
    imports = f"from typing import Literal, SupportsIndex\n\nfrom fastopt.typing import {ours}\n"
    return f"{HEAD}\n{imports}\n__all__: list[str]\n\n{functions}"


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
