"""The command line: ``fastopt`` and ``python -m fastopt``."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import fastopt
from fastopt.cli import build_parser, demo, info, main

LAST = list(fastopt.OPTIMIZERS)[-1]  # with which the list of choices ends


def python_m_fastopt(*arguments, **options):
    command = [sys.executable, "-m", "fastopt", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def exit_code(*arguments):
    """Return the exit code of the command, whether argparse exits or `main` returns."""
    try:
        return main(list(map(str, arguments)))
    except SystemExit as stop:
        return stop.code


@pytest.fixture
def extras():
    for name in ("sklearn", "matplotlib", "tqdm"):
        pytest.importorskip(name)


# --- in general


def test_python_m_fastopt_is_the_same_command():
    done = python_m_fastopt("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"fastopt {fastopt.__version__}\n", "")


def test_parsing_imports_nothing_optional():
    code = "import sys, fastopt.cli as c; c.build_parser(); print([m for m in %r if m in sys.modules])"
    optional = ["sklearn", "matplotlib", "tqdm", "threadpoolctl", "torch", "scipy"]
    done = subprocess.run([sys.executable, "-c", code % optional], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_every_option_is_explained(capsys):
    assert exit_code("--help") == 0
    text = capsys.readouterr().out
    assert "demo" in text
    assert "info" in text
    for command in ("demo", "compare", "info"):
        assert exit_code(command, "--help") == 0
        assert "exit code" in capsys.readouterr().out or command == "info"
    commands = next(a for a in build_parser()._actions if a.dest not in ("help", "version"))
    for parser in commands.choices.values():
        assert all(action.help for action in parser._actions)


def test_no_command_shows_the_help(capsys):
    assert exit_code() == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "usage: fastopt" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["frobnicate"],
        ["info", "--frobnicate"],
        ["demo", "--epochs", "0"],
        ["demo", "--epochs", "many"],
        ["demo", "--batch-size", "-3"],
        ["demo", "--threads", "0"],
        ["demo", "--seed", "-1"],
        ["demo", "--lr", "0"],
        ["demo", "--lr", "nan"],
        ["demo", "--dtype", "float16"],
        ["demo", "--optimizer", "adma"],
        ["demo", "--optimizer", "adam,"],
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(arguments, capsys, tmp_path):
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    pytest.importorskip("tqdm")
    if arguments[0] == "demo":
        arguments = [*arguments, "--out", tmp_path / "out"]
    assert exit_code(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fastopt")
    assert "error: " in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("frobnicate", "fastopt: error: argument command: 'frobnicate' is none of demo, compare, info (see fastopt "),
        (
            "compar",
            "fastopt: error: argument command: 'compar' is none of demo, compare, info; did you mean compare? "
            "(see fastopt --help)",
        ),
        ("--versoin", "fastopt: error: unrecognized arguments: --versoin; did you mean --version? (see fastopt --"),
        ("info --frobnicate", "fastopt info: error: unrecognized arguments: --frobnicate (see fastopt info --help)"),
        ("info more", "fastopt info: error: unrecognized arguments: more (see fastopt info --help)"),
        (
            "compare --setps=3 --quiet",
            "fastopt compare: error: unrecognized arguments: --setps=3; did you mean --steps? "
            "(see fastopt compare --help)",
        ),
        (
            "compare --scale standart",
            "fastopt compare: error: argument --scale: 'standart' is none of standard, minmax; did you mean standard? "
            "(see fastopt compare --help)",
        ),
        ("compare beal", "rates, first-steps; did you mean beale? (see fastopt compare --help)"),
        ("compare digits", "rates, first-steps; did you mean --data digits? (see fastopt compare --help)"),
        ("compare some.csv", "rates, first-steps; did you mean --data some.csv? (see fastopt compare --help)"),
        ("compare --epochs 3", "fastopt compare: error: --epochs is for --data (see fastopt compare --help)"),
        ("compare --data no.csv", "fastopt compare: error: no.csv: no such file (see fastopt compare --help)"),
        ("compare --data digits --task=regression", "--task is for CSV files: digits comes with its own (see fastopt"),
        ("compare --optimizer adadelat", f"{LAST}; did you mean Adadelta? (see fastopt compare --help)"),
        ("demo --optimizer adm", f"{LAST}; did you mean Adam or RAdam? (see fastopt demo --help)"),
    ],
)
def test_errors_point_to_the_help_of_their_command_and_to_what_was_meant(extras, arguments, said, capsys, tmp_path):
    pytest.importorskip("PIL")
    out = [] if arguments.startswith(("info", "-")) else ["--out", tmp_path / "out"]
    assert exit_code(*arguments.split(), *out) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_interrupt_is_one_line(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(info, "collect", interrupted)
    assert exit_code("info") == 130
    assert capsys.readouterr().err == "fastopt info: interrupted\n"


@pytest.mark.skipif(os.name != "posix", reason="pipes close so on POSIX")
def test_a_reader_that_has_seen_enough_is_no_traceback():
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "fastopt", "info"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


# --- fastopt info


def test_info_json_is_what_the_engine_says_and_more(capsys):
    assert exit_code("info", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["version"] == fastopt.__version__
    assert report["numpy"] == np.__version__
    assert {"isa", "isa_built", "isa_available", "openmp", "openmp_runtimes"} <= set(report)
    assert {"threads", "threads_reason", "wait_policy", "python", "platform", "cpus"} <= set(report)
    assert report["isa"] in report["isa_available"]
    assert set(report["isa_available"]) <= set(report["isa_built"])
    assert report["threads"] >= 1
    for key, value in fastopt.engine.info().items():
        assert report[key] == value


def test_info_text_says_the_same_in_aligned_lines(capsys):
    assert exit_code("info") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    report = info.collect()
    assert len(lines) == len(report)
    assert lines[0].split() == ["fastopt", fastopt.__version__]
    assert any(line.startswith("  instruction set in use") and line.endswith(report["isa"]) for line in lines)


def test_openmp_runtimes_are_found_without_threadpoolctl(monkeypatch):
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    runtimes = info.collect()["openmp_runtimes"]
    if sys.platform == "linux" and info.collect()["openmp"]:
        assert any("omp" in path for path in runtimes)


# --- fastopt demo


@pytest.mark.parametrize("name", ["sklearn", "matplotlib", "tqdm"])
def test_a_missing_extra_is_named_in_one_line(name, monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, name, None)
    assert exit_code("demo", "--out", tmp_path / "out") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert name in err or name != "sklearn"  # the first that is missing is named
    assert 'pip install "fastopt[demo]"' in err
    assert "--help" not in err  # which says nothing about it
    assert err.count("\n") == 1


def test_commands_take_an_optimizer_that_nobody_told_of(extras, newcomer, tmp_path, capsys):
    out = ["--optimizer=newcomer,adam", "--format=png", "--quiet", "--out"]
    assert exit_code("compare", "ravine", "rates", "--steps=5", *out, tmp_path / "scenes") == 0
    assert exit_code("compare", "--data=diabetes", "--epochs=1", *out, tmp_path / "data") == 0
    assert exit_code("demo", "--optimizer=newcomer", "--quiet", "--json", "--out", tmp_path / "demo") == 0
    assert "Newcomer" in (tmp_path / "scenes" / "index.html").read_text("utf-8")
    (row,) = json.loads((tmp_path / "demo" / "results.json").read_text())["results"]
    assert row["optimizer"] == "Newcomer" and row["equal_bits"] is True
    capsys.readouterr()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_optimizer_learns_with_the_bits_of_the_reference(extras, dtype, capsys, tmp_path):
    assert exit_code("demo", "--dtype", dtype, "--out", tmp_path, "--json") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "\r" not in out  # no bar where there is no terminal
    rows = json.loads((tmp_path / "results.json").read_text())["results"]
    assert len(rows) == len(fastopt.OPTIMIZERS) >= 12
    for row in rows:
        assert row["equal_bits"] is True
        assert row["test_accuracy"] >= 0.9, row["optimizer"]
        assert row["final_loss"] < row["initial_loss"] / 4
        assert row["steps"] == len(row["losses"]) == 15 * 45
        assert row["fastopt_us"] > 0
        assert row["numpy_us"] > 0
        (line,) = (line for line in out.splitlines() if line.split()[:1] == [row["optimizer"]])
        assert len(line.split()) == len(demo.HEADER.split()) - 5  # five titles are of two words
    assert (tmp_path / "learning_curves.png").read_bytes().startswith(b"\x89PNG")


def test_options_choose_what_is_trained(extras, capsys, tmp_path):
    options = [
        "--optimizer",
        "LION,adam",
        "--optimizer",
        "nag",
        "--dtype",
        "float64",
        "--epochs",
        1,
        "--batch-size",
    ]
    options += [100, "--lr", 0.001, "--threads", 2, "--seed", 7, "--out", tmp_path / "a" / "b", "--json"]
    assert exit_code("demo", *options) == 0
    results = json.loads((tmp_path / "a" / "b" / "results.json").read_text())
    assert [row["optimizer"] for row in results["results"]] == ["Lion", "Adam", "NAG"]
    assert {row["steps"] for row in results["results"]} == {15}
    assert {row["lr"] for row in results["results"]} == {0.001}
    assert results["settings"] == {
        "dtype": "float64",
        "epochs": 1,
        "batch_size": 100,
        "lr": 0.001,
        "threads": 2,
        "seed": 7,
    }
    first = [row["losses"] for row in results["results"]]
    capsys.readouterr()
    assert exit_code("demo", *options) == 0
    again = json.loads((tmp_path / "a" / "b" / "results.json").read_text())
    assert [row["losses"] for row in again["results"]] == first


def test_quiet_prints_nothing_and_json_is_written_on_request_only(extras, capsys, tmp_path):
    assert exit_code("demo", "--optimizer", "adam", "--epochs", 1, "--out", tmp_path, "--quiet") == 0
    assert capsys.readouterr() == ("", "")
    assert [path.name for path in tmp_path.iterdir()] == ["learning_curves.png"]


def test_a_bar_shows_on_a_terminal(extras, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert exit_code("demo", "--optimizer", "adam", "--epochs", 1, "--out", tmp_path) == 0
    out, err = capsys.readouterr()
    assert "Adam" in out
    assert "Adam:" in err
    assert "/45" in err


def test_a_run_that_diverges_fails(extras, capsys, tmp_path):
    options = ["--optimizer", "sgd", "--lr", 1e6, "--epochs", 1, "--out", tmp_path, "--json"]
    assert exit_code("demo", *options) == 1
    assert "SGD: training failed (loss or gradient not finite after" in capsys.readouterr().err
    text = (tmp_path / "results.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["results"][0]["reason"] == "nonfinite"


def test_other_bits_than_the_reference_fail(extras, monkeypatch, capsys, tmp_path):
    real = demo.SideBySide.equal_bits

    def after_one_ulp(self, params):
        assert real(self, params)
        params[2][0, 0] = np.nextafter(params[2][0, 0], np.inf)
        return real(self, params)

    monkeypatch.setattr(demo.SideBySide, "equal_bits", after_one_ulp)
    assert exit_code("demo", "--optimizer", "adam", "--epochs", 1, "--out", tmp_path) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[4].endswith("NO")
    assert err == "fastopt demo: Adam: bits differ from the reference\n"


def test_equal_bits_tells_zeros_apart_and_nans_not():
    a = np.array([0.0, 1.0, np.nan], np.float32)
    payload = a.copy()
    payload.view(np.uint32)[2] ^= 1
    minus = a.copy()
    minus[0] = -0.0
    assert demo._without_nans(a) == demo._without_nans(payload)
    assert demo._without_nans(a) != demo._without_nans(minus)


def test_an_output_folder_that_is_none_is_one_line(extras, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert exit_code("demo", "--out", out) == 2
        err = capsys.readouterr().err
        assert "--out: cannot write to" in err
        assert err.count("\n") == 1


def test_the_gradient_of_the_network_is_its_loss_differentiated():
    rng = np.random.default_rng(0)
    params = demo.initial_weights((5, 4, 3), rng, "float64")
    params = [p + rng.normal(0, 0.1, p.shape) for p in params]
    batch = rng.normal(size=(6, 5)), rng.integers(0, 3, 6)
    _, grads = demo.loss_and_gradients(params, batch)
    for p, g in zip(params, grads, strict=True):
        for index in np.ndindex(p.shape):
            old, h = p[index], 1e-6
            p[index] = old + h
            above, _ = demo.loss_and_gradients(params, batch)
            p[index] = old - h
            below, _ = demo.loss_and_gradients(params, batch)
            p[index] = old
            assert g[index] == pytest.approx((above - below) / (2 * h), abs=1e-8)


def test_digits_are_standardized_on_the_training_images(extras):
    (x_train, y_train), (x_test, y_test) = demo.load_digits(0, "float64")
    assert x_train.shape == (1437, 64)
    assert x_test.shape == (360, 64)
    np.testing.assert_allclose(x_train.mean(axis=0), 0, atol=1e-12)
    deviations = x_train.std(axis=0)
    constant = deviations == 0
    assert constant.any()  # border pixels
    np.testing.assert_allclose(deviations[~constant], 1, rtol=1e-12)
    assert np.isfinite(x_test).all()
    assert set(y_train) == set(y_test) == set(range(10))


@pytest.mark.parametrize("names", [["Adam"], ["Adam", "SGD"], [f"O{i}" for i in range(5)]])
def test_picture_stands_empty_and_nonfinite_curves(extras, names, tmp_path):
    curves = [[3.0, 2.0, 1.0], [], [float("nan")] * 3, [0.0, 0.0], [5.0]]
    rows = [
        demo.Row(name, 0.1, 3.0, 1.0, 0.5, len(losses), 1.0, 2.0, 2.0, True, "max_steps", losses)
        for name, losses in zip(names, curves, strict=False)
    ]
    demo.draw(rows, tmp_path / "picture.png", window=2)
    assert (tmp_path / "picture.png").stat().st_size > 1000
