"""``fastopt compare`` that does not come to its end: what was done is on the page, which says what is missing."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys

import pytest

from fastopt._compare import results, stage
from fastopt.cli import main
from fastopt.errors import HyperparameterError

for module in ("matplotlib", "PIL", "sklearn", "tqdm"):
    pytest.importorskip(module)

SHORT = ["--steps=3", "--format=png", "--no-animation"]


def warning(out):
    """Return what the page says of parts that are missing; None if it says nothing."""
    found = re.search('<p class="warning">(.*)</p>', (out / "index.html").read_text(encoding="utf-8"))
    return found and found[1]


def sections(out):
    return re.findall(r'<h2 id="part-\d+-([\w-]+)">', (out / "index.html").read_text(encoding="utf-8"))


def hidden(out):
    return [path.name for path in out.iterdir() if path.name.startswith(".")]


@pytest.fixture
def failing(monkeypatch):
    """Return what makes the part of a scene raise an error."""

    def fail(name, error):
        def of_scene(scene, *arguments):
            part = real(scene, *arguments)

            def perform(tick):
                raise error

            return stage.Part(part.name, part.work, perform) if scene.name == name else part

        monkeypatch.setattr(stage, "of_scene", of_scene)

    real = stage.of_scene
    return fail


def started(*arguments):
    """Return the command as a child process that Ctrl-C reaches, even if this one was started with it ignored."""
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from fastopt.cli import main; sys.exit(main(['compare', *sys.argv[1:]]))"
    )
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def interrupted(running, line):
    """Wait for a line that begins so, press Ctrl-C, and return exit code and what was said of errors."""
    assert any(text.startswith(line) for text in iter(running.stdout.readline, ""))
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=120)
    return running.returncode, err


@pytest.mark.skipif(os.name != "posix", reason="signals are sent so on POSIX")
def test_ctrl_c_leaves_a_page_of_what_was_done(tmp_path):
    running = started("dip", "himmelblau", "beale", "--format=png", "--no-animation", "--json", f"--out={tmp_path}")
    code, err = interrupted(running, "A local minimum")  # dip is done; the others take seconds
    assert code == 130
    page = f"fastopt compare: what was done, 1 of 3 parts, is on one page: {tmp_path / 'index.html'}"
    assert err.splitlines() == [page, "fastopt compare: interrupted"]
    assert sections(tmp_path) == ["dip"]
    assert warning(tmp_path) == "The run was interrupted: this page has 1 of 3 parts. Missing: himmelblau, beale."
    assert list(json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))) == ["dip"]
    assert hidden(tmp_path) == []


@pytest.mark.skipif(os.name != "posix", reason="signals are sent so on POSIX")
def test_ctrl_c_before_anything_is_done_leaves_the_page_of_an_earlier_run(tmp_path):
    (tmp_path / "index.html").write_text("earlier")
    running = started("--data=digits", "--epochs=2000", "--repeats=1", "--optimizer=sgd", "--json", f"--out={tmp_path}")
    code, err = interrupted(running, "digits: learning")
    assert (code, err) == (130, "fastopt compare: interrupted\n")
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]
    assert (tmp_path / "index.html").read_text() == "earlier"


def test_ctrl_c_twice_leaves_no_half_page(tmp_path, monkeypatch, failing, capsys):
    (tmp_path / "index.html").write_text("earlier")
    failing("himmelblau", KeyboardInterrupt())
    real = os.replace

    def replace(file, target):
        if str(target).endswith(".html"):
            raise KeyboardInterrupt
        real(file, target)

    monkeypatch.setattr(results.os, "replace", replace)
    assert main(["compare", "dip", "himmelblau", *SHORT, "--quiet", f"--out={tmp_path}"]) == 130
    assert capsys.readouterr().err == "fastopt compare: interrupted\n"
    assert (tmp_path / "index.html").read_text() == "earlier"
    assert hidden(tmp_path) == []


def test_ctrl_c_while_the_page_is_written_leaves_a_whole_page(tmp_path, monkeypatch):
    real, pressed = os.replace, []

    def replace(file, target):
        if str(target).endswith(".html") and not pressed:
            pressed.append(True)
            raise KeyboardInterrupt
        real(file, target)

    monkeypatch.setattr(results.os, "replace", replace)
    assert main(["compare", "dip", *SHORT, "--quiet", f"--out={tmp_path}"]) == 130
    assert (sections(tmp_path), warning(tmp_path), hidden(tmp_path)) == (["dip"], None, [])


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (MemoryError(), 1, "not enough memory"),
        (OSError(28, "No space left on device"), 1, "[Errno 28] No space left on device"),
        (HyperparameterError("lr must be smaller"), 2, "lr must be smaller (see fastopt compare --help)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_ends_a_run_early_leaves_a_page_too(error, code, said, tmp_path, failing, capsys):
    failing("himmelblau", error)
    assert main(["compare", "dip", "himmelblau", "overshoot", *SHORT, "--quiet", f"--out={tmp_path}"]) == code
    page, last = capsys.readouterr().err.splitlines()
    assert page == f"fastopt compare: what was done, 1 of 3 parts, is on one page: {tmp_path / 'index.html'}"
    assert last == f"fastopt compare: error: {said}"
    assert sections(tmp_path) == ["dip"]
    reason = str(error) or "MemoryError"
    assert warning(tmp_path) == (
        f"The run ended early ({reason}): this page has 1 of 3 parts. Missing: himmelblau, overshoot."
    )


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_file_is_whole_or_as_it_was(error, tmp_path):
    file = tmp_path / "picture.png"
    with results.whole_file(file) as new:
        new.write_text("earlier")
        assert new.suffix == ".png" and not file.exists()
    with pytest.raises(error), results.whole_file(file) as new:
        new.write_text("half")
        raise error
    assert file.read_text() == "earlier" and hidden(tmp_path) == []


def test_an_error_names_the_file_that_was_to_be_written(tmp_path):
    (tmp_path / "index.html").mkdir()
    with pytest.raises(OSError) as error, results.whole_file(tmp_path / "index.html") as new:
        new.write_text("")
    assert (error.value.filename, error.value.filename2) == (str(tmp_path / "index.html"), None)
