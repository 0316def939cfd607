"""What the tests of fastopt.torch share."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["shim", "exchange"])
def way(request, monkeypatch):
    """Both ways to look at tensors: with C functions, tensors are bound anew in C, else by records."""
    from fastopt._tensors import Host

    if request.param == "exchange":
        monkeypatch.setattr(Host, "shim", None)
    elif Host.shim is None:
        pytest.skip("this PyTorch has no stable C functions")
    return request.param
