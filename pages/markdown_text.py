"""An executed notebook as Markdown: prose as it is, code in fences, what the code gave beneath it."""

import re

import nbformat

FOLDED = {"answer": ("Answer", "answer"), "figure": ("Code of the figure", "code"), "imports": ("Imports", "code")}
"""Tag of a code cell -> what is written on its fold, and its class. An answer folds its outputs too; a figure's stay in sight."""


def markdown(notebook: nbformat.NotebookNode) -> str:
    """The page's text."""
    return "\n\n".join(_cell(cell) for cell in notebook.cells if cell.source.strip()) + "\n"


def _cell(cell: nbformat.NotebookNode) -> str:
    if cell.cell_type != "code":
        return cell.source
    code = fenced(cell.source, "python")
    outputs = [_output(output) for output in cell.outputs]
    for tag, (label, kind) in FOLDED.items():
        if tag in cell.metadata.get("tags", []):
            inside = [code, *outputs] if tag == "answer" else [code]
            outputs = [] if tag == "answer" else outputs
            code = "\n\n".join([f'<details class="{kind}" markdown="1">\n<summary>{label}</summary>', *inside, "</details>"])
    return "\n\n".join([code, *outputs])


def _output(output: nbformat.NotebookNode) -> str:
    """HTML where there is some, else what a terminal would show."""
    if output.output_type == "stream":
        return _printed(output.text)
    data = output.get("data", {})
    if "text/html" in data:
        text = re.sub(r"<style.*?</style>", "", data["text/html"], flags=re.S)
        text = re.sub(r'<table border="1" class="dataframe">', "<table>", text)  # the theme dresses a table that has no class
        return f'<div class="output">\n{re.sub(r"\n\s*\n", "\n", text.strip())}\n</div>'
    if "text/markdown" in data:
        return data["text/markdown"]
    return _printed(data.get("text/plain", ""))


def _printed(text: str) -> str:
    """What a terminal would show; sentences may be broken where the page ends, columns may not."""
    columns = re.search(r"\S {2,}\S", text)
    return fenced(text, "text" if columns else "{.text .wrapped}")


def fenced(text: str, language: str) -> str:
    """A block of code, behind a fence longer than any in it."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
