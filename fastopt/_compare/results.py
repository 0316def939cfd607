"""Files of results: whole or not there at all, and JSON without what it does not know."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

__all__ = ["finite", "whole_file", "write_json"]


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a file to write, beside `path` and with its ending, that takes its place when the body is done.

    If the body raises, Ctrl-C included, `path` stays as it was, and nothing is left beside it. A checkpoint has to
    outlive a crash of the machine, too, and is written by `fastopt.checkpoint`.
    """
    temporary = path.with_name(f".writing-{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.errno and str(error.filename or temporary) == str(temporary):
            error.filename, error.filename2 = str(path), None  # nobody has heard of the temporary file
        raise


def write_json(value: Any, path: Path) -> Path:
    """Write plain data as JSON, and return where."""
    with whole_file(path) as file:
        file.write_text(json.dumps(finite(value), indent=1) + "\n", encoding="utf-8")
    return path


def finite(value: Any) -> Any:
    """Return the same with null for NaN and infinity, which JSON does not know."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
