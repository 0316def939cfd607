"""The list of mutants fits the sources as they are: `make mutants`, which takes hours, would say it too late."""

from __future__ import annotations

import importlib
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
if not (ROOT / "fastopt" / "engine.pyx").exists():
    pytest.skip("the sources are not beside the tests", allow_module_level=True)


@pytest.fixture(scope="module")
def mutants():
    """The module mutants.py, which is started as a program."""
    pytest.importorskip("tqdm")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent)
        return importlib.import_module("mutants")


def test_every_text_that_is_replaced_occurs_once(mutants):
    files = {mutant.file: (ROOT / mutant.file).read_text("utf-8") for mutant in mutants.MUTANTS}
    wrong = {mutant.name: n for mutant in mutants.MUTANTS if (n := files[mutant.file].count(mutant.old)) != 1}
    assert not wrong, f"change their texts in mutants_list.py: {wrong}"
    assert not [mutant.name for mutant in mutants.MUTANTS if mutant.old == mutant.new]


def test_every_mutant_has_a_name_of_its_own_and_tests_that_exist(mutants):
    assert len({mutant.name for mutant in mutants.MUTANTS}) == len(mutants.MUTANTS)
    for tests in {mutant.tests for mutant in mutants.MUTANTS}:
        files = [word for word in shlex.split(tests) if word.endswith(".py")]
        assert files and all((ROOT / "tests" / file).exists() for file in files), tests


def test_what_mutants_are_built_faster_by_occurs_once(mutants):
    for file, old, _ in mutants.FOR_SPEED:
        assert (ROOT / file).read_text("utf-8").count(old) == 1, old
