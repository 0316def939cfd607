"""torch.compile around the step: the compiler leaves it alone."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import fastopt.torch as ft  # noqa: E402

PACKAGE = Path(ft.__file__).parent
NAMES = [name for name in ft.__all__ if name in torch.optim.__all__]


class Watched:
    """What the compiler did: graphs it made, breaks between them, functions it looked into, and what it said."""

    def __init__(self) -> None:
        self.graphs: list[Any] = []
        self.said: list[str] = []
        self.codes: list[Any] = []

    def backend(self, graph: Any, inputs: Any) -> Callable[..., Any]:
        self.graphs.append(graph)
        return graph.forward

    def breaks(self) -> int:
        return sum(torch._dynamo.utils.counters["graph_break"].values())

    def traced(self) -> set[str]:
        """The functions of fastopt that it looked into, on their own or where another one calls them."""
        return {code.co_qualname for code in self.codes if PACKAGE in Path(code.co_filename).parents}

    def names_us(self) -> bool:
        """Whether it said anything of fastopt, but for the path of this file."""
        return any("fastopt" in text.replace(str(Path(__file__).parent), "") for text in self.said)


@pytest.fixture
def watched(monkeypatch) -> Iterator[Watched]:
    import torch._dynamo.symbolic_convert  # here, not with the module: it takes a second
    import torch._dynamo.utils

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    what = Watched()
    translator = torch._dynamo.symbolic_convert.InstructionTranslatorBase
    begin = translator.__init__

    def noted(self: Any, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        what.codes.append(self.f_code)

    monkeypatch.setattr(translator, "__init__", noted)
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: what.said.append(record.getMessage())  # type: ignore[method-assign]
    loggers = [log for name, log in logging.root.manager.loggerDict.items()
               if name.startswith("torch") and isinstance(log, logging.Logger)]  # fmt: skip
    for logger in loggers:
        logger.addHandler(handler)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield what
        what.said += [str(one.message) for one in caught]
    for logger in loggers:
        logger.removeHandler(handler)
    torch._dynamo.reset()


def task(module: Any, name: str, **options: Any) -> tuple[torch.nn.Module, Any, Callable[[], torch.Tensor]]:
    """A network, its optimizer, and the loss as a function."""
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    x, y = torch.randn(16, 4, generator=generator), torch.randn(16, 1, generator=generator)
    opt = getattr(module, name)(model.parameters(), lr=1e-2, **options)
    return model, opt, lambda: torch.nn.functional.mse_loss(model(x), y)


def iteration(opt: Any, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
    def train() -> None:
        opt.zero_grad()
        loss().backward()
        opt.step()

    return train


def run(what: Watched, way: str, model: torch.nn.Module, opt: Any, loss: Callable[[], torch.Tensor]) -> list[Any]:
    """Twelve steps with a schedule, some part of them compiled, and where the parameters are then."""
    schedule = torch.optim.lr_scheduler.StepLR(opt, 5)
    if way == "iteration":
        train = torch.compile(iteration(opt, loss), backend=what.backend)
    elif way == "step":
        step = torch.compile(opt.step, backend=what.backend)

        def train() -> None:
            opt.zero_grad()
            loss().backward()
            step()
    elif way == "lone step":
        step = torch.compile(lambda: opt.step(), backend=what.backend)

        def train() -> None:
            opt.zero_grad()
            loss().backward()
            step()
    elif way == "closure":

        def again() -> torch.Tensor:
            opt.zero_grad()
            value = loss()
            value.backward()
            return value

        train = torch.compile(lambda: opt.step(again), backend=what.backend)
    else:
        train = iteration(opt, loss)
    for _ in range(12):
        train()
        schedule.step()
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("way", ["iteration", "step", "closure"])
@pytest.mark.parametrize("kind", ["plain", "some left to PyTorch"])
@pytest.mark.parametrize("name", ["Adam", "SGD"])
def test_the_compiler_leaves_the_step_alone(watched, name, kind, way):
    ways = {}
    for compiled in (way, "eager"):
        model, opt, loss = task(ft, name, fallback="silent")
        if kind != "plain":
            lone = torch.nn.Parameter(torch.ones(3, dtype=torch.float16))
            lone.grad = torch.ones(3, dtype=torch.float16)
            opt.add_param_group({"params": [lone]})
            opt.zero_grad = lambda m=model: m.zero_grad()
        ways[compiled] = run(watched, compiled, model, opt, loss)
        assert (opt._plan is not None) == (kind == "plain") and (opt._mixed is not None) == (kind != "plain")
    assert all(torch.equal(a, b) for a, b in zip(*ways.values(), strict=True))
    assert watched.said == []
    assert watched.traced() == set()
    assert bool(watched.graphs) == (way != "step")  # what is around the step is compiled, a closure, too


@pytest.mark.parametrize("way", ["iteration", "step", "lone step", "closure"])
@pytest.mark.parametrize("around", ["hook", "scaler", "hook and scaler", "profiler"])
def test_the_compiler_leaves_the_step_alone_where_pytorch_wraps_it(watched, around, way):
    """A hook or a profiler sends it through PyTorch's own wrapper; a scaler looks at the gradients first."""
    ends = []
    for compiled in (way, "eager"):
        model, opt, loss = task(ft, "Adam")
        if "hook" in around:
            opt.register_step_pre_hook(lambda *args: None)
            opt.register_step_post_hook(lambda *args: None)
        if "scaler" in around:
            scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
            opt.grad_scale, opt.found_inf = scaler._scale or torch.tensor(4.0), torch.tensor(0.0)
        with torch.autograd.profiler.profile() if around == "profiler" else contextlib.nullcontext():
            ends.append(run(watched, compiled, model, opt, loss))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    assert watched.traced() == set()
    assert [text for text in watched.said if "Profiler record function" not in text] == []  # which stock says, too


def test_a_scaler_in_a_compiled_iteration(watched):
    p = torch.nn.Parameter(torch.ones(3))
    opt = ft.Adam([p])
    opt.register_step_post_hook(lambda *args: None)
    scaler = torch.amp.GradScaler("cpu")

    @torch.compile(backend=watched.backend)
    def train() -> None:
        scaler.scale(p.sum()).backward()
        scaler.step(opt)
        scaler.update()

    train()
    train()
    assert opt.state[p]["step"] == 2 and watched.traced() == set()
    assert not watched.names_us()


@pytest.mark.parametrize("way", ["iteration", "step", "closure"])
@pytest.mark.parametrize("name", NAMES)
def test_graphs_break_no_more_often_than_with_pytorchs(watched, name, way):
    breaks = []
    for module in (ft, torch.optim):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        run(watched, way, *task(module, name))
        breaks.append(watched.breaks())
    assert 0 < breaks[0] <= breaks[1]


def test_building_and_loading_are_left_alone_too(watched):
    model, opt, loss = task(ft, "AdamW")

    @torch.compile(backend=watched.backend)
    def resume() -> Any:
        other = ft.AdamW(model.parameters(), lr=0.1)
        other.load_state_dict(opt.state_dict())
        return other

    iteration(opt, loss)()
    other = resume()
    assert other.param_groups[0]["lr"] == 1e-2 and len(other.state) == 4
    assert watched.said == []
    assert watched.traced() == set()


CHANGES: dict[str, Callable[[Any, int], Any]] = {
    "gradients in another order": lambda opt, k: setattr(params_of(opt)[0], "grad", torch.ones(3, 4).t()),
    "a first gradient": lambda opt, k: setattr(params_of(opt)[k], "grad", torch.ones(4, 3)),
    "state in another order": lambda opt, k: opt.state[params_of(opt)[0]].update(exp_avg=torch.ones(3, 4).t()),
    "lr": lambda opt, k: opt.param_groups[0].update(lr=0.1 * k),
    "an option": lambda opt, k: opt.param_groups[0].update(maximize=bool(k % 2)),
    "nothing": lambda opt, k: None,
}


def params_of(opt: Any) -> list[torch.nn.Parameter]:
    return opt.param_groups[0]["params"]


@pytest.mark.parametrize("change", CHANGES)
def test_the_compiler_leaves_alone_what_a_kept_plan_asks_for(watched, change):
    """A plan calls functions in Python where something has changed, and `step` calls the plan with nothing between."""
    ends = []
    for compiled in (True, False):
        params = [torch.nn.Parameter(torch.ones(4, 3)) for _ in range(8)]
        params[0].grad = torch.ones(4, 3)
        opt = ft.Adam(params)
        opt.step()
        train = torch.compile(lambda opt=opt: opt.step(), backend=watched.backend) if compiled else opt.step
        for k in range(1, 5):
            plan = opt._plan
            CHANGES[change](opt, k)
            train()
            assert opt._plan is plan
        ends.append(params)
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    assert watched.said == []
    assert watched.traced() == set()
