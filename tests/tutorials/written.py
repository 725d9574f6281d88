"""The site's pages that are written and not computed, and the home page, as Markdown."""

import pathlib

import jupytext

ROOT = pathlib.Path(__file__).parents[2]
PAGES = ("symptoms", "corrections", "notation", "patterns", "index", "api")


def text(page: str) -> str:
    """Of a page that is executed, its cells as they stand in the source."""
    source = ROOT / "tutorials" / f"{page}.py"
    if not source.exists():
        return source.with_suffix(".md").read_text(encoding="utf-8")
    cells = jupytext.read(source).cells
    return "\n\n".join(f"```python\n{cell.source}\n```" if cell.cell_type == "code" else cell.source for cell in cells)
