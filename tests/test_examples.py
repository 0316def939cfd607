"""The examples: each as a user starts it, each with an optimizer that does nothing, and their gradients by hand.

Those for torch are tested in tests/pytorch.
"""

from __future__ import annotations

import importlib
import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

for module in ("sklearn", "matplotlib", "tqdm"):
    pytest.importorskip(module, reason=f"the examples use {module}")

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
FOUND = sorted(path.stem for path in EXAMPLES.glob("*.py") if not path.stem.startswith(("_", "torch_")))
WRITES = {
    "autograd": ["autograd.png"],
    "parameter_groups": ["parameter_groups.png"],
    "perceptron": ["perceptron.png"],
    "rbm": ["rbm.png"],
    "regression": ["regression.png"],
    "resume": ["resume_continued.npz", "resume_half.npz", "resume_half.safetensors"],
    "schedule_zoo": ["schedule_zoo.png"],
}
CLAIMS = {
    "autograd": 3, "parameter_groups": 5, "perceptron": 3, "rbm": 3, "regression": 8, "resume": 3, "schedule_zoo": 3,
}  # fmt: skip

# The example, with an optimizer whose steps change nothing.
IDLE = """
import os, runpy, sys
import fastopt, fastopt.functional
fastopt.Optimizer.step = fastopt.functional.adamw_ = lambda *args, **options: None
del sys.argv[0]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def start(*command: object, folder: Path) -> subprocess.CompletedProcess:
    """Run Python in this folder, with the modules that this process finds."""
    path = os.pathsep.join(filter(None, sys.path))
    return subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True, encoding="utf-8", timeout=120, cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip


def script(name: str) -> Path:
    if name == "resume":
        pytest.importorskip("safetensors", reason="the checkpoint is written with safetensors")
    return EXAMPLES / f"{name}.py"


@pytest.fixture
def example(monkeypatch):
    """`example(name)`: the module of an example, in this process; it and its helpers are forgotten afterwards."""
    monkeypatch.syspath_prepend(EXAMPLES)
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if (EXAMPLES / f"{name}.py").exists():
            del sys.modules[name]


# --- The programs


def test_every_example_has_its_row_here_and_in_the_readme():
    assert sorted(WRITES) == sorted(CLAIMS) == FOUND
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    programs = [path.name for path in EXAMPLES.glob("*.py") if not path.stem.startswith("_")]
    assert len(programs) >= 9
    for program in programs:
        assert f"| `{program}` |" in readme and f"python {program}" in readme


@pytest.mark.parametrize("name", FOUND)
def test_what_it_claims_holds(name, tmp_path):
    done = start(script(name), "--out", "new/pictures", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stderr
    lines = done.stdout.splitlines()
    assert len([line for line in lines if line.startswith("holds  ")]) == CLAIMS[name]
    assert not any(line.startswith("FAILS") for line in lines)
    assert "\r" not in done.stdout + done.stderr  # no bar where there is no terminal
    assert max(map(len, lines)) <= 100  # fits beside a paragraph

    written = sorted(path.name for path in (tmp_path / "new" / "pictures").iterdir())
    assert written == WRITES[name]
    for file in written:
        if file.endswith(".png"):
            assert (tmp_path / "new" / "pictures" / file).read_bytes().startswith(b"\x89PNG")
    assert any(line.startswith("wrote  ") for line in lines)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


@pytest.mark.parametrize("name", FOUND)
def test_an_optimizer_that_does_nothing_is_noticed(name, tmp_path):
    done = start("-c", IDLE, script(name), "--out", tmp_path, folder=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "\nFAILS  " in done.stdout


def test_rbm_with_chains_that_are_kept(tmp_path):
    done = start(script("rbm"), "--persistent", "--k", 2, "--epochs", 30, "--seed", 1, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "persistent CD-2" in done.stdout
    assert (tmp_path / "fastopt-examples" / "rbm.png").exists()  # the default


@pytest.mark.parametrize("name", FOUND)
def test_help_explains_every_option(name, example, monkeypatch, capsys):
    module = example(script(name).stem)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as stop:
        module.main()
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert " ".join(module.__doc__.splitlines()[0].split()) in text
    assert "exit code: 0 good, 1 if" in text and "(fastopt-examples)" in text


@pytest.mark.parametrize(
    "arguments",
    [["--seed", "-1"], ["--seed", "many"], ["--seed", 2**32], ["--k", 0], ["--frobnicate"], ["--out", "file"],
     ["--out", "file/below"]],
    ids=lambda arguments: " ".join(map(str, arguments)),
)  # fmt: skip
def test_bad_arguments_are_one_line_and_exit_code_2(arguments, example, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    monkeypatch.setattr(sys, "argv", ["rbm.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        example("rbm").main()
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("rbm.py: error: ")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("missing", ["sklearn", "matplotlib", "tqdm"])
def test_a_missing_library_is_one_line_and_exit_code_2(missing, example, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(SystemExit) as stop:
        example("_common")
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert missing in err and 'pip install "fastopt[demo,checkpoint]"' in err and err.count("\n") == 1


def test_a_schedule_without_a_panel_is_noticed(example, monkeypatch, capsys, tmp_path):
    zoo = example("schedule_zoo")
    monkeypatch.setattr(zoo.schedules, "__all__", [*zoo.schedules.__all__, "Triangle"])
    monkeypatch.setattr(sys, "argv", ["schedule_zoo.py", "--out", str(tmp_path)])
    assert zoo.main() == 1
    assert "FAILS  all schedules of fastopt.schedules are here, not Triangle" in capsys.readouterr().out


# --- The mathematics


def slopes(fun, arrays, h=1e-6):
    """The central differences of a scalar function of these arrays, which are changed and put back."""
    out = []
    for a in arrays:
        out.append(np.empty_like(a))
        for index in np.ndindex(a.shape):
            old = a[index]
            a[index] = old + h
            above = fun()
            a[index] = old - h
            out[-1][index] = (above - fun()) / (2 * h)
            a[index] = old
    return out


def check_gradient(loss, params, batch):
    """`loss(params, batch)` returns a loss, and its gradient in the container of the parameters."""
    _, grads = loss(params, batch)
    if isinstance(params, dict):
        assert sorted(params) == sorted(grads)
        pairs = [(params[name], grads[name]) for name in params]
    else:
        pairs = list(zip(params, grads, strict=True))
    arrays, grads = zip(*pairs, strict=True)
    for got, want in zip(grads, slopes(lambda: loss(params, batch)[0], arrays), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-8)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("batch_size", [1, 7])
def test_gradients_of_the_perceptron_and_the_network(example, rng, batch_size):
    perceptron = example("perceptron")
    batch = rng.normal(size=(batch_size, 2)), np.where(np.arange(batch_size) % 2, -1.0, 1.0)
    for w in ([3.0, -2.0], [-3.0, 2.0]):  # one of them is wrong about the first sample
        check_gradient(perceptron.perceptron_loss, [np.array(w), np.array([0.1])], batch)
    params = [rng.normal(size=shape) for shape in ((2, 5), (5,), (5,), (1,))]
    check_gradient(perceptron.network_loss, params, batch)


@pytest.mark.parametrize("name", ["Linear", "Logistic"])
def test_gradients_of_the_regressions_vanish_at_the_solution_of_scikit_learn(example, rng, name):
    task = getattr(example("regression"), name)()
    batch = rng.normal(size=(9, 3)), rng.choice([-1.0, 1.0], 9)
    check_gradient(task.loss, [rng.normal(size=3), rng.normal(size=1)], batch)
    x = (task.x - task.x.mean(axis=0)) / task.x.std(axis=0)
    _, grads = task.loss(task.solution(x, task.y), (x, task.y))
    assert max(np.abs(g).max() for g in grads) < 1e-9


def test_gradients_of_the_digits_network(example, rng):
    digits = example("_digits")
    params = {name: p + rng.normal(0, 0.1, p.shape) for name, p in digits.initial(rng).items()}
    check_gradient(digits.loss_and_gradients, params, (rng.normal(size=(3, 64)), np.array([0, 7, 9])))


@pytest.fixture
def small_rbm(rng):
    """Three pixels and two hidden units: few enough to sum over all of them."""
    return {"W": rng.normal(size=(3, 2)), "b": rng.normal(size=3), "a": rng.normal(size=2)}


def states(n):
    return np.array(list(itertools.product([0.0, 1.0], repeat=n)))


def test_free_energy_is_the_sum_over_the_hidden_units_and_its_gradient_the_mean(example, small_rbm):
    rbm, v, h = example("rbm"), states(3), states(2)
    energy = -v @ small_rbm["W"] @ h.T - (v @ small_rbm["b"])[:, None] - h @ small_rbm["a"]
    np.testing.assert_allclose(rbm.free_energy(small_rbm, v), -np.log(np.exp(-energy).sum(axis=1)), rtol=1e-12)
    check_gradient(lambda p, v: (rbm.free_energy(p, v).mean(), rbm.energy_gradient(p, v)), small_rbm, v)


def test_gibbs_steps_sample_the_model(example, small_rbm, rng):
    rbm, v = example("rbm"), states(3)
    p = np.exp(-rbm.free_energy(small_rbm, v))
    chains = rbm.gibbs(small_rbm, np.zeros((40_000, 3)), 30, rng)
    counts = np.bincount((chains @ [4, 2, 1]).astype(int), minlength=8)
    np.testing.assert_allclose(counts / len(chains), p / p.sum(), atol=0.01)


OPERATIONS = {
    "+": lambda a, b: a + b + 1.5,
    "-": lambda a, b: a - b - 0.5,
    "*": lambda a, b: -(a * b * a),
    "@": lambda a, b: a @ (b * b),
    "tanh": lambda a, b: (a @ b).tanh(),
    "relu": lambda a, b: (a + b).relu(),
    "exp, log": lambda a, b: ((a * b).exp() + 1.0).log(),
    "sum": lambda a, b: a * b.sum(axis=0) + b.sum(axis=1, keepdims=True) + a.sum(),
    "mean": lambda a, b: a * b.mean(),
    "log_softmax": lambda a, b: (a @ b).log_softmax() * b,
    "[...]": lambda a, b: (a @ b)[np.array([0, 2, 2]), np.array([1, 0, 0])],
    "a row": lambda a, b: a * b[1] + b[np.array([0])],
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_of_autograd_knows_its_gradient(example, rng, name):
    autograd = example("autograd")
    a, b = (autograd.Tensor(rng.normal(size=(3, 3))) for _ in range(2))
    weights = rng.normal(size=OPERATIONS[name](a, b).data.shape)

    def loss():
        return (OPERATIONS[name](a, b) * weights).sum()

    loss().backward()
    wanted = slopes(lambda: loss().data, [a.data, b.data])
    for tensor, want in zip((a, b), wanted, strict=True):
        np.testing.assert_allclose(tensor.grad, want, rtol=1e-6, atol=1e-8)
