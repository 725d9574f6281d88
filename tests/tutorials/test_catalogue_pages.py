"""Pages of patterns, and the table that leads to them, say what the files say."""

import ast
import re

import catalogue_pages
import pytest
from execution import BuildError

from vipatterns import catalogue

PATTERNS = catalogue.patterns()


def test_every_pattern_stands_in_the_table_and_in_the_list():
    table, listing = catalogue_pages.table(PATTERNS), catalogue_pages.listing(PATTERNS)
    for pattern in PATTERNS:
        assert len(re.findall(rf"\(patterns/{pattern.name}\.md\)", table)) == len(catalogue_pages.columns(pattern)) > 0
        assert f"(patterns/{pattern.name}.md)" in listing
    assert {column for pattern in PATTERNS for column in catalogue_pages.columns(pattern)} == set(catalogue_pages.COLUMNS)


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.name)
def test_a_page_holds_all_of_the_file(pattern):
    page = catalogue_pages.page(pattern, PATTERNS, "7\nestimate  exact\n")
    source = catalogue.find(pattern.name).read_text(encoding="utf-8")
    assert source.strip() in page
    assert f"vipatterns copy {pattern.name} ." in page
    assert "in 7 s with compilation" in page
    assert "```text\nestimate  exact\n```" in page
    for heading in ("Technique", "Use when", "Avoid when", "Cost", "Bias to expect", "Source"):
        assert f"\n- **{heading}** " in page
    assert len(re.findall(r"(?m)^# ", re.sub(r"```.*?```", "", page, flags=re.S))) == 1
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef):
            assert page.count(f"\ndef {node.name}(") == 2  # where it is explained, and in the whole file
    assert not re.search(r"doi:? \[doi", page)  # the link says it
    names = {p.name for p in PATTERNS} - {pattern.name}
    related = set(re.findall(r"\]\((\w+)\.md\)", page.partition("## Related patterns")[2]))
    assert related <= names
    assert related >= {p.name for p in PATTERNS if p.family == pattern.family} - {pattern.name}


def test_a_pattern_that_fails_stops_the_build(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("print('begun')\nraise ValueError('no')\n")
    with pytest.raises(BuildError, match=r"(?s)broken.py ended with 1: .*ValueError: no"):
        catalogue_pages.printed(path)
    path.write_text("import sys\nprint('done')\nprint('beware', file=sys.stderr)\n")
    with pytest.raises(BuildError, match=r"broken\.py ended with 0: beware"):
        catalogue_pages.printed(path)
    path.write_text("print('done')\n")
    assert re.fullmatch(r"\d+\ndone\n", catalogue_pages.printed(path))
