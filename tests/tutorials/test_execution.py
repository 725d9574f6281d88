"""How a page is made of a source: its numbers are the code's, and whatever goes wrong in it stops the build."""

import hooks
import pytest
from execution import BuildError, executed
from markdown_text import markdown

PAGE = """# %% [markdown]
# # A page
#
# The sum is `{python} f"{1 + 1:.3f}"`, and `{python} "a" * 3`.

# %%
x = 1 / 4
print("printed")

# %% [markdown]
# A quarter is `{python} x`.

# %% tags=["answer"]
x
"""


def test_prose_takes_its_numbers_from_code(tmp_path):
    text = markdown(executed(PAGE, tmp_path, "page"))
    assert "The sum is 2.000, and aaa." in text
    assert "A quarter is 0.25." in text
    assert "```{.text .wrapped}\nprinted\n```" in text
    answer = text.partition("<summary>Answer</summary>")[2]
    assert "```python\nx\n```" in answer
    assert "```{.text .wrapped}\n0.25\n```" in answer
    assert answer.rstrip().endswith("</details>")


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        ("assert x == 1, 'the check'", "page: AssertionError at \"assert x == 1, 'the check'\": the check"),
        ("y", "page: NameError at 'y': name 'y' is not defined"),
        ("import warnings\nwarnings.warn('beware')", "wrote to stderr, which no reader should meet: .*beware"),
    ],
)
def test_a_cell_that_goes_wrong_stops_the_build(cell, says, tmp_path):
    with pytest.raises(BuildError, match=says):
        executed(f"{PAGE}\n# %%\n{cell}\n", tmp_path, "page")


def test_a_cell_without_end_stops_the_build(tmp_path, monkeypatch):
    monkeypatch.setattr("execution.SECONDS", 2)
    with pytest.raises(BuildError, match="page: a cell ran for more than 2 seconds"):
        executed("# %%\nwhile True:\n    pass\n", tmp_path, "page")


def test_what_was_computed_is_kept_until_something_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(hooks, "KEPT", tmp_path)
    made = []

    def make():
        made.append(1)
        return f"page {len(made)}"

    assert [hooks._kept("page", ["a"], make) for _ in range(2)] == ["page 1", "page 1"]
    assert hooks._kept("page", ["b"], make) == "page 2"
    assert len(list(tmp_path.iterdir())) == 1
