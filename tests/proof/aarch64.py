"""A Python for 64-bit Arm in a folder, which runs here in qemu's emulation, for compilers.py.

It is made of packages of the distribution, fetched by apt with lists of its own (the system's are left alone), and of
wheels fetched by pip. Nothing is installed: the folder can be removed.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys

COMPILER = "aarch64-linux-gnu-gcc"
TOOLS = {
    COMPILER: "gcc-aarch64-linux-gnu", "qemu-aarch64": "qemu-user", "apt-get": "apt", "dpkg-deb": "dpkg",
}  # fmt: skip
PACKAGES = ("python3", "libpython3-dev", "libgomp1", "libstdc++6")
WHEELS = ("numpy", "cython<3.3", "setuptools", "pytest", "hypothesis", "safetensors")
PLATFORMS = ("manylinux2014_aarch64", "manylinux_2_17_aarch64", "manylinux_2_27_aarch64", "manylinux_2_28_aarch64")


class NotHere(Exception):
    """Something that is needed is not on this machine."""


def prepare(folder: pathlib.Path) -> tuple[list[str], dict[str, str]]:
    """The command that runs this Python, and the environment to build and to test in; makes the folder if need be."""
    missing = [f"{tool} (package {package})" for tool, package in TOOLS.items() if shutil.which(tool) is None]
    if missing:
        raise NotHere(f"not on this machine: {', '.join(missing)}; this needs Debian or a system like it")
    system, site = folder / "system", folder / "site"
    python = ["qemu-aarch64", "-L", str(system), str(system / "usr/bin/python3")]
    if not (folder / "ready").exists():
        fetch_system(folder / "apt", system)
        fetch_wheels(python, site)
        (folder / "ready").touch()
    # After the compiler's own: only Python's headers are missing there.
    return python, {"PYTHONPATH": str(site), "CFLAGS": f"-idirafter {system / 'usr/include'}"}


def fetch_system(apt: pathlib.Path, system: pathlib.Path) -> None:
    """Unpack Python and what it links to, as of the distribution that apt knows."""
    for name in ("lists/partial", "archives/partial", "state"):
        (apt / name).mkdir(parents=True, exist_ok=True)
    (apt / "status").touch()
    options = {
        "APT::Architecture": "arm64", "APT::Architectures": "arm64", "Dir::State": apt / "state",
        "Dir::State::lists": apt / "lists", "Dir::State::status": apt / "status", "Dir::Cache": apt,
        "Dir::Cache::archives": apt / "archives", "APT::Sandbox::User": "root",
    }  # fmt: skip
    command = ["apt-get", "-qq", *(f"-o{key}={value}" for key, value in options.items())]
    run(*command, "update")
    run(*command, "--yes", "--no-install-recommends", "--download-only", "install", *PACKAGES)
    for package in sorted((apt / "archives").glob("*.deb")):
        run("dpkg-deb", "--extract", str(package), str(system))


def fetch_wheels(python: list[str], site: pathlib.Path) -> None:
    """What building and testing take, for that Python."""
    version = subprocess.run(
        [*python, "-c", "import sys; print(*sys.version_info[:2], sep='.')"], capture_output=True, text=True, check=True
    ).stdout.strip()
    run(sys.executable, "-m", "pip", "--disable-pip-version-check", "-qq", "install", "--target", str(site),
        "--only-binary=:all:", "--implementation=cp", f"--python-version={version}",
        *(f"--platform={name}" for name in PLATFORMS), *WHEELS)  # fmt: skip


def run(*command: str) -> None:
    """Run a command that fetches; raises NotHere with what it said."""
    done = subprocess.run(command, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, capture_output=True,
                          text=True)  # fmt: skip
    if done.returncode:
        raise NotHere(f"{' '.join(command[:1])} failed: {done.stderr.strip()[-500:]}")
