"""The page of corrections names tests that exist, and leaves no correction out."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / "tutorials" / "corrections.md").read_text(encoding="utf-8")
TESTS = {
    f"{path.name}::{name}"
    for path in sorted((ROOT / "tests" / "documents").glob("test_*.py"))
    for name in re.findall(r"(?m)^def (test_\w+)", path.read_text(encoding="utf-8"))
}
NAMED = re.findall(r"`(test_\w+\.py::test_\w+)`", PAGE)


def test_every_test_that_is_named_exists():
    assert set(NAMED) - TESTS == set()


def test_no_correction_is_left_out_and_none_stands_twice():
    assert {name for name in TESTS if "::test_corrected_" in name} - set(NAMED) == set()
    assert len(NAMED) == len(set(NAMED))


def test_what_was_finished_is_named():
    assert {name for name in TESTS if "::test_finished_" in name} - set(NAMED) == set()


def test_tests_are_named_nowhere_else():
    """A name outside the form that is looked for would not be held to exist."""
    assert len(re.findall(r"test_\w+\.py", PAGE)) == len(NAMED)


def test_every_correction_shows_its_test():
    """Under each heading with a quotation stands at least one test."""
    for section in re.split(r"(?m)^### ", PAGE)[1:]:
        assert "\n> " not in section or "::test_" in section, section.partition("\n")[0]
