"""Every form of the lecture notes, written as the notes write it, beside the way to say it in fastopt.

The numbers 000 to 004 stand for the five sets of notes that the project implements, in Korean, which are not in this
repository. The surfaces are the notes' own, the valley f(x, y) = x**2/20 + y**2 and a saddle, and one more.
eps is large, so that its place shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import sqrt
from typing import Any

import numpy as np
import pytest

from fastopt import (
    NAG,
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    Momentum,
    NAdam,
    RMSprop,
    minibatches,
    minimize,
    reference,
)

STEPS = 40
LR, MU, B1, B2, GAMMA, EPS = 0.03, 0.8, 0.85, 0.95, 0.9, 0.02

Gradient = Callable[[np.ndarray], np.ndarray]
SURFACES: dict[str, Gradient] = {
    "valley": lambda w: np.array([w[0] / 10, 2 * w[1]]),
    "saddle": lambda w: np.array([2 * w[0], -2 * w[1]]),
    "waves": lambda w: np.array([np.cos(3 * w[0]) - w[1], np.sin(2 * w[1]) + 0.3 * w[0]]),
}


def start() -> np.ndarray:
    return np.array([-7.0, 2.0])


def mu_at(i: int) -> float:
    """A momentum that falls with the steps, as 001 advises."""
    return 0.9 / (1 + 0.1 * i)


def assert_same_path(got: list[np.ndarray], want: list[np.ndarray], tol: float = 1e-12) -> None:
    assert len(got) == len(want) >= 20
    for t, (a, b) in enumerate(zip(got, want, strict=True)):
        assert (np.abs(a - b) <= tol * (np.abs(b) + 1e-3)).all(), f"step {t + 1}: {a} is not {b}"


def path_of(opt: Any, gradient: Gradient, steps: int = STEPS) -> list[np.ndarray]:
    """Where fastopt goes."""
    out = []
    for _ in range(steps):
        at = opt.lookahead() if isinstance(opt, NAG) else opt.params[0]
        opt.step(gradient(at))
        out.append(opt.params[0].copy())
    return out


# --- The notes

Notes = Iterator[np.ndarray]


def descent(w: np.ndarray, grad: Gradient) -> Notes:
    """All notes: w = w - lr grad."""
    while True:
        w = w - LR * grad(w)
        yield w


def momentum_with_velocity(w: np.ndarray, grad: Gradient) -> Notes:
    """000, 002: v = alpha v - eta dL/dW; W = W + v."""
    v = np.zeros_like(w)
    while True:
        v = MU * v - LR * grad(w)
        w = w + v
        yield w


def momentum_with_moving_gradient(w: np.ndarray, grad: Gradient) -> Notes:
    """001: g~ = mu_i g~ + lambda g; w = w - g~."""
    u, i = np.zeros_like(w), 0
    while True:
        u = mu_at(i) * u + LR * grad(w)
        w = w - u
        i += 1
        yield w


def nag_with_velocity(w: np.ndarray, grad: Gradient) -> Notes:
    """002: M = alpha M - gamma dL/dTheta at Theta + alpha M; Theta = Theta + M."""
    m = np.zeros_like(w)
    while True:
        m = MU * m - LR * grad(w + MU * m)
        w = w + m
        yield w


def nag_with_moving_gradient(w: np.ndarray, grad: Gradient) -> Notes:
    """001: g~ = mu_i g~ + lambda g(w - mu_i g~); w = w - g~."""
    u, i = np.zeros_like(w), 0
    while True:
        u = mu_at(i) * u + LR * grad(w - mu_at(i) * u)
        w = w - u
        i += 1
        yield w


def adagrad(root: Callable[[np.ndarray], np.ndarray]) -> Callable[..., Notes]:
    def notes(w: np.ndarray, grad: Gradient) -> Notes:
        h = np.zeros_like(w)
        while True:
            g = grad(w)
            h = h + g * g
            w = w - LR / root(h) * g
            yield w

    return notes


def rmsprop(root: Callable[[np.ndarray], np.ndarray]) -> Callable[..., Notes]:
    def notes(w: np.ndarray, grad: Gradient) -> Notes:
        h = np.zeros_like(w)
        while True:
            g = grad(w)
            h = GAMMA * h + (1 - GAMMA) * g * g
            w = w - LR / root(h) * g
            yield w

    return notes


def adadelta(w: np.ndarray, grad: Gradient) -> Notes:
    """001: dw = sqrt(MA[dw^2]_{t-1} + eps) / sqrt(MA[g^2]_t + eps) g; w = w - dw."""
    ma_g, ma_dw = np.zeros_like(w), np.zeros_like(w)
    while True:
        g = grad(w)
        ma_g = GAMMA * ma_g + (1 - GAMMA) * g**2
        dw = np.sqrt(ma_dw + EPS) / np.sqrt(ma_g + EPS) * g
        ma_dw = GAMMA * ma_dw + (1 - GAMMA) * dw**2
        w = w - dw
        yield w


def adam(update: Callable[..., np.ndarray]) -> Callable[..., Notes]:
    """`update(m, v, bc1, bc2)` is what is subtracted."""

    def notes(w: np.ndarray, grad: Gradient) -> Notes:
        m, v, t = np.zeros_like(w), np.zeros_like(w), 0
        while True:
            t += 1
            g = grad(w)
            m = B1 * m + (1 - B1) * g
            v = B2 * v + (1 - B2) * g * g
            w = w - update(m, v, 1 - B1**t, 1 - B2**t)
            yield w

    return notes


def nadam(w: np.ndarray, grad: Gradient) -> Notes:
    """002 only names it; the formula is Dozat's as Keras writes it (the paper's: test_paper.py)."""
    m, v, product, t = np.zeros_like(w), np.zeros_like(w), 1.0, 0
    while True:
        t += 1
        g = grad(w)
        mu, mu_next = (B1 * (1 - 0.5 * 0.96**k) for k in (t, t + 1))
        product *= mu
        m = B1 * m + (1 - B1) * g
        v = B2 * v + (1 - B2) * g * g
        m_bar = (1 - mu) * g / (1 - product) + mu_next * m / (1 - product * mu_next)
        w = w - LR * m_bar / (np.sqrt(v / (1 - B2**t)) + EPS)
        yield w


def root(h: np.ndarray) -> np.ndarray:
    return np.sqrt(h)


def root_inside(h: np.ndarray) -> np.ndarray:
    return np.sqrt(h + EPS)


def root_outside(h: np.ndarray) -> np.ndarray:
    return EPS + np.sqrt(h)


ADAM = {"lr": LR, "betas": (B1, B2), "eps": EPS}
FORMS: dict[str, tuple[Callable[..., Notes], Callable[[np.ndarray], Any]]] = {
    "gradient descent": (descent, lambda w: SGD(w, LR)),
    "momentum, v = av - lr g (000, 002)": (momentum_with_velocity, lambda w: Momentum(w, LR, MU)),
    "momentum, scheduled (001)": (momentum_with_moving_gradient, lambda w: Momentum(w, LR, mu_at)),
    "NAG, at w + av (002)": (nag_with_velocity, lambda w: NAG(w, LR, MU)),
    "NAG, at w - mu g, scheduled (001)": (nag_with_moving_gradient, lambda w: NAG(w, LR, mu_at)),
    "AdaGrad 1/sqrt(h) (000, 003)": (adagrad(root), lambda w: Adagrad(w, LR, eps=0)),
    "AdaGrad 1/sqrt(h) as the paper": (adagrad(root), lambda w: Adagrad(w, LR, convention="paper")),
    "AdaGrad 1/sqrt(G + eps) (001)": (
        adagrad(root_inside), lambda w: Adagrad(w, LR, eps=EPS, eps_placement="inside")),
    "AdaGrad 1/(eps + sqrt(G)) (002)": (
        adagrad(root_outside), lambda w: Adagrad(w, LR, eps=EPS, eps_placement="outside")),
    "AdaDelta (001, 003)": (adadelta, lambda w: Adadelta(w, 1.0, GAMMA, EPS)),
    "AdaDelta as the paper": (adadelta, lambda w: Adadelta(w, rho=GAMMA, eps=EPS, convention="paper")),
    "RMSProp 1/sqrt(h) (000)": (rmsprop(root), lambda w: RMSprop(w, LR, GAMMA, eps=0)),
    "RMSProp 1/sqrt(h) as the paper": (rmsprop(root), lambda w: RMSprop(w, LR, GAMMA, convention="paper")),
    "RMSProp 1/sqrt(MA + eps) (001, 003)": (
        rmsprop(root_inside), lambda w: RMSprop(w, LR, GAMMA, EPS, eps_placement="inside")),
    "RMSProp 1/(eps + sqrt(G)) (002)": (
        rmsprop(root_outside), lambda w: RMSprop(w, LR, GAMMA, EPS, eps_placement="outside")),
    "Adam m/sqrt(v), corrected (000)": (
        adam(lambda m, v, bc1, bc2: LR / np.sqrt(v / bc2) * (m / bc1)),
        lambda w: Adam(w, LR, (B1, B2), eps=0)),
    "Adam m/(sqrt(v) + eps), corrected (001)": (
        adam(lambda m, v, bc1, bc2: LR / (np.sqrt(v / bc2) + EPS) * (m / bc1)), lambda w: Adam(w, **ADAM)),
    "Adam m/sqrt(v + eps), corrected (001)": (
        adam(lambda m, v, bc1, bc2: LR / np.sqrt(v / bc2 + EPS) * (m / bc1)),
        lambda w: Adam(w, **ADAM, eps_placement="inside")),
    "Adam M/(eps + sqrt(G)), uncorrected (002)": (
        adam(lambda m, v, bc1, bc2: LR / (EPS + np.sqrt(v)) * m),
        lambda w: Adam(w, **ADAM, bias_correction=False)),
    "Adam M/sqrt(G + eps), uncorrected": (
        adam(lambda m, v, bc1, bc2: LR / np.sqrt(v + EPS) * m),
        lambda w: Adam(w, **ADAM, eps_placement="inside", bias_correction=False)),
    "Adam lr/sqrt(v + eps) * sqrt(bc2)/bc1 * m (003)": (
        adam(lambda m, v, bc1, bc2: LR / np.sqrt(v + EPS) * sqrt(bc2) / bc1 * m),
        lambda w: Adam(w, **ADAM, eps_placement="inside_uncorrected")),
    "Adam alpha_t m/(sqrt(v) + eps)": (
        adam(lambda m, v, bc1, bc2: LR * sqrt(bc2) / bc1 * m / (np.sqrt(v) + EPS)),
        lambda w: Adam(w, **ADAM, eps_placement="outside_uncorrected")),
    "Adam of Keras": (
        adam(lambda m, v, bc1, bc2: LR * sqrt(bc2) / bc1 * m / (np.sqrt(v) + EPS)),
        lambda w: Adam(w, **ADAM, convention="keras")),
    "Adam of scikit-learn": (
        adam(lambda m, v, bc1, bc2: LR * sqrt(bc2) / bc1 * m / (np.sqrt(v) + EPS)),
        lambda w: Adam(w, **ADAM, convention="sklearn")),
    "Adam of thinc": (
        adam(lambda m, v, bc1, bc2: LR * sqrt(bc2) / bc1 * m / (np.sqrt(v) + EPS)),
        lambda w: Adam(w, **ADAM, convention="thinc")),
    "NAdam (002)": (nadam, lambda w: NAdam(w, LR, (B1, B2), EPS, convention="keras")),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("surface", SURFACES)
def test_form_of_the_notes(form, surface):
    notes, build = FORMS[form]
    along = notes(start(), SURFACES[surface])
    want = [next(along).copy() for _ in range(STEPS)]
    assert_same_path(path_of(build(start()), SURFACES[surface]), want)


def test_the_forms_are_different_paths():
    """No test above can pass because a form is confused with another."""
    ends: dict[bytes, str] = {}
    for form, (notes, _) in FORMS.items():
        along = notes(start(), SURFACES["waves"])
        end = np.round([next(along) for _ in range(STEPS)][-1], 6).tobytes()
        ends.setdefault(end, form)
    same = {"AdaGrad 1/sqrt(h) as the paper", "AdaDelta as the paper", "RMSProp 1/sqrt(h) as the paper",
            "Adam of Keras", "Adam of scikit-learn", "Adam of thinc"}  # fmt: skip
    assert set(ends.values()) == set(FORMS) - same


def test_002_writes_the_square_as_a_product_and_means_it_element_by_element():
    g = np.array([0.5, -0.25])
    w = start()
    Adagrad(w, LR, eps=EPS).step(g)
    square = np.diag(np.outer(g, g))
    np.testing.assert_allclose(w, start() - LR / (EPS + np.sqrt(square)) * g, rtol=1e-15)


def test_signs_of_000_are_slips():
    """000 writes -(1 - beta) in both averages: the first would climb, the second has no root."""
    along = adam(lambda m, v, bc1, bc2: LR / np.sqrt(v / bc2) * (m / bc1))(start(), SURFACES["valley"])
    first = next(along)
    assert (np.abs(first) < np.abs(start())).all()
    w = start()
    Adam(w, LR, (B1, B2), eps=0).step(SURFACES["valley"](start()))
    np.testing.assert_allclose(w, first, rtol=1e-14)


# --- What is the same in other clothes


@pytest.mark.parametrize("surface", SURFACES)
@pytest.mark.parametrize("convention", ["keras", "sklearn", "torch", "optax"])
def test_nesterov_of_the_libraries_is_the_lookahead_point(surface, convention):
    """With y = w + a v: y' = y + a v' - lr grad(y); w = y - a v comes back."""
    grad = SURFACES[surface]
    nag, sgd = NAG(start(), LR, MU), SGD(start(), LR, MU, nesterov=True, convention=convention)
    y, v = start(), np.zeros(2)
    got, want, formula, back = [], [], [], []
    for _ in range(STEPS):
        v = MU * v - LR * grad(y)
        y = y + MU * v - LR * grad(y)
        formula.append(y)
        sgd.step(grad(sgd.params[0]))
        got.append(sgd.params[0].copy())
        kept = sgd.state[0]
        velocity = kept["velocity"] if convention in ("keras", "sklearn") else -LR * kept["momentum_buffer"]
        back.append(sgd.params[0] - MU * velocity)
        nag.step(grad(nag.lookahead()))
        want.append(nag.lookahead().copy())
    assert_same_path(formula, want, 1e-11)
    assert_same_path(got, want, 1e-11)
    assert_same_path(back, path_of(NAG(start(), LR, MU), grad), 1e-11)


@pytest.mark.parametrize("surface", SURFACES)
def test_scheduled_lookahead_needs_the_momentum_of_the_next_step(surface):
    """y' = y - a_t v + (1 + a_{t+1}) v'."""
    grad, nag = SURFACES[surface], NAG(start(), LR, mu_at)
    y, v, want, got = start(), np.zeros(2), [], []
    for t in range(STEPS):
        new = mu_at(t) * v - LR * grad(y)
        y = y - mu_at(t) * v + (1 + mu_at(t + 1)) * new
        v = new
        want.append(y)
        nag.step(grad(nag.lookahead()))
        got.append(nag.lookahead().copy())
    assert_same_path(got, want, 1e-11)


@pytest.mark.parametrize("nesterov", [False, True])
def test_lr_inside_or_outside_the_buffer_is_the_same_for_a_constant_lr_only(nesterov):
    def lr(step: int) -> float:
        return LR / (1 + step % 3)

    grad = SURFACES["waves"]
    for rate, same in ((LR, True), (lr, False)):
        inside = path_of(SGD(start(), rate, MU, nesterov=nesterov, convention="keras"), grad)
        outside = path_of(SGD(start(), rate, MU, nesterov=nesterov, convention="torch"), grad)
        assert (np.abs(np.subtract(inside, outside)).max() < 1e-11) == same
    if not nesterov:
        keras, momentum = SGD(start(), lr, MU, convention="keras"), Momentum(start(), lr, MU)
        assert_same_path(path_of(keras, grad), path_of(momentum, grad))


def test_eps_of_keras_is_the_eps_of_pytorch_times_the_root_of_the_correction():
    grad, torch = SURFACES["waves"], Adam(start(), LR, (B1, B2), eps=EPS)
    path = []
    for t in range(1, STEPS + 1):
        torch.param_groups[0]["eps"] = EPS / sqrt(1 - B2**t)
        torch.step(grad(torch.params[0]))
        path.append(torch.params[0].copy())
    assert_same_path(path, path_of(Adam(start(), **ADAM, convention="keras"), grad))


def test_form_of_003_is_optax_with_an_eps_root_that_is_corrected_too():
    grad, optax = SURFACES["waves"], Adam(start(), LR, (B1, B2), eps=0, convention="optax")
    path = []
    for t in range(1, STEPS + 1):
        optax.param_groups[0]["eps_root"] = EPS / (1 - B2**t)
        optax.step(grad(optax.params[0]))
        path.append(optax.params[0].copy())
    assert_same_path(path, path_of(Adam(start(), **ADAM, eps_placement="inside_uncorrected"), grad))


# --- What the libraries add to the notes' forms


def rmsprop_of(
    library: str, centered: bool = False, nesterov: bool = False, corrected: bool = False
) -> Callable[..., Notes]:
    def notes(w: np.ndarray, grad: Gradient) -> Notes:
        v, mean, buffer, t = np.zeros_like(w), np.zeros_like(w), np.zeros_like(w), 0
        while True:
            t += 1
            g = grad(w)
            v = GAMMA * v + (1 - GAMMA) * g * g
            mean = GAMMA * mean + (1 - GAMMA) * g
            bc = 1 - GAMMA**t if corrected else 1.0
            s = v / bc - (mean / bc) ** 2 if centered else v / bc
            d = g / (np.sqrt(s) + EPS) if library == "torch" else g / np.sqrt(s + EPS)
            rate = LR / (1 + t)  # not constant: it matters whether it goes into the buffer
            d, outside = (d, rate) if library == "torch" else (rate * d, 1.0)
            buffer = MU * buffer + d
            w = w - outside * (MU * buffer + d if nesterov else buffer)
            yield w

    return notes


@pytest.mark.parametrize("surface", SURFACES)
@pytest.mark.parametrize(
    ("library", "options"),
    [
        ("torch", {}),
        ("torch", {"centered": True}),
        ("keras", {}),
        ("keras", {"centered": True}),
        ("optax", {}),
        ("optax", {"nesterov": True}),
        ("optax", {"nesterov": True, "centered": True}),
        ("optax", {"bias_correction": True}),
    ],
)
def test_momentum_of_rmsprop(library, options, surface):
    along = rmsprop_of(
        library, options.get("centered", False), options.get("nesterov", False), "bias_correction" in options
    )(start(), SURFACES[surface])
    opt = RMSprop(start(), lambda t: LR / (2 + t), GAMMA, EPS, momentum=MU, convention=library, **options)
    assert_same_path(path_of(opt, SURFACES[surface]), [next(along) for _ in range(STEPS)], 1e-10)


@pytest.mark.parametrize("library", ["torch", "keras", "optax", "paper"])
def test_amsgrad(library):
    """The largest v so far: before its correction, after it (optax), or without any (paper)."""
    grad, w, want = SURFACES["waves"], start(), []
    m, v, top = np.zeros(2), np.zeros(2), np.zeros(2)
    for t in range(1, STEPS + 1):
        bc1, bc2 = (1.0, 1.0) if library == "paper" else (1 - B1**t, 1 - B2**t)
        g = grad(w) * np.cos(t)
        m, v = B1 * m + (1 - B1) * g, B2 * v + (1 - B2) * g * g
        top = np.maximum(top, v / bc2 if library == "optax" else v)
        denominator = {
            "torch": np.sqrt(top / bc2) + EPS,
            "keras": (np.sqrt(top) + EPS) / sqrt(bc2),
            "optax": np.sqrt(top) + EPS,
            "paper": np.sqrt(top),
        }[library]
        w = w - LR * m / bc1 / denominator
        want.append(w)
    options = {} if library == "paper" else {"eps": EPS}
    opt = Adam(start(), LR, (B1, B2), amsgrad=True, convention=library, **options)
    steps = iter(range(1, STEPS + 1))
    assert_same_path(path_of(opt, lambda w: grad(w) * np.cos(next(steps))), want)


WD = 0.3


@pytest.mark.parametrize(
    ("build", "update"),
    [
        (lambda w: SGD(w, LR, weight_decay=WD), lambda p, d, g: p - LR * (g + WD * p)),
        (lambda w: SGD(w, LR, weight_decay=WD, maximize=True), lambda p, d, g: p - LR * (-g + WD * p)),
        (
            lambda w: SGD(w, LR, weight_decay=WD, convention="keras"),
            lambda p, d, g: p * (1 - LR * WD) - LR * g,
        ),
        (
            lambda w: SGD(w, LR, weight_decay=WD, convention="thinc"),
            lambda p, d, g: (p - LR * g) * (1 - LR * WD),
        ),
        (
            lambda w: SGD(w, LR, weight_decay=WD, convention="thinc", decoupled_weight_decay=False),
            lambda p, d, g: p - LR * (g + WD * p),
        ),
        (lambda w: AdamW(w, **ADAM, weight_decay=WD), lambda p, d, g: p * (1 - LR * WD) - d),
        (
            lambda w: AdamW(w, **ADAM, weight_decay=WD, convention="optax"),
            lambda p, d, g: p - d - LR * WD * p,
        ),
        (lambda w: AdamW(w, **ADAM, weight_decay=WD, convention="paper"), lambda p, d, g: p - d - WD * p),
        (
            lambda w: Adam(w, **ADAM, weight_decay=WD, decoupled_weight_decay=True),
            lambda p, d, g: p * (1 - LR * WD) - d,
        ),
    ],
)
def test_weight_decay(build, update):
    """p is the parameter, d what Adam subtracts without decay, g the gradient."""
    grad, w, want = SURFACES["waves"], start(), []
    m, v = np.zeros(2), np.zeros(2)
    for t in range(1, STEPS + 1):
        g = grad(w)
        m, v = B1 * m + (1 - B1) * g, B2 * v + (1 - B2) * g * g
        w = update(w, LR * (m / (1 - B1**t)) / (np.sqrt(v / (1 - B2**t)) + EPS), g)
        want.append(w)
    assert_same_path(path_of(build(start()), grad), want)


# --- eps = 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "build",
    [
        lambda w: Adagrad(w, eps=0),
        lambda w: Adagrad(w, convention="paper"),
        lambda w: Adagrad(w, 0.1, eps=0, initial_accumulator_value=0, convention="optax"),
        lambda w: RMSprop(w, eps=0),
        lambda w: RMSprop(w, eps=0, momentum=0.5, centered=True),
        lambda w: RMSprop(w, convention="paper"),
        lambda w: Adadelta(w, eps=0),
        lambda w: Adam(w, eps=0),
        lambda w: Adam(w, eps=0, bias_correction=False),
        lambda w: Adam(w, amsgrad=True, convention="paper"),
        lambda w: Adam(w, eps=0, eps_placement="inside_uncorrected"),
        lambda w: Adamax(w, convention="paper"),
        lambda w: NAdam(w, eps=0),
    ],
)
def test_element_without_any_gradient_so_far_does_not_move(build, dtype):
    w = np.array([1.5, -2.5, 0.0, 3.5], dtype)
    opt = build(w)
    twin = reference.twin(opt)
    g = np.array([0.0, 0.5, -0.0, -0.25], dtype)
    for _ in range(3):
        opt.step(g)
        twin.step([g])
    assert np.isfinite(w).all() and w[0] == 1.5 and w[2] == 0
    assert w.tobytes() == twin.params[0].tobytes()
    opt.step(np.ones(4, dtype))
    if not isinstance(opt, Adadelta):  # whose updates start at the root of eps: with 0 nothing ever moves
        assert w[0] < 1.5 and w[2] < 0


# --- The loops

X = np.random.default_rng(3).normal(size=(20, 3))
Y = X @ np.array([1.0, -2.0, 0.5]) + 0.1


def loss(params: list[np.ndarray], batch: Any) -> tuple[float, list[np.ndarray]]:
    x, y = batch
    w, b = params
    residual = x @ w + b - y
    return float((residual**2).mean()), [2 * x.T @ residual / len(y), np.array([2 * residual.mean()])]


@pytest.mark.parametrize(
    "batch_size", [None, 20, 6, 1], ids=["batch", "one batch", "mini-batch", "stochastic"]
)
def test_descent_over_batches_is_the_loop_of_the_notes(batch_size):
    params = [np.zeros(3), np.zeros(1)]
    minimize(loss, params, SGD(params, LR), data=(X, Y), batch_size=batch_size, max_steps=45, rng=7)
    want, rng, step = [np.zeros(3), np.zeros(1)], np.random.default_rng(7), 0
    while step < 45:
        # Each epoch sees each sample once, in a new order; the last batch may be short.
        for index in minibatches(20, batch_size or 20, rng) if batch_size else [np.arange(20)]:
            _, grads = loss(want, (X[index], Y[index]))
            want = [p - LR * g for p, g in zip(want, grads, strict=True)]
            step += 1
            if step == 45:
                break
    for p, q in zip(params, want, strict=True):
        np.testing.assert_allclose(p, q, rtol=1e-12)


def test_descent_stops_below_eps_after_the_update():
    params = [np.zeros(3), np.zeros(1)]
    result = minimize(loss, params, SGD(params, 0.1), data=(X, Y), max_steps=10_000, tol=1e-3)
    want, steps, norm = [np.zeros(3), np.zeros(1)], 0, 1.0
    while norm >= 1e-3:
        _, grads = loss(want, (X, Y))
        want = [p - 0.1 * g for p, g in zip(want, grads, strict=True)]
        norm = sqrt(sum(float((g * g).sum()) for g in grads))
        steps += 1
    assert result.reason == "tol" and result.steps == steps < 10_000
    for p, q in zip(params, want, strict=True):
        np.testing.assert_allclose(p, q, rtol=1e-12)


def test_normalizations_of_000_are_scikit_learns_scalers():
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    minmax = (X - X.min(0)) / (X.max(0) - X.min(0))
    standard = (X - X.mean(0)) / X.std(0)
    np.testing.assert_allclose(preprocessing.MinMaxScaler().fit_transform(X), minmax, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(
        preprocessing.StandardScaler().fit_transform(X), standard, rtol=1e-12, atol=1e-12
    )
