"""A small convolutional network learns scikit-learn's handwritten digits, with torch.optim and with fastopt.torch.

    python torch_digits.py --out curves

The training is an ordinary one. Changing ``from torch.optim import AdamW`` to ``from fastopt.torch import AdamW`` is
the whole difference between the two runs; see `optimizer_class` in _torch_common.py.
"""

from __future__ import annotations

import math
import sys

from _torch_common import Task, main, parser, whole

HELD_OUT = 0.2


class Digits(Task):
    """1,797 images of 8 by 8 pixels in 10 classes; a fifth of them is held out."""

    network = "A network of two convolutions and two linear layers"

    def __init__(self, args) -> None:
        import torch
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        images, labels = load_digits(return_X_y=True)
        parts = train_test_split(images, labels, test_size=HELD_OUT, random_state=args.seed % 2**32, stratify=labels)
        dtype = getattr(torch, args.dtype)
        x_train, x_test = (torch.tensor(x / 16, dtype=dtype).reshape(-1, 1, 8, 8) for x in parts[:2])
        y_train, y_test = (torch.tensor(y) for y in parts[2:])
        self.train, self.test = (x_train, y_train), (x_test, y_test)
        self.batch_size = args.batch_size
        self.steps = args.steps or args.epochs * math.ceil(len(y_train) / args.batch_size)
        self.title = f"Handwritten digits, 8x8 pixels: {len(y_train)} training, {len(y_test)} test images."

    def model(self):
        from torch import nn

        return nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(),
            nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(64 * 4 * 4, 128), nn.ReLU(),
            nn.Linear(128, 10),
        )  # fmt: skip

    def batches(self, generator):
        import torch

        x, y = self.train
        while True:
            for chosen in torch.randperm(len(y), generator=generator).split(self.batch_size):
                yield x[chosen], y[chosen]

    def loss(self, model, batch):
        from torch.nn.functional import cross_entropy

        x, y = batch
        return cross_entropy(model(x), y)

    def measure(self, model):
        x, y = self.test
        return "test accuracy", f"{(model(x).argmax(dim=1) == y).double().mean().item():.1%}"


def run(argv=None) -> int:
    p = parser("torch_digits", __doc__.partition("\n")[0], steps_help="optimizer steps, instead of epochs")
    p.add_argument("--epochs", type=whole(1), default=15, metavar="N", help="passes through the data (%(default)s)")
    p.add_argument("--batch-size", type=whole(1), default=64, metavar="N", help="images in a step (%(default)s)")
    return main(p, Digits, argv)


if __name__ == "__main__":
    sys.exit(run())
