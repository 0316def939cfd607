"""The tools of bench/: what they say of made-up results."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("matplotlib")

import compare
import report

MACHINE = {
    "cpu": "A processor", "cores": 2, "caches": [{"name": "L1d", "bytes": 32768}, {"name": "L2", "bytes": 2**20}],
    "isa": "generic", "memory_gib": 8, "kernel": "Linux 6.1", "compiler": "gcc 12",
    "versions": {"fastopt": "0.1.0", "numpy": "2.4.6"},
}  # fmt: skip


def info(shape="1×1,000", elements=1000, arrays=1, spread=0.0, **changed):
    """One benchmark's extra_info; `seconds` maps names to µs."""
    taken = changed.pop("seconds", {"fastopt": 1.0, "roofline": 0.5, "torch fused": 30.0, "optax": 20.0})
    return {
        "suite": "step", "optimizer": "AdamW", "shape": shape, "arrays": arrays, "elements": elements,
        "dtype": "float32", "threads": 1, "gradients": "same", "bytes": 28 * elements, **changed,
        "seconds": {name: {"median": 1e-6 * t, "low": 1e-6 * t * (1 - spread / 2), "high": 1e-6 * t * (1 + spread / 2),
                           "rounds": 16} for name, t in taken.items()},
    }  # fmt: skip


def case(**facts):
    return compare.read_case(info(**facts))


def run(*infos, machine=MACHINE):
    return {
        "datetime": "2026-01-02T03:04:05", "commit_info": {"id": "0123456789abcdef", "dirty": True},
        "machine_info": {"fastopt": machine}, "benchmarks": [{"name": "x", "extra_info": i} for i in infos],
    }  # fmt: skip


@pytest.fixture
def write(tmp_path):
    """Write a run, or a text, as a file; returns its path."""

    def written(name, content):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return written


def results(*cases):
    return report.Results(list(cases), [run()])


# --- reading ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [
    "", "[]", "{}", run(), run({"suite": "step"}), run(info(seconds={"roofline": 1})),
    run(info(seconds={"fastopt": 0})),
])  # fmt: skip
def test_what_is_no_result_is_refused(write, content):
    with pytest.raises(compare.UnusableError, match=r"a\.json"):
        compare.load([write("a.json", content)])


def test_a_case_that_comes_twice_is_refused(write):
    paths = [write(name, run(info())) for name in ("a.json", "b.json")]
    with pytest.raises(compare.UnusableError, match="there before"):
        compare.load(paths)


def test_files_of_different_machines_are_refused():
    with pytest.raises(compare.UnusableError, match="different machines"):
        report.Results([case()], [run(), run(machine={**MACHINE, "cores": 4})])


# --- the report -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "text"), [
    (0.61234, "0.612"), (0.0612, "0.0612"), (8.8, "8.80"), (9.996, "10.0"), (99.95, "100"), (298.4, "298"),
    (5152, "5,150"), (1, "1.00"),
])  # fmt: skip
def test_numbers_have_three_figures(number, text):
    assert report.three_figures(number) == text


def test_the_best_peer_is_a_library():
    taken = {"fastopt": 9, "roofline": 1, "roofline, one thread": 1, "fastopt, one thread": 1, "NumPy reference": 2,
             "torch fused": 30, "optax": 20}  # fmt: skip
    assert report.best_peer(case(seconds=taken)) == "optax"
    assert report.best_peer(case(seconds={"fastopt": 1, "roofline": 1})) is None


def test_cells_say_the_time_and_the_ratio():
    table = report.race_table([case(), case(shape="1×10", seconds={"fastopt": 0.5, "optax": 1})])
    assert table.splitlines() == [
        "| shape | fastopt µs | roofline µs | torch fused µs | optax µs |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| 1×1,000 | 1.00 | 0.500 (0.500×) | 30.0 (30.0×) | 20.0 (20.0×) |",
        "| 1×10 | 0.500 | – | – | 1.00 (2.00×) |",
    ]


def test_a_wide_table_has_ratios_only():
    table = report.race_table([case(seconds={"fastopt": 2.0, **{f"library {k}": 3.0 for k in range(8)}})])
    assert table.splitlines()[0].startswith("| shape | fastopt µs | library 0 | library 1 |")
    assert table.splitlines()[2].startswith("| 1×1,000 | 2.00 | 1.50× | 1.50× |")


@pytest.mark.parametrize(("aim", "cells"), [
    # the worst counts, of the cases with these facts alone
    (report.Aim(("a", "b"), "× best peer", least=5), ["≥ 5 × best peer", "4.00 (b same: optax)", "no"]),
    (report.Aim(("a",), "× best peer", least=5), ["≥ 5 × best peer", "5.00 (a same: optax)", "yes"]),
    (report.Aim(("a", "b"), "µs", most=2), ["≤ 2 µs", "2.00 (a same)", "yes"]),
    (report.Aim(("a", "b"), "µs", most=1), ["≤ 1 µs", "2.00 (a same)", "no"]),
    (report.Aim(("a",), "× torch fused", least=5), ["≥ 5 × torch fused", "6.00 (a same)", "yes"]),
    (report.Aim(("a",), "of the roofline", least=0.9), ["≥ 0.9 of the roofline", "0.950 (a same)", "yes"]),
    (report.Aim(("a", "c"), "× best peer", least=5), ["≥ 5 × best peer", "5.00 (a same: optax)", "not all measured"]),
    (report.Aim(("c",), "× best peer", least=5), ["≥ 5 × best peer", "–", "not measured"]),
    (report.Aim(("a",), "× torch foreach", least=4), ["≥ 4 × torch foreach", "–", "not measured"]),
    (report.Aim((), "× best peer", least=1, dtype="float64"), ["≥ 1 × best peer", "3.00 (d same: optax)", "yes"]),
    (report.Aim((), "× one thread", least=1.7, threads="all"), ["≥ 1.7 × one thread", "1.60 (a same)", "no"]),
    (report.Aim((), "of the roofline's speed-up", least=0.95, threads="all"),
     ["≥ 0.95 of the roofline's speed-up", "0.800 (a same)", "no"]),
    (report.Aim((), "× one thread, upper quartile over lower", least=1, threads="all", optimizers=(), dtype=None),
     ["≥ 1 × one thread, upper quartile over lower", "0.990 (SGD a float64 same)", "no"]),
])  # fmt: skip
def test_aims(aim, cells):
    threaded = {"fastopt": 1, "roofline": 1, "fastopt, one thread": 1.6, "roofline, one thread": 2}
    slower = {"fastopt": 1, "fastopt, one thread": 0.99}
    found = results(
        case(shape="a", seconds={"fastopt": 2, "roofline": 1.9, "torch fused": 12, "optax": 10}),
        case(shape="b", seconds={"fastopt": 1, "torch fused": 9, "optax": 4}),
        case(shape="b", suite="size", seconds={"fastopt": 1, "optax": 0.5}),
        case(shape="a", optimizer="Adam", seconds={"fastopt": 1, "optax": 0.5}),
        case(shape="d", dtype="float64", seconds={"fastopt": 1, "optax": 3}),
        case(shape="a", threads=2, seconds=threaded),
        case(shape="a", threads=2, optimizer="SGD", dtype="float64", seconds=slower),
    )
    assert aim.row(found)[1:] == cells


def test_slower_with_all_threads_means_beyond_the_quartiles():
    near = case(threads=2, spread=0.1, seconds={"fastopt": 1, "fastopt, one thread": 0.95})
    far = case(threads=2, spread=0.1, seconds={"fastopt": 1, "fastopt, one thread": 0.85})
    assert report.speed_up_at_best(near) > 1 > report.speed_up_at_best(far)


def test_every_block_has_text_without_its_cases():
    blocks = {name: block(results(case(optimizer="SGD"))) for name, block in report.BLOCKS.items()}
    assert blocks["threads"] == blocks["optimizers"] == blocks["adamw-float32-1"] == "Not measured."
    assert blocks["targets"].count("not measured") == len(report.AIMS)
    assert "L1d 32 KiB, L2 1 MiB" in blocks["machine"]
    assert "0123456789ab with changes" in blocks["machine"]


def test_optimizers_and_threads():
    taken = {"fastopt": 280, "roofline": 270, "torch fused": 560, "optax": 420,
             "fastopt, one thread": 560, "roofline, one thread": 405}  # fmt: skip
    shape = {"shape": "1×1,000,000", "elements": 1_000_000}
    found = results(case(**shape, seconds=taken), case(**shape, seconds=taken, threads=2))
    assert "| AdamW | 280 | 100 | 96 % | 2.00× (torch fused) | 1.50× (optax) |" in report.optimizers_block(found)
    assert "| 1×1,000,000 | float32 | 560 | 280 | 2.00 | 1.50 | 1.33 |" in report.threads_block(found)


def test_the_whole_step_and_clipping():
    taken = {"fastopt": 20, "roofline": 18, "fastopt.torch": 25, "torch foreach + fused": 300}
    clipped = {"fastopt": 13, "fastopt, loose": 12, "fastopt, plain": 10}
    found = results(case(suite="whole", seconds=taken), case(suite="clip", seconds=clipped))
    block = report.whole_block(found)
    assert "Clip, step, average and zero, AdamW, float32, one thread:" in block
    assert "| 1×1,000 | 20.0 | 15.0× (torch foreach + fused) | 25.0 | 12.0× | 90 % |" in block
    assert "| 1×1,000 | float32 | 10.0 | 1.20× | 1.30× |" in block
    assert report.Aim(("1×1,000",), "× best peer", least=7, suite="whole").row(found)[0].startswith("whole step, AdamW")
    assert report.Aim(("1×1,000",), "× a step that does not clip", most=1.4, suite="clip").row(found)[-1] == "yes"
    assert report.Aim(("1×1,000",), "× best peer", least=1).row(found)[-1] == "not measured"
    assert report.best_peer(found.select(suite="clip")[0]) is None


def test_rows_of_adapters_are_kept_apart_from_the_cases(write):
    row = {"host": "thinc", "what": "Adam, 100 elements", "stock_s": 15e-6, "fastopt_s": 2.5e-6}
    source = write("a.json", run(info(), {"clients": [row]}))
    cases, runs = compare.load([source])
    assert len(cases) == 1 and runs[0]["clients"] == [row]
    block = report.clients_block(report.Results(list(cases.values()), runs))
    assert "| thinc | Adam, 100 elements | 15.0 µs | 2.50 µs | 6.00× |" in block
    assert [report.seconds(x) for x in (2.0, 0.0345, 1e-6)] == ["2.00 s", "34.5 ms", "1.00 µs"]


def test_filling_keeps_what_stands_outside():
    page = "before\n<!-- begin a -->\nold\n<!-- end a -->\nbetween <!-- begin b -->\n<!-- end b -->\nafter\n"
    filled = report.fill(page, {"a": r"new \1", "b": "more"})
    assert filled == ("before\n<!-- begin a -->\nnew \\1\n<!-- end a -->\n"
                      "between <!-- begin b -->\nmore\n<!-- end b -->\nafter\n")  # fmt: skip
    assert report.fill(filled, {"a": r"new \1", "b": "more"}) == filled


@pytest.mark.parametrize("page", [
    "", "<!-- begin a -->\n<!-- end b -->", "<!-- begin a -->", "<!-- begin b -->\n<!-- end b -->",
    2 * "<!-- begin a -->\n<!-- end a -->\n", "<!-- begin a -->\n<!-- end a -->\n<!-- begin b -->\n<!-- end b -->",
])  # fmt: skip
def test_a_page_with_other_blocks_is_an_error(page):
    with pytest.raises(report.PageError):
        report.fill(page, {"a": "text"})


def test_the_page_of_the_docs_has_every_block():
    report.fill(report.DOCS.read_text(encoding="utf-8"), {name: "" for name in report.BLOCKS})


def all_suites():
    line = {"fastopt": 1, "roofline": 0.9}
    for threads in (1, 2):
        for n in (10, 1000, 100_000):
            facts = {"elements": n, "shape": f"1×{n:,}", "threads": threads}
            yield info(**facts)
            yield info(**facts, dtype="float64")
            yield info(**facts, suite="size", seconds=line)
            yield info(elements=100 * n, arrays=n, shape=f"{n:,}×100", threads=threads, suite="count", seconds=line)


def test_the_same_results_give_the_same_files(write, tmp_path):
    source = write("a.json", run(*all_suites()))
    found = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        page = tmp_path / name / "page.md"
        page.write_text("".join(f"<!-- begin {b} -->\n<!-- end {b} -->\n" for b in report.BLOCKS), encoding="utf-8")
        report.main([str(source), "--docs", str(page)])
        found.append({path.name: path.read_bytes() for path in (page, *page.parent.glob("figures/*.svg"))})
    assert found[0] == found[1]
    assert found[0].keys() == {"page.md", *(f"{name}.svg" for name in report.FIGURES)}
    assert max(map(len, found[0].values())) < 150_000


def test_a_figure_without_results_is_removed(tmp_path):
    old = tmp_path / "old.svg"
    old.write_text("from another run")
    report.draw(old, report.FIGURES["size-1"], results(case()))
    assert not old.exists()


def test_a_wrong_page_ends_in_1_and_stays(write):
    page, source = write("page.md", "no blocks"), write("a.json", run(info()))
    with pytest.raises(SystemExit) as ended:
        report.main([str(source), "--docs", str(page)])
    assert "missing" in ended.value.code       # a message as the code: exit code 1
    assert page.read_text(encoding="utf-8") == "no blocks"


# --- the comparison ---------------------------------------------------------------------------------------

OLD = {"fastopt": 1.0, "roofline": 2.0, "torch fused": 4.0, "optax": 8.0}


def verdict(new, spread=0.0, old=OLD):
    return compare.change(case(seconds=old, spread=spread), case(seconds=new, spread=spread)).verdict


def times(fastopt, *others):
    return {name: old * factor for (name, old), factor in zip(OLD.items(), (fastopt, *others), strict=True)}


@pytest.mark.parametrize(("factors", "expected"), [
    ((1, 1, 1, 1), "same"),
    ((1.5, 1.5, 1.5, 1.5), "same"),                  # the machine drifted
    ((1, 0.8, 0.8, 0.8), "slower"), ((1.5, 1.8, 1.8, 1.8), "faster"),
    ((1.1, 1, 1, 3), "slower"),                      # one library changed: the median stays
    ((1.029, 1, 1, 1), "same"), ((1.031, 1, 1, 1), "slower"),
    ((0.972, 1, 1, 1), "same"), ((0.97, 1, 1, 1), "faster"),
    ((10, 1, 0.5, 2), "unclear"),                    # no two lines tell the same drift
])  # fmt: skip
def test_a_change_is_what_drift_does_not_explain(factors, expected):
    assert verdict(times(*factors)) == expected


def test_a_change_lies_beyond_the_noise():
    # A notch of 1.57 * 0.1 / sqrt(16), in quadrature twice for fastopt and twice for the drift: 7.85 %.
    assert verdict(times(1.078, 1, 1, 1), spread=0.1) == "same"
    assert verdict(times(1.079, 1, 1, 1), spread=0.1) == "slower"


def test_what_fastopt_brings_along_tells_no_drift():
    ours = {"fastopt": 1.0, "fastopt, one thread": 1.0, "NumPy reference": 1.0}
    assert compare.change(case(seconds=ours), case(seconds=ours)) is None
    doubled = {name: 2 * t for name, t in ours.items()}
    assert verdict({**doubled, "roofline": 1.0}, old={**ours, "roofline": 1.0}) == "slower"


@pytest.mark.parametrize(("new", "code", "says"), [
    (times(1, 1, 1, 1), 0, "one case: 0 slower, 0 faster, 0 unclear, 1 the same;"),
    (times(0.5, 1, 1, 1), 0, "one case: 0 slower, 1 faster,"),
    (times(2, 1, 1, 1), 1, "step: AdamW 1×1,000 float32, one thread, same gradients\none case: 1 slower,"),
])  # fmt: skip
def test_exit_codes(write, capsys, new, code, says):
    files = write("old.json", run(info(seconds=OLD))), write("new.json", run(info(seconds=new)))
    assert compare.main([str(files[0]), "--new", str(files[1])]) == code
    assert says in capsys.readouterr().out


def test_unusable_input_ends_in_2(write, capsys):
    good, other = write("a.json", run(info())), write("b.json", run(info(shape="1×10")))
    for new in (other, write("c.json", "no json"), good.with_name("not there")):
        assert compare.main([str(good), "--new", str(new)]) == 2
    assert "c.json: JSONDecodeError" in capsys.readouterr().err


def test_what_else_changed_between_the_runs_is_said():
    old, new = ({"machine_info": {"fastopt": {"cores": n, "versions": {"fastopt": n, "torch": "2"}}}} for n in (1, 2))
    assert compare.differences([old], [new]) == ["cores: 1 -> 2"]
    new["machine_info"]["fastopt"]["versions"]["torch"] = "3"
    assert compare.differences([old], [new]) == ["cores: 1 -> 2", "torch: 2 -> 3"]
    assert compare.differences([old], [old]) == []
