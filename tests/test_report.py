"""The terminal and the page: they fit, they escape, they ask for nothing, and the numbers on them are those of the table."""

import io
import re
from collections import Counter
from html.parser import HTMLParser

import jax
import numpy as np
import numpyro.distributions as dist
import pytest
from rich.console import Console
from synthetic import fit_of, normal

from vipatterns import page, report
from vipatterns.comparison import Failure, side_by_side
from vipatterns.methods.nuts import NUTS

KEY = jax.random.key(0)
BAD = "<script>alert(1)</script>&\"'"
VOID = {"meta", "rect", "path", "use", "line", "image", "br", "img", "circle", "polygon"}


class Page(HTMLParser):
    """Elements, their attributes, and whether they nest."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.words = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def compared():
    rng = np.random.default_rng(0)
    schools = ["Choate", BAD, "St. Paul's", "温度", *"abcd"]
    extra = {"coords": {"school": schools}, "dims": {"theta": ["school"]}}

    def draws(scale):
        return {"mu": normal(rng, 4.4, 3.3 * scale), "theta": normal(rng, np.arange(8), 5 * scale)}

    losses = 40 + rng.normal(size=(3, 500))
    fits = {
        "MeanField": fit_of(draws(0.5), ok=False, khat=0.9, losses=losses, **extra),
        BAD: fit_of(draws(1.0), stopped="step budget", **extra),
        "Flow": Failure(None, f"The loss is nan: {BAD}"),
        "NUTS": fit_of(draws(1.0), method=NUTS(), resampled=False, **extra),
    }
    fits[BAD].idata.attrs["note"] = BAD
    return side_by_side(KEY, fits, title=BAD)


@pytest.fixture(scope="module")
def exact():
    """The documents' example: posterior N(1.87738, .09950^2)."""
    mean, sd = 1.8773796857484217, 0.09950371902099892
    fits = {"MeanField": fit_of({"mu": normal(np.random.default_rng(0), mean + 0.5 * sd, sd)})}
    return side_by_side(KEY, fits, reference={"mu": dist.Normal(mean, sd)}, log_evidence=-136.80742332823354, title="gaussian_mean")


def test_the_page_is_well_formed_and_asks_for_nothing(compared):
    text = page.html(compared)
    parsed = Page(text)
    tags = Counter(tag for tag, _ in parsed.elements)
    assert tags["script"] == tags["link"] == tags["iframe"] == 0
    assert "@import" not in text
    for tag, attrs in parsed.elements:
        for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            assert attrs.get(name, "#").startswith(("#", "data:image/png;base64,")), (tag, attrs)
    assert not re.search(r"url\((?!#)", text)
    ids = Counter(attrs["id"] for _, attrs in parsed.elements if "id" in attrs)
    assert max(ids.values()) == 1
    uses = {re.sub(r"^#", "", attrs["xlink:href"]) for tag, attrs in parsed.elements if tag == "use"}
    assert uses | set(re.findall(r"url\(#([^)]+)\)", text)) <= set(ids)


def test_every_name_on_the_page_is_escaped(compared):
    text = page.html(compared)
    assert "<script" not in text.lower()
    assert f"theta[{BAD}]" in "\n".join(Page(text).words)  # as text it is all there
    assert "<script" not in compared._repr_html_()
    Page(compared._repr_html_())


def test_every_figure_has_a_text(compared):
    figures = [attrs for tag, attrs in Page(page.html(compared)).elements if tag == "svg" and attrs.get("aria-hidden") != "true"]
    assert len(figures) == 9 + 3  # marginals, traces, time, pairs
    assert all(attrs["role"] == "img" and len(attrs["aria-label"]) > 40 for attrs in figures)


def test_the_page_follows_the_readers_light_and_width(compared):
    text = page.html(compared)
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport" content="width=device-width' in text
    assert page.INK not in text
    assert "currentColor" in text
    outside = re.sub(r'<div class="scroll".*?</div>', "", text, flags=re.DOTALL)
    assert "<table" not in outside  # what may be wide scrolls inside its own box
    assert not re.search(r"<svg[^>]* width=", text)


def test_the_page_is_the_same_whatever_style_the_caller_draws_in(compared):
    import matplotlib

    plain = page.html(compared)
    with matplotlib.rc_context({"text.color": "red", "font.size": 30, "axes.grid": True, "xtick.direction": "in", "svg.fonttype": "path"}):
        assert page.html(compared) == plain


def test_numbers_stand_beside_the_exact_ones(exact):
    for text in (report.text(exact), " ".join(Page(page.html(exact)).words)):
        row = exact.agreement["MeanField"].scalars.loc["mu"]
        assert "1.87738" in text
        assert "0.09950" in text
        assert "-136.8074" in text
        assert f"{row['mean']:.5f}" in text
        assert f"{row.mean_error:.3f}±" in text


def test_verdicts_and_what_went_wrong_are_told(compared):
    for text in (report.text(compared, 400), " ".join(Page(page.html(compared)).words)):
        for judged in compared.verdicts.values():
            assert judged.sentence in text
        assert "Stopped: step budget" in text
        assert "Its own check: k-hat is 1.2" in text


@pytest.mark.parametrize("width", [100, 80])
def test_the_terminal_fits_and_cuts_nothing_off(compared, width):
    text = report.text(compared, width)
    assert max(map(len, text.splitlines())) <= width
    assert len(re.findall(r"1\.8 s$", text, re.M)) == 3  # the last column, for every fit
    assert len(re.findall(r"±0\.\d\d\d$", text, re.M)) >= 4
    assert "…" not in text


def test_a_coloured_terminal_gets_colour_and_a_pipe_does_not(compared):
    buffer = io.StringIO()
    report.print(compared, Console(file=buffer, force_terminal=True, color_system="standard"))
    assert "\x1b[" in buffer.getvalue()
    assert "\x1b[" not in report.text(compared)


def test_square_brackets_are_no_markup():
    x = normal(np.random.default_rng(0), np.zeros(2), 1.0)
    fits = {"A[bold]": fit_of({"x": x}, coords={"i": ["red", "/x"]}, dims={"x": ["i"]})}
    text = report.text(side_by_side(KEY, fits, title="[bold]m"))
    for name in ("A[bold]", "x[red]", "x[/x]", "[bold]m"):
        assert name in text


def test_failures_alone_still_make_a_page():
    compared = side_by_side(KEY, {"A": Failure(None, "One."), "B": Failure(None, "Two.")})
    Page(page.html(compared))
    assert "Gave no posterior: One." in report.text(compared)


def test_a_long_model_says_what_is_left_out():
    x = normal(np.random.default_rng(0), np.zeros(60), 1.0)
    compared = side_by_side(KEY, {"A": fit_of({"x": x})}, reference={"x": dist.Normal(0.0, 1.0)})
    assert "40 of 60 scalars, the most wrong first" in page.html(compared)
    assert "12 of 60 scalars, the most wrong first" in page.html(compared)
    assert "9 of 60 scalars; the HTML report has more" in report.text(compared)
