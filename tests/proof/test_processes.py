"""Forks, threads, signals, other processes and interpreters: a step is whole or did not happen, and nothing hangs.

What could hang, or takes signals, runs in a fresh interpreter (`child`): this file is then the program.
"""

from __future__ import annotations

import contextlib
import copy
import dis
import json
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec

import numpy as np
import pytest
from support import ALL, NUMBER_NAMES, build, frozen, frozen_optimizer, same_bits, three

import fastopt
from fastopt import engine, functional, reference, schedules
from fastopt.errors import AveragedError, ConcurrentStepError

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="forks and timers as Linux has them")
SEED = 20240


def finish(what: str, *command: str, timeout: float) -> str:
    """What a fresh interpreter prints. One that hangs is killed, with all that it started; that is a failure, too."""
    path = os.pathsep.join(filter(None, sys.path))
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, env={**os.environ, "PYTHONPATH": path},
    ) as process:  # fmt: skip
        try:
            out, said = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            pytest.fail(f"{what} hung: nothing for {timeout} s\n{process.communicate()[1][-3000:]}")
    assert process.returncode == 0, f"{what} ended with {process.returncode}\n{said[-3000:]}"
    return out


def child(worker: str, *args: object, timeout: float = 300):
    """What a worker of this file returns in a fresh interpreter."""
    return json.loads(finish(f"{worker}{args}", __file__, worker, *map(str, args), timeout=timeout).splitlines()[-1])


def gradients(opt) -> list[np.ndarray]:
    """Gradients that are the same at every call, in the memory order of the parameters."""
    grads = [np.empty_like(p) for p in opt.params]
    for g in grads:
        g[...] = np.linspace(-1, 1, g.size).reshape(g.shape)
    return grads


def state_of(twin) -> list[np.ndarray]:
    """The state arrays of an optimizer or of its twin in the reference, in one order."""
    return [entry[name] for entry in twin.state for name in sorted(entry) if name not in NUMBER_NAMES]


def agree(opt, twin) -> bool:
    """Whether parameters and state have the bits of the reference."""
    return same_bits(opt.params, twin.params) and same_bits(state_of(opt), state_of(twin))


def teams_at_once() -> None:
    """Send every step that can be to a team, however late its threads come."""
    engine.set_serial_blocks(0)
    engine.set_most_alone(0)


# --- Interrupts, at every place where one can come


class InterruptAt:
    """Raises KeyboardInterrupt at the k-th place where the interpreter looks for signals, as `sys.settrace` sees them.

    These are: the beginning of a Python function, what follows a call of a compiled one, and jumps backward. Compiled
    code looks for none.
    """

    LOOKS_AFTER = ("CALL", "JUMP_BACKWARD", "JUMP_ABSOLUTE")

    def __init__(self, k: int) -> None:
        self.k, self.seen, self.last, self.where = k, 0, (None, ""), None

    def __call__(self, frame, event, arg):
        frame.f_trace_opcodes = True
        place = event == "call"
        if event == "opcode":
            opcode = dis.opname[frame.f_code.co_code[frame.f_lasti]]
            # Python 3.10 does not look before it enters a try or with block.
            place = self.last[0] is frame and self.last[1].startswith(self.LOOKS_AFTER) and "SETUP_" not in opcode
            self.last = frame, opcode
        elif event != "line":
            self.last = None, ""
        if place:
            self.seen += 1
            if self.seen == self.k:
                self.where = f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}, {frame.f_code.co_name}"
                sys.settrace(None)
                raise KeyboardInterrupt
        return self


def with_saved(opt, **edits):
    """An operation that loads what another optimizer of the class, elsewhere on its way, has saved."""
    other = build(type(opt), three(5), opt.convention)
    other.param_groups[0].update(edits, lr=0.5)
    for _ in range(3):
        other.step(gradients(other))
    saved = copy.deepcopy(other.state_dict())
    return lambda: opt.load_state_dict(saved)


def stepped(cls=fastopt.Adam, convention=None, **options):
    opt = build(cls, three(), convention, **options)
    opt.step(gradients(opt))
    return opt


def edited_then_stepped(opt):
    opt.param_groups[0]["amsgrad"] = True
    return lambda: opt.step(gradients(opt))


WHOLE = {
    "clip_norm": 0.5, "clip_norm_each": 0.4, "clip_value": schedules.Linear(1.0, 0.5, 9), "ema_decay": 0.5,
    "zero_grads": True,
}  # fmt: skip


def averaging(**options):
    """An optimizer whose averages are not its parameters."""
    opt = stepped(**{**WHOLE, **options})
    opt.step(gradients(opt))
    return opt


def begins_to_average(opt):
    opt.param_groups[0].update(ema_decay=0.5, zero_grads=True)
    return lambda: opt.step(gradients(opt))


def looks_at_averages(opt):
    def act():
        with opt.averaged():
            inside = [p.copy() for p in opt.params]
            opt.state_dict()
        assert not same_bits(inside, opt.params)

    return act


def adds_a_group(opt):
    more = {"params": [np.ones(4, np.float32), np.ones(3)], "lr": 0.3}
    return lambda: opt.add_param_group(more)


def momentum_that_is_switched_off():
    """State that the rule in use has no slot for, which a load keeps all the same."""
    opt = stepped(fastopt.SGD, lr=0.1, momentum=0.0)
    other = stepped(fastopt.SGD, lr=0.1, momentum=0.9)
    other.param_groups[0]["momentum"] = 0.0
    saved = copy.deepcopy(other.state_dict())
    for entry, p in zip(saved["state"].values(), other.params, strict=True):
        entry["momentum_buffer"] = np.ones_like(p)
    return opt, lambda: opt.load_state_dict(saved)


def scheduled():
    return stepped(lr=schedules.Warmup(3, schedules.Cosine(0.1, 100)), betas=(schedules.Linear(0.5, 0.9, 9), 0.99))


def a_functional_step():
    functional._KEPT["nadam_"].forget()  # a call that is known runs next to no Python code
    p, g, m, v, product = [np.full(9, x) for x in (1.0, 0.5, 0.1, 0.2)] + [np.ones(1)]
    return [p, m, v, product], lambda: functional.nadam_(p, g, m, v, product, step=1)


def a_file(folder):
    """Loading what another optimizer has saved in a file."""
    saved = stepped(lr=0.5, amsgrad=True)
    saved.save(folder / "saved")
    return lambda: of(stepped(), lambda o: lambda: o.load(folder / "saved"))


def of(opt, act):
    return opt, act(opt)


OPERATIONS = {
    "a step": lambda: of(scheduled(), lambda o: lambda: o.step(gradients(o))),
    "a step that copies": lambda: of(
        stepped(copy_grads=True), lambda o: lambda: o.step([g.astype(np.float64) for g in gradients(o)])
    ),
    "a step that clips": lambda: of(
        stepped(clip_norm=schedules.Linear(1.0, 0.5, 9), nonfinite="skip"), lambda o: lambda: o.step(gradients(o))
    ),
    "a step with all around it": lambda: of(averaging(), lambda o: lambda: o.step(gradients(o))),
    "a step that is skipped": lambda: of(averaging(), lambda o: lambda: o.step(gradients(o), found_inf=1)),
    "a step that begins to average": lambda: of(stepped(), begins_to_average),
    # Without a schedule, whose calls would hide the one that lets averages in.
    "averages in the place of parameters": lambda: of(averaging(clip_value=0.5), looks_at_averages),
    "loading averages": lambda: of(averaging(), lambda o: with_saved(o, ema_decay=0.25)),
    "loading into averages": lambda: of(stepped(), lambda o: with_saved(o, ema_decay=0.25, clip_value=0.5)),
    "a step with a new option": lambda: of(stepped(), edited_then_stepped),
    "lookahead": lambda: of(stepped(fastopt.NAG), lambda o: o.lookahead),
    "loading": lambda: of(stepped(), with_saved),
    "loading an option": lambda: of(stepped(), lambda o: with_saved(o, amsgrad=True)),
    "loading unused state": momentum_that_is_switched_off,
    "loading schedules": lambda: of(scheduled(), lambda o: with_saved(o, weight_decay=schedules.Linear(0.1, 0.2, 9))),
    "a functional step": a_functional_step,
    "adding a group": lambda: of(stepped(fastopt.Adagrad, initial_accumulator_value=0.5), adds_a_group),
    "pickling": lambda: of(stepped(), lambda o: lambda: pickle.loads(pickle.dumps(o))),
}


def look_at(subject):
    """All that can be seen of an optimizer, or of a list of arrays."""
    return frozen_optimizer(subject) if isinstance(subject, fastopt.Optimizer) else frozen(subject)


def interrupt_everywhere(make, what: str, every: int = 1, look=look_at) -> int:
    """Interrupt an operation at each place in turn: the optimizer is as before or as after, and goes on from there.

    With `every`, at each second, third … place only. Returns how many there were.
    """
    subject, act = make()
    before = look(subject)
    act()
    after = look(subject)
    for n, k in enumerate(range(1, 1_000_000, every)):
        subject, act = make()
        begun = look(subject)  # as before, but for an option that was edited
        interrupt = InterruptAt(k)
        before_trace, before_hook = sys.gettrace(), sys.unraisablehook
        sys.unraisablehook = lambda _: None  # one that comes in a finalizer is lost, as any
        sys.settrace(interrupt)
        try:
            act()
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before_trace)
            sys.unraisablehook = before_hook
        if interrupt.where is None:
            assert n > 3, "there was nothing to interrupt"
            return n
        place = f"{what}, interrupted at place {k}: {interrupt.where}"
        try:
            now = look(subject)
        except Exception as error:
            pytest.fail(f"{place}: half done, its parts do not fit any more: {error!r}")
        assert now in (before, begun, after), f"{place}: half done"
        try:
            if now != after:
                act()
                assert look(subject) == after, f"{place}: wrong when it is done again"
            if isinstance(subject, fastopt.Optimizer):
                subject.step(gradients(subject))
        except ConcurrentStepError:
            pytest.fail(f"{place}: it has stayed in the middle of an operation")
    raise AssertionError


@pytest.mark.parametrize("what", OPERATIONS)
def test_an_operation_interrupted_anywhere_is_whole_or_did_not_happen(what, amount, tally):
    every = amount(5, 1) if what in ("pickling", "loading schedules", "loading unused state") else 1
    tally("places in Python code interrupted", interrupt_everywhere(OPERATIONS[what], what, every))


def test_loading_a_file_interrupted_anywhere_is_whole_or_did_not_happen(amount, tally, tmp_path):
    pytest.importorskip("safetensors", reason="files need safetensors, the extra checkpoint")
    places = interrupt_everywhere(a_file(tmp_path), "loading a file", amount(25, 1))
    tally("places in Python code interrupted", places)


def test_saving_a_file_interrupted_anywhere_leaves_the_old_or_the_new(amount, tally, tmp_path):
    pytest.importorskip("safetensors", reason="files need safetensors, the extra checkpoint")
    path = tmp_path / "saved"
    old, new = stepped(lr=0.5), stepped(lr=0.25, amsgrad=True)
    wanted = []
    for opt in (old, new):
        opt.save(path)
        wanted.append(frozen(fastopt.load(path)))
    for k in range(1, 1_000_000, amount(25, 1)):
        old.save(path)
        interrupt, before = InterruptAt(k), sys.gettrace()
        sys.settrace(interrupt)
        try:
            new.save(path)
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
        assert frozen(fastopt.load(path)) in wanted, f"place {k}: {interrupt.where}"
        if interrupt.where is None:
            break
        new.save(path)  # nothing holds it, or the file
        assert frozen(fastopt.load(path)) == wanted[1]
        tally("places of a save interrupted")
        left = [name for name in os.listdir(tmp_path) if name != "saved"]
        assert len(left) <= 1, f"place {k}: {interrupt.where}: {left}"
    assert k > 100


def test_loading_any_optimizer_interrupted_anywhere_is_whole_or_did_not_happen(amount, tally):
    for cls, convention in amount([(fastopt.NAdam, "torch")], ALL):
        make = lambda c=cls, v=convention: of(stepped(c, v), with_saved)  # noqa: E731
        places = interrupt_everywhere(make, f"{cls.__name__}, {convention}", amount(3, 1))
        tally("places in Python code interrupted", places)


@pytest.mark.parametrize("steps", [0, 2], ids=["the first step", "a later step"])
@pytest.mark.parametrize("name", ["AdamW", "SGD", "NAdam"])
def test_a_step_over_tensors_interrupted_anywhere_is_whole_or_did_not_happen(name, steps, amount, tally):
    torch = pytest.importorskip("torch", reason="fastopt.torch needs PyTorch")
    adapter = pytest.importorskip("fastopt.torch")

    def make():
        params = [torch.linspace(-1, 1, n, dtype=d, requires_grad=True)
                  for n, d in ((9, torch.float32), (5, torch.float64))]  # fmt: skip
        opt = getattr(adapter, name)(params, lr=0.1, **({"momentum": 0.9} if name == "SGD" else {}))
        for p in params:
            p.grad = torch.full_like(p, 0.25)
        for _ in range(steps):
            opt.step()
        return opt, opt.step

    def look(opt):
        """Parameters and state, but for state that a first step has made and not used: the next one goes on from it."""
        params = [p for group in opt.param_groups for p in group["params"]]
        used = {}
        for i, p in enumerate(params):
            entry = {key: x.numpy().tobytes() for key, x in opt.state.get(p, {}).items() if torch.is_tensor(x)}
            if any(entry.get("step", b"")) or ("step" not in entry and any(map(any, entry.values()))):
                used[i] = entry
        return [p.detach().numpy().tobytes() for p in params], used

    every = amount(10, 1) if steps == 0 else 1
    tally("places in Python code interrupted", interrupt_everywhere(make, f"{name} over tensors", every, look))


# --- Interrupts, at random moments


def slow_schedule(k: int) -> float:
    return sum(0.0 for _ in range(2_000)) + 0.1 / (1 + k)


def scenario(kind: str):
    """An optimizer and gradients whose steps take long, each in its own way."""
    rng = np.random.default_rng(SEED)
    sizes = [20, 7] if kind in ("small arrays", "schedule") else [150_000, 70_001, 3]
    params = [rng.standard_normal(n).astype(d) for n, d in zip(sizes, "fdf", strict=False)]
    grads = [rng.standard_normal(p.size).astype("d" if kind == "copies" else p.dtype) for p in params]
    opt = fastopt.AdamW(
        params, lr=slow_schedule if kind == "schedule" else 0.01, n_threads=1 if kind == "one thread" else 2,
        copy_grads=kind == "copies", nonfinite="raise" if kind == "looks first" else "propagate",
    )  # fmt: skip
    return opt, grads, [g.astype(p.dtype) for g, p in zip(grads, params, strict=True)]


KINDS = ("a team", "one thread", "looks first", "copies", "small arrays", "schedule")


class Sender:
    """Sends one signal to this process after a while: the kernel's timer does, or another thread."""

    def __init__(self, how: str) -> None:
        self.how = how
        if how == "thread":
            self.asked, self.after = threading.Semaphore(0), 0.0
            threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        while True:
            self.asked.acquire()
            time.sleep(self.after)
            os.kill(os.getpid(), signal.SIGINT)

    def send(self, after: float) -> None:
        if self.how == "timer":
            signal.setitimer(signal.ITIMER_REAL, max(after, 1e-6))
        else:
            self.after = after
            self.asked.release()


def interrupted_steps(how: str, seed: int, times: int):
    """Worker: steps until an interrupt, again and again; each time, count and arrays are those of whole steps."""
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    teams_at_once()
    rng, sender, steps = random.Random(seed), Sender(how), 0
    for kind in KINDS:
        opt, grads, plain = scenario(kind)
        twin = reference.twin(opt)
        for _ in range(3):
            start = time.perf_counter()
            opt.step(grads)
            long = time.perf_counter() - start
        for i in range(-(-times // len(KINDS))):
            try:
                sender.send(rng.uniform(0, 3 * long))
                while True:
                    opt.step(grads)
            except KeyboardInterrupt:
                pass
            while twin.steps < opt.steps:
                twin.step(plain)
            counts = {entry["step"] for entry in opt.state}
            assert counts == {opt.steps} == {twin.steps}, f"{kind}, interrupt {i}: {counts}, {opt.steps} steps"
            assert agree(opt, twin), f"{kind}, interrupt {i}: not the bits of {opt.steps} steps"
        steps += opt.steps
    return {"interrupts": len(KINDS) * -(-times // len(KINDS)), "steps": steps}


def interrupted_loads(how: str, seed: int, times: int):
    """Worker: loads the one or the other of two dicts until an interrupt, again and again; the state is one of them."""
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    rng, sender = random.Random(seed), Sender(how)
    opt = fastopt.Adam([np.zeros(30_000, np.float32), *three()], lr=0.1)
    saved, seen = [], []
    for lr in (0.1, 0.2):
        opt.param_groups[0]["lr"] = lr
        opt.step(gradients(opt))
        saved.append(copy.deepcopy(opt.state_dict()))
    for one in saved:
        start = time.perf_counter()
        opt.load_state_dict(one)
        long = time.perf_counter() - start
        seen.append(frozen_optimizer(opt))
    for i in range(times):
        try:
            sender.send(rng.uniform(0, 3 * long))
            while True:
                for one in saved:
                    opt.load_state_dict(one)
        except KeyboardInterrupt:
            pass
        assert frozen_optimizer(opt) in seen, f"interrupt {i}: half loaded"
        opt.load_state_dict(saved[0])  # and it is not stuck in the middle
    return {"interrupts": times}


def interrupted_averages(how: str, seed: int, times: int):
    """Worker: lets averages stand in until an interrupt, again and again; after it, everything is in its place."""
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    teams_at_once()
    rng, sender = random.Random(seed), Sender(how)
    for n_threads in (1, 2):
        opt = fastopt.SGD([np.linspace(-1, 1, 150_001), *three()], lr=0.1, ema_decay=0.5, n_threads=n_threads)
        for _ in range(2):
            opt.step(gradients(opt))
        before, averages = frozen_optimizer(opt), frozen(opt.averages)
        start = time.perf_counter()
        looks_at_averages(opt)()
        long = time.perf_counter() - start
        for i in range(times):
            try:
                sender.send(rng.uniform(0, 3 * long))
                while True:
                    with opt.averaged():
                        inside = opt._plan.averaged
                    assert inside
            except KeyboardInterrupt:
                pass
            assert frozen_optimizer(opt) == before, f"interrupt {i}: not in its place"
            with opt.averaged():
                assert frozen(opt.params) == averages
    return {"interrupts": 2 * times}


@needs_linux
@pytest.mark.parametrize("how", ["timer", "thread"])
def test_averages_interrupted_at_random_moments_leave_the_parameters_in_their_place(how, amount, tally):
    done = child("interrupted_averages", how, SEED, amount(50, 2_000), timeout=amount(300, 3_000))
    tally("averages in the place of parameters, interrupted by a signal", done["interrupts"])


@needs_linux
@pytest.mark.parametrize("how", ["timer", "thread"])
def test_steps_interrupted_at_random_moments_are_whole(how, amount, tally):
    done = child("interrupted_steps", how, SEED, amount(30, 2_000), timeout=amount(300, 3_000))
    tally("steps interrupted by a signal", done["interrupts"])
    tally("steps taken beside", done["steps"])


@needs_linux
@pytest.mark.parametrize("how", ["timer", "thread"])
def test_loads_interrupted_at_random_moments_are_whole(how, amount, tally):
    done = child("interrupted_loads", how, SEED, amount(100, 2_000), timeout=amount(300, 3_000))
    tally("loads interrupted by a signal", done["interrupts"])


# --- Python threads


def crowd(n: int, work) -> list[BaseException]:
    """Run work(k) on n threads that take turns as often as the interpreter lets them; returns what went wrong."""
    wrong: list[BaseException] = []

    def guarded(k):
        try:
            work(k)
        except BaseException as error:
            wrong.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=guarded, args=(k,)) for k in range(n)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(300)
    finally:
        sys.setswitchinterval(interval)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    return wrong


def until_taken(times: int, act) -> int:
    """Do something so many times; returns how often another thread was in the middle of something, or looked at
    averages, instead."""
    refused = 0
    while times:
        try:
            act()
            times -= 1
        except (ConcurrentStepError, AveragedError):
            refused += 1
    return refused


def until_they_met(together, refused: list[int]) -> int:
    """Let threads work together until one was refused: on a busy machine each may be done before the next begins."""
    for rounds in range(1, 101):
        assert together() == []
        if sum(refused):
            return rounds
    raise AssertionError("no thread ever met another in the middle of a step")


@pytest.mark.parametrize("kind", ["alone", "a team", "schedule"])
def test_threads_on_one_optimizer_step_it_in_turn_or_are_told(kind, amount, tally, nasties):
    n = 30 if kind == "schedule" else 140_000
    opt = fastopt.Adam([np.ones(n, np.float32)], lr=slow_schedule if kind == "schedule" else 0.01,
                       n_threads=2 if kind == "a team" else 1)  # fmt: skip
    alone = copy.deepcopy(opt)
    grads = gradients(opt)
    each, refused = amount(100, 2_000), [0] * 4

    def work(k):
        refused[k] += until_taken(each, lambda: opt.step(grads))

    with nasties.parallel_from(0) if kind == "a team" else contextlib.nullcontext():
        rounds = until_they_met(lambda: crowd(4, work), refused)
    assert opt.steps == 4 * each * rounds
    for _ in range(4 * each * rounds):
        alone.step(grads)
    assert frozen_optimizer(opt) == frozen_optimizer(alone)
    tally("steps of several threads on one optimizer", 4 * each * rounds)
    tally("attempts beside that were refused", sum(refused))


def test_threads_that_load_and_step_one_optimizer_leave_whole_steps_after_a_whole_load(amount, tally):
    opt = fastopt.Adam([np.ones(150_000, np.float32), np.ones(9)], lr=0.0)  # the parameters stay
    grads = gradients(opt)
    for _ in range(3):
        opt.step(grads)
    saved = copy.deepcopy(opt.state_dict())
    each, refused = amount(50, 1_000), [0] * 3

    def work(k):
        act = (lambda: opt.load_state_dict(saved)) if k == 0 else (lambda: opt.step(grads))
        refused[k] += until_taken(each, act)

    until_they_met(lambda: crowd(3, work), refused)
    assert 3 <= opt.steps <= 3 + 2 * each
    alone = fastopt.Adam([p.copy() for p in opt.params], lr=0.0)
    for _ in range(opt.steps):
        alone.step(grads)
    assert frozen_optimizer(opt) == frozen_optimizer(alone)
    tally("loads beside steps of other threads", each)
    tally("attempts beside that were refused", sum(refused))


def test_threads_that_step_and_look_at_averages_take_turns(amount, tally):
    opt = fastopt.Adam([np.ones(150_000, np.float32), np.ones(9)], ema_decay=0.5)
    grads = gradients(opt)
    opt.step(grads)
    alone = copy.deepcopy(opt)
    each, refused = amount(50, 1_000), [0] * 3

    def look():
        with opt.averaged():
            opt.state_dict()

    def work(k):
        act = look if k == 0 else (lambda: opt.step(grads)) if k == 1 else opt.state_dict
        refused[k] += until_taken(each, act)

    rounds = until_they_met(lambda: crowd(3, work), refused)
    for _ in range(each * rounds):
        alone.step(grads)
    assert frozen_optimizer(opt) == frozen_optimizer(alone)
    tally("averages looked at beside steps of another thread", each * rounds)
    tally("attempts beside that were refused", sum(refused))


def test_optimizers_of_several_threads_do_not_meet(amount, tally, nasties):
    makers = (fastopt.AdamW, fastopt.RMSprop, fastopt.SGD, fastopt.Lion)
    rng = np.random.default_rng(SEED)
    opts = [build(cls, [nasties.values("nasty", n, d, rng) for n, d in ((90_001, np.float32), (40_000, np.float64))],
                  n_threads=2) for cls in makers]  # fmt: skip
    grads = [nasties.values("nasty", n, d, rng) for n, d in ((90_001, np.float32), (40_000, np.float64))]  # all share
    twins, steps = [reference.twin(opt) for opt in opts], amount(5, 200)

    def work(k):
        for _ in range(steps):
            opts[k].step(grads)

    with nasties.parallel_from(0):
        assert crowd(4, work) == []
    with np.errstate(all="ignore"):
        for opt, twin in zip(opts, twins, strict=True):
            for _ in range(steps):
                twin.step(grads)
            assert not any(nasties.differing(a, b).any() for a, b in zip(opt.params, twin.params, strict=True))
            assert not any(nasties.differing(a, b).any() for a, b in zip(state_of(opt), state_of(twin), strict=True))
    tally("steps of threads with an optimizer each", 4 * steps)


# --- Forks


TOLD = 7  # exit code of a child whose optimizer said that it is in the middle of a step


def exit_code(pid: int, seconds: float = 20) -> int | None:
    """How a forked child ends; None for one that hangs, which is killed."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def fork(act) -> int:
    """Start a child that does one thing and ends; its process id."""
    pid = os.fork()
    if pid:
        return pid
    good = False
    try:
        good = act()
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
    finally:
        os._exit(0 if good else 1)


def step_both(opt, twin, grads) -> bool:
    opt.step(grads)
    twin.step(grads)
    return agree(opt, twin)


def in_a_fork(opt, twin, grads, i: int) -> bool:
    """What a child does: goes on; makes a new optimizer; forks again; steps on a thread of its own."""
    if i % 4 == 1:
        opt = fastopt.Adagrad([p.copy() for p in opt.params], initial_accumulator_value=0.1, n_threads=2)
        twin = reference.twin(opt)
    elif i % 4 == 2:
        if exit_code(fork(lambda: step_both(opt, twin, grads))) != 0:
            return False
    elif i % 4 == 3:
        opt = pickle.loads(pickle.dumps(opt))
        done: list[bool] = []
        thread = threading.Thread(target=lambda: done.append(step_both(opt, twin, grads)))
        thread.start()
        thread.join()
        return done == [True] and step_both(opt, twin, grads)
    return step_both(opt, twin, grads) and engine.info()["threads"] == 1


def forks(first: str, times: int):
    """Worker: threaded steps with a fork after each; parent and child go on with the same bits."""
    warnings.simplefilter("ignore")  # Python warns of a fork beside threads; that is what is tested
    if first == "torch":
        import torch

        torch.set_num_threads(2)
        assert float((torch.ones(3_000_000) + 1).sum()) == 6_000_000  # on a team of PyTorch's OpenMP
    teams_at_once()
    rng = np.random.default_rng(SEED)
    opt = fastopt.Adam([rng.standard_normal(6_000), rng.standard_normal(5_000).astype(np.float32)], n_threads=2)
    twin, grads = reference.twin(opt), gradients(opt)
    for i in range(times):
        assert step_both(opt, twin, grads), f"fork {i}: the parent's step is wrong"
        ending = exit_code(fork(lambda i=i: in_a_fork(opt, twin, grads, i)))
        assert ending == 0, f"fork {i}: the child {'hung' if ending is None else f'ended with {ending}'}"
    return {"forks": times}


def forks_during_steps(times: int):
    """Worker: forks while another thread is somewhere in a step; the child has whole steps, or is told."""
    warnings.simplefilter("ignore")
    teams_at_once()
    told, rng = 0, random.Random(SEED)
    for i in range(times):
        opt = fastopt.Adam([np.ones(300_000, np.float32)], lr=0.01, n_threads=2)
        other = fastopt.SGD([np.ones(50_000)], lr=0.5, n_threads=2)
        twin, grads, begun, stop = reference.twin(opt), gradients(opt), threading.Event(), threading.Event()

        def act(opt=opt, other=other, twin=twin, grads=grads) -> bool:
            other.step([np.ones(50_000)])
            if not (other.params[0] == 0.5).all():
                return False
            try:
                opt.step(grads)
            except ConcurrentStepError:  # its arrays may be half stepped, and nobody will end that step
                os._exit(TOLD)
            for _ in range(opt.steps):
                twin.step(grads)
            return agree(opt, twin)

        def keep_stepping(opt=opt, grads=grads, begun=begun, stop=stop) -> None:
            while not stop.is_set():
                opt.step(grads)
                begun.set()

        thread = threading.Thread(target=keep_stepping)
        thread.start()
        begun.wait()
        time.sleep(rng.uniform(0, 0.001))
        pid = fork(act)
        stop.set()
        thread.join()
        ending = exit_code(pid)
        assert ending in (0, TOLD), f"fork {i}: the child {'hung' if ending is None else f'ended with {ending}'}"
        told += ending == TOLD
    return {"forks": times, "told": told}


@needs_linux
@pytest.mark.parametrize("first", ["fastopt", "torch"])
def test_forks_after_threaded_steps_go_on_with_the_same_bits(first, amount, tally):
    if first == "torch" and not find_spec("torch"):
        pytest.skip("PyTorch is not installed")
    tally(f"forks after a team of {first}'s OpenMP", child("forks", first, amount(8, 100))["forks"])


@needs_linux
def test_forks_in_the_middle_of_a_step_are_told_or_whole(amount, tally):
    done = child("forks_during_steps", amount(10, 200))
    assert done["told"], "no fork came in the middle of a step"
    tally("forks beside a step of another thread", done["forks"])
    tally("of them in its middle, and told", done["told"])


@needs_linux
def test_a_fork_among_averages_leaves_them_as_its_parent_does():
    opt = averaging()
    before = frozen_optimizer(opt)
    with opt.averaged():
        pid = os.fork()
    good = frozen_optimizer(opt) == before
    if not pid:
        os._exit(0 if good else 1)
    assert good and exit_code(pid) == 0


# --- Processes started by multiprocessing


def go_on(opt, grads, steps: int):
    """In another process: an optimizer that was pickled there goes on, and is pickled back."""
    engine.set_serial_blocks(0)
    for _ in range(steps):
        opt.step(grads)
    return opt, os.getpid()


def travels(method: str, times: int):
    """Worker: optimizers of every class go to other processes and back, a step here and there."""
    warnings.simplefilter("ignore")
    teams_at_once()
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["fastopt"])
    journeys = 0
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        for i in range(times):
            cls, convention = ALL[i % len(ALL)]
            opt = build(cls, [np.linspace(-1, 1, 5_000, dtype=np.float32), *three()], convention, n_threads=2)
            twin, grads = reference.twin(opt), gradients(opt)
            for steps in (1, 2):
                opt.step(grads)
                opt, where = pool.submit(go_on, opt, grads, steps).result(timeout=60)
                assert where != os.getpid()
                for _ in range(1 + steps):
                    twin.step(grads)
                journeys += 1
            assert agree(opt, twin) and opt.steps == twin.steps == 5, (method, cls, convention)
    return {"journeys": journeys}


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_pickled_optimizers_go_on_in_other_processes(method, amount, tally):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"multiprocessing has no {method} here")
    times = amount(4, 3 * len(ALL))
    tally(f"journeys to a process of {method}", child("travels", method, times)["journeys"])


# --- Subinterpreters

INTERPRETERS = find_spec("_interpreters") or find_spec("_xxsubinterpreters")
SUBINTERPRETERS = """
import sys
try:
    import _interpreters
except ImportError:
    import _xxsubinterpreters as _interpreters

step = '''
import warnings
warnings.simplefilter("ignore")         # NumPy warns of its own limits
who = "NumPy"
try:
    import numpy as np
    who = "fastopt"
    import fastopt
except Exception as error:
    print(f"{who} refuses: {type(error).__name__}: {error}".splitlines()[0])
else:
    p = np.ones(3)
    fastopt.SGD(p, lr=0.5).step(np.ones(3))
    print("works" if (p == 0.5).all() else "wrong")
'''
if first == "here":
    exec(step)
for config in ("legacy", "isolated") if hasattr(_interpreters, "new_config") else (None,):
    for _ in range(2):
        other = _interpreters.create(*filter(None, [config]))
        error = _interpreters.run_string(other, f"import sys; sys.path[:] = {sys.path!r}" + step)
        assert error is None, error
        _interpreters.destroy(other)
exec(step)
"""


@pytest.mark.skipif(not INTERPRETERS, reason="this Python has no module for subinterpreters")
@pytest.mark.parametrize("first", ["here", "elsewhere"])
def test_a_second_interpreter_of_a_process_is_told_at_import(first, tally):
    """One interpreter of a process has fastopt; the others get an error. NumPy, which fastopt needs, gives it first."""
    said = finish("import in subinterpreters", "-c", f"first = {first!r}" + SUBINTERPRETERS, timeout=60).splitlines()
    assert len(said) >= 3 and all(line == "works" or " refuses: " in line for line in said), said
    assert all("ImportError" in line for line in said if line.startswith("fastopt")), said
    if first == "here":
        assert said[0] == said[-1] == "works" and said.count("works") == 2, said  # the same interpreter, twice
    else:
        assert said.count("works") <= 1, said
    tally("imports in subinterpreters", len(said))


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](*(int(a) if a.isdigit() else a for a in sys.argv[2:]))))
