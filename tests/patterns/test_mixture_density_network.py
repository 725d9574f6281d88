"""mixture_density_network: held-out scores against what the true conditional density allows, for a Gaussian and for a mixture."""

import numpy as np
import pytest
from scipy.stats import norm

from vipatterns.patterns import mixture_density_network as pattern

GAUSSIAN, TRUE = pattern.best_scores()
PRICE = TRUE - GAUSSIAN
"""What the label is worth, in nats a row."""


@pytest.fixture(scope="module")
def fitted(rng_key):
    """Number of components -> q of a fit to 2,000 rows."""
    x, y = pattern.simulated(1, 2000)
    return {num: pattern.fit(rng_key, x, y, num)[0] for num in (1, 3)}


@pytest.fixture(scope="module")
def scored(fitted):
    """Number of components -> log densities of 20,000 new rows."""
    new = pattern.simulated(2, 20_000)
    return {num: np.asarray(pattern.scores(q, *new, num), float) for num, q in fitted.items()}


def of_one(x):
    """Of every x, (M,): marginal density, and mean, variance and entropy of y given it, by Gauss-Legendre on a hundred panels."""
    node, weight = np.polynomial.legendre.leggauss(12)
    y = ((np.arange(100)[:, None] + 0.5 * (node + 1)) / 100).ravel()
    weight = np.tile(weight / 200, 100)
    joint = norm.pdf(x[:, None], pattern.forwards(y), pattern.NOISE)
    total = joint @ weight
    given = joint / total[:, None]
    mean = given @ (weight * y)
    return total, mean, given @ (weight * y**2) - mean**2, -(given * np.log(given + 1e-300)) @ weight


def test_best_scores_are_converged_and_those_of_another_rule():
    """The midpoint rule at another resolution, and another rule for the integral over y."""
    np.testing.assert_allclose(pattern.best_scores(600), [GAUSSIAN, TRUE], atol=1e-4)
    grid = np.linspace(-0.35, 1.35, 171)
    total, _, variance, entropy = of_one(grid)
    weight = total / total.sum()
    assert weight @ (-0.5 * np.log(2 * np.pi * np.e * variance)) == pytest.approx(GAUSSIAN, abs=1e-3)
    assert -weight @ entropy == pytest.approx(TRUE, abs=1e-3)


def test_best_scores_are_reached_by_the_true_density_and_its_moments(z_bound):
    """On new rows: the score of the truth, and of the Gaussian with the true mean and sd, both interpolated in x."""
    x, y = pattern.simulated(3, 20_000)
    grid = np.linspace(-0.35, 1.35, 341)
    total, mean, variance, _ = of_one(grid)
    true = norm.logpdf(x[:, 0], pattern.forwards(y), pattern.NOISE) - np.log(np.interp(x[:, 0], grid, total))
    gaussian = norm.logpdf(y, np.interp(x[:, 0], grid, mean), np.sqrt(np.interp(x[:, 0], grid, variance)))
    for values, best in ((true, TRUE), (gaussian, GAUSSIAN)):
        assert abs(values.mean() - best) < z_bound(2) * values.std() / np.sqrt(len(values)) + 2e-3  # .002: interpolation


@pytest.mark.parametrize(("num_components", "best"), [(1, GAUSSIAN), (3, TRUE)])
def test_no_fit_beats_its_bound_and_each_comes_near(num_components, best, scored, z_bound):
    """Above the bound only by Monte Carlo error; below it by less than a quarter of what a label is worth."""
    values = scored[num_components]
    error = z_bound(2) * values.std() / np.sqrt(len(values))
    assert best - PRICE / 4 - error < values.mean() < best + error


def test_with_a_latent_label_it_beats_every_gaussian(scored, z_bound):
    """Not this Gaussian network alone, but the best of any size: by more than half of the price."""
    values = scored[3]
    assert values.mean() - z_bound() * values.std() / np.sqrt(len(values)) > GAUSSIAN + PRICE / 2
    assert scored[1].mean() < GAUSSIAN + z_bound() * scored[1].std() / np.sqrt(len(scored[1]))


def test_losses_are_the_negative_log_joint(rng_key):
    """Priors and rows, term by term, at the point where the fit ended."""
    d = pattern.data()
    q, losses = pattern.fit(rng_key, **d)
    at = {name: np.asarray(site.mean, float) for name, site in q.items()}
    prior = sum(norm.logpdf(at[name], 0, sd).sum() for name, sd in {"slope": 10, "offset": 10, "weights": 2, "level": 2}.items())
    log_y = np.asarray(pattern.scores(q, d["x"], d["y"], 3), float).sum()
    assert float(losses[-1]) == pytest.approx(-prior - log_y, abs=1e-2)
    assert float(losses[-100:].std()) < 0.1, "it has come to rest"


def test_a_table_names_its_columns():
    d = pattern.data({"height": [0.1, 0.2, 0.3], "y": [1.0, 2.0, 3.0]})
    np.testing.assert_array_equal(d["x"], [[0.1], [0.2], [0.3]])
