"""Parameter groups: no weight decay on biases, a frozen layer, a learning rate for each layer.

    python parameter_groups.py --out pictures

Fine-tuning and regularization treat the parts of a network differently. In fastopt, as in PyTorch, that is a list of
groups, each a dict of parameters with hyperparameters of its own; what a group leaves out is the optimizer's default.
Here the parameters have names, and the gradients come as a dict of the same names. The same network, from the same
weights, sees the same batches under five arrangements: what is different afterwards is the groups' doing.
"""

from __future__ import annotations

import sys
from functools import partial
from textwrap import fill

import _digits
import numpy as np
from _common import BLUE, ORANGE, figure, parser, tidy, verdict
from tqdm import tqdm

import fastopt
from fastopt.schedules import Join

EPOCHS, BATCH = 12, 32
LR, DECAY = 2e-3, 0.5  # more decay than one would choose, to see it


# --- The arrangements: each makes an optimizer over the same six arrays


def pick(params, which):
    return {name: p for name, p in params.items() if which(name)}


def all_alike(params):
    return fastopt.AdamW(params, lr=LR, weight_decay=DECAY)


def no_decay_on_biases(params):
    weights, biases = pick(params, lambda name: name[0] == "W"), pick(params, lambda name: name[0] == "b")
    return fastopt.AdamW([{"params": weights}, {"params": biases, "weight_decay": 0.0}], lr=LR, weight_decay=DECAY)


def first_layer_frozen(params):
    first, others = pick(params, lambda name: name[1] == "1"), pick(params, lambda name: name[1] != "1")
    return fastopt.AdamW([{"params": first, "lr": 0.0}, {"params": others}], lr=LR, weight_decay=DECAY)


def first_layer_thawed(params, steps):
    """As before, but the frozen layer's learning rate is a schedule: zero, and from half-way on like the others'."""
    optimizer = first_layer_frozen(params)
    optimizer.param_groups[0]["lr"] = Join([0.0, LR], [steps // 2])
    return optimizer


def lr_by_layer(params):
    """The nearer to the input the slower: a tenth, a third, and the whole of the learning rate."""
    factors = {"1": 0.1, "2": 0.3, "3": 1.0}
    groups = [
        {"params": pick(params, lambda name, layer=layer: name[1] == layer), "lr": LR * factor}
        for layer, factor in factors.items()
    ]
    return fastopt.AdamW(groups, weight_decay=DECAY)


# --- Training under one of them


def train(arrange, data, seed, bar):
    """The network's parameters before and after, and what they were half-way."""
    rng = np.random.default_rng(seed)
    params = _digits.initial(rng)
    start = {name: p.copy() for name, p in params.items()}
    optimizer = arrange(params)
    half_way = {}
    for epoch in range(EPOCHS):
        if epoch == EPOCHS // 2:
            half_way = {name: p.copy() for name, p in params.items()}
        for index in fastopt.minibatches(len(data[1]), BATCH, rng):
            _, grads = _digits.loss_and_gradients(params, (data[0][index], data[1][index]))
            optimizer.step(grads)  # by name: the order of the groups does not matter
            bar.update()
    return start, half_way, params


def way(before, after, name):
    """How far a parameter has come: the root mean square of its changes."""
    return np.sqrt(np.mean((after[name] - before[name]) ** 2))


def same_bytes(before, after, names):
    return all(before[name].tobytes() == after[name].tobytes() for name in names)


def length(params, kind):
    """The Euclidean norm of all weights ("W") or of all biases ("b")."""
    return np.sqrt(sum(float(np.sum(p**2)) for name, p in params.items() if name[0] == kind))


# --- The report


def draw(path, runs):
    fig = figure("A frozen layer stays, biases without decay go further, and a smaller lr goes less far", height=3.2)
    for axes, (title, (start, _, end)) in zip(fig.subplots(1, len(runs), sharey=True), runs.items(), strict=True):
        names = list(start)
        colors = [BLUE if name[0] == "W" else ORANGE for name in names]
        axes.bar(names, [way(start, end, name) for name in names], color=colors)
        tidy(axes, fill(title, 11))
    fig.supylabel("root mean square change", fontsize=9)
    fig.supxlabel("blue: weights of layers 1 to 3; orange: their biases", fontsize=9)
    fig.savefig(path)


def main() -> int:
    args = parser(__doc__).parse_args()
    data, unseen = _digits.load(args.seed)
    steps = EPOCHS * -(-len(data[1]) // BATCH)
    arrangements = {
        "all alike": all_alike,
        "no decay on biases": no_decay_on_biases,
        "first layer frozen": first_layer_frozen,
        "first layer thawed": partial(first_layer_thawed, steps=steps),
        "lr by layer": lr_by_layer,
    }
    runs = {}
    with tqdm(total=len(arrangements) * steps, unit="step", leave=False, disable=None) as bar:
        for name, arrange in arrangements.items():
            runs[name] = train(arrange, data, args.seed, bar)

    print(f"AdamW, lr {LR}, weight_decay {DECAY}, {steps} steps. Root mean square change of each array:\n")
    names = "".join(f"{name:>8}" for name in runs["all alike"][0])
    print(f"{'':<20}{names}{'|biases|':>10}{'held out right':>16}")
    for title, (start, _, end) in runs.items():
        ways = "".join(f"{way(start, end, name):>8.3f}" for name in start)
        print(f"{title:<20}{ways}{length(end, 'b'):>10.2f}{_digits.accuracy(end, unseen):>16.1%}")

    (start, _, alike), (*_, free), (_, _, frozen), (_, half_way, thawed), (*_, layered) = runs.values()
    first = ("W1", "b1")
    claims = {
        "biases without decay grow larger, those with it are held back": length(free, "b") > length(alike, "b"),
        "a frozen layer keeps its bytes, the others learn": (
            same_bytes(start, frozen, first) and not same_bytes(start, frozen, ["W2"])
        ),
        "a schedule keeps it frozen until half-way, and then lets it go": (
            same_bytes(start, half_way, first) and not same_bytes(start, thawed, ["W1"])
        ),
        "with a tenth of the learning rate the first layer goes less than a third of the way": (
            way(start, layered, "W1") < way(start, alike, "W1") / 3
        ),
        "all five learn: over 85 % of the held-out digits are right": all(
            _digits.accuracy(end, unseen) > 0.85 for *_, end in runs.values()
        ),
    }
    picture = args.out / "parameter_groups.png"
    draw(picture, runs)
    return verdict(claims, picture)


if __name__ == "__main__":
    sys.exit(main())
