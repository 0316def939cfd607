"""A CSV file as columns of numbers, or one line that says what is wrong with it."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import FastoptError

__all__ = [
    "FEATURES", "TARGETS", "DataError", "Sheet", "exact", "has_comma", "is_number", "listed", "named", "read", "short",
]  # fmt: skip

Array = npt.NDArray[np.float64]

DELIMITERS = ",;\t"
MISSING = {"", "na", "n/a", "nan", "+nan", "-nan", "null", "?"}
FEWEST_ROWS = 10
LARGEST = 1e100  # its square, which the scaler sums up, is a number still
WHOLE_UP_TO = 2**53  # from there on, float64 cannot tell every whole number from the next

FEATURES, TARGETS = "features", "the targets of a regression"
REMEDIES = {
    FEATURES: "one-hot encode them, for example, or leave them out",
    TARGETS: "for names of classes, give --task=classification",
}
COMMAS = "write a point for a decimal comma, and leave out commas between thousands"


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

    def numbers(self, names: Sequence[str], what: str) -> Array:
        """Return these columns, which are `FEATURES` or `TARGETS`, as an array (rows, columns) of finite numbers."""
        text = [name for name in names if not all(map(is_number, self.columns[name]))]
        if text:
            raise self.holds_text(text, what)
        table = np.array([list(map(float, self.columns[name])) for name in names]).T
        self._check_size(names, table)
        for name, column in zip(names, table.T, strict=True):
            self._check_exact(name, column, what)
        return table

    def check_complete(self) -> None:
        """Raise an error that names the first missing value."""
        gaps = [
            (line, name, cell)
            for name, cells in self.columns.items()
            for line, cell in zip(self.lines, cells, strict=True)
            if cell.lower() in MISSING
        ]
        if gaps:
            line, name, cell = min(gaps, key=lambda gap: gap[0])
            total = "" if len(gaps) == 1 else f" ({len(gaps)} values are missing in all)"
            spelled = f"; {short(cell)} means a missing value, and cannot be a label" if cell else ""
            raise self.error(
                f"{named([name])} has no value in line {line}{total}: fill it in or leave such lines out{spelled}"
            )

    def error(self, message: str) -> DataError:
        """Return an error about this file."""
        return DataError(f"{self.path}: {message}")

    def line_of(self, name: str, cell: str) -> int:
        """Return the first line in which a column has this cell."""
        return self.lines[self.columns[name].index(cell)]

    def holds_text(self, names: Sequence[str], what: str) -> DataError:
        """Return the error that these columns, which are `FEATURES` or `TARGETS`, hold text."""
        text = [cell for cell in self.columns[names[0]] if not is_number(cell)]
        cell = next(filter(has_comma, text), text[0])
        where = f"{short(cell)} in line {self.line_of(names[0], cell)}"
        wanted = COMMAS if has_comma(cell) else f"{what} must be numbers"
        remedy = "" if has_comma(cell) and what == FEATURES else f"; {REMEDIES[what]}"
        return self.error(f"{named(names)} {'hold' if len(names) > 1 else 'holds'} text ({where}): {wanted}{remedy}")

    def _check_size(self, names: Sequence[str], table: Array) -> None:
        wrong = ~(np.abs(table) <= LARGEST)
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            cell = short(self.columns[names[column]][row])
            why = f"is too large, above {LARGEST:g}" if np.isfinite(table[row, column]) else "is not a finite number"
            raise self.error(f"{named([names[column]])}: {cell} in line {self.lines[row]} {why}")

    def _check_exact(self, name: str, column: Array, what: str) -> None:
        """Raise an error if different whole numbers, such as ids, have become one."""
        first: dict[float, str] = {}
        for row in np.flatnonzero(np.abs(column) >= WHOLE_UP_TO):
            cell = self.columns[name][row]
            other = first.setdefault(column[row], cell)
            if exact(cell) != exact(other) and all(map(_is_whole, (cell, other))):
                raise self.error(
                    f"{named([name])}: {short(other)} in line {self.line_of(name, other)} and {short(cell)} in line "
                    f"{self.lines[row]} are the same number in float64, which holds 15 digits: subtract the "
                    f"same number from all values; {REMEDIES[what]}"
                )


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
    return f"column{'s' * (len(names) > 1)} {listed(names, at_most)}"


def listed(names: Sequence[str], at_most: int = 6) -> str:
    """Return "'a', 'b'" or, of many, the first ones and how many more."""
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return f"{', '.join(map(short, names[:at_most]))}{more}"


def short(text: str) -> str:
    """Return the text in quotes, on one line, not too long."""
    return repr(text if len(text) <= 40 else text[:37] + "...")


def is_number(cell: str) -> bool:
    """Return whether the cell can be read as a number, if only as an infinite one."""
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell  # 1_000 is a number in Python only; elsewhere it is the name of something


def has_comma(cell: str) -> bool:
    """Return whether the cell looks like a number with a decimal comma, or with commas between thousands."""
    return "," in cell and is_number(re.sub(r"[\s.,']", "", cell))


def exact(cell: str) -> Decimal:
    """Return the number in a cell with all its digits."""
    try:
        return Decimal(cell)
    except InvalidOperation:  # an exponent out of all reason
        return Decimal(float(cell))


def _is_whole(cell: str) -> bool:
    return cell.lstrip("+-").isdigit()


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
    if all(is_number(name) or has_comma(name) for name in header):
        raise DataError(f"{path}: has no header: line 1 is all numbers, where the names of the columns belong")
    if "" in header:
        raise DataError(f"{path}: column {header.index('') + 1} has no name")
    twice = next((name for i, name in enumerate(header) if name in header[:i]), None)
    if twice is not None:
        raise DataError(f"{path}: two columns are called {short(twice)}")
