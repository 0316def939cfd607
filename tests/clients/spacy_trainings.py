"""Small trainings in spaCy over generated sentences, with an optimizer of thinc's or of fastopt's, by its name.

tests/clients/test_spacy.py compares them; bench/clients/thinc_times.py measures them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import spacy
from spacy.tokens import Doc
from spacy.training import Example
from spacy.util import minibatch, registry
from thinc.api import Config, fix_random_seed

NOUNS = "cat dog river stone engine letter garden teacher window song market bridge doctor story winter".split()
VERBS = "sees moves carries finds breaks writes paints follows leaves hears".split()
PLACES = "north south harbour valley station kitchen library forest".split()
#: What a text is about shows in its adjectives, and only there.
ADJECTIVES = {
    "good": "bright gentle happy useful warm clever honest lovely".split(),
    "bad": "broken bitter dirty boring cruel noisy rotten useless".split(),
    "plain": "round wooden early northern second empty green heavy".split(),
}
TAGS = {
    "the": "DT", "a": "DT", "in": "IN", "near": "IN", "very": "RB", "and": "CC", ".": ".", **dict.fromkeys(NOUNS, "NN"),
    **dict.fromkeys(VERBS, "VBZ"), **dict.fromkeys(PLACES, "NNP"),
    **{word: "JJ" for words in ADJECTIVES.values() for word in words},
}  # fmt: skip


def sentence(draw: random.Random, label: str) -> list[str]:
    adjective = draw.choice(ADJECTIVES[label])
    words = [draw.choice(["the", "a"]), *draw.choice([[], ["very"]]), adjective, draw.choice(NOUNS), draw.choice(VERBS),
             "the", draw.choice(NOUNS)]  # fmt: skip
    if draw.random() < 0.5:
        words += [draw.choice(["in", "near"]), "the", draw.choice(PLACES)]
    return [*words, "."]


@cache
def corpus(n: int, seed: int) -> tuple[tuple[tuple[str, ...], str], ...]:
    """Sentences with their labels."""
    draw = random.Random(seed)
    labels = [draw.choice([*ADJECTIVES]) for _ in range(n)]
    return tuple((tuple(sentence(draw, label)), label) for label in labels)


def examples(nlp: Any, n: int, seed: int, wrong: float = 0.0) -> Iterator[Example]:
    """Some labels and tags are wrong, so that losses do not vanish."""
    draw = random.Random(seed)
    for words, label in corpus(n, seed):
        doc = Doc(nlp.vocab, words=words)
        if draw.random() < wrong:
            label = draw.choice([*ADJECTIVES])
        tags = [draw.choice([*TAGS.values()]) if draw.random() < wrong else TAGS[word] for word in words]
        cats = {each: float(each == label) for each in ADJECTIVES}
        yield Example.from_dict(doc, {"words": words, "tags": tags, "cats": cats})


@dataclass
class Result:
    losses: list[float]  # of each epoch
    score: float  # on sentences that were not trained on
    optimizer: Any
    nlp: Any


def optimizer_of(name: str, **options: Any) -> Any:
    """As a configuration of spaCy makes it."""
    lines = ["[optimizer]", f'@optimizers = "{name}"', "learn_rate = 0.001", "L2 = 0.01", "use_averages = true"]
    lines += [f"{key} = {value}" for key, value in options.items()]
    return registry.resolve(Config().from_str("\n".join(lines)))["optimizer"]


def prepared(pipe: str, n: int = 200, options: dict[str, Any] | None = None) -> tuple[Any, list[Example]]:
    """A pipeline, initialized the same every time, and its examples."""
    fix_random_seed(0)
    nlp = spacy.blank("en")
    nlp.add_pipe(pipe, config=options or {})
    train = list(examples(nlp, n, 1, 0.1))
    nlp.initialize(lambda: train)
    return nlp, train


def epochs(nlp: Any, train: list[Example], optimizer: Any, n: int, batch: int) -> list[float]:
    """Train; the losses."""
    draw, losses = random.Random(0), []
    fix_random_seed(0)
    for _ in range(n):
        draw.shuffle(train)
        loss: dict[str, float] = {}
        for part in minibatch(train, batch):
            nlp.update(part, sgd=optimizer, losses=loss, drop=0.1)
            optimizer.step_schedules()
        losses.append(sum(loss.values()))
    return losses


SCORES = {"tagger": "tag_acc", "textcat": "cats_macro_f"}


def trained(pipe: str, optimizer: Any, n: int = 200, rounds: int = 3, batch: int = 4) -> Result:
    nlp, train = prepared(pipe, n)
    losses = epochs(nlp, train, optimizer, rounds, batch)
    with nlp.use_params(optimizer.averages):
        score = nlp.evaluate(list(examples(nlp, 100, 2)))[SCORES[pipe]]
    return Result(losses, score, optimizer, nlp)
