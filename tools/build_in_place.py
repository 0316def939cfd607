"""Build the extension modules that have changed into the source tree, as `make dev` and `make try` do.

    FASTOPT_BUILD_LEVELS=native python tools/build_in_place.py

What is built is decided by the contents of the sources: files that were moved here with an old date, or saved while the
compiler ran, are built, too. After a build that failed, everything is built anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path(sys.prefix) / "build"  # of the environment that it is built with and for
STATE = FOLDER / "built.json"
COMPILED = ("setup.py", "fastopt/**/*.pyx", "fastopt/**/*.pxi", "fastopt/**/*.pxd", "src_c/*.[ch]")
SETTINGS = ("FASTOPT_BUILD_LEVELS", "FASTOPT_OPENMP", "CC", "CFLAGS", "LDFLAGS")


def sources() -> dict[str, str]:
    """The digests of all that a build depends on, by name."""
    files = sorted(path for pattern in COMPILED for path in ROOT.glob(pattern))
    digests = {str(path.relative_to(ROOT)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    return digests | {name: os.environ.get(name, "") for name in SETTINGS} | {"python": sys.version}


def modules_are_there(places: dict[str, float]) -> bool:
    """Whether the modules of the last build are in the tree, as it left them."""
    return bool(places) and all(Path(p).exists() and Path(p).stat().st_mtime == t for p, t in places.items())


def build() -> bool:
    """Build what has changed; returns whether there was anything to do."""
    last = json.loads(STATE.read_text()) if STATE.exists() else {"sources": {}, "begin": 0.0, "modules": {}}
    intact = modules_are_there(last["modules"])
    if intact and last["sources"] == sources():
        return False
    STATE.unlink(missing_ok=True)
    while True:
        begin, before = time.time(), sources()
        old = last["sources"]
        changed = [ROOT / name for name in before.keys() | old.keys() if before.get(name) != old.get(name)]
        # setuptools goes by dates: where they do not show the change, all is built.
        shown = intact and all(path.exists() and path.stat().st_mtime > last["begin"] for path in changed)
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace", *([] if shown else ["--force"])]
        env = {**os.environ, "FASTOPT_BUILD_DIR": str(FOLDER)}
        if code := subprocess.run(command, cwd=ROOT, env=env).returncode:
            sys.exit(code)
        if sources() == before:
            break
        print("fastopt: sources were saved during the build: building again")
        last, intact = {"sources": {}, "begin": 0.0, "modules": {}}, False
    suffixes = (".so", ".pyd")
    modules = {str(p): p.stat().st_mtime for p in ROOT.glob("fastopt/**/*") if p.suffix in suffixes}
    STATE.write_text(json.dumps({"sources": before, "begin": begin, "modules": modules}))
    return True


if __name__ == "__main__":
    build()
