"""Feature scaling: min-max and standard, with the statistics of the training samples kept for all other samples.

Every function computes in float64 and rounds once, to the type of the result. No function modifies its input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .engine import as_values, is_number, shown
from .errors import DTypeError, HyperparameterError, NonFiniteError, ShapeError
from .training import _integer

__all__ = ["Scaler", "minmax_scale", "standardize"]


@dataclass(frozen=True, eq=False)
class Scaler:
    """A linear map for each feature: ``(x - offset) / scale``, then from 0 … 1 to ``feature_range``.

    `minmax` and `standard` take the statistics from samples. The constructor takes them as they are, for published
    means and deviations. A scaler is immutable, and can be copied and pickled.

    The first dimension of an array holds the samples. The others are the shape of a sample, and each of its elements is
    one feature: a column of a table ``(samples, features)``, or the only feature of a vector ``(samples,)``.

    Parameters
    ----------
    offset : array_like
        What is subtracted: finite numbers, in the shape of a sample.
    scale : array_like
        What it is divided by: positive finite numbers, in the same shape.
    feature_range : (float, float), default (0, 1)
        What the quotients 0 and 1 become: two finite numbers, the lower one first. (0, 1) leaves them as they are.

    Raises
    ------
    DTypeError, ShapeError, HyperparameterError
        If an argument is of the wrong type or shape, or out of range.

    See Also
    --------
    minmax_scale, standardize : the same in one call, where no other samples have to be scaled alike.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import Scaler
    >>> train, test = np.array([[0.0, 5.0], [10.0, 7.0]]), np.array([[5.0, 9.0]])
    >>> scaler = Scaler.standard(train)
    >>> scaler.transform(train).tolist()
    [[-1.0, -1.0], [1.0, 1.0]]
    >>> scaler.transform(test).tolist()
    [[0.0, 3.0]]
    >>> scaler.inverse_transform(scaler.transform(test)).tolist()
    [[5.0, 9.0]]
    """

    offset: npt.NDArray[np.float64]
    """What is subtracted, in the shape of a sample; float64, read-only."""
    scale: npt.NDArray[np.float64]
    """What it is divided by, in the shape of a sample; float64, read-only. 1 for a constant feature."""
    feature_range: tuple[float, float] = (0.0, 1.0)
    """What the quotients 0 and 1 become."""

    def __post_init__(self) -> None:
        offset, scale = (_kept(name, getattr(self, name)) for name in ("offset", "scale"))
        if offset.shape != scale.shape:
            raise ShapeError(f"offset has shape {offset.shape}, scale {scale.shape}; both must have that of a sample")
        if not (scale > 0).all():
            raise HyperparameterError(f"scale must be above 0 everywhere, not {scale.min():g}")
        for name, value in (("offset", offset), ("scale", scale), ("feature_range", _range(self.feature_range))):
            object.__setattr__(self, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.offset, self.scale, self.feature_range)  # a copy is read-only, too

    @classmethod
    def minmax(cls, x: Any, feature_range: tuple[float, float] = (0.0, 1.0)) -> Scaler:
        """Return the scaler that maps the smallest value of each feature to 0, the largest to 1.

        ``offset = min(x)``, ``scale = max(x) - min(x)``, over the samples. A feature that is constant gets the scale 1.

        Parameters
        ----------
        x : array_like
            The training samples, as for `minmax_scale`.
        feature_range : (float, float), default (0, 1)
            What the smallest and the largest value become, both exactly.

        Raises
        ------
        DTypeError, ShapeError, NonFiniteError, HyperparameterError
            As for `minmax_scale`.
        """
        values, _ = _samples(x)
        low, high = _extremes(values)
        spread = high - low
        return cls(low, np.where(spread > 0, spread, 1.0), feature_range)

    @classmethod
    def standard(cls, x: Any, *, ddof: int = 0) -> Scaler:
        """Return the scaler that gives each feature the mean 0 and the standard deviation 1.

        ``offset = mean(x)``, ``scale = sqrt(sum((x - offset)²) / (n - ddof))``, over the n samples. A feature that is
        constant gets its value as the offset, and the scale 1.

        Parameters
        ----------
        x : array_like
            The training samples, as for `standardize`.
        ddof : int, default 0
            As for `standardize`.

        Raises
        ------
        DTypeError, ShapeError, NonFiniteError, HyperparameterError
            As for `standardize`.
        """
        values, _ = _samples(x)
        ddof = _integer("ddof", ddof, 0)
        low, high = _extremes(values)
        known = ~np.isnan(values)
        n = known.sum(axis=0)
        if (n <= ddof).any():
            at = ", ".join([":", *map(str, np.argwhere(n <= ddof)[0].tolist())])
            raise HyperparameterError(
                f"ddof={ddof} needs at least {ddof + 1} values of each feature; x[{at}] has {n.min()}"
            )
        # A power of two brings the largest value of a feature to between 1/2 and 1, exactly: no square leaves float64.
        _, power = np.frexp(np.maximum(np.abs(low), np.abs(high)))
        unit = np.ldexp(np.where(known, values, 0.0), -power)
        mean = unit.sum(axis=0) / n
        deviation = np.sqrt(np.square(np.where(known, unit - mean, 0.0)).sum(axis=0) / (n - ddof))
        constant = low == high
        scale = np.where(constant, 1.0, np.ldexp(deviation, power))
        return cls(np.where(constant, low, np.ldexp(mean, power)), np.where(scale > 0, scale, 1.0))

    def transform(self, x: Any) -> npt.NDArray[Any]:
        """Return samples scaled by the kept statistics: ``t = (x - offset) / scale``, then ``low (1 - t) + high t``.

        Parameters
        ----------
        x : array_like
            Samples whose features are those of the training samples: ``x.shape[1:] == offset.shape``. Numbers of
            float32, float64, integers or bools. NaN stays NaN; an infinity stays one.

        Returns
        -------
        ndarray
            A new array of the same shape: float32 if `x` is, else float64.

        Raises
        ------
        DTypeError, ShapeError
            If `x` is of another type or shape.
        """
        values, dtype = self._fitting(x)
        scaled = (values - self.offset) / self.scale
        low, high = self.feature_range
        if (low, high) != (0.0, 1.0):
            with np.errstate(invalid="ignore"):
                mapped = low * (1 - scaled) + high * scaled  # exact at both ends
            scaled = np.where(np.isinf(scaled), scaled, mapped)
        return np.asarray(scaled).astype(dtype, copy=False)

    def inverse_transform(self, x: Any) -> npt.NDArray[Any]:
        """Return scaled samples in their own units again, up to rounding.

        ``t = (x - low) / (high - low)``, then ``t scale + offset``.

        Parameters
        ----------
        x : array_like
            Scaled samples, such as predictions of a target that was scaled; otherwise as for `transform`.

        Returns
        -------
        ndarray
            A new array of the same shape: float32 if `x` is, else float64.

        Raises
        ------
        DTypeError, ShapeError
            If `x` is of another type or shape.
        """
        values, dtype = self._fitting(x)
        low, high = self.feature_range
        unit = (values - low) / (high - low)
        return np.asarray(unit * self.scale + self.offset).astype(dtype, copy=False)

    def _fitting(self, x: Any) -> tuple[npt.NDArray[np.float64], Any]:
        values, dtype = _array("x", x)
        if values.ndim == 0 or values.shape[1:] != self.offset.shape:
            wanted = ", ".join(["samples", *map(str, self.offset.shape)]) + "," * (not self.offset.shape)
            raise ShapeError(f"x has shape {values.shape}; this scaler takes ({wanted})")
        return values, dtype


def minmax_scale(x: Any, feature_range: tuple[float, float] = (0.0, 1.0)) -> npt.NDArray[Any]:
    r"""Return the samples with each feature scaled to the range from 0 to 1: min-max normalization.

    .. math:: x' = \frac{x - x_{min}}{x_{max} - x_{min}}, \quad x'' = a (1 - x') + b x'

    The minimum and maximum are those of each feature over the samples; ``(a, b)`` is the `feature_range`. To scale
    other samples with the same minimum and maximum, such as a test set, take `Scaler.minmax`.

    Parameters
    ----------
    x : array_like, shape (samples,) or (samples, ...)
        At least one sample. Each element of a sample is one feature. Numbers of float32, float64, integers or bools.
        NaN stands for a missing value: the statistics leave it out, the result keeps it.
    feature_range : (float, float), default (0, 1)
        What the smallest and the largest value become, both exactly: two finite numbers, the lower one first.

    Returns
    -------
    ndarray
        A new array of the same shape: float32 if `x` is, else float64. A constant feature becomes ``a``.

    Raises
    ------
    DTypeError
        If `x` is of another type.
    ShapeError
        If `x` has no dimension, or no sample.
    NonFiniteError
        If `x` holds an infinity, a feature without any number, or values whose difference is infinite.
    HyperparameterError
        If `feature_range` is not two finite numbers, the lower one first.

    See Also
    --------
    Scaler.minmax : keeps the statistics, for other samples and for the way back.
    standardize : to mean 0 and standard deviation 1.

    Notes
    -----
    ``sklearn.preprocessing.minmax_scale`` multiplies by the reciprocal of the range, which may differ in the last bits.
    It also takes a range below 10 units of rounding as 0; here a feature is constant if all its values are equal.

    References
    ----------
    Han, Kamber, Pei: *Data Mining: Concepts and Techniques*, 3rd edition, 2012, section 3.5.2.

    Examples
    --------
    >>> import fastopt
    >>> fastopt.minmax_scale([[0, 5], [5, 5], [20, 5]]).tolist()
    [[0.0, 0.0], [0.25, 0.0], [1.0, 0.0]]
    >>> fastopt.minmax_scale([10.0, 15.0, 20.0], (-1, 1)).tolist()
    [-1.0, 0.0, 1.0]
    """
    return Scaler.minmax(x, feature_range).transform(x)


def standardize(x: Any, *, ddof: int = 0) -> npt.NDArray[Any]:
    r"""Return the samples with each feature scaled to mean 0 and standard deviation 1: z-scores.

    .. math:: \mu = \frac{1}{n} \sum_i x_i, \quad
              \sigma = \sqrt{\frac{1}{n - ddof} \sum_i (x_i - \mu)^2}, \quad x' = \frac{x - \mu}{\sigma}

    The mean and deviation are those of each feature over the n samples. To scale other samples with the same mean and
    deviation, such as a test set, take `Scaler.standard`.

    Parameters
    ----------
    x : array_like, shape (samples,) or (samples, ...)
        At least one sample. Each element of a sample is one feature. Numbers of float32, float64, integers or bools.
        NaN stands for a missing value: the statistics leave it out, the result keeps it.
    ddof : int, default 0
        What is subtracted from the number of samples under the root ("delta degrees of freedom"); at least 0, and
        below the number of values of each feature. 0 is the deviation of the samples themselves, as in NumPy and
        scikit-learn. 1 is the estimate for the population that they are drawn from, as in pandas and ``torch.std``.

    Returns
    -------
    ndarray
        A new array of the same shape: float32 if `x` is, else float64. A constant feature becomes 0.

    Raises
    ------
    DTypeError
        If `x` is of another type.
    ShapeError
        If `x` has no dimension, or no sample.
    NonFiniteError
        If `x` holds an infinity, a feature without any number, or values whose difference is infinite.
    HyperparameterError
        If `ddof` is no integer of at least 0, or if a feature has no more than `ddof` values.

    See Also
    --------
    Scaler.standard : keeps the statistics, for other samples and for the way back.
    minmax_scale : to the range from 0 to 1.

    Notes
    -----
    ``ddof=0`` is what scikit-learn's ``StandardScaler`` computes, up to rounding; ``ddof=1`` is smaller by the factor
    ``sqrt((n - 1) / n)``. The mean is rounded to float64, so values far from 0 keep few digits: a million values around
    1e9 get a mean of 2e-5, not 0. Subtract a round number first where that matters.

    References
    ----------
    Han, Kamber, Pei: *Data Mining: Concepts and Techniques*, 3rd edition, 2012, section 3.5.2.

    Examples
    --------
    >>> import fastopt
    >>> fastopt.standardize([1, 3]).tolist()
    [-1.0, 1.0]
    >>> fastopt.standardize([1, 2, 3], ddof=1).tolist()
    [-1.0, 0.0, 1.0]
    """
    return Scaler.standard(x, ddof=ddof).transform(x)


# --- arguments


def _array(name: str, value: Any) -> tuple[npt.NDArray[np.float64], Any]:
    """Return values in float64, and the type of a result."""
    try:
        array = np.asarray(value) if isinstance(value, (list, tuple)) else as_values(value, name)
    except ValueError as error:
        if isinstance(value, (list, tuple)):
            raise ShapeError(f"{name} must be an array, or lists of equal length: {error}") from error
        raise
    native = array.dtype.newbyteorder("=")
    if not (native.kind in "biu" or native in (np.float32, np.float64)):
        raise DTypeError(f"{name} has dtype {array.dtype}; float32, float64, an integer type or bool is needed")
    return array.astype(np.float64, copy=False), np.float32 if native == np.float32 else np.float64


def _samples(x: Any) -> tuple[npt.NDArray[np.float64], Any]:
    values, dtype = _array("x", x)
    if values.ndim == 0 or len(values) == 0:
        raise ShapeError(f"x must hold at least one sample along its first dimension, not have shape {values.shape}")
    return values, dtype


def _extremes(values: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the smallest and the largest number of each feature, without its NaNs; all of them finite."""
    infinite = np.argwhere(np.isinf(values))
    if len(infinite):
        at = tuple(infinite[0].tolist())
        raise NonFiniteError(f"x[{', '.join(map(str, at))}] is {values[at]}; a scaler needs finite numbers, or NaN "
                             "for a missing value")  # fmt: skip
    low, high = np.fmin.reduce(values, axis=0), np.fmax.reduce(values, axis=0)
    with np.errstate(over="ignore"):
        spread = np.asarray(high - low)
    for wrong, what in ((np.isnan(spread), "holds no number, only NaN"), (np.isinf(spread), "spans more than float64")):
        if wrong.any():
            at = np.argwhere(wrong)[0].tolist()
            raise NonFiniteError(f"x[{', '.join([':', *map(str, at)])}] {what}")
    return np.asarray(low), np.asarray(high)


def _kept(name: str, value: Any) -> npt.NDArray[np.float64]:
    """Return a statistic as a read-only array of its own."""
    array = _array(name, np.asarray(value) if isinstance(value, (int, float)) else value)[0].copy()
    if not np.isfinite(array).all():
        raise HyperparameterError(f"{name} must be finite everywhere, not {shown(value)}")
    array.setflags(write=False)
    return array


def _range(value: Any) -> tuple[float, float]:
    try:
        low, high = (float(number) if is_number(number) else np.nan for number in value)
    except (TypeError, ValueError):
        low = high = np.nan
    if not (-np.inf < low < high < np.inf and high - low < np.inf):
        raise HyperparameterError(
            "feature_range must be two finite numbers, the lower one first, whose difference is finite, too, not "
            + shown(value)
        )
    return low, high
