"""fastopt.torch.install: fastopt's classes under the names of torch.optim, and PyTorch's put back."""

from __future__ import annotations

import copy
import copyreg
import importlib
import pickle
import subprocess
import sys
import threading

import pytest
from support import optimizer_of

torch = pytest.importorskip("torch")

import fastopt.torch as ft  # noqa: E402
from fastopt import errors  # noqa: E402

NAMES = [name for name in ft.__all__ if name in torch.optim.__all__]
STOCK = {name: getattr(torch.optim, name) for name in NAMES}  # captured before
FUNCTIONS = ["clip_grad_norm_", "clip_grad_value_"]
EVERY = [*NAMES, *FUNCTIONS]
OURS = {name: getattr(ft, name) for name in NAMES}


@pytest.fixture(autouse=True)
def put_back():
    yield
    left = names()
    ft.uninstall()
    assert left == {} and names() == {}
    assert not {*STOCK.values()} & copyreg.dispatch_table.keys()


def names():
    """Which names are fastopt's now."""
    return {name: cls for name, cls in OURS.items() if getattr(torch.optim, name) is cls}


def compiled(opt):
    """Whether fastopt stepped it."""
    return getattr(opt, "_plan", None) is not None


# --- Which names


@pytest.mark.parametrize("name", NAMES)
def test_the_names_are_replaced_in_every_module_of_torch_optim(name):
    module = STOCK[name].__module__
    with ft.installed():
        assert getattr(torch.optim, name) is getattr(sys.modules[module], name) is OURS[name]
        assert getattr(importlib.import_module(module), name) is OURS[name]
        assert compiled(optimizer_of(getattr(torch.optim, name)))
    assert getattr(torch.optim, name) is getattr(sys.modules[module], name) is STOCK[name]


def test_only_what_both_have_is_replaced():
    before = dict(vars(torch.optim))
    with ft.installed():
        changed = {key for key in before if vars(torch.optim)[key] is not before[key]}
    assert changed == {*NAMES} and vars(torch.optim) == before


@pytest.mark.parametrize("name", FUNCTIONS)
def test_clipping_is_replaced_too(name):
    module = sys.modules["torch.nn.utils.clip_grad"]
    before = getattr(torch.nn.utils, name)
    with ft.installed():
        assert getattr(torch.nn.utils, name) is getattr(module, name) is getattr(ft, name) is not before
        with ft.installed(name):
            pass
        assert getattr(torch.nn.utils, name) is getattr(ft, name)
    with ft.installed("AdamW"):
        assert getattr(torch.nn.utils, name) is before
    assert getattr(torch.nn.utils, name) is getattr(module, name) is before


def test_some_names_may_be_replaced_alone():
    ft.install("AdamW")
    ft.install("SGD", "AdamW")
    assert {*names()} == {"AdamW", "SGD"}
    ft.uninstall("AdamW")
    assert {*names()} == {"SGD"}
    ft.uninstall()


@pytest.mark.parametrize("call", [ft.install, ft.uninstall, lambda *names: ft.installed(*names).__enter__()])
@pytest.mark.parametrize(("name", "says"), [
    ("Lion", "'Lion' is nothing to install; there are SGD"), ("LBFGS", "'LBFGS' is nothing"),
    ("adamw", "did you mean 'AdamW'?"), ("Adamm", "did you mean 'Adam'?"), (torch.optim.Adam, "is nothing to install"),
])  # fmt: skip
def test_unknown_names_are_errors_that_replace_nothing(call, name, says):
    with pytest.raises(errors.HyperparameterError) as caught:
        call("SGD", name)
    assert says in str(caught.value) and names() == {}


def test_a_name_that_another_library_has_replaced_is_an_error(monkeypatch):
    class Theirs(torch.optim.NAdam):
        pass

    monkeypatch.setattr(torch.optim, "NAdam", Theirs)
    with pytest.raises(errors.InstallError, match=r"torch.optim.NAdam is .*Theirs.*before that, or name the other"):
        ft.install()
    with pytest.raises(errors.InstallError), ft.installed():
        raise AssertionError("not reached")
    assert names() == {} and torch.optim.NAdam is Theirs
    with ft.installed("Adam"):
        assert {*names()} == {"Adam"}


def test_what_another_library_replaces_later_is_left_to_it(monkeypatch):
    class Theirs(ft.Adam):
        pass

    monkeypatch.setattr(torch.optim, "Adam", STOCK["Adam"])  # put back at the end
    ft.install()
    torch.optim.Adam = Theirs
    ft.uninstall()
    assert torch.optim.Adam is Theirs and sys.modules["torch.optim.adam"].Adam is STOCK["Adam"]


# --- How long


def test_install_twice_is_install_once():
    ft.install()
    ft.install()
    assert names() == OURS
    ft.uninstall()
    assert names() == {}
    ft.uninstall()


def test_blocks_may_be_nested_and_mixed_with_install():
    with ft.installed("Adam"):
        with ft.installed("Adam", "SGD"):
            assert {*names()} == {"Adam", "SGD"}
        assert {*names()} == {"Adam"}
        ft.install()
        ft.uninstall()
        assert {*names()} == {"Adam"}
        ft.install("RAdam")
    assert {*names()} == {"RAdam"}
    ft.uninstall()


def test_a_block_that_raises_puts_the_names_back():
    with pytest.raises(KeyboardInterrupt), ft.installed():
        raise KeyboardInterrupt
    assert names() == {}


@pytest.mark.parametrize("where", range(len(EVERY) + 1))
def test_an_interrupt_while_names_are_replaced_puts_them_back(where, monkeypatch):
    from fastopt import _torch_install

    exchange, calls = _torch_install._exchange, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == where + 1:
            raise KeyboardInterrupt
        exchange(*args)

    monkeypatch.setattr(_torch_install, "_exchange", interrupted)
    if where < len(EVERY):
        with pytest.raises(KeyboardInterrupt):
            ft.install()
    else:
        ft.install()
    monkeypatch.setattr(_torch_install, "_exchange", exchange)
    if where < len(EVERY):
        assert names() == {}
    ft.uninstall()


def test_a_function_may_be_decorated():
    @ft.installed("SGD")
    def train():
        return torch.optim.SGD

    assert train() is train() is ft.SGD and torch.optim.SGD is STOCK["SGD"]


def test_overlapping_blocks_of_threads_keep_the_names_until_the_last_has_ended():
    entered, go = threading.Event(), threading.Event()

    def other():
        with ft.installed():
            entered.set()
            go.wait(10)

    thread = threading.Thread(target=other)
    with ft.installed():
        thread.start()
        assert entered.wait(10)
    assert names() == OURS
    go.set()
    thread.join()
    assert names() == {}


# --- What stays as it was


@pytest.mark.parametrize("name", NAMES)
def test_classes_captured_before_take_pytorchs_step(name):
    expected = optimizer_of(STOCK[name]).param_groups[0]["params"][0]
    early = optimizer_of(STOCK[name])
    with ft.installed():
        late = optimizer_of(STOCK[name])
        assert type(late) is STOCK[name] and type(copy.deepcopy(early)) is STOCK[name]
        assert type(copy.copy(early)) is STOCK[name]
        assert torch.equal(late.param_groups[0]["params"][0], expected)
        assert OURS[name].__mro__[2] is STOCK[name]


def test_a_class_that_derives_from_pytorchs_takes_pytorchs_step():
    class Early(STOCK["AdamW"]):
        def __init__(self, params):
            super().__init__(params, lr=0.5)

    with ft.installed():

        class Late(torch.optim.AdamW):
            def __init__(self, params):
                super().__init__(params, lr=0.5)

        early, late = optimizer_of(Early), optimizer_of(Late)
        assert not compiled(early) and compiled(late) and isinstance(early, torch.optim.AdamW)
    torch.testing.assert_close(early.param_groups[0]["params"][0], late.param_groups[0]["params"][0])


def test_instances_count_both_ways_while_a_name_is_replaced():
    class Own(STOCK["Adam"]):
        pass

    stock, ours, own = optimizer_of(STOCK["Adam"]), optimizer_of(ft.Adam), optimizer_of(Own)
    weighted = optimizer_of(ft.AdamW)  # PyTorch's AdamW is an Adam
    plain = optimizer_of(STOCK["SGD"])
    for _ in range(2):  # the answers are not kept
        assert [isinstance(opt, ft.Adam) for opt in (stock, ours, own, weighted, plain)] == [False, True, *[False] * 3]
        assert not issubclass(STOCK["Adam"], ft.Adam)
        with ft.installed():
            for opt in (stock, ours, own, weighted):
                assert isinstance(opt, torch.optim.Adam) and isinstance(opt, STOCK["Adam"])
                assert issubclass(type(opt), torch.optim.Adam)
                assert isinstance(opt, (torch.optim.SGD, torch.optim.Adam))
            assert not isinstance(plain, torch.optim.Adam) and not issubclass(STOCK["SGD"], torch.optim.Adam)
            assert not isinstance(ours, torch.optim.AdamW) and not isinstance(stock, ft._Compiled)
            assert not isinstance("text", torch.optim.Adam) and type(ours) is torch.optim.Adam


def test_schedulers_and_state_dicts_go_between_ours_and_pytorchs():
    early = optimizer_of(STOCK["AdamW"], lr=0.1)
    with ft.installed():
        late = optimizer_of(torch.optim.AdamW, lr=0.1)
        late.load_state_dict(early.state_dict())
        early.load_state_dict(late.state_dict())
        for opt in (early, late):
            schedule = torch.optim.lr_scheduler.StepLR(opt, 1)
            opt.step()
            schedule.step()
        assert early.param_groups[0]["lr"] == late.param_groups[0]["lr"]


# --- Pickles


def test_pickles_of_optimizers_built_by_the_name_load_without_install():
    with ft.installed():
        written = pickle.dumps(optimizer_of(torch.optim.Adam))
    assert b"fastopt.torch" in written and b"torch.optim.adam" not in written
    opt = pickle.loads(written)
    assert type(opt) is ft.Adam
    opt.step()


@pytest.mark.parametrize("name", NAMES)
def test_instances_of_pytorchs_classes_can_be_pickled_meanwhile(name):
    early = optimizer_of(STOCK[name])
    with ft.installed():
        written = pickle.dumps(early)
        assert type(pickle.loads(written)) is STOCK[name]
    again = pickle.loads(written)
    assert type(again) is STOCK[name] and again.state_dict().keys() == early.state_dict().keys()
    again.step()


def test_a_pickle_of_pytorchs_class_loads_as_fastopts_while_the_name_is_replaced():
    written = pickle.dumps(optimizer_of(STOCK["AdamW"]))
    with ft.installed():
        opt = pickle.loads(written)
        assert type(opt) is ft.AdamW
        opt.param_groups[0]["params"][0].grad = torch.ones(3)
        opt.step()
        assert compiled(opt) and opt.state[opt.param_groups[0]["params"][0]]["step"] == 2
    assert type(pickle.loads(written)) is STOCK["AdamW"]


def test_another_process_loads_ours_without_install(tmp_path):
    with ft.installed():
        (tmp_path / "opt").write_bytes(pickle.dumps(optimizer_of(torch.optim.Adam)))
    code = """
import pickle, sys, torch
opt = pickle.load(open(sys.argv[1], "rb"))
opt.step()
print(type(opt).__module__, torch.optim.Adam.__module__)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "opt")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["fastopt.torch", "torch.optim.adam"], done.stderr


# --- Programs that choose by name


def test_programs_that_import_inside_a_function_get_ours():
    def by_string(name):
        return getattr(torch.optim, name)

    def by_import():
        from torch.optim.adamw import AdamW

        return AdamW

    with ft.installed():
        opt = optimizer_of(by_string("AdamW"), fused=True)  # as Hugging Face's adamw_torch_fused
        assert type(opt) is by_import() is ft.AdamW and compiled(opt)


def test_the_functional_optimizers_of_torch_distributed_keep_their_keys():
    utils = pytest.importorskip("torch.distributed.optim.utils")
    with ft.installed():
        assert STOCK["Adam"] in utils.functional_optim_map and ft.Adam not in utils.functional_optim_map
