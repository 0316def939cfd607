"""Past one process: ZeroRedundancyOptimizer, FSDP2, DistributedDataParallel and DeepSpeed on two and three ranks.

The ranks are processes of this machine that talk over gloo (`ranks.py` is what they run); each job is compared with
what a single process makes of it. Gradients differ from rank to rank, but their means are exact, so bits are compared.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

# Not just "torch": a folder of that name would do for it.
pytest.importorskip("torch.optim", reason="PyTorch is not installed")
import torch
from ranked import Run, close

if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
    pytest.skip("this PyTorch has no torch.distributed with gloo", allow_module_level=True)

RANKS = Path(__file__).with_name("ranks.py")
NAMES = ("AdamW", "SGD", "Adagrad", "NAdam")
FEW = ("AdamW", "SGD")
TORCH_JOBS = [
    *(f"{kind} {name}" for kind in ("zero", "fsdp", "ddp") for name in NAMES),
    *(f"few {name}" for name in FEW), "offload", "offload pinned", "network",
]  # fmt: skip
DEEPSPEED_JOBS = [
    f"deepspeed {case}" for case in ("AdamW 1", "SGD 1", "AdamW 2", "SGD 2", "NAdam 2", "AdamW 2 offload", "adagrad")
]
WORLDS = (2, 3)

worlds = pytest.mark.parametrize("world", WORLDS)
names = pytest.mark.parametrize("name", NAMES)


# --- Running them


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def runs(folder) -> dict[int, Run]:
    """By the number of ranks; the two go first, for the others load their checkpoints."""
    return {world: Run(RANKS, folder / f"torch-{world}", world, TORCH_JOBS) for world in (2, 3, 1)}


@pytest.fixture(scope="module")
def deepspeed_runs(folder) -> dict[int, Run]:
    if importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed")
    jobs = {world: DEEPSPEED_JOBS[:-1] if world == 1 else DEEPSPEED_JOBS for world in (*WORLDS, 1)}
    return {world: Run(RANKS, folder / f"deepspeed-{world}", world, jobs[world]) for world in jobs}


# --- Comparing them


@pytest.fixture
def same(same_bits):
    """`same(what, got, want)`: parameters by name, equal to the bit."""

    def check(what: str, got: dict, want: dict) -> None:
        assert got.keys() == want.keys()
        same_bits(what, [x.numpy() for x in got.values()], [want[key].numpy() for key in got])

    return check


@pytest.fixture
def same_path(same):
    """The same for the parameters after every step; and that there was something to compare."""

    def check(what: str, got: list[dict], want: list[dict]) -> None:
        assert len(got) == len(want) > 0
        for k, (a, b) in enumerate(zip(got, want, strict=True)):
            same(f"{what}, step {k}", a, b)
        assert any((want[0][key] != want[-1][key]).all() for key in want[0]), "nothing was stepped"

    return check


def alone(runs: dict[int, Run], job: str) -> dict:
    return runs[1].of(job)[0]


@pytest.mark.parametrize("world", (1, *WORLDS))
def test_all_ranks_end_without_an_error(runs, world):
    assert runs[world].ended_well, runs[world].said


@pytest.mark.parametrize("kind", ("zero", "fsdp", "ddp"))
@names
def test_the_single_process_that_all_are_compared_with_does_what_pytorch_does(runs, kind, name):
    result = alone(runs, f"{kind} {name}")
    for got, want in zip(result["params"], result["twin"], strict=True):
        close(got, want, 1e-4)


# --- ZeroRedundancyOptimizer


@worlds
@names
def test_zero_redundancy_steps_as_one_process_does(runs, same_path, world, name):
    """Two groups, an edited lr, a parameter without a gradient at one step, a group that joins later."""
    want = alone(runs, f"zero {name}")
    assert want["rates"][:2] == [0.003, 0.02]
    for rank, got in enumerate(runs[world].of(f"zero {name}")):
        same_path(f"{name}, rank {rank} of {world}", got["params"], want["params"])
        assert got["stayed"] and got["rates"] == want["rates"]


@worlds
@names
def test_zero_redundancy_shards_the_state(runs, world, name):
    whole = alone(runs, f"zero {name}")["held"]
    held = [result["held"] for result in runs[world].of(f"zero {name}")]
    assert sum(rank["bytes"] for rank in held) == whole["bytes"] > 0
    assert all(0 < rank["bytes"] < whole["bytes"] for rank in held)
    assert sum(rank["params"] for rank in held) == whole["params"]


@worlds
@names
def test_zero_redundancy_consolidates_to_the_state_dict_of_one_process(runs, same, world, name):
    got, *others = (result["consolidated"] for result in runs[world].of(f"zero {name}"))
    same_state(same, got, alone(runs, f"zero {name}")["consolidated"])
    assert others == [None] * (world - 1)


@worlds
@names
def test_zero_redundancy_goes_on_from_the_checkpoint_of_two_ranks(runs, same, world, name):
    want = alone(runs, f"zero {name}")
    for got in runs[world].of(f"zero {name}"):
        same(f"{name} on {world} ranks", got["resumed"], want["params"][-1])
        assert got["resumed rates"] == want["rates"]


@worlds
@pytest.mark.parametrize("name", FEW)
def test_zero_redundancy_with_more_ranks_than_parameters(runs, same, world, name):
    want, results = alone(runs, f"few {name}"), runs[world].of(f"few {name}")
    assert [result["held"]["params"] for result in results] == [1] + [0] * (world - 1)
    assert [result["held"]["bytes"] for result in results] == [want["held"]["bytes"]] + [0] * (world - 1)
    for got in results:
        same(name, got["params"], want["params"])
    same_state(same, results[0]["consolidated"], want["consolidated"])


def same_state(same, got: dict, want: dict) -> None:
    """State dicts are equal: state to the bit, groups by value, except that their parameters may be numbered anew."""
    assert got["state"].keys() == want["state"].keys()
    for key, entry in want["state"].items():
        assert entry and list(got["state"][key]) == list(entry)
        same(f"state of parameter {key}", tensors(got["state"][key]), tensors(entry))
    assert got["param_groups"] == want["param_groups"]


def tensors(entry: dict) -> dict:
    return {name: torch.as_tensor(value) for name, value in entry.items() if value is not None}


# --- FSDP2


@worlds
@names
def test_fsdp_steps_as_one_process_does(runs, same_path, world, name):
    want = alone(runs, f"fsdp {name}")
    for rank, got in enumerate(runs[world].of(f"fsdp {name}")):
        same_path(f"{name}, rank {rank} of {world}", got["params"], want["params"])
        assert got["stayed"], "the shards were stepped elsewhere than in their own memory"


@worlds
@names
def test_fsdp_shards_are_uneven_and_empty_and_so_is_the_state(runs, world, name):
    want, results = alone(runs, f"fsdp {name}"), runs[world].of(f"fsdp {name}")
    uneven = empty = 0
    for key, shape in want["shards"].items():
        rows = [result["shards"][key][0] for result in results]
        assert sum(rows) == shape[0]
        uneven, empty = uneven + (len(set(rows)) > 1 and min(rows) > 0), empty + (0 in rows)
    assert uneven and empty
    # The state of a shard is its size; a count is on every rank.
    counts = 0 if name == "SGD" else 4 * len(want["shards"]) * (2 if name == "NAdam" else 1)
    assert sum(result["bytes"] - counts for result in results) == want["bytes"] - counts
    assert all(result["bytes"] < want["bytes"] for result in results)


@pytest.mark.parametrize("world", (3, 1))
@names
def test_a_distributed_checkpoint_of_two_ranks_goes_on(runs, same_path, world, name):
    """`torch.distributed.checkpoint`, loaded into a new model on three ranks and in one process."""
    want = alone(runs, f"fsdp {name}")
    for got in runs[world].of(f"fsdp {name}"):
        rest = len(got["resumed"])
        same_path(f"{name} on {world} ranks", got["resumed"], want["params"][-rest:])
        assert got["resumed rates"] == [0.003, 0.02]


@worlds
@pytest.mark.parametrize("job", ("offload", "offload pinned"))
def test_fsdp_with_cpu_offload_steps_as_one_process_does(runs, same_path, world, job):
    """Pinned memory, the policy's default, takes an accelerator; pageable memory does not."""
    results = runs[world].of(job)
    want = alone(runs, job)["params"]
    for got in results:
        same_path(f"rank of {world}", got["params"], want)


# --- DistributedDataParallel


@worlds
@names
def test_ddp_steps_as_one_process_does(runs, same_path, world, name):
    want = alone(runs, f"ddp {name}")["params"]
    for rank, got in enumerate(runs[world].of(f"ddp {name}")):
        same_path(f"{name}, rank {rank} of {world}", got["params"], want)


@worlds
def test_a_network_on_shares_of_a_batch_trains_as_on_the_whole(runs, same, world):
    """A mean of means rounds otherwise than one mean: close to the single process; between the ranks, the same bits."""
    first, *others = (result["params"] for result in runs[world].of("network"))
    close(first, alone(runs, "network")["params"], 1e-3)
    for other in others:
        same(f"rank of {world}", other, first)


# --- DeepSpeed


@worlds
@pytest.mark.parametrize("job", DEEPSPEED_JOBS[:-1])
def test_deepspeed_steps_as_one_process_does(deepspeed_runs, same_path, world, job):
    """ZeRO stages 1 and 2, whose engine shows the optimizer one group at a time, a flat part of all its parameters."""
    want = alone(deepspeed_runs, job)["params"]
    for rank, got in enumerate(deepspeed_runs[world].of(job)):
        assert got["given"]
        same_path(f"{job}, rank {rank} of {world}", got["params"], want)
        rest = len(got["resumed"])
        same_path(f"{job}, rank {rank} of {world}, from a checkpoint", got["resumed"], want[-rest:])


@worlds
@pytest.mark.parametrize("job", DEEPSPEED_JOBS[:-1])
def test_deepspeed_shards_the_state(deepspeed_runs, world, job):
    whole = sum(p.numel() for p in alone(deepspeed_runs, job)["params"][0].values())
    slots = 1 if "SGD" in job else 2
    results = deepspeed_runs[world].of(job)
    for got in results:
        assert [len(group) for group in got["groups"]] == [1, 1]
        assert sum(got["state"]) == slots * sum(map(sum, got["groups"])) < slots * whole
    # Each of the two groups is filled up to an even number of elements a rank.
    assert whole <= sum(sum(got["state"]) for got in results) / slots < whole + 2 * 2 * world


@worlds
def test_deepspeed_puts_torchs_own_class_in_the_place_of_any_adagrad(deepspeed_runs, world):
    """Which docs/scaling.md says; when this fails, DeepSpeed leaves it alone, and so should the page."""
    assert {got["class"] for got in deepspeed_runs[world].of("deepspeed adagrad")} == {"torch.optim.adagrad.Adagrad"}
