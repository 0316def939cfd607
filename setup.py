"""The extension modules and their flags. All other metadata is in pyproject.toml."""

import contextlib
import os
import pathlib
import subprocess
import sys

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": False,
    "embedsignature": True,
    "binding": True,
    # Steps rely on the GIL: small ones keep it, and arrays are looked at without references to them.
    "freethreading_compatible": False,
    "subinterpreters_compatible": "no",
}

# The bits of a step rest on these. They undo a -ffast-math or -Ofast from CFLAGS or a vendor's default; at
# the link too, where those would add code that switches off subnormals for the whole process.
EXACT = ["-fno-fast-math", "-O3", "-ffp-contract=off", "-g0"]
EXACT_MSVC = ["/O2", "/fp:precise"]  # from Visual Studio 2022 on, precise no longer contracts
# Without these two a square root or a choice between two values keeps a loop scalar. They change no result.
VECTORIZE = ["-fno-math-errno", "-fno-trapping-math"]
# clang gives up where five arrays may overlap in more ways than it checks by default.
VECTORIZE_CLANG = ["-mllvm", "-runtime-memory-check-threshold=32"]
NOTHING_PROGRAM = "int main(void) { return 0; }\n"

# kernel module: (flags of gcc and clang, flags of MSVC)
LEVELS = {
    "generic": ([], []),
    "x86_64_v2": (["-march=x86-64-v2"], []),
    "x86_64_v3": (["-march=x86-64-v3"], ["/arch:AVX2"]),
    "x86_64_v4": (["-march=x86-64-v4", "-mprefer-vector-width=512"], ["/arch:AVX512"]),
    "x86_64_v4_narrow": (["-march=x86-64-v4", "-mprefer-vector-width=256"], ["/arch:AVX512"]),
}

# What the engine is made of besides its own source, for setuptools to notice a change.
ENGINE_PARTS = [
    *pathlib.Path("src_c").glob("*.h"),
    *pathlib.Path("fastopt/_engine").glob("*.pxi"),
    pathlib.Path("fastopt/kernels/table.pxd"),
]
KERNEL_PARTS = [
    "src_c/fastopt_lanes.h",
    *(f"fastopt/kernels/{name}" for name in ("rules.pxi", "stages.pxi", "sums.pxi", "formats.pxi", "table.pxd")),
]

X86_64_PROGRAM = """
#if !(defined(__x86_64__) || defined(_M_X64)) || defined(_M_ARM64EC)
#error "not x86-64"
#endif
int main(void) { return 0; }
"""
NATIVE_PROGRAM = """
#include "fastopt_cpu.c"
#include <stdio.h>
int main(void) { return fputs(fo_cpu_level(), stdout) < 0; }
"""
OPENMP_PROGRAM = """
#include <omp.h>
int main(void) { return omp_get_max_threads() < 1; }
"""


class BuildExt(build_ext):
    """Ask the compiler what it can do, translate Cython to C in the build folder, compile in parallel."""

    def finalize_options(self):
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()
        if folder := os.environ.get("FASTOPT_BUILD_DIR"):  # of `make dev`: apart from that of the wheel
            self.build_temp, self.build_lib = (str(pathlib.Path(folder, name)) for name in ("temp", "lib"))

    def build_extensions(self):
        import Cython
        import numpy as np
        from Cython.Build import cythonize

        msvc = self.compiler.compiler_type == "msvc"
        asked = self.asked_levels()
        self.extensions[:] = [
            ext for ext in self.extensions if level_of(ext) in asked and self.level_is_possible(ext, msvc)
        ]
        openmp = self.openmp_flags(msvc)
        exact = EXACT_MSVC if msvc else EXACT
        vectorize = [] if msvc else VECTORIZE
        if not msvc and self.compiles(NOTHING_PROGRAM, VECTORIZE_CLANG):
            vectorize = vectorize + VECTORIZE_CLANG
        for ext in self.extensions:
            if ext.name == "fastopt.engine":
                ext.include_dirs += [np.get_include()]
                facts = {"FLAGS": " ".join(exact + vectorize + openmp[0]), "CYTHON": Cython.__version__,
                         "NUMPY": np.__version__}  # fmt: skip
                ext.define_macros += [(f"FO_{name}", f'"{value}"') for name, value in facts.items()]
                ext.extra_compile_args += exact + openmp[0]
                ext.extra_link_args += ([] if msvc else [*EXACT, "-pthread"]) + openmp[1]
                ext.libraries += ["dl"] if sys.platform == "linux" else []  # dladdr, before glibc 2.34
            else:
                flags = LEVELS[level_of(ext)][msvc]
                ext.extra_compile_args += exact + vectorize + flags
                ext.extra_link_args += [] if msvc else EXACT

        # cythonize() returns new objects, without what setuptools has noted on ours: take only the sources.
        translated = cythonize(self.extensions, compiler_directives=DIRECTIVES, build_dir=self.build_temp)
        for ext, c_ext in zip(self.extensions, translated, strict=True):
            ext.sources = c_ext.sources
        super().build_extensions()

    def asked_levels(self):
        """The levels to build, and None for what is no level: FASTOPT_BUILD_LEVELS has names, or "native"."""
        names = os.environ.get("FASTOPT_BUILD_LEVELS", "").replace("-", "_").replace(",", " ").split()
        if names == ["native"]:
            names = [self.native_level()]
        if unknown := set(names) - set(LEVELS):
            raise SystemExit(f"FASTOPT_BUILD_LEVELS: {', '.join(unknown)}: known are native, {', '.join(LEVELS)}")
        narrow = [f"{name}_narrow" for name in names if f"{name}_narrow" in LEVELS]
        return {None, *(names + narrow or LEVELS)}

    def native_level(self):
        """The highest level of this CPU, as the engine will find it."""
        program = self.compiles(NATIVE_PROGRAM, ["-Isrc_c"])
        if not program:
            raise SystemExit("FASTOPT_BUILD_LEVELS=native: a program that asks the CPU could not be built")
        return subprocess.run([program], capture_output=True, text=True, check=True).stdout.replace("-", "_")

    def copy_extensions_to_source(self):
        """Put the modules into the tree, and remove those of levels that are not built: they may be of old sources."""
        super().copy_extensions_to_source()
        built = {ext.name for ext in self.extensions}
        for level in LEVELS:
            name = f"fastopt.kernels.{level}"
            if name not in built:
                pathlib.Path("fastopt/kernels", pathlib.Path(self.get_ext_filename(name)).name).unlink(missing_ok=True)

    def level_is_possible(self, ext, msvc):
        """Whether the target is of the extension's architecture and the compiler knows its level."""
        flags = LEVELS.get(level_of(ext), ([], []))[msvc]
        if "x86_64" not in ext.name:
            return True
        if not self.compiles(X86_64_PROGRAM):
            return False
        if not self.compiles(X86_64_PROGRAM, flags):
            print(f"fastopt: {ext.name} is left out, the compiler rejects {' '.join(flags)}")
            return False
        return True

    def openmp_flags(self, msvc):
        """Flags (for compiling, for linking) with which an OpenMP program links; none without one."""
        if os.environ.get("FASTOPT_OPENMP") == "0":
            print("fastopt: building without OpenMP, as FASTOPT_OPENMP=0 asks: one thread")
            return [], []
        candidates = [(["/openmp"], [])] if msvc else [(["-fopenmp"], ["-fopenmp"])]
        if sys.platform == "darwin":  # Apple's clang knows the pragmas but not the flag
            candidates.append((["-Xclang", "-fopenmp"], ["-lomp"]))
        for flags in candidates:
            if self.compiles(OPENMP_PROGRAM, *flags):
                return flags
        print("fastopt: building without OpenMP, since no OpenMP program could be linked: one thread")
        return [], []

    def compiles(self, program, compile_args=(), link_args=()):
        """The program, if this build's compiler and linker accept it, else None; their complaints are not shown."""
        folder = pathlib.Path(self.build_temp, "probe")
        folder.mkdir(parents=True, exist_ok=True)
        source = folder / "probe.c"
        source.write_text(program)
        with silence():
            try:
                objects = self.compiler.compile([str(source)], str(folder), extra_postargs=list(compile_args))
                self.compiler.link_executable(objects, str(folder / "probe"), extra_postargs=list(link_args))
            except (CompileError, LinkError):
                return None
        return self.compiler.executable_filename(str(folder / "probe"))


def level_of(ext):
    """The level that an extension module is the kernels of; None of the engine."""
    return ext.name.rpartition(".")[2] if ext.name.startswith("fastopt.kernels.") else None


@contextlib.contextmanager
def silence():
    """Send what this process and its children print to nowhere."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        for number in (1, 2):
            os.dup2(nowhere.fileno(), number)
    try:
        yield
    finally:
        for number, copy in zip((1, 2), saved, strict=True):
            os.dup2(copy, number)
            os.close(copy)


setup(
    cmdclass={"build_ext": BuildExt},
    ext_modules=[
        Extension(
            "fastopt.engine",
            ["fastopt/engine.pyx", "src_c/fastopt_cpu.c", "src_c/fastopt_threads.c"],
            include_dirs=["src_c"],
            depends=[str(path) for path in ENGINE_PARTS],
        ),
        *(
            Extension(
                f"fastopt.kernels.{level}",
                [f"fastopt/kernels/{level}.pyx"],
                include_dirs=["src_c"],
                depends=KERNEL_PARTS,
            )
            for level in LEVELS
        ),
    ],
)
