"""Code of the user that runs in the middle of a call and takes away what was just checked: an error, never a crash.

Schedules, state factories and gradients of foreign types run Python code while the optimizer works. Whatever they do,
the step is whole or it did not happen. (A failure here may be a crash of the test run.)
"""

import copy
import gc
import pickle
import sys
import threading
import time
import weakref

import numpy as np
import pytest

import fastopt
from fastopt import errors, functional


def two(n=1000):
    return [np.ones(n), np.ones(n)]


class Foreign:
    """A gradient that is no NumPy array, and does something when it is looked at."""

    def __init__(self, array, act):
        self.array, self.act = array, act

    def __dlpack__(self, **kwargs):
        self.act()
        return self.array.__dlpack__(**kwargs)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def shrink(array):
    array.resize(1, refcheck=False)


def test_a_schedule_that_shortens_the_list_of_gradients():
    params, grads = two(), two()
    opt = fastopt.SGD(params, lr=lambda t: (grads.clear(), 0.1)[1])
    with pytest.raises(errors.GradientError, match="0 gradients for 2"):
        opt.step(grads)
    assert all((p == 1).all() for p in params) and opt.steps == 0


def test_a_schedule_that_removes_a_parameter_group():
    params = two()
    opt = fastopt.SGD([{"params": [p]} for p in params], lr=0.1)
    opt.param_groups[0]["lr"] = lambda t: (opt.param_groups.clear(), 0.1)[1]
    with pytest.raises(errors.HyperparameterError, match="length"):
        opt.step(two())
    assert all((p == 1).all() for p in params) and opt.steps == 0


@pytest.mark.parametrize("what", ["parameter", "gradient"])
def test_a_gradient_that_shrinks_another_array_when_it_is_looked_at(what):
    params, grads = two(), two()
    victim = params[0] if what == "parameter" else grads[0]
    opt = fastopt.SGD(params, lr=0.1)
    with pytest.raises((errors.LayoutError, errors.GradientError, errors.ShapeError)):
        opt.step([grads[0], Foreign(grads[1], lambda: shrink(victim))])
    assert (params[1] == 1).all() and opt.steps == 0


def test_a_gradient_that_empties_the_list_when_it_is_looked_at_changes_nothing_of_the_step():
    params, grads = two(), two()
    items = [grads[0], Foreign(grads[1], lambda: items.clear())]
    fastopt.SGD(params, lr=0.5).step(items)
    assert all((p == 0.5).all() for p in params)


def test_a_state_factory_that_shrinks_what_it_gave_before():
    given = []

    def factory(name, shape, dtype):
        if given:
            shrink(given[0])
        given.append(np.zeros(shape, dtype))
        return given[-1]

    with pytest.raises(errors.ShapeError, match="exp_avg"):
        fastopt.Adam(np.ones(1000), state_factory=factory)


def test_a_schedule_that_shrinks_given_state():
    p, m, v = np.ones(1000), np.zeros(1000), np.zeros(1000)
    with pytest.raises((errors.LayoutError, errors.ShapeError), match="exp_avg"):
        functional.adam_(p, np.ones(1000), m, v, step=1, lr=lambda t: (shrink(m), 0.1)[1])
    assert (p == 1).all()


def test_a_schedule_that_shrinks_a_parameter_while_it_is_given():
    p = np.ones(1000)
    with pytest.raises(errors.LayoutError, match="changed"):
        fastopt.Adam(p, lr=lambda t: (shrink(p), 0.1)[1])


def test_a_lookahead_array_that_was_resized():
    w = np.ones(1000)
    opt = fastopt.NAG(w, lr=0.1)
    shrink(opt.lookahead())
    with pytest.raises(errors.LayoutError, match="lookahead"):
        opt.lookahead()


def test_a_state_array_whose_memory_was_exchanged_leaves_the_rule_its_own():
    p = np.ones(1000)
    opt = fastopt.Adam(p, lr=0.1)
    opt.step(np.ones(1000))
    opt.state[0]["exp_avg"].__setstate__(np.zeros(3).__reduce__()[2])
    opt.step(np.ones(1000))         # into the memory that the optimizer made, which it keeps
    assert np.isfinite(p).all()


def test_an_array_that_holds_a_hyperparameter_is_read_at_every_step_even_if_it_chooses_the_rule():
    p, momentum = np.ones(3), np.array(0.0)
    opt = fastopt.SGD(p, lr=0.1, momentum=momentum)
    opt.step(np.ones(3))
    momentum[...] = 0.9
    twin = fastopt.reference.twin(opt)
    twin.state[0]["momentum_buffer"] = np.zeros(3)
    for _ in range(2):
        opt.step(np.ones(3))
        twin.step([np.ones(3)])
    assert p.tobytes() == twin.params[0].tobytes() and "momentum_buffer" in opt.state[0]


@pytest.mark.parametrize("lr", ["0.1", b"0.1", True, np.array("0.1"), np.array(True), 1j, np.complex64(1), np.ma.masked,
                                np.ma.array(0.1), [0.1], np.array([0.1]), None])  # fmt: skip
def test_what_is_no_number_is_no_hyperparameter(lr):
    opt = fastopt.SGD(np.ones(3), lr=0.1)
    opt.param_groups[0]["lr"] = lr
    with pytest.raises(errors.HyperparameterError, match="lr"):
        opt.step(np.ones(3))
    assert opt.steps == 0


@pytest.mark.parametrize("params", [None, [], "gone"])
def test_the_parameters_of_a_group_cannot_be_exchanged(params):
    p = np.ones(3)
    opt = fastopt.SGD(p, lr=0.1)
    kept = opt.param_groups[0]["params"]
    if params == "gone":
        del opt.param_groups[0]["params"]
    else:
        opt.param_groups[0]["params"] = params
    with pytest.raises(errors.FastoptError, match="params"):
        opt.step(np.ones(3))
    repr(opt), opt.state_dict()
    opt.param_groups[0]["params"] = kept
    opt.step(np.ones(3))
    assert opt.steps == 1


def test_many_more_threads_than_fit_into_a_c_int():
    p = np.ones(3)
    opt = fastopt.SGD(p, lr=0.5, n_threads=2**70)
    opt.step(np.ones(3))
    assert p.tolist() == [0.5] * 3 and opt._plan.n_threads == 2**70


def test_loading_under_errors_as_exceptions_is_whole():
    saved = fastopt.Adam(np.ones(3), lr=0.1)
    saved.step(np.full(3, 1e200))
    p = np.ones(3, np.float32)
    opt = fastopt.Adam(p, lr=0.2)
    with np.errstate(all="raise"):
        opt.load_state_dict(saved.state_dict())
    assert np.isinf(opt.state[0]["exp_avg_sq"]).all() and opt.state[0]["step"] == 1


# --- Another thread drops the gradients while the step runs without the GIL


@pytest.mark.parametrize("blocks", [7_990, 8_100, 8_191, 8_250])
def test_gradients_that_another_thread_drops_during_a_step(blocks):
    """At sizes around those from which a step goes to a team, and gives up the GIL."""
    n, grads, stop = blocks * 16, [], threading.Event()
    opt = fastopt.Adam([np.ones(n, np.float32)], amsgrad=True, n_threads=2)

    def drop():
        while not stop.is_set():
            grads.clear()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=drop)
    thread.start()
    try:
        for _ in range(1500):
            grads[:] = [np.full(n, 1.0, np.float32)]
            try:
                opt.step(grads)
            except errors.GradientError:
                continue
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)


def test_gradients_that_another_thread_drops_before_the_one_that_is_not_finite_is_named():
    opt = fastopt.SGD([np.zeros(5_000_000, np.float32)], lr=0.1, nonfinite="raise", n_threads=1)
    for _ in range(10):
        grads = [np.zeros(5_000_000, np.float32)]
        grads[0][-1] = np.nan
        thread = threading.Thread(target=lambda own=grads: (time.sleep(0.0005), own.clear()))
        thread.start()
        with pytest.raises((errors.NonFiniteError, errors.GradientError)):
            opt.step(grads)
        thread.join()
    assert opt.steps == 0


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, pickle.dumps])
def test_a_copy_made_in_the_middle_of_a_step_is_refused(copied):
    def schedule(step):
        copied(opt)
        return 0.1

    opt = fastopt.Adam([np.ones(3)], lr=0.1)
    opt.param_groups[0]["lr"] = schedule
    with pytest.raises(errors.ConcurrentStepError):
        opt.step([np.ones(3)])
    assert opt.steps == 0 and (opt.params[0] == 1).all()


def test_a_factory_that_hands_out_the_memory_of_the_state_that_is_loaded():
    pool = {}
    source = fastopt.AdamW([np.ones(5)], lr=0.1, amsgrad=True)
    source.step([np.full(5, 0.5)])
    saved = source.state_dict()
    want = saved["state"][0]["max_exp_avg_sq"].copy()
    pool["max_exp_avg_sq"] = saved["state"][0]["max_exp_avg_sq"] = want.copy()
    given = lambda name, shape, dtype: pool.setdefault(name, np.zeros(shape))  # noqa: E731
    opt = fastopt.AdamW([np.ones(5)], lr=0.1, state_factory=given)
    opt.load_state_dict(saved)
    assert (opt.state[0]["max_exp_avg_sq"] == want).all() and opt.state[0]["max_exp_avg_sq"] is pool["max_exp_avg_sq"]


def test_a_factory_that_shrinks_the_state_that_is_loaded():
    source = fastopt.AdamW([np.ones(100_000)], lr=0.1, amsgrad=True)
    source.step([np.full(100_000, 0.5)])
    saved = copy.deepcopy(source.state_dict())
    want = saved["state"][0]["exp_avg"].copy()

    def factory(name, shape, dtype):
        if name == "max_exp_avg_sq":
            shrink(saved["state"][0]["exp_avg"])
        return np.zeros(shape, dtype)

    opt = fastopt.AdamW([np.ones(100_000)], lr=0.1, state_factory=factory)
    opt.load_state_dict(saved)
    assert (opt.state[0]["exp_avg"] == want).all()


def test_memory_of_a_factory_whose_state_is_refused_is_given_up():
    def factory(name, shape, dtype):
        if name != "max_exp_avg_sq":
            return np.zeros(shape, dtype)
        array = np.zeros(4)
        made.append(weakref.ref(array))
        return array[:2] if len(made) == 1 else opt.params[0]

    made = []
    params = [np.ones(2), np.ones(2)]
    opt = fastopt.AdamW(params, lr=0.1, state_factory=factory)
    opt.param_groups[0]["amsgrad"] = True
    with pytest.raises(errors.OverlapError):
        opt.step([np.ones(2), np.ones(2)])
    assert made[0]() is None


@pytest.mark.parametrize("foreign", [np.asarray, memoryview])
def test_a_gradient_over_the_product_that_nadam_carries(foreign):
    p, m, v = np.ones((3, 3))
    base = np.ones(3)
    with pytest.raises(errors.OverlapError, match="gradient of parameter 0"):
        functional.nadam_(p, foreign(base[:3]), m, v, base[2:3], step=1)
    assert (base == 1).all() and (p == 1).all()
    with pytest.raises(errors.OverlapError, match="mu_product of parameter 1 overlaps that of parameter 0"):
        functional.nadam_([p, p * 1], [p * 1] * 2, [m, m * 1], [v, v * 1], [base[2:3]] * 2, step=1)


class Rubbish:
    """What the garbage collector finds, and only it; it shrinks an array then."""

    def __init__(self, array):
        self.array, self.me = array, self

    def __del__(self):
        shrink(self.array)


@pytest.mark.parametrize("options", [{"zero_grads": True}, {"ema_decay": 0.5}, {"clip_norm_each": 0.5}], ids=str)
def test_rubbish_that_shrinks_a_gradient_when_it_is_collected_in_a_step(options):
    """Python up to 3.11 collects wherever an object is made, also in compiled code."""
    opt = fastopt.SGD(two(1_000_000), lr=0.1, **options)
    opt.step(two(1_000_000))
    step, grads = opt._plan.step, two(1_000_000)
    before = gc.get_threshold()
    gc.collect()
    gc.disable()
    Rubbish(grads[0])
    gc.set_threshold(1)
    gc.enable()
    try:
        step(grads)  # with no object made before it: not even by contextlib.suppress
    except errors.FastoptError:
        pass
    finally:
        gc.set_threshold(*before)
        gc.collect()
    assert grads[0].shape == (1,)
    opt.step(two(1_000_000))
