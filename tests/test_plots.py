"""Figures show the numbers that they are made from, carry a text, and leave Matplotlib as they found it."""

import jax
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
import pytest
from synthetic import fit_of, normal

from vipatterns import plots
from vipatterns.comparison import side_by_side
from vipatterns.methods.nuts import NUTS

KEY = jax.random.key(0)
LOSSES = np.linspace(60.0, 20.0, 400) + np.zeros((3, 1))
HOSTILE = ["$\\frac{$", "<script>", "{brace}", "a\\b", "", "温度", "x" * 60, "β_1"]


def compared_of(num=5, reference=None, with_nuts=True, labels=None, **settings):
    rng = np.random.default_rng(0)
    coords = {"coords": {"i": labels}, "dims": {"x": ["i"]}} if labels else {}
    near, off = normal(rng, np.zeros(num), 1.0), normal(rng, np.arange(num) / 10, 0.7)
    fits = {"A": fit_of({"x": near}, losses=LOSSES, **coords), "B": fit_of({"x": off}, losses=LOSSES - 3, **coords)}
    if with_nuts:
        fits["NUTS"] = fit_of({"x": normal(rng, np.zeros(num), 1.0)}, method=NUTS(), resampled=False, **coords)
    return side_by_side(KEY, fits, reference=reference, title="model", **settings)


ALL = (plots.marginals, plots.elbo_traces, plots.pairs, plots.error_against_time)


@pytest.mark.parametrize("draw", ALL, ids=lambda f: f.__name__)
@pytest.mark.parametrize("reference", [None, {"x": dist.Normal(0.0, 1.0)}], ids=["nuts", "exact"])
def test_every_figure_is_returned_with_a_text_and_changes_no_setting(draw, reference):
    before, open_before = dict(matplotlib.rcParams), plt.get_fignums()
    figure = draw(compared_of(reference=reference))
    figure.canvas.draw()
    assert len(figure.alt) > 40
    assert figure._repr_html_().startswith('<img alt="')
    assert dict(matplotlib.rcParams) == before
    assert plt.get_fignums() == open_before


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize("draw", ALL, ids=lambda f: f.__name__)
def test_names_are_drawn_as_they_are(draw):
    figure = draw(compared_of(8, labels=HOSTILE))
    figure.canvas.draw()
    if draw is plots.marginals:
        assert {axes.get_title().replace(r"\$", "$") for axes in figure.axes} == {f"x[{name}]" for name in HOSTILE}
    assert "<script>" not in figure._repr_html_()


def test_marginals_are_densities_over_the_reference():
    figure = plots.marginals(compared_of(3))
    assert len(figure.axes) == 3
    assert figure.axes[0].get_title() == "x[1]" or figure.axes[0].get_title() in ("x[0]", "x[2]")
    for axes in figure.axes:
        assert len(axes.collections) == 1  # the reference, filled
        assert len(axes.lines) == 2
        for line in axes.lines:
            assert np.trapezoid(line.get_ydata(), line.get_xdata()) == pytest.approx(1, abs=0.02)
    by_colour = {line.get_color(): line for line in next(a for a in figure.axes if a.get_title() == "x[2]").lines}
    b = by_colour[plots.COLOURS[1]]
    mean = np.trapezoid(b.get_ydata() * b.get_xdata(), b.get_xdata())
    assert mean == pytest.approx(0.2, abs=0.06)  # four Monte Carlo errors of 4,000 draws, and the kernel's


def test_the_most_wrong_are_chosen_and_said_to_be():
    figure = plots.marginals(compared_of(50))
    assert len(figure.axes) == plots.MOST_SCALARS
    assert figure.axes[0].get_title() == "x[49]"
    assert "12 of 50 scalars, the most wrong first" in figure.alt
    figure = plots.marginals(compared_of(50, with_nuts=False))
    assert figure.axes[0].get_title() == "x[0]"
    assert "most wrong" not in figure.alt


def test_a_fit_that_collapsed_is_a_line():
    x = normal(np.random.default_rng(0), 0.0, 1.0)
    figure = plots.marginals(side_by_side(KEY, {"A": fit_of({"x": np.full_like(x, 2.0)})}, reference={"x": dist.Normal(0.0, 1.0)}))
    assert list(figure.axes[0].lines[0].get_xdata()) == [2.0, 2.0]


def test_traces_are_minus_the_losses_with_the_evidence_where_known():
    figure = plots.elbo_traces(compared_of(log_evidence=-15.0))
    traces, evidence = figure.axes[0].lines[:-1], figure.axes[0].lines[-1]
    assert len(traces) == 6
    np.testing.assert_allclose(traces[0].get_ydata()[-1], -20, atol=0.3)
    np.testing.assert_allclose(traces[-1].get_ydata()[-1], -17, atol=0.3)
    assert set(evidence.get_ydata()) == {-15.0}
    assert "-15.00 nats (exact)" in figure.alt
    low, high = figure.axes[0].get_ylim()
    assert low < -20 < -15 < high
    estimated = plots.elbo_traces(compared_of())
    assert "-10.00 nats (estimate of A)" in estimated.alt


def test_no_trace_no_figure_and_nan_losses_are_no_error():
    x = normal(np.random.default_rng(0), 0.0, 1.0)
    assert plots.elbo_traces(side_by_side(KEY, {"A": fit_of({"x": x})})) is None
    diverged = np.where(np.arange(400) > 200, np.nan, LOSSES)
    plots.elbo_traces(side_by_side(KEY, {"A": fit_of({"x": x}, losses=diverged)})).canvas.draw()
    plots.elbo_traces(side_by_side(KEY, {"A": fit_of({"x": x}, losses=np.full((1, 3), np.nan))})).canvas.draw()


def test_pairs_are_the_most_correlated():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 1000, 5))
    x[..., 3] = 0.9 * x[..., 1] + np.sqrt(1 - 0.9**2) * x[..., 3]
    x[..., 4] = -0.5 * x[..., 1] + np.sqrt(1 - 0.5**2) * x[..., 4]
    compared = side_by_side(KEY, {"A": fit_of({"x": x}), "NUTS": fit_of({"x": x}, method=NUTS(), resampled=False)})
    figure = plots.pairs(compared)
    assert {a.get_xlabel() for a in figure.axes} | {a.get_ylabel() for a in figure.axes} == {"x[1]", "x[3]", "x[4]", ""}
    assert "x[1] with x[3], is 0.90 by NUTS" in figure.alt


def test_marginals_of_an_exact_posterior_are_not_set_against_each_other():
    figure = plots.pairs(compared_of(3, reference={"x": dist.Normal(np.zeros(3), 1.0)}, with_nuts=False))
    assert {line.get_color() for axes in figure.axes for line in axes.lines} == set(plots.COLOURS[:2])


def test_one_scalar_has_no_pairs():
    assert plots.pairs(side_by_side(KEY, {"A": fit_of({"x": normal(np.random.default_rng(0), 0.0, 1.0)})})) is None


def test_error_stands_against_time():
    compared = compared_of()
    figure = plots.error_against_time(compared)
    points = {c.get_label(): c.lines[0].get_xydata()[0] for c in figure.axes[0].containers}
    assert set(points) == {"A", "B"}
    for label, (seconds, error) in points.items():
        assert seconds == 1.75
        assert error == pytest.approx(compared.agreement[label].mean_error)
    assert plots.error_against_time(compared_of(with_nuts=False)) is None


def test_curves_can_be_told_apart_without_colour():
    compared = compared_of()
    styles = [plots.line(compared, label)["linestyle"] for label in ("A", "B")]
    assert len(set(styles)) == 2
