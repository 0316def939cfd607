"""Low precision: weights, gradients and state in bfloat16 and 8 bits, beside those who step the same.

``make bench ARGS="-k storage"`` runs it alone. Where a peer takes several passes (a conversion, a norm, a factor, a
copy of the weights), all of them are in its step. Peers that are not installed are left out: bitsandbytes, torchao and
torch-optimi are in no extra. "fastopt, float32" is the plain step of as many float32 elements.
"""

import functools
import gc
import importlib
import importlib.util

import numpy as np
import pytest
from bench_step import SHAPES
from libraries import LR, Case

import fastopt

try:
    import torch
except ImportError:
    torch = None

DECAY = 0.01
STORED = ("1×30,000", "1×1,000,000", "1×10,000,000")
CLIP = 1.0


class Stored(Case):
    """A case whose arrays are stored as its options say; what is computed is float32."""

    __slots__ = ()


def adamw(cls, params, case, **more):
    return cls(params, lr=LR, weight_decay=DECAY, n_threads=case.threads, **more)


def tensors(case, dtype="float32", grad_dtype=None):
    """Parameters of torch's, and their gradients."""
    params = [torch.nn.Parameter(torch.from_numpy(a).to(getattr(torch, dtype))) for a in case.arrays(0)]
    for p, g in zip(params, case.arrays(1), strict=True):
        if grad_dtype is not None and grad_dtype != dtype:
            p.grad_dtype = getattr(torch, grad_dtype)
        p.grad = torch.from_numpy(g).to(getattr(torch, grad_dtype or dtype))
    return params


def ours(case, dtype="float32", grad_dtype=None, mirrored=False, **options):
    """fastopt.torch: what users of bfloat16 have in PyTorch; the compiled step is that of arrays."""
    import fastopt.torch

    params = tensors(case, dtype, grad_dtype)
    if mirrored:
        options["mirrors"] = [torch.zeros_like(p, dtype=torch.bfloat16, requires_grad=False) for p in params]
    return adamw(fastopt.torch.AdamW, params, case, **options).step


def plain(case):
    opt, grads = adamw(fastopt.AdamW, case.arrays(0), case), case.arrays(1)
    return lambda: opt.step(grads)


def fused(case, dtype="bfloat16"):
    return torch.optim.AdamW(tensors(case, dtype), lr=LR, weight_decay=DECAY, fused=True).step


def converting(case, make):
    """A step of float32 gradients, after a pass that makes them of bfloat16."""
    params = tensors(case)
    given = [p.grad.bfloat16() for p in params]
    step = make(params)

    def both():
        for p, g in zip(params, given, strict=True):
            p.grad.copy_(g)
        step()

    return both


def deepspeed(case, dtype="float32", **options):
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    return DeepSpeedCPUAdam(tensors(case, dtype), lr=LR, weight_decay=DECAY, **options).step


def zero_offload(case, grad_dtype):
    """ZeRO-Offload's step with clipping, in DeepSpeed: the norm, the factor, CPUAdam, and the weights in bfloat16."""
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    params = tensors(case)
    given = [p.grad.to(getattr(torch, grad_dtype)) for p in params] if grad_dtype != "float32" else None
    copies = [torch.zeros_like(p, dtype=torch.bfloat16, requires_grad=False) for p in params]
    step = DeepSpeedCPUAdam(params, lr=LR, weight_decay=DECAY).step

    def passes():
        with torch.no_grad():
            if given is not None:
                for p, g in zip(params, given, strict=True):
                    p.grad.copy_(g)
            norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(p.grad) for p in params]))
            # Times a factor that changes nothing: from step to step the gradients would fade.
            factor = 1.0 if norm > 0 else CLIP
            for p in params:
                p.grad.mul_(factor)
            step()
            for copy, p in zip(copies, params, strict=True):
                copy.copy_(p.detach())

    return passes


def bitsandbytes(case):
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(tensors(case), lr=LR, weight_decay=DECAY).step


def torchao(case):
    from torchao.optim import AdamW8bit

    return AdamW8bit(tensors(case), lr=LR, weight_decay=DECAY).step


def optimi(case):
    from optimi import AdamW

    return AdamW(tensors(case, "bfloat16"), lr=LR, weight_decay=DECAY, kahan_sum=True, foreach=False).step


def torch_adamw(params):
    return torch.optim.AdamW(params, lr=LR, weight_decay=DECAY, fused=True).step


def drop_in(case):
    import fastopt.torch

    return lambda params: adamw(fastopt.torch.AdamW, params, case).step


# Combination -> name -> (the module it needs, what makes its step); fastopt comes first.
COMBINATIONS = {
    "bf16 gradients": {
        "fastopt": ("torch", lambda case: ours(case, grad_dtype="bfloat16")),
        "fastopt, converted": ("torch", lambda case: converting(case, drop_in(case))),
        "torch fused, converted": ("torch", lambda case: converting(case, torch_adamw)),
        "fastopt, float32": ("numpy", plain),
    },
    "mirror, clipping": {
        "fastopt": ("torch", lambda case: ours(case, mirrored=True, clip_norm=1e9)),
        "DeepSpeed": ("deepspeed", functools.partial(zero_offload, grad_dtype="float32")),
        "fastopt, float32": ("numpy", plain),
    },
    "mirror, clipping, bf16 gradients": {
        "fastopt": ("torch", lambda case: ours(case, grad_dtype="bfloat16", mirrored=True, clip_norm=1e9)),
        "DeepSpeed": ("deepspeed", functools.partial(zero_offload, grad_dtype="bfloat16")),
        "fastopt, float32": ("numpy", plain),
    },
    "bf16 weights, f32 state": {
        "fastopt": ("torch", lambda case: ours(case, "bfloat16", state_dtype="float32")),
        "DeepSpeed": ("deepspeed", lambda case: deepspeed(case, "bfloat16", fp32_optimizer_states=True)),
        "torch fused": ("torch", fused),
        "fastopt, float32": ("numpy", plain),
    },
    "bf16 weights, split": {
        "fastopt": ("torch", lambda case: ours(case, "bfloat16", split=True, state_dtype="float32")),
        "DeepSpeed": ("deepspeed", lambda case: deepspeed(case, "bfloat16", fp32_optimizer_states=True)),
        "torch fused": ("torch", fused),
        "fastopt, float32": ("numpy", plain),
    },
    "all bf16, stochastic": {
        "fastopt": ("torch", lambda case: ours(case, "bfloat16", rounding="stochastic")),
        "torch fused": ("torch", fused),
        "DeepSpeed": ("deepspeed", lambda case: deepspeed(case, "bfloat16", fp32_optimizer_states=False)),
        "optimi, Kahan": ("optimi", optimi),
        "fastopt, float32": ("numpy", plain),
    },
    "bf16 moments": {
        "fastopt": ("torch", lambda case: ours(case, state_dtype="bfloat16")),
        "fastopt, float32": ("numpy", plain),
    },
    "8-bit moments": {
        "fastopt": ("torch", lambda case: ours(case, state_dtype="8bit")),
        "bitsandbytes": ("bitsandbytes", bitsandbytes),
        "torchao": ("torchao", torchao),
        "fastopt, float32": ("numpy", plain),
    },
    "8-bit moments, split": {
        "fastopt": ("torch", lambda case: ours(case, "bfloat16", split=True, state_dtype="8bit")),
        "fastopt, float32": ("numpy", plain),
    },
    "8-bit moments, stochastic": {
        "fastopt": ("torch", lambda case: ours(case, "bfloat16", rounding="stochastic", state_dtype="8bit")),
        "fastopt, float32": ("numpy", plain),
    },
}  # fmt: skip


@pytest.mark.skipif(torch is None, reason="PyTorch brings bfloat16")
@pytest.mark.parametrize("shape", STORED)
@pytest.mark.parametrize("combination", COMBINATIONS)
def test_storage(race, threads, combination, shape):
    case = Stored("AdamW", SHAPES[shape], "float32", threads)
    torch.set_num_threads(threads)
    found = {}
    for name, (module, make) in COMBINATIONS[combination].items():
        if importlib.util.find_spec(module):
            found[name] = (None, make(case))
    race(case, found, suite="low precision", shape=f"{combination}; {shape}")
    gc.collect()          # the largest hold gigabytes


def bytes_of_state(state):
    """The bytes of state, counts apart, for each element of a parameter."""
    return sum(x.nbytes for name, x in state.items() if name != "step")


if __name__ == "__main__":        # what each keeps, in bytes of state for each element of a parameter
    import fastopt.torch

    for name, dtype, options in (
        ("float32", "float32", {}), ("bf16 moments", "float32", {"state_dtype": "bfloat16"}),
        ("8-bit moments", "float32", {"state_dtype": "8bit"}),
        ("split", "bfloat16", {"split": True, "state_dtype": "float32"}),
        ("split, 8-bit moments", "bfloat16", {"split": True, "state_dtype": "8bit"}),
        ("all bf16", "bfloat16", {}),
    ):  # fmt: skip
        case = Stored("AdamW", ((1_000_000,),), "float32", 1)
        params = tensors(case, dtype)
        opt = adamw(fastopt.torch.AdamW, params, case, **options)
        opt.step()
        print(f"{name:<24}{bytes_of_state(opt.state[params[0]]) / np.prod(case.shapes[0]):8.3f}")
