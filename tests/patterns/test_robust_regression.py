"""robust_regression: the fit against the best mean-field guide, that guide against a long NUTS run."""

import jax
import numpy as np
import pytest
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer import MCMC, NUTS, Trace_ELBO
from numpyro.infer.util import log_density

from vipatterns.patterns import robust_regression as pattern

REFERENCE = {
    "intercept": (17.557330, 0.702429),
    "slopes": ([0.827840, 0.885436, -0.126248], [0.147457, 0.395414, 0.136430]),
    "sigma": (2.613832, 0.648652),
}
"""Mean and sd by NUTS in float64: MCMC(NUTS(model, target_accept_prob=0.95), num_warmup=2000, num_samples=25_000, num_chains=4), key 0.

No divergence; R-hat at most 1.0001; effective draws 48,000 (the second slope) or more, so that a mean is known to 0.005 sd.
"""
REFERENCE_ESS = 48_000


@pytest.fixture(scope="module")
def plant():
    return pattern.data()


@pytest.mark.slow
def test_nuts_finds_the_recorded_reference_again(plant, rng_key, z_bound):
    """A shorter run, in float32. An effective number counts for means; sds of these tails are known about half as well."""
    mcmc = MCMC(NUTS(pattern.model), num_warmup=1000, num_samples=5000, num_chains=4, chain_method="vectorized", progress_bar=False)
    mcmc.run(rng_key, **plant, extra_fields=("diverging",))
    assert int(mcmc.get_extra_fields()["diverging"].sum()) <= 5
    for site, draws in mcmc.get_samples(group_by_chain=True).items():
        draws = np.asarray(draws, float)
        assert np.all(split_gelman_rubin(draws) < 1.005)
        mean, sd = map(np.asarray, REFERENCE[site])
        error = np.sqrt(1 / effective_sample_size(draws) + 1 / REFERENCE_ESS)
        flat = draws.reshape(-1, *draws.shape[2:])
        assert np.all(np.abs(flat.mean(0) - mean) / sd < z_bound(10) * error), site
        assert np.all(np.abs(flat.std(0) / sd - 1) < 2 * z_bound(10) * error), site


def test_fit_is_the_best_guide(plant, assert_fits):
    assert_fits(pattern, plant, pattern.documented_bias(**plant), worst=0.08)


def test_best_guide_is_where_the_sampled_elbo_is_flat(plant, rng_key, z_bound):
    """The gradient of the model's own ELBO, by sampling, vanishes there, in every parameter of the guide."""
    best, (mean, sd) = pattern.documented_bias(**plant), plant["units"]
    unit = sd[-1] / sd[:-1]
    b2 = np.log1p((best["sigma"][1] / best["sigma"][0]) ** 2)
    params = {
        "intercept_m": (best["intercept"][0] - mean[-1]) / sd[-1],
        "intercept_s": best["intercept"][1] / sd[-1],
        "slopes_m": best["slopes"][0] / unit,
        "slopes_s": best["slopes"][1] / unit,
        "sigma_m": np.log(best["sigma"][0]) - b2 / 2 - np.log(sd[-1]),
        "sigma_s": np.sqrt(b2),
    }

    def loss(params, key):
        return Trace_ELBO(num_particles=2000).loss(key, params, pattern.model, pattern.guide, **plant)

    gradients = jax.vmap(jax.grad(loss), (None, 0))(params, jax.random.split(rng_key, 100))
    for name, gradient in gradients.items():
        assert np.all(np.abs(gradient.mean(0)) < z_bound(10) * gradient.std(0, ddof=1) / 10 + 0.01), name


def test_documented_bias_of_the_docstring(plant):
    best = pattern.documented_bias(**plant)
    ratio = {site: np.asarray(best[site][1]) / REFERENCE[site][1] for site in best}
    np.testing.assert_allclose(ratio["slopes"][:2], 0.53, atol=0.01)
    assert ratio["sigma"] == pytest.approx(0.85, abs=0.01)
    assert max(np.max(np.abs(best[s][0] - np.asarray(REFERENCE[s][0])) / REFERENCE[s][1]) for s in best) < 0.11


def test_one_wild_row_moves_the_line_by_little(plant):
    """Least squares follows the row without limit; here its pull is bounded by the tails: 1,000 and 100,000 differ little."""
    wild = [{**plant, "y": np.append(plant["y"][:-1], value)} for value in (1e3, 1e5)]
    near, far = (pattern.documented_bias(**d)["slopes"] for d in wild)
    assert np.all(np.abs(far[0] - near[0]) < 0.1 * near[1])


def test_the_model_prefers_the_robust_line(plant):
    """log p(y, line) of the model is higher on the best guide's line than on that of least squares."""
    design = np.column_stack([np.ones(21), plant["x"] - plant["units"][0, :-1]])
    line = np.linalg.lstsq(design, plant["y"])[0]
    best = pattern.documented_bias(**plant)

    def at(intercept, slopes):
        return float(log_density(pattern.model, (), plant, {"intercept": intercept, "slopes": slopes, "sigma": best["sigma"][0]})[0])

    assert at(best["intercept"][0], best["slopes"][0]) > at(line[0], line[1:])


def test_units_do_not_matter(plant):
    moved = pattern.documented_bias(**pattern.data({"x": plant["x"] * 1000, "y": plant["y"] * 10 + 10_000}))
    best = pattern.documented_bias(**plant)
    np.testing.assert_allclose(np.multiply(moved["slopes"], 100), best["slopes"], rtol=1e-3)
    np.testing.assert_allclose(np.divide(moved["sigma"], 10), best["sigma"], rtol=1e-3)
    with pytest.raises(ValueError, match="pass y too"):
        pattern.model(plant["x"])
