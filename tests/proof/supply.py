"""Ask pip-audit whether what fastopt and its extras need has known vulnerabilities: `make audit`. Needs the network.

Without --audit it only prints what the core and each extra need.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

try:
    import tomllib
except ImportError:  # before Python 3.11
    import tomli as tomllib

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def name_of(requirement: str) -> str:
    """The project that a requirement names, in normal form."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def requirements(pyproject: Path) -> dict[str, list[str]]:
    """What the core, its build and each extra need, with the extras that an extra refers to spelt out."""
    document = tomllib.loads(pyproject.read_text(encoding="utf-8"))
    project = document["project"]
    extras = project.get("optional-dependencies", {})

    def resolved(lines: list[str]) -> list[str]:
        out: list[str] = []
        for line in lines:
            own = re.fullmatch(rf"{project['name']}\[(.*)\]", line.replace(" ", ""))
            out += [need for extra in own[1].split(",") for need in resolved(extras[extra])] if own else [line]
        return list(dict.fromkeys(out))

    return {
        "core": resolved(project["dependencies"]),
        "build": document["build-system"]["requires"],
        **{extra: resolved(lines) for extra, lines in extras.items()},
    }


def audit(lines: list[str], core: list[str]) -> int:
    """pip-audit's exit code for these requirements; what it could not look up is a failure, too."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "requirements.txt")
        file.write_text("\n".join(dict.fromkeys([*core, *lines])) + "\n", encoding="utf-8")
        return subprocess.run([sys.executable, "-m", "pip_audit", "--strict", "-r", str(file)], check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--audit", action="store_true", help="ask pip-audit, which has to be installed")
    parser.add_argument("extras", nargs="*", help="only these (core, build, or an extra); all by default")
    args = parser.parse_args()
    needs = requirements(PYPROJECT)
    unknown = set(args.extras) - set(needs)
    if unknown:
        parser.error(f"no such extra: {', '.join(sorted(unknown))}; there are: {', '.join(needs)}")
    failed = []
    for extra in args.extras or needs:
        print(f"{extra}: {', '.join(needs[extra])}", flush=True)
        if args.audit and audit(needs[extra], needs["core"] if extra != "build" else []):
            failed.append(extra)
    if failed:
        print(f"not found to be without known vulnerabilities: {', '.join(failed)}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
