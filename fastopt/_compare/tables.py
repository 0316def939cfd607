"""A CSV file as columns of numbers, or one line that says what is wrong with it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import FastoptError

__all__ = ["DataError", "Sheet", "is_number", "named", "read", "short"]

Array = npt.NDArray[np.float64]

DELIMITERS = ",;\t"
MISSING = {"", "na", "n/a", "nan", "null", "?"}
FEWEST_ROWS = 10
LARGEST = 1e100  # its square, which the scaler sums up, is a number still


class DataError(FastoptError, ValueError):
    """Raised when a data set cannot be learned from."""


@dataclass(frozen=True)
class Sheet:
    """A CSV file's cells, which are text still."""

    path: Path
    columns: dict[str, tuple[str, ...]]
    """By name, in the file's order."""
    lines: tuple[int, ...]
    """The line of the file that each row ends in."""

    def numbers(self, names: Sequence[str], what: str = "features") -> Array:
        """Return these columns as an array (rows, columns) of finite numbers."""
        text = [name for name in names if not all(map(is_number, self.columns[name]))]
        if text:
            raise self._holds_text(text, what)
        table = np.array([list(map(float, self.columns[name])) for name in names]).T
        self._check_size(names, table)
        return table

    def check_complete(self) -> None:
        """Raise an error that names the first missing value."""
        gaps = [
            (line, name)
            for name, cells in self.columns.items()
            for line, cell in zip(self.lines, cells, strict=True)
            if cell.lower() in MISSING
        ]
        if gaps:
            line, name = min(gaps, key=lambda gap: gap[0])
            total = "" if len(gaps) == 1 else f" ({len(gaps)} values are missing in all)"
            raise self.error(f"{named([name])} has no value in line {line}{total}: fill it in or leave such lines out")

    def error(self, message: str) -> DataError:
        """Return an error about this file."""
        return DataError(f"{self.path}: {message}")

    def _holds_text(self, names: list[str], what: str) -> DataError:
        first = names[0]
        row, cell = next((i, cell) for i, cell in enumerate(self.columns[first]) if not is_number(cell))
        where = f"{named(names)} {'hold' if len(names) > 1 else 'holds'} text ({short(cell)} in line {self.lines[row]})"
        if is_number(cell.replace(",", ".", 1)):
            return self.error(f"{where}: write a point for a decimal comma, and leave out commas between thousands")
        advice = "; one-hot encode them, for example, or leave them out" if what == "features" else ""
        return self.error(f"{where}: {what} must be numbers{advice}")

    def _check_size(self, names: Sequence[str], table: Array) -> None:
        wrong = ~(np.abs(table) <= LARGEST)
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            cell = short(self.columns[names[column]][row])
            why = f"is too large, above {LARGEST:g}" if np.isfinite(table[row, column]) else "is not a finite number"
            raise self.error(f"{named([names[column]])}: {cell} in line {self.lines[row]} {why}")


def read(path: Path) -> Sheet:
    """Read a CSV file: a header, then rows of equally many cells, separated by comma, semicolon or tab."""
    text = _text(path)
    try:
        # Whatever cuts the header into most names. csv.Sniffer takes decimal commas for separators.
        delimiter = max(DELIMITERS, key=lambda d: len(next(csv.reader(io.StringIO(text.lstrip()), delimiter=d))))
        (_, header), *rows = _cells(text, delimiter)
    except csv.Error as error:
        raise DataError(f"{path}: not a CSV file: {error}") from error
    _check_header(path, header)
    for line, row in rows:
        if len(row) != len(header):
            raise DataError(f"{path}: line {line} has {len(row)} cells, the header {len(header)}")
    if len(rows) < FEWEST_ROWS:
        raise DataError(f"{path}: {len(rows)} rows of data are too few: at least {FEWEST_ROWS} are needed")
    columns = dict(zip(header, zip(*(row for _, row in rows), strict=True), strict=True))
    for name, cells in columns.items():
        if name in cells and not is_number(name) and any(map(is_number, header)):
            raise DataError(f"{path}: has no header: {short(name)} of line 1 is a value of its column, too")
    return Sheet(path, columns, tuple(line for line, _ in rows))


def named(names: Sequence[str], at_most: int = 6) -> str:
    """Return "column 'a'", "columns 'a', 'b'" or, of many, the first ones and how many more."""
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return f"column{'s' * (len(names) > 1)} {', '.join(map(short, names[:at_most]))}{more}"


def short(text: str) -> str:
    """Return the text in quotes, on one line, not too long."""
    return repr(text if len(text) <= 40 else text[:37] + "...")


def is_number(cell: str) -> bool:
    """Return whether the cell can be read as a number, if only as an infinite one."""
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _text(path: Path) -> str:
    if path.is_dir():
        raise DataError(f"{path}: is a folder, not a CSV file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise DataError(f"{path}: not UTF-8 text (byte 0x{byte:02x} at {error.start}): save it as UTF-8") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if "\0" in text:
        raise DataError(f"{path}: not a text file: it holds zero bytes")
    if not text.strip():
        raise DataError(f"{path}: is empty")
    return text


def _cells(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (line, cells) for each row that is not blank."""
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True, strict=True)
    for row in reader:
        cells = [cell.strip() for cell in row]
        if any(cells):
            yield reader.line_num, cells


def _check_header(path: Path, header: list[str]) -> None:
    if len(header) < 2:
        raise DataError(
            f"{path}: has one column only ({short(header[0])}): features and a target are needed, separated by comma, "
            "semicolon or tab"
        )
    if all(map(is_number, header)):
        raise DataError(f"{path}: has no header: line 1 is all numbers, where the names of the columns belong")
    if "" in header:
        raise DataError(f"{path}: column {header.index('') + 1} has no name")
    twice = next((name for i, name in enumerate(header) if name in header[:i]), None)
    if twice is not None:
        raise DataError(f"{path}: two columns are called {short(twice)}")
