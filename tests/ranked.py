"""Tests past one process: a script that some processes of this machine run, the ranks, and what they returned."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

LIMIT = 120
"""Seconds after which ranks are ended; they take about ten."""


class Run:
    """What all ranks of one group returned, and what they said."""

    def __init__(self, script: Path, folder: Path, world: int, jobs: list[str], limit: float = LIMIT) -> None:
        folder.mkdir()
        logs = [folder / f"{rank}.log" for rank in range(world)]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        processes = []
        try:
            for rank, log in enumerate(logs):
                with log.open("wb") as out:
                    command = [sys.executable, str(script), str(folder), str(rank), str(world), *jobs]
                    processes.append(subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=env))
            until = time.monotonic() + limit
            codes = [ended(process, until) for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()
        self.said = "\n".join(f"rank {rank}: {told(code)}\n{log.read_text(errors='replace')[-3000:]}"
                              for rank, (code, log) in enumerate(zip(codes, logs, strict=True)))  # fmt: skip
        self.ended_well = codes == [0] * world
        self.folder, self.world = folder, world

    def of(self, job: str) -> list[dict]:
        """What each rank returned for a job."""
        files = [self.folder / f"{rank} {job}.pt" for rank in range(self.world)]
        if not all(file.exists() for file in files):
            pytest.fail(f"{job!r} was not done by all ranks:\n{self.said}")
        results = [torch.load(file) for file in files]
        for result in results:
            if "cannot" in result:
                pytest.skip(f"cannot run on this machine: {result['cannot']}")
        return results


def ended(process: subprocess.Popen, until: float) -> int | None:
    """The exit code, None if it has not ended by then."""
    try:
        return process.wait(max(0.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        return None


def told(code: int | None) -> str:
    return "did not end in time" if code is None else f"ended with {code}"


def close(got: dict, want: dict, tol: float) -> None:
    for key in got:
        assert (got[key] - want[key]).abs().le(tol * (want[key].abs() + 1e-3)).all(), key
