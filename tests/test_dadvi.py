"""DADVI from its defaults: the exact answer where it certifies, and no certificate where its q cannot be the posterior."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import Distribution

import vipatterns as vip
from vipatterns import certification, linear_response, mode, newton
from vipatterns.patterns import (
    eight_schools,
    eight_schools_centered,
    funnel,
    gaussian_mixture,
    gaussian_process,
    linear_regression,
    logistic_regression,
)

EXACT = {"linear_regression": linear_regression, "eight_schools": eight_schools, "logistic_regression": logistic_regression}


def moments(q):
    return (np.asarray(q.mean), np.asarray(q.variance) ** 0.5) if isinstance(q, Distribution) else (q.mean(0), q.std(0))


@pytest.mark.parametrize("name", EXACT)
def test_what_is_certified_is_the_exact_posterior(name, rng_key, z_bound):
    """Means, sds and log evidence, within their Monte Carlo errors, on average over keys."""
    pattern, data, keys = EXACT[name], EXACT[name].data(), jax.random.split(rng_key, 6)
    fits = [vip.fit(key, pattern.model, data, method=vip.DADVI(), progress=False) for key in keys]
    assert all(fit.certificate.ok for fit in fits)
    exact = {site: moments(q) for site, q in pattern.exact_posterior(**data).items()}
    count = 2 * sum(np.size(mean) for mean, _ in exact.values()) + 1
    bound = z_bound(count) / math.sqrt(len(fits))
    for site, (mean, sd) in exact.items():
        draws = [fit.posterior[site].stack(sample=("chain", "draw")).values for fit in fits]
        # mcse is the largest of all scalars' errors, of a mean or an sd, in posterior sds; the reference's own draws have an error too
        error = max(fit.certificate.mcse for fit in fits)
        reference = 0.01 if not isinstance(pattern.exact_posterior(**data)[site], Distribution) else 0.0
        assert np.all(np.abs(np.mean([d.mean(-1) for d in draws], 0) - mean) < (bound * error + reference) * sd), site
        assert np.all(np.abs(np.mean([d.std(-1) for d in draws], 0) / sd - 1) < bound * error + reference), site
    log_evidence = np.array([fit.certificate.log_evidence for fit in fits])
    errors = np.array([fit.certificate.log_evidence_mcse for fit in fits])
    assert abs(log_evidence.mean() - pattern.log_evidence(**data)) < bound * np.sqrt((errors**2).mean()) + 1e-3


FAILURES = {
    "eight_schools_centered": (eight_schools_centered.model, eight_schools_centered.data()),
    "funnel, D = 2": (funnel.model, {"num_dimensions": 2}),
    "funnel, D = 10": (funnel.model, {"num_dimensions": 10}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", FAILURES)
def test_what_it_cannot_fit_it_refuses_under_twenty_keys(case, rng_key):
    model, data = FAILURES[case]
    fits = [vip.fit(key, model, data, method=vip.DADVI(), progress=False) for key in jax.random.split(rng_key, 20)]
    assert [fit.certificate.ok for fit in fits] == [False] * 20, [fit.certificate.khat for fit in fits]


def test_its_elbo_is_mean_fields(rng_key, z_bound):
    """Bioassay in the units of its table: the best mean-field ELBO is -4.695424."""

    def bioassay(x, deaths):
        alpha, beta = numpyro.sample("alpha", dist.Normal(0.0, 2.0)), numpyro.sample("beta", dist.Normal(0.0, 10.0))
        numpyro.sample("deaths", dist.Binomial(5, logits=alpha + beta * x), obs=deaths)

    data = {"x": np.array([-0.86, -0.30, -0.05, 0.73]), "deaths": np.array([0, 1, 3, 5])}
    fit = vip.fit(rng_key, bioassay, data, method=vip.DADVI(num_draws=512))
    assert abs(fit.elbo + 4.695424) < z_bound() * fit.elbo_mcse + 1e-3
    assert fit.elbo_mcse < 0.05
    # The fixed draws' own, which is maximised, flatters q a little.
    assert abs(fit.losses[0, -1] - 4.695424) < 0.05


def test_labels_that_are_exchangeable_are_counted(rng_key):
    fit = vip.fit(rng_key, gaussian_mixture.model, gaussian_mixture.data(), method=vip.DADVI())
    assert fit.certificate.ok
    assert abs(fit.certificate.log_evidence + 26.362466087635834) < 4 * fit.certificate.log_evidence_mcse + 1e-3


def test_a_second_mode_withdraws_the_certificate(rng_key):
    def two_modes(y):
        mu = numpyro.sample("mu", dist.Normal(0, 10))
        numpyro.sample("y", dist.Normal(jnp.abs(mu), 1.0), obs=y)
        numpyro.factor("tilt", 0.1 * jnp.tanh(mu))

    fit = vip.fit(rng_key, two_modes, {"y": np.full(4, 6.0)}, method=vip.DADVI())
    assert not fit.certificate.ok
    assert "another mode" in fit.certificate.verdict


def test_units_do_not_matter(rng_key):
    """The same draws in other units, but for rounding."""

    def regression(x, unit, y=None):
        slope = numpyro.sample("slope", dist.Normal(0, 2 * unit))
        with numpyro.plate("row", len(x)):
            numpyro.sample("y", dist.StudentT(4, x * slope / unit, 1.0), obs=y)

    x = np.linspace(-1, 1, 20)
    y = 0.7 * x + np.random.default_rng(1).standard_t(4, 20)
    small, large = (
        vip.fit(rng_key, regression, {"x": x, "unit": unit, "y": y}, method=vip.DADVI()).posterior["slope"].values / unit
        for unit in (1e-3, 1e6)
    )
    np.testing.assert_allclose(small, large, rtol=1e-5, atol=1e-6)


def improper(y):
    numpyro.sample("free", dist.ImproperUniform(dist.constraints.real, (), ()))
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def separated(x, y):
    """A flat prior and classes that a line parts: the likelihood rises for ever."""
    slope = numpyro.sample("slope", dist.ImproperUniform(dist.constraints.real, (), ()))
    numpyro.sample("y", dist.Bernoulli(logits=slope * x), obs=y)


@pytest.mark.parametrize(
    ("model", "data"),
    [(improper, {"y": np.zeros(3)}), (separated, {"x": np.array([-2.0, -1, 1, 2]), "y": np.array([0, 0, 1, 1])})],
    ids=["flat direction", "mode at infinity"],
)
def test_a_posterior_that_has_no_mass_to_find_is_refused_in_a_sentence(model, data, rng_key):
    try:
        certificate = vip.fit(rng_key, model, data, method=vip.DADVI()).certificate
        ok, said = certificate.ok, certificate.verdict
    except vip.InputError as error:
        ok, said = False, str(error)
    assert not ok
    assert said.endswith(".")


@pytest.fixture(params=["dense", "matrix-free"])
def one_step(request, monkeypatch):
    """All that a search may take: from the mode one comes near to the maximum here, and not to it."""
    monkeypatch.setattr(newton, "MAX_STEPS", 1)
    monkeypatch.setattr(linear_response, "MAX_STEPS", 1)
    if request.param == "matrix-free":
        monkeypatch.setattr(mode, "DENSE_DIM", 1)


def test_a_search_that_used_up_its_steps_is_judged_by_its_weights_and_says_so(one_step, rng_key):
    data = logistic_regression.data()
    fit = vip.fit(rng_key, logistic_regression.model, data, method=vip.DADVI())
    assert fit.stopped_because.startswith("step budget: the ELBO of")
    assert fit.certificate.ok
    assert "ended after 1 steps, before its maximum, so that the weights alone vouch for it; modes that no start" in fit.certificate.verdict
    assert abs(fit.certificate.log_evidence - logistic_regression.log_evidence(**data)) < 5 * fit.certificate.log_evidence_mcse


def test_one_that_used_them_up_where_nothing_is_curved_like_a_maximum_is_refused(one_step, rng_key, monkeypatch):
    """Whatever the weights of finitely many draws say, which pass here."""
    monkeypatch.setattr(linear_response, "_respond", lambda blocks: (None, math.inf))
    certificate = vip.fit(rng_key, logistic_regression.model, logistic_regression.data(), method=vip.DADVI()).certificate
    assert certificate.khat < certificate.khat_threshold
    assert not certificate.ok
    assert certificate.verdict.startswith("Not safe: the ELBO still rose after 1 steps and is not curved like a maximum")


@pytest.mark.slow
def test_more_draws_are_taken_where_k_hat_cannot_tell(rng_key, monkeypatch):
    """Weights of this q are bounded, with a peak that 40,000 draws seldom meet: k-hat over .7 there, and far below with more."""
    data = gaussian_process.data()
    fit = vip.fit(rng_key, gaussian_process.model, data, method=vip.DADVI())
    assert fit.certificate.ok
    assert fit.idata["proposal"].sizes["draw"] > certification.FIRST_PROPOSALS
    monkeypatch.setattr(certification, "MAX_PROPOSALS", certification.FIRST_PROPOSALS)
    few = vip.fit(rng_key, gaussian_process.model, data, method=vip.DADVI())
    assert few.certificate.khat > few.certificate.khat_threshold
    error = math.hypot(fit.certificate.log_evidence_mcse, few.certificate.log_evidence_mcse)
    assert abs(fit.certificate.log_evidence - few.certificate.log_evidence) < 5 * error


def test_settings_that_cannot_be(rng_key):
    with pytest.raises(vip.InputError, match=r"num_draws to be a power of 2, 4 or more, got 30"):
        vip.fit(rng_key, eight_schools.model, eight_schools.data(), method=vip.DADVI(num_draws=30))
    with pytest.raises(vip.InputError, match=r"at most 1000 latents, the model has 1001"):
        vip.fit(rng_key, funnel.model, {"num_dimensions": 1001}, method=vip.DADVI())


@pytest.mark.slow
def test_three_hundred_latents(rng_key, z_bound):
    """Past the dense Hessian: a Poisson regression with an effect for every group, against NUTS."""
    rng = np.random.default_rng(0)
    group = rng.integers(0, 298, 1500)
    y = rng.poisson(np.exp(1 + 0.5 * rng.normal(size=298)[group]))

    def model(group, y=None):
        level, spread = numpyro.sample("level", dist.Normal(0, 2)), numpyro.sample("spread", dist.HalfNormal(1))
        with numpyro.plate("group", 298):
            effect = numpyro.sample("effect", dist.Normal(0, 1))
        with numpyro.plate("row", len(group)):
            numpyro.sample("y", dist.Poisson(jnp.exp(level + spread * effect[group])), obs=y)

    data = {"group": group, "y": y}
    fit = vip.fit(rng_key, model, data, method=vip.DADVI())
    reference = vip.fit(rng_key, model, data, method=vip.NUTS())
    assert reference.certificate.ok
    for site in ("level", "spread"):
        a, b = fit.posterior[site], reference.posterior[site]
        error = np.hypot(fit.certificate.mcse, reference.certificate.mcse)
        assert abs(float(a.mean() - b.mean())) < z_bound(4) * error * float(b.std()), site
        assert abs(float(a.std() / b.std()) - 1) < z_bound(4) * error, site
