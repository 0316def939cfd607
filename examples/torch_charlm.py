"""A small character-level GPT learns the texts of this project, with torch.optim and with fastopt.torch.

    python torch_charlm.py --out curves
    python torch_charlm.py --text notes.txt --steps 5000
    python torch_charlm.py --clip 1.0 --ema 0.999 --fused
    python torch_charlm.py --dtype bfloat16 --rounding split --state 8bit

It reads what is at hand: the Markdown files of the checkout, if this is one, the docstrings of the installed package,
and any text files named on the command line. There are a schedule of the learning rate, clipping of the gradient's
norm and two parameter groups, as usual. Changing ``from torch.optim import AdamW`` to ``from fastopt.torch import
AdamW`` is the whole difference between the two runs; see `optimizer_class` in _torch_common.py. With ``--clip`` or
``--ema`` fastopt also clips, averages the weights and zeroes the gradients in its step; for the other run PyTorch's own
functions do. ``--rounding`` and ``--state`` say how fastopt stores bfloat16 weights, and state, in its run.
"""

from __future__ import annotations

import ast
import importlib.util
import math
import sys
from collections import Counter
from pathlib import Path

from _torch_common import Task, decay, main, parser, rate, whole

# What is usual for a model that learns characters on a CPU.
BLOCK, WIDTH, HEADS, LAYERS, BATCH = 64, 128, 4, 4, 12
MAX_NORM = 1.0
PIECE = 2000  # characters; every tenth piece of the text is held out
RARE = 5  # characters seen less often become one and the same


# --- the text


def documents() -> list[str]:
    """The Markdown files of the checkout that this file is in; nothing anywhere else."""
    root = Path(__file__).resolve().parent.parent
    if not ((root / "CONTRIBUTING.md").is_file() and (root / "fastopt").is_dir()):
        return []
    found = [path.relative_to(root) for path in sorted(root.rglob("*.md"))]
    made = ("build", "dist")  # by tools, as is what is hidden
    return [read(root / path) for path in found if path.parts[0] not in made and path.parts[0][0] != "."]


def docstrings() -> list[str]:
    """All docstrings of the installed package, read without importing it; none where it is not installed."""
    spec = importlib.util.find_spec("fastopt")
    found = []
    for folder in (spec and spec.submodule_search_locations) or []:
        for path in sorted(Path(folder).rglob("*.py")):
            for node in ast.walk(ast.parse(read(path))):
                if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (text := ast.get_docstring(node)):
                    found.append(f"{getattr(node, 'name', path.stem)}\n{text}\n\n")
    return found


def read(path: Path) -> str:
    """A text file without what could upset a terminal: line breaks are the only control characters."""
    text = path.read_text(encoding="utf-8", errors="replace").expandtabs(4)
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)


# --- the model


def gpt(vocabulary: int):
    import torch
    from torch import nn
    from torch.nn.functional import scaled_dot_product_attention

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
            self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
            self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

        def forward(self, x):
            q, k, v = (
                part.unflatten(2, (HEADS, -1)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, dim=2)
            )
            seen = scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(seen.transpose(1, 2).flatten(2))
            return x + self.mlp(self.norm2(x))

    class GPT(nn.Module):
        def __init__(self):
            super().__init__()
            self.token, self.position = nn.Embedding(vocabulary, WIDTH), nn.Embedding(BLOCK, WIDTH)
            self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
            self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, vocabulary, bias=False)
            for p in self.parameters():
                if p.ndim == 2:
                    nn.init.normal_(p, std=0.02)

        def forward(self, tokens):
            x = self.token(tokens) + self.position(torch.arange(tokens.shape[1]))
            return self.head(self.norm(self.blocks(x)))

    return GPT()


# --- the task


class CharacterModel(Task):
    """Guess the next character."""

    network = f"A GPT of {LAYERS} layers, {HEADS} heads, width {WIDTH}, seeing {BLOCK} characters"

    def __init__(self, args) -> None:
        sources = [documents(), docstrings(), [read(path) for path in args.text]]
        text = "\n".join(part for source in sources for part in source)
        pieces = [text[at : at + PIECE] for at in range(0, len(text), PIECE)]
        if len(pieces) < 10:
            raise ValueError(f"{len(text):,} characters of text are too few to learn from; add some with --text")

        import torch  # not sooner: it takes a while, which a mistyped path need not

        often = sorted(c for c, count in Counter(text).items() if count >= RARE)
        self.characters = ["\N{REPLACEMENT CHARACTER}", *often]
        number = {c: i for i, c in enumerate(self.characters)}
        held_out = "".join(pieces[9::10])
        del pieces[9::10]
        self.train, self.test = (
            torch.tensor([number.get(c, 0) for c in part]) for part in ("".join(pieces), held_out)
        )
        self.seed, self.characters_in_sample = args.seed, args.sample
        self.steps, self.max_norm, self.ema = args.steps, args.clip or MAX_NORM, args.ema
        self.whole_step = args.clip is not None or args.ema is not None
        if args.rounding is not None and args.dtype != "bfloat16":
            raise ValueError(f"--rounding is about weights in bfloat16; --dtype is {args.dtype}")
        if args.state is not None and args.dtype == "float64":
            raise ValueError("--state is about float32 and bfloat16; --dtype is float64")
        self.stored = {"split": True} if args.rounding == "split" else {}
        if args.rounding in ("nearest", "stochastic"):
            self.stored["rounding"] = args.rounding
        if args.state is not None:
            self.stored["state_dtype"] = args.state
        if args.rounding == "stochastic" or args.state is not None:
            self.stored["seed"] = args.seed
        self.title = (
            f"{len(text):,} characters ({len(self.characters)} different ones) of text: {len(sources[0])} Markdown "
            f"files, {len(sources[1])} docstrings, {len(sources[2])} other files; a tenth is held out."
        )

    def model(self):
        return gpt(len(self.characters))

    def groups(self, model):
        """Weight decay, if the algorithm has it on, is for matrices; not for biases and the scales of norms."""
        parameters = list(model.parameters())
        return [
            {"params": [p for p in parameters if p.ndim >= 2]},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]

    def schedule(self, opt):
        """A warm-up, then half a cosine down to a tenth."""
        from torch.optim.lr_scheduler import LambdaLR

        warm = max(1, self.steps // 20)

        def factor(step: int) -> float:
            done = min(1.0, max(0, step - warm) / max(1, self.steps - warm))
            return min(1.0, (step + 1) / warm) * (0.55 + 0.45 * math.cos(math.pi * done))

        return LambdaLR(opt, factor)

    def batches(self, generator):
        import torch

        while True:
            starts = torch.randint(len(self.train) - BLOCK, (BATCH, 1), generator=generator)
            window = self.train[starts + torch.arange(BLOCK + 1)]
            yield window[:, :-1], window[:, 1:]

    def loss(self, model, batch):
        from torch.nn.functional import cross_entropy

        x, y = batch
        scores = model(x).flatten(0, 1)
        scores = scores.float() if scores.itemsize < 4 else scores  # a loss in bfloat16 has three digits
        return cross_entropy(scores, y.flatten())

    def measure(self, model):
        windows = self.test[: (len(self.test) - 1) // BLOCK * BLOCK + 1]
        loss = self.loss(model, (windows[:-1].reshape(-1, BLOCK), windows[1:].reshape(-1, BLOCK)))
        return "held-out loss", f"{loss.item():.4f}"

    def sample(self, model):
        import torch

        generator = torch.Generator().manual_seed(self.seed)
        tokens = self.train.new_tensor([[self.characters.index("\n")]])
        for _ in range(self.characters_in_sample):
            scores = model(tokens[:, -BLOCK:])[:, -1] / 0.8  # a little more careful than it learned to be
            tokens = torch.cat([tokens, torch.multinomial(scores.softmax(1), 1, generator=generator)], dim=1)
        return "".join(self.characters[i] for i in tokens[0]).strip()


def arguments():
    """The parser of the command line."""
    p = parser("torch_charlm", __doc__.partition("\n")[0], steps=1000)
    p.add_argument("--text", type=Path, action="append", default=[], metavar="PATH",
                   help="a text file to learn as well; may be repeated")  # fmt: skip
    p.add_argument("--clip", type=rate, metavar="X",
                   help=f"clip gradients to this norm ({MAX_NORM}); times all that is around the step")  # fmt: skip
    p.add_argument("--ema", type=decay, metavar="X",
                   help="average the weights with this decay (off); times all that is around the step")  # fmt: skip
    p.add_argument("--rounding", choices=["nearest", "stochastic", "split"],
                   help="of fastopt's bfloat16 weights: to the nearest, by chance, or none, with the lower half of a "
                        "float32 kept beside (as PyTorch: nearest)")  # fmt: skip
    p.add_argument("--state", choices=["float32", "bfloat16", "8bit"],
                   help="how fastopt stores its averages (as the weights)")  # fmt: skip
    p.add_argument("--sample", type=whole(0), default=300, metavar="N",
                   help="characters to generate at the end (%(default)s)")  # fmt: skip
    return p


def run(argv=None) -> int:
    return main(arguments(), CharacterModel, argv)


if __name__ == "__main__":
    sys.exit(run())
