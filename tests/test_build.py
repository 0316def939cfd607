"""Nobody tests yesterday's build: what `make test` and `make try` build again, and when."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
if not (ROOT / "Makefile").exists() or not (ROOT / "tools" / "build_in_place.py").exists():
    pytest.skip("the sources are not beside the tests", allow_module_level=True)

OLD = 1_000_000_000  # a date in 2001


# --- The wheel

# In the place of the interpreter that builds: puts a source into the "wheel", and then runs meanwhile.sh.
BUILDER = """#!/bin/sh
mkdir -p dist
echo built >>built.log
cat fastopt/*.py >dist/fastopt-0.whl
if [ -f meanwhile.sh ]; then sh meanwhile.sh; rm meanwhile.sh; fi
"""


@pytest.fixture
def make(tmp_path):
    """make() asks for the wheel in a small tree; returns whether it was built."""
    if not shutil.which("make") or os.name == "nt":
        pytest.skip("needs make")
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md"):
        (tmp_path / name).touch()
    for name in ("fastopt", "src_c", ".venv/build/bin"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "fastopt" / "a.py").write_text("first\n")
    builder = tmp_path / ".venv/build/bin/python"
    builder.write_text(BUILDER)
    builder.chmod(0o755)
    shutil.copy(ROOT / "Makefile", tmp_path)

    def run() -> bool:
        log = tmp_path / "built.log"
        log.write_text("")
        env = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "FASTOPT"))}
        subprocess.run(["make", "-s", "dist/ready"], cwd=tmp_path, env=env, check=True, capture_output=True)
        return log.read_text() != ""

    run.folder = tmp_path
    run.wheel = lambda: (tmp_path / "dist" / "fastopt-0.whl").read_text()
    return run


def test_a_wheel_is_built_once(make):
    assert make() and not make() and make.wheel() == "first\n"


def test_what_is_saved_during_a_build_is_built_next_time(make):
    (make.folder / "meanwhile.sh").write_text("echo second >fastopt/a.py\n")
    assert make() and make.wheel() == "first\n"
    assert make() and make.wheel() == "second\n"
    assert not make()


def test_what_is_moved_here_with_an_old_date_or_removed_is_noticed(make):
    assert make()
    other = make.folder / "fastopt" / "b.py"
    other.write_text("more\n")
    os.utime(other, (OLD, OLD))
    assert make() and make.wheel() == "first\nmore\n"
    other.unlink()
    assert make() and make.wheel() == "first\n"


# --- The source tree

# In the place of setup.py: "compiles" the sources into a module, as setuptools would, by their dates or by --force.
SETUP = """
import pathlib, sys
source, module, meanwhile = pathlib.Path("fastopt/a.pyx"), pathlib.Path("fastopt/a.so"), pathlib.Path("meanwhile")
with open("built.log", "a") as log:
    print(*sys.argv[1:], file=log)
text = source.read_text()
if text == "wrong":
    module.unlink(missing_ok=True)
    sys.exit("an error of the compiler")
if meanwhile.exists():
    source.write_text(meanwhile.read_text())
    meanwhile.unlink()
if "--force" in sys.argv or not module.exists() or source.stat().st_mtime > module.stat().st_mtime:
    module.write_text(text)
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A small tree, and the builder of `make try` for it."""
    spec = importlib.util.spec_from_file_location("build_in_place", ROOT / "tools" / "build_in_place.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    (tmp_path / "fastopt").mkdir()
    (tmp_path / "environment").mkdir()
    (tmp_path / "setup.py").write_text(SETUP)
    source = tmp_path / "fastopt" / "a.pyx"
    source.write_text("first")
    os.utime(source, (OLD, OLD))
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    monkeypatch.setattr(tool, "FOLDER", tmp_path / "environment")
    monkeypatch.setattr(tool, "STATE", tmp_path / "environment" / "built.json")
    tool.source, tool.module, tool.meanwhile = source, tmp_path / "fastopt" / "a.so", tmp_path / "meanwhile"
    return tool


def test_modules_in_the_tree_are_built_once(place):
    assert place.build() and place.module.read_text() == "first"
    assert not place.build()


def test_a_source_with_an_old_date_is_built(place):
    place.build()
    place.source.write_text("second")
    os.utime(place.source, (OLD + 1, OLD + 1))
    assert place.build() and place.module.read_text() == "second"


def test_a_source_that_is_saved_during_the_build_is_built_at_once(place):
    place.meanwhile.write_text("second")
    assert place.build() and place.module.read_text() == "second"
    assert not place.build()


def test_a_module_that_something_else_has_put_there_is_built_anew(place):
    place.build()
    place.module.write_text("of another build")
    assert place.build() and place.module.read_text() == "first"


def test_after_a_build_that_failed_the_old_sources_are_built_again(place):
    place.build()
    first = place.source.stat()
    place.source.write_text("wrong")
    with pytest.raises(SystemExit):
        place.build()
    assert not place.module.exists()
    place.source.write_text("first")
    os.utime(place.source, (first.st_atime, first.st_mtime))
    assert place.build() and place.module.read_text() == "first"


def test_other_levels_are_another_build(place, monkeypatch):
    place.build()
    monkeypatch.setenv("FASTOPT_BUILD_LEVELS", "generic")
    assert place.build() and not place.build()
