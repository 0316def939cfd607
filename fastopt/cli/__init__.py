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
from typing import Any, NoReturn

from ..errors import FastoptError, MissingExtraError
from . import compare, demo, info
from ._arguments import near

__all__ = ["main"]

COMMANDS = (demo, compare, info)


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong and where to read more, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, _failure(self.prog, message))

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        # argparse words this differently in each version of Python, and knows of no name that was probably meant.
        if action.choices is not None and value not in action.choices:
            known = list(map(str, action.choices))
            raise argparse.ArgumentError(action, f"{value!r} is none of {', '.join(known)}{near(value, known)}")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        # argparse leaves the complaint to the parser of the whole command line, which points to its own help.
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            options = [option for action in self._actions for option in action.option_strings]
            meant = next(filter(None, (near(word.partition("=")[0], options) for word in unknown)), "")
            self.error(f"unrecognized arguments: {' '.join(unknown)}{meant}")
        return found, unknown


def _failure(prog: str, message: object) -> str:
    """Return what is printed where the command line is wrong."""
    return f"{prog}: error: {message} (see {prog} --help)\n"


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
    except MissingExtraError as error:  # which says what to install; no help says more
        print(f"fastopt {args.command}: error: {error}", file=sys.stderr)
        return 2
    except FastoptError as error:
        sys.stderr.write(_failure(f"fastopt {args.command}", error))
        return 2
    except KeyboardInterrupt:
        print(f"fastopt {args.command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, `head` for one, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as a shell says it of a process that SIGPIPE ended
    except (OSError, MemoryError) as error:  # a full disk, a folder where a file should go
        print(f"fastopt {args.command}: error: {str(error) or 'not enough memory'}", file=sys.stderr)
        return 1
    return code
