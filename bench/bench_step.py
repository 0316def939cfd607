"""One optimizer step: fastopt through its class, beside every library that is installed, and beside a roofline.

``make bench`` runs it, with one thread and with all; ``make bench ARGS="-m ''"`` runs every combination.
"""

import gc
import itertools
import math

import libraries
import numpy as np
import pytest
from libraries import THREADS

import fastopt


def resnet50():
    """The 161 arrays of a ResNet-50 with 1,000 classes."""
    shapes, width = [(64, 3, 7, 7), (64,), (64,)], 64
    for planes, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            convolutions = [(planes, width, 1, 1), (planes, planes, 3, 3), (4 * planes, planes, 1, 1)]
            if block == 0:
                convolutions.append((4 * planes, width, 1, 1))      # the way around the block
            for shape in convolutions:
                shapes += [shape, shape[:1], shape[:1]]
            width = 4 * planes
    return (*shapes, (1000, width), (1000,))


def gpt2_small():
    """The 148 arrays of a GPT-2 with 12 layers of width 768."""
    d = 768
    layer = [(d,), (d,), (d, 3 * d), (3 * d,), (d, d), (d,), (d,), (d,), (d, 4 * d), (4 * d,), (4 * d, d), (d,)]
    return ((50257, d), (1024, d), *(12 * layer), (d,), (d,))


SHAPES = {
    **{f"1×{n:,}": ((n,),) for n in (10, 100, 1_000, 10_000, 30_000, 100_000, 1_000_000, 10_000_000, 50_000_000)},
    "124×2,000": 124 * ((2_000,),),
    "1,000×100": 1_000 * ((100,),),
    "1,000×10,000": 1_000 * ((10_000,),),
    "ResNet-50": resnet50(),
    "GPT-2-small": gpt2_small(),
}
# What runs without being asked for: of AdamW all but fresh gradients where no cache holds them; of the others, sizes
# that tell them apart.
SMALL = ("1×10", "1×1,000", "1×30,000", "1×1,000,000", "1,000×100", "1,000×10,000")
BETWEEN = ("1×1,000,000", "1,000×10,000")
COLD = ("1×1,000", "124×2,000", "1×100,000", "1,000×100", "1,000×10,000", "ResNet-50")
GRADIENTS = ("same", "fresh", "cold")


def asked_for(optimizer, dtype, shape, gradients, threads):
    if gradients == "fresh":
        return optimizer == "AdamW" and shape in SMALL
    if gradients == "cold":
        return (optimizer, dtype) == ("AdamW", "float32") and shape in COLD
    return optimizer == "AdamW" or shape in (SMALL if (dtype, threads) == ("float32", 1) else BETWEEN)


def pytest_generate_tests(metafunc):
    axes = ("optimizer", "dtype", "shape", "gradients")
    if set(axes) <= set(metafunc.fixturenames):
        threads = metafunc.config.stash[THREADS]
        cases = itertools.product(fastopt.OPTIMIZERS, ("float32", "float64"), SHAPES, GRADIENTS)
        metafunc.parametrize(axes, [
            pytest.param(*case, marks=() if asked_for(*case, threads) else pytest.mark.full) for case in cases])


def test_step(race, threads, optimizer, dtype, shape, gradients):
    case = libraries.Case(optimizer, SHAPES[shape], dtype, threads, gradients)
    steppers = libraries.steppers(case)
    race(case, steppers, suite="step", shape=shape)
    steppers.clear()
    gc.collect()          # the largest hold gigabytes


def spaced(low, high, per_decade):
    """Numbers from low to high, evenly spaced on a logarithmic scale."""
    steps = round(per_decade * math.log10(high / low))
    return [round(low * 10 ** (k / per_decade)) for k in range(steps + 1)]


@pytest.mark.parametrize("gradients", ["same", "fresh"])
@pytest.mark.parametrize("size", spaced(10, 31_622_777, 4))
def test_size(race, threads, size, gradients):
    """Time against the size of one array."""
    case = libraries.Case("AdamW", ((size,),), "float32", threads, gradients)
    race(case, libraries.steppers(case, ("fastopt", "roofline")), suite="size", shape=f"1×{size:,}")


@pytest.mark.parametrize("gradients", ["same", "fresh"])
@pytest.mark.parametrize("count", spaced(1, 100_000, 3))
def test_count(race, threads, count, gradients):
    """Time against the number of arrays."""
    case = libraries.Case("AdamW", count * ((100,),), "float32", threads, gradients)
    race(case, libraries.steppers(case, ("fastopt", "roofline")), suite="count", shape=f"{count:,}×100")


@pytest.mark.full
@pytest.mark.parametrize("count", [100, 1_000, 10_000, 40_000])
def test_constructor(benchmark, count):
    """Building an optimizer over many arrays: the time has to grow with their number, not with its square."""
    params = [np.zeros(10, np.float32) for _ in range(count)]
    benchmark(fastopt.Adam, params)
