"""Figures of the tutorials: the page's ink, words for those who do not see them, and frames for a slider."""

import json
import re
from xml.etree import ElementTree

import matplotlib as mpl
import pytest

ALT = "A line that rises from left to right, in steps"


@pytest.fixture
def figures():
    with mpl.rc_context():  # the module dresses matplotlib for the page that imports it
        import figures

        yield figures


def drawn(figures):
    fig, ax = figures.plt.subplots()
    lines = [ax.plot([0, 1], [0, k])[0] for k in range(3)]
    ax.set(xlim=(0, 1), ylim=(0, 2), xlabel="time", yticks=[0.125])
    return fig, lines


def svg(picture):
    text = re.search(r"<svg.*</svg>", picture.html, re.S)[0]
    return text, ElementTree.fromstring(text)


def test_a_figure_has_the_ink_of_its_page_and_says_what_it_shows(figures):
    text, root = svg(figures.show(drawn(figures)[0], alt=ALT))
    assert root.attrib["aria-label"] == ALT
    assert root.attrib["role"] == "img"
    assert "currentColor" in text
    assert not re.search(figures.INK + r"|#000000|#ffffff|<style|font-family", text)
    assert ">0.125<" in text  # coordinates are rounded, labels are not
    assert not re.search(r"\d\.\d{3,} ", text)


def test_two_figures_of_a_page_share_no_id(figures):
    ids = []
    for width in (3, 4):
        fig, lines = drawn(figures)
        fig.set_figwidth(width)
        lines[0].set_marker("o")
        text, _ = svg(figures.show(fig, alt=ALT))
        ids.append(set(re.findall(r' id="([^"]+)"', text)))
        assert ids[-1]
        assert set(re.findall(r'(?:"#|url\(#)([^")]+)', text)) == ids[-1]
    assert not ids[0] & ids[1]


def test_each_position_has_its_frame_and_its_caption(figures):
    fig, lines = drawn(figures)
    picture = figures.moving(fig, [[line] for line in lines], ["a", "b", "c < d"], alt=ALT, label="step", start=1)
    _, root = svg(picture)
    frames = {g.attrib["data-frame"]: g.attrib.get("display") for g in root.iter() if "data-frame" in g.attrib}
    assert frames == {"0": "none", "1": None, "2": "none"}
    captions = re.search(r"data-captions='([^']*)'", picture.html)[1].replace("&quot;", '"').replace("&lt;", "<")
    assert json.loads(captions) == ["a", "b", "c < d"]
    assert re.search(r'<input type="range" min="0" max="2" value="1"', picture.html)
    assert ">b</figcaption>" in picture.html


def test_what_is_missing_is_said(figures):
    fig, lines = drawn(figures)
    with pytest.raises(ValueError, match="a caption for each frame: got 3 frames and 2 captions"):
        figures.moving(fig, [[line] for line in lines], ["a", "b"], alt=ALT, label="step")
    with pytest.raises(ValueError, match="alt should say what the figure shows, in a sentence: got 'a line'"):
        figures.show(fig, alt="a line")
