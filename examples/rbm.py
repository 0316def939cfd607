"""A restricted Boltzmann machine learns the handwritten digits by contrastive divergence.

    python rbm.py --out pictures                       # CD-1
    python rbm.py --k 5 --persistent --out pictures    # five Gibbs steps, of chains that go on from batch to batch

An energy-based model: E(v, h) = -v'Wh - b'v - a'h, p(v, h) = exp(-E) / Z, with binary pixels v and hidden units h, and
no connection within a layer. The gradient of -log p(v) is E[dE/dtheta | v] - E[dE/dtheta]: what the energy does where
the data are, minus what it does where the model is. The first term is exact; the second is sampled by k Gibbs steps,
from the data (contrastive divergence, Hinton, 2002) or from chains that are kept (persistent: Tieleman, 2008).
"""

from __future__ import annotations

import sys

import numpy as np
from _common import figure, parser, tidy, verdict, whole
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import fastopt
from fastopt.schedules import Linear

HIDDEN = 64
BATCH = 20


# --- The model


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def hidden_given(params, v):
    """p(h = 1 | v), which the missing connections make independent for each unit."""
    return sigmoid(v @ params["W"] + params["a"])


def visible_given(params, h):
    """p(v = 1 | h)."""
    return sigmoid(h @ params["W"].T + params["b"])


def sample(p, rng):
    return (rng.random(p.shape) < p).astype(p.dtype)


def free_energy(params, v):
    """F(v) = -log sum_h exp(-E(v, h)): the lower, the more probable; p(v) = exp(-F(v)) / Z."""
    return -v @ params["b"] - np.logaddexp(0, v @ params["W"] + params["a"]).sum(axis=1)


def energy_gradient(params, v):
    """E[dE/dtheta | v], the mean over the rows of v; dE/dW = -vh', dE/db = -v, dE/da = -h."""
    h = hidden_given(params, v)
    return {"W": -v.T @ h / len(v), "b": -v.mean(axis=0), "a": -h.mean(axis=0)}


def gibbs(params, v, k, rng):
    """The chains v after k steps: hidden units given the visible, visible given the hidden."""
    for _ in range(k):
        h = sample(hidden_given(params, v), rng)
        v = sample(visible_given(params, h), rng)
    return v


def reconstruction(params, v):
    """What the hidden units know of v."""
    return visible_given(params, hidden_given(params, v))


def reconstruction_error(params, v):
    return np.mean((v - reconstruction(params, v)) ** 2)


# --- The training


def train(params, v, args, rng, after_epoch):
    steps = args.epochs * -(-len(v) // BATCH)
    optimizer = fastopt.Adam(params, lr=Linear(5e-3, 0.0, steps))  # to zero, since the samples are noisy
    chains = v[rng.choice(len(v), BATCH)]
    for epoch in tqdm(range(1, args.epochs + 1), unit="epoch", leave=False, disable=None):
        for index in fastopt.minibatches(len(v), BATCH, rng):
            batch = v[index]
            chains = gibbs(params, chains if args.persistent else batch, args.k, rng)
            data, model = energy_gradient(params, batch), energy_gradient(params, chains)
            optimizer.step({name: data[name] - model[name] for name in params})
        after_epoch(epoch)


# --- The report


def tiles(axes, images, columns, title, **options):
    """The images side by side, with a gap between them."""
    height = width = 8
    rows = -(-len(images) // columns)
    canvas = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1), np.nan)
    for i, image in enumerate(images):
        top, left = i // columns * (height + 1), i % columns * (width + 1)
        canvas[top : top + height, left : left + width] = image.reshape(height, width)
    shown = axes.imshow(canvas, **options)
    tidy(axes, title)
    axes.set_axis_off()
    return shown


def draw(path, params, unseen, dreams):
    fig = figure(f"{HIDDEN} hidden units learn parts of digits, and rebuild digits from them", height=4.0)
    left, right = fig.subfigures(1, 2, width_ratios=[1, 1.06])
    axes = left.subplots()
    largest = np.quantile(np.abs(params["W"]), 0.995)
    shown = tiles(axes, params["W"].T, 8, "weights of each hidden unit", cmap="PuOr", vmin=-largest, vmax=largest)
    left.colorbar(shown, ax=axes, shrink=0.5, label="switches a pixel off / on")
    grey = {"cmap": "gray_r", "vmin": 0, "vmax": 1}
    rows = {
        "held-out digits": unseen,
        "rebuilt from their hidden units": reconstruction(params, unseen),
        "sampled from the model": dreams,
    }
    for axes, (title, images) in zip(right.subplots(3, 1), rows.items(), strict=True):
        tiles(axes, images, 10, title, **grey)
    fig.savefig(path)


def main() -> int:
    p = parser(__doc__)
    p.add_argument("--k", type=whole(1, 1000), default=1, metavar="N", help="Gibbs steps (%(default)s)")
    p.add_argument("--persistent", action="store_true", help="keep the chains from batch to batch")
    p.add_argument("--epochs", type=whole(1, 10_000), default=60, metavar="N", help="passes (%(default)s)")
    args = p.parse_args()
    rng = np.random.default_rng(args.seed)

    digits, labels = load_digits(return_X_y=True)
    digits = (digits > 7).astype(np.float32)  # 17 levels of grey to ink or no ink
    v, unseen = train_test_split(digits, test_size=0.2, random_state=args.seed, stratify=labels)
    # Two kinds of noise: fair coins; and held-out pixels shuffled over the images, each as often black as before.
    coins = sample(np.full_like(unseen, 0.5), rng)
    shuffled = rng.permuted(unseen, axis=0)

    mean = v.mean(axis=0).clip(0.01, 0.99)
    params = {
        "W": rng.normal(0, 0.1, (v.shape[1], HIDDEN)).astype(np.float32),
        "b": np.log(mean / (1 - mean)),  # so that the untrained model has each pixel black as often as the data
        "a": np.zeros(HIDDEN, np.float32),
    }
    first_error = reconstruction_error(params, unseen)
    method = f"{'persistent ' * args.persistent}CD-{args.k}"
    print(f"{method}: {len(v)} digits of 64 pixels, {len(unseen)} held out, {HIDDEN} hidden units\n")
    print(f"{'':<8}{'reconstruction':>16}    mean free energy of")
    print(f"{'epoch':<8}{'error':>16}{'learned':>11}{'held out':>11}{'shuffled':>11}{'coins':>11}")

    def report(epoch):
        if epoch in (0, 1, 3, 10, 30, 100, args.epochs):
            energies = [free_energy(params, x).mean() for x in (v, unseen, shuffled, coins)]
            line = f"{epoch:<8}{reconstruction_error(params, unseen):>16.4f}"
            tqdm.write(line + "".join(f"{energy:>11.1f}" for energy in energies), file=sys.stdout)

    report(0)
    first_gap = free_energy(params, coins).mean() - free_energy(params, unseen).mean()
    train(params, v, args, rng, report)

    unseen_as, shuffled_as, coins_as = (free_energy(params, x) for x in (unseen, shuffled, coins))
    last_gap = coins_as.mean() - unseen_as.mean()
    below = np.mean(unseen_as[:, None] < shuffled_as)
    last_error = reconstruction_error(params, unseen)
    picture = args.out / "rbm.png"
    dreams = gibbs(params, sample(np.full((20, 64), 0.5), rng), 1000, rng)
    draw(picture, params, unseen[:20], visible_given(params, hidden_given(params, dreams)))
    claims = {
        f"reconstruction error of held-out digits falls: {first_error:.3f} to {last_error:.3f}, by half at least": (
            last_error < first_error / 2
        ),
        f"held-out digits get further below images of fair coins: by {first_gap:.0f} to {last_gap:.0f} on average": (
            last_gap > 1.5 * first_gap
        ),
        f"a held-out digit is below one of shuffled pixels in over 90 % of pairs: {below:.1%}": below > 0.9,
    }
    return verdict(claims, picture)


if __name__ == "__main__":
    sys.exit(main())
