"""`fastopt.keras` beside Keras' own optimizers, and Keras' own tests with these classes in their place.

``python test_keras.py {stock,fastopt} FILES`` runs files of Keras' tests on the backend that KERAS_BACKEND names, and
prints what became of them as JSON. The tests call it so, since a process has one backend.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras")
if __name__ != "__main__" and keras.backend.backend() not in ("torch", "numpy"):
    pytest.skip("Keras runs on another backend in this process", allow_module_level=True)

import fastopt  # noqa: E402
import fastopt.keras  # noqa: E402
from fastopt import functional  # noqa: E402

BACKEND = keras.backend.backend()
HERE = Path(__file__)
NAMES = ("SGD", "Adagrad", "Adadelta", "RMSprop", "Adam", "AdamW", "Adamax", "Nadam", "Lion")
if BACKEND == "torch":
    import torch
on_torch = pytest.mark.skipif(BACKEND != "torch", reason="about tensors of PyTorch")
on_numpy = pytest.mark.skipif(BACKEND != "numpy", reason="about the NumPy backend")

# --- Keras' own tests

FOUR = ("adam", "adamw", "sgd", "rmsprop")
EVERY = (
    *FOUR, "adadelta", "adagrad", "adamax", "nadam", "lion", "optimizer", "loss_scale_optimizer", "multi_optimizer",
    "optimizer_sparse",
)  # fmt: skip


def run_host_tests(which: str, files: list[str]) -> dict[str, object]:
    """Run Keras' tests in this process, with its classes or with these in their place."""
    import keras.src.optimizers as host

    counted: Counter[str] = Counter()
    bound_step = functional.Bound.step

    def step(self, *args, **kwargs):
        done = bound_step(self, *args, **kwargs)
        counted[self._cls.__name__] += 1
        return done

    functional.Bound.step = step
    if which == "fastopt":
        # Keras decides in __new__ by `keras.src.optimizers.Adam`, which is another class now.
        fastopt.keras._Compiled.__new__ = lambda cls, *args, **kwargs: object.__new__(cls)
        for name in NAMES:
            public, own = getattr(keras.optimizers, name), getattr(fastopt.keras, name)
            for module in (sys.modules[public.__module__], host, keras.optimizers):
                setattr(module, name, own)
            host.ALL_OBJECTS_DICT[name.lower()] = own
    outcomes: dict[str, str] = {}

    class Plugin:
        def pytest_runtest_logreport(self, report):
            if report.when == "call" or report.outcome != "passed":
                outcomes[report.nodeid.removeprefix("::")] = report.outcome

    folder = Path(host.__file__).parent
    paths = [str(folder / f"{file}_test.py") for file in files]
    options = ["-q", "-p", "no:cacheprovider", "-c", os.devnull, "--import-mode=importlib", "-W", "ignore"]
    pytest.main([*options, *paths], plugins=[Plugin()])
    return {"outcomes": outcomes, "steps": dict(counted)}


def host_tests(which: str, backend: str, files: tuple[str, ...]) -> tuple[dict[str, str], Counter[str]]:
    environ = {**os.environ, "KERAS_BACKEND": backend, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE), which, *files]
    run = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    answer = json.loads(run.stdout.splitlines()[-1])
    return answer["outcomes"], Counter(answer["steps"])


if __name__ == "__main__":
    print("\n" + json.dumps(run_host_tests(sys.argv[1], sys.argv[2:])))
    sys.exit()


BOARD = "multi_optimizer_test.py::MultiOptimizerTest::test_tensorboard_logging_with_multi_optimizer"
NO_FIT = "NotImplementedError: Keras has no fit() on the NumPy backend"
NO_TENSORFLOW = "its callback imports TensorFlow, which is not installed"
FAIL_AS_STOCK = {
    "torch": {BOARD: NO_TENSORFLOW},
    "numpy": {
        "adam_test.py::AdamTest::test_ema": NO_FIT,
        "lion_test.py::LionTest::test_ema": NO_FIT,
        "optimizer_test.py::OptimizerTest::test_ema_with_model_fit": NO_FIT,
        "multi_optimizer_test.py::MultiOptimizerTest::test_multi_optimizer_with_model_fit": NO_FIT,
        "multi_optimizer_test.py::MultiOptimizerTest::test_swap_ema_weights_with_multi_optimizer": NO_FIT,
        BOARD: NO_TENSORFLOW,
    },
}  # fmt: skip
"""Keras' tests that fail with its own classes, too, and why."""

# On torch the golden tests of SGD and RMSprop give float32 gradients of float64 variables, which are left to Keras.
STEPS_OF_FOUR = {
    "torch": {"Adam": 17, "AdamW": 10, "SGD": 4, "RMSprop": 4},
    "numpy": {"Adam": 16, "AdamW": 10, "SGD": 10, "RMSprop": 10},
}


@pytest.mark.parametrize("backend", ["torch", "numpy"])
def test_keras_own_tests_of_four_optimizers_pass(backend):
    """28 pass; one is for IndexedSlices of TensorFlow, and skipped; on NumPy one needs fit()."""
    outcomes, steps = host_tests("fastopt", backend, FOUR)
    failed = {name for name, outcome in outcomes.items() if outcome == "failed"}
    assert failed == {name for name in FAIL_AS_STOCK[backend] if name.startswith("adam_test")}
    assert Counter(outcomes.values()) == Counter({"passed": 28 - len(failed), "failed": len(failed), "skipped": 1})
    assert steps == STEPS_OF_FOUR[backend]


@pytest.mark.parametrize("backend", ["torch", "numpy"])
def test_all_of_keras_tests_end_as_with_its_own_classes(backend, amount):
    """The files of the nine optimizers, of the base class, of LossScaleOptimizer and MultiOptimizer."""
    files = amount((), EVERY)
    if not files:
        pytest.skip("in the long runs (--long)")
    outcomes, steps = host_tests("fastopt", backend, files)
    stock, none = host_tests("stock", backend, files)
    assert outcomes == stock and not none
    failed = {name for name, outcome in outcomes.items() if outcome == "failed"}
    assert failed == set(FAIL_AS_STOCK[backend])
    passed = {"torch": 145, "numpy": 140}[backend]
    assert Counter(outcomes.values()) == Counter({"passed": passed, "skipped": 41, "failed": len(failed)})
    assert len(steps) == len(NAMES) and sum(steps.values()) > 250 and min(steps.values()) >= 20


# --- The same as Keras


def tensor(array):
    """What Keras takes for a gradient here."""
    return torch.from_numpy(np.asarray(array).copy()) if BACKEND == "torch" else np.asarray(array)


def value(variable) -> np.ndarray:
    return np.array(keras.ops.convert_to_numpy(variable))


SHAPES = ((3, 4), (5,), (), (33, 7))


def variables_of(dtype="float32", shapes=SHAPES, seed=0):
    rng = np.random.default_rng(seed)
    return [keras.Variable(rng.normal(size=shape).astype(dtype)) for shape in shapes]


def gradients_of(variables, t, seed=1):
    rng = np.random.default_rng([seed, t])
    return [tensor(rng.normal(size=tuple(v.shape)).astype(v.dtype)) for v in variables]


def train(optimizer, variables, n=60, first=0):
    for t in range(first, first + n):
        optimizer.apply(gradients_of(variables, t), variables)
    return [value(v) for v in (*variables, *optimizer.variables)]


def distance(ours, stock) -> float:
    """How far arrays are apart, in units of the largest element of each."""
    assert len(ours) == len(stock)
    worst = 0.0
    for a, b in zip(ours, stock, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        scale = np.abs(b).max() or 1.0
        worst = max(worst, float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max() / scale))
    return worst


def schedule():
    return keras.optimizers.schedules.ExponentialDecay(0.01, 10, 0.5)


CASES = [
    ("SGD", {}), ("SGD", {"momentum": 0.9}), ("SGD", {"momentum": 0.9, "nesterov": True}),
    ("SGD", {"weight_decay": 0.01}), ("SGD", {"nesterov": True}),
    ("RMSprop", {}), ("RMSprop", {"momentum": 0.9, "centered": True}), ("RMSprop", {"centered": True, "rho": 0.5}),
    ("RMSprop", {"momentum": 0.9}), ("Adagrad", {}), ("Adadelta", {"learning_rate": 1.0}),
    ("Adam", {}), ("Adam", {"amsgrad": True}), ("AdamW", {}), ("AdamW", {"amsgrad": True, "weight_decay": 0.3}),
    ("Adamax", {}), ("Nadam", {}), ("Nadam", {"weight_decay": 0.1}), ("Lion", {}),
    ("Adam", {"clipnorm": 0.1}), ("Adam", {"global_clipnorm": 0.1}), ("Adam", {"clipvalue": 0.1}),
    ("Adam", {"use_ema": True, "ema_momentum": 0.9}), ("SGD", {"use_ema": True, "ema_overwrite_frequency": 3}),
    ("Lion", {"use_ema": True, "weight_decay": 0.1, "global_clipnorm": 1.0}),
    ("Adam", {"loss_scale_factor": 8.0}), ("AdamW", {"learning_rate": schedule}), ("Adam", {"learning_rate": 0.01}),
    ("AdamW", {"learning_rate": lambda: 0.01}),
]  # fmt: skip
ACCUMULATED = [(name, {"gradient_accumulation_steps": 3}) for name in ("Adam", "Nadam", "SGD")] + [
    ("AdamW", {"gradient_accumulation_steps": 3, "use_ema": True, "clipnorm": 0.1}),
]


def options(given):
    """Options with a schedule of their own."""
    return {key: x() if x is schedule else x for key, x in given.items()}


RULE = {"Nadam": "NAdam"}
# Keras computes bias corrections in float32, and on NumPy all else with float32 constants, too.
NEAR = {"float64": 1e-12 if BACKEND == "torch" else 1e-4, "float32": 2e-5}


def named(value):
    """A name for a case that every process gives it: without addresses."""
    return re.sub(r" at 0x\w+", "", str(value))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name, given", CASES + ACCUMULATED, ids=named)
def test_60_steps_end_where_those_of_keras_do(name, given, dtype, steps):
    """Variables and state: float64 within 1e-12, float32 within 2e-5 of the largest element of each.

    Keras computes the factors of clipping in float32, also for float64.
    """
    ours, stock = getattr(fastopt.keras, name)(**options(given)), getattr(keras.optimizers, name)(**options(given))
    near = NEAR[dtype] if given.keys().isdisjoint(("clipnorm", "global_clipnorm")) else max(NEAR[dtype], 1e-6)
    taken = 20 if "gradient_accumulation_steps" in given else 60
    assert distance(train(ours, variables_of(dtype)), train(stock, variables_of(dtype))) < near
    assert steps == {RULE.get(name, name): taken} and ours.left_to_keras == []


@pytest.mark.parametrize("name, given", [
    ("SGD", {"momentum": 0.9, "nesterov": True}), ("RMSprop", {"momentum": 0.9, "centered": True}),
    ("Adagrad", {}), ("Adadelta", {}), ("Adam", {"amsgrad": True}), ("Adamax", {}), ("Lion", {}),
], ids=str)  # fmt: skip
def test_bits_are_those_of_the_class(name, given, steps):
    """Each step of float32 is the step of fastopt's class under convention="keras", to the bit."""
    ours = getattr(fastopt.keras, name)(0.01, **given)
    variables = variables_of()
    arrays = [value(v).copy() for v in variables]
    alone = getattr(fastopt, RULE.get(name, name))(arrays, float(np.float32(0.01)), convention="keras", **given)
    for t in range(60):
        ours.apply(gradients_of(variables, t), variables)
        alone.step([value(g) for g in gradients_of(variables, t)])
    for v, array in zip(variables, arrays, strict=True):
        assert (value(v) == array).all()
    assert steps == {RULE.get(name, name): 120}


def test_bits_of_nadam_are_those_of_the_function(steps):
    """Keras keeps the product of the momenta in float32."""
    ours = fastopt.keras.Nadam(0.01)
    variables = variables_of()
    arrays = [value(v).copy() for v in variables]
    m, v = ([np.zeros_like(array) for array in arrays] for _ in range(2))
    products = [np.ones(1, np.float32) for _ in arrays]
    for t in range(60):
        grads = [value(g) for g in gradients_of(variables, t)]
        functional.nadam_(arrays, grads, m, v, products, step=t + 1, lr=float(np.float32(0.01)), convention="keras")
        ours.apply(gradients_of(variables, t), variables)
    for variable, array in zip(variables, arrays, strict=True):
        assert (value(variable) == array).all()
    assert float(value(ours._u_product)) == products[0][0] and steps == {"NAdam": 60}


@on_torch
def test_weight_decay_multiplies_by_the_number_of_keras(steps):
    """With gradients of zero nothing is left of AdamW but the decay: to the bit that of Keras."""
    ours, stock = variables_of(), variables_of()
    one, other = fastopt.keras.AdamW(0.01, weight_decay=0.37), keras.optimizers.AdamW(0.01, weight_decay=0.37)
    for _ in range(50):
        for optimizer, variables in ((one, ours), (other, stock)):
            optimizer.apply([0 * g for g in gradients_of(variables, 0)], variables)
    assert distance([value(v) for v in ours], [value(v) for v in stock]) == 0
    assert steps == {"AdamW": 50}


def test_variables_that_do_not_decay(steps):
    """By name and by list, also when excluded in the middle."""
    ends = []
    for module in (keras.optimizers, fastopt.keras):
        variables = variables_of("float64")
        optimizer = module.AdamW(0.01, weight_decay=0.5)
        train(optimizer, variables, 20)
        optimizer.exclude_from_weight_decay(var_list=[variables[0]])
        train(optimizer, variables, 20, 20)
        optimizer.exclude_from_weight_decay(var_names=[variables[1].name])
        ends.append(train(optimizer, variables, 20, 40))
    assert distance(*ends) < NEAR["float64"] and steps == {"AdamW": 60}


@pytest.mark.parametrize("name", ["Adam", "Nadam", "SGD"])
def test_gradients_of_none_and_some_of_the_variables(name, steps):
    ends = []
    for module in (keras.optimizers, fastopt.keras):
        variables = variables_of("float64")
        optimizer = getattr(module, name)(0.01, use_ema=True)
        optimizer.build(variables)
        for t in range(60):
            grads = gradients_of(variables, t)
            if t % 3 == 0:
                optimizer.apply(grads[:2], variables[:2])
            elif t % 3 == 1:
                optimizer.apply(grads[:0:-1], variables[:0:-1])
            else:
                with pytest.warns(UserWarning, match="Gradients do not exist"):
                    optimizer.apply([None, *grads[1:]], variables)
        ends.append([value(v) for v in (*variables, *optimizer.variables)])
    assert distance(*ends) < NEAR["float64"] and steps == {RULE.get(name, name): 60}


def test_no_gradients_at_all(steps):
    optimizer, variables = fastopt.keras.Adam(), variables_of()
    optimizer.apply([])
    with pytest.raises(ValueError, match="No gradients provided"):
        optimizer.apply([None] * len(variables), variables)
    with pytest.raises(ValueError, match="Unknown variable"):
        optimizer.apply(gradients_of(variables, 0), variables_of())
    assert not steps


def test_unknown_variables_after_steps(steps):
    optimizer, variables = fastopt.keras.Adam(), variables_of()
    train(optimizer, variables, 3)
    before = [value(v) for v in (*variables, *optimizer.variables)]
    with pytest.raises(ValueError, match="Unknown variable"):
        optimizer.apply(gradients_of(variables, 0), variables_of())
    assert distance([value(v) for v in (*variables, *optimizer.variables)], before) == 0
    assert steps == {"Adam": 3}


def test_hyperparameters_that_change(steps):
    """The learning rate by number and by schedule, the others by attribute: from the next step on."""
    ends = []
    for module in (keras.optimizers, fastopt.keras):
        variables = variables_of("float64")
        optimizer = module.AdamW(0.01)
        train(optimizer, variables, 10)
        optimizer.learning_rate = 0.02
        train(optimizer, variables, 10, 10)
        optimizer.beta_1, optimizer.epsilon, optimizer.weight_decay, optimizer.clipvalue = 0.5, 1e-3, 0.2, 0.5
        train(optimizer, variables, 10, 20)
        optimizer.learning_rate = schedule()
        train(optimizer, variables, 10, 30)
        optimizer._iterations.assign(3)
        if BACKEND == "torch":  # a number that is changed where it is
            optimizer.beta_2 = torch.tensor(0.9, dtype=torch.float64)
            train(optimizer, variables, 5, 60)
            optimizer.beta_2.fill_(0.5)
        ends.append(train(optimizer, variables, 20, 40))
    assert distance(*ends) < NEAR["float64"] and steps == {"AdamW": 65 if BACKEND == "torch" else 60}


@pytest.mark.parametrize("excluded", [False, True])
def test_a_learning_rate_that_counts_its_calls(excluded, steps):
    """With weight decay Keras calls it twice a step: for the decay, then for the step."""
    ends = []
    for module in (keras.optimizers, fastopt.keras):
        rates = iter(np.linspace(0.01, 0.5, 1000))
        optimizer, variables = module.AdamW(lambda rates=rates: float(next(rates)), 0.3), variables_of("float64")
        if excluded:
            optimizer.exclude_from_weight_decay(var_list=variables[:1])
        ends.append([*train(optimizer, variables, 20), np.array([next(rates)])])
    assert distance(*ends) < NEAR["float64"] and steps == {"AdamW": 20}


@pytest.mark.parametrize("given", [{}, {"weight_decay": 0.3}], ids=str)
@pytest.mark.parametrize("kind", ["negative", "aliased", "excluded"])
def test_calls_are_counted_also_where_keras_takes_the_step(given, kind, steps):
    """It is called no more often, and the step has the rate it gave, where fastopt refuses the step."""
    ends = []
    for module in (keras.optimizers, fastopt.keras):
        rates, variables = iter(np.linspace(-0.01 if kind == "negative" else 0.01, 0.1, 300)), variables_of("float64")
        optimizer = module.SGD(lambda rates=rates: float(next(rates)), **given)
        if kind == "excluded":
            optimizer.exclude_from_weight_decay(var_list=variables[:1])
        for t in range(30):
            grads = gradients_of(variables, t)
            optimizer.apply(grads if kind == "negative" else [variables[0].value, *grads[1:]], variables)
        ends.append([value(v) for v in variables] + [np.array([next(rates)])])
        assert given.get("weight_decay") == optimizer.weight_decay and callable(optimizer._learning_rate)
    assert distance(*ends) < NEAR["float64"]


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_of_iteration_0_counts(nesterov, steps):
    """PyTorch's SGD ignores the buffer at its first step; Keras does not, which shows where it was set."""
    ends = []
    for module in (keras.optimizers, fastopt.keras):
        variables = variables_of("float64")
        optimizer = module.SGD(0.01, momentum=0.9, nesterov=nesterov)
        optimizer.build(variables)
        for v in optimizer.momentums:
            v.assign(np.ones(v.shape))
        ends.append(train(optimizer, variables, 2))
    assert distance(*ends) < 1e-12 and steps == {"SGD": 2}


def test_constraints(steps):
    """The average of a variable is taken before its constraint."""
    ends = []
    for module in (keras.optimizers, fastopt.keras):
        variables = variables_of("float64")
        variables[0].constraint = keras.constraints.NonNeg()
        ends.append(train(module.Adam(0.01, use_ema=True), variables, 50))
        assert (value(variables[0]) >= 0).all()
    assert distance(*ends) < NEAR["float64"] and steps == {"Adam": 50}


@pytest.mark.parametrize("later", [False, True])
def test_variables_overwritten_by_their_gradient(later, steps):
    """Also those that are to be so only after some steps, and so have state."""
    ends = []
    for module in (keras.optimizers, fastopt.keras):
        variables = variables_of("float64")
        optimizer = module.Adam(0.01)
        variables[1].overwrite_with_gradient = not later
        train(optimizer, variables, 10)
        variables[1].overwrite_with_gradient = True
        ends.append(train(optimizer, variables, 40, 10))
        assert (value(variables[1]) == value(gradients_of(variables, 49)[1])).all()
    assert distance(*ends) < NEAR["float64"] and steps == {"Adam": 50}


# --- What is left to Keras


def in_dtypes(dtypes):
    """Variables of these dtypes."""
    rng = np.random.default_rng(0)
    return [keras.Variable(rng.normal(size=(3, 4)), dtype=dtype) for dtype in dtypes]


def cast_gradients(variables, t):
    rng = np.random.default_rng([5, t])
    return [keras.ops.cast(tensor(rng.normal(size=v.shape).astype("float32")), v.dtype) for v in variables]


@pytest.mark.parametrize("dtypes", [
    ("bfloat16", "bfloat16"), ("float16", "float16"), ("float32", "float16", "float32"), ("bfloat16", "float32"),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_left_to_keras(name, dtypes, steps):
    """All of it is Keras' arithmetic, to the bit. On NumPy the variables of float32 are compiled, by themselves."""
    ends = []
    for module in (keras.optimizers, fastopt.keras):
        variables = in_dtypes(dtypes)
        optimizer = getattr(module, name)(0.01)
        for t in range(20):
            if (name, dtypes[0], BACKEND) == ("Nadam", "bfloat16", "torch"):  # which Keras cannot step
                with pytest.raises(TypeError, match="invalid combination"):
                    optimizer.apply(cast_gradients(variables, t), variables)
            else:
                optimizer.apply(cast_gradients(variables, t), variables)
        ends.append([value(keras.ops.cast(v.value, "float32")) for v in variables])
    compiled = BACKEND == "numpy" and "float32" in dtypes
    for dtype, stock, ours in zip(dtypes, *ends, strict=True):
        if compiled and dtype == "float32":
            assert distance([ours], [stock]) < NEAR["float32"]
        else:
            assert np.array_equal(ours, stock, equal_nan=True)
    assert steps == ({RULE.get(name, name): 20} if compiled else {})
    assert dtypes[1 if dtypes[0] == "float32" else 0] in optimizer.left_to_keras[0]


@on_torch
@pytest.mark.parametrize("kind", ["float32", "transposed", "expanded", "self", "requires_grad", "sparse", "broadcast"])
def test_gradients_of_other_kinds(kind, steps):
    """What fits after a copy is compiled, all else is Keras': with its errors, where it has them."""

    def gradient(variable, t):
        grad = gradients_of([variable], t)[0]
        return {
            "float32": lambda: grad.float(), "transposed": lambda: grad.t().contiguous().t(),
            "expanded": lambda: torch.ones(()).double().expand(grad.shape), "self": lambda: variable.value,
            "requires_grad": lambda: grad.requires_grad_(), "sparse": lambda: grad.to_sparse(),
            "broadcast": lambda: grad[:1],
        }[kind]()  # fmt: skip

    ends, errors = [], []
    for module in (keras.optimizers, fastopt.keras):
        a, b = variables_of("float64", ((3, 4), (3, 4)))
        optimizer = module.Adam(0.01)
        try:
            for t in range(20):
                with torch.no_grad():
                    optimizer.apply([gradient(a, t), *gradients_of([b], t)], [a, b])
        except Exception as error:
            errors.append(type(error))
        ends.append([value(v) for v in (a, b)])
    assert len(errors) in (0, 2) and len(set(errors)) <= 1
    if not errors:
        assert distance(*ends) < 1e-12
        assert steps["Adam"] == (0 if kind == "self" else 20)
    compiled = kind in ("transposed", "expanded", "requires_grad")
    assert (optimizer.left_to_keras == []) == compiled


@on_torch
def test_variables_that_are_not_contiguous(steps):
    ends = []
    for module in (keras.optimizers, fastopt.keras):
        variables = variables_of("float64", ((4, 4), (4, 4)))
        variables[0]._value.data = variables[0]._value.data.t()
        ends.append(train(optimizer := module.Adam(0.01), variables, 20))
    assert distance(*ends) < 1e-12 and steps == {"Adam": 20}
    (line,) = optimizer.left_to_keras
    assert "not contiguous" in line


@on_torch
def test_variables_on_another_device():
    """The device "meta" stands for a GPU: a process that has it for its default device takes all steps by Keras."""
    code = (
        "import keras, numpy as np, torch, fastopt.keras\n"
        "variables = [keras.Variable(np.ones((3, 4), 'float32')) for _ in range(2)]\n"
        "optimizer = fastopt.keras.Adam(clipnorm=1.0, use_ema=True)\n"
        "for _ in range(3): optimizer.apply([torch.ones(3, 4, device='meta')] * 2, variables)\n"
        "print(optimizer.left_to_keras)\n"
    )
    environ = {**os.environ, "KERAS_TORCH_DEVICE": "meta"}
    run = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "not on the CPU" in run.stdout


@on_torch
def test_memory_that_moves_between_steps(steps):
    """`.data` of a tensor, a tensor in the place of another, a transposed one at the same address."""
    ends = []
    for module in (keras.optimizers, fastopt.keras):
        variables = variables_of("float64", ((4, 4), (5,)))
        optimizer = module.Adam(0.01)
        train(optimizer, variables, 10)
        old = variables[0]._value.data
        kept = old.clone()
        variables[0]._value.data = old.clone()
        train(optimizer, variables, 10, 10)
        assert torch.equal(old, kept)
        optimizer._momentums[0]._value = torch.nn.Parameter(optimizer._momentums[0]._value.detach().clone(), False)
        train(optimizer, variables, 10, 20)
        variables[0]._value.data = variables[0]._value.data.t()
        train(optimizer, variables, 10, 30)
        variables[0]._value.data = variables[0]._value.data.t().contiguous()
        ends.append(train(optimizer, variables, 10, 40))
    assert distance(*ends) < 1e-12 and steps == {"Adam": 50} and optimizer.left_to_keras == []


@on_torch
def test_the_same_memory_twice_is_left_to_keras(steps):
    ends = []
    for module in (keras.optimizers, fastopt.keras):
        (first,) = variables_of("float64", ((4, 4),))
        second = keras.Variable(first._value)
        ends.append(train(optimizer := module.Adam(0.01), [first, second], 10))
    assert distance(*ends) < 1e-12 and not steps
    assert "memory" in optimizer.left_to_keras[0]


@pytest.mark.parametrize("given", [{"learning_rate": -0.01}, {"beta_1": 1.5}, {"epsilon": -1e-9}], ids=str)
def test_hyperparameters_that_fastopt_refuses_are_left_to_keras(given, steps):
    ends = []
    for module in (keras.optimizers, fastopt.keras):
        ends.append(train(optimizer := module.Adam(**given, weight_decay=0.1), variables_of("float64"), 3))
    assert np.array_equal(ends[0][0], ends[1][0], equal_nan=True) and not steps
    assert "must be" in optimizer.left_to_keras[0]


def test_a_class_with_its_own_update_has_it_called(steps):
    calls = []

    class Own(fastopt.keras.Adam):
        def update_step(self, gradient, variable, learning_rate):
            calls.append(variable.path)
            variable.assign_sub(learning_rate * gradient)

    class OwnClipping(fastopt.keras.Adam):
        def _clip_gradients(self, grads):
            return [0 * g for g in grads]

    variables = variables_of()
    before = value(variables[0])
    own = Own(0.5)
    own.apply(gradients_of(variables, 0), variables)
    assert len(calls) == len(variables) and not steps and "update_step" in own.left_to_keras[0]
    assert np.allclose(value(variables[0]), before - 0.5 * value(gradients_of(variables, 0)[0]))
    before = value(variables[0])
    train(OwnClipping(0.5), variables, 5)
    assert (value(variables[0]) == before).all() and steps == {"Adam": 5}


def test_a_method_given_to_an_optimizer_that_has_taken_steps(steps):
    variables = variables_of()
    optimizer = fastopt.keras.SGD(0.01)
    train(optimizer, variables, 2)
    optimizer._clip_gradients = lambda grads: [0 * g for g in grads]
    before = value(variables[0])
    train(optimizer, variables, 2, 2)
    assert (value(variables[0]) == before).all() and steps == {"SGD": 4}


@pytest.mark.parametrize("n", [3, 5])
@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_another_number_of_gradients_than_of_variables(name, n, steps):
    """On torch an error of Keras; on NumPy it takes what has a partner."""
    ends, errors = [], []
    for module in (keras.optimizers, fastopt.keras):
        variables = variables_of("float64")
        optimizer = getattr(module, name)(0.01)
        train(optimizer, variables, 2)
        try:
            optimizer.apply((gradients_of(variables, 2) * 2)[:n], variables)
        except RuntimeError as error:
            errors.append(str(error))
        ends.append([value(v) for v in variables])
    assert distance(*ends) < NEAR["float64"]
    assert len(errors) == 2 * (BACKEND == "torch") and len(set(errors)) <= 1
    assert steps == {name: 2} and f"{n} gradients" in optimizer.left_to_keras[0]


@pytest.mark.parametrize("name", ["SGD", "Adam", "Nadam"])
def test_the_same_variable_twice_is_left_to_keras(name, steps):
    ends = []
    for module in (keras.optimizers, fastopt.keras):
        (variable,) = variables_of("float64", ((3, 4),))
        optimizer = getattr(module, name)(0.01)
        for t in range(10):
            optimizer.apply([gradients_of([variable], t + k)[0] for k in (0, 100)], [variable] * 2)
        ends.append([value(v) for v in (variable, *optimizer.variables)])
    assert distance(*ends) < NEAR["float64"] and not steps
    assert "all variables" in optimizer.left_to_keras[0]


@pytest.mark.parametrize("what", ["momentum", "iterations"])
def test_variables_of_the_optimizer_that_are_replaced(what, steps):
    ends = []
    for module in (keras.optimizers, fastopt.keras):
        variables = variables_of("float64")
        optimizer = module.Adam(0.01)
        train(optimizer, variables, 5)
        if what == "momentum":
            optimizer._momentums[0] = keras.Variable(np.ones((3, 4)), dtype="float64", trainable=False)
        else:
            optimizer._iterations = keras.Variable(0, dtype="int", trainable=False)
        train(optimizer, variables, 5)
        ends.append([value(v) for v in (*variables, *optimizer._momentums, optimizer._iterations)])
    assert distance(*ends) < NEAR["float64"] and steps == {"Adam": 10}


@on_torch
def test_a_transposed_gradient_that_shares_memory_with_its_variable(steps):
    """Weight decay changes it before the step, in Keras."""
    ends = []
    for module in (keras.optimizers, fastopt.keras):
        variables = variables_of("float64", ((4, 4), (5,)))
        optimizer = module.Adam(0.01, weight_decay=0.5)
        for t in range(5):
            optimizer.apply([variables[0].value.detach().t(), gradients_of(variables, t)[1]], variables)
        ends.append([value(v) for v in (*variables, *optimizer.variables)])
    assert distance(*ends) < 1e-12 and not steps
    assert "all variables" in optimizer.left_to_keras[0]


@on_torch
def test_the_reason_names_the_dtype_of_the_state():
    variables = variables_of("float32", ((3,), (2,)))
    train(optimizer := fastopt.keras.Adam(0.01), variables, 1)
    optimizer._momentums[0]._value.data = optimizer._momentums[0]._value.data.double()
    train(optimizer, variables, 1)
    (line,) = optimizer.left_to_keras
    assert line.endswith("it has dtype torch.float32, and its state torch.float64")


def test_lion_shows_a_gradient_of_nan(steps):
    """Keras on torch takes the sign of NaN for zero, so that the element rests unnoticed."""
    (variable,) = variables_of("float32", ((5,),))
    grad = value(gradients_of([variable], 0)[0]).copy()
    grad[0] = np.nan
    fastopt.keras.Lion(0.01).apply([tensor(grad)], [variable])
    assert np.isnan(value(variable)).tolist() == [True] + [False] * 4 and steps == {"Lion": 1}


@pytest.mark.parametrize("given", [{"clipnorm": np.inf}, {"global_clipnorm": np.inf}], ids=str)
def test_an_infinite_limit_gives_what_it_gives_in_keras(given, steps):
    """NaN, at the first step as later."""
    for module in (keras.optimizers, fastopt.keras):
        for first in (0, 3):
            optimizer, variables = module.SGD(0.01), variables_of()
            train(optimizer, variables, first)
            for key, limit in given.items():
                setattr(optimizer, key, limit)
            train(optimizer, variables, 1)
            assert all(np.isnan(value(v)).all() for v in variables)
    assert steps == {"SGD": 5}


def test_stateless_apply_is_keras_own_and_writes_nothing(steps):
    ends = []
    for module in (keras.optimizers, fastopt.keras):
        variables = variables_of("float64")
        optimizer = module.AdamW(0.01)
        train(optimizer, variables, 3)
        kept = [value(v) for v in (*variables, *optimizer.variables)]
        given, state = [v.value + 1 for v in variables], [v.value + 0 for v in optimizer.variables]
        new = optimizer.stateless_apply(state, gradients_of(variables, 9), given)
        assert distance([value(v) for v in (*variables, *optimizer.variables)], kept) == 0
        ends.append([value(x) for part in new for x in part])
    assert distance(*ends) < NEAR["float64"] and steps == {"AdamW": 3}
    assert "scope" in optimizer.left_to_keras[0]


@on_torch
def test_code_under_torch_compile_sees_keras_operations(steps):
    variables = variables_of()
    optimizer = fastopt.keras.Adam(0.01)
    optimizer.build(variables)

    def step(grads):
        with torch.no_grad():
            optimizer.apply(grads, variables)

    compiled = torch.compile(step, backend="eager")
    for t in range(3):
        compiled(gradients_of(variables, t))
        assert "torch.compile" in optimizer.left_to_keras[0]
    assert not steps and int(value(optimizer.iterations)) == 3
    train(optimizer, variables, 3)
    assert steps == {"Adam": 3} and optimizer.left_to_keras == []
    compiled(gradients_of(variables, 6))
    assert "torch.compile" in optimizer.left_to_keras[0] and steps == {"Adam": 3}


def test_a_learning_rate_in_half_precision(steps):
    """With floatx="bfloat16" the learning rate is a variable of that: on torch all is left to Keras."""
    ends = []
    keras.config.set_floatx("bfloat16")
    try:
        for module in (keras.optimizers, fastopt.keras):
            optimizer = module.SGD(0.01)
            ends.append(train(optimizer, variables_of("float32"), 10)[: len(SHAPES)])
    finally:
        keras.config.set_floatx("float32")
    assert distance(*ends) < 2e-5
    assert steps == ({} if BACKEND == "torch" else {"SGD": 10})
    assert len(optimizer.left_to_keras) == (BACKEND == "torch")


@pytest.mark.parametrize("given", [{"ema_momentum": 0.9}, {"clipvalue": 0.1}], ids=str)
def test_constants_in_half_precision_are_left_to_keras(given, steps):
    """With floatx="bfloat16" Keras rounds its constants to that; the step between is compiled."""
    ends = []
    keras.config.set_floatx("bfloat16")
    try:
        for module in (keras.optimizers, fastopt.keras):
            optimizer = module.Adam(keras.optimizers.schedules.ExponentialDecay(0.01, 10, 0.5), use_ema=True, **given)
            ends.append(train(optimizer, variables_of("float32"), 10))
    finally:
        keras.config.set_floatx("float32")
    assert distance(*ends) < 2e-5 and steps == {"Adam": 10}


# --- Memory and graphs


@on_torch
def test_a_graph_that_needs_the_old_values_notices(steps):
    """As after Keras' step, backward through what a step has written over is an error, and no wrong gradient."""
    for module in (keras.optimizers, fastopt.keras):
        variables = variables_of()
        train(optimizer := module.Adam(0.01), variables, 2)
        x = variables[0].value.detach().clone().requires_grad_()
        saved = (x * variables[0].value).sum()
        before = [v._value._version for v in (*variables, *optimizer.variables)]
        train(optimizer, variables, 1, 2)
        assert all(new > old for v, new, old in zip(
            (*variables, *optimizer.variables), [v._value._version for v in (*variables, *optimizer.variables)],
            before, strict=True,
        ) if "learning_rate" not in v.path)  # fmt: skip
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            saved.backward()
    assert steps == {"Adam": 3}


@on_torch
def test_tensors_stay_where_they_are(steps):
    variables = variables_of()
    train(optimizer := fastopt.keras.Adam(0.01), variables, 1)
    tensors = [v._value for v in (*variables, *optimizer.variables)]
    addresses = [t.data_ptr() for t in tensors]
    train(optimizer, variables, 3, 1)
    assert all(v._value is t for v, t in zip((*variables, *optimizer.variables), tensors, strict=True))
    assert [t.data_ptr() for t in tensors] == addresses and steps == {"Adam": 4}


@on_numpy
def test_arrays_that_others_hold_do_not_change(steps):
    """Keras replaces its NumPy arrays at each step, and so do these."""
    variables = variables_of()
    train(optimizer := fastopt.keras.Adam(0.01), variables, 2)
    held = [v.value for v in (*variables, *optimizer._momentums, *optimizer._velocities)]
    copies = [array.copy() for array in held]
    train(optimizer, variables, 2, 2)
    assert distance(held, copies) == 0 and steps == {"Adam": 4}
    assert not any(v.value is array for v, array in zip(variables, held, strict=False))


# --- Scaling of the loss


def test_loss_scale_optimizer(steps):
    """Gradients that are not finite skip the step, and halve the scale."""
    ends = []
    for module in (keras.optimizers, fastopt.keras):
        variables = variables_of("float64")
        inner = module.Adam(0.01)
        optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=1024.0, dynamic_growth_steps=5)
        for t in range(50):
            grads = [1024.0 * g for g in gradients_of(variables, t)]
            optimizer.apply([g * np.inf for g in grads] if t % 10 == 7 else grads, variables)
        ends.append([value(v) for v in (*variables, *optimizer.variables)])
        assert int(value(inner.iterations)) == 45
    assert distance(*ends) < NEAR["float64"] and steps == {"Adam": 45}


# --- Config and files


@pytest.mark.parametrize("name", NAMES)
def test_config_and_pickle_are_those_of_keras(name):
    import copy
    import pickle

    ours = getattr(fastopt.keras, name)(0.25, clipnorm=3.0)
    stock = getattr(keras.optimizers, name)(0.25, clipnorm=3.0)
    assert isinstance(ours, getattr(keras.optimizers, name))
    assert {**ours.get_config(), "name": ""} == {**stock.get_config(), "name": ""}
    assert type(ours).from_config(ours.get_config()).get_config() == ours.get_config()
    for again in (
        keras.optimizers.deserialize(keras.optimizers.serialize(ours)),
        keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(ours)),
        pickle.loads(pickle.dumps(ours)), copy.deepcopy(ours),
    ):  # fmt: skip
        assert type(again) is type(ours) and again.get_config() == ours.get_config()
    assert keras.saving.get_registered_name(type(ours)) == f"fastopt>{name}"


def test_copies_have_variables_of_their_own(steps):
    import pickle

    variables = variables_of("float64")
    optimizer = fastopt.keras.Adam(0.01)
    train(optimizer, variables, 5)
    other = pickle.loads(pickle.dumps(optimizer))
    copies = [keras.Variable(value(v)) for v in variables]
    other.build(copies)
    other.set_weights([value(v) for v in optimizer.variables])
    assert distance(train(optimizer, variables, 5, 5), train(other, copies, 5, 5)) == 0
    assert steps == {"Adam": 15}


def test_state_goes_from_keras_to_here_and_back(steps):
    """The variables are the same, in the same order."""
    for name in NAMES:
        variables = variables_of("float64")
        optimizer = None
        for n, module in enumerate((keras.optimizers, fastopt.keras, keras.optimizers)):
            following = getattr(module, name)(0.01)
            following.build(variables)
            if optimizer is not None:
                assert [v.shape for v in optimizer.variables] == [v.shape for v in following.variables]
                following.set_weights([value(v) for v in optimizer.variables])
            optimizer = following
            ended = train(optimizer, variables, 20, 20 * n)
        expected = train(getattr(keras.optimizers, name)(0.01), variables_of("float64"))
        assert distance(ended, expected) < NEAR["float64"]
    assert sum(steps.values()) == 20 * len(NAMES)


@pytest.mark.parametrize("backend, why", [
    ("jax", "XLA fuses"), ("tensorflow", "XLA fuses"), ("openvino", "steps NumPy arrays and tensors"),
])  # fmt: skip
def test_other_backends_are_refused(backend, why, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: backend)
    spec = importlib.util.spec_from_file_location("refused", fastopt.keras.__file__)
    with pytest.raises(ImportError, match=f"does not support the Keras backend '{backend}': .*{why}"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_jax_is_refused_in_a_process_with_jax(amount):
    if not amount(False, True):
        pytest.skip("in the long runs (--long)")
    if importlib.util.find_spec("jax") is None:
        pytest.skip("JAX is not installed")
    environ = {**os.environ, "KERAS_BACKEND": "jax"}
    run = subprocess.run([sys.executable, "-c", "import fastopt.keras"], env=environ, capture_output=True, text=True)
    assert run.returncode == 1 and "ImportError: fastopt.keras does not support the Keras backend 'jax'" in run.stderr


# --- Models


def small_model(seed=0):
    keras.utils.set_random_seed(seed)
    layers = [keras.Input((8,)), keras.layers.Dense(32, activation="relu"), keras.layers.Dense(1)]
    return keras.Sequential(layers)


def wide_model(seed=0, n=2000, wide=64):
    keras.utils.set_random_seed(seed)
    layers = [keras.Input((4,), dtype="int32"), keras.layers.Embedding(n, wide), keras.layers.Flatten()]
    return keras.Sequential([*layers, keras.layers.Dense(1)])


def data_of(model, n=256):
    rng = np.random.default_rng(0)
    if model.inputs[0].dtype == "int32":
        x = rng.integers(0, 2000, (n, 4)).astype("int32")
        return x, (x.sum(1, keepdims=True) / 4000 - 1).astype("float32")
    x = rng.normal(size=(n, 8)).astype("float32")
    return x, np.sin(x[:, :1]) + x[:, 1:2] * x[:, 2:3]


@on_torch
@pytest.mark.parametrize("make", [small_model, wide_model])
@pytest.mark.parametrize("name, given", [
    ("Adam", {}), ("AdamW", {"global_clipnorm": 1.0, "use_ema": True}), ("SGD", {"momentum": 0.9, "nesterov": True}),
    ("RMSprop", {}), ("Nadam", {}),
], ids=str)  # fmt: skip
def test_trainings_have_the_losses_of_keras(make, name, given, steps):
    losses = []
    for module in (keras.optimizers, fastopt.keras):
        model = make()
        model.compile(optimizer=getattr(module, name)(1e-2, **given), loss="mse")
        history = model.fit(*data_of(model), epochs=8, batch_size=32, verbose=0, shuffle=False)
        losses.append(history.history["loss"])
    stock, ours = np.array(losses)
    assert np.abs(ours - stock).max() / stock.max() < 2e-5
    assert stock[-1] < 0.9 * stock[0]
    assert steps == {RULE.get(name, name): 64} and model.optimizer.left_to_keras == []


@on_torch
def test_mixed_precision_trains(steps):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = small_model()
    finally:
        keras.config.set_dtype_policy("float32")
    model.compile(optimizer=fastopt.keras.Adam(1e-2), loss="mse")
    losses = model.fit(*data_of(model), epochs=8, batch_size=32, verbose=0).history["loss"]
    assert losses[-1] < 0.8 * losses[0] and steps == {"Adam": 64} and model.optimizer.left_to_keras == []


@on_torch
def test_a_saved_model_goes_on_to_the_same_bits(tmp_path, steps):
    def model_of():
        model = small_model()
        model.compile(optimizer=fastopt.keras.AdamW(1e-2, weight_decay=0.01, use_ema=True), loss="mse")
        return model

    def fit(model, epochs):
        model.fit(*data_of(model), epochs=epochs, batch_size=32, verbose=0, shuffle=False)

    # Not by epochs: at the end of fit() the averages take the place of the weights.
    whole, first = model_of(), model_of()
    fit(whole, 4), fit(whole, 4), fit(first, 4)
    first.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert type(again.optimizer) is fastopt.keras.AdamW and int(value(again.optimizer.iterations)) == 32
    fit(again, 4)
    weights = [[value(v) for v in (*m.variables, *m.optimizer.variables)] for m in (whole, again)]
    assert distance(*weights) == 0 and steps == {"AdamW": 128}


@on_torch
def test_a_saved_model_opens_without_fastopt(tmp_path):
    """With Keras' class under the registered name, where `fastopt.keras` is not imported."""
    model = small_model()
    model.compile(optimizer=fastopt.keras.Adam(1e-2), loss="mse")
    model.fit(*data_of(model), batch_size=32, verbose=0)
    model.save(tmp_path / "model.keras")
    code = (
        "import sys, keras\n"
        "names = {'fastopt>Adam': keras.optimizers.Adam}\n"
        f"model = keras.saving.load_model({str(tmp_path / 'model.keras')!r}, custom_objects=names)\n"
        "assert isinstance(model.optimizer, keras.optimizers.Adam) and int(model.optimizer.iterations.numpy()) == 8\n"
        "assert 'fastopt' not in sys.modules\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@on_torch
def test_a_model_saved_with_keras_goes_on_here(tmp_path, steps):
    model = small_model()
    model.compile(optimizer=keras.optimizers.Adam(1e-2), loss="mse")
    model.fit(*data_of(model), batch_size=32, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", custom_objects={"Adam": fastopt.keras.Adam})
    states = [[value(v) for v in m.optimizer.variables] for m in (again, model)]
    assert type(again.optimizer) is fastopt.keras.Adam and distance(*states) == 0
    again.fit(*data_of(model), batch_size=32, verbose=0)
    assert int(value(again.optimizer.iterations)) == 16 and steps == {"Adam": 8}


@on_torch
def test_layers_that_are_frozen_later(steps):
    """Keras' optimizers know the variables they were built with, and take some of them."""
    ends = []
    for module in (keras.optimizers, fastopt.keras):
        model = small_model()
        optimizer = module.Adam(1e-2)
        model.compile(optimizer=optimizer, loss="mse")
        model.fit(*data_of(model), epochs=2, batch_size=32, verbose=0, shuffle=False)
        model.layers[0].trainable = False
        model.compile(optimizer=optimizer, loss="mse")
        model.fit(*data_of(model), epochs=2, batch_size=32, verbose=0, shuffle=False)
        ends.append(model.predict(data_of(model)[0], verbose=0))
    assert distance(ends[1:], ends[:1]) < 1e-5 and steps == {"Adam": 32}


@on_torch
def test_the_code_of_the_page_runs(tmp_path):
    """docs/clients/keras.md, from top to bottom."""
    page = (HERE.parents[2] / "docs" / "clients" / "keras.md").read_text("utf-8")
    code = "\n".join(part.split("```")[0] for part in page.split("```python\n")[1:])
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


# --- The other backend


@on_torch
def test_these_tests_on_the_numpy_backend(amount):
    """What is not about tensors, in a process with the other backend; some of it, but for the long runs."""
    environ = {**os.environ, "KERAS_BACKEND": "numpy"}
    some = "bits or others_hold or None or float32-AdamW or loss_scale or stateless or half"
    chosen = f"({amount(some, 'test')}) and not own_tests and not keras_tests and not jax"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore", "-k", chosen, str(HERE)]
    run = subprocess.run(command, env=environ, cwd=HERE.parents[1], capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout[-5000:]
    assert int(run.stdout.splitlines()[-1].split(" passed")[0].split()[-1]) >= amount(20, 100)
