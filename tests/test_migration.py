"""What earlier versions saved: each file in tests/migration is loaded, and continued with the same bits."""

from __future__ import annotations

import pickle
from functools import cache
from typing import Any

import numpy as np
import pytest
from migration import cases
from support import build, frozen

import fastopt

read = cache(cases.read)
FOLDERS = cases.folders()
CASES = [(path, name) for path in FOLDERS for name in read(path).cases]
IDS = [f"{path.name}-{name}" for path, name in CASES]
every_case = pytest.mark.parametrize(("path", "name"), CASES, ids=IDS)


def params_of(case: dict[str, Any], folder: cases.Folder) -> list[np.ndarray]:
    """The parameters at the moment of saving, in the memory order that they had."""
    params = cases.starts(folder, case)
    for p, saved in zip(params, case["saved"]["params"], strict=True):
        p[...] = cases.unhexed(saved)
    return params


def another(case: dict[str, Any], folder: cases.Folder, turned: bool = False) -> fastopt.Optimizer:
    """An optimizer over the same parameters and groups that has no option of the case: they come from the file.

    With `turned`, named parameters are in another order: their state goes by the names.
    """
    cls, groups = fastopt.OPTIMIZERS[case["class"]], cases.grouped(case, params_of(case, folder), options=False)
    if turned and case["names"]:
        groups = [{"params": dict(reversed(group["params"].items()))} for group in groups]
    return build(cls, groups, case["convention"], **case["settings"])


def from_file(case, folder, name):
    opt = another(case, folder)
    opt.load(folder.path / f"{name}.safetensors")
    return opt


def from_state_dict(case, folder, name):
    opt = another(case, folder, turned=True)
    opt.load_state_dict(pickle.loads((folder.path / f"{name}.state.pickle").read_bytes()))
    return opt


def from_pickle(case, folder, name):
    return pickle.loads((folder.path / f"{name}.optimizer.pickle").read_bytes())


def ran_through(case, folder):
    """An optimizer of this version that took the steps before the file was written itself."""
    opt = cases.build(case, cases.starts(folder, case))
    cases.step(opt, folder, case, case["before"])
    return opt


def rest_of(opt: fastopt.Optimizer) -> Any:
    """What a loaded optimizer has beside parameters, state and counts: groups with their schedules, names, settings."""
    names = [sorted(group.get("param_names", ())) for group in opt.state_dict()["param_groups"]]
    options = [{key: value for key, value in group.items() if key != "params"} for group in opt.param_groups]
    settings = [opt.n_threads, opt.nonfinite, opt.copy_grads]
    return frozen([type(opt).__name__, opt.convention, names, options, settings])


@every_case
@pytest.mark.parametrize("way", [from_file, from_state_dict, from_pickle], ids=["file", "state_dict", "pickle"])
def test_what_a_version_saved_is_continued_with_the_same_bits(path, name, way):
    folder = read(path)
    case = folder.cases[name]
    opt, fellow = way(case, folder, name), ran_through(case, folder)
    # As it was when it was saved: bits that are in the file, on every platform.
    assert cases.narrowed(cases.described(opt, case), case["saved"]) == case["saved"]
    assert rest_of(opt) == rest_of(fellow)
    for one in (opt, fellow):
        cases.step(one, folder, case, case["after"])
    found, through = cases.described(opt, case), cases.described(fellow, case)
    if folder.same_libm or not case["libm"]:
        assert found == through
        assert cases.narrowed(found, case["end"]) == case["end"]
    else:  # the file holds what another pow has computed
        assert cases.near(found, through)
        assert cases.near(cases.narrowed(found, case["end"]), case["end"])


@every_case
def test_all_ways_lead_to_the_same_optimizer(path, name):
    """On every platform, whatever its pow."""
    folder = read(path)
    case = folder.cases[name]
    ends = []
    for way in (from_file, from_state_dict, from_pickle):
        opt = way(case, folder, name)
        cases.step(opt, folder, case, case["after"])
        ends.append((cases.described(opt, case), rest_of(opt)))
    assert ends[0] == ends[1] == ends[2]


@every_case
def test_the_key_fastopt_and_the_names_survive(path, name):
    folder = read(path)
    case = folder.cases[name]
    written = pickle.loads((path / f"{name}.state.pickle").read_bytes())
    assert written["fastopt"] == case["fastopt"]
    again = from_file(case, folder, name).state_dict()
    kept = {key: value for key, value in case["fastopt"].items() if key != "version"}  # today's
    assert {key: again["fastopt"][key] for key in kept} == kept
    for saved in (written, fastopt.load(path / f"{name}.safetensors"), again):
        names = [group.get("param_names") for group in saved["param_groups"]]
        rest = iter(case["names"] or ())
        wanted = [[next(rest) for _ in group["params"]] for group in case["groups"]] if case["names"] else None
        assert names == (wanted or [None] * len(case["groups"]))


@pytest.mark.parametrize("path", FOLDERS, ids=lambda path: path.name)
def test_a_folder_is_whole(path):
    folder = read(path)
    files = {f"{name}.{end}" for name in folder.cases for end in ("safetensors", "state.pickle", "optimizer.pickle")}
    assert {file.name for file in path.iterdir()} == {*files, "arrays.npz", "cases.json", "torch"}
    assert {*(file.name for file in (path / "torch").iterdir())} == {
        "cases.json", *(f"{name}.pt" for name in read(path / "torch").cases)
    }  # fmt: skip


def test_the_first_version_has_every_class_convention_and_slot():
    """What this version offers more, belongs into a folder of its own."""
    kept = read(cases.HERE / "0.1.0").cases.values()
    offered = {(case["class"], case["convention"]) for case in kept}
    assert len(offered) == 45 and len({name for name, _ in offered}) == 12
    slots = {name for case in kept for entry in case["saved"]["state"] for name in entry}
    assert slots == {
        "step", "momentum_buffer", "velocity", "scaled_momentum_buffer", "sum", "square_avg", "acc_delta", "grad_avg",
        "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "max_exp_avg_sq_hat", "exp_inf", "exp_inf_without_eps",
        "mu_product", "exp_avg_mu_product",
    }  # fmt: skip
    assert any(case["fastopt"]["skipped_steps"] for case in kept)
    assert any(0 in case["fastopt"]["counts"] and any(case["fastopt"]["counts"]) for case in kept)


def test_near_tells_last_places_from_more():
    one = np.array([1.0, 3.0], np.float32)
    entry = {"state": [{"step": 3, "exp_avg": cases.hexed(one)}]}
    for factor, wanted in ((1 + 2.0**-22, True), (1 + 2.0**-10, False)):
        other = {"state": [{"step": 3, "exp_avg": cases.hexed((one * factor).astype(np.float32))}]}
        assert cases.near(other, entry) is wanted
    assert not cases.near({"state": [{"step": 4, "exp_avg": cases.hexed(one)}]}, entry)
