"""Arrays of other libraries: what DLPack and the buffer protocol do not tell is read right or refused, with a remedy.

Each case is what a library gives, where it may stand, and what is said otherwise. It is tried in every place that is
written to (parameter, state) and in every place that is read (gradient, loaded state, `minimize`).
"""

from __future__ import annotations

import ctypes
import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from support import unchanged

import fastopt
from fastopt import DTypeError, FastoptError, LayoutError, ReadOnlyError, StateDictError, functional

N = 3
NUMBERS = itertools.count()


class Case(NamedTuple):
    """What a library gives."""

    library: str
    make: Callable[[Any], Any]
    written: tuple[type[FastoptError], str]
    """The error where a step would write to it, and what it says."""
    read: Any
    """The value of each element where it is read; or the error. None: it is an array like any other there."""
    loaded: Any = ...
    """What the error of a loaded state says, if it is another. None: NumPy converts it, or says what it is."""


def ones(library: Any, **options: Any) -> Any:
    return library.ones(N, **options)


def fake(torch: Any) -> Any:
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        return ones(torch)


def masked_tensor(torch: Any) -> Any:
    return torch.masked.masked_tensor(ones(torch), torch.tensor([True, False, True]))


def two_tensors(torch: Any) -> Any:
    from torch.testing._internal.two_tensor import TwoTensor

    return TwoTensor(ones(torch), ones(torch))


def freed(torch: Any, left: int = 0) -> Any:
    tensor = ones(torch)
    tensor.untyped_storage().resize_(left)
    return tensor


def quantized(torch: Any) -> Any:
    return torch.quantize_per_tensor(ones(torch), 0.1, 0, torch.qint8)


def deleted(jnp: Any) -> Any:
    array = ones(jnp)
    array.delete()
    return array


def donated(jnp: Any) -> Any:
    import jax

    array = ones(jnp)
    jax.jit(lambda x: x + 1, donate_argnums=0)(array)
    return array


def traced(jnp: Any) -> Any:
    import jax

    seen: list[Any] = []
    jax.make_jaxpr(lambda x: seen.append(x) or x)(ones(jnp))
    return seen[0]


def dataset(h5py: Any) -> Any:
    file = h5py.File(f"{next(NUMBERS)}.h5", "w", driver="core", backing_store=False)  # in memory
    return file.create_dataset("w", data=np.ones(N, np.float32))


def closed(h5py: Any) -> Any:
    found = dataset(h5py)
    found.file.close()
    return found


class OnGPU:
    """As arrays of CuPy are."""

    dtype = np.dtype(np.float32)
    shape = (N,)

    def __dlpack__(self, **options: Any) -> Any:
        raise BufferError("not on the CPU")

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __array__(self, *args: Any, **options: Any) -> Any:
        raise TypeError("implicit conversion is not allowed")


class Converts:
    """As tensors of TensorFlow: an array only after a conversion."""

    shape = (N,)

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.ones(N, np.float32)

    def __iter__(self) -> Any:
        return iter(np.ones(N, np.float32))


class Copies:
    """An array that can only show copies of itself."""

    def __dlpack__(self, *, copy: Any = None, **options: Any) -> Any:
        if copy is False:
            raise BufferError("that needs a copy")
        return np.ones(N, np.float32).__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


class NullPointer:
    """A float32 array whose library has no memory for it, and tells so by a null pointer."""

    class Managed(ctypes.Structure):
        """DLPack's DLManagedTensor."""

        _fields_ = [
            ("data", ctypes.c_void_p), ("device", ctypes.c_int32 * 2), ("ndim", ctypes.c_int32),
            ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
            ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.c_void_p), ("offset", ctypes.c_uint64),
            ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p),
        ]  # fmt: skip

    def __init__(self) -> None:
        self.tensor = self.Managed(None, (1, 0), 1, 2, 32, 1, (ctypes.c_int64 * 1)(N))

    def __dlpack__(self, **options: Any) -> Any:
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        return new(ctypes.addressof(self.tensor), b"dltensor", None)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


class NoDType:
    """An array that cannot even say what it is."""

    @property
    def dtype(self) -> Any:
        raise RuntimeError("no")

    def __dlpack__(self, **options: Any) -> Any:
        raise RuntimeError("there is nothing here")


SERIES = np.ones(N, np.float32)
OWN_CLASS, NO_MEMORY = "a subclass with its own __torch_dispatch__", "memory was freed, or never allocated"
AN_ARRAY = "an array of float32 or float64 is needed"
HALF = "bfloat16; float32 or float64.* is needed: keep a copy in float32"
HALF_READ = (DTypeError, "bfloat16; .*float32.* is needed: convert it to float32")
EIGHTH = "float8_e4m3fn; float32.* or .* is needed: keep a copy in float32"
EIGHTH_READ = (DTypeError, "float8_e4m3fn; .*float32.* is needed: convert it to float32")
GONE = (LayoutError, "was deleted, or donated to a compiled function")

CASES = {
    # Flags beside the memory
    "torch: a negative view": Case(
        "torch", lambda t: t._neg_view(ones(t)), (LayoutError, r"call \.resolve_neg\(\)"), -1.0),
    "torch: the imaginary part of a conjugate": Case(
        "torch", lambda t: t.full((N,), 1j).conj().imag, (LayoutError, r"call \.resolve_neg\(\)"), -1.0),
    "torch: the same in double": Case(
        "torch", lambda t: t.full((N,), 1j, dtype=t.complex128).conj().imag,
        (LayoutError, r"call \.resolve_neg\(\)"), -1.0),
    "torch: a conjugate": Case(
        "torch", lambda t: t.full((N,), 1j).conj(), (DTypeError, "dtype torch.complex64; float32 or float64"),
        (DTypeError, "dtype torch.complex64; float32 or float64")),
    # Memory that is not what it looks like
    "torch: zeros that were not written": Case(
        "torch", lambda t: t._efficientzerotensor(N), (LayoutError, NO_MEMORY), (LayoutError, NO_MEMORY)),
    "torch: freed": Case("torch", freed, (LayoutError, NO_MEMORY), (LayoutError, NO_MEMORY)),
    "torch: partly freed": Case(
        "torch", lambda t: freed(t, 8), (LayoutError, NO_MEMORY), (LayoutError, NO_MEMORY)),
    "torch: functional": Case(
        "torch", lambda t: t._to_functional_tensor(ones(t)), (LayoutError, NO_MEMORY), (LayoutError, NO_MEMORY)),
    "torch: fake": Case("torch", fake, (DTypeError, OWN_CLASS), (DTypeError, OWN_CLASS)),
    "torch: masked": Case("torch", masked_tensor, (DTypeError, OWN_CLASS), (DTypeError, OWN_CLASS)),
    "torch: two in one": Case("torch", two_tensors, (DTypeError, OWN_CLASS), (DTypeError, OWN_CLASS)),
    "torch: meta": Case(
        "torch", lambda t: ones(t, device="meta"), (DTypeError, "a tensor on meta; one on the CPU is needed"),
        (DTypeError, "a tensor on meta; one on the CPU is needed")),
    "torch: sparse": Case(
        "torch", lambda t: ones(t).to_sparse(), (LayoutError, r"torch.sparse_coo; .*call \.to_dense\(\)"),
        (LayoutError, r"torch.sparse_coo; .*call \.to_dense\(\)")),
    "torch: nested": Case(
        "torch", lambda t: t.nested.nested_tensor([ones(t)]), (LayoutError, "nested"), (LayoutError, "nested")),
    "torch: quantized": Case(
        "torch", quantized, (DTypeError, "torch.qint8; float32 or float64"),
        (DTypeError, "torch.qint8; float32 or float64")),
    "torch: uninitialized": Case(
        "torch", lambda t: t.nn.UninitializedParameter(requires_grad=False), (DTypeError, "uninitialized parameter"),
        (DTypeError, "uninitialized parameter"), None),
    "torch: requires gradients": Case(
        "torch", lambda t: ones(t, requires_grad=True), (DTypeError, r"requires gradients: .*give its \.detach\(\)"),
        (DTypeError, r"requires gradients: give its \.detach\(\)")),
    # Types that cannot be stepped
    "torch: bfloat16": Case("torch", lambda t: ones(t, dtype=t.bfloat16), (DTypeError, HALF), HALF_READ, None),
    "torch: float8": Case("torch", lambda t: ones(t).to(t.float8_e4m3fn), (DTypeError, EIGHTH), EIGHTH_READ),
    "jax: bfloat16": Case("jax.numpy", lambda j: ones(j, dtype=j.bfloat16), (DTypeError, HALF), HALF_READ),
    "jax: float8": Case("jax.numpy", lambda j: ones(j, dtype=j.float8_e4m3fn), (DTypeError, EIGHTH), EIGHTH_READ),
    "ml_dtypes: float8": Case(
        "ml_dtypes", lambda m: np.ones(N, m.float8_e4m3fn), (DTypeError, EIGHTH), EIGHTH_READ,
        "float8_e4m3fn; float16, 32 or 64 or longdouble is needed"),
    # Memory that is gone, elsewhere, or no array's
    "jax: deleted": Case("jax.numpy", deleted, GONE, GONE),
    "jax: donated": Case("jax.numpy", donated, GONE, GONE),
    "jax: traced": Case("jax.numpy", traced, (DTypeError, "jax.*Tracer that cannot"), (DTypeError, "jax.*Tracer that")),
    "on a GPU": Case(
        "numpy", lambda _: OnGPU(), (DTypeError, r"DLPack's device \(2, 0\), not on the CPU: copy it there"),
        (DTypeError, r"DLPack's device \(2, 0\), not on the CPU: copy it there")),
    "a null pointer": Case("numpy", lambda _: NullPointer(), (LayoutError, NO_MEMORY), (LayoutError, NO_MEMORY)),
    "copies itself": Case("numpy", lambda _: Copies(), (DTypeError, "needs a copy"), None),
    "says nothing": Case(
        "numpy", lambda _: NoDType(), (DTypeError, "NoDType that cannot be used .*nothing here"),
        (DTypeError, "NoDType that cannot be used .*nothing here")),
    "h5py": Case("h5py", dataset, (DTypeError, rf"h5py.Dataset; {AN_ARRAY}.*: dataset\[\.\.\.\] reads it"),
                 (DTypeError, rf"h5py.Dataset; {AN_ARRAY}.*: dataset\[\.\.\.\] reads it"), None),
    "h5py, closed": Case("h5py", closed, (DTypeError, "h5py.Dataset"), (DTypeError, "h5py.Dataset"), None),
    "pandas.Series": Case(
        "pandas", lambda p: p.Series(SERIES), (DTypeError, rf"pandas.Series; {AN_ARRAY}.*: x\.to_numpy\(copy=True\)"),
        (DTypeError, rf"pandas.Series; {AN_ARRAY}.*: x\.to_numpy\(copy=True\)"), None),
    "pandas.DataFrame": Case(
        "pandas", lambda p: p.DataFrame({"a": SERIES}), (DTypeError, r"pandas.DataFrame; .*: x\.to_numpy\(copy=True\)"),
        (DTypeError, r"pandas.DataFrame; .*: x\.to_numpy\(copy=True\)"), None),
    "polars.Series": Case(
        "polars", lambda p: p.Series(SERIES), (DTypeError, r"polars.Series; .*: x\.to_numpy\(writable=True\)"),
        (DTypeError, r"polars.Series; .*: x\.to_numpy\(writable=True\)"), None),
    "xarray.DataArray": Case(
        "xarray", lambda x: x.DataArray(SERIES.copy()), (DTypeError, r"xarray.DataArray; .*: x\.to_numpy\(\)"),
        (DTypeError, r"xarray.DataArray; .*: x\.to_numpy\(\)"), None),
    "scipy.sparse": Case(
        "scipy.sparse", lambda s: s.csr_array(np.ones((1, N))), (DTypeError, r"scipy.csr_array; .*: x\.toarray\(\)"),
        (DTypeError, r"scipy.csr_array; .*: x\.toarray\(\)"), None),
    "converts": Case("numpy", lambda _: Converts(), (DTypeError, r"Converts; .*: np\.array\(x\) makes one"),
                     (DTypeError, r"Converts; .*: np\.array\(x\) makes one"), None),
    "a date": Case("numpy", lambda _: np.datetime64(1, "s"), (DTypeError, r"dtype datetime64\[s\]"),
                   (DTypeError, r"dtype datetime64\[s\]"), None),
}  # fmt: skip

# Can be read as ever, and cannot be written to.
READ_ONLY = {
    "np.float64": ("numpy", lambda _: np.float64(1.0), r"a NumPy scalar .*give an array, np\.array\(x\)"),
    "np.float32": ("numpy", lambda _: np.float32(1.0), r"a NumPy scalar .*give an array, np\.array\(x\)"),
    "jax": ("jax.numpy", ones, r"give a copy, np\.array\(x\)"),
    "numpy of jax": ("jax.numpy", lambda j: np.asarray(ones(j)), r"give a copy, np\.array\(x\)"),
    "values of pandas": ("pandas", lambda p: p.Series(SERIES).values, r"\.to_numpy\(copy=True\)"),
    "numpy of pandas": ("pandas", lambda p: p.Series(SERIES).to_numpy(), r"\.to_numpy\(copy=True\)"),
    "numpy of polars": ("polars", lambda p: p.Series(SERIES).to_numpy(), r"give a copy, np\.array\(x\)"),
    "bytes": ("numpy", lambda _: memoryview(SERIES.tobytes()).cast("f"), r"give a copy, np\.array\(x\)"),
}
WRITTEN = {
    **{name: (case.library, case.make, case.written) for name, case in CASES.items()},
    **{name: (library, make, (ReadOnlyError, says)) for name, (library, make, says) in READ_ONLY.items()},
}


def made(library: str, make: Callable[[Any], Any]) -> Any:
    # NumPy before 2.1 cannot ask DLPack for no copy.
    return make(pytest.importorskip(library, minversion="2.1" if library == "numpy" else None))


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_written_to_is_refused_and_named(name):
    library, make, (error, says) = WRITTEN[name]
    bad = made(library, make)
    if isinstance(bad, np.ndarray) and bad.flags.writeable and error is ReadOnlyError:
        pytest.skip("this version of the library gives memory that can be written to")
    good = np.ones(N)
    calls: list[tuple[str, Callable[[], Any]]] = [
        ("parameter 0", lambda: fastopt.Adam(bad)),
        ("parameter 1", lambda: fastopt.Adam([good, bad])),
        ("parameter 'w'", lambda: fastopt.Adam({"w": bad})),
        ("parameter 1", lambda: fastopt.Adam([{"params": good}, {"params": bad}])),
        ("parameter 0", lambda: functional.sgd_(bad, np.ones(N), step=1, lr=1.0)),
        ("state 'velocity' of parameter 0", lambda: functional.momentum_(good, np.ones(N), bad, step=1)),
        ("state 'exp_avg' of parameter 0, from state_factory,",
         lambda: fastopt.Adam(good, state_factory=lambda name, shape, dtype: bad)),
    ]  # fmt: skip
    for label, call in calls:
        with pytest.raises(error, match=f"^{label} .*{says}") as caught:
            call()
        assert isinstance(caught.value, FastoptError)
    assert (good == 1).all()


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.read is not None])
@pytest.mark.parametrize("way", ["alone", "in a list", "copied", "functional", "minimize"])
@pytest.mark.filterwarnings("ignore")
def test_a_gradient_is_what_it_says_or_refused(name, way):
    case = CASES[name]
    g = made(case.library, case.make)
    w = np.full(N, 5.0, np.float64 if "double" in name else np.float32)
    opt = fastopt.SGD(w, lr=1.0, copy_grads=way == "copied")
    call = {
        "alone": lambda: opt.step(g),
        "in a list": lambda: opt.step([g]),
        "copied": lambda: opt.step([g]),
        "functional": lambda: functional.sgd_(w, g, step=1, lr=1.0),
        "minimize": lambda: fastopt.minimize(lambda w, _: (1.0, g), w, opt, max_steps=1),
    }[way]
    if isinstance(case.read, tuple):
        error, says = case.read
        with unchanged(opt, error, f"^gradient of parameter 0 .*{says}"):
            call()
    else:
        result = call()
        assert (w == 5.0 - case.read).all()
        if way == "minimize":
            assert result.grad_norm == pytest.approx(N**0.5 * abs(case.read))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if None not in (case.read, case.loaded)])
@pytest.mark.filterwarnings("ignore")
def test_a_loaded_state_is_what_it_says_or_refused(name):
    case = CASES[name]
    value = made(case.library, case.make)
    opt = fastopt.Momentum(np.ones(N, np.float32))
    opt.step(np.ones(N, np.float32))
    saved = opt.state_dict()
    saved["state"][0]["velocity"] = value
    if isinstance(case.read, float):
        opt.load_state_dict(saved)
        assert (opt.state[0]["velocity"] == case.read).all()
    else:
        says = case.read[1] if case.loaded is ... else case.loaded
        with unchanged(opt, StateDictError, f"^state 'velocity' of parameter 0 .*{says}"):
            opt.load_state_dict(saved)


@pytest.mark.parametrize("name", ["torch: freed", "jax: deleted", "h5py, closed"])
def test_a_loaded_count_that_cannot_be_read_is_refused(name):
    case = CASES[name]
    value = made(case.library, case.make)
    opt = fastopt.Adam(np.ones(N, np.float32))
    opt.step(np.ones(N, np.float32))
    saved = opt.state_dict()
    saved["state"][0]["step"] = value
    with unchanged(opt, StateDictError, "^step .* of parameter 0 is not a number"):
        opt.load_state_dict(saved)


def test_a_product_that_cannot_be_read_is_refused():
    torch = pytest.importorskip("torch")
    p, g, m, v = (np.ones(N, np.float32) for _ in range(4))
    with pytest.raises(fastopt.ParameterError, match="^mu_product must be an array of one float.*, not a torch.Tensor"):
        functional.nadam_(p, g, m, v, freed(torch), step=1)


def test_arrays_of_several_devices_are_refused():
    """In a process of its own: JAX asks for the number of devices once."""
    pytest.importorskip("jax")
    code = """
import numpy as np, fastopt, jax, jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
mesh = Mesh(jax.devices(), "x")
for spec in (PartitionSpec("x"), PartitionSpec()):
    array = jax.device_put(jnp.arange(4.0), NamedSharding(mesh, spec))
    for call in (lambda: fastopt.SGD(array), lambda: fastopt.SGD(np.ones(4, np.float32)).step(array)):
        try:
            call()
        except fastopt.DTypeError as error:
            print(error)
"""
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120)
    lines = said.stdout.splitlines()
    assert len(lines) == 4, said.stderr
    assert all("parameter 0 is a jaxlib.ArrayImpl" in line and "(np.array(x) copies it)" in line for line in lines)


def test_an_optimizer_over_tensors_has_a_repr():
    torch = pytest.importorskip("torch")
    opt = fastopt.SGD([{"params": [torch.ones(2, 3), np.ones(4)]}, {"params": torch.ones(5)}])
    shown = repr(opt)
    assert "Parameter Group 0: 2 arrays, 10 elements" in shown and "Parameter Group 1: 1 array, 5 elements" in shown


# --- Where to go with a module of PyTorch


@pytest.mark.parametrize("cls", fastopt.OPTIMIZERS.values())
def test_parameters_of_a_module_are_sent_to_the_class_that_steps_them(cls):
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("fastopt.torch")
    model = torch.nn.Linear(2, 2)
    forms = {"Momentum": "SGD(momentum=...)", "NAG": "SGD(momentum=..., nesterov=True)"}
    twin = forms.get(cls.__name__, cls.__name__)
    has_twin = twin.partition("(")[0] in theirs.__all__
    assert has_twin or "torch" not in cls.conventions
    remedy = f"step it with fastopt.torch.{twin}, or give its .detach()" if has_twin else "give its .detach()"
    subclass = type("Mine", (cls,), {})
    for build in (cls, subclass):
        for params, label in [
            (model.parameters(), "parameter 0"), (list(model.parameters()), "parameter 0"),
            (dict(model.named_parameters()), "parameter 'weight'"), ([{"params": model.bias}], "parameter 0"),
        ]:  # fmt: skip
            with pytest.raises(DTypeError) as caught:
                build(params, lr=0.1)
            assert str(caught.value) == f"{label} is a tensor that requires gradients: {remedy}"


def test_a_module_and_its_named_parameters_are_no_parameters():
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(2, 2)
    for module in (model, torch.nn.Sequential(model)):
        with pytest.raises(DTypeError, match=r"torch.Linear; .*\.parameters\(\) of a module .* fastopt.torch.AdamW$"):
            fastopt.AdamW(module)
    with pytest.raises(DTypeError, match=r"parameter 0 is a tuple; .*: parameters with names come in a dict"):
        fastopt.AdamW(model.named_parameters())


# --- joblib


def test_a_memmap_that_cannot_be_written_to_names_its_modes(tmp_path):
    path = tmp_path / "w"
    np.ones(N, np.float32).tofile(path)
    mapped = np.memmap(path, np.float32, "r")
    for array in (mapped, np.asarray(mapped), mapped[1:], np.asarray(mapped).reshape(1, N)[0]):
        with pytest.raises(ReadOnlyError, match=r"mode='r\+' or 'c'.*np\.array\(x\).*Parallel\(max_nbytes=None\)"):
            fastopt.Adam(array)
    for mode in ("r+", "c"):
        fastopt.SGD(np.memmap(path, np.float32, mode), lr=0.5).step(np.ones(N, np.float32))
    assert (np.fromfile(path, np.float32) == 0.5).all()  # "c" keeps its changes to itself


def test_an_optimizer_in_a_worker_of_joblib():
    """Large arrays reach the worker as read-only memmaps, where the optimizer is made again."""
    pytest.importorskip("joblib")
    code = """
import joblib, numpy as np, fastopt
def work(opt):
    opt.step([np.ones_like(w) for w in opt.params])
    return opt.params[0][:2].tolist()
opt = fastopt.Momentum(np.ones(500_000), lr=0.5)
try:
    joblib.Parallel(2)([joblib.delayed(work)(opt)] * 2)
except Exception as error:
    print(type(error).__name__, "".join(str(error.__cause__).splitlines()[-2:]))
print(joblib.Parallel(2, max_nbytes=None)([joblib.delayed(work)(opt)] * 2), (opt.params[0] == 1).all())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    refused, taken = done.stdout.splitlines()
    assert refused.startswith("BrokenProcessPool") and "ReadOnlyError: parameter 0 is read-only" in refused
    assert "joblib.Parallel(max_nbytes=None)" in refused
    assert taken == "[[0.5, 0.5], [0.5, 0.5]] True"
