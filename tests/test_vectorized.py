"""Every loop of every rule is vectorized at every level, in the modules as they are installed.

A loop that is not gives the same bits, only more slowly: no other test sees it. This one reads the machine code. A
vectorized loop is a jump backwards over instructions that neither jump, call nor compute with single numbers, and that
reach memory in vectors as wide as the level has them. Beside it there are others, for the elements left over and for
operands that overlap: a rule needs as many vectorized ones as it has loops in the source. A sum needs one. The load or
store of a format needs those that every block goes through, but not those for blocks with an infinity or a NaN.
"""

from __future__ import annotations

import importlib.util
import pkgutil
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from fastopt import engine, kernels

KERNELS = Path(__file__).parents[1] / "fastopt" / "kernels"
SOURCES = [KERNELS / name for name in ("rules.pxi", "stages.pxi")]
MODULES = sorted(module.name for module in pkgutil.iter_modules(kernels.__path__))
DTYPES = ("float32", "float64")  # in the order of the fused type
SUMS = {(name, dtype) for name in engine.sums() for dtype in DTYPES} | {("values", None)}
NOT_IN_VECTORS = {
    ("generic", "maximum", "float64"),  # SSE2 cannot compare whole numbers of 64 bits
    ("generic", "squares", "float32"), ("x86_64_v2", "squares", "float32"),  # two elements are half a vector
    ("x86_64_v4_narrow", "squares", "float32"), ("x86_64_v4_narrow", "squares", "float64"),  # wide ones are used
    ("x86_64_v4_narrow", "values", None),
}  # fmt: skip
OBJDUMP = shutil.which("objdump")

# The bytes of a vector, for each kernel module.
WIDTHS = {"generic": 16, "x86_64_v2": 16, "x86_64_v3": 32, "x86_64_v4": 64, "x86_64_v4_narrow": 32}

REGISTERS = {"xmm": 16, "ymm": 32, "zmm": 64}
SINGLE = re.compile(r"v?(mov|add|sub|mul|div|sqrt|min|max|u?comi|cvt\w+)s[sd]")
PART = re.compile(r"v?mov([lh]p[sd]|[dq])")  # these move less than the register holds

pytestmark = [
    pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="reads the machine code of x86-64"),
    pytest.mark.skipif(OBJDUMP is None, reason="objdump is not installed"),
]


class Instruction(NamedTuple):
    """One line of the disassembly."""

    address: int
    name: str
    operands: str


def functions(listing: str, module: str) -> Iterator[tuple[str, str | None, list[Instruction]]]:
    """Name, dtype and instructions of every function that a fused one was compiled to; others have no dtype."""
    for block in listing.split("\n\n"):
        symbol = rf"\s*[0-9a-f]+ <_*pyx_(?:fuse_([01])_)?\w*\d{module}_(\w+)(?:\.lto_priv\.\d+)?>:"
        if head := re.match(symbol, block):
            lines = re.findall(r"^ *([0-9a-f]+):\s+(\S+)[ \t]*(.*)", block, re.MULTILINE)
            yield head[2], head[1] and DTYPES[int(head[1])], [Instruction(int(at, 16), *line) for at, *line in lines]


def loops(code: list[Instruction]) -> Iterator[list[Instruction]]:
    """What lies between a jump backwards and its target, for every such jump."""
    for i, (address, name, operands) in enumerate(code):
        target = re.match(r"(?:0x)?([0-9a-f]+)\b", operands)
        if name.startswith("j") and target and code[0].address <= int(target[1], 16) <= address:
            yield [line for line in code[: i + 1] if line.address >= int(target[1], 16)]


def width(loop: list[Instruction]) -> int:
    """Bytes of the widest vector that the loop reads or writes; 0 if it is not vectorized."""
    if any(name.startswith(("j", "call")) for _, name, _ in loop[:-1]):
        return 0
    if any(SINGLE.fullmatch(name) for _, name, _ in loop):
        return 0
    memory = [operands for _, name, operands in loop if "(" in operands and not PART.fullmatch(name)]
    return max((REGISTERS[r] for operands in memory for r in re.findall(r"%([xyz]mm)", operands)), default=0)


def loops_in_source() -> dict[str, int]:
    """The number of loops of every rule and every stage."""
    text = "".join(source.read_text() for source in SOURCES)
    bodies = re.findall(r"^cdef void (\w+)\(real \*p, .*\n((?: .*\n|\n)*)", text, re.MULTILINE)
    return {rule: len(re.findall(r"^ +(?:for|while) ", body, re.MULTILINE)) for rule, body in bodies}


def loops_of_formats() -> dict[str, int]:
    """The number of loops of every load and store: its own, less those under a condition, and `top_of`."""
    text = (KERNELS / "formats.pxi").read_text()
    bodies = re.findall(r"^cdef void ((?:load|store)_\w+)\(.*\n((?: .*\n|\n)*)", text, re.MULTILINE)
    return {name: len(re.findall(r"^    for |\btop_of\(", body, re.MULTILINE)) for name, body in bodies}


def test_every_rule_has_loops_in_the_source():
    source = loops_in_source()
    assert set(source) == {*engine.rules(), *engine.stages()}
    assert all(source.values()), source


def test_every_format_has_loops_in_the_source():
    source = loops_of_formats()
    loads = {f"load_{name.removesuffix('_stochastic')}" for name in engine.formats()}
    assert set(source) == {*loads, *(f"store_{name}" for name in engine.formats())}
    assert {name: n for name, n in source.items() if n != 1} == {"store_e4m3": 2, "store_ue5m3": 2}


@pytest.mark.parametrize("module", MODULES)
def test_loops_are_vectorized(module):
    path = importlib.util.find_spec(f"fastopt.kernels.{module}").origin
    command = [OBJDUMP, "--syms", "--disassemble", "--no-show-raw-insn", path]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "no symbols" in listing:
        pytest.skip("the names of the functions were stripped from the module")
    widths = {(rule, dtype): [width(loop) for loop in loops(code)] for rule, dtype, code in functions(listing, module)}
    needed = {(rule, dtype): n for rule, n in loops_in_source().items() for dtype in DTYPES}
    needed |= {(name, None): n for name, n in loops_of_formats().items()}
    needed |= dict.fromkeys((key for key in SUMS if (module, *key) not in NOT_IN_VECTORS), 1)
    assert needed.keys() <= widths.keys(), f"{module} lacks the functions of {needed.keys() - widths.keys()}"
    done = {key: widths[key].count(WIDTHS[module]) for key in needed}
    wrong = [f"{rule} {dtype or ''} ({done[rule, dtype]} of {n} loops)"
             for (rule, dtype), n in needed.items() if done[rule, dtype] < n]  # fmt: skip
    assert not wrong, f"{module}: not in vectors of {WIDTHS[module]} bytes: {', '.join(wrong)}"
