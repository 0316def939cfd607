"""What type checkers have to accept: it runs, too."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

import fastopt
from fastopt import Convention, functional, reference, schedules
from fastopt.typing import CommonOptions, EpsPlacement, Gradients, Hyperparameter, Nonfinite, Params

if TYPE_CHECKING:
    from typing_extensions import Unpack
else:
    from fastopt.typing import Unpack

w = np.ones((3, 4), np.float32)
b = np.zeros(4)
gw, gb = np.ones_like(w), np.ones_like(b)
g = [gw, gb]  # of another shape and type each

# --- Constructors: parameters of every kind, numbers and schedules, every option

fastopt.SGD(w)
fastopt.SGD(memoryview(bytearray(16)).cast("f"), lr=0.1)
fastopt.Adam([w, b], 1e-3, (0.9, 0.99), 1e-8, 0.0, True)
fastopt.Adam((w, b), lr=1, betas=[0.9, 0.99], eps=np.float32(1e-8), convention="keras", nonfinite="skip")
fastopt.AdamW({"w": w, "b": b}, lr=np.float64(0.1), weight_decay=lambda step: 0.1 / (1 + step), convention="paper")
fastopt.AdamW([{"params": [w]}, {"params": {"b": b}, "weight_decay": 0.0}][:1], n_threads=2, copy_grads=True)
fastopt.RMSprop((p for p in [w, b]), schedules.Cosine(0.1, 100), eps_placement="inside", maximize=True)
fastopt.Adagrad(w, initial_accumulator_value=0.1, decoupled_weight_decay=False, flush_subnormal=False)
fastopt.NAdam(w, betas=(schedules.Linear(0.85, 0.95, 10), 0.999), momentum_decay=0.004)
fastopt.RAdam(w, lr=schedules.Warmup(10, schedules.Cosine(0.1, 100)), convention="thinc")
fastopt.Adamax(w, bias_correction=False)
fastopt.Adadelta(w, rho=0.9)
fastopt.Lion(w, convention="optax", lr=1e-4)
fastopt.Momentum(w, momentum=0.9, state_factory=lambda name, shape, dtype: np.empty(shape, dtype))

# --- Steps, settings, state

opt = fastopt.Adam([w, b])
opt.step(g)
opt.step([None, gb], grad_scale=2.0)
opt.step(iter(g))
length: float = fastopt.norm([None, gw, gb]) + fastopt.norm({"w": gw}, np.inf, n_threads=1) + fastopt.norm(gw, ord=2)
fastopt.SGD({"w": w}).step({"w": gw})
nag = fastopt.NAG(w)
nag.step(nag.lookahead())
opt.nonfinite = "raise"
opt.clip_norm = 1.0
opt.clip_norm = lambda step: 0.5**step
opt.clip_norm, opt.norm_type = None, np.inf
seen: float | None = fastopt.AdamW(w, clip_norm=schedules.Constant(1.0), norm_type=2).grad_norm
opt.n_threads = None
opt.param_groups[0]["lr"] = 0.5
opt.add_param_group({"params": [np.zeros(2)], "lr": 0.1})
steps: int = opt.steps + opt.skipped_steps
name: str = opt.convention
moment: npt.NDArray[np.float32] = opt.state[0]["exp_avg"]
opt.load_state_dict(opt.state_dict())
with tempfile.TemporaryDirectory() as folder:
    opt.save(Path(folder) / "run")
    saved: dict[str, Any] = fastopt.load(f"{folder}/run")
    opt.load(Path(folder) / "run")

# --- Classes by name, loops, functions


def loss(w: npt.NDArray[np.float64], batch: npt.NDArray[np.float64] | None) -> tuple[float, npt.NDArray[np.float64]]:
    return float(w @ w) / 2, w.copy()


def stops(state: fastopt.MinimizeState) -> bool:
    return state.loss < 1e-3 or state.step > 3


def made(name: str, params: Params, **options: Any) -> fastopt.Optimizer:
    return fastopt.OPTIMIZERS[name](params, **options)


def epochs(n: int) -> Iterator[npt.NDArray[np.intp]]:
    for _ in range(n):
        yield from fastopt.minibatches(10, 4, np.random.default_rng(0), drop_last=True)


result: fastopt.MinimizeResult = fastopt.minimize(loss, b, fastopt.SGD(b, lr=0.5), tol=1e-6, callback=stops)
losses: npt.NDArray[np.float64] = result.losses
why: Literal["tol", "max_steps", "callback", "nonfinite"] = result.reason
fastopt.minimize(loss, b, "adam", data=np.ones((10, 4)), batch_size=2, max_steps=3, rng=0)
fastopt.minimize(loss, b, lambda params: fastopt.Adam(params, lr=0.1), max_steps=3)
made("Adam", w, lr=0.1, convention="keras").step(gw)
for cls in fastopt.OPTIMIZERS.values():
    cls([w, b], lr=0.1).step(g)
total: int = sum(len(batch) for batch in epochs(2))
version: str = fastopt.__version__
facts: dict[str, Any] = fastopt.show_config("dicts")

m, v = np.zeros_like(w), np.zeros_like(w)
stepped: bool = functional.adam_(w, gw, m, v, step=1, lr=0.1, convention="optax", nonfinite="raise")
functional.sgd_([w, b], [gw, None], step=1, weight_decay=0.1, n_threads=1)
functional.nadam_(w, gw, m, v, np.ones(1), step=np.int64(1))
bound: functional.Bound = functional.bind("adam", w, [m, v], convention="keras", lr=0.1)
stepped = bound.step(gw, step=2, lr=0.05)
functional.bind(fastopt.SGD, [w, b]).step([gw, None], step=1)
fastopt.Adam([w, b]).rebind(0, w)

# --- Schedules

rate: float = schedules.OneCycle(0.1, 100)(3)
plateau = schedules.ReduceOnPlateau(0.1, mode="max", patience=2)
lowered: float = plateau.update(np.float32(0.5))
schedules.Join([0.1, schedules.Step(0.1, 10)], [5])
schedule: schedules.Schedule = schedules.Constant(0.1)

# --- What libraries write


class Tuned(fastopt.AdamW):
    """A class with a constructor of its own."""

    def __init__(self, params: Params, lr: Hyperparameter = 3e-4, **common: Unpack[CommonOptions]) -> None:
        super().__init__(params, lr, weight_decay=0.05, **common)


class Plain(fastopt.Optimizer):
    """A class that only declares."""

    hyperparameters = ("lr",)
    conventions = {"mine": Convention({"lr": 0.1})}

    @staticmethod
    def rule(group: Mapping[str, Any], convention: str) -> tuple[str, tuple[str, ...]]:
        return "sgd", ()


def wrapped(
    params: Params, nonfinite: Nonfinite = "skip", eps_placement: EpsPlacement = "inside"
) -> Callable[[Gradients], None]:
    return fastopt.Adam(params, nonfinite=nonfinite, eps_placement=eps_placement).step


Tuned([w], n_threads=1).step([gw])
Plain(w, lr=0.5).step(gw)
wrapped(w)(gw)
twin = reference.twin(fastopt.Adam(w))

try:
    fastopt.SGD(np.ones(3, int))
except fastopt.DTypeError as error:
    said: str = str(error)
