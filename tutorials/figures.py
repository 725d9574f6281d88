"""Figures of the tutorials: matplotlib's, as SVG that takes the page's colours, says in words what it shows, and may move.

    show(figure, alt="Two curves ...")                          # as the last line of a cell
    moving(figure, frames, captions, alt=..., label="step")     # frames: for each position of the slider, the artists seen there alone

Without JavaScript, and in a notebook, a moving figure stands still at its frame `start`.
"""

import hashlib
import html
import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.artist import Artist
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PURPLE, GREY = "#2b7bba", "#d1661c", "#27935a", "#9467bd", "#808080"
"""Each stands out by more than 3 to 1 from a white page and from a dark one."""
WIDE = 6.0
"""Inches: a figure may be shrunk to so much that one of this width fits a phone, and no more."""
INK = "#010203"
"""Becomes the colour of the page's text."""

mpl.use("agg")
plt.rcParams.update({
    "axes.edgecolor": INK, "axes.labelcolor": INK, "axes.titlecolor": INK, "text.color": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.prop_cycle": mpl.cycler(color=[BLUE, ORANGE, GREEN, PURPLE, GREY]),
    "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": "medium",
    "figure.figsize": (5.6, 3.2), "figure.constrained_layout.use": True, "font.size": 10, "legend.frameon": False,
    "savefig.transparent": True, "savefig.dpi": 150, "svg.fonttype": "none", "svg.hashsalt": "vipatterns",
})  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """What a notebook shows as HTML."""

    html: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return "a picture"


def show(figure: Figure, alt: str) -> Picture:
    """A figure that stands still; `alt` says what it shows to those who do not see it."""
    return Picture(f'<figure class="picture">\n{_svg(figure, alt)}\n</figure>')


def moving(
    figure: Figure, frames: Sequence[Iterable[Artist]], captions: Sequence[str], *, alt: str, label: str, start: int = -1
) -> Picture:
    """A figure with a slider: artists of `frames[i]` are seen at position i alone, all others always.

    Args:
        figure: Drawn whole, every frame's artists in it. Fix the axes' limits: they are the same in all frames.
        frames: For each position the artists that belong to it (lines, collections, texts, patches).
        captions: A sentence or a few figures for each position, shown beside the slider.
        alt: What the figure shows and how it changes.
        label: What the slider moves along, e.g. `step`.
        start: The frame that is shown first, and alone where there is no JavaScript.
    """
    if len(frames) != len(captions):
        raise ValueError(f"moving needs a caption for each frame: got {len(frames)} frames and {len(captions)} captions.")
    start %= len(frames)
    for i, artists in enumerate(frames):
        for j, artist in enumerate(artists):
            artist.set_gid(f"frame-{i}-{j}")
    svg = re.sub(
        r'<g id="frame-(\d+)-\d+"',
        lambda g: f'<g data-frame="{g[1]}"' + ("" if int(g[1]) == start else ' display="none"'),
        _svg(figure, alt),
    )
    slider = (
        f'<label class="slider">{html.escape(label)} '
        f'<input type="range" min="0" max="{len(frames) - 1}" value="{start}" step="1"></label>\n'
        f"<figcaption data-captions='{html.escape(json.dumps(list(captions)), quote=True)}' aria-live=\"polite\">"
        f"{html.escape(captions[start])}</figcaption>"
    )
    return Picture(f'<figure class="picture moving">\n{svg}\n{slider}\n</figure>')


def _svg(figure: Figure, alt: str) -> str:
    """The figure as inline SVG: few digits, ids of its own, the page's ink."""
    if len(alt) < 20:
        raise ValueError(f"alt should say what the figure shows, in a sentence: got {alt!r}.")
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    plt.close(figure)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].strip().replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r"<[^>]+>", lambda tag: re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", tag[0]), svg)  # not the labels
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)  # the page's font
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.S)  # its rule for `*` would hold for the whole page
    own = "f" + hashlib.sha256(svg.encode()).hexdigest()[:8]
    for name in set(re.findall(r'(?<!frame)\bid="([^"]+)"', svg)):
        if name.startswith("frame-"):
            continue
        wanted = f'"#{name}"' in svg or f"url(#{name})" in svg
        svg = svg.replace(f' id="{name}"', f' id="{own}{name}"' if wanted else "")
        svg = svg.replace(f'"#{name}"', f'"#{own}{name}"').replace(f"url(#{name})", f"url(#{own}{name})")
    svg = re.sub(r"\s+", " ", svg)
    if figure.get_figwidth() > WIDE:
        svg = svg.replace("<svg ", f'<svg style="min-width: {22 * figure.get_figwidth() / WIDE:.0f}rem" ', 1)
    return re.sub(r"<svg ", f'<svg role="img" aria-label="{html.escape(" ".join(alt.split()), quote=True)}" ', svg, count=1)
