"""NUTS against exact posteriors, in any units, and honest where it fails."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from arviz_stats.base.array import array_stats

import vipatterns as vip
from vipatterns import density, modes
from vipatterns.methods import nuts
from vipatterns.patterns import eight_schools, eight_schools_centered, funnel, gaussian_mean, linear_regression

EIGHT_SCHOOLS = {
    "mu": (4.396821, 3.317704),
    "tau": (3.597705, 3.219958),
    "theta": (
        np.array([6.211884, 4.940178, 3.927004, 4.757098, 3.615477, 4.042613, 6.296724, 4.854253]),
        np.array([5.593126, 4.674268, 5.262615, 4.780297, 4.657453, 4.826866, 5.077849, 5.290801]),
    ),
}


def assert_moments(posterior, expected, z_bound):
    """Means and sds of every site within their own Monte Carlo error, from the ess of each scalar."""
    num = sum(np.size(mean) for mean, _ in expected.values())
    for site, (mean, sd) in expected.items():
        draws = posterior[site].values
        series = np.moveaxis(draws.reshape(*draws.shape[:2], -1), 2, 0)
        mean, sd = np.ravel(mean), np.ravel(sd)
        of_mean = 1 / np.sqrt(array_stats.ess(series, method="mean"))
        assert (np.abs(series.mean((1, 2)) - mean) / sd < z_bound(2 * num) * of_mean).all(), site
        # The error of a variance comes from that of its squares, whatever the shape.
        squares = (series - mean[:, None, None]) ** 2 / sd[:, None, None] ** 2
        of_square = squares.std((1, 2)) / np.sqrt(array_stats.ess(squares, method="mean"))
        assert (np.abs(squares.mean((1, 2)) - 1) < z_bound(2 * num) * of_square).all(), site


@pytest.fixture(scope="module")
def schools(rng_key):
    return vip.fit(rng_key, eight_schools.model, eight_schools.data(), method=vip.NUTS())


def test_eight_schools(schools, z_bound):
    c = schools.certificate
    assert c.ok
    assert c.verdict.startswith("Safe for means, sds and tails: R-hat 1.00")
    assert c.rhat < 1.01
    assert c.ess > 400
    assert np.isnan([c.khat, c.log_evidence, schools.elbo]).all()
    assert schools.losses is None
    assert_moments(schools.posterior, EIGHT_SCHOOLS, z_bound)


def test_what_a_fit_holds(schools):
    assert schools.stopped_because == "sampled: 1000 draws a chain after 500 of warm-up"
    assert schools.num_steps == 1_500
    p = schools.posterior
    assert p["theta"].dims == ("chain", "draw", "school")
    assert dict(p.sizes) == {"chain": 4, "draw": 1_000, "school": 8}
    assert set(p.data_vars) == {"mu", "tau", "z", "theta"}
    stats = schools.idata["sample_stats"]
    assert {"lp", "diverging", "energy", "n_steps", "acceptance_rate", "step_size"} <= set(stats.data_vars)
    np.testing.assert_allclose(p["theta"], p["mu"] + p["tau"] * p["z"], rtol=1e-10)
    with jax.enable_x64(True):
        z = np.concatenate([p["mu"].values[..., None], np.log(p["tau"].values)[..., None], p["z"].values], axis=-1)[0, :5]
        log_p = jax.jit(jax.vmap(lambda z: schools.target.log_p(z, schools.target.arrays)))(z)
    np.testing.assert_allclose(stats["lp"].values[0, :5], log_p, rtol=1e-8)
    assert stats["diverging"].dtype == bool
    assert 0.8 < float(stats["acceptance_rate"].mean()) < 0.97


def test_linear_regression_in_raw_units(rng_key, z_bound):
    d = linear_regression.data()
    fit = vip.fit(rng_key, linear_regression.model, d, method=vip.NUTS())
    exact = linear_regression.exact_posterior(**d)
    assert fit.certificate.ok
    assert_moments(fit.posterior, {k: (np.asarray(e.mean), np.asarray(e.variance) ** 0.5) for k, e in exact.items()}, z_bound)
    assert float(fit.idata["sample_stats"]["n_steps"].mean()) < 8  # curvature coordinates: nothing is left to adapt


@pytest.mark.parametrize(
    ("model", "data"),
    [(eight_schools_centered.model, eight_schools_centered.data()), (funnel.model, {"num_dimensions": 10})],
    ids=["eight schools, centred", "funnel"],
)
def test_what_it_cannot_do_it_says(model, data, rng_key):
    fit = vip.fit(rng_key, model, data, method=vip.NUTS())
    c = fit.certificate
    assert not c.ok
    assert c.verdict.startswith("Not safe: ")
    assert "non-centred parameterisation" in c.verdict
    bad = int(fit.idata["sample_stats"]["diverging"].sum()) > 8, c.rhat > 1.01, c.ess < 400
    assert any(bad)
    for found, word in zip(bad, ("diverged", "R-hat", "effective draws"), strict=True):
        assert (word in c.verdict) == found


def unequal_modes():
    numpyro.sample("z", dist.MixtureSameFamily(dist.Categorical(probs=jnp.array([0.4, 0.6])), dist.Normal(jnp.array([-10.0, 10.0]), 1.0)))


def test_chains_start_in_every_mode_that_was_met(rng_key):
    fit = vip.fit(rng_key, unequal_modes, {}, method=vip.NUTS(num_warmup=200, num_samples=200))
    assert not fit.certificate.ok
    assert "chains disagree on z" in fit.certificate.verdict
    assert set(np.sign(fit.posterior["z"].mean("draw").values)) == {-1, 1}


@pytest.mark.parametrize(
    ("warmup", "samples", "chains"), [(0, 100, 2), (70, 130, 3), (50, 25, 1)], ids=["no warm-up", "odd numbers", "one chain"]
)
def test_any_number_of_draws(warmup, samples, chains, rng_key):
    method = vip.NUTS(num_warmup=warmup, num_samples=samples, num_chains=chains)
    fit = vip.fit(rng_key, gaussian_mean.model, gaussian_mean.data(), method=method)
    assert fit.posterior["mu"].shape == (chains, samples)
    assert fit.idata["sample_stats"]["lp"].shape == (chains, samples)
    assert f"{samples} draws a chain after {warmup} of warm-up" in fit.stopped_because


def judged(series):
    return nuts._judge({"z": series}, np.zeros(series.shape, bool), nuts.modes.Modes())


def test_the_error_of_an_sd_is_judged_as_that_of_a_mean_is(rng_key):
    """Independent draws whose squares scatter: the sd of a Gaussian is known to sqrt(1 / 2S) of itself, that of a heavy tail less well."""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(rng_key)))
    gaussian, heavy = rng.normal(size=(4, 1_000)), rng.standard_normal((4, 1_000)) * np.exp(1.2 * rng.standard_normal((4, 1_000)))
    certificate = judged(gaussian)
    assert certificate.ok
    assert certificate.mcse == pytest.approx(1 / np.sqrt(4_000), rel=0.2)
    certificate = judged(heavy)
    assert certificate.rhat <= nuts.MAX_RHAT
    assert certificate.ess > nuts.MIN_ESS
    (error,) = array_stats.mcse(heavy[None], method="sd") / heavy.std()
    assert certificate.mcse == pytest.approx(error)
    assert not certificate.ok
    assert f"the Monte Carlo error of z's sd is {error:.2f} posterior sds, needs < 0.05" in certificate.verdict


def test_one_chain_is_right_here_and_not_certified(rng_key, z_bound):
    fit = vip.fit(rng_key, gaussian_mean.model, gaussian_mean.data(), method=vip.NUTS(num_chains=1, num_samples=2_000))
    assert_moments(fit.posterior, {"mu": (1.8773796857484217, 0.09950371902099892)}, z_bound)
    assert not fit.certificate.ok
    assert "one chain" in fit.certificate.verdict


@pytest.mark.parametrize(("after", "kept"), [(11, 50), (14, 200)])
def test_ctrl_c_keeps_the_draws(after, kept, rng_key, monkeypatch):
    """Warm-up is 500: ten chunks of 50."""
    fit = vip.fit(rng_key, gaussian_mean.model, gaussian_mean.data(), method=interrupted(monkeypatch, after))
    assert fit.stopped_because == f"interrupted: Ctrl-C after {kept} of 1000 draws a chain; these are kept"
    assert fit.posterior["mu"].shape == (4, kept)
    assert fit.num_steps == 50 * after
    assert np.isfinite(fit.posterior["mu"]).all()


def test_ctrl_c_in_warm_up_goes_through(rng_key, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        vip.fit(rng_key, gaussian_mean.model, gaussian_mean.data(), method=interrupted(monkeypatch, 3))


def interrupted(monkeypatch, after):
    @contextlib.contextmanager
    def interrupting(title, num_steps, progress):
        seen = []

        def report(step, what):
            seen.append(step)
            if len(seen) == after:
                raise KeyboardInterrupt

        yield report

    monkeypatch.setattr(nuts, "reporting", interrupting)
    return vip.NUTS()


def walled():
    """NaN beyond two sds: starts there are drawn in, transitions there diverge."""
    z = numpyro.sample("z", dist.Normal(jnp.zeros(3), 1.0).to_event(1))
    numpyro.factor("wall", jnp.where(jnp.abs(z).max() < 2, 0.0, jnp.nan))


def test_starts_beyond_a_wall_are_drawn_in(rng_key, z_bound):
    fit = vip.fit(rng_key, walled, {}, method=vip.NUTS(num_chains=16, num_warmup=100, num_samples=100))
    z = fit.posterior["z"].values
    assert np.isfinite(z).all()
    assert (np.abs(z) < 2).all()
    assert (z.std(1) > 0).all()


def test_time_that_is_over_keeps_the_draws(rng_key, monkeypatch):
    """A clock that has run out at the fourth look, a look a chunk of 50."""
    looks = []
    monkeypatch.setattr(density.Clock, "run_seconds", property(lambda self: looks.append(1) or (1e4 if len(looks) > 3 else 0.0)))
    method = vip.NUTS(num_warmup=50, num_samples=500, max_seconds=1_000)
    fit = vip.fit(rng_key, gaussian_mean.model, gaussian_mean.data(), method=method)
    assert fit.posterior.sizes["draw"] == 150
    assert fit.stopped_because == "time budget: 1000 s were over after 150 of 500 draws a chain"


def test_time_that_is_over_in_the_warm_up_is_an_error(rng_key):
    with pytest.raises(vip.InputError, match=r"still in its warm-up after 0 s \(50 of 1500 iterations\): raise max_seconds"):
        vip.fit(rng_key, gaussian_mean.model, gaussian_mean.data(), method=vip.NUTS(max_seconds=0))


def test_draws_of_which_nothing_varies_are_refused_in_a_sentence():
    draws = {"fixed": np.full((4, 100), 3.0), "count": np.ones((4, 100, 2), int)}
    certificate = nuts._judge(draws, np.zeros((4, 100), bool), modes.Modes())
    assert not certificate.ok
    assert certificate.verdict.startswith("Not safe: no scalar of any site varies from draw to draw")


def test_chains_that_stand_still_apart_are_refused_in_a_sentence():
    """Their variance within is zero: nothing is divided by it in front of the user."""
    draws = {"z": np.broadcast_to(np.arange(4.0)[:, None], (4, 64))}
    certificate = nuts._judge(draws, np.zeros((4, 64), bool), modes.Modes())
    assert not certificate.ok
    assert "chains disagree on z (R-hat inf" in certificate.verdict
