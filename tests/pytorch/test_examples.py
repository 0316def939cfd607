"""The examples for torch: a few steps of each, as a user starts them."""

from __future__ import annotations

import csv
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import readme_blocks, runs_when_pasted

# A module inside: "torch" alone could be the folder that this file is in.
pytest.importorskip("torch.nn", reason="the examples train with torch")
pytest.importorskip("tqdm", reason="the examples show their progress with tqdm")

import torch

import fastopt.torch

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NAMES = ["torch_digits", "torch_charlm"]


def start(name: str, *arguments: object, folder: Path = EXAMPLES) -> subprocess.CompletedProcess:
    """Run an example as a user does."""
    if name == "torch_digits":
        pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    return subprocess.run(
        [sys.executable, str(folder / f"{name}.py"), *map(str, arguments)],
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"},
    )


@pytest.fixture
def digits(monkeypatch):
    """The same example in this process, where it can be given a wrong optimizer."""
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    monkeypatch.syspath_prepend(EXAMPLES)
    example = importlib.import_module("torch_digits")
    with torch.random.fork_rng():
        yield lambda *arguments: example.run([*map(str, arguments), "--quiet"])


def losses(path: Path) -> dict[str, list[float]]:
    with open(path, newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    return dict(zip(header, ([float(x) for x in column] for column in zip(*rows, strict=True)), strict=True))


@pytest.mark.parametrize("block", readme_blocks(torch=True))
def test_each_block_of_readme_runs_when_pasted(block, tmp_path):
    printed = runs_when_pasted(readme_blocks(torch=True)[block], tmp_path)
    assert float(re.search(r"loss ([0-9.]+)", printed)[1]) < 0.05


@pytest.mark.parametrize("name", NAMES)
def test_float64_curves_stay_together(name, tmp_path):
    pytest.importorskip("matplotlib", reason="the picture is drawn with matplotlib")
    done = start(name, "--steps", 12, "--dtype", "float64", "--out", tmp_path / "new")
    assert done.returncode == 0, done.stderr
    columns = losses(tmp_path / "new" / f"{name}.csv")
    assert list(columns) == ["step", "loss_torch", "loss_fastopt"]
    assert columns["step"] == list(range(1, 13))
    for ours, theirs in zip(columns["loss_fastopt"], columns["loss_torch"], strict=True):
        assert abs(ours - theirs) <= 1e-9 * theirs
    assert columns["loss_fastopt"][-1] < 0.99 * columns["loss_fastopt"][0]  # it learns, and does so from the first step
    assert (tmp_path / "new" / f"{name}.png").read_bytes().startswith(b"\x89PNG")

    # What is written into a pipe is plain lines.
    assert not re.search(r"[^\n\x20-\x7e\xa0-\U0010ffff]", done.stdout + done.stderr)
    assert len([line for line in done.stderr.splitlines() if line.startswith("step ")]) == 2
    for line in ("torch.optim.AdamW(", "fastopt.torch.AdamW(", "share of opt.step()", "relative difference"):
        assert line in done.stdout
    assert ("A sample" in done.stdout) == (name == "torch_charlm")


def test_float32_curves_agree_at_first():
    done = start("torch_digits", "--steps", 12, "--algorithm", "NAdam", "--fused")
    assert done.returncode == 0, done.stderr
    assert "it has no fused form" in done.stdout


def test_torch_alone():
    done = start("torch_charlm", "--steps", 2, "--optimizer", "torch", "--algorithm", "adam", "--fused", "--sample", 5)
    assert done.returncode == 0, done.stderr
    assert "torch.optim.Adam(lr=0.001, fused=True), its fused kernel\n" in done.stdout
    assert "A sample, by the model trained with torch" in done.stdout
    assert "fastopt:" not in done.stdout
    assert "difference" not in done.stdout


def test_the_whole_step():
    done = start("torch_charlm", "--steps", 6, "--clip", 0.5, "--ema", 0.9, "--sample", 0)
    assert done.returncode == 0, done.stderr
    ours, theirs = re.search(r"held-out loss, averaged +(\S+) +(\S+)\n", done.stdout).groups()
    assert ours == theirs
    assert re.search(r"clip, step, average, zero: +apart +(in one|apart)\n  their share +\d", done.stdout)
    assert re.search(r"held-out loss +(\S+) ", done.stdout)[1] != ours


@pytest.mark.parametrize("rounding", ["nearest", "stochastic", "split"])
def test_low_precision(rounding):
    state = "bfloat16" if rounding == "nearest" else "8bit"
    how = ("--dtype", "bfloat16", "--rounding", rounding, "--state", state)
    done = start("torch_charlm", "--steps", 6, *how, "--sample", 0)
    assert done.returncode == 0, done.stderr
    said = "split=True" if rounding == "split" else f"rounding={rounding}"
    assert f"{said}, state_dtype={state}, seed=0)" in done.stdout
    ours, theirs = map(float, re.search(r"held-out loss +(\S+) +(\S+)\n", done.stdout).groups())
    assert abs(ours - theirs) < 0.02 * theirs


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(("--rounding", "split"), "--rounding is about weights in bfloat16"),
     (("--dtype", "float64", "--state", "8bit"), "--state is about float32 and bfloat16")],
)  # fmt: skip
def test_storage_that_makes_no_sense_is_refused(arguments, says):
    done = start("torch_charlm", "--steps", 1, *arguments)
    assert done.returncode == 2
    assert says in done.stderr


def test_fastopt_alone_and_away_from_the_checkout(tmp_path):
    """The language model then learns the docstrings of the package, and the files that it is given."""
    for name in ("torch_charlm", "_torch_common"):
        (tmp_path / f"{name}.py").write_bytes((EXAMPLES / f"{name}.py").read_bytes())
    notes = tmp_path / "notes.txt"
    notes.write_bytes("Gradient\x0c \x1b[31mdescent\r\n최적화\n".encode() + b"\xff\xfe\n")
    done = start("torch_charlm", "--steps", 2, "--optimizer", "fastopt", "--text", notes, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r" of text: 0 Markdown files, [1-9]\d+ docstrings, 1 other files;", done.stdout)
    assert "fastopt.torch.AdamW(lr=0.001)\n" in done.stdout
    assert "A sample, by the model trained with fastopt" in done.stdout
    assert "torch:" not in done.stdout
    assert "difference" not in done.stdout


def test_curves_that_differ_fail(digits, monkeypatch, capsys):
    """An optimizer that is wrong by a millionth of its learning rate is found, in float64."""

    class Wrong(fastopt.torch.AdamW):
        def __init__(self, params, lr=1e-3 * (1 + 1e-6)):
            super().__init__(params, lr=lr)

    arguments = ("--steps", 12, "--dtype", "float64")
    assert digits(*arguments) == 0
    monkeypatch.setattr(fastopt.torch, "AdamW", Wrong)
    assert digits(*arguments) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"torch_digits: the loss curves differ by \S+ at step \d+, more than 1e-09\n", err)


def test_float32_curves_that_differ_fail(digits, monkeypatch, capsys):
    """In float32 a wrong optimizer is found by its first steps, or, if it goes wrong later, by where it ends."""

    class Late(fastopt.torch.AdamW):
        def step(self, closure=None):
            if self.state and next(iter(self.state.values()))["step"] >= 10:
                self.param_groups[0]["lr"] = 3e-3
            return super().step(closure)

    monkeypatch.setattr(fastopt.torch, "AdamW", Late)
    assert digits("--steps", 40) == 1
    assert re.fullmatch(r"torch_digits: the loss curves end \S+ apart, more than 0.1\n", capsys.readouterr().err)
    assert digits("--steps", 10) == 0
    monkeypatch.setattr(fastopt.torch, "AdamW", fastopt.torch.Adamax)
    assert digits("--steps", 10) == 1
    assert "the loss curves differ by" in capsys.readouterr().err


def test_a_training_that_fails_says_so(digits, capsys):
    assert digits("--steps", 8, "--algorithm", "sgd", "--lr", 1e30) == 1
    lines = capsys.readouterr().err.splitlines()
    for library, line in zip(["torch", "fastopt"], lines, strict=True):
        assert re.fullmatch(rf"torch_digits: {library}: training failed: the loss is (nan|inf) at step \d", line)


@pytest.mark.parametrize(
    ("name", "arguments", "what"),
    [
        ("torch_digits", ["--algorithm", "adma"], "invalid choice: 'adma'"),
        ("torch_digits", ["--lr", "-1"], "'-1' is not a number above 0"),
        ("torch_digits", ["--threads", "0"], "'0' is not a whole number"),
        ("torch_charlm", ["--steps", "many"], "'many' is not a whole number"),
        ("torch_charlm", ["--text", "/nowhere/notes.txt"], "/nowhere/notes.txt: No such file"),
        ("torch_charlm", ["--out", __file__], "File exists"),
        ("torch_charlm", ["--clip", "0"], "'0' is not a number above 0"),
        ("torch_charlm", ["--ema", "1"], "'1' is not below 1"),
    ],
)
def test_a_bad_argument_is_one_line(name, arguments, what):
    done = start(name, *arguments)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert re.fullmatch(rf"{name}: error: .*\(see {name} --help\)\n", done.stderr)
    assert what in done.stderr
