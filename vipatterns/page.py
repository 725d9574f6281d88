"""A Comparison as one HTML file: no request leaves it, it follows the reader's light or dark setting, and reads on a phone.

Other pages are made of the same parts. Whatever comes from data or from a model's names is escaped.
"""

import io
import re
import warnings
from collections.abc import Iterable
from html import escape
from typing import Any

from matplotlib import style
from matplotlib.figure import Figure

from vipatterns import plots
from vipatterns.posterior import described
from vipatterns.wording import SCALAR_HEADINGS, method_rows, reference_line, remarks, scalar_rows

INK = "#010203"
"""What Matplotlib draws in this colour takes the colour of the page's text."""
MOST_SCALARS = 40
MOST_PANELS = 12

CSS = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1b1f24; --muted: #57606a; --line: #d4dae1; --raised: #f5f7f9;
  --safe: #14713f; --partly: #8a5a00; --unsafe: #b3261e; --reference: #14599c; --unknown: #6b4a9c; }
@media (prefers-color-scheme: dark) { :root { --paper: #101418; --ink: #e7ebef; --muted: #a3adb8; --line: #303841; --raised: #181e24;
  --safe: #5fcf94; --partly: #e8b23f; --unsafe: #ff8a80; --reference: #7ab8f5; --unknown: #c4a3f0; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .5rem; } h2 { font-size: 1.2rem; margin: 2.5rem 0 .6rem; }
p { margin: .4rem 0; max-width: 46rem; } .lead { font-size: 1.15rem; }
.muted, figcaption { color: var(--muted); font-size: .9rem; }
.verdict { border: 1px solid var(--line); border-left: 5px solid var(--tone); border-radius: 6px; background: var(--raised);
  padding: .7rem 1rem; margin: .7rem 0; } .verdict h3 { font-size: 1rem; margin: 0; }
.verdict b { color: var(--tone); font-weight: 650; margin-left: .5rem; } .verdict p { max-width: none; }
.safe { --tone: var(--safe); } .partly { --tone: var(--partly); } .unsafe, .failed { --tone: var(--unsafe); }
.reference { --tone: var(--reference); } .unknown { --tone: var(--unknown); }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; }
.scroll:focus-visible { outline: 2px solid var(--reference); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .35rem .7rem; text-align: right; white-space: nowrap; } th { font-weight: 600; }
thead th { border-bottom: 1px solid var(--line); color: var(--muted); } tbody + tbody { border-top: 1px solid var(--line); }
.methods tbody tr + tr { border-top: 1px solid var(--line); } .name { text-align: left; } tbody th { overflow-wrap: normal; }
figure { margin: 0 0 1.2rem; } figure svg { display: block; width: 100%; height: auto; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 15rem), 1fr)); gap: .5rem 1rem; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem 2rem; }
.pair > figure { max-width: 36rem; } .square { max-width: 36rem; }
.key { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; list-style: none; padding: 0; margin: .5rem 0; font-size: .92rem; }
.key svg { width: 2.2rem; height: .9rem; vertical-align: -.1rem; margin-right: .4rem; }
dt { font-weight: 600; margin-top: .5rem; } dd { margin: 0; max-width: 46rem; }
code { font-size: .9em; } pre { margin: 0; padding: .7rem 1rem; font-size: .85rem; }
"""


def html(comparison: Any) -> str:
    """The whole page."""
    title = comparison.title or "Comparison"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="lead">{escape(comparison.summary)}</p>',
        f'<p class="muted">{escape(reference_line(comparison))}</p>',
        "<h2>Verdicts</h2>",
        *(_verdict(comparison, label) for label in comparison.fits),
        "<h2>Methods</h2>",
        scroll(_methods(comparison), "Methods side by side"),
    ]
    if comparison.finished:
        parts += [*_figures(comparison), *_scalars(comparison)]
    parts += ["<h2>How to read this</h2>", READING, *_provenance(comparison)]
    return document(f"{title}: methods side by side", parts)


def document(title: str, parts: Iterable[str]) -> str:
    """A page of its own of parts that are HTML."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(parts)
        + "\n</main>\n</body>\n</html>\n"
    )


def fragment(comparison: Any) -> str:
    """What a notebook shows: the answer, the methods and the verdicts, in the notebook's own style."""
    verdicts = "".join(
        f"<li><b>{escape(label)}</b> ({escape(v.standing)}): {escape(v.sentence)}</li>" for label, v in comparison.verdicts.items()
    )
    title = escape(comparison.title or "Comparison")
    return f"<div><p><b>{title}</b>. {escape(comparison.summary)}</p>{_methods(comparison)}<ul>{verdicts}</ul></div>"


def _verdict(comparison: Any, label: str) -> str:
    fit, judged = comparison.fits[label], comparison.verdicts[label]
    small = "".join(f'<p class="muted">{escape(line)}</p>' for line in [*remarks(comparison, label), described(fit.method)])
    return (
        f'<section class="verdict {judged.standing}"><h3>{escape(label)}<b>{judged.standing}</b></h3>'
        f"<p>{escape(judged.sentence)}</p>{small}</section>"
    )


def _methods(comparison: Any) -> str:
    rows = method_rows(comparison)
    headings = [heading for heading in next(iter(rows.values())) if any(row[heading] for row in rows.values())]
    head = "".join(f'<th scope="col">{escape(h)}</th>' for h in headings)
    body = "".join(f"<tr>{_cells(label, (row[h] for h in headings), 'th')}</tr>" for label, row in rows.items())
    return f'<table class="methods"><thead><tr><th scope="col" class="name">method</th>{head}</tr></thead><tbody>{body}</tbody></table>'


def _scalars(comparison: Any) -> list[str]:
    names, total = comparison.worst(MOST_SCALARS)
    bodies = []
    for name, rows in scalar_rows(comparison, names).items():
        group = f'<tr><th scope="rowgroup" class="name" colspan="{1 + len(SCALAR_HEADINGS)}">{escape(name)}</th></tr>'
        cells = "".join(f"<tr>{_cells(label, row, 'td')}</tr>" for label, row in rows.items())
        bodies.append(f"<tbody>{group}{cells}</tbody>")
    head = '<th scope="col" class="name">by</th>' + "".join(f'<th scope="col">{h}</th>' for h in SCALAR_HEADINGS)
    table = f"<table><thead><tr>{head}</tr></thead>{''.join(bodies)}</table>"
    return ["<h2>Parameters</h2>", f'<p class="muted">{_which(comparison, len(names), total)}</p>', scroll(table, "Parameters by method")]


def _cells(first: str, rest: Iterable[str], tag: str) -> str:
    scope = ' scope="row"' if tag == "th" else ""
    return f'<{tag}{scope} class="name">{escape(first)}</{tag}>' + "".join(f"<td>{escape(cell) or '–'}</td>" for cell in rest)


def _figures(comparison: Any) -> list[str]:
    names, total = comparison.worst(MOST_PANELS)
    with house_style():
        panels = plots.marginal_panels(comparison, names)
        traces, timing, pairs = plots.elbo_traces(comparison), plots.error_against_time(comparison), plots.pairs(comparison)
        parts = ["<h2>Marginals</h2>", f'<p class="muted">{_which(comparison, len(names), total)}</p>', _key(comparison)]
        parts.append(f'<div class="panels">{"".join(figure(panel, f"m{i}") for i, panel in enumerate(panels))}</div>')
        wide = [figure(p, prefix, caption) for p, prefix, caption in ((traces, "elbo", TRACES), (timing, "time", TIMING)) if p is not None]
        if wide:
            parts.append(f'<h2>{"Optimisation and time" if traces is not None else "Time"}</h2><div class="pair">{"".join(wide)}</div>')
        if pairs is not None:
            parts.append(f'<h2>Pairs</h2><div class="square">{figure(pairs, "pairs", PAIRS)}</div>')
    return parts


def figure(picture: plots.Picture, prefix: str, caption: str = "") -> str:
    """A figure with its caption; `prefix` as of `svg`."""
    text = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{svg(picture, prefix)}{text}</figure>"


def svg(picture: plots.Picture, prefix: str) -> str:
    """A figure drawn in INK as an SVG element in the page's text colour; `prefix` keeps its ids apart from other figures'."""
    buffer = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # the browser has fonts for it
        Figure.savefig(picture, buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", text).replace(INK, "currentColor")
    text = re.sub(r'^<svg [^>]*?(viewBox="[^"]*")[^>]*>', rf'<svg \1 role="img" aria-label="{escape(picture.alt)}">', text)
    return re.sub(r"\s*\n\s*", "\n", text).strip()


def house_style() -> Any:
    """Matplotlib's own defaults, whatever the caller has set, with text and axes in INK and text left to the browser's fonts."""
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    ours = dict.fromkeys(inked, INK) | {"svg.fonttype": "none", "svg.hashsalt": "vipatterns", "font.size": 9.5, "axes.titlesize": "medium"}
    return style.context(["default", ours])


def _key(comparison: Any) -> str:
    items = []
    for label, text in plots.sources(comparison):
        line = plots.line(comparison, label)
        dash = {"-": "", "--": ' stroke-dasharray="7 4"', "-.": ' stroke-dasharray="7 3 2 3"', ":": ' stroke-dasharray="2 3"'}[
            line["linestyle"]
        ]
        mark = (
            f'<rect width="36" height="12" y="1" fill="{line["color"]}" opacity=".5"/>'
            if plots.is_reference(comparison, label)
            else f'<path d="M0 7H36" stroke="{line["color"]}" stroke-width="2.5"{dash}/>'
        )
        items.append(f'<li><svg viewBox="0 0 36 14" aria-hidden="true">{mark}</svg>{escape(text)}</li>')
    return f'<ul class="key">{"".join(items)}</ul>'


def scroll(table: str, label: str) -> str:
    """A table that is moved sideways where it is wider than the page."""
    return f'<div class="scroll" role="region" aria-label="{escape(label)}" tabindex="0">{table}</div>'


def _which(comparison: Any, shown: int, total: int) -> str:
    if total == 1:
        return "One scalar."
    if shown == total:
        return f"All {total} scalars" + (", the most wrong first." if comparison.agreement else ".")
    return f"{shown} of {total} scalars, " + (
        "the most wrong first." if comparison.agreement else "the first of the model: there is no reference."
    )


def _provenance(comparison: Any) -> list[str]:
    facts: dict[str, list[str]] = {}
    for label, fit in comparison.finished.items():
        told = "; ".join(f"{key} {value}" for key, value in fit.idata.attrs.items() if isinstance(value, (str, int, float)))
        facts.setdefault(told, []).append(label)
    return ["<h2>Made with</h2>"] + [
        f'<p class="muted">{escape(", ".join(labels))}: {escape(told)}.</p>' for told, labels in facts.items() if told
    ]


TRACES = "Higher is better; restarts of one method should end together. Smoothed by medians."
TIMING = "Down and left is better. The bar is the Monte Carlo error."
PAIRS = "Draws of the most correlated scalars. A method that ignores correlation shows a round cloud where the others show a slanted one."
READING = """<dl>
<dt>mean error</dt><dd>Largest difference of a posterior mean from the reference's, in the reference's sds. Safe is at most 0.15.</dd>
<dt>sd ratio</dt><dd>Posterior sd over the reference's, smallest to largest. Safe is 0.85 to 1.15.</dd>
<dt>distance</dt><dd>Largest 1-Wasserstein distance of a marginal, in the reference's sds. Its ± is what two samples of one
distribution would show.</dd>
<dt>k-hat</dt><dd>How heavy the tail of the importance weights is. Below about 0.7 the weighted draws that stand here can be trusted.</dd>
<dt>R-hat</dt><dd>Agreement of chains (NUTS) or of restarts (VI). Near 1 is good.</dd>
<dt>ess</dt><dd>Independent draws that the draws are worth.</dd>
<dt>log evidence</dt><dd>log p(data) in nats, by importance sampling. No ELBO can exceed the true one but by chance.</dd>
<dt>±</dt><dd>One Monte Carlo standard error.</dd>
</dl>
<p><b>What the figures cannot tell.</b> A mode that neither a method nor the reference found leaves no trace in any of them. They judge one
data set, these parameters and no others, and say nothing of whether the model is right: check its predictions.</p>"""
