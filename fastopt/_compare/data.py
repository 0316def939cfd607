"""Real data to learn from: scikit-learn's, or a CSV file; split, and scaled by its training part."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import HyperparameterError
from .tables import (
    FEATURES,
    REMEDIES,
    TARGETS,
    DataError,
    Sheet,
    exact,
    has_comma,
    is_number,
    listed,
    named,
    read,
    short,
)

__all__ = ["BUNDLED", "SCALES", "TASKS", "Dataset", "Split", "load", "scaler", "split"]

Array = npt.NDArray[Any]

BUNDLED = ("digits", "breast_cancer", "diabetes")
TASKS = ("classification", "regression")
SCALES = ("standard", "minmax")

MOST_CLASSES = 10  # of whole numbers that nobody has called classes
TEST_SHARE = 0.2


@dataclass(frozen=True)
class Dataset:
    """Samples as they were read, in their own units."""

    name: str
    x: Array
    """(samples, features), float64."""
    y: Array
    """(samples,): the index of the class, or the number to learn."""
    features: tuple[str, ...]
    target: str
    """What is learned."""
    classes: tuple[str, ...] = ()
    """Their names, as they stand in the file; none for a regression."""
    scale: str = "standard"
    """How the features are normalized: one of `SCALES`."""
    defaults: tuple[str, ...] = ()
    """What nobody has chosen: "target", "task"."""

    @property
    def task(self) -> str:
        """One of `TASKS`."""
        return "classification" if self.classes else "regression"

    @property
    def description(self) -> str:
        """What is learned, and of how much: a sentence in lower case, without its full stop."""
        target = short(self.target) + " (the last column, by default)" * ("target" in self.defaults)
        task = self.task + " (by default, from its values)" * ("task" in self.defaults)
        n_features = len(self.x[0])
        amount = f"{n_features} feature{'s' * (n_features > 1)}, {len(self.y):,} samples"
        if self.classes:
            amount = f"{len(self.classes)} classes ({listed(self.classes)}), {amount}"
        return f"learning {target}, a {task}: {amount}{self._look_alikes()}{self._words()}"

    def _words(self) -> str:
        """Return a remark on text among numbers, which makes names of classes of all, unless that was asked for."""
        words = [label for label in self.classes if not is_number(label)]
        if "task" not in self.defaults or not words or 2 * len(words) > len(self.classes):
            return ""
        return f"; as {short(words[0])} is no number, the values are taken for names: correct it to learn numbers"

    def _look_alikes(self) -> str:
        """Return a remark on the first two classes that are the same number, which no reader would expect."""
        for one, other in pairwise(self.classes):
            if is_number(one) and is_number(other) and exact(one) == exact(other):
                return f"; {short(one)} and {short(other)} are two classes, as labels are compared as text"
        return ""


@dataclass(frozen=True)
class Split:
    """Training and test samples, normalized by what the training samples are like."""

    train: tuple[Array, Array]
    test: tuple[Array, Array]
    unit: float = 1.0
    """For a regression: the target's standard deviation, by which it was divided; in its own units."""


def load(name: str, target: str | None = None, task: str | None = None, scale: str = "standard") -> Dataset:
    """Load one of scikit-learn's data sets by its name, or a CSV file by its path.

    Parameters
    ----------
    name : str
        One of `BUNDLED`, or the path of a CSV file with a header.
    target : str, optional
        The column to learn; the last one by default. For CSV files only.
    task : str, optional
        One of `TASKS`. By default a regression where every value of the target is a number, but for few distinct
        whole ones; else a classification, whose labels are compared as text. For CSV files only.
    scale : str, default "standard"
        How features are normalized: to mean 0 and standard deviation 1, or, ``"minmax"``, to 0 and 1. The target
        of a regression always has mean 0 and standard deviation 1, so that a loss of 1 is that of guessing the mean.

    Raises
    ------
    DataError
        If the file cannot be read, or its data not be learned from.
    HyperparameterError
        If an argument is none of those above.
    """
    for what, value, known in (("task", task or TASKS[0], TASKS), ("scale", scale, SCALES)):
        if value not in known:
            raise HyperparameterError(f"{what} must be one of {', '.join(known)}, not {value!r}")
    if name in BUNDLED:
        for option, text in (("target", target), ("task", task)):
            if text is not None:
                raise HyperparameterError(f"--{option} is for CSV files: {name} comes with its own")
        return _bundled(name, scale)
    path = Path(name)
    if not path.exists() and not path.suffix:
        raise DataError(f"{name}: no such file, and none of the data sets {', '.join(BUNDLED)}")
    return _from_sheet(read(path), target, task, scale)


def scaler(scale: str) -> Any:
    """Return scikit-learn's scaler of that name, not fitted yet.

    Its standard deviation is over n samples; the table in the lecture notes has it over n - 1, as
    `fastopt.standardize` with ``ddof=1``.
    """
    from sklearn.preprocessing import MinMaxScaler, StandardScaler

    return {"standard": StandardScaler, "minmax": MinMaxScaler}[scale]()


def split(dataset: Dataset, seed: int, dtype: str = "float64") -> Split:
    """Return four fifths of the samples to train with, the others to test with, both scaled by the former."""
    from sklearn.model_selection import train_test_split

    # Each class needs a place in the test part; a fifth of the rows may be fewer than there are classes.
    n_test = max(math.ceil(TEST_SHARE * len(dataset.y)), len(dataset.classes))
    stratify = dataset.y if dataset.classes else None
    parts = train_test_split(dataset.x, dataset.y, test_size=n_test, random_state=seed % 2**32, stratify=stratify)
    x_train, x_test, y_train, y_test = parts
    # Fitted on the training samples alone. Columns that are constant there are divided by 1.
    features = scaler(dataset.scale).fit(x_train)
    x_train, x_test = (np.ascontiguousarray(features.transform(part), dtype) for part in (x_train, x_test))
    if dataset.classes:
        return Split((x_train, y_train), (x_test, y_test))
    numbers = scaler("standard").fit(y_train[:, None])
    y_train, y_test = (numbers.transform(part[:, None])[:, 0].astype(dtype) for part in (y_train, y_test))
    return Split((x_train, y_train), (x_test, y_test), float(numbers.scale_[0]))


def _bundled(name: str, scale: str) -> Dataset:
    from sklearn import datasets

    if name == "diabetes":
        found = datasets.load_diabetes(scaled=False)
        return Dataset(name, found.data, found.target, tuple(found.feature_names), "disease progression", (), scale)
    found = {"digits": datasets.load_digits, "breast_cancer": datasets.load_breast_cancer}[name]()
    features, classes = (tuple(map(str, names)) for names in (found.feature_names, found.target_names))
    target = {"digits": "digit", "breast_cancer": "diagnosis"}[name]
    return Dataset(name, found.data, found.target, features, target, classes, scale)


def _from_sheet(sheet: Sheet, target: str | None, task: str | None, scale: str) -> Dataset:
    names = list(sheet.columns)
    defaults = tuple(what for what, value in (("target", target), ("task", task)) if value is None)
    target = names[-1] if target is None else target
    if target not in names:
        raise sheet.error(f"no column {short(target)} to learn; there are the {named(names, at_most=20)}")
    sheet.check_complete()
    features = [name for name in names if name != target]
    x = sheet.numbers(features, FEATURES)
    constant = [name for name, low, high in zip(features, x.min(axis=0), x.max(axis=0), strict=True) if low == high]
    if constant:
        raise sheet.error(f"{named(constant)} {'are' if len(constant) > 1 else 'is'} constant: nothing to learn from")
    if task is None:
        task = _likely_task(sheet, target)
    if task == "classification":
        y, classes = _classes(sheet, target)
    else:
        y, classes = sheet.numbers([target], TARGETS)[:, 0], ()
    if (y == y[0]).all():
        cells = tuple(dict.fromkeys(sheet.columns[target]))
        value = short(cells[0]) if len(cells) == 1 else f"the same number ({listed(cells)})"
        remedy = f"; {REMEDIES[TARGETS]}" if len(cells) > 1 else ""
        raise sheet.error(f"the target, {named([target])}, is {value} in every row: nothing to learn{remedy}")
    return Dataset(sheet.path.stem, x, y, tuple(features), target, classes, scale, defaults)


def _likely_task(sheet: Sheet, target: str) -> str:
    cells = sheet.columns[target]
    if any(map(has_comma, cells)):  # most likely numbers, and nobody has called them classes
        raise sheet.holds_text([target], TARGETS)
    labels = set(cells)
    if not all(map(is_number, labels)):
        return "classification"
    few = len(labels) <= min(MOST_CLASSES, len(cells) // 4)
    return "classification" if few and all(float(label).is_integer() for label in labels) else "regression"


def _classes(sheet: Sheet, target: str) -> tuple[Array, tuple[str, ...]]:
    """Return the class of each row, as an index, and the labels: numbers by size, text by the alphabet.

    Labels are compared as text: 00501 and 501 are two, 1.1 and 1.10, too.
    """
    cells = sheet.columns[target]
    counts = Counter(cells)
    numeric = all(map(is_number, counts))
    classes = tuple(sorted(counts, key=lambda label: (exact(label), label)) if numeric else sorted(counts))
    alone = [label for label in classes if counts[label] == 1]
    if alone:
        raise _too_few(sheet, target, alone, classes)
    places = {label: place for place, label in enumerate(classes)}
    return np.array([places[cell] for cell in cells]), classes


def _too_few(sheet: Sheet, target: str, alone: list[str], classes: tuple[str, ...]) -> DataError:
    """Return the error that classes have one sample; it names the text for which numbers became classes."""
    words = [label for label in (*alone, *classes) if not is_number(label)]
    label = words[0] if words and words[0] in alone else alone[0]
    more = f"; {len(alone)} of {len(classes)} classes have one only" if len(alone) > 1 else ""
    advice = "leave such lines out"
    if not words:
        advice += ", or give --task=regression to learn numbers"
    elif any(map(is_number, classes)):
        advice += f", or correct {short(words[0])} in line {sheet.line_of(target, words[0])} to learn numbers"
    where = f"class {short(label)} in line {sheet.line_of(target, label)}"
    return sheet.error(f"{named([target])}: {where} has one sample, two are needed{more}: {advice}")
