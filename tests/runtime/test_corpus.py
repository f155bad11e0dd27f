"""Whatever fuzzing has found once, and what it began with, does no harm: `fuzz/corpus`, replayed."""

import pytest

from fuzz.names import CORPUS, NAMES
from fuzz.targets import TARGETS

CASES = [f"{target}/{path.name}" for target in NAMES for path in sorted((CORPUS / target).iterdir())]


def test_every_target_has_a_corpus_that_a_person_can_look_through() -> None:
    assert set(NAMES) == set(TARGETS)
    for target in NAMES:
        files = list((CORPUS / target).iterdir())
        assert 5 <= len(files) <= 30, target
        assert all(path.stat().st_size <= 4096 for path in files), target


@pytest.mark.parametrize("case", CASES)
def test_what_was_found_once_does_no_harm(case: str) -> None:
    TARGETS[case.partition("/")[0]]((CORPUS / case).read_bytes())
