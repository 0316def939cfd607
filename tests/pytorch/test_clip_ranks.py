"""`clip_norm` past one process: the norm of two, three and four ranks is that of one, and never one of a part.

`clip_ranks.py` is what the ranks run.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest

pytest.importorskip("torch.optim", reason="PyTorch is not installed")
import torch
from ranked import Run, close

from fastopt import reference
from fastopt._torch_ranks import is_near

if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
    pytest.skip("this PyTorch has no torch.distributed with gloo", allow_module_level=True)

WORLDS = (2, 3)
TRAINED = ("fsdp AdamW", "fsdp SGD inf", "zero AdamW", "few SGD", "ddp AdamW", "16 bits")
JOBS = {
    1: [*TRAINED],
    2: [*TRAINED, "refused", "failing", "fsdp1", "deepspeed", "dtensors", "each", "late", "skipping",
        "unlike placements", "ended", "around"],
    3: [*TRAINED, "failing", "dtensors"], 4: ["dtensors", "stages"],
}  # fmt: skip
worlds = pytest.mark.parametrize("world", WORLDS)
LIMITS = (5.0, 5.0, 1e9, 0.25)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[int, Run]:
    folder = tmp_path_factory.mktemp("ranks")
    script = Path(__file__).with_name("clip_ranks.py")
    return {world: Run(script, folder / str(world), world, jobs) for world, jobs in JOBS.items()}


@pytest.mark.parametrize("world", JOBS)
def test_all_ranks_end_without_an_error(runs, world):
    assert runs[world].ended_well, runs[world].said


@worlds
@pytest.mark.parametrize("job", TRAINED)
def test_the_norm_and_the_steps_are_those_of_one_process(runs, world, job):
    (want,) = runs[1].of(job)
    first, *others = runs[world].of(job)
    assert any(reference.clip_factor("torch", n, limit) < 1 for n, limit in zip(want["norms"], LIMITS, strict=True))
    coarse = job == "16 bits"  # gradients are averaged in 16 bits
    assert first["norms"] == pytest.approx(want["norms"], rel=1e-3 if coarse else 1e-12)
    for got, wanted in zip(first["params"], want["params"], strict=True):
        if not coarse:
            close(got, wanted, 1e-12)
    for other in others:
        assert other["norms"] == first["norms"], "all ranks have the same norm, to the bit"
        for got, wanted in zip(other["params"], first["params"], strict=True):
            assert all(torch.equal(got[name], wanted[name]) for name in got)


@worlds
def test_ddp_exchanges_nothing_and_goes_the_quick_way(runs, world):
    assert [result["exchanges"] for result in runs[world].of("ddp AdamW")] == [0] * world


@worlds
def test_zero_redundancy_keeps_the_options_out_of_its_state(runs, world):
    for job in ("zero AdamW", "few SGD"):
        for result in runs[world].of(job):
            assert not {"clip_norm", "norm_type", "clip_group"} & {*result["keys"]}
    assert [result["held"] for result in runs[world].of("few SGD")] == [1] + [0] * (world - 1)


def test_zero_redundancy_without_its_group_is_refused(runs):
    for result in runs[2].of("refused"):
        missing, small, *steps = result["texts"]
        assert "all of the ZeroRedundancyOptimizer's" in small and len(steps) == 3
        assert all("clip_norm needs clip_group here" in text for text in (missing, *steps))


@worlds
def test_a_step_that_fails_on_one_rank_is_taken_by_none(runs, world):
    """And one that a rank skips; the ranks' settings are compared, and an error in the exchange leaves all usable."""
    results = runs[world].of("failing")
    norm = math.sqrt(sum((r + 1) ** 3 * (3 + r) for r in range(world)))
    for rank, result in enumerate(results):
        *failed, differ, skipped, broken, interrupted = result["texts"]
        own = ["lr=nan", "gradient of parameter 0 has layout torch.sparse_coo", "has lost its 'momentum'"]
        if rank == world - 1:
            assert all(part in text for part, text in zip(own, failed, strict=True))
        else:
            assert [text.split(",")[0] for text in failed] == [f"RankError: the step failed on rank {world - 1}"] * 3
        assert "RankError: clip_norm, norm_type or grad_scale are not the same on all ranks" in differ
        assert skipped == "" and broken.startswith("ZeroDivisionError") and interrupted == "interrupted"
        assert result["norm"] == result["after"] == pytest.approx(norm, rel=1e-14) and all(result["moved"])


@pytest.mark.parametrize("world", (2, 3, 4))
def test_placements_say_what_is_added_and_what_counts_once(runs, world):
    """Meshes of two dimensions; the job itself compares with one process."""
    results = runs[world].of("dtensors")
    for result in results:
        assert (result["2"], result["inf"]) == (results[0]["2"], results[0]["inf"])
        assert result["partial"] == pytest.approx(world, rel=1e-14)
        partial, both, unlike = result["texts"]
        assert "has the placement P(sum)" in partial or "has the placement Partial(sum)" in partial
        assert "clip_group says that its ranks hold disjoint parameters" in both
        assert "are not the same on all ranks" in unlike


def test_the_norm_of_each_gradient_is_refused_for_shards(runs):
    for result in runs[2].of("each"):
        assert len(result["texts"]) == 18
        for text in result["texts"]:
            assert text.startswith("HyperparameterError: clip_norm_each: ") and "over several ranks" in text
        assert result["whole"] == pytest.approx(1.0, rel=1e-6), "replicas are whole"


def test_after_the_process_group_is_gone_no_step_clips_by_a_local_norm(runs):
    for result in runs[2].of("ended"):
        assert result["kept"] and len(result["texts"]) == 2
        assert all("torch.distributed is not initialized" in text for text in result["texts"])


def test_what_pytorchs_part_cannot_clip_is_told_before_the_step(runs):
    others, last = runs[2].of("late")
    assert others["kept"] and "RankError: the step failed on rank 1" in others["text"]
    assert last["kept"] and "TensorDTypeError: clip_value=1.0: the gradient of parameter 1" in last["text"]


def test_a_step_that_another_rank_skips_zeroes_gradients_too(runs):
    assert [(result["kept"], result["zeroed"]) for result in runs[2].of("skipping")] == [(True, True)] * 2


def test_partial_gradients_are_laid_out_before_the_checks_of_any_rank(runs):
    """Else a rank that fails, or needs a new plan, would exchange other things than the others, and wait for ever."""
    results = runs[2].of("unlike placements")
    for result in results:
        first, failed, last = result["texts"]
        assert first == last == "" and ("lr=nan" in failed or "RankError: the step failed on rank 1" in failed)
        assert result["norms"] == pytest.approx([120**0.5] * 3, rel=1e-14)
        assert result["kept"] == [True] * 3 and result["zeroed"] == [True, False, True]
        values = result["values"]
        assert torch.equal(values[0], values[1]) and not (values[1] == values[2]).any()
        assert all(torch.equal(x, y) for x, y in zip(values, results[0]["values"], strict=True))


def test_replicas_are_near_each_other_whatever_the_rest_is():
    for whole in (2.0, math.inf, math.nan):
        for same in (0.0, 1.0, math.inf, math.nan):
            assert is_near(same, same, whole)
        assert is_near(1.0, 1.0 + 1e-9, whole)
        for a, b in ((1.0, math.inf), (math.inf, 0.0), (math.nan, 1.0), (math.inf, math.nan)):
            assert not is_near(a, b, whole)
    assert not is_near(1.0, 1.1, 2.0)


def test_a_group_of_stages_adds_what_the_meshes_have(runs):
    results = runs[4].of("stages")
    total = math.sqrt(sum({result["stage"]: result["part"] for result in results}.values()))
    assert [result["norm"] for result in results] == [results[0]["norm"]] * 4
    assert results[0]["norm"] == pytest.approx(total, rel=1e-14)


def test_shards_average_and_zero_but_have_no_norm_each(runs):
    for result in runs[2].of("around"):
        assert len(result["texts"]) == 3
        assert "zero_grads=True: ZeroRedundancyOptimizer gives each rank some" in result["refused"]
        assert all("clip_norm_each: parameter 0 is spread over several ranks" in text for text in result["texts"])


def test_shards_of_fsdp1_need_the_group(runs):
    for result in runs[2].of("fsdp1"):
        assert all("FullyShardedDataParallel (FSDP1)" in text for text in result["texts"])
        assert result["norms"] == pytest.approx([math.sqrt(460)] * 2, rel=1e-14)


def test_deepspeed_clips_by_itself(runs):
    for result in runs[2].of("deepspeed"):
        assert 'set "gradient_clipping" in its configuration' in result["text"]
