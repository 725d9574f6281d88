"""The built site, as a browser shows it: every page in both themes, at a desk's width and a phone's."""

import gzip
import itertools
import re
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe

SITE = Path(__file__).parents[2] / "site"
PAGES = sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html") if path.name != "404.html")
MOVING = [path for path in PAGES if 'class="picture moving"' in (SITE / path).read_text(encoding="utf-8")]
MOST_BYTES = 1_000_000
"""What a page may take over the wire, all it loads counted, compressed as hosts of static pages do."""
AXE = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}}

pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings("ignore:.*instance methods are deprecated"),  # pytest-base-url, which pytest-playwright brings
]


def themed(page, scheme):
    page.emulate_media(color_scheme=scheme)
    page.evaluate(
        """scheme => { for (const input of document.querySelectorAll('[name=__palette]'))
            if (input.dataset.mdColorScheme === scheme) input.click(); }""",
        {"light": "default", "dark": "slate"}[scheme],
    )


@pytest.mark.parametrize("path", PAGES)
def test_a_page(watched, site_url, path):
    page, wrong = watched
    loaded = []
    page.on("response", lambda response: loaded.append(response))
    page.set_viewport_size({"width": 1280, "height": 900})
    page.goto(site_url + path, wait_until="networkidle")
    assert not wrong
    mathematics = page.locator(".arithmatex")
    assert page.locator(".arithmatex .katex").count() == mathematics.count()
    assert page.locator(".katex-error").count() == 0
    assert not re.search(r"\\\(|\\\[|\\mathbb|\\frac|\$\$", page.locator("article").evaluate(PROSE))
    assert page.evaluate("[...document.images].filter(i => !i.complete || !i.naturalWidth || !i.alt).map(i => i.src)") == []
    pictures = page.locator("figure.picture svg[role=img]:visible")
    assert all(box["width"] > 200 and box["height"] > 80 for box in pictures.evaluate_all("all => all.map(e => e.getBoundingClientRect())"))
    assert all(len(label or "") > 20 for label in pictures.evaluate_all("all => all.map(e => e.ariaLabel)"))
    assert page.locator("h1").count() == 1
    levels = page.locator("article").locator("h1, h2, h3, h4, h5, h6").evaluate_all("all => all.map(e => +e.tagName[1])")
    assert all(below - above <= 1 for above, below in itertools.pairwise(levels)), levels
    assert sum(len(gzip.compress(response.body())) for response in loaded) < MOST_BYTES
    assert page.evaluate(SIDEWAYS) == 0
    for scheme in ("light", "dark"):
        themed(page, scheme)
        assert complaints(page) == []
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth + 1")


SIDEWAYS = """[...document.querySelectorAll('.language-python pre > code, .catalogue .md-typeset__scrollwrap')].filter(
    e => e.scrollWidth > e.clientWidth + 1).length"""
"""Blocks of code, and the catalogue, that a desk has to scroll sideways."""
PROSE = """article => { const copy = article.cloneNode(true);
    copy.querySelectorAll('pre, code, .katex').forEach(e => e.remove()); return copy.textContent; }"""


def complaints(page):
    """What axe-core finds against the Web Content Accessibility Guidelines 2.1, levels A and AA."""
    found = Axe().run(page, options=AXE).response["violations"]
    return [f"{v['id']}: {node['html'][:200]} {node.get('failureSummary', '')[:300]}" for v in found for node in v["nodes"][:3]]


def test_no_page_is_missed():
    sources = Path(__file__).parents[2] / "vipatterns" / "patterns"
    assert {f"patterns/{path.stem}.html" for path in sources.glob("[!_]*.py")} < set(PAGES)
    assert {"index.html", "api.html", "corrections.html", "notation.html", "symptoms.html", "patterns.html"} < set(PAGES)
    assert {"02_elbo.html", "04_gradients.html"} < set(MOVING)  # q closing in, the two directions of KL, two kinds of gradient


@pytest.mark.parametrize("path", MOVING)
def test_a_slider_moves(watched, site_url, path):
    page, wrong = watched
    page.goto(site_url + path, wait_until="networkidle")
    for figure in page.locator("figure.moving").all():
        slider, caption = figure.locator("input[type=range]"), figure.locator("figcaption")
        seen = set()
        for position in (0, int(slider.get_attribute("max"))):
            slider.fill(str(position))
            shown = figure.locator("[data-frame]").evaluate_all(
                "all => all.filter(e => e.getAttribute('display') !== 'none').map(e => e.dataset.frame)"
            )
            assert set(shown) == {str(position)}
            seen.add(caption.inner_text())
        assert len(seen) == 2
        slider.focus()
        page.keyboard.press("ArrowLeft")
        assert int(slider.input_value()) == int(slider.get_attribute("max")) - 1
    assert not wrong


@pytest.mark.parametrize("path", MOVING)
def test_a_moving_figure_stands_still_without_javascript(browser, site_url, path):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(site_url + path)
    for figure in page.locator("figure.moving").all():
        assert figure.locator("svg").is_visible()
        assert not figure.locator("input").is_visible()
        assert figure.locator("figcaption").inner_text()
    context.close()


def test_the_search_finds_elbo(watched, site_url):
    page, wrong = watched
    page.goto(site_url + "index.html", wait_until="networkidle")
    page.keyboard.press("/")
    page.keyboard.type("ELBO")
    hits = page.locator(".md-search-result__link")
    hits.first.wait_for()
    assert any("elbo" in text.lower() for text in hits.all_inner_texts())
    assert not wrong


def test_the_search_works_from_the_disk(page):
    page.goto((SITE / "index.html").as_uri())
    page.keyboard.press("/")
    page.keyboard.type("funnel")
    page.locator(".md-search-result__link").first.wait_for()


def test_the_copy_button_copies(browser, site_url):
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.goto(site_url + "patterns/gaussian_mean.html", wait_until="networkidle")
    block = page.locator(".highlight", has_text="vipatterns copy gaussian_mean").first
    block.hover()
    block.locator("button[data-clipboard-target], .md-clipboard, [data-md-type=copy]").first.click()
    page.wait_for_timeout(300)
    assert page.evaluate("navigator.clipboard.readText()").strip() == "vipatterns copy gaussian_mean ."
    context.close()


def test_an_answer_is_hidden_until_it_is_asked_for(page, site_url):
    path = next(path for path in PAGES if 'class="answer"' in (SITE / path).read_text(encoding="utf-8"))
    page.goto(site_url + path)
    answer = page.locator("details.answer").first
    assert not answer.locator("pre").first.is_visible()
    answer.locator("summary").focus()
    page.keyboard.press("Enter")
    assert answer.locator("pre").first.is_visible()
