"""gaussian_mixture_posterior_regularization: the projection and the whole fit against constrained optimisers; no census is plain VI."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, logsumexp, softmax

from vipatterns.patterns import gaussian_mixture as plain
from vipatterns.patterns import gaussian_mixture_posterior_regularization as pattern

FEW = {"y": np.array([-2.4, -1.1, -0.7, 0.1, 0.4, 1.2, 2.9]), "shares": np.array([0.5, 0.2, 0.3])}


def elbo(y, m, s, log_r):
    """Of q(mu) q(z): expected log joint plus entropies, term by term; (K,), (K,) and (N, K)."""
    normal, r = -0.5 * np.log(2 * np.pi), np.exp(log_r)
    log_mu = normal - np.log(5) - (m**2 + s**2) / 50
    log_y = normal - 0.5 * ((y[:, None] - m) ** 2 + s**2)
    return np.sum(log_mu + np.log(s) - normal + 0.5) + np.sum(r * (log_y - np.log(len(m)) - log_r))


def test_projection_is_the_nearest_of_all_labels():
    """min KL(r || rho) over tables with the column means, by sequential quadratic programming on the primal."""
    log_rho, shares = np.random.default_rng(0).normal(0, 2, (6, 3)), np.array([0.5, 0.2, 0.3])
    target = log_softmax(log_rho, axis=1)

    def kl(r):
        return np.sum(r * (np.log(r) - target.ravel()))

    best = minimize(
        kl,
        np.tile(shares, 6),
        jac=lambda r: np.log(r) + 1 - target.ravel(),
        method="SLSQP",
        bounds=[(1e-12, 1)] * 18,
        constraints=[
            {"type": "eq", "fun": lambda r: r.reshape(6, 3).sum(1) - 1},
            {"type": "eq", "fun": lambda r: r.reshape(6, 3).mean(0)[:2] - shares[:2]},
        ],
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    assert best.success, best.message
    found = pattern.projected(log_rho, shares)
    np.testing.assert_allclose(found.mean(0), shares, atol=1e-9)
    np.testing.assert_allclose(found, best.x.reshape(6, 3), atol=2e-5)
    assert np.abs(found - np.exp(target)).max() > 0.1, "the census changes something"


def test_documented_bias_is_the_constrained_maximum_of_the_elbo():
    """Over m, log s and the logits of r at once, with the census as an equality: no coordinate ascent, no dual."""
    y, shares = FEW["y"], FEW["shares"]
    n = len(y)
    m, s = pattern.documented_bias(y, 3, n, shares)["mu"]

    def unpack(p):
        return p[:3], np.exp(p[3:6]), log_softmax(np.column_stack([p[6:].reshape(n, 2), np.zeros(n)]), axis=1)

    r = pattern.projected(-0.5 * ((y[:, None] - m) ** 2 + s**2), shares)
    away = np.random.default_rng(0).normal(0, 0.3, 6 + 2 * n)  # from the fixed point, but in the reach of its mode
    start = np.concatenate([m, np.log(s), np.log(r[:, :2] / r[:, 2:]).ravel()]) + away
    best = minimize(
        lambda p: -elbo(y, *unpack(p)),
        start,
        method="SLSQP",
        constraints={"type": "eq", "fun": lambda p: np.exp(unpack(p)[2]).mean(0)[:2] - shares[:2]},
        options={"ftol": 1e-13, "maxiter": 2000},
    )
    assert best.success, best.message
    found_m, found_s, _ = unpack(best.x)
    np.testing.assert_allclose((found_m - m) / s, 0, atol=2e-3)
    np.testing.assert_allclose(found_s / s, 1, atol=2e-3)


@pytest.mark.parametrize("census", [True, False])
def test_fit_is_the_fixed_point_and_its_loss_the_elbo(census, rng_key):
    d = pattern.data() | ({} if census else {"shares": None})
    q, losses = pattern.fit(rng_key, **d)
    m, s = pattern.documented_bias(**d)["mu"]
    np.testing.assert_allclose((np.asarray(q["mu"].loc) - m) / s, 0, atol=1e-3)
    np.testing.assert_allclose(q["mu"].scale, s, rtol=1e-4)
    log_rho = -0.5 * ((d["y"][:, None] - m) ** 2 + s**2)
    r = pattern.projected(log_rho, d["shares"]) if census else softmax(log_rho, axis=1)
    assert float(losses[-1]) == pytest.approx(-elbo(d["y"], m, s, np.log(r)), rel=1e-5)
    assert np.all(np.diff(losses) < 1e-5 * np.abs(losses[0])), "no step makes it worse, but for rounding"


def test_labels_have_the_shares_asked_for(rng_key, z_bound):
    """Expected counts are exact; those of 1,000 draws scatter as sums of independent labels."""
    d = pattern.data()
    q, _ = pattern.fit(rng_key, **d)
    counts = np.sum(np.asarray(q["z"])[:, :, None] == np.arange(3), axis=1)
    m, s = pattern.documented_bias(**d)["mu"]
    r = pattern.projected(-0.5 * ((d["y"][:, None] - m) ** 2 + s**2), d["shares"])
    error = np.sqrt(np.sum(r * (1 - r), axis=0) / len(counts))
    assert np.all(np.abs(counts.mean(0) - len(d["y"]) * d["shares"]) < z_bound(3) * error)
    assert np.all(np.abs(counts.var(0) / np.sum(r * (1 - r), axis=0) - 1) < z_bound(3) * np.sqrt(2 / len(counts)))


def test_without_a_census_it_is_plain_vi(rng_key):
    """gaussian_mixture's fixed point on its own rows; and a census that plain VI agrees with already changes nothing."""
    rows = plain.data()
    expected = plain.documented_bias(**rows)["mu"]
    for here, there in zip(pattern.documented_bias(**rows)["mu"], expected, strict=True):
        np.testing.assert_allclose(here, there, rtol=1e-12)
    q, _ = pattern.fit(rng_key, **rows)
    np.testing.assert_allclose([q["mu"].loc, q["mu"].scale], expected, rtol=1e-5)
    m, s = expected
    own = softmax(-0.5 * ((rows["y"][:, None] - m) ** 2 + s**2), axis=1).mean(0)
    for here, there in zip(pattern.documented_bias(**rows, shares=own)["mu"], expected, strict=True):
        np.testing.assert_allclose(here, there, rtol=1e-6)


def test_the_census_is_a_mixture_with_other_weights():
    """The prose's reading: with weights proportional to exp(-lambda), plain labels of that mixture have the shares by themselves."""
    d = pattern.data()
    m, s = pattern.documented_bias(**d)["mu"]
    log_rho = -0.5 * ((d["y"][:, None] - m) ** 2 + s**2)
    r = pattern.projected(log_rho, d["shares"])
    log_weights = np.log(r) - log_rho + logsumexp(log_rho - log_rho.max(1, keepdims=True), axis=1, keepdims=True)
    log_weights -= logsumexp(log_weights, axis=1, keepdims=True)
    np.testing.assert_allclose(log_weights, np.broadcast_to(log_weights[0], log_weights.shape), atol=1e-9)
    assert np.abs(np.exp(log_weights[0]) - d["shares"]).max() > 0.01, "they are not those of the census"


def test_the_census_brings_the_means_to_the_simulated_groups():
    """What it is for: without it the largest group is split between two components, several sds off."""
    d = pattern.data()
    ends = np.cumsum(np.rint(d["shares"] * len(d["y"])).astype(int))[:-1]
    groups = np.array([part.mean() for part in np.split(d["y"], ends)])
    off = {}
    for census in (True, False):
        m, s = pattern.documented_bias(**(d if census else d | {"shares": None}))["mu"]
        off[census] = np.abs(m - groups).max() / s.min()
    assert off[True] < 1 < 5 < off[False]
