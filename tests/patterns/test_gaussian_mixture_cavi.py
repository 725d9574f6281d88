"""gaussian_mixture_cavi: scikit-learn's fixed point, the toy's published ELBO as a limit, the ELBO by draws, the bias by Gibbs."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.infer import Trace_ELBO
from scipy.special import softmax
from scipy.stats import dirichlet, gamma, norm
from sklearn.mixture import BayesianGaussianMixture

from vipatterns.patterns import gaussian_mixture as toy
from vipatterns.patterns import gaussian_mixture_cavi as pattern
from vipatterns.patterns import gaussian_mixture_em as by_points


@pytest.fixture(scope="module")
def rows():
    return pattern.data()


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def shares(y, centres, sharpness=8.0):
    return softmax(-sharpness * ((y[:, None] - centres) / y.std()) ** 2, axis=1)


def settled(y, r, units, sweeps=300):
    """Parameters after the last sweep, and ELBOs after each."""

    def sweep(r, _):
        q = pattern.update(r, y, units)
        return jax.nn.softmax(pattern.label(q, y), axis=1), (q, pattern.elbo(q, y, units))

    _, (path, elbos) = jax.lax.scan(sweep, jnp.asarray(r), length=sweeps)
    return {name: np.asarray(values[-1]) for name, values in path.items()}, np.asarray(elbos)


def gibbs(y, units, start, sweeps, seed=0):
    """Draws of (weights, mu, tau), (sweeps, 3, chains, K), each draw's components by their means; priors are the pattern's."""
    rng, (mean, sd) = np.random.default_rng(seed), units
    mu, k = start, start.shape[1]
    tau, weights, kept = np.full(mu.shape, 4 / sd**2), np.full(mu.shape, 1 / k), []
    for _ in range(sweeps):
        log_p = np.log(weights)[:, None] + 0.5 * np.log(tau)[:, None] - 0.5 * tau[:, None] * (y[:, None] - mu[:, None]) ** 2
        z = np.argmax(log_p + rng.gumbel(size=log_p.shape), axis=2)[..., None] == np.arange(k)
        n = z.sum(1)
        m = (pattern.KAPPA0 * mean + (z * y[:, None]).sum(1)) / (pattern.KAPPA0 + n)
        scatter = (z * (y[:, None] - m[:, None]) ** 2).sum(1) + pattern.KAPPA0 * (m - mean) ** 2
        tau = rng.gamma(pattern.A0 + n / 2) / (pattern.B0 * sd**2 + scatter / 2)
        mu = rng.normal(m, ((pattern.KAPPA0 + n) * tau) ** -0.5)
        g = rng.gamma(pattern.ALPHA0 + n)
        weights = g / g.sum(1, keepdims=True)
        kept.append([np.take_along_axis(v, np.argsort(mu, axis=1), 1) for v in (weights, mu, tau)])
    return np.array(kept)


def test_data_are_those_of_gaussian_mixture_em(rows):
    np.testing.assert_array_equal(rows["y"], by_points.data()["y"])
    assert (pattern.A0, pattern.B0, pattern.KAPPA0, pattern.ALPHA0) == (by_points.A0, by_points.B0, by_points.KAPPA0, 1.0)


def test_fixed_point_is_scikit_learn_s(rows, x64):
    """BayesianGaussianMixture in one dimension: a Wishart with nu degrees of freedom is a gamma of shape nu / 2."""
    y, (mean, sd) = rows["y"], rows["units"]
    oracle = BayesianGaussianMixture(
        n_components=3,
        covariance_type="full",
        weight_concentration_prior_type="dirichlet_distribution",
        weight_concentration_prior=pattern.ALPHA0,
        mean_precision_prior=pattern.KAPPA0,
        mean_prior=[mean],
        degrees_of_freedom_prior=2 * pattern.A0,
        covariance_prior=[[2 * pattern.B0 * sd**2]],
        reg_covar=0.0,
        tol=1e-13,
        max_iter=5000,
        n_init=10,
        random_state=0,
    ).fit(y[:, None])
    order = np.argsort(oracle.means_[:, 0])
    q, _ = settled(y, shares(y, [10.0, 21.0, 33.0]), rows["units"])
    np.testing.assert_allclose(q["alpha"], oracle.weight_concentration_[order], rtol=1e-6)
    np.testing.assert_allclose(q["m"], oracle.means_[order, 0], rtol=1e-6)
    np.testing.assert_allclose(q["kappa"], oracle.mean_precision_[order], rtol=1e-6)
    np.testing.assert_allclose(q["a"], oracle.degrees_of_freedom_[order] / 2, rtol=1e-6)
    np.testing.assert_allclose(q["b"] / q["a"], oracle.covariances_[order, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(softmax(pattern.label(q, y), axis=1), oracle.predict_proba(y[:, None])[:, order], atol=1e-6)


@pytest.fixture
def unit_variance(monkeypatch):
    """Priors that pin weights and precisions: the model of gaussian_mixture, up to one part in ten million."""
    for name, value in {"ALPHA0": 1e7, "A0": 1e7, "B0": 1e7, "KAPPA0": toy.PRIOR_SD**-2}.items():
        monkeypatch.setattr(pattern, name, value)


def test_the_toy_has_its_published_elbo(x64, unit_variance):
    """The known precisions and weights are a limit; the gap to the log evidence is log 3! + .001249."""
    y, units = toy.data()["y"], np.array([0.0, 1.0])
    q, elbos = settled(y, shares(y, [-5.0, 0.0, 5.0]), units, sweeps=60)
    np.testing.assert_allclose(q["m"], [-4.96707, 0.04951, 5.03284], atol=2e-5)
    np.testing.assert_allclose(1 / q["kappa"], [0.32895, 0.24753, 0.32895], atol=1e-5)
    assert elbos[-1] == pytest.approx(-28.155474993858, abs=1e-5)
    assert toy.log_evidence(**toy.data()) - elbos[-1] - math.log(6) == pytest.approx(0.001249, abs=1e-5)
    m, s = toy.documented_bias(**toy.data())["mu"]
    np.testing.assert_allclose(q["m"], m, atol=1e-5)
    np.testing.assert_allclose(q["kappa"] ** -0.5, s, rtol=1e-6)


def test_restarts_are_needed_on_the_toy(x64, unit_variance):
    """From two starts in one group, sweeps rest lower: the ELBO tells which end to keep."""
    y, units = toy.data()["y"], np.array([0.0, 1.0])
    _, good = settled(y, shares(y, [-5.0, 0.0, 5.0]), units, sweeps=200)
    _, poor = settled(y, shares(y, [-5.2, -4.8, 2.0], sharpness=100.0), units, sweeps=200)
    assert poor[-1] < good[-1] - 5


def test_elbo_by_draws_of_everything(rows, rng_key, x64, z_bound):
    """The formula against log p - log q over draws of weights, precisions, means *and* labels, densities by SciPy."""
    y, (mean, sd), draws = rows["y"], rows["units"], 4_000
    q, _ = settled(y, shares(y, [10.0, 21.0, 33.0]), rows["units"], sweeps=2)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(rng_key)))
    w, tau = rng.dirichlet(q["alpha"], draws), rng.gamma(q["a"], 1 / q["b"], (draws, 3))
    mu = rng.normal(q["m"], (q["kappa"] * tau) ** -0.5)
    log_r = np.asarray(jax.nn.log_softmax(pattern.label(q, y), axis=1))
    z = np.argmax(log_r + rng.gumbel(size=(draws, *log_r.shape)), axis=2)
    pick = np.arange(draws)[:, None], z
    log_p = np.sum(np.log(w[pick]) + norm.logpdf(y, mu[pick], tau[pick] ** -0.5), axis=1)
    log_p += gamma.logpdf(tau, pattern.A0, scale=1 / (pattern.B0 * sd**2)).sum(1)
    log_p += norm.logpdf(mu, mean, (pattern.KAPPA0 * tau) ** -0.5).sum(1) + np.log(2)  # 2: the density of Dirichlet(1, 1, 1)
    log_q = gamma.logpdf(tau, q["a"], scale=1 / q["b"]).sum(1) + norm.logpdf(mu, q["m"], (q["kappa"] * tau) ** -0.5).sum(1)
    log_q += dirichlet.logpdf(w.T, q["alpha"]) + log_r[np.arange(len(y)), z].sum(1)
    difference = log_p - log_q
    assert abs(difference.mean() - float(pattern.elbo(q, y, rows["units"]))) < z_bound() * difference.std() / np.sqrt(draws)


@pytest.mark.slow
def test_elbo_is_below_the_one_with_labels_summed_out(rows, rng_key, x64, z_bound):
    """NumPyro's, of this model and this guide: labels free to follow the parameters can only help."""
    q, elbos = settled(rows["y"], shares(rows["y"], [10.0, 21.0, 33.0]), rows["units"])
    keys = jax.random.split(rng_key, 2_000)
    arguments = {key: value for key, value in rows.items() if key != "num_components"}
    draws = -np.asarray(jax.vmap(lambda key: Trace_ELBO().loss(key, q, pattern.model, pattern.guide, **arguments))(keys))
    error = z_bound() * draws.std() / np.sqrt(len(draws))
    assert elbos[-1] - error < draws.mean() < elbos[-1] + 0.2 + error, "and here, where groups stand apart, hardly"


@pytest.mark.parametrize("centres", [(10.0, 21.0, 33.0), (20.0, 21.0, 22.0), (16.0, 16.2, 24.0)])
def test_no_sweep_lowers_the_elbo(rows, x64, centres):
    _, elbos = settled(rows["y"], shares(rows["y"], centres), rows["units"], sweeps=100)
    assert np.all(np.diff(elbos) > -1e-10)
    assert elbos[-1] > elbos[0]


def test_documented_bias_is_where_sweeps_rest(rows, x64):
    q, _ = settled(rows["y"], shares(rows["y"], [10.0, 21.0, 33.0]), rows["units"])
    bias = pattern.documented_bias(**rows)
    np.testing.assert_allclose(bias["tau"], [q["a"] / q["b"], np.sqrt(q["a"]) / q["b"]], rtol=1e-5)
    np.testing.assert_allclose(bias["mu"], [q["m"], np.sqrt(q["b"] / ((q["a"] - 1) * q["kappa"]))], rtol=1e-5)
    beta = q["alpha"].sum() - q["alpha"]
    sd = np.sqrt(q["alpha"] * beta / (q["alpha"].sum() ** 2 * (q["alpha"].sum() + 1)))
    np.testing.assert_allclose(bias["weights"], [q["alpha"] / q["alpha"].sum(), sd], rtol=1e-5)


@pytest.mark.slow
def test_documented_bias_is_the_best_of_many_starts(rows, rng_key, x64):
    """200 starts on rows drawn at random: none ends higher, and many end lower."""
    y, units = jnp.asarray(rows["y"]), jnp.asarray(rows["units"])
    _, expected = settled(rows["y"], shares(rows["y"], [10.0, 21.0, 33.0]), rows["units"])

    def climb(key):
        r = jax.nn.softmax(-8 * ((y[:, None] - jax.random.choice(key, y, (3,), replace=False)) / units[1]) ** 2, axis=1)

        def sweep(r, _):
            return jax.nn.softmax(pattern.label(pattern.update(r, y, units), y), axis=1), None

        return pattern.elbo(pattern.update(jax.lax.scan(sweep, r, length=400)[0], y, units), y, units)

    ends = np.asarray(jax.vmap(climb)(jax.random.split(rng_key, 200)))
    assert ends.max() < expected[-1] + 1e-8
    assert 0.2 < np.mean(ends > expected[-1] - 1e-6) < 0.9


def test_inside_its_mode_q_is_near_exact_where_groups_stand_apart(rows):
    """By Gibbs sampling: nearly all of the posterior is in this mode, and there q's means are right to 0.1 sd and its sds to 15 %."""
    draws = gibbs(rows["y"], rows["units"], np.tile([9.7, 21.4, 33.0], (200, 1)), 300)[20:]
    mode = np.abs(draws[:, 1] - [9.7, 21.4, 33.0]).max(-1) < 5
    assert mode.mean() > 0.95
    for site, values in zip(("weights", "mu", "tau"), np.moveaxis(draws, 1, 0), strict=True):
        mean, sd = pattern.documented_bias(**rows)[site]
        assert np.all(np.abs(values[mode].mean(0) - mean) < 0.1 * sd), site
        assert np.all(np.abs(np.log(values[mode].std(0) / sd)) < (0.15 if site == "mu" else 0.06)), f"{site}; three galaxies decide mu[2]"


@pytest.mark.slow
def test_where_groups_overlap_its_sds_are_too_small():
    y = np.concatenate([norm.ppf((np.arange(100) + 0.5) / 100, centre) for centre in (-1.3, 1.3)])
    d = pattern.data({"y": y}) | {"num_components": 2}
    draws = gibbs(y, d["units"], np.tile([-1.3, 1.3], (100, 1)), 400)[50:]
    _, sd = pattern.documented_bias(**d)["mu"]
    assert np.all(sd < 0.6 * draws[:, 1].std((0, 1)))


@pytest.mark.slow
def test_fit_is_the_best_q_under_every_key(rows, assert_fits):
    assert_fits(pattern, rows, pattern.documented_bias(**rows), worst=1e-3, floor=1e-3)


@pytest.mark.slow
def test_fit_in_other_units(assert_fits):
    d = pattern.data({"y": pattern.data()["y"] * 1000 - 5000})
    assert_fits(pattern, d, pattern.documented_bias(**d), worst=2e-3, floor=2e-3)


@pytest.mark.slow
def test_losses_are_the_negative_elbo_and_fall(rows, rng_key, x64):
    _, losses = pattern.fit(rng_key, **rows)
    _, elbos = settled(rows["y"], shares(rows["y"], [10.0, 21.0, 33.0]), rows["units"])
    assert np.all(np.diff(losses) < 1e-10)
    assert float(-losses[-1]) == pytest.approx(elbos[-1], abs=1e-9)
