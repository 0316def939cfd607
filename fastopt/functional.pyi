from collections.abc import Callable

__all__: list[str]

def __getattr__(name: str) -> Callable[..., bool]: ...
