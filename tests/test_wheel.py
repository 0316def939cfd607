"""The installed package: its metadata, the libraries in it, and how it gets on with others that bring their own."""

import re
import subprocess
import sys
import textwrap
from importlib import metadata
from pathlib import Path

import pytest

import fastopt
from fastopt import engine

ROOT = Path(__file__).resolve().parents[1]


def of_this(found: metadata.Distribution) -> bool:
    """Whether it is the installed wheel that the module here comes from: one may be built into another folder."""
    here = Path(fastopt.__file__).resolve()
    return found.read_text("WHEEL") is not None and Path(found.locate_file("fastopt/__init__.py")).resolve() == here


INSTALLED = next(filter(of_this, metadata.distributions(name="fastopt")), None)
needs_installation = pytest.mark.skipif(INSTALLED is None, reason="this fastopt was not installed from a wheel")
OTHERS = {
    "torch": "x = torch.ones(500, 500); y = x @ x; assert y[0, 0] == 500",
    "sklearn.ensemble": "sklearn.ensemble.HistGradientBoostingRegressor(max_iter=3).fit(X, X[:, 0])",
}


# --- Beside others


@pytest.mark.parametrize("first", ["fastopt", "the other"])
@pytest.mark.parametrize("other", OTHERS)
def test_steps_of_two_threads_beside_a_library_with_its_own_openmp(other, first):
    """No hang, no crash, the same bits; in a forked child, too."""
    pytest.importorskip(other)
    imports = [f"import {other}", "import fastopt"]
    code = """
        import os, signal, numpy as np
        {imports}
        from fastopt import engine
        engine.set_serial_blocks(0)
        engine.set_most_alone(0)
        rng = np.random.default_rng(0)
        X = rng.standard_normal((2000, 4))
        params = [rng.standard_normal(n, np.float32) for n in (1, 200_000, 17, 30_000)]
        grads = [rng.standard_normal(p.size, np.float32) for p in params]
        opt = fastopt.AdamW(params, n_threads=2)
        twin = fastopt.reference.twin(opt)
        def check():
            for _ in range(20):
                opt.step(grads)
                twin.step(grads)
            assert all((a.view(np.int32) == b.view(np.int32)).all() for a, b in zip(params, twin.params))
        check()
        {work}
        check()
        {work}
        child = os.fork() if hasattr(os, "fork") else 0
        if not child:
            if hasattr(signal, "alarm"):
                signal.alarm(60)  # a child that hangs does not stay behind
            check()
            print(*fastopt.show_config("dicts")["openmp_runtimes"], sep="\\n", flush=True)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    """
    code = textwrap.dedent(code).format(
        imports="\n".join(imports if first != "fastopt" else imports[::-1]), work=OTHERS[other]
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    if sys.platform == "linux" and engine.info()["openmp"]:
        assert done.stdout.strip(), "no OpenMP library was loaded: nothing was tested"


# --- What was installed


@needs_installation
def test_every_library_in_the_wheel_has_its_licence_there():
    files = [str(file) for file in INSTALLED.files]
    libraries = {re.split(r"[-.]", Path(file).name)[0] for file in files if re.match(r"fastopt\.(libs|dylibs)/.", file)}
    licenses = [file for file in files if re.search(r"\.dist-info/licenses/.", file)]
    assert [file for file in licenses if file.endswith("licenses/LICENSE")]
    for library in libraries:
        assert [file for file in licenses if f"licenses/{library}/" in file], f"{library} is here without its licence"
    expression = INSTALLED.metadata["License-Expression"]
    assert expression.startswith("BSD-3-Clause")
    assert ("GPL-3.0-or-later WITH GCC-exception-3.1" in expression) == ("libgomp" in libraries)
    named = {f"licenses/{name}" for name in INSTALLED.metadata.get_all("License-File")}
    assert named == {file.split(".dist-info/")[1] for file in licenses}


@needs_installation
def test_the_package_has_its_code_and_no_sources():
    files = [str(file) for file in INSTALLED.files if str(file).startswith("fastopt/")]
    assert not [file for file in files if file.endswith((".pyx", ".pxi", ".pxd", ".c", ".h"))]
    assert "fastopt/py.typed" in files and "fastopt/engine.pyi" in files
    for module in (fastopt, engine):
        assert str(Path(module.__file__).relative_to(INSTALLED.locate_file(""))) in files


@needs_installation
def test_the_version_is_said_in_one_place():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    version = re.search(r'^version = "(.+)"$', text, re.M)[1]
    assert fastopt.__version__ == INSTALLED.version == version


def test_the_changelog_has_the_version():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    version = re.search(r'^version = "(.+)"$', text, re.M)[1]
    assert re.search(rf"^## {re.escape(version)}\b", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
