"""The specification: every update rule in NumPy, written to be read; the compiled ones are held to it, bit for bit.

Each rule of ``kernels/rules.pxi`` has its twin of the same name here, in two parts as there: ``<name>_scalars`` gives
the scalars of step t, in double, in the order of h; ``<name>`` is the update. Scalars are rounded once to the type of
the arrays (`rounded`), explicitly: NumPy would otherwise compute float32 arrays with float64 scalars in float64.

A rule takes (p, g, state, h) and returns the new (p, state); h[0] is the factor of decoupled weight decay. The stages
around it, in ``kernels/stages.pxi``, have their twins in `STAGES`; `program` says which a step has. Sums over all
elements, in ``kernels/sums.pxi``, have theirs in `SUMS`; the formats of ``kernels/formats.pxi`` in `FORMATS`.

`twin` steps copies of an optimizer's parameters by these rules.

Examples
--------
>>> import numpy as np, fastopt
>>> w = np.array([1.0, -2.0, 3.0], np.float32)
>>> opt = fastopt.Adam(w, lr=0.1)
>>> twin = fastopt.reference.twin(opt)
>>> g = np.array([0.5, 0.25, -1.0], np.float32)
>>> opt.step(g)
>>> twin.step([g])
>>> bool((w == twin.params[0]).all())
True
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf, nan, sqrt
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

if TYPE_CHECKING:
    from fastopt.declare import Slot, Spec, Storage
    from fastopt.optimizer import Optimizer

Array = Any
State = list[Any]
Scalars = Sequence[Any]
X = Mapping[str, float]
_Stages = list[tuple[str, list[Any]]]
Numbers = tuple[float, ...]
_ScalarsOf = Callable[[X, int, Numbers], tuple[list[float], Numbers]]
_Function = TypeVar("_Function", bound=Callable[..., Any])

RULES: dict[str, Callable[..., Any]] = {}
"""Every rule by name."""
SCALARS: dict[str, _ScalarsOf] = {}
"""By the name of a rule: what gives its scalars."""
STAGES: dict[str, Callable[..., Array]] = {}
"""Every stage by name."""


def rule(scalars: _ScalarsOf) -> Callable[[_Function], _Function]:
    """Enter a function as a rule under its name, with the function that gives its scalars."""

    def enter(function: _Function) -> _Function:
        RULES[function.__name__], SCALARS[function.__name__] = function, scalars
        return function

    return enter


def stage(function: _Function) -> _Function:
    """Enter a function as a stage under its name."""
    STAGES[function.__name__] = function
    return function


def ratio(a: Array, b: Array) -> Array:
    """The quotient a / b, and 0 where b is 0: with eps = 0 an element with a zero accumulator does not move."""
    return np.where(b == 0, np.zeros_like(b), a / np.where(b == 0, np.ones_like(b), b))


def largest(a: Array, b: Array) -> Array:
    """The larger of two; NaN from either side stays; of two zeros it is b."""
    return np.where((a > b) | np.isnan(a), a, b)


# --- SGD


def sgd_scalars(x: X, t: int, numbers: Numbers) -> tuple[list[float], Numbers]:
    return [x["lr"]], numbers


@rule(scalars=sgd_scalars)
def sgd(p: Array, g: Array, state: State, h: Scalars) -> tuple[Array, State]:
    decay, lr = h
    return p * decay - lr * g, []


def sgd_momentum_scalars(x: X, t: int, numbers: Numbers) -> tuple[list[float], Numbers]:
    begun = (1.0, *numbers[1:])
    if numbers[0] == 0:  # a new buffer starts as the gradient
        return [x["lr"], 0.0, 1.0, x["momentum"]], begun
    return [x["lr"], x["momentum"], 1.0 - x["dampening"], x["momentum"]], begun


@rule(scalars=sgd_momentum_scalars)
def sgd_momentum(p: Array, g: Array, state: State, h: Scalars) -> tuple[Array, State]:
    (b,) = state
    decay, lr, mu, c, _ = h
    b = mu * b + c * g
    return p * decay - lr * b, [b]


@rule(scalars=sgd_momentum_scalars)
def sgd_nesterov(p: Array, g: Array, state: State, h: Scalars) -> tuple[Array, State]:
    (b,) = state
    decay, lr, mu, c, ahead = h
    b = mu * b + c * g
    return p * decay - lr * (ahead * b + g), [b]


def velocity_scalars(x: X, t: int, numbers: Numbers) -> tuple[list[float], Numbers]:
    return [x["lr"], x["momentum"]], (1.0, *numbers[1:])


@rule(scalars=velocity_scalars)
def velocity(p: Array, g: Array, state: State, h: Scalars) -> tuple[Array, State]:
    (v,) = state
    decay, lr, mu = h
    v = mu * v - lr * g
    return p * decay + v, [v]


@rule(scalars=velocity_scalars)
def velocity_nesterov(p: Array, g: Array, state: State, h: Scalars) -> tuple[Array, State]:
    (v,) = state
    decay, lr, mu = h
    d = lr * g
    v = mu * v - d
    return p * decay + (mu * v - d), [v]


def asgd_scalars(x: X, t: int, numbers: Numbers) -> tuple[list[float], Numbers]:
    def stored(eta: float, mu: float) -> Numbers:  # PyTorch keeps both in float32
        return float(np.float32(eta)) if x["single_eta"] else eta, float(np.float32(mu)) if x["single_mu"] else mu

    lr, lambd = x["lr"], x["lambd"]
    eta, mu = stored(*((lr, 1.0) if t == 1 else numbers))
    coming = stored(lr / (1.0 + lambd * lr * t) ** x["alpha"], 1.0 / max(1.0, t - x["t0"]))
    return [1.0 - lambd * eta, eta, mu], coming


@rule(scalars=asgd_scalars)
def asgd(p: Array, g: Array, state: State, h: Scalars) -> tuple[Array, State]:
    (ax,) = state
    decay, shrink, eta, mu = h
    p = p * decay * shrink - eta * g
    return p, [p if mu == 1 else ax + (p - ax) * mu]


# --- Adagrad, Adadelta


def adagrad_scalars(x: X, t: int, numbers: Numbers) -> tuple[list[float], Numbers]:
    clr = x["lr"] / (1.0 + (t - 1.0) * x["lr_decay"])
    return ([clr, x["eps"], 0.0] if x["eps_inside"] else [clr, 0.0, x["eps"]]), numbers


@rule(scalars=adagrad_scalars)
def adagrad(p: Array, g: Array, state: State, h: Scalars) -> tuple[Array, State]:
    (v,) = state
    decay, lr, e_in, e_out = h
    v = v + g * g
    return p * decay - ratio(lr * g, np.sqrt(v + e_in) + e_out), [v]


def adadelta_scalars(x: X, t: int, numbers: Numbers) -> tuple[list[float], Numbers]:
    return [x["lr"], x["rho"], 1.0 - x["rho"], x["eps"]], numbers


@rule(scalars=adadelta_scalars)
def adadelta(p: Array, g: Array, state: State, h: Scalars) -> tuple[Array, State]:
    v, u = state
    decay, lr, rho, c, eps = h
    v = rho * v + c * g * g
    d = ratio(np.sqrt(u + eps), np.sqrt(v + eps)) * g
    u = rho * u + c * d * d
    return p * decay - lr * d, [v, u]


# --- RMSprop


def rmsprop_scalars(x: X, t: int, numbers: Numbers) -> tuple[list[float], Numbers]:
    alpha, lr, eps = x["alpha"], x["lr"], x["eps"]
    a = 1.0 / (1.0 - alpha**t) if x["bias_correction"] else 1.0
    e_in, e_out = (eps, 0.0) if x["eps_inside"] else (0.0, eps)
    l_in, l_out = (lr, 1.0) if x["lr_inside"] else (1.0, lr)
    return [alpha, 1.0 - alpha, a, e_in, e_out, l_in, x["momentum"], l_out], numbers


def rms(v: Array, g: Array, h: Scalars) -> tuple[Array, Array]:
    """The running average of the square, and its root with eps."""
    _, b, c, a, e_in, e_out, *_ = h
    v = b * v + c * g * g
    return v, np.sqrt(v * a + e_in) + e_out


def deviation(v: Array, w: Array, g: Array, h: Scalars) -> tuple[Array, Array, Array]:
    """The running averages of the square and of the gradient, and the root of the variance with eps."""
    _, b, c, a, e_in, e_out, *_ = h
    v = b * v + c * g * g
    w = b * w + c * g
    mean = w * a
    variance = v * a - mean * mean
    variance = np.where(variance < 0, np.zeros_like(variance), variance)  # rounding can take it there
    return v, w, np.sqrt(variance + e_in) + e_out


@rule(scalars=rmsprop_scalars)
def rmsprop(p: Array, g: Array, state: State, h: Scalars) -> tuple[Array, State]:
    v, root = rms(state[0], g, h)
    decay, l_in, l_out = h[0], h[6], h[8]
    return p * decay - l_out * ratio(l_in * g, root), [v]


@rule(scalars=rmsprop_scalars)
def rmsprop_momentum(p: Array, g: Array, state: State, h: Scalars) -> tuple[Array, State]:
    v, root = rms(state[0], g, h)
    decay, l_in, mu, l_out = h[0], h[6], h[7], h[8]
    m = mu * state[1] + ratio(l_in * g, root)
    return p * decay - l_out * m, [v, m]


@rule(scalars=rmsprop_scalars)
def rmsprop_nesterov(p: Array, g: Array, state: State, h: Scalars) -> tuple[Array, State]:
    v, root = rms(state[0], g, h)
    decay, l_in, mu, l_out = h[0], h[6], h[7], h[8]
    u = ratio(l_in * g, root)
    m = mu * state[1] + u
    return p * decay - l_out * (mu * m + u), [v, m]


@rule(scalars=rmsprop_scalars)
def rmsprop_centered(p: Array, g: Array, state: State, h: Scalars) -> tuple[Array, State]:
    v, w, root = deviation(state[0], state[1], g, h)
    decay, l_in, l_out = h[0], h[6], h[8]
    return p * decay - l_out * ratio(l_in * g, root), [v, w]


@rule(scalars=rmsprop_scalars)
def rmsprop_centered_momentum(p: Array, g: Array, state: State, h: Scalars) -> tuple[Array, State]:
    v, w, root = deviation(state[0], state[1], g, h)
    decay, l_in, mu, l_out = h[0], h[6], h[7], h[8]
    m = mu * state[2] + ratio(l_in * g, root)
    return p * decay - l_out * m, [v, w, m]


@rule(scalars=rmsprop_scalars)
def rmsprop_centered_nesterov(p: Array, g: Array, state: State, h: Scalars) -> tuple[Array, State]:
    v, w, root = deviation(state[0], state[1], g, h)
    decay, l_in, mu, l_out = h[0], h[6], h[7], h[8]
    u = ratio(l_in * g, root)
    m = mu * state[2] + u
    return p * decay - l_out * (mu * m + u), [v, w, m]


# --- Adam and its kin

OUTSIDE, INSIDE, OUTSIDE_UNCORRECTED, INSIDE_UNCORRECTED = range(4)


def denominator(x: X, bc2: float) -> tuple[float, list[float]]:
    """The numerator's factor, and [a, e_in, c, e_out] of the denominator sqrt(v * a + e_in) * c + e_out."""
    eps, eps_root, placement = x["eps"], x["eps_root"], x["eps_placement"]
    if placement == OUTSIDE and eps_root == 0:  # sqrt(v / bc2) + eps
        return 1.0, [1.0, 0.0, 1.0 / sqrt(bc2), eps]
    if placement == OUTSIDE:  # sqrt(v / bc2 + eps_root) + eps
        return 1.0, [1.0 / bc2, eps_root, 1.0, eps]
    if placement == INSIDE:  # sqrt(v / bc2 + eps)
        return 1.0, [1.0 / bc2, eps, 1.0, 0.0]
    if placement == OUTSIDE_UNCORRECTED:  # (sqrt(v) + eps) / sqrt(bc2)
        return sqrt(bc2), [1.0, eps_root, 1.0, eps]
    return sqrt(bc2), [1.0, eps, 1.0, 0.0]  # sqrt(v + eps) / sqrt(bc2)


def moments(x: X) -> list[float]:
    """[b1, c1, b2, c2]."""
    return [x["beta1"], 1.0 - x["beta1"], x["beta2"], 1.0 - x["beta2"]]


def corrections(x: X, t: float) -> tuple[float, float]:
    """bc1 and bc2."""
    if not x.get("bias_correction", True):
        return 1.0, 1.0
    return 1.0 - x["beta1"] ** t, 1.0 - x["beta2"] ** t


def adam_scalars(x: X, t: int, numbers: Numbers) -> tuple[list[float], Numbers]:
    bc1, bc2 = corrections(x, t)
    factor, terms = denominator(x, bc2)
    return [*moments(x), x["lr"] * factor / bc1, *terms], numbers


def averages(state: State, g: Array, h: Scalars) -> tuple[Array, Array]:
    """The running averages of the gradient and of its square."""
    m, v = state[:2]
    _, b1, c1, b2, c2, *_ = h
    return b1 * m + c1 * g, b2 * v + c2 * g * g


@rule(scalars=adam_scalars)
def adam(p: Array, g: Array, state: State, h: Scalars) -> tuple[Array, State]:
    m, v = averages(state, g, h)
    decay, lr, a, e_in, c, e_out = h[0], *h[5:]
    return p * decay - ratio(lr * m, np.sqrt(v * a + e_in) * c + e_out), [m, v]


def amsgrad_scalars(x: X, t: int, numbers: Numbers) -> tuple[list[float], Numbers]:
    bc1, bc2 = corrections(x, t)
    factor, terms = denominator(x, 1.0 if x["max_corrected"] else bc2)
    k = 1.0 / bc2 if x["max_corrected"] else 1.0
    return [*moments(x), x["lr"] * factor / bc1, *terms, k], numbers


@rule(scalars=amsgrad_scalars)
def amsgrad(p: Array, g: Array, state: State, h: Scalars) -> tuple[Array, State]:
    m, v = averages(state, g, h)
    decay, lr, a, e_in, c, e_out, k = h[0], *h[5:]
    w = largest(state[2], v * k)
    return p * decay - ratio(lr * m, np.sqrt(w * a + e_in) * c + e_out), [m, v, w]


def adamax_scalars(x: X, t: int, numbers: Numbers) -> tuple[list[float], Numbers]:
    bc1, _ = corrections(x, t)
    e_in, e_out = (x["eps"], 0.0) if x["eps_inside"] else (0.0, x["eps"])
    return [x["beta1"], 1.0 - x["beta1"], x["beta2"], x["lr"] / bc1, e_in, e_out], numbers


@rule(scalars=adamax_scalars)
def adamax(p: Array, g: Array, state: State, h: Scalars) -> tuple[Array, State]:
    m, u = state
    decay, b1, c1, b2, lr, e_in, e_out = h
    m = b1 * m + c1 * g
    u = largest(b2 * u, np.abs(g) + e_in)
    return p * decay - ratio(lr * m, u + e_out), [m, u]


def nadam_scalars(x: X, t: int, numbers: Numbers) -> tuple[list[float], Numbers]:
    b1 = x["beta1"]
    bc1, bc2 = corrections(x, t)
    if x["product"] == 3:  # the paper has beta2 * v under the root, and averages with mu
        bc2 = bc2 / x["beta2"] if x["beta2"] else inf
    factor, terms = denominator(x, bc2)
    lr = x["lr"] * factor
    if x["product"] == 2:  # optax: no schedule of momenta
        return [*moments(x), lr * (1.0 - b1) / bc1, lr * b1 / (1.0 - b1 ** (t + 1)), *terms], numbers
    mu = b1 * (1.0 - 0.5 * 0.96 ** (t * x["momentum_decay"]))
    mu_next = b1 * (1.0 - 0.5 * 0.96 ** ((t + 1) * x["momentum_decay"]))
    if x["product"] == 1:  # PyTorch keeps the product, and multiplies, in float32
        product = float(np.float32(numbers[0]) * np.float32(mu))
    else:
        product = numbers[0] * mu
    cg = lr * (1.0 - mu) / (1.0 - product)
    cm = lr * mu_next / (1.0 - product * mu_next)
    average = moments(x)
    if x["product"] == 3:
        average[:2] = mu, 1.0 - mu
    return [*average, cg, cm, *terms], (product, *numbers[1:])


@rule(scalars=nadam_scalars)
def nadam(p: Array, g: Array, state: State, h: Scalars) -> tuple[Array, State]:
    m, v = averages(state, g, h)
    decay, cg, cm, a, e_in, c, e_out = h[0], *h[5:]
    return p * decay - ratio(cg * g + cm * m, np.sqrt(v * a + e_in) * c + e_out), [m, v]


def radam_scalars(x: X, t: int, numbers: Numbers) -> tuple[list[float], Numbers]:
    k = t + x["t_shift"]  # thinc corrects with the count of the next step
    bc1, bc2 = corrections(x, k)
    rho_inf = 2.0 / (1.0 - x["beta2"]) - 1.0
    rho = rho_inf - 2.0 * k * x["beta2"] ** k / bc2
    step = x["lr"] / bc1
    if rho > x["rho_min"] or (x["rho_inclusive"] and rho == x["rho_min"]):
        factor, terms = denominator(x, bc2)
        rect = sqrt((rho - 4.0) * (rho - 2.0) * rho_inf / ((rho_inf - 4.0) * (rho_inf - 2.0) * rho))
        return [*moments(x), step * factor * rect, *terms, 1.0], numbers
    _, terms = denominator(x, 1.0)
    return [*moments(x), step, *terms, 0.0], numbers


@rule(scalars=radam_scalars)
def radam(p: Array, g: Array, state: State, h: Scalars) -> tuple[Array, State]:
    m, v = averages(state, g, h)
    decay, lr, a, e_in, c, e_out, adaptive = h[0], *h[5:]
    if not adaptive:
        return p * decay - lr * m, [m, v]
    return p * decay - ratio(lr * m, np.sqrt(v * a + e_in) * c + e_out), [m, v]


def adabelief_scalars(x: X, t: int, numbers: Numbers) -> tuple[list[float], Numbers]:
    bc1, bc2 = corrections(x, t)
    e_root = x["eps"] if x["eps_twice"] else x["eps_root"]
    return [*moments(x), x["lr"] / bc1, e_root, 1.0 / sqrt(bc2), x["eps"]], numbers


@rule(scalars=adabelief_scalars)
def adabelief(p: Array, g: Array, state: State, h: Scalars) -> tuple[Array, State]:
    m, s = state
    decay, b1, c1, b2, c2, lr, e_root, c, e_out = h
    m = b1 * m + c1 * g
    d = g - m
    s = b2 * s + c2 * d * d + e_root
    return p * decay - ratio(lr * m, np.sqrt(s) * c + e_out), [m, s]


def lion_scalars(x: X, t: int, numbers: Numbers) -> tuple[list[float], Numbers]:
    return [*moments(x), x["lr"]], numbers


@rule(scalars=lion_scalars)
def lion(p: Array, g: Array, state: State, h: Scalars) -> tuple[Array, State]:
    (m,) = state
    decay, b1, c1, b2, c2, lr = h
    u = b1 * m + c1 * g
    u = np.where(u > 0, np.ones_like(u), np.where(u < 0, -np.ones_like(u), u))  # zeros and NaN are their own sign
    return p * decay - lr * u, [b2 * m + c2 * g]


# --- Rprop


def rprop_scalars(x: X, t: int, numbers: Numbers) -> tuple[list[float], Numbers]:
    return [float(t == 1), x["lr"], x["eta_minus"], x["eta_plus"], x["step_min"], x["step_max"]], numbers


@rule(scalars=rprop_scalars)
def rprop(p: Array, g: Array, state: State, h: Scalars) -> tuple[Array, State]:
    prev, size = state
    decay, first, lr, minus, plus, low, high = h
    one, none = np.ones_like(g), np.zeros_like(g)
    if first:  # every step size is lr, whatever it was before
        prev, size = none, one * lr
        q = none
    else:
        q = g * prev
    size = size * np.where(q > 0, plus, np.where(q < 0, minus, one))
    size = np.where(size < low, low, size)
    size = np.where(size > high, high, size)
    d = np.where(q < 0, none, g)  # where the sign has changed, the parameter waits for a step
    return p * decay - size * np.where(d > 0, one, np.where(d < 0, -one, none)), [d, size]


# --- Around a rule
# A stage is given what it writes, as it was; the gradient, as the stages before it left it; the parameter; its scalars.


@stage
def unscale(x: Array, g: Array, p: Array, h: Scalars) -> Array:
    return g / h[0]


@stage
def rescale(x: Array, g: Array, p: Array, h: Scalars) -> Array:
    return g * h[0]


@stage
def clamp(x: Array, g: Array, p: Array, h: Scalars) -> Array:
    low, high = h
    x = np.where(g < low, low, g)
    return np.where(x > high, high, x)


@stage
def l2(x: Array, g: Array, p: Array, h: Scalars) -> Array:
    return h[0] * g + h[1] * p


@stage
def negate(x: Array, g: Array, p: Array, h: Scalars) -> Array:
    return -g


@stage
def shrink(x: Array, g: Array, p: Array, h: Scalars) -> Array:
    return x * h[0]


@stage
def flush(x: Array, g: Array, p: Array, h: Scalars) -> Array:
    return np.where(np.abs(x) < h[0], np.zeros_like(x), x)


@stage
def lerp(x: Array, g: Array, p: Array, h: Scalars) -> Array:
    return x + h[0] * (p - x)


@stage
def lerp_back(x: Array, g: Array, p: Array, h: Scalars) -> Array:
    return p - (type(h[0])(1) - h[0]) * (p - x)


@stage
def blend(x: Array, g: Array, p: Array, h: Scalars) -> Array:
    return h[1] * x + h[0] * p


def find_mean(spec: Spec, decay: float, start: int, t: int, begun: bool) -> tuple[bool, str | None, list[float]]:
    """What becomes of an average at step t: whether it is the parameter of before the step, then the stage and scalars.

    The stage is "copy" where it becomes the parameter after the step, and None where nothing is done.
    """
    from fastopt.declare import AVERAGE_FORMS

    name = "lerp"
    if spec.mean == AVERAGE_FORMS["thinc"]:
        decay = min(decay, (1 + t) / (10 + t))
    elif spec.mean == AVERAGE_FORMS["keras"]:
        name = "blend"
    elif not 1 - decay < 0.5:
        name = "lerp_back"
    moves = [1 - decay] if name != "blend" else [1 - decay, decay]
    if begun or (spec.mean == AVERAGE_FORMS["thinc"] and t == 1 == start):
        return False, name, moves
    if start == 0:
        return True, name, moves
    return False, "copy" if t >= start else None, []


def program(
    spec: Spec, x: X, grad_scale: float | None, factor: float = 1.0, clip_value: float = inf
) -> tuple[_Stages, _Stages]:
    """The stages before and after the rule: names and scalars. State is flushed after them, at every 64th step.

    `factor` is that of clipping by norm.
    """
    from fastopt.declare import DECOUPLED_LAST, L2

    wd = x.get("weight_decay", 0.0)
    before: _Stages = []
    if grad_scale not in (None, 1):
        before.append(("unscale", [grad_scale]))
    if factor != 1:
        before.append(("rescale", [factor]))
    if clip_value != inf:
        before.append(("clamp", [-clip_value, clip_value]))
    if wd != 0 and spec.decay == L2:
        before.append(("l2", [-1.0 if spec.maximize else 1.0, wd]))
    elif spec.maximize:
        before.append(("negate", []))
    after: _Stages = []
    if wd != 0 and spec.decay == DECOUPLED_LAST:
        after.append(("shrink", [1.0 - x["lr"] * wd]))
    return before, after


# --- Sums


SUM_TILE, SUM_LANES = 1024, 16


def tiled(x: Array, dtype: type) -> Array:
    """A flat array as (tiles, additions, lanes), filled up with zeros: adding +0.0 to these sums changes no bit."""
    tiles = -(-x.size // SUM_TILE)
    y = np.zeros(tiles * SUM_TILE, dtype)
    y[: x.size] = x
    return y.reshape(tiles, SUM_TILE // SUM_LANES, SUM_LANES)


def tile_sums(x: Array) -> Array:
    """The sums of the tiles of a flat float64 array.

    Lane j adds the elements j, j + 16, j + 32, ... in order; then the lanes are added by halves. Not by `numpy.sum`,
    whose order of additions is not specified.
    """
    y = tiled(x, np.float64)
    lanes = np.zeros((len(y), SUM_LANES))
    for k in range(y.shape[1]):
        lanes = lanes + y[:, k]
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    return lanes[:, 0]


def tile_maxima(x: Array) -> Array:
    """The largest absolute value of each tile of a flat array, in float64; NaN if there is one."""
    return np.abs(tiled(x, np.float64)).max(axis=(1, 2))


def total(x: Array, join: Callable[[Array], Array] = tile_sums) -> float:
    """The sum of a flat float64 array: that of the sums of its tiles, until one is left. `join` makes those."""
    while x.size > 1:
        x = join(x)
    return float(x[0]) if x.size else 0.0


def squares(x: Array) -> Array:
    """The sums of the squares of each tile of a flat array. The square of a float32 is exact in float64."""
    x = x.astype(np.float64)
    return tile_sums(x * x)


SUMS: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "squares": (squares, tile_sums),
    "maximum": (tile_maxima, tile_maxima),
}
"""Every sum by name: what it makes of the tiles of an array, and what joins tiles, and then arrays."""


def array_sum(name: str, array: Array) -> float:
    """A sum over one array, its elements taken in the order of memory."""
    tiles, join = SUMS[name]
    with np.errstate(all="ignore"):
        return total(tiles(np.asarray(array).ravel(order="K")), join)


def group_sum(name: str, arrays: Sequence[Array]) -> float:
    """A sum over arrays: that of their sums, by the same tree, in their order; None is left out."""
    with np.errstate(all="ignore"):
        return total(np.array([array_sum(name, a) for a in arrays if a is not None]), SUMS[name][1])


def norm(arrays: Sequence[Array], ord: float = 2) -> float:
    """What `fastopt.norm` returns for a list of arrays."""
    return group_sum("maximum", arrays) if ord == inf else sqrt(group_sum("squares", arrays))


def clip_factor(convention: str, norm: float, limit: float) -> float:
    """What gradients with this norm are multiplied by, so that it does not exceed the limit."""
    if limit == inf:
        return 1.0
    n, c = np.float64(norm), np.float64(limit)
    with np.errstate(all="ignore"):
        if convention == "keras":
            return float(c * min(1 / n, 1 / c)) if np.isfinite(n) else nan
        if convention in ("optax", "thinc"):
            return 1.0 if n < c else float(c / n)
        factor = float(c / (n + 1e-6))
        return 1.0 if factor > 1 else factor


def own_factor(convention: str, norm: float, factor: float, limit: float) -> float:
    """What one gradient with this norm is multiplied by: `factor`, that of all, and its own for what is left."""
    return factor * clip_factor("optax" if convention == "keras" else convention, norm * factor, limit)


def lookahead(p: Array, v: Array, mu: Any) -> Array:
    """Where NAG wants the gradient."""
    return p + mu * v


def rounded(values: Sequence[float], dtype: np.dtype) -> list[Any]:
    """Scalars rounded once to the compute type."""
    return [dtype.type(value) for value in values]


# --- Formats
# How float32 arrays are stored in fewer bits, as in ``kernels/formats.pxi``. `store` takes flat float32 and a key, and
# gives the elements `a` and what stands beside them, `b`; `load` gives float32 again. All of it is arithmetic of whole
# numbers, on the bits of the float32: without the sign, larger bits are a larger number, NaN beyond infinity.

FORMAT_TILE = 256
"""Elements of a block of the 8-bit formats, which share a base."""
LATTICE = 0x9E3779B9
SIGN, INFINITY, QUIET, QUIET_NAN = 0x80000000, 0x7F800000, 0x400000, 0x7FC00000
EIGHTH = 20  # a float32 less so many bits has 3 bits of mantissa: eighths of a power of two
LARGEST = (INFINITY >> EIGHTH) - 1


class Format(NamedTuple):
    """How an array is stored, and what that stands for."""

    store: Callable[[Array, int], tuple[Array, Array]]
    load: Callable[[Array, Array], Array]


def lattice(key: int, n: int) -> Array:
    """The random numbers of the elements of an array: those of neighbours lie a golden section of 2**32 apart."""
    return ((key + LATTICE * np.arange(n, dtype=np.uint64)) & 0xFFFFFFFF).astype(np.uint32)


def fnv1a(name: str) -> int:
    """The FNV-1a hash of a name in UTF-8, of 32 bits."""
    h = 0x811C9DC5
    for byte in name.encode():
        h = (h ^ byte) * 0x01000193 % 2**32
    return h


def mixed(z: int, part: int) -> int:
    """SplitMix64 of the sum, of 64 bits."""
    z = (z + part + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


def stream_key(seed: int, stream: int, slot_name: str, t: int) -> int:
    """The random number of an array's first element at step t; the name is "" for the parameter itself."""
    z = 0
    for part in (seed, stream, fnv1a(slot_name), t):  # all are mixed: streams of seeds in a row have nothing in common
        z = mixed(z, part)
    return z >> 32


def bits(x: Array) -> Array:
    """The bits of float32 numbers."""
    return x.view(np.uint32)


def unsigned(x: Array) -> Array:
    """The same without their signs."""
    return bits(x) & np.uint32(SIGN - 1)


def halved(u: Array, n: Any) -> Array:
    """The number u / 2**n, to the nearest whole number; of two as near, to the even one."""
    one = np.uint32(1)
    return (u + (one << (n - one)) - one + (u >> n & one)) >> n


def nothing_beside(a: Array) -> tuple[Array, Array]:
    """Elements of 16 bits in a format that keeps nothing beside them."""
    return a.astype(np.uint16), np.empty(0, np.uint16)


def store_bfloat16(x: Array, key: int) -> tuple[Array, Array]:
    """The upper half, to the nearest; of two as near, to the even one."""
    u = bits(x)
    return nothing_beside(np.where(np.isnan(x), (u | QUIET) >> 16, halved(u, np.uint32(16))))


def store_bfloat16_stochastic(x: Array, key: int) -> tuple[Array, Array]:
    """The upper half, rounded up with the chance that the lower half says."""
    u = bits(x)
    return nothing_beside(np.where(np.isnan(x), u | QUIET, u + (lattice(key, x.size) >> 16)) >> 16)


def load_bfloat16(a: Array, b: Array) -> Array:
    """The upper half, and zeros."""
    return (a.astype(np.uint32) << 16).view(np.float32)


def store_float16(x: Array, key: int) -> tuple[Array, Array]:
    """IEEE half precision, to the nearest; of two as near, to the even one."""
    u = unsigned(x)
    exponent, fraction = u >> 23, u & 0x7FFFFF
    normal = halved(u, np.uint32(13)) - ((127 - 15) << 10)
    lost = np.clip(126 - exponent.astype(np.int32), 1, 25).astype(np.uint32)  # bits, of a subnormal number
    subnormal = halved(fraction | 0x800000, lost)
    a = np.where(exponent < 127 - 14, subnormal, normal)
    a = np.where(u >= (127 + 16) << 23, 0x7C00, a)  # 65520 and above are rounded up to there by themselves
    a = np.where(np.isnan(x), 0x7E00 | fraction >> 13, a)
    return nothing_beside(a | bits(x) >> 16 & 0x8000)


def load_float16(a: Array, b: Array) -> Array:
    """IEEE half precision."""
    a = a.astype(np.uint32)
    sign, exponent, fraction = (a & 0x8000) << 16, a >> 10 & 31, a & 0x3FF
    u = (a & 0x7FFF) + ((127 - 15) << 10) << 13
    u = np.where(exponent == 31, np.where(fraction == 0, INFINITY, QUIET_NAN | fraction << 13), u)
    # A subnormal number is a whole one times 2**-24: its highest bit says the exponent, the others are the fraction.
    highest = sum((fraction >> k != 0) for k in range(1, 10))
    subnormal = (highest + (127 - 24) << 23) + (fraction << 23 - highest & 0x7FFFFF)
    u = np.where(exponent == 0, np.where(fraction == 0, 0, subnormal), u)
    return (u | sign).astype(np.uint32).view(np.float32)


def store_split(x: Array, key: int) -> tuple[Array, Array]:
    """A bfloat16, of two as near the one farther from 0, and what is to be added to its bits."""
    u = np.where(np.isnan(x), np.uint32(QUIET_NAN), bits(x))
    return (u + 0x8000 >> 16).astype(np.uint16), u.astype(np.uint16)


def load_split(a: Array, b: Array) -> Array:
    """The float32 that was stored, to the last bit."""
    upper, low = a.astype(np.uint32) << 16, b.view(np.int16).astype(np.int64)
    u = (upper + low).astype(np.uint32)
    # Where a 0 or an infinity was written without its lower half, that belongs to another number, and can make a NaN.
    return np.where((u & SIGN - 1) > INFINITY, upper, u).view(np.float32)


def blocks(a: Array) -> Array:
    """A flat array as (blocks, elements), filled up with zeros."""
    y = np.zeros((-(-a.size // FORMAT_TILE), FORMAT_TILE), a.dtype)
    y.ravel()[: a.size] = a
    return y


def store_blocks(x: Array, codes: int, least: int, up: Array, up_top: int) -> tuple[Array, Array]:
    """The codes without signs, and the bases. A number has the code `u >> 20`, less the base of its block.

    The largest number of a block has the largest code. What is added before the cut is `up`, and `up_top` for the
    largest. A block that holds an infinity or a NaN marks its base, and has the two largest codes for them.
    """
    u = blocks(unsigned(x)).astype(np.int64)
    finite = u < INFINITY
    marked = ~finite.all(axis=1)
    most = np.where(marked, codes - 2, codes)
    top = np.where(finite, u, 0).max(axis=1)
    base = np.maximum(np.minimum((top + up_top) >> EIGHTH, LARGEST) - most, 0)
    c = np.clip(((u + blocks(up)) >> EIGHTH) - base[:, None], least, most[:, None])
    c = np.where(u == 0, 0, c)
    c = np.where(finite, c, np.where(u == INFINITY, codes, codes - 1))
    return c.ravel()[: x.size].astype(np.uint8), (base + np.where(marked, 0x8000, 0)).astype(np.uint16)


def load_blocks(c: Array, b: Array, codes: int) -> Array:
    """The bits of what codes without signs stand for."""
    base, marked = (b & 0x7FFF).astype(np.uint32)[:, None], (b >> 15 == 1)[:, None]
    c = blocks(c.astype(np.uint32))
    u = np.where(c == 0, 0, c + base << EIGHTH)
    u = np.where(marked & (c >= codes - 1), np.where(c == codes, INFINITY, QUIET_NAN), u)
    return u.astype(np.uint32).ravel()


def store_e4m3(x: Array, key: int) -> tuple[Array, Array]:
    """A sign and 7 bits, to the nearest; of two as near, to the one farther from 0."""
    half = 1 << EIGHTH - 1
    c, b = store_blocks(x, 127, 0, np.full(x.size, half), half)
    return c | (bits(x) >> 24 & 0x80).astype(np.uint8), b


def load_e4m3(a: Array, b: Array) -> Array:
    """A sign and 7 bits."""
    u = load_blocks(a & 0x7F, b, 127)[: a.size]
    return (u | (a.astype(np.uint32) & 0x80) << 24).view(np.float32)


def store_ue5m3(x: Array, key: int) -> tuple[Array, Array]:
    """8 bits without a sign, rounded up with the chance that the bits that are cut say; 0 for 0 only."""
    return store_blocks(x, 255, 1, lattice(key, x.size).astype(np.int64) >> 32 - EIGHTH, (1 << EIGHTH) - 1)


def load_ue5m3(a: Array, b: Array) -> Array:
    """8 bits without a sign."""
    return load_blocks(a, b, 255)[: a.size].view(np.float32)


FORMATS: dict[str, Format] = {
    "bfloat16": Format(store_bfloat16, load_bfloat16),
    "bfloat16_stochastic": Format(store_bfloat16_stochastic, load_bfloat16),
    "float16": Format(store_float16, load_float16),
    "split": Format(store_split, load_split),
    "e4m3": Format(store_e4m3, load_e4m3),
    "ue5m3": Format(store_ue5m3, load_ue5m3),
}
"""Every format by name."""


class Operand(NamedTuple):
    """An array as a step reads and writes it: flat float32 or float64, in the order of memory."""

    format: str | None
    """How it is stored; None: in the type that is computed in."""
    a: Array
    b: Array
    """What stands beside it in its format."""

    def load(self) -> Array:
        """The numbers, in the type that is computed in."""
        return self.a.copy() if self.format is None else FORMATS[self.format].load(self.a, self.b)

    def store(self, x: Array, key: int = 0) -> None:
        """Write these numbers; `key` is the random number of the first."""
        if self.format is None:
            self.a[...] = x
            return
        self.a[...], beside = FORMATS[self.format].store(np.ascontiguousarray(x), key)
        if beside.size:
            self.b[...] = beside


NOTHING = np.empty(0, np.uint16)
LEAST_PACKED = 4096
"""Elements of a parameter whose state 8 bits are for; that of smaller ones stays float32."""


def flat(array: Array) -> Array:
    """The elements of a contiguous array in the order of memory: a view. Those of two bytes by their bits."""
    array = array.reshape(-1, order="A")
    return array.view(np.uint16) if array.itemsize == 2 else array


def half_format(array: Array) -> str | None:
    """What an array of a gradient or mirror holds, by its type; uint16 holds bfloat16."""
    return None if array.itemsize > 2 else "float16" if array.dtype == np.float16 else "bfloat16"


def param_format(param: Array, storage: Storage | None) -> str | None:
    """How a parameter is stored."""
    if param.itemsize > 2:
        return None
    if storage is not None and storage.split:
        return "split"
    return "bfloat16_stochastic" if storage is not None and storage.rounding == "stochastic" else "bfloat16"


def state_format(slot: Slot, param: Array, storage: Storage | None) -> str | None:
    """How a state array of a parameter is stored: averages to the nearest, squares and sums at random."""
    if slot.storage == "8bit" and param.size >= LEAST_PACKED:
        return "ue5m3" if slot.narrow == "square" else "e4m3"
    if slot.storage == "bfloat16" or (slot.storage == "parameter" and param.itemsize == 2):
        at_random = slot.storage == "bfloat16" or (storage is not None and storage.rounding == "stochastic")
        return "bfloat16_stochastic" if at_random and slot.narrow == "square" else "bfloat16"
    return None


def param_operand(param: Array, state: Mapping[str, Array], storage: Storage | None) -> Operand:
    """A parameter; beside one of bfloat16 that is split, its low halves."""
    format = param_format(param, storage)
    return Operand(format, flat(param), flat(state["low"]) if format == "split" else NOTHING)


def state_operand(slot: Slot, array: Array, param: Array, storage: Storage | None) -> Operand:
    """A state array; one of 8 bits has the bases of all blocks first, then the codes."""
    format, a = state_format(slot, param, storage), flat(array)
    if slot.storage != "8bit" or format is None:
        return Operand(format, a, NOTHING)
    n_bases = a.size - param.size
    return Operand(format, a[n_bases:], a[:n_bases].view(np.uint16))


# --- A whole optimizer


class Twin:
    """An optimizer's double in NumPy: the same groups, schedules, state and counts, over copies of its arrays.

    Made by `twin`. ``params``, ``state`` and ``mirrors`` are as the optimizer's, in the order of all groups, and stored
    as those are.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        plan = optimizer._plan
        self.params: list[np.ndarray] = [np.array(p, order="K") for p in plan.arrays]
        self.mirrors = [None if mirror is None else np.array(mirror, order="K") for mirror in plan.mirrors]
        counts = [plan.count(i) for i in range(len(plan.arrays))]
        self.counts, self.numbers = [t for t, _ in counts], [numbers for _, numbers in counts]
        self.state: list[dict[str, np.ndarray]] = [
            {name: np.array(array, order="K") for name, array in state.items()} for state in plan.states
        ]
        self.steps = plan.steps
        self.grad_norm: float | None = None
        self.begun = ["ema" in plan.saved_state(i) for i in range(len(plan.arrays))]

    def _hyper(self, group: Mapping[str, Any]) -> dict[str, float]:
        """The numbers of a group at this step: schedules called, pairs taken apart."""
        from fastopt.engine import PAIRS

        x: dict[str, float] = {}
        for key, value in group.items():
            now = value(self.steps) if callable(value) else value
            if key in PAIRS:
                pair = (float(part(self.steps) if callable(part) else part) for part in now)
                x.update(zip(PAIRS[key], pair, strict=True))
            elif isinstance(now, (int, float, np.number, np.ndarray)):
                x[key] = float(now)
        return x

    def _clip(self, grads: Sequence[Any], grad_scale: float | None) -> list[float]:
        """The factor of each gradient at this step; notes the norm of all."""
        optimizer = self._optimizer
        limit, each = optimizer.clip_norm, []
        for group in optimizer.param_groups:
            each += len(group["params"]) * [self._hyper(group).get("clip_norm_each")]
        if limit is None and not any(each):
            self.grad_norm = None
            return len(each) * [1.0]
        by = 1.0 if grad_scale is None else float(grad_scale)
        arrays = [None if g is None else Operand(half_format(g), flat(g), NOTHING).load() for g in grads]
        self.grad_norm = norm(arrays, optimizer.norm_type) / by
        limit = inf if limit is None else limit(self.steps) if callable(limit) else limit
        factor = clip_factor(optimizer.convention, self.grad_norm, float(limit))
        return [
            factor if own is None or g is None
            else own_factor(optimizer.convention, norm([g], optimizer.norm_type) / by, factor, own)
            for g, own in zip(arrays, each, strict=True)
        ]  # fmt: skip

    def step(self, grads: Sequence[Any], grad_scale: float | None = None) -> None:
        """One step, as `Optimizer.step`, for a list of gradients (None skips one)."""
        from fastopt.declare import AVERAGE, DECOUPLED, DECOUPLED_WITHOUT_LR, LOW, derive
        from fastopt.engine import LEAST_EPS

        optimizer = self._optimizer
        grads = [None if g is None else np.asarray(g) for g in grads]
        factors, i = self._clip(grads, grad_scale), 0
        with np.errstate(all="ignore"):
            for group in optimizer.param_groups:
                spec = derive(type(optimizer), optimizer.convention, group)
                x = {**self._hyper(group), **spec.forms}
                wd, lr = x.get("weight_decay", 0.0), x["lr"]
                decay = {DECOUPLED: 1.0 - lr * wd, DECOUPLED_WITHOUT_LR: 1.0 - wd}.get(spec.decay, 1.0)
                update = RULES[spec.rule]
                fades = max(x.get("eps", 1.0), x.get("eps_root", 0.0)) >= LEAST_EPS
                for i in range(i, i + len(group["params"])):  # noqa: B020
                    if grads[i] is None:
                        continue
                    before, after = program(spec, x, grad_scale, factors[i], x.get("clip_value", inf))
                    storage, param, t = spec.storage, self.params[i], self.counts[i] + 1
                    seed, stream = 0 if storage is None else storage.seed, optimizer._plan.streams[i]
                    walked = [slot for slot in spec.slots if slot.like == "parameter" and slot not in (AVERAGE, LOW)]
                    stored = param_operand(param, self.state[i], storage)
                    kept = [state_operand(slot, self.state[i][slot.name], param, storage) for slot in walked]
                    old = p = stored.load()
                    if t == 1:
                        for slot, operand in zip(walked, kept, strict=True):
                            if slot.first == "copy":
                                operand.store(p, stream_key(seed, stream, slot.name, 0))
                    g = Operand(half_format(grads[i]), flat(grads[i]), NOTHING).load()
                    for name, h in before:
                        g = STAGES[name](g, g, p, rounded(h, p.dtype))
                    scalars, self.numbers[i] = SCALARS[spec.rule](x, t, self.numbers[i])
                    state = [operand.load() for operand in kept]
                    p, state = update(p, g, state, rounded([decay, *scalars], p.dtype))
                    for name, h in after:
                        p = STAGES[name](p, g, p, rounded(h, p.dtype))
                    self.counts[i] = t
                    stored.store(p, stream_key(seed, stream, "", t))
                    for slot, operand, array in zip(walked, kept, state, strict=True):
                        if t % 64 == 0 and fades and slot.low is not None:
                            array = flush(array, g, p, [p.dtype.type(slot.low[p.dtype == np.float64])])
                        operand.store(array, stream_key(seed, stream, slot.name, t))
                    p = stored.load()
                    if self.mirrors[i] is not None:
                        Operand(half_format(self.mirrors[i]), flat(self.mirrors[i]), NOTHING).store(p)
                    if AVERAGE in spec.slots:
                        self._average(i, spec, x, old, p)
                i += bool(group["params"])
        self.steps += 1

    def _average(self, i: int, spec: Spec, x: Mapping[str, float], old: Array, p: Array) -> None:
        """The average of parameter i after a step that made of `old` what is stored now."""
        if "ema" not in self.state[i]:
            self.state[i]["ema"] = np.zeros_like(self.params[i], p.dtype)
        average = flat(self.state[i]["ema"])
        start = int(x.get("ema_start", 1))
        first, name, h = find_mean(spec, x["ema_decay"], start, self.counts[i], self.begun[i])
        if first:
            average[...] = old
        if name is not None:
            average[...] = p if name == "copy" else STAGES[name](average, p, p, rounded(h, p.dtype))
            self.begun[i] = True


def twin(optimizer: Optimizer) -> Twin:
    """A `Twin` of an optimizer as it stands: both take the same path from here, given the same gradients."""
    return Twin(optimizer)
