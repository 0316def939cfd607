"""docs/clients/recipes.md: its code runs in each library, with the numbers of the library's own optimizer."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support import FENCE, python_blocks

import fastopt

PAGE = Path(__file__).parents[2] / "docs" / "clients" / "recipes.md"
if not PAGE.exists():
    pytest.skip("the documentation is not beside the tests", allow_module_level=True)


def sections() -> dict[str, str]:
    """The Python code of the page by its heading, one block each."""
    parts = re.split(r"^## (.+)$", PAGE.read_text("utf-8"), flags=re.M)[1:]
    blocks = {head: python_blocks(text) for head, text in zip(parts[::2], parts[1::2], strict=True)}
    assert all(len(code) <= 1 for code in blocks.values())
    return {head: code[0] for head, code in blocks.items() if code}


def names_of(section: str) -> dict:
    """What the code of a section defines."""
    names: dict = {}
    exec(compile(sections()[section], f"{PAGE.name}, {section}", "exec"), names)
    return names


def apart(one, other) -> float:
    """The largest difference, by the largest value."""
    return float(np.abs(one - other).max() / np.abs(other).max())


def test_every_recipe_is_run():
    assert set(sections()) == {"Your own NumPy code", "HIPS autograd", "pyribs", "Flower"}
    assert {kind for kind, _ in FENCE.findall(PAGE.read_text("utf-8"))} == {"python"}


def test_your_own_numpy_code(steps):
    names = names_of("Your own NumPy code")
    assert steps == {"Adam": 200}
    w, b, x, y = np.zeros((3, 2)), np.zeros(2), names["x"], names["y"]
    m, v = [np.zeros((3, 2)), np.zeros(2)], [np.zeros((3, 2)), np.zeros(2)]
    for t in range(1, 201):
        error = x @ w + b - y
        for p, g, first, second in zip((w, b), (x.T @ error, error.sum(0)), m, v, strict=True):
            first += 0.1 * (g - first)
            second += 0.001 * (g * g - second)
            p -= 0.1 * first / (1 - 0.9**t) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
    assert apart(names["w"], w) < 1e-12 and apart(names["b"], b) < 1e-12


def test_autograd(steps):
    anp = pytest.importorskip("autograd.numpy", reason="autograd is not installed")
    import autograd
    from autograd.misc import optimizers

    def loss(params, i):
        w, b = params
        return anp.mean((anp.tanh(anp.dot(x, w)) + b - y) ** 2)

    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((20, 4)), rng.standard_normal((20, 3))
    start = [rng.standard_normal((4, 3)), np.zeros(3)]
    kept: dict[str, list] = {"theirs": [], "ours": []}

    def run(adam, who):
        return adam(autograd.grad(loss), start, lambda p, i, g: kept[who].append((p, g)), num_iters=100, step_size=0.05)

    adam = names_of("HIPS autograd")["adam"]
    theirs, ours = run(optimizers.adam, "theirs"), run(adam, "ours")
    assert steps == {"Adam": 100} and loss(ours, 0) < loss(start, 0) / 1.5
    for a, b in zip(ours, theirs, strict=True):
        assert apart(a, b) < 1e-12
    for (p, g), (q, h) in zip(kept["ours"], kept["theirs"], strict=True):  # looked at after the run
        assert apart(p[0], q[0]) < 1e-12 and apart(g[0], h[0]) < 1e-11


def test_what_is_said_of_autograds_sgd(steps):
    optimizers = pytest.importorskip("autograd.misc.optimizers", reason="autograd is not installed")
    theirs = optimizers.sgd(lambda x, i: 2 * x + i, np.ones(3), num_iters=50, step_size=0.1, mass=0.9)
    x, step_size, mass = np.ones(3), 0.1, 0.9
    optimizer = eval(
        re.search(r"`(fastopt\.Momentum\(.*?)`", PAGE.read_text("utf-8"))[1], {"fastopt": fastopt, **locals()}
    )
    for i in range(50):
        optimizer.step(2 * x + i)
    assert apart(x, theirs) < 1e-12 and steps == {"Momentum": 50}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_pyribs_step(dtype, steps):
    opt = pytest.importorskip("ribs.emitters.opt", reason="pyribs is not installed")
    rng = np.random.default_rng(0)
    start = rng.standard_normal(30).astype(dtype)
    theirs, ours = (cls(theta0=start, lr=0.1) for cls in (opt.AdamOpt, names_of("pyribs")["Adam"]))
    for t in range(60):
        if t == 30:
            theirs.reset(start[::-1])
            ours.reset(start[::-1])
        gradient = rng.standard_normal(30).astype(dtype)
        theirs.step(gradient)
        ours.step(gradient)
    assert ours.theta.dtype == theirs.theta.dtype == dtype and steps == {"Adam": 60}
    assert apart(ours.theta, theirs.theta) < (1e-12 if dtype == np.float64 else 1e-6)
    assert start is not ours.theta and (start != ours.theta).any()


def test_pyribs_emitter(steps):
    emitters = pytest.importorskip("ribs.emitters", reason="pyribs is not installed")
    from ribs.archives import GridArchive

    def explore(grad_opt):
        archive = GridArchive(solution_dim=8, dims=[20, 20], ranges=[(-4, 4)] * 2, seed=1)
        emitter = emitters.GradientArborescenceEmitter(
            archive, x0=np.zeros(8), sigma0=1.0, lr=0.1, grad_opt=grad_opt, seed=2, batch_size=12, ranker="2imp"
        )
        seen = []

        def told(solutions, tell, *more):
            objective, measures = -np.square(solutions - 1).sum(1), solutions[:, :2]
            add = archive.add(solutions, objective, measures)
            tell(solutions, objective, measures, *more, add)
            seen.append(solutions)

        for _ in range(25):
            solutions = emitter.ask_dqd()
            gradients = np.zeros((len(solutions), 3, 8))
            gradients[:, 0] = -2 * (solutions - 1)
            gradients[:, 1, 0] = gradients[:, 2, 1] = 1
            told(solutions, emitter.tell_dqd, gradients)
            told(emitter.ask(), emitter.tell)
        return np.concatenate(seen), archive.stats.num_elites

    theirs, ours = explore("adam"), explore(names_of("pyribs")["Adam"])
    assert steps["Adam"] == 25 and ours[1] == theirs[1] > 5
    assert apart(ours[0], theirs[0]) < 1e-9


def test_flower(steps, monkeypatch, caplog):
    pytest.importorskip("flwr.serverapp.strategy", reason="flwr is not installed")
    from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
    from flwr.serverapp.strategy import FedAdam

    def reply(arrays, examples):
        record = ArrayRecord({name: Array(array) for name, array in arrays.items()})
        content = RecordDict({"arrays": record, "metrics": MetricRecord({"num-examples": examples, "loss": 1.0})})
        return SimpleNamespace(content=content, has_error=lambda: False)

    def rounds(strategy):
        rng = np.random.default_rng(0)
        arrays = {"w": np.ones((40, 30), np.float32), "b": np.zeros(30, np.float32), "seen": np.array(7)}
        for number in range(1, 13):
            # What configure_train does, which needs clients.
            strategy.current_arrays = {name: Array(array).numpy() for name, array in arrays.items()}
            replies = []
            for examples in (10, 30):
                trained = {
                    name: arrays[name].astype(np.float32) * 0.9 + rng.standard_normal(arrays[name].shape, np.float32)
                    for name in ("w", "b")
                }
                replies.append(reply({**trained, "seen": np.array(7 + examples)}, examples))
            record, metrics = strategy.aggregate_train(number, replies)
            assert metrics["loss"] == 1.0 and list(record) == ["w", "b", "seen"]
            arrays = {name: array.numpy() for name, array in record.items()}
        return arrays

    calls = []
    names = names_of("Flower")
    adam_ = names["adam_"]

    def counted(*args, **kwargs):
        done = adam_(*args, **kwargs)
        calls.append(kwargs["step"])
        return done

    names["adam_"] = counted
    options = {"eta": 0.05, "tau": 1e-3, "beta_2": 0.98}
    theirs, ours = rounds(FedAdam(**options)), rounds(names["FastFedAdam"](**options))
    assert calls == list(range(2, 14))
    for name in ("w", "b"):
        assert ours[name].dtype == np.float32 and apart(ours[name], theirs[name]) < 2e-6
    assert ours["seen"].dtype == int and ours["seen"] == 7
    assert names["FastFedAdam"]().aggregate_train(1, []) == (None, None)
