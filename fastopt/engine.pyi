from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")

LEVELS: tuple[str, ...]

def available_levels() -> list[str]: ...
def use_level(level: str) -> None: ...
def rules() -> dict[str, tuple[tuple[str, ...], int, int]]: ...
LEAST_EPS: float
NO_SCHEDULES: int
LAST_FLOAT_COUNT: int
SHIM: str

def set_serial_blocks(blocks: int) -> int: ...
def set_most_alone(steps: int) -> int: ...
def is_number(value: object) -> bool: ...
def info() -> dict[str, Any]: ...

class Group:
    options: dict[str, Any]
    params: Any
    slots: list[str]
    initial: Mapping[str, float]

class Plan:
    groups: Sequence[Group]
    options: list[dict[str, Any]]
    arrays: list[np.ndarray]
    names: list[Any]
    states: list[dict[str, np.ndarray]]
    named: bool
    copy_grads: bool
    n_threads: int | None
    nonfinite: str
    state_factory: Callable[..., Any] | None
    steps: int
    skipped: int
    def __init__(
        self,
        derive: Callable[[Mapping[str, Any]], Any],
        *,
        n_threads: int | None = None,
        nonfinite: str = "propagate",
        copy_grads: bool = False,
        state_factory: Callable[..., Any] | None = None,
    ) -> None: ...
    def label(self, i: int) -> str: ...
    def add_group(
        self,
        options: dict[str, Any],
        params: list[Any],
        names: Sequence[Any],
        states: list[dict[str, np.ndarray]] | None = None,
        last: bool = True,
    ) -> None: ...
    def step(self, grads: Any, grad_scale: Any = None, carried: Sequence[np.ndarray] = ()) -> None: ...
    def lookahead(self, out: list[np.ndarray]) -> None: ...
    def check_states(self) -> None: ...
    def run(self, function: Callable[..., T], *args: Any) -> T: ...
    def resume(
        self,
        options: list[dict[str, Any]],
        held: list[list[str]],
        records: list[tuple[float, dict[str, np.ndarray]] | None],
        counts: list[int],
        steps: int,
        skipped: int,
    ) -> None: ...
    def check_options(self, options: Mapping[str, Any], has_float: bool, steps: int) -> list[str]: ...
    def touches(self, array: np.ndarray) -> bool: ...
    def count(self, i: int) -> tuple[int, float]: ...
    def set_count(self, i: int, t: int, carry: float) -> None: ...
    def set_steps(self, steps: int, skipped: int) -> None: ...
    def scalars(self, i: int) -> list[float]: ...

class TensorPlan(Plan):
    def __init__(
        self, derive: Callable[[Mapping[str, Any]], Any], host: Any, *, n_threads: int | None = None
    ) -> None: ...
    def tie(self, options: dict[str, Any], records: list[Any], names: list[Any], spare: list[Any]) -> None: ...
    def watch(self, state: Mapping[Any, Any]) -> None: ...
    def step_tensors(self, groups: Any, state: Any, grad_scale: Any = None) -> bool: ...
