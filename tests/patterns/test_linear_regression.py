"""linear_regression: its closed forms against other routes to them, its fit against the closed forms."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import multivariate_normal

from vipatterns.patterns import linear_regression as pattern


@pytest.fixture(scope="module")
def table():
    return pattern.data()


def joint(d):
    """Prior mean and sds of (intercept, slopes), design and residual covariance: what conditioning a joint Gaussian needs."""
    mean, sd = d["units"]
    design = np.column_stack([np.ones(len(d["y"])), d["x"] - mean[:-1]])
    m0, s0 = np.append(mean[-1], 0 * sd[:-1]), 2.5 * sd[-1] / np.append(1, sd[:-1])
    return m0, s0, design, d["noise"] ** 2 * np.eye(len(d["y"]))


def test_posterior_and_evidence_agree_with_conditioning_the_joint_gaussian(table):
    m0, s0, design, noise = joint(table)
    marginal = design * s0**2 @ design.T + noise
    gain = s0[:, None] ** 2 * design.T @ np.linalg.inv(marginal)
    m, cov = m0 + gain @ (table["y"] - design @ m0), np.diag(s0**2) - gain @ design * s0**2
    exact = pattern.exact_posterior(**table)
    np.testing.assert_allclose(exact["intercept"].mean, m[0], rtol=1e-6)
    np.testing.assert_allclose(exact["intercept"].variance, cov[0, 0], rtol=1e-6)
    np.testing.assert_allclose(exact["slopes"].mean, m[1:], rtol=1e-6)
    np.testing.assert_allclose(exact["slopes"].covariance_matrix, cov[1:, 1:], rtol=1e-5)
    assert pattern.log_evidence(**table) == pytest.approx(multivariate_normal.logpdf(table["y"], design @ m0, marginal), rel=1e-9)


def test_no_other_diagonal_gaussian_is_closer(table):
    """Maximise the expected log joint plus entropy over all mean-field Gaussians numerically, and land on documented_bias."""
    m0, s0, design, noise = joint(table)
    weights = 1 / np.diag(noise)

    def kl(z):
        m, s = m0 + s0 * z[: len(m0)], s0 * np.exp(z[len(m0) :])
        fit = weights @ ((table["y"] - design @ m) ** 2 + design**2 @ s**2)
        return 0.5 * fit + 0.5 * np.sum(((m - m0) ** 2 + s**2) / s0**2) - np.sum(np.log(s))

    z = minimize(kl, np.zeros(2 * len(m0)), method="BFGS", options={"gtol": 1e-4}).x
    bias = pattern.documented_bias(**table)
    m, s = (np.append(bias["intercept"][i], bias["slopes"][i]) for i in (0, 1))
    np.testing.assert_allclose(m0 + s0 * z[: len(m0)], m, atol=1e-3 * s.min())
    np.testing.assert_allclose(s0 * np.exp(z[len(m0) :]), s, rtol=1e-3)


def test_fit_has_exact_means_and_the_sds_of_the_conditionals(table, assert_fits):
    assert_fits(pattern, table, pattern.documented_bias(**table), worst=0.1)


def test_mean_field_is_too_narrow_where_features_are_correlated(table):
    ratio = pattern.exact_posterior(**table)["slopes"].variance ** 0.5 / pattern.documented_bias(**table)["slopes"][1]
    assert ratio.min() > 1.3
    assert ratio.max() > 2.5


def test_units_do_not_matter(table):
    """Features 1,000 times larger and y shifted by 10,000: the same posterior, mapped."""
    moved = {"x": table["x"] * 1000, "y": table["y"] * 10 + 10_000}
    there, here = pattern.exact_posterior(**moved), pattern.exact_posterior(**table)
    np.testing.assert_allclose(there["slopes"].mean * 100, here["slopes"].mean, rtol=1e-5)
    np.testing.assert_allclose(there["slopes"].variance ** 0.5 * 100, here["slopes"].variance ** 0.5, rtol=1e-5)
    assert pattern.log_evidence(**moved) == pytest.approx(pattern.log_evidence(**table) - len(table["y"]) * np.log(10), rel=1e-9)


def test_plug_ins_left_out_are_read_from_the_data(table):
    bare = {"x": table["x"], "y": table["y"]}
    assert pattern.log_evidence(**bare) == pytest.approx(pattern.log_evidence(**table), rel=1e-12)
    with pytest.raises(ValueError, match=r"at least 5 rows"):
        pattern.model(table["x"])
    with pytest.raises(ValueError, match=r"at least 5 rows"):
        pattern.data({"x": table["x"][:4], "y": table["y"][:4]})


def test_a_table_stacks_its_numeric_columns_in_order():
    rng = np.random.default_rng(1)
    frame = {"b": rng.normal(size=9), "name": ["r"] * 9, "y": rng.normal(size=9), "a": np.arange(9)}
    d = pattern.data(frame)
    np.testing.assert_array_equal(d["x"], np.column_stack([frame["b"], frame["a"]]))
    assert d["units"].shape == (2, 3)
