"""What a Fit shows of itself, and what every method records."""

import dataclasses
import html.parser

import jax
import numpy as np
import pytest
from synthetic import fit_of, normal

import vipatterns as vip
from vipatterns.patterns import correlated_gaussian
from vipatterns.posterior import Rung


@pytest.fixture
def fit():
    rng = np.random.default_rng(0)
    sites = {"mu": normal(rng, 0, 1, num=5), "theta": normal(rng, np.zeros(8), 1, num=5)}
    made = fit_of(sites, method=vip.MeanField(num_steps=77), ok=False)
    return dataclasses.replace(made, rungs=(Rung("MeanField", False, "Not safe.", 1.25), Rung("NUTS", True, "Safe.", 9.0)))


def test_the_repr_is_one_screen_and_says_what_matters(fit):
    lines = repr(fit).splitlines()
    assert len(lines) <= 24
    rows = {line[:12].strip(): line[12:] for line in lines}
    assert rows["method"] == "MeanField(num_steps=77)"
    assert rows["verdict"].startswith("NOT ok. k-hat is 1.2")
    assert rows["elbo"] == "-10.500 +- 0.020 nats"
    assert rows["k-hat"] == "0.10 (needs < 0.70), ess 20"
    assert rows["rung 1"] == "MeanField: refused (1.2 s)"
    assert rows["time"] == "0.5 s compiling, 1.2 s running, 1000 steps"
    assert rows["draws"] == "4 x 5 of mu, theta[8]"
    assert rows["seed"].startswith("0, float64 on cpu")


def test_many_sites_stay_on_one_line():
    rng = np.random.default_rng(0)
    [line] = [
        line for line in repr(fit_of({f"s{i}": normal(rng, 0, 1, num=5) for i in range(20)})).splitlines() if line.startswith("draws")
    ]
    assert line.endswith("s6, s7 and 12 more")


def test_mcmc_shows_rhat_and_no_elbo():
    rows = repr(fit_of({"mu": normal(np.random.default_rng(0), 0, 1, num=5)}, resampled=False))
    assert "r-hat       1.001, ess 20" in rows
    assert "elbo" not in rows
    assert "k-hat" not in rows


class Cells(html.parser.HTMLParser):
    """Tags, and the text of the cells."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.texts.append(data)


def test_the_notebooks_view_escapes_what_comes_from_models(fit):
    evil = "<script>alert('&')"
    draws = {evil: normal(np.random.default_rng(0), 0, 1, num=5)}
    bad = dataclasses.replace(fit_of(draws), stopped_because=evil, rungs=(Rung(evil, True, "", 0.0),))
    seen = Cells(bad._repr_html_())
    assert set(seen.tags) == {"table", "tbody", "tr", "th", "td"}
    assert sum(evil in text for text in seen.texts) == 3
    assert len(seen.tags) == 2 + 3 * len(repr(bad).splitlines())


def test_the_notebooks_view_sets_no_text_colour(fit):
    """A notebook may be light or dark: text and ground are its own."""
    assert "background" not in fit._repr_html_()
    assert ";color" not in fit._repr_html_()
    assert "'color" not in fit._repr_html_()


METHODS = [name for name, room in vip._ROOMS.items() if room.startswith("methods.")]
QUICK = {"MeanField", "NUTS", "Laplace"}


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in METHODS])
def test_every_method_records_the_key_it_was_given(name):
    """The seed with the method that is recorded makes the same draws again."""
    settings = {"NUTS": {"num_warmup": 50, "num_samples": 50}, "Guide": {"guide": correlated_gaussian.guide}, "Flow": {"num_steps": 200}}
    key = jax.random.key(5)
    fit = getattr(vip, name)(**settings.get(name, {})).fit(key, correlated_gaussian.model, correlated_gaussian.data())
    for attrs in (fit.idata.attrs, fit.idata["posterior"].attrs):
        assert attrs["dtype"] == "float64"
        assert attrs["device"] == "cpu"
        assert attrs["vipatterns"] == vip.__version__
        assert attrs["seed"] == [0, 5]
