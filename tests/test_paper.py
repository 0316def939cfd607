"""convention="paper": each publication's own algorithm, written out here from it, in plain float64."""

import numpy as np
import pytest

import fastopt

STEPS, LR, B1, B2, EPS, DECAY = 40, 0.03, 0.85, 0.97, 1e-3, 0.07


def gradients():
    rng = np.random.default_rng(5)
    return [rng.standard_normal(6) for _ in range(STEPS)]


def start():
    return np.linspace(-1.0, 2.0, 6)


def adam(p, g, s, t):
    """Kingma & Ba, algorithm 1."""
    s["m"] = B1 * s["m"] + (1 - B1) * g
    s["v"] = B2 * s["v"] + (1 - B2) * g**2
    return p - LR * (s["m"] / (1 - B1**t)) / (np.sqrt(s["v"] / (1 - B2**t)) + EPS)


def adamw(p, g, s, t):
    """Loshchilov & Hutter, algorithm 2, with the schedule multiplier 1: lr does not scale the decay."""
    return adam(p, g, s, t) - DECAY * p


def adamax(p, g, s, t):
    """Kingma & Ba, algorithm 2."""
    s["m"] = B1 * s["m"] + (1 - B1) * g
    s["v"] = np.maximum(B2 * s["v"], np.abs(g))
    return p - LR / (1 - B1**t) * s["m"] / s["v"]


def amsgrad(p, g, s, t):
    """Reddi, Kale & Kumar, algorithm 2."""
    s["m"] = B1 * s["m"] + (1 - B1) * g
    s["v"] = B2 * s["v"] + (1 - B2) * g**2
    s["top"] = np.maximum(s["top"], s["v"])
    return p - LR * s["m"] / np.sqrt(s["top"])


def nadam(p, g, s, t):
    """Dozat, algorithm 2: mu_t in the average, beta2 (his nu) times n under the root."""
    mu, after = (B1 * (1 - 0.5 * 0.96 ** (k * 0.004)) for k in (t, t + 1))
    s["product"] = s.get("product", 1.0) * mu
    s["m"] = mu * s["m"] + (1 - mu) * g
    s["v"] = B2 * s["v"] + (1 - B2) * g**2
    m_hat = after * s["m"] / (1 - s["product"] * after) + (1 - mu) * g / (1 - s["product"])
    return p - LR * m_hat / (np.sqrt(B2 * s["v"] / (1 - B2**t)) + EPS)


def radam(p, g, s, t):
    """Liu et al., algorithm 2."""
    s["m"] = B1 * s["m"] + (1 - B1) * g
    s["v"] = B2 * s["v"] + (1 - B2) * g**2
    m_hat = s["m"] / (1 - B1**t)
    longest = 2 / (1 - B2) - 1
    length = longest - 2 * t * B2**t / (1 - B2**t)
    if length <= 4:
        return p - LR * m_hat
    r = np.sqrt((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length))
    return p - LR * r * m_hat * np.sqrt((1 - B2**t) / s["v"])


def adabelief(p, g, s, t):
    """Zhuang et al., algorithm 2."""
    s["m"] = B1 * s["m"] + (1 - B1) * g
    s["v"] = B2 * s["v"] + (1 - B2) * (g - s["m"]) ** 2 + EPS
    return p * (1 - LR * DECAY) - LR * (s["m"] / (1 - B1**t)) / (np.sqrt(s["v"] / (1 - B2**t)) + EPS)


def lion(p, g, s, t):
    """Chen et al., program 1."""
    c = B1 * s["m"] + (1 - B1) * g
    s["m"] = B2 * s["m"] + (1 - B2) * g
    return p - LR * (np.sign(c) + DECAY * p)


def momentum(decoupled):
    def step(p, g, s, t):
        g = g if decoupled else g + DECAY * p
        s["v"] = B1 * s["v"] - LR * g
        return p * (1 - LR * DECAY if decoupled else 1) + s["v"]

    return step


BETAS = {"lr": LR, "betas": (B1, B2)}
MOMENTUM = {"lr": LR, "momentum": B1, "weight_decay": DECAY}
ALGORITHMS = {
    "Adam": (adam, fastopt.Adam, {**BETAS, "eps": EPS}),
    "AMSGrad": (amsgrad, fastopt.Adam, {**BETAS, "amsgrad": True}),
    "AdamW": (adamw, fastopt.AdamW, {**BETAS, "eps": EPS, "weight_decay": DECAY}),
    "Adamax": (adamax, fastopt.Adamax, BETAS),
    "NAdam": (nadam, fastopt.NAdam, {**BETAS, "eps": EPS}),
    "RAdam": (radam, fastopt.RAdam, BETAS),
    "AdaBelief": (adabelief, fastopt.AdaBelief, {**BETAS, "eps": EPS, "weight_decay": DECAY}),
    "Lion": (lion, fastopt.Lion, {**BETAS, "weight_decay": DECAY}),
    "Momentum": (momentum(False), fastopt.Momentum, MOMENTUM),
    "Momentum, decoupled": (momentum(True), fastopt.Momentum, {**MOMENTUM, "decoupled_weight_decay": True}),
    "NAG": (momentum(False), fastopt.NAG, MOMENTUM),
    "NAG, decoupled": (momentum(True), fastopt.NAG, {**MOMENTUM, "decoupled_weight_decay": True}),
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_path_is_the_paper_s(name):
    algorithm, cls, options = ALGORITHMS[name]
    p, want, s = start(), start(), {"m": np.zeros(6), "v": np.zeros(6), "top": np.zeros(6)}
    opt = cls(p, convention="paper", **options)
    for t, g in enumerate(gradients(), 1):
        want = algorithm(want, g, s, t)
        opt.step(g)
        assert np.abs(p - want).max() <= 1e-12 * (np.abs(want).max() + 1e-3), t


IN_FORMS = {"Adagrad", "Adadelta", "RMSprop"}  # tests/test_forms.py has these


def test_every_paper_s_algorithm_is_written_out():
    tested = {cls.__name__ for _, cls, _ in ALGORITHMS.values()} | IN_FORMS
    for name, cls in fastopt.OPTIMIZERS.items():
        assert name in tested or "paper" not in cls.conventions, f"tests/test_paper.py has no algorithm of {name}"
