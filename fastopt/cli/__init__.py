"""The command line: ``fastopt``, and ``python -m fastopt``.

A command is a module of this folder with ``add_parser(commands)``, which sets ``run``, a function of the
parsed arguments that returns the exit code. Modules import what is heavy or optional only when they run.

Exit codes: 0 good, 1 the job failed, 2 it could not be started (bad arguments, a missing extra), 130
interrupted, 141 cut off by the reader of its output.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from ..errors import FastoptError
from . import compare, demo, info

__all__ = ["main"]

COMMANDS = (demo, compare, info)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


class _Version(argparse.Action):
    """Looks up the version only when asked."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from .. import __version__

        print(f"fastopt {__version__}")
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = _Parser(prog="fastopt", description="Exact, compiled optimizer steps on arrays in memory.")
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="command")
    for command in COMMANDS:
        command.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments, without the program's name; None takes ``sys.argv``.
    """
    for stream in (sys.stdout, sys.stderr):  # an encoding without, say, a superscript 2 is no reason to end
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    parser = build_parser()
    args = parser.parse_args(argv)
    if not hasattr(args, "run"):
        parser.print_help(sys.stderr)
        return 2
    try:
        code = int(args.run(args))
        sys.stdout.flush()
    except FastoptError as error:
        print(f"fastopt {args.command}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"fastopt {args.command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, `head` for one, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as a shell says it of a process that SIGPIPE ended
    except OSError as error:  # a full disk, a folder where a file should go
        print(f"fastopt {args.command}: error: {error}", file=sys.stderr)
        return 1
    return code
