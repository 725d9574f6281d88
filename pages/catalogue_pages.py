"""A pattern's file as a page, and the catalogue as a table: what the files say of themselves, nothing kept twice."""

import ast
import re
import subprocess
import sys
import time
from os import environ
from pathlib import Path

import jupytext
from execution import BuildError
from markdown_text import fenced, markdown

from vipatterns import catalogue
from vipatterns.catalogue import Pattern

COLUMNS = {
    "Mean-field": r"mean-field",
    "Full-rank": r"full-rank|^Gaussian,",
    "Structured": r"structured|non-centred|an encoder for each layer",
    "Point mass": r"point mass|point-mass",
    "Exact family": r"exact family",
    "Coordinate ascent": r"coordinate ascent|expectation maximisation|natural gradients$",
    "Minibatches": r"stochastic natural|minibatches",
    "Score function": r"score-function",
    "Other gradients": r"implicit|path-derivative|doubly reparameterised",
    "Importance weights": r"importance|weighted draws",
    "Flow": r"flow",
    "Amortised": r"amortised",
    "Labels summed out": r"labels summed|enumerated",
    "Constraint": r"posterior regularisation",
    "Particles, sampling": r"stein|gibbs",
}
"""Column of the table -> what a pattern's **Technique** says where it belongs there; a pattern may stand in several."""

HELD = {
    "exact posterior": "The tests hold this fit to the exact posterior of these data, within Monte Carlo error.",
    "documented bias": "The tests hold it to the best member of its guide's family, computed another way; how far off that is, is known.",
    "exact evidence": "The tests hold this fit to the exact evidence, computed another way.",
    "NUTS": "No closed form holds this fit; its tests hold what its docstring says, and measure it against NUTS or a rival.",
}
"""What a pattern is checked against -> what its page says of that."""
MANY = 8
"""A technique of more patterns than this is no kinship; the catalogue lists them."""


def columns(pattern: Pattern) -> list[str]:
    """The columns of the table in which a pattern stands."""
    return [column for column, says in COLUMNS.items() if re.search(says, pattern.technique, re.I)]


def table(patterns: list[Pattern]) -> str:
    """Families as rows, techniques as columns; a cell names its patterns."""
    rows = ["| Problem | " + " | ".join(COLUMNS) + " |", "|---|" + "---|" * len(COLUMNS)]
    for family in dict.fromkeys(pattern.family for pattern in patterns):
        cells = {column: [] for column in COLUMNS}
        for pattern in (p for p in patterns if p.family == family):
            short = words(pattern.name.removeprefix(family).strip("_")) or "plain"
            for column in columns(pattern):
                cells[column].append(f"[{short}](patterns/{pattern.name}.md)")
        rows.append(f"| **{words(family)}** | " + " | ".join("<br>".join(cell) for cell in cells.values()) + " |")
    region = '<div class="output catalogue" markdown="1" tabindex="0" role="region" aria-label="The catalogue">'
    return "\n\n".join([region, "\n".join(rows), "</div>"])


def listing(patterns: list[Pattern]) -> str:
    """Every pattern with its technique and what it is held to."""
    rows = ["| Pattern | What it is | Technique | Checked against |", "|---|---|---|---|"]
    rows += [f"| [{words(p.name)}](patterns/{p.name}.md) | {p.title} | {p.technique} | {p.checked_against} |" for p in patterns]
    return "\n".join(rows)


def words(name: str) -> str:
    """gaussian_mean -> gaussian mean."""
    return " ".join(word.upper() if word in ("vae", "em", "cavi", "kl", "mcmc") else word for word in name.split("_"))


def page(pattern: Pattern, patterns: list[Pattern], printed: str) -> str:
    """The Markdown of a pattern's page.

    Args:
        pattern: Whose page.
        patterns: All, of which some are related.
        printed: What its file prints, after a line with the seconds that this takes.
    """
    path = catalogue.find(pattern.name)
    source = path.read_text(encoding="utf-8")
    seconds, _, printed = printed.partition("\n")
    said = ast.get_docstring(ast.parse(source)) or ""
    headings = re.split(r"\n(?=\*\*)", said.partition("\n\n")[2])
    notebook = jupytext.reads(source[source.index("# %%") :].partition('\nif __name__ == "__main__":')[0], fmt="py:percent")
    imports, prose = notebook.cells[:2]
    title = re.match(r"# (.+)\n", prose.source)
    if imports.cell_type != "code" or title is None:
        raise BuildError(f"{path.name}: expected the imports in its first cell and `# Title` atop the second.")
    prose.source = prose.source.removeprefix(title[0]).strip()
    imports.metadata["tags"] = ["imports"]
    notebook.cells[:2] = [prose, imports]
    return "\n\n".join([
        f"# {title[1]}",
        f"{pattern.title[0].upper()}{pattern.title[1:].rstrip('.')}.",
        "\n".join(f"- {_linked(' '.join(heading.split()))}" for heading in headings),
        "Take the file and make it your own (`data()` is where your table goes in):",
        fenced(f"vipatterns copy {pattern.name} .", "sh"),
        markdown(notebook).strip(),
        f"## What it prints\n\n`python {path.name}`, in {seconds} s with compilation, on the machine that built this page:",
        fenced(printed, "text"),
        HELD[pattern.checked_against],
        _related(pattern, patterns),
        '<details class="code" markdown="1">\n<summary>The whole file, to copy</summary>',
        fenced(source, "python"),
        "</details>\n",
    ])  # fmt: skip


def printed(path: Path) -> str:
    """What a pattern's file prints when a reader runs it, after a line with the seconds that it takes.

    Raises:
        BuildError: The file ended with an error, or wrote to stderr.
    """
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, timeout=600, env=environ | {"JAX_PLATFORMS": "cpu"}, check=False
    )
    if done.returncode or done.stderr.strip():
        raise BuildError(f"{path.name} ended with {done.returncode}: {done.stderr.strip()[-1000:]}")
    return f"{time.perf_counter() - start:.0f}\n{done.stdout}"


def _related(pattern: Pattern, patterns: list[Pattern]) -> str:
    """Others of the family, and of each rarer technique."""
    others = [p for p in patterns if p.name != pattern.name]
    lines = []
    if family := [p for p in others if p.family == pattern.family]:
        lines.append("- The same problem: " + _links(family))
    for column in columns(pattern):
        like = [p for p in others if column in columns(p) and p.family != pattern.family]
        if 0 < len(like) <= MANY:
            lines.append(f"- {column}: " + _links(like))
    return "## Related patterns\n\n" + "\n".join(lines) if lines else ""


def _links(patterns: list[Pattern]) -> str:
    return ", ".join(f"[{words(p.name)}]({p.name}.md)" for p in patterns)


def _linked(text: str) -> str:
    """arXiv ids and DOIs as links."""
    text = re.sub(r"arXiv (\d{4}\.\d{4,5}|[a-z-]+/\d{7})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)
    return re.sub(r"(?:\bdoi )?(?<![/\w])(10\.\d{4,}/[^\s,;]*[^\s,;.])", r"[doi:\1](https://doi.org/\1)", text)
