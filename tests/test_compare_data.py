"""``fastopt compare --data``: files and what is wrong with them, the network, the race, and what is said of it."""

from __future__ import annotations

import csv
import html
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastopt import OPTIMIZERS, FastoptError
from fastopt._compare import models
from fastopt._compare.race import Runner
from fastopt._compare.tables import read
from fastopt.cli import demo, main

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from fastopt._compare import curve_pictures, curves, data, learning, stage

SEVEN = ("SGD", "Momentum", "NAG", "Adagrad", "Adadelta", "RMSprop", "Adam")


def sheet(folder, text, name="file.csv"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def lines(header, rows):
    return "\n".join([header, *rows]) + "\n"


def flowers(n=60, sep=",", header="length,width,species"):
    """Return a table of two features and a class in words that follows from them."""
    rng = np.random.default_rng(1)
    rows = []
    for i in range(n):
        kind = i % 3
        a, b = rng.normal((kind, -kind), 0.2)
        rows.append(sep.join([f"{a:.4f}", f"{b:.4f}", ("setosa", "versicolor", "virginica")[kind]]))
    return lines(header, rows)


def houses(n=80):
    """Return a table with a price that follows from two features."""
    rng = np.random.default_rng(2)
    rows = []
    for _ in range(n):
        size, age = rng.uniform(30, 200), rng.uniform(0, 90)
        rows.append(f"{size:.1f},{age:.1f},{2000 * size - 500 * age + 100_000 + rng.normal(0, 5000):.0f}")
    return lines("size,age,price", rows)


GOOD = [f"{i},{i * i % 7},{i % 2}" for i in range(20)]


# --- files that cannot be learned from: one line each that says what is wrong


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("", {}, "is empty"),
        (" \n\n", {}, "is empty"),
        (lines("1,2,3", GOOD), {}, "has no header: line 1 is all numbers"),
        (
            lines("5.1,3.5,setosa", [f"{i},{i % 5},setosa" for i in range(20)]),
            {},
            "has no header: 'setosa' of line 1 is",
        ),
        (lines("a,b,a", GOOD), {}, "two columns are called 'a'"),
        (lines("a,,y", GOOD), {}, "column 2 has no name"),
        (lines("a", ["1"] * 20), {}, "has one column only ('a')"),
        (lines("a,b,y", [*GOOD, "1,2"]), {}, "line 22 has 2 cells, the header 3"),
        (lines("a,b,y", [*GOOD[:4], "", "1,2,3,4", *GOOD]), {}, "line 7 has 4 cells, the header 3"),
        (lines("a,b,y", [*GOOD, '"1,2,3']), {}, "not a CSV file"),
        (lines("a,b,y", GOOD[:9]), {}, "9 rows of data are too few: at least 10"),
        (lines("a,b,y", []), {}, "0 rows of data are too few"),
        (lines("a,b,y", [*GOOD[:5], "1,,0", *GOOD]), {}, "column 'b' has no value in line 7: fill"),
        (
            lines("a,b,y", [*GOOD, "NA,1,0", "1,2,?"]),
            {},
            "column 'a' has no value in line 22 (2 values are missing in all)",
        ),
        (lines("a,b,y", [*GOOD, "NaN,1,0"]), {}, "column 'a' has no value in line 22"),
        (
            lines("a,b,y", [*GOOD, "Seoul,Busan,0"]),
            {},
            "columns 'a', 'b' hold text ('Seoul' in line 22): features must be",
        ),
        (lines("a,b,y", [*GOOD, "Seoul,2,0"]), {}, "one-hot encode"),
        (
            lines("a;b;y", [*(row.replace(",", ";") for row in GOOD), "1,5;2;0"]),
            {},
            "a point for a decimal comma",
        ),
        (lines("a,b,y", [*GOOD, "1,inf,0"]), {}, "column 'b': 'inf' in line 22 is not a finite number"),
        (lines("a,b,y", [*GOOD, "1,1e999,0"]), {}, "'1e999' in line 22 is not a finite number"),
        (lines("a,b,y", [*GOOD, "1,-1e200,0"]), {}, "column 'b': '-1e200' in line 22 is too large"),
        (lines("a,b,c,y", [f"{i},7,8.0,{i % 2}" for i in range(20)]), {}, "columns 'b', 'c' are constant"),
        (lines("a,b,y", GOOD), {"target": "z"}, "no column 'z' to learn; there are the columns 'a', 'b', 'y'"),
        (lines("a,b,y", [f"{i},{i % 3},cat" for i in range(20)]), {}, "column 'y', is 'cat' in every row"),
        (lines("a,b,y", [f"{i},{i % 3},4" for i in range(20)]), {}, "column 'y', is '4' in every row"),
        (
            lines("a,b,y", [*GOOD, "1,2,2"]),
            {},
            "column 'y': class '2' in line 22 has one sample, two are needed: "
            "leave such lines out, or give --task=regression to learn numbers",
        ),
        (
            flowers() + "1,2,other\n",
            {},
            "column 'species': class 'other' in line 62 has one sample, two are needed: leave such lines out",
        ),
        (houses(), {"task": "classification"}, "classes have one only"),
        (
            flowers(),
            {"task": "regression"},
            "('setosa' in line 2): the targets of a regression must be numbers; for names of classes, give",
        ),
        (
            lines("a,b,y", [*GOOD, "1,2,oops"]),
            {},
            "class 'oops' in line 22 has one sample, two are needed: "
            "leave such lines out, or correct 'oops' in line 22 to learn numbers",
        ),
        (
            houses() + "1,2,oops\n1,3,oops\n",
            {},
            "classes have one only: leave such lines out, or correct 'oops' in line 82 to learn numbers",
        ),
        (
            lines("a,b,y", [*GOOD, "1,2,oops"]),
            {"task": "regression"},
            "column 'y' holds text ('oops' in line 22): the targets of a regression must be numbers; for names of",
        ),
        *(
            (
                lines("a;b;y", [*(row.replace(",", ";") for row in GOOD), *(f"1;{i};{cell}" for i in range(2))]),
                options,
                f"column 'y' holds text ({cell!r} in line 22): write a point for a decimal comma, and leave out commas "
                "between thousands; for names of classes, give --task=classification",
            )
            for cell in ("1,5", ",5", "-1,5e3", "1,000", "1.234,5", "1,234.5", "1 234,5")
            for options in ({}, {"task": "regression"})
        ),
        (
            lines("a;b;y", [f"{i};{i % 7};{('low', 'high', '1,5')[i % 3]}" for i in range(21)]),
            {},
            "('1,5' in line 4): write a point for a decimal comma",
        ),
        (
            lines("a;b;y", [*(row.replace(",", ";") for row in GOOD), "Seoul;2;0", "1,5;2;0"]),
            {},
            "('1,5' in line 23): write a point for a decimal comma, and leave out commas between thousands",
        ),
        (lines("1;2;3,5", [row.replace(",", ";") for row in GOOD]), {}, "has no header: line 1 is all numbers"),
        (
            lines("a,b,y", [f"{i},{i % 7},{('7', '07', '7.0')[i % 3]}" for i in range(21)]),
            {"task": "regression"},
            "is the same number ('7', '07', '7.0') in every row: nothing to learn; for names of classes, give --task",
        ),
        (
            lines("id,b,y", [f"{9007199254740990 + i},{i % 7},{i % 2}" for i in range(20)]),
            {},
            "column 'id': '9007199254740992' in line 4 and '9007199254740993' in line 5 are the same number in "
            "float64, which holds 15 digits: subtract the same number from all values; one-hot encode them",
        ),
        (
            lines("a,b,id", [f"{i},{i % 7},{9007199254740990 + i}" for i in range(20)]),
            {},
            "column 'id': '9007199254740992' in line 4 and '9007199254740993' in line 5 are the same number in "
            "float64, which holds 15 digits: subtract the same number from all values; for names of classes",
        ),
        (lines("a,b,y", [*GOOD, "1_0,2,0"]), {}, "column 'a' holds text ('1_0' in line 22)"),
        (lines("a,b,y", [*GOOD, "1,-nan,0"]), {}, "column 'b' has no value in line 22"),
        (lines("a,b,y", [*GOOD, "1,2,NA"]), {}, "; 'NA' means a missing value, and cannot be a label"),
        (b"a,b,y\n1,2,\xff\n", {}, "not UTF-8 text (byte 0xff at 10)"),
        ("a,b,y\n1,2,\0\n", {}, "not a text file"),
        (flowers().encode("utf-16"), {}, "not UTF-8 text"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_one_line(tmp_path, text, options, said):
    path = sheet(tmp_path, text)
    with pytest.raises(FastoptError) as error:
        data.load(path, **options)
    message = str(error.value)
    assert said in message
    assert message.startswith(path)
    assert "\n" not in message


def test_a_file_that_is_not_there_a_folder_and_one_that_may_not_be_read(tmp_path, monkeypatch):
    with pytest.raises(
        FastoptError, match=r"iris: no such file, and none of the data sets digits, breast_cancer, diabetes"
    ):
        data.load("iris")
    with pytest.raises(FastoptError, match=r"missing\.csv: no such file$"):
        data.load(str(tmp_path / "missing.csv"))
    with pytest.raises(FastoptError, match="is a folder, not a CSV file"):
        data.load(str(tmp_path))

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    path = sheet(tmp_path, flowers())
    monkeypatch.setattr(Path, "read_text", denied)
    with pytest.raises(FastoptError, match="cannot be read: Permission denied"):
        data.load(path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("digits", "class"), "target is for CSV files"),
        (("digits", None, "regression"), "task is for CSV files"),
        (("digits", None, None, "robust"), "scale must be one of standard, minmax, not 'robust'"),
        (("digits", None, "ranking"), "task must be one of classification, regression, not 'ranking'"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments, said):
    with pytest.raises(FastoptError, match=said):
        data.load(*arguments)


def test_names_and_cells_cannot_break_the_line(tmp_path):
    path = sheet(tmp_path, lines('"a\nb",b,y', [*GOOD, f"{'x' * 500},2,0"]))
    with pytest.raises(FastoptError) as error:
        data.load(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < len(path) + 250


# --- files that can


@pytest.mark.parametrize("sep", [",", ";", "\t", ", "])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_separators_byte_order_marks_and_line_ends(tmp_path, sep, bom, newline):
    text = flowers(sep=sep, header=sep.join(["length", "width", "species"])).replace("\n", newline)
    dataset = data.load(sheet(tmp_path, bom + text.encode()))
    assert dataset.features == ("length", "width")
    assert dataset.classes == ("setosa", "versicolor", "virginica")
    assert dataset.x.shape == (60, 2)
    np.testing.assert_array_equal(dataset.y, np.arange(60) % 3)


def test_quotes_hold_commas_and_blank_lines_are_none(tmp_path):
    rows = [f'"{i}",{i % 5}, "{("yes, really", "no")[i % 2]}"' for i in range(12)]
    dataset = data.load(sheet(tmp_path, lines('"size, in m",b,"it ""is"""', [*rows, "", ",,"])))
    assert dataset.features == ("size, in m", "b")
    assert dataset.target == 'it "is"'
    assert dataset.classes == ("no", "yes, really")
    assert len(dataset.y) == 12


def test_decimal_commas_do_not_pass_for_separators(tmp_path):
    path = sheet(tmp_path, lines("a;b", [f"{i},5;{i},25" for i in range(20)]))
    assert list(read(Path(path)).columns) == ["a", "b"]


def test_the_task_follows_from_the_target(tmp_path):
    assert data.load(sheet(tmp_path, flowers())).task == "classification"
    price = data.load(sheet(tmp_path, houses()))
    assert (price.task, price.target, price.classes) == ("regression", "price", ())
    whole = sheet(tmp_path, lines("a,b,y", [f"{i},{i * i % 7},{10 * (i % 3)}.0" for i in range(30)]))
    assert data.load(whole).classes == ("0.0", "10.0", "20.0")  # numbers by size
    assert data.load(whole, task="regression").task == "regression"
    assert data.load(whole, target="a").task == "regression"  # 30 different whole numbers are no classes
    half = sheet(tmp_path, lines("a,b,y", [f"{i},{i * i % 7},{(i % 3) / 2}" for i in range(30)]))
    assert data.load(half).task == "regression"
    assert data.load(half, task="classification").classes == ("0.0", "0.5", "1.0")
    mixed = sheet(tmp_path, lines("a,b,y", [f"{i},{i * i % 7},{('10', '9', 'B', 'A')[i % 4]}" for i in range(40)]))
    assert data.load(mixed).classes == ("10", "9", "A", "B")  # one that is no number, and all of them are text
    names = sheet(tmp_path, lines("a,b,y", [f"{i},{i * i % 7},{i % 4}_{i % 3}" for i in range(60)]))
    assert len(data.load(names).classes) == 12  # 1_2 is 12 to Python only


@pytest.mark.parametrize(
    "labels",
    [
        ("00501", "0501", "501"),
        ("1.1", "1.10", "1.2"),
        ("9007199254740992", "9007199254740993", "9007199254740994"),
        ("9999999999999999", "10000000000000000", "10000000000000001"),
        ("-0", "0", "00"),
        ("+1", "1", "1.0", "2"),
        ("-10", "-9", "-1", "9", "10", "1000", "1e3"),
        ("1e99999999999999999999", "inf"),
    ],
    ids=" ".join,
)
def test_labels_are_compared_as_text_and_numbers_ordered_by_size(tmp_path, labels):
    rows = [f"{i};{i * i % 11};{labels[-1 - i % len(labels)]}" for i in range(6 * len(labels))]
    dataset = data.load(sheet(tmp_path, lines("a;b;y", rows)), task="classification")
    assert dataset.classes == labels
    assert [labels[k] for k in dataset.y] == [row.split(";")[2] for row in rows]


def test_what_is_learned_is_said_and_what_nobody_has_chosen(tmp_path):
    flower = sheet(tmp_path, flowers(), "flowers.csv")
    chosen = ("learning 'species' (the last column, by default), a classification (by default, from its values): "
              "3 classes ('setosa', 'versicolor', 'virginica'), 2 features, 60 samples")  # fmt: skip
    assert data.load(flower).description == chosen
    price = sheet(tmp_path, houses(), "houses.csv")
    assert data.load(price, target="price", task="regression").description == (
        "learning 'price', a regression: 2 features, 80 samples"
    )
    assert data.load("digits").description == (
        "learning 'digit', a classification: "
        "10 classes ('0', '1', '2', '3', '4', '5' and 4 more), 64 features, 1,797 samples"
    )
    codes = sheet(tmp_path, lines("a,y", [f"{i},{('00501', '501')[i % 2]}" for i in range(20)]))
    assert data.load(codes, target="y", task="classification").description == (
        "learning 'y', a classification: 2 classes ('00501', '501'), 1 feature, 20 samples; "
        "'00501' and '501' are two classes, as labels are compared as text"
    )


def test_terminal_and_page_name_the_target_and_the_task(tmp_path, capsys):
    pytest.importorskip("PIL")
    pytest.importorskip("tqdm")
    path = sheet(tmp_path, houses(), "houses.csv")
    options = ["--epochs=1", "--repeats=1", "--optimizer=sgd", "--format=png", f"--out={tmp_path / 'out'}"]
    assert main(["compare", "--data", path, *options]) == 0
    said = "earning 'price' (the last column, by default), a regression (by default, from its values): 2 features, 80"
    assert " ".join(capsys.readouterr().out.split()).startswith(f"houses: l{said} samples Real data: houses")
    assert f"L{said} samples." in html.unescape((tmp_path / "out" / "index.html").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("name", "shape", "n_classes"),
    [("digits", (1797, 64), 10), ("breast_cancer", (569, 30), 2), ("diabetes", (442, 10), 0)],
)
def test_the_data_sets_of_scikit_learn(name, shape, n_classes):
    dataset = data.load(name)
    assert dataset.x.shape == shape
    assert (len(dataset.classes), len(dataset.features)) == (n_classes, shape[1])


# --- normalization


# The column feature_3 of the lecture notes (notes 000), raw and as they print it after both normalizations.
RAW = [
    -81.977837,
    -78.493732,
    51.682415,
    45.883654,
    15.080874,
    90.150390,
    57.606259,
    64.846291,
    -5.383149,
    130.638733,
    108.228715,
]
MINMAX = [0.000000, 0.016387, 0.628645, 0.601371, 0.456496, 0.809571, 0.656506, 0.690558, 0.360248, 1.000000, 0.894599]
STANDARD = [
    -1.707156,
    -1.656828,
    0.223561,
    0.139798,
    -0.305147,
    0.779229,
    0.309130,
    0.413712,
    -0.600749,
    1.364081,
    1.040369,
]


# The notes' deviation is that of a sample, over n - 1, as pandas has it; scikit-learn's is over n.
@pytest.mark.parametrize(
    ("scale", "printed", "factor"), [("minmax", MINMAX, 1), ("standard", STANDARD, math.sqrt(10 / 11))]
)
def test_both_normalizations_give_the_numbers_of_the_lecture_notes(scale, printed, factor):
    found = data.scaler(scale).fit_transform(np.array(RAW)[:, None])[:, 0]
    np.testing.assert_allclose(factor * found, printed, rtol=0, atol=6e-7)


@pytest.mark.parametrize("name", ["digits", "diabetes"])
def test_scalers_know_the_training_part_alone(name):
    parts = data.split(data.load(name), seed=3)
    x_train, y_train = parts.train
    np.testing.assert_allclose(x_train.mean(axis=0), 0, atol=1e-12)
    deviations = x_train.std(axis=0)
    np.testing.assert_allclose(deviations[deviations > 0], 1, rtol=1e-12)
    assert np.abs(parts.test[0].mean(axis=0)).max() > 0.01  # the test part is as it comes
    if name == "diabetes":
        assert y_train.mean() == pytest.approx(0, abs=1e-12)
        assert y_train.std() == pytest.approx(1)
        assert abs(parts.test[1].mean()) > 1e-3
    x_train, _ = data.split(data.load(name, scale="minmax"), seed=3).train
    assert x_train.min(axis=0).max() == 0
    assert set(np.round(x_train.max(axis=0), 12)) <= {0.0, 1.0}  # border pixels of the digits are constant


def test_every_class_is_in_the_test_part_however_few_there_are(tmp_path):
    text = lines("a,b,y", [f"{i},{i * i % 11},{'abcdef'[i % 6]}" for i in range(12)])
    parts = data.split(data.load(sheet(tmp_path, text)), seed=0)
    assert sorted(parts.test[1]) == list(range(6)) == sorted(parts.train[1])


# --- the network


@pytest.mark.parametrize("loss", [models.cross_entropy, models.squared_error])
def test_the_gradient_of_the_network_is_its_loss_differentiated(loss):
    rng = np.random.default_rng(0)
    n_out = 3 if loss is models.cross_entropy else 1
    params = [p + rng.normal(0, 0.1, p.shape) for p in models.initial_weights((5, 4, n_out), rng, "float64")]
    batch = rng.normal(size=(6, 5)), rng.integers(0, 3, 6) if n_out == 3 else rng.normal(size=6)
    _, grads = models.loss_and_gradients(params, batch, loss)
    for p, g in zip(params, grads, strict=True):
        for index in np.ndindex(p.shape):
            old, h = p[index], 1e-6
            p[index] = old + h
            above, _ = models.loss_and_gradients(params, batch, loss)
            p[index] = old - h
            below, _ = models.loss_and_gradients(params, batch, loss)
            p[index] = old
            assert g[index] == pytest.approx((above - below) / (2 * h), abs=1e-8)


def test_the_demo_has_no_network_of_its_own():
    assert demo.loss_and_gradients is models.loss_and_gradients
    assert demo.LEARNING_RATES is models.LEARNING_RATES


# --- the race


@pytest.fixture(scope="module")
def flower_race(tmp_path_factory):
    """A race of the seven on a small classification, from a file with a target in words."""
    dataset = data.load(sheet(tmp_path_factory.mktemp("data"), flowers(), "flowers.csv"))
    return learning.race(dataset, learning.entrants(dataset, SEVEN), epochs=4, batch_size=8, seeds=(0, 1))


@pytest.fixture(scope="module")
def house_race(tmp_path_factory):
    """A race on a small regression."""
    dataset = data.load(sheet(tmp_path_factory.mktemp("data"), houses(), "houses.csv"))
    return learning.race(dataset, learning.entrants(dataset, ("SGD", "Adam")), epochs=20, batch_size=8, seeds=(0, 1))


def test_they_learn_classes_in_words(flower_race):
    for run in flower_race.runs:
        assert run.learned
        assert run.steps[-1] == 4 * 6  # 48 training samples
    assert flower_race.band("Adagrad", "scores").middle[-1] > 0.9


def test_they_learn_numbers(house_race):
    for run in house_race.runs:
        assert run.losses[0] == pytest.approx(1)  # begins with guessing the mean
        assert run.learned
        assert run.scores[-1] > 0.9


def test_errors_of_a_regression_are_in_its_own_units(house_race):
    from sklearn.model_selection import train_test_split

    for run in house_race.runs:
        _, test = train_test_split(house_race.dataset.y, test_size=16, random_state=run.seed)
        np.testing.assert_allclose(run.rmse, np.sqrt((1 - run.scores) * np.var(test)), rtol=1e-9)


def test_each_optimizer_starts_from_the_same_weights_and_data(flower_race):
    for seed in (0, 1):
        starts = {(run.losses[0], run.scores[0]) for run in flower_race.runs if run.seed == seed}
        assert len(starts) == 1
    assert len({run.losses[0] for run in flower_race.runs}) == 2  # but not with another seed


def test_the_same_seeds_give_the_same_curves_to_the_byte(house_race, tmp_path):
    again = learning.race(house_race.dataset, house_race.runners, epochs=20, batch_size=8, seeds=(0, 1))
    for one, other in zip(house_race.runs, again.runs, strict=True):
        for name in ("steps", "losses", "batch_losses", "test_losses", "scores"):
            assert getattr(one, name).tobytes() == getattr(other, name).tobytes()
    files = [curves.write_csv(race, tmp_path / f"{i}.csv") for i, race in enumerate((house_race, again))]
    texts = [[row[:-2] for row in csv.reader(file.open(encoding="utf-8"))] for file in files]  # but for the seconds
    assert texts[0] == texts[1]


def test_what_diverges_does_not_stop_the_others(flower_race):
    runners = (Runner("SGD", {"lr": 1e300}), Runner("Adam", {"lr": 0.01}), Runner("Momentum", {"lr": 1e4}))
    told = []
    sizes = {"epochs": 3, "batch_size": 8, "seeds": (0, 1)}
    raced = learning.race(flower_race.dataset, runners, **sizes, on_step=lambda name, steps: told.append(steps))
    sgd, adam = raced.of("SGD")[0], raced.of("Adam")[0]
    assert not sgd.finite
    assert len(sgd.steps) < len(adam.steps)
    assert not any(run.learned for run in raced.of("Momentum"))
    assert raced.learned == ["Adam"]
    assert sum(told) == learning.total_steps(flower_race.dataset, runners, **sizes)
    rows = {row[0]: row for row in curves.table(raced).rows}
    assert rows["SGD"][2] == rows["Momentum"][2] == "diverged"
    assert rows["SGD"][3] == "–"
    assert "NaN" not in json.dumps(raced.as_json(), allow_nan=False)


def test_a_batch_size_of_ones_own_goes_first(flower_race):
    runners = (Runner("SGD", {"lr": 0.1}, "one by one", 1), Runner("SGD", {"lr": 0.1}, "all", 1000), Runner("Adam"))
    raced = learning.race(flower_race.dataset, runners, epochs=2, batch_size=8, seeds=(0,))
    assert [run.steps[-1] for run in raced.runs] == [2 * 48, 2, 2 * 6]
    assert {run.epochs[-1] for run in raced.runs} == {2}
    assert learning.total_steps(flower_race.dataset, runners, epochs=2, batch_size=8, seeds=(0,)) == 2 * (48 + 1 + 6)


def test_all_batches_are_of_one_size(flower_race, monkeypatch):
    sizes = []

    def counted(params, batch, loss):
        sizes.append(len(batch[1]))
        return models.loss_and_gradients(params, batch, loss)

    monkeypatch.setattr(learning, "loss_and_gradients", counted)
    (run,) = learning.race(flower_race.dataset, [Runner("SGD")], epochs=2, batch_size=7, seeds=(0,)).runs
    assert sizes == [7] * 12  # 48 samples are 6 batches of 7, and some left over
    assert run.steps[-1] == 12


def test_seconds_are_those_of_training_without_measuring(flower_race, monkeypatch):
    now = 0.0

    def clock():
        nonlocal now
        now += 0.001
        return now

    def slow_accuracy(params, batch):
        nonlocal now
        now += 1000.0
        return models.accuracy(params, batch)

    monkeypatch.setattr(learning, "perf_counter", clock)
    monkeypatch.setattr(learning, "accuracy", slow_accuracy)
    (run,) = learning.race(flower_race.dataset, [Runner("Adam")], epochs=2, batch_size=8, seeds=(0,)).runs
    assert run.seconds[0] == run.step_seconds[0] == 0
    np.testing.assert_allclose(run.step_seconds, 0.001 * run.steps)  # one tick each
    np.testing.assert_allclose(run.seconds, 0.003 * run.steps)


def test_tuning_finds_a_better_rate_and_keeps_the_name(flower_race):
    runner = Runner("SGD", {"lr": 1e-3}, "plain")
    told = []
    (best,), (fastest,) = learning.tuned(
        flower_race.dataset,
        [runner],
        epochs=3,
        batch_size=8,
        seed=9,
        to_loss=0.1,
        on_step=lambda name, steps: told.append(steps),
    )
    assert best == fastest == replace(runner, options={"lr": 0.01})
    sizes = {"epochs": 3, "batch_size": 8, "seeds": (9,)}
    assert sum(told) == len(learning.FACTORS) * learning.total_steps(flower_race.dataset, [runner], **sizes)


def test_the_rate_is_chosen_by_what_is_claimed(flower_race, monkeypatch):
    def made(to_test, steps, lowest):
        losses = np.array([1.0, 0.5, lowest])
        some = flower_race.runs[0]
        return replace(some, losses=losses, steps=np.array([0, 5, steps]), test_losses=np.array([1, 1, to_test]))

    outcomes = iter([made(0.1, 90, 0.3), made(0.2, 40, 0.3), made(0.3, 40, 0.2), made(0.4, 20, 0.45), made(0.5, 9, 2)])

    def one_run(dataset, parts, runner, *_):
        return replace(next(outcomes), runner=runner)

    monkeypatch.setattr(learning, "_learn", one_run)
    runner = Runner("SGD", {"lr": 1.0})
    (best,), (fastest,) = learning.tuned(flower_race.dataset, [runner], seed=9, to_loss=0.35)
    assert best.options["lr"] == learning.FACTORS[0]
    assert fastest.options["lr"] == learning.FACTORS[2]  # equally soon there as the one before, and lower in the end


# --- who came first: on curves whose answer is known


def made_up(**steps_by_name):
    """Return a race to the loss 0.5 in which each runner arrives after the given steps, seed by seed; None: never."""
    dataset = data.Dataset("made $up$", np.zeros((20, 1)), np.zeros(20, int), ("x",), "y", ("a", "b"))
    runs = []
    for name, arrivals in steps_by_name.items():
        for seed, arrival in enumerate(arrivals):
            steps = np.arange(0.0, 201.0, 5.0)
            losses = np.where(steps < (math.inf if arrival is None else arrival), 0.9, 0.4)
            losses[0] = 1.0
            losses[-2:] = 0.6 if name == "Lion" else losses[-1]  # which comes up again
            scores = 1 - losses
            seconds = steps / 1000
            arrays = dict(zip(learning.MEASURED, (steps, steps / 100, losses, losses, losses, scores), strict=False))
            runner = Runner(name, {"lr": 0.1})
            run = learning.Run(
                runner=runner, seed=seed, **arrays, seconds=seconds, step_seconds=seconds / 2, unit=1.0, finite=True
            )
            runs.append(run)
    runners = tuple(dict.fromkeys(run.runner.name for run in runs))
    seeds = tuple(range(len(next(iter(steps_by_name.values())))))
    return learning.Curves(dataset, tuple(Runner(n, {"lr": 0.1}) for n in runners), seeds, 2, 5, 16, tuple(runs), 0.5)


def test_steps_and_seconds_to_the_loss():
    raced = made_up(Adam=(50, 60, None), Lion=(50, 50, 50))
    assert raced.arrivals("Adam") == [50, 60, math.inf]
    assert raced.arrivals("Adam", "seconds") == pytest.approx([0.05, 0.06, math.inf])
    assert raced.arrivals("Lion") == [50, 50, 50]  # the first time counts
    assert replace(raced, to_loss=1.0).arrivals("Adam") == [0, 0, 0]
    assert replace(raced, to_loss=0.9).arrivals("Adam") == [5, 5, 5]
    assert replace(raced, to_loss=math.nan).arrivals("Adam") == [math.inf] * 3


@pytest.mark.parametrize(
    ("arrivals", "said"),
    [
        (
            {"Adam": (50, 60, 70), "SGD": (100, 90, 120)},
            "Adam is the first to a training loss of 0.5 with every seed, after 60",
        ),
        (
            {"Adam": (50, 60, 70), "SGD": (100, 55, 120)},
            "Adam is the first to a training loss of 0.5, after 60 steps; with some",
        ),
        (
            {"Adam": (100, 100, 100), "SGD": (105, 105, 105)},
            "Adam and SGD get to a training loss of 0.5 about equally fast",
        ),
        (
            {name: (100, 100) for name in SEVEN},
            "No clear winner: 7 of 7 get to a training loss of 0.5 first, in 100 steps",
        ),
        ({"Adam": (50, 60, 70), "SGD": (None, None, 80)}, "Adam alone gets to a training loss of 0.5 with most seeds"),
        ({"Adam": (50,)}, "Adam gets to a training loss of 0.5, after 50 steps"),
        (
            {"Adam": (50,), "SGD": (80,)},
            "Adam is the first to a training loss of 0.5, after 50 steps; SGD needs 80 steps",
        ),
        ({"Adam": (None,), "SGD": (None,)}, "None of the optimizers gets to a training loss of 0.5 in 2 epochs"),
    ],
)
def test_the_headline_says_who_was_first_and_no_more(arrivals, said):
    assert curves.headline(made_up(**arrivals)).startswith(said)


def test_before_means_with_every_seed_and_clearly():
    raced = made_up(Adam=(50, 60), SGD=(100, 65), Lion=(100, None), NAG=(None, None))
    assert raced.before("Adam", "Lion")
    assert raced.before("Adam", "NAG")
    assert not raced.before("Adam", "SGD")  # by less than a tenth with one seed
    assert not raced.before("Lion", "NAG")  # with one seed neither arrives
    assert not raced.before("SGD", "Adam")


def test_the_default_loss_is_a_round_one_that_three_quarters_reach(flower_race):
    lowest = {name: max(run.losses.min() for run in flower_race.of(name)) for name in SEVEN}
    reached = [name for name in SEVEN if lowest[name] <= flower_race.to_loss]
    assert len(reached) >= 6
    assert flower_race.to_loss == float(f"{flower_race.to_loss:.2g}")
    lower = flower_race.to_loss * 0.94  # more than a step of two digits down
    assert sum(lowest[name] <= lower for name in SEVEN) < 6
    assert not flower_race.chosen_loss
    given = learning.race(flower_race.dataset, flower_race.runners[:1], epochs=1, seeds=(0,), to_loss=0.7)
    assert (given.to_loss, given.chosen_loss) == (0.7, True)


def test_a_band_is_lowest_median_and_highest_as_far_as_all_got():
    raced = made_up(Adam=(50, 60, 70))
    short = replace(raced.runs[0], **{name: getattr(raced.runs[0], name)[:14] for name in learning.MEASURED})
    band = replace(raced, runs=(short, *raced.runs[1:])).band("Adam")
    assert len(band.epochs) == 14
    row = 11  # step 55: one of three has arrived
    assert (band.low[row], band.middle[row], band.high[row]) == (0.4, 0.9, 0.9)
    row = 12  # step 60: two
    assert (band.low[row], band.middle[row], band.high[row]) == (0.4, 0.4, 0.9)


def test_findings_are_measured_and_asked_of_those_who_ran():
    raced = made_up(SGD=(100, 110), Momentum=(50, 60), Adagrad=(40, 40), RMSprop=(80, 80), Adam=(90, 90))
    found = {finding.claim.split()[0]: finding for finding in curves.findings(raced)}
    assert found["Momentum"].holds
    assert not found["RMSprop"].holds
    assert found["It"].holds  # Adagrad before Momentum
    assert "Adagrad 40" in found["It"].measured
    assert not found["Adam"].holds
    assert "NAG" not in found
    assert curves.findings(made_up(Lion=(50,))) == []


@pytest.mark.parametrize(
    ("first", "then", "verdict"),
    [
        ((50, 60), (100, 110), True),
        ((100, 110), (50, 60), False),
        ((50, 60), (100, 65), None),  # by less than a tenth with one seed
        ((50, 120), (100, 60), None),  # the seeds do not agree
        ((50, None), (100, None), None),  # with one seed neither arrives
        ((None, None), (None, None), None),
        ((50,), (80,), None),  # a single seed, and the lead not twofold
        ((50,), (100,), True),
        ((50,), (None,), True),
    ],
)
def test_a_lead_within_noise_is_none(first, then, verdict):
    raced = made_up(Adam=first, SGD=then)
    assert raced.lead("Adam", "SGD") is verdict
    assert raced.lead("SGD", "Adam") is (None if verdict is None else not verdict)


@pytest.mark.parametrize(
    ("leads", "verdict"),
    [
        ([2.0, 3.0, 2.5], True),
        ([-2.0, -3.0, -2.5], False),
        ([0.1, 3.0, 0.2], None),  # the seeds differ by more than the lead
        ([2.0, -0.1, 2.0], None),
        ([0.0, 0.0, 0.0], None),
        ([2.0], None),  # one seed cannot tell
        ([2.0, math.nan], None),
    ],
)
def test_a_difference_in_the_score_is_told_from_the_noise_of_the_seeds(leads, verdict):
    assert curves._clearly_positive(np.array(leads)) is verdict


@pytest.mark.parametrize(
    ("plain", "tuned", "verdict"),
    [
        ((50, 50), (50, 50), True),
        ((110, 110), (110, 110), False),
        ((50, 50), (85, 85), None),
        ((85, 85), (110, 110), None),
        ((85, 85), (85, 85), None),
        ((50, 50), (110, 110), None),  # the learning rate decides
    ],
)
def test_a_claim_about_optimizers_holds_with_and_without_tuning_or_cannot_be_told(plain, tuned, verdict):
    races = [made_up(Momentum=steps, SGD=(80, 80)) for steps in (plain, tuned)]
    (found,) = curves.findings(*races)
    assert found.holds is verdict
    assert f"Momentum {plain[0]}" in found.measured and f"Momentum {tuned[0]}" in found.measured
    assert found.measured.endswith("the learning rate decides") == ({plain[0], tuned[0]} == {50, 110})


def test_the_findings_are_the_same_with_and_without_tune(tmp_path, monkeypatch):
    monkeypatch.setattr(curve_pictures, "draw", lambda *_: [])
    dataset = data.load(sheet(tmp_path, flowers(), "flowers.csv"))
    runners = learning.entrants(dataset, ["SGD", "Momentum", "Adam"])
    told = {}
    for tune in (False, True):
        ticks = []
        part = stage.of_data(dataset, runners, tmp_path, ("png",), (0, 1), tune, None, epochs=2)
        found, report = part.perform(ticks.append)
        assert sum(ticks) == pytest.approx(part.work)
        told[tune] = found.findings, [run["options"] for run in report["runs"]]
    assert told[False][0] == told[True][0] and len(told[True][0]) == 3
    assert told[False][1] != told[True][1]  # the curves are not
    *speed, quality = (finding.measured for finding in told[True][0])
    assert all("each at its fastest rate of 5: " in said for said in speed)
    assert "each at the rate of 5 with the lowest test loss: test accuracy" in quality


# --- tables, files and pictures


def test_the_table_has_a_line_for_each_and_the_units_of_the_target(house_race, flower_race):
    table = curves.table(house_race)
    assert table.heads[:5] == ("optimizer", "settings", "training loss", "test R²", "test RMSE")
    assert [row[:2] for row in table.rows] == [("SGD", "lr 0.01"), ("Adam", "lr 0.002")]
    assert 1000 < float(table.rows[0][4].split()[0].replace(",", "")) < 50_000  # the prices are around 200,000
    assert [row[0] for row in curves.table(flower_race).rows] == list(SEVEN)
    assert all(len(row) == len(curves.table(flower_race).heads) for row in curves.table(flower_race).rows)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([], "–"),
        ([2.0], "2"),
        ([2.0, 2.0], "2"),
        ([3.0, 1.0, 2.0], "2 (1–3)"),
        ([3.0, math.inf, math.inf], "never (3–never)"),
        ([math.inf], "never"),
    ],
)
def test_a_spread_is_the_median_and_the_range(values, said):
    assert curves.spread(values, curves.WHOLE) == said


@pytest.mark.parametrize(
    ("value", "said"), [(0.012345, "0.0123"), (5.5, "5.5"), (59.96, "60"), (5931.2, "5,930"), (1.2e-7, "1.2e-07")]
)
def test_numbers_have_three_digits_and_commas(value, said):
    assert curves.number(value) == said


@pytest.mark.parametrize(("value", "said"), [(0.4, "0.40"), (13.2, "13"), (0.00061, "0.00061"), (1.0, "1.0")])
def test_losses_have_two_digits(value, said):
    assert curves.two_digits(value) == said


def test_csv_has_a_row_for_each_measurement(house_race, tmp_path):
    rows = list(csv.DictReader(curves.write_csv(house_race, tmp_path / "c.csv").open(encoding="utf-8")))
    assert len(rows) == sum(len(run.steps) for run in house_race.runs)
    assert list(rows[0])[:5] == ["optimizer", "seed", "step", "epoch", "training_loss"]
    assert rows[0]["batch_loss"] == ""  # nothing seen yet
    last = [row for row in rows if row["optimizer"] == "Adam" and row["seed"] == "1"][-1]
    run = house_race.of("Adam")[1]
    assert float(last["training_loss"]) == run.losses[-1]
    assert float(last["test_rmse"]) == run.rmse[-1]


def test_a_section_has_pictures_table_findings_and_files(flower_race, tmp_path):
    section = stage.of_curves(flower_race, tmp_path / "out", ("png", "svg"), curves.findings(flower_race))
    assert section.name == "flowers"
    assert [picture.files[0].name for picture in section.pictures] == [
        "flowers-curves.png",
        "flowers-scores.png",
        "flowers-time.png",
    ]
    for picture in section.pictures:
        png, svg = picture.files
        assert png.read_bytes().startswith(b"\x89PNG")
        assert svg.stat().st_size < 300_000
        assert picture.title
        assert picture.alt
    assert [file.name for file in section.files] == ["flowers-curves.csv"]
    assert "48 samples to train with, 12 to test with" in section.story
    assert len(section.findings) == 5


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "names", [["Adam"], ["Adam", "SGD"], list(OPTIMIZERS)[:4], list(OPTIMIZERS)[:5], list(OPTIMIZERS)]
)
def test_pictures_of_any_number_of_optimizers(names, tmp_path):
    raced = made_up(**{name: (50 + 5 * i, None if i == 1 else 60) for i, name in enumerate(names)})
    for picture in curve_pictures.draw(raced, tmp_path / "few", ("png",)):
        assert picture.files[0].stat().st_size > 5000


@pytest.mark.filterwarnings("error")
def test_pictures_when_nothing_is_learned_or_names_are_hostile(flower_race, tmp_path):
    dataset = replace(flower_race.dataset, name="<b>$x_{$ & a\nb", target="$\\frac{$")
    runners = (Runner("SGD", {"lr": 1e300}, "$\\bad{$"), Runner("Momentum", {"lr": 1e300}, "_hidden"))
    raced = learning.race(dataset, runners, epochs=1, batch_size=8, seeds=(0,))
    assert math.isnan(raced.to_loss)
    section = stage.of_curves(raced, tmp_path, ("png",))
    assert [picture.files[0].name.split("-")[-1] for picture in section.pictures] == ["curves.png", "scores.png"]
    assert section.pictures[0].title.startswith("No optimizer learns")
    names = [path.name for path in tmp_path.iterdir()]
    assert len(names) == 3
    assert all(re.fullmatch(r"[\w.-]+", name) for name in names)
    text = json.dumps(raced.as_json(), allow_nan=False)
    assert json.loads(text)["to_loss"] is None
