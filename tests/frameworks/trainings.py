"""One small training for each framework of docs/frameworks.md, around the code that the page shows.

    python tests/frameworks/trainings.py NAME [--count]

A training makes a model and data, runs a block of the page with these under the names that the page uses, and trains.
For each line on standard input, a variant and a number of steps, it trains once from the same beginning, and answers
with a line of JSON: the losses, the seconds of processor time, and with --count the steps of the optimizers. Variants:

    stock        the block with PyTorch's classes in the place of fastopt's
    fused        the same, PyTorch's fused implementation by default
    fastopt      the block as it is
    idle         fastopt, with a step that does nothing
    forgotten    the block without its line `install()`

Only `idle` may follow another, `fastopt`, in one process: `install` comes before the framework is imported, as on the
page.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

os.environ |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

PAGE = Path(__file__).resolve().parents[2] / "docs" / "frameworks.md"
INSTALL = "fastopt.torch.install()"
Block = Callable[..., dict[str, Any]]
"""Runs the code of the page with these names in its namespace, and returns the namespace."""


class Training(NamedTuple):
    """A function that trains, and the block of the page that it runs."""

    run: Callable[..., list[float]]
    section: str
    place: int
    """Which block of the section."""
    stock: str
    """The training whose stock variant this one has to equal."""
    options: dict[str, Any]


TRAININGS: dict[str, Training] = {}


def training(name: str, section: str, place: int = 0, stock: str = "", **options: Any) -> Callable[[Any], Any]:
    """A function as a training. It is called with its block, the number of steps and these options."""

    def register(run: Callable[..., list[float]]) -> Callable[..., list[float]]:
        TRAININGS[name] = Training(run, section, place, stock or name, options)
        return run

    return register


# --- Hugging Face


def tiny_gpt(dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=64, n_positions=16, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config).to(dtype)


def sentences(n: int) -> list[dict[str, torch.Tensor]]:
    """Each counts on from somewhere: the next token is the last one plus 3."""
    rows = (torch.arange(16) * 3 + torch.randint(64, (n, 1))) % 64
    return [{"input_ids": row, "labels": row} for row in rows]


def noted(model: torch.nn.Module) -> list[float]:
    """The losses of a model of Hugging Face's, as it computes them. Trainer logs means."""
    losses: list[float] = []
    model.register_forward_hook(lambda model, given, output: losses.append(output.loss.item()))
    return losses


@training("transformers", "Transformers")
@training("transformers class", "Transformers", 1, stock="transformers")
@training("transformers bf16", "Transformers", dtype=torch.bfloat16)
@training("transformers autocast", "Transformers", autocast=True)
def transformers(block: Block, steps: int, dtype: torch.dtype = torch.float32, autocast: bool = False) -> list[float]:
    from transformers import TrainingArguments

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, learning_rate=1e-3, max_steps=steps, per_device_train_batch_size=8, use_cpu=True, report_to="none",
            save_strategy="no", logging_strategy="no", disable_tqdm=True, bf16=autocast,
        )  # fmt: skip
        model, dataset = tiny_gpt(dtype), sentences(8 * steps)
        losses = noted(model)
        block(model=model, arguments=arguments, dataset=dataset)
    return losses


@training("accelerate", "Accelerate")
def accelerate(block: Block, steps: int) -> list[float]:
    names = block(model=perceptron(), batches=batches_of(steps))
    return loop(names["model"], names["opt"], names["batches"], backward=names["accelerator"].backward)


@training("peft", "PEFT")
def peft(block: Block, steps: int) -> list[float]:
    """Adapters in float32 on a base in bfloat16."""
    names = block(model=tiny_gpt(torch.bfloat16))
    losses = noted(names["model"])
    for rows in torch.utils.data.DataLoader(sentences(8 * steps), batch_size=8):
        names["model"](**rows).loss.backward()
        names["opt"].step()
        names["opt"].zero_grad()
    return losses


# --- Loops around any model


def perceptron() -> torch.nn.Sequential:
    layers = [torch.nn.Linear(4, 32), torch.nn.Tanh(), torch.nn.Linear(32, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1)]
    return torch.nn.Sequential(*layers)


def products(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(n, 4)
    return x, x.prod(dim=1, keepdim=True)


def batches_of(steps: int) -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*products(16 * steps)), batch_size=16)


def loop(model: Any, opt: Any, batches: Any, backward: Any = torch.Tensor.backward) -> list[float]:
    losses = []
    for x, y in batches:
        loss = torch.nn.functional.mse_loss(model(x), y)
        backward(loss)
        opt.step()
        opt.zero_grad()
        losses.append(loss.item())
    return losses


def lightning_module(steps: int) -> type:
    import lightning

    class Model(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = perceptron()
            self.losses: list[float] = []

        def training_step(self, batch: Any, at: int) -> torch.Tensor:
            loss = torch.nn.functional.mse_loss(self.net(batch[0]), batch[1])
            self.losses.append(loss.item())
            return loss

        def train_dataloader(self) -> Any:
            return batches_of(steps)

    return Model


QUIET = {"accelerator": "cpu", "max_epochs": 1, "logger": False, "enable_checkpointing": False,
         "enable_progress_bar": False, "enable_model_summary": False}  # fmt: skip


@training("lightning", "Lightning")
def lightning(block: Block, steps: int) -> list[float]:
    import lightning

    Model = lightning_module(steps)
    Model.configure_optimizers = block()["configure_optimizers"]
    model = Model()
    lightning.Trainer(**QUIET).fit(model)
    return model.losses


@training("lightning cli", "Lightning", 1, stock="lightning")
def lightning_cli(block: Block, steps: int) -> list[float]:
    from lightning.pytorch.cli import LightningCLI

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "optimizer.yaml")
        path.write_text(block()["text"], "utf-8")
        cli = LightningCLI(
            lightning_module(steps), args=["fit", f"--config={path}"], trainer_defaults=QUIET,
            save_config_callback=None, seed_everything_default=0,
        )  # fmt: skip
    return cli.model.losses


@training("skorch", "skorch")
def skorch(block: Block, steps: int) -> list[float]:
    x, y = products(16 * steps)  # ten epochs of batches of 128, on four fifths of them
    return block(Network=perceptron, x=x.numpy(), y=y.numpy())["net"].history[:, "train_loss"]


@training("timm", "timm")
def timm(block: Block, steps: int) -> list[float]:
    names = block()
    losses = []
    for _ in range(steps):
        images, labels = torch.randn(4, 3, 32, 32), torch.randint(4, (4,))
        loss = torch.nn.functional.cross_entropy(names["model"](images + labels[:, None, None, None]), labels)
        loss.backward()
        names["opt"].step()
        names["opt"].zero_grad()
        losses.append(loss.item())
    return losses


# --- Others


@training("stable-baselines3", "Stable-Baselines3")
@training("stable-baselines3 class", "Stable-Baselines3", 1, stock="stable-baselines3")
def stable_baselines3(block: Block, steps: int) -> list[float]:
    """A rollout for eight steps. Few of them: once an agent acts otherwise, by a rounding, all that follows differs."""
    settings = {"n_steps": 128, "n_epochs": 4, "seed": 0, "device": "cpu"}
    model = block(environment="CartPole-v1", settings=settings)["model"]
    losses = []
    for _ in range(steps // 8):
        model.learn(128, reset_num_timesteps=False)
        losses.append(model.logger.name_to_value["train/loss"])
    return losses


@training("opacus", "Opacus")
def opacus(block: Block, steps: int) -> list[float]:
    names = block(model=perceptron(), batches=batches_of(steps))
    return loop(names["model"], names["opt"], names["batches"])


@training("pyro", "Pyro")
def pyro(block: Block, steps: int) -> list[float]:
    import pyro
    from pyro.distributions import Normal
    from pyro.infer.autoguide import AutoNormal

    def model(x: torch.Tensor, y: torch.Tensor) -> None:
        w = pyro.sample("w", Normal(torch.zeros(4), 1.0).to_event(1))
        b = pyro.sample("b", Normal(torch.tensor(0.0), 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("y", Normal(x @ w + b, 1.0), obs=y)

    pyro.clear_param_store()
    x, y = products(64)
    svi = block(model=model, guide=AutoNormal(model))["svi"]
    return [svi.step(x, y[:, 0]) for _ in range(steps)]


# --- The page


def blocks() -> dict[tuple[str, int], tuple[str, str]]:
    """The code of the page: section and place -> language and text."""
    _, *parts = re.split(r"^## (.+)\n", PAGE.read_text("utf-8"), flags=re.M)
    found = {}
    for section, body in zip(parts[::2], parts[1::2], strict=True):
        for place, block in enumerate(re.findall(r"^```(python|yaml)\n(.*?)^```", body, flags=re.M | re.S)):
            found[section, place] = block
    return found


def code_of(one: Training) -> str:
    return blocks()[one.section, one.place][1]


def block_of(one: Training, variant: str) -> Block:
    """What runs the code of a training. PyTorch's own classes have the same names."""
    kind, text = blocks()[one.section, one.place]
    if variant in ("stock", "fused", "forgotten"):
        text = text.replace(INSTALL, "")
    if variant in ("stock", "fused"):
        text = text.replace("fastopt.torch", "torch.optim")

    def run(**names: Any) -> dict[str, Any]:
        if kind == "python":
            exec(compile(text, f"{PAGE.name}: {one.section}", "exec"), names)
        return {**names, "text": text}

    return run


# --- What is counted


class Count:
    """Steps of optimizers, and the tensors that they stepped."""

    def __init__(self) -> None:
        self.steps = self.tensors = 0

    def add(self, tensors: int) -> None:
        self.steps += 1
        self.tensors += tensors


@contextlib.contextmanager
def pytorchs_steps() -> Iterator[Count]:
    """How many steps PyTorch's optimizers make, and with how many gradients."""
    count = Count()

    def stepped(optimizer: torch.optim.Optimizer, *given: Any) -> None:
        count.add(sum(p.grad is not None for group in optimizer.param_groups for p in group["params"]))

    handle = register_optimizer_step_post_hook(stepped)
    try:
        yield count
    finally:
        handle.remove()


@contextlib.contextmanager
def compiled_steps() -> Iterator[Count]:
    """How many steps the compiled engine makes, and over how many tensors."""
    import fastopt.torch

    count, plain = Count(), fastopt.torch.TensorPlan

    class Plan(plain):
        tensors = 0

        def bind(self, group: Any, spec: Any, params: Any, records: Any, names: Any, places: Any) -> None:
            self.tensors += sum(record is not None for record in records)
            super().bind(group, spec, params, records, names, places)

        def step_tensors(self, groups: Any, state: Any, grad_scale: Any = None, check_only: bool = False) -> bool:
            done = super().step_tensors(groups, state, grad_scale, check_only)
            if done and not check_only:
                count.add(self.tensors)
            return done

    fastopt.torch.TensorPlan = Plan
    try:
        yield count
    finally:
        fastopt.torch.TensorPlan = plain


# --- One process


def fused_by_default() -> None:
    for cls in (torch.optim.SGD, torch.optim.Adagrad, torch.optim.Adam, torch.optim.AdamW):
        cls.__init__.__kwdefaults__["fused"] = True


@contextlib.contextmanager
def idle_steps() -> Iterator[None]:
    import fastopt.torch

    step = fastopt.torch._Compiled._take_step
    fastopt.torch._Compiled._take_step = lambda self, scale: None
    try:
        yield
    finally:
        fastopt.torch._Compiled._take_step = step


def torchvision_beside_another_torch() -> None:
    """Let torchvision be imported where its compiled part, which nothing here calls, does not fit this PyTorch.

    PyPI's torchvision is built for PyTorch with CUDA. Beside one for the CPU its operators are not loaded, and then the
    import fails where it describes them; and with it those of transformers, Lightning and timm. Declared they are
    enough for that.
    """
    if find_spec("torchvision") is None:
        return
    try:
        import torchvision
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision  # noqa: F401


def train(name: str, variant: str, steps: int, counted: bool) -> dict[str, Any]:
    one = TRAININGS[name]
    if variant == "fused":
        fused_by_default()
    counter = pytorchs_steps if variant in ("stock", "fused") else compiled_steps
    torch.manual_seed(0)
    with (
        idle_steps() if variant == "idle" else contextlib.nullcontext(),
        counter() if counted else contextlib.nullcontext(Count()) as count,
    ):
        start = time.process_time()
        losses = one.run(block_of(one, variant), steps, **one.options)
        seconds = time.process_time() - start
    return {"losses": losses, "seconds": seconds, "steps": count.steps, "tensors": count.tensors}


def main(name: str, *options: str) -> None:
    torch.set_num_threads(1)
    torchvision_beside_another_torch()
    answers, sys.stdout = sys.stdout, sys.stderr  # frameworks print
    for line in sys.stdin:
        variant, steps = line.split()
        print(json.dumps(train(name, variant, int(steps), "--count" in options)), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
