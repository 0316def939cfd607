"""bfloat16 past one process: FSDP2 with offload, ZeroRedundancyOptimizer and DistributedDataParallel.

Each job is compared with what a single process makes of it: to the bit, but where shards have random numbers of their
own, and where the norm is summed in another order.
"""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch.optim", reason="PyTorch is not installed")
import torch
from ranked import Run

if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
    pytest.skip("this PyTorch has no torch.distributed with gloo", allow_module_level=True)

RANKS = Path(__file__).with_name("storage_ranks.py")
MODES = ("default", "split", "clipped", "stochastic")
JOBS = [*(f"{kind} {mode}" for kind in ("fsdp", "ddp") for mode in MODES), "zero default", "zero split", "fsdp SGD",
        "packed"]  # fmt: skip
worlds = pytest.mark.parametrize("world", (2, 3))
BF16, F32, I16 = "torch.bfloat16", "torch.float32", "torch.int16"
KINDS = {
    "default": {("exp_avg", BF16), ("exp_avg_sq", BF16)}, "stochastic": {("exp_avg", BF16), ("exp_avg_sq", BF16)},
    "split": {("exp_avg", F32), ("exp_avg_sq", F32), ("low", I16)},
    "clipped": {("exp_avg", BF16), ("exp_avg_sq", BF16), ("ema", F32)},
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[int, Run]:
    """By the number of ranks; the two go first, for the others load their checkpoints."""
    folder = tmp_path_factory.mktemp("ranks")
    return {world: Run(RANKS, folder / f"storage-{world}", world, JOBS) for world in (2, 3, 1)}


def same_path(got: list[dict], want: list[dict], exact: bool = True) -> None:
    assert len(got) == len(want) > 0
    for a, b in zip(got, want, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key].dtype == torch.bfloat16
            assert torch.equal(a[key], b[key]) or not exact, key
            torch.testing.assert_close(a[key], b[key], rtol=5e-2, atol=5e-2)
    assert any(not torch.equal(want[0][key], want[-1][key]) for key in want[0]), "nothing was stepped"


@pytest.mark.parametrize("world", (1, 2, 3))
def test_all_ranks_end_without_an_error(runs, world):
    assert runs[world].ended_well, runs[world].said


@worlds
@pytest.mark.parametrize("job", [job for job in JOBS if job != "packed"])
def test_ranks_step_as_one_process_does(runs, world, job):
    want = runs[1].of(job)[0]
    exact = job not in ("fsdp stochastic", "fsdp clipped", "ddp clipped")
    for result in runs[world].of(job):
        same_path(result["params"], want["params"], exact)
        if "norm" in result and want["norm"] is not None:
            assert result["norm"] == pytest.approx(want["norm"], rel=1e-12)


@worlds
@pytest.mark.parametrize("mode", MODES)
def test_state_is_in_shards_of_its_own_type(runs, world, mode):
    for result in runs[world].of(f"fsdp {mode}"):
        assert result["kinds"] == {(name, "DTensor", dtype) for name, dtype in KINDS[mode]}


@pytest.mark.parametrize("world", (1, 3))
@pytest.mark.parametrize("mode", MODES)
def test_a_distributed_checkpoint_is_read_by_other_numbers_of_ranks(runs, world, mode):
    for result in runs[world].of(f"fsdp {mode}"):
        assert result["resumed kinds"] == result["kinds"]
        same_path(result["resumed"], result["params"][-len(result["resumed"]) :], mode in ("default", "split"))


@pytest.mark.parametrize("world", (1, 2, 3))
@pytest.mark.parametrize("mode", ["default", "split"])
def test_a_checkpoint_of_zero_goes_on_to_the_bit(runs, world, mode):
    for result in runs[world].of(f"zero {mode}"):
        assert {(name, dtype) for name, _, dtype in result["kinds"]} == KINDS[mode]
        same_path(result["resumed"], result["params"][-len(result["resumed"]) :])


@worlds
def test_state_in_8_bits_of_shards_is_refused(runs, world):
    for result in runs[world].of("packed"):
        assert "state_dtype='8bit': parameter 5 is a DTensor in shards" in result["text"] and result["kept"]
