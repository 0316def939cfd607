"""Training stopped in the middle and continued in a new process: the same weights, to the last bit.

    python resume.py --out checkpoints

`opt.save(path)` writes all that an optimizer knows, its state, counts, hyperparameters and schedules, into one file
that is replaced as a whole or not at all; `opt.load(path)` continues from it. The parameters are the caller's, who has
to save them, too; and whatever draws the batches must go on where it stood: here the shuffle of an epoch follows from
the seed and the epoch alone. A third run, with the saved parameters but a new optimizer, shows what is lost without.
"""

from __future__ import annotations

import subprocess
import sys

import _digits
import numpy as np
from _common import parser, verdict

import fastopt
from fastopt.schedules import Cosine, Warmup

EPOCHS, BATCH = 10, 32
STOP = 4  # epochs before the interruption


def new_optimizer(params, steps):
    return fastopt.AdamW(params, lr=Warmup(50, Cosine(3e-3, steps)), weight_decay=0.01)


def train(params, optimizer, data, seed, epochs):
    for epoch in epochs:
        for index in fastopt.minibatches(len(data[1]), BATCH, np.random.default_rng([seed, epoch])):
            _, grads = _digits.loss_and_gradients(params, (data[0][index], data[1][index]))
            optimizer.step(grads)


def save_params(path, params):
    np.savez(path, **params)


def load_params(path):
    with np.load(path) as file:
        return {name: file[name] for name in file}


def differing_bytes(params, others):
    """How many bytes differ between two dicts of arrays, of how many."""
    a, b = (b"".join(p.tobytes() for p in each.values()) for each in (params, others))
    return np.count_nonzero(np.frombuffer(a, np.uint8) != np.frombuffer(b, np.uint8)), len(a)


def continue_here(args, data, steps):
    """What the new process does: it knows the files and the seed, nothing else."""
    params = load_params(args.out / "resume_half.npz")
    optimizer = new_optimizer(params, steps)
    optimizer.load(args.out / "resume_half.safetensors")
    train(params, optimizer, data, args.seed, range(STOP, EPOCHS))
    save_params(args.out / "resume_continued.npz", params)
    print(f"process 2: loaded step {STOP * steps // EPOCHS}, trained to step {optimizer.steps}, saved the parameters")
    return 0


def main() -> int:
    p = parser(__doc__)
    p.add_argument("--continue", action="store_true", dest="go_on", help="be the second process")
    args = p.parse_args()
    data, unseen = _digits.load(args.seed)
    steps = EPOCHS * -(-len(data[1]) // BATCH)
    if args.go_on:
        return continue_here(args, data, steps)

    start = _digits.initial(np.random.default_rng(args.seed))
    unbroken = {name: p.copy() for name, p in start.items()}
    train(unbroken, new_optimizer(unbroken, steps), data, args.seed, range(EPOCHS))
    print(f"process 1: trained {steps} steps without a break")

    half = {name: p.copy() for name, p in start.items()}
    optimizer = new_optimizer(half, steps)
    train(half, optimizer, data, args.seed, range(STOP))
    save_params(args.out / "resume_half.npz", half)
    optimizer.save(args.out / "resume_half.safetensors")
    print(f"process 1: from the same start, stopped at step {optimizer.steps} and saved", flush=True)

    command = [sys.executable, __file__, "--continue", "--out", str(args.out), "--seed", str(args.seed)]
    subprocess.run(command, check=True)
    continued = load_params(args.out / "resume_continued.npz")

    stateless = load_params(args.out / "resume_half.npz")
    train(stateless, new_optimizer(stateless, steps), data, args.seed, range(STOP, EPOCHS))
    print("process 1: the same from the saved parameters alone, with a new optimizer\n")

    print(f"{'trained':<30}{'bytes that differ':>20}{'held out right':>16}")
    different = {}
    runs = {"without a break": unbroken, "in two processes": continued, "with a new optimizer": stateless}
    for name, params in runs.items():
        different[name], total = differing_bytes(params, unbroken)
        print(f"{name:<30}{f'{different[name]:,} of {total:,}':>20}{_digits.accuracy(params, unseen):>16.1%}")
    claims = {
        "stopped, saved and continued in a new process: every byte is the same": different["in two processes"] == 0,
        "without the optimizer's state it is not the same": different["with a new optimizer"] > 0,
        "over 90 % of the held-out digits are right": _digits.accuracy(continued, unseen) > 0.9,
    }
    return verdict(claims, args.out / "resume_half.safetensors")


if __name__ == "__main__":
    sys.exit(main())
