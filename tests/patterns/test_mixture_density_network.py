"""mixture_density_network: held-out scores against what the true conditional density allows, for a Gaussian and for a mixture."""

import numpy as np
import pytest
from scipy.stats import chi2, norm

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
def test_no_fit_beats_its_bound(num_components, best, scored, z_bound):
    values = scored[num_components]
    assert values.mean() < best + z_bound(2) * values.std() / np.sqrt(len(values))


def test_a_mixture_falls_short_by_what_estimating_its_weights_costs(fitted, scored, z_bound, false_alarm):
    """Of d estimates from N rows by maximum likelihood, 2 N times the loss a new row is chi-squared with d degrees of freedom.

    The bound asks that the network can be the true density, and that its fit has converged: a few hundredths of a nat show.
    """
    d = sum(np.size(site.mean) for site in fitted[3].values())
    error = z_bound() * scored[3].std() / np.sqrt(len(scored[3]))
    assert scored[3].mean() > TRUE - chi2.isf(false_alarm, d) / (2 * 2000) - error


def test_a_gaussian_network_is_nearer_to_the_best_gaussian_than_to_one_that_ignores_x(scored, z_bound):
    """Half of what x tells a Gaussian: its four units cannot follow a mean and an sd that jump where branches begin."""
    ignoring = -0.5 * np.log(2 * np.pi * np.e / 12)  # y is uniform
    assert scored[1].mean() > (GAUSSIAN + ignoring) / 2 + z_bound() * scored[1].std() / np.sqrt(len(scored[1]))


def peaks(y, density):
    inner = (density[1:-1] > density[:-2]) & (density[1:-1] > density[2:])
    return y[1:-1][inner]


def test_three_branches_stand_where_they_are(fitted):
    """At x = 0.5: as many peaks as the true density has, each nearer to its own than half that branch's sd, noise / |g'|."""
    y = np.linspace(0, 1, 4001)
    true = peaks(y, norm.pdf(0.5, pattern.forwards(y), pattern.NOISE))
    fit = np.exp(pattern.scores(fitted[3], np.full((len(y), 1), 0.5), y, 3))
    found = peaks(y, np.asarray(fit, float))
    assert true.shape == found.shape == (3,), (true, found)
    width = pattern.NOISE / np.abs(1 + 0.6 * np.pi * np.cos(2 * np.pi * true))
    assert np.all(np.abs(found - true) < width / 2), (true, found)


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
    prior = sum(norm.logpdf(at[name], 0, sd).sum() for name, sd in {"slope": 5, "offset": 5, "weights": 1, "level": 1}.items())
    log_y = np.asarray(pattern.scores(q, d["x"], d["y"], 3), float).sum()
    assert float(losses[-1]) == pytest.approx(-prior - log_y, abs=1e-2)  # float32, and one step later
    assert float(losses[-100:].std()) < 0.1, "it has come to rest"


def test_a_table_names_its_columns():
    d = pattern.data({"height": [0.1, 0.2, 0.3], "y": [1.0, 2.0, 3.0]})
    np.testing.assert_array_equal(d["x"], [[0.1], [0.2], [0.3]])
