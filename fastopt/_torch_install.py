"""Fastopt's classes in the place of PyTorch's, under the names of ``torch.optim``: `install` and its opposite."""

from __future__ import annotations

import copyreg
import sys
import threading
from abc import ABCMeta
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from fastopt._spelling import meant
from fastopt.errors import HyperparameterError, InstallError

__all__ = ["install", "installed", "uninstall"]

STOCK: dict[Any, Any] = {}
"""Each class of `fastopt.torch` that `torch.optim` has, too, and each function that `torch.nn.utils` has -> PyTorch's.

The classes derive from those of PyTorch.
"""

_lock = threading.RLock()
_lasting: set[Any] = set()
"""What `install` put in place, until `uninstall`."""
_blocks: Counter[Any] = Counter()
"""How many blocks of `installed` are running, for each class and function."""
_replaced: dict[Any, Any] = {}
"""Of `STOCK`, those whose names are fastopt's now."""


class TwinType(ABCMeta):
    """The type of the classes of `fastopt.torch`.

    While a class has the place of PyTorch's, an instance of PyTorch's class counts as its instance. So
    ``isinstance(opt, torch.optim.Adam)`` stays true for an optimizer that was built before, and for one of a class that
    derives from PyTorch's Adam.

    It derives from `ABCMeta`, so that a class may have `ABC` and one of these as its bases.
    """

    # ABCMeta's own answers are not asked for: it keeps them, and these change.
    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, _replaced[cls]) if cls in _replaced else type.__instancecheck__(cls, instance)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, _replaced[cls]) if cls in _replaced else type.__subclasscheck__(cls, subclass)


def install(*names: str) -> None:
    """Replace the optimizers of ``torch.optim`` by those of `fastopt.torch`, for the whole process; and clipping.

    For programs that choose an optimizer by name, or deep inside a library: Hugging Face's ``optim="adamw_torch"``,
    timm's ``create_optimizer_v2``, Stable-Baselines3's default. Call it before such a library is imported: many read
    ``torch.optim`` once, when they are imported.

    The names are replaced in ``torch.optim`` and in its modules: ``torch.optim.AdamW`` and
    ``torch.optim.adamw.AdamW``. Calling `install` again changes nothing. Frameworks that clip gradients themselves
    call ``torch.nn.utils.clip_grad_norm_`` and ``clip_grad_value_``: these two are replaced as well.

    Parameters
    ----------
    *names : str
        What to replace, for instance ``"AdamW"``, ``"clip_grad_norm_"``. Default: every class that both modules have,
        and both functions. `Lion` is not one of them.

    Raises
    ------
    HyperparameterError
        For a name that is not one of these.
    InstallError
        If another library has replaced one of the names before. Nothing is replaced then.

    Notes
    -----
    **What stays as it was.** Classes that were taken out of ``torch.optim`` before, their instances, and classes that
    derive from them. The classes of `fastopt.torch` go on deriving from PyTorch's own. While a name is replaced,
    ``isinstance(opt, torch.optim.Adam)`` is true for fastopt's and for PyTorch's optimizers. Comparisons by identity
    (``type(opt) is torch.optim.Adam``) are true for fastopt's only.

    **Pickles.** Optimizers that are built under the replaced names are of `fastopt.torch`, and their pickles say so:
    they load in a process that has not called `install`. A pickle of PyTorch's class loads as fastopt's while the name
    is replaced. An instance of PyTorch's class can be pickled meanwhile, but then needs fastopt to be loaded. The class
    itself cannot (``PicklingError``), as it is not what its name stands for.

    **Threads and processes.** The names belong to the process: all threads see the change. A process that is started by
    ``spawn`` has to call `install` itself.

    **Who knows classes by identity.** These modules look ``torch.optim`` up when they are imported. Import them after
    `install`.

    - ``torch.distributed.optim``: the table of functional optimizers, for ``ZeroRedundancyOptimizer`` with
      ``overlap_with_ddp=True``, ``DistributedOptimizer`` and DDP's ``_register_fused_optim``. These optimizers take
      PyTorch's own step in either case; where the table was filled before, they do not know the installed class.
    - ``torch.optim._multi_tensor``: its classes derive from those that ``torch.optim`` has when it is imported.
    - ``torch.compile``: prepares the classes that are in ``torch.optim`` at its first use. Others compile, too.
    - timm's registry; Stable-Baselines3's, skorch's and other default arguments; DeepSpeed's list of optimizers that
      ZeRO supports. Hugging Face's Trainer looks names up when it builds an optimizer, so the order does not matter.

    ``torch.optim.lr_scheduler``, ``torch.optim.swa_utils``, ``torch.amp`` and ``torch.profiler`` know no class but
    ``Optimizer``, which is not replaced.

    See Also
    --------
    installed : The same for a block.

    Examples
    --------
    With PyTorch installed::

        import torch, fastopt.torch

        fastopt.torch.install()
        assert torch.optim.AdamW is fastopt.torch.AdamW
        fastopt.torch.uninstall()
    """
    with _lock:
        classes = _chosen(names)
        _replace(classes)
        _lasting.update(classes)


def uninstall(*names: str) -> None:
    """Undo `install`: put PyTorch's classes back under their names. Optimizers that were built stay what they are.

    Without effect on names that are not replaced, on those that another library has replaced since, and on those that a
    running block of `installed` needs, which puts them back at its end.

    Parameters
    ----------
    *names : str
        What to put back. Default: all.

    Raises
    ------
    HyperparameterError
        For a name that `install` does not know.
    """
    with _lock:
        _lasting.difference_update(_chosen(names))
        _put_back()


@contextmanager
def installed(*names: str) -> Iterator[None]:
    """`install` for a block, or as a decorator for a function: ``with fastopt.torch.installed(): ...``.

    Blocks may be nested, and may overlap in several threads: PyTorch's classes are put back when the last block that
    replaced them has ended, unless `install` was called, too. All threads see the change.

    Parameters
    ----------
    *names : str
        As for `install`.

    Raises
    ------
    HyperparameterError, InstallError
        As `install` does.
    """
    classes = _chosen(names)
    with _lock:
        _blocks.update(classes)
    try:
        with _lock:
            _replace(classes)
        yield
    finally:
        with _lock:
            _blocks.subtract(classes)
            _put_back()


def _chosen(names: tuple[str, ...]) -> list[Any]:
    classes = {cls.__name__: cls for cls in STOCK}
    for name in names:
        if name not in classes:
            lower = {known.lower(): known for known in classes}
            near = meant(name, lower, 0.6) if isinstance(name, str) else None
            hint = f"; did you mean {lower[near]!r}?" if near else ""
            raise HyperparameterError(f"{name!r} is nothing to install; there are {', '.join(classes)}{hint}")
    return [classes[name] for name in names or classes]


def _replace(classes: list[Any]) -> None:
    new = [cls for cls in dict.fromkeys(classes) if cls not in _replaced]
    for cls in new:
        home = _home(cls)
        found = getattr(sys.modules[home], cls.__name__, None)
        if found is not STOCK[cls]:
            raise InstallError(
                f"{home}.{cls.__name__} is {found!r}, not PyTorch's own: something else has replaced it. Call "
                "fastopt.torch.install() before that, or name the others only: install('SGD', ...)"
            )
    try:
        for cls in new:
            _replaced[cls] = STOCK[cls]
            if isinstance(cls, type):
                copyreg.pickle(STOCK[cls], _reduce_stock)
            _exchange(cls, STOCK[cls], cls)
    except BaseException:
        _put_back()
        raise


def _put_back() -> None:
    """What is PyTorch's under the names that neither `install` nor a block asks for any more."""
    for cls in [cls for cls in _replaced if cls not in _lasting and _blocks[cls] <= 0]:
        _exchange(cls, cls, STOCK[cls])
        if isinstance(cls, type):
            copyreg.dispatch_table.pop(STOCK[cls], None)
        del _replaced[cls]


def _home(cls: Any) -> str:
    """The module under which PyTorch has a name."""
    return "torch.optim" if isinstance(cls, type) else "torch.nn.utils"


def _exchange(cls: Any, before: Any, after: Any) -> None:
    home = f"{_home(cls)}."
    for path, module in list(sys.modules.items()):
        if f"{path}.".startswith(home) and getattr(module, cls.__name__, None) is before:
            setattr(module, cls.__name__, after)


# An instance of a class whose name stands for another class cannot be pickled by that name.


def _reduce_stock(optimizer: torch.optim.Optimizer) -> tuple[Any, ...]:
    return _new_stock, (type(optimizer).__name__,), optimizer.__getstate__()


def _new_stock(name: str) -> Any:
    (stock,) = (stock for cls, stock in STOCK.items() if cls.__name__ == name)
    return object.__new__(stock)
