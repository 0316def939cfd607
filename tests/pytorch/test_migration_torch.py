"""What earlier versions of fastopt.torch saved: each file in tests/migration/*/torch is loaded, and continued."""

from __future__ import annotations

from functools import cache

import pytest
from support import frozen

torch = pytest.importorskip("torch")

from migration import cases, torch_cases  # noqa: E402

read = cache(cases.read)
CASES = [(path, name) for path in cases.folders("torch") for name in read(path).cases]
IDS = [f"{path.parent.name}-{name}" for path, name in CASES]


def loaded(case, folder, name):
    """An optimizer that has its options, state and counts from the file, and its parameters."""
    params = torch_cases.tensors(cases.starts(folder, case))
    for p, saved in zip(params, case["saved"]["params"], strict=True):
        p.data.copy_(torch.from_numpy(cases.unhexed(saved).copy()))
    opt = torch_cases.build(case, params, options=False)
    opt.load_state_dict(torch.load(folder.path / f"{name}.pt", weights_only=True))
    return opt, params


@pytest.mark.parametrize(("path", "name"), CASES, ids=IDS)
def test_what_a_version_saved_is_continued_with_the_same_bits(path, name):
    folder = read(path)
    case = folder.cases[name]
    opt, params = loaded(case, folder, name)
    assert cases.narrowed(torch_cases.described(opt, params), case["saved"]) == case["saved"]

    others = torch_cases.tensors(cases.starts(folder, case))
    fellow = torch_cases.build(case, others)
    torch_cases.step(fellow, others, folder, case, case["before"])
    groups, through = (
        [{key: value for key, value in group.items() if key != "params"} for group in one.param_groups]
        for one in (opt, fellow)
    )
    assert frozen(groups) == frozen(through)
    assert [group.get("param_names") for group in opt.param_groups] == [
        [case["names"][i] for i in place] if case["names"] else None for place in ([0, 1], [2, 3])
    ]

    torch_cases.reloaded(fellow, case)
    torch_cases.step(opt, params, folder, case, case["after"])
    torch_cases.step(fellow, others, folder, case, case["after"])
    found, wanted = torch_cases.described(opt, params), torch_cases.described(fellow, others)
    if folder.same_libm or not case["libm"]:
        assert found == wanted
        assert cases.narrowed(found, case["end"]) == case["end"]
    else:  # the file holds what another pow has computed
        assert cases.near(found, wanted)
        assert cases.near(cases.narrowed(found, case["end"]), case["end"])


def test_the_first_version_has_every_class():
    kept = read(cases.HERE / "0.1.0" / "torch").cases.values()
    assert {case["class"] for case in kept} == {
        "SGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "Lion", "NAdam", "RAdam", "RMSprop",
    }  # fmt: skip
