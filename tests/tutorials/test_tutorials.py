"""Every tutorial runs, checks itself, and is caught by its check when it is spoilt; its prose has no figure that code did not compute."""

import re
import tomllib
from pathlib import Path

import hooks
import jupytext
import pytest
from execution import BuildError, executed

HERE = Path(__file__).parent
*TUTORIALS, HOME = SOURCES = hooks.sources()
MUTATIONS = [
    (source, mutation)
    for source in TUTORIALS
    for mutation in tomllib.loads((HERE / "mutations" / f"{source.stem}.toml").read_text(encoding="utf-8"))["mutation"]
]


def named(value):
    return value.stem if isinstance(value, Path) else value["what"]


def cells(source, kind):
    return [cell for cell in jupytext.read(source).cells if cell.cell_type == kind]


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, ids=named)
def test_it_runs_and_its_own_check_passes(source):
    page = hooks.tutorial(source)
    assert "{python}" not in page


@pytest.mark.slow
@pytest.mark.parametrize(("source", "mutation"), MUTATIONS, ids=named)
def test_its_check_finds_a_mutation(source, mutation, monkeypatch):
    # What one mutation compiled, the next need not.
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(HERE.parents[1] / ".pytest_cache" / "jax"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    text = source.read_text(encoding="utf-8")
    assert mutation["old"] in text
    with pytest.raises(BuildError, match=f"{source.name}: AssertionError"):
        executed(text.replace(mutation["old"], mutation["new"]), hooks.TUTORIALS, source.name)


def test_there_are_mutations_of_every_tutorial():
    assert {source for source, _ in MUTATIONS} == set(TUTORIALS)
    assert len(MUTATIONS) >= 10


def test_the_numbers_of_the_files_are_their_order():
    assert [int(source.name[:2]) for source in TUTORIALS] == list(range(1, 11))


@pytest.mark.parametrize("source", SOURCES, ids=named)
def test_its_prose_has_no_figure_typed_in(source):
    for cell in cells(source, "markdown"):
        prose = re.sub(r"\$\$.*?\$\$|\$[^$]*\$|```.*?```|`[^`]*`|\]\([^)]*\)|arXiv \S+|doi\S+|\b10\.\d{4}\S+", "", cell.source, flags=re.S)
        assert not re.findall(r"\d+\.\d+|\d+ ?%|\d+(?= times)", prose), prose


@pytest.mark.parametrize("source", TUTORIALS, ids=named)
def test_it_opens_with_a_question_and_ends_with_exercises(source):
    prose = "\n".join(cell.source for cell in cells(source, "markdown"))
    assert re.match(r"# .+\n\n[^#]*\?", prose)
    assert len(re.findall(r"(?m)^# ", prose)) == 1
    for heading in ("documents", "copy", "Exercises"):
        assert re.search(rf"(?m)^## .*{heading}", prose), heading
    answers = [cell for cell in cells(source, "code") if "answer" in cell.metadata.get("tags", [])]
    assert len(answers) >= 3
    assert "assert " in "\n".join(cell.source for cell in cells(source, "code") if cell not in answers)
