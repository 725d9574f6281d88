"""Flow: log q is the density of its draws; banana and funnel, which no Gaussian fits; units, rows, keys, refusals."""

import sys

import flowjax.flows
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from flowjax.distributions import StandardNormal
from grid import caught, check_density

import vipatterns as vip
from vipatterns.methods import flow
from vipatterns.patterns import funnel, gaussian_mean, linear_regression, logistic_regression

SMALL = {"num_layers": 4, "width": 8, "num_steps": 300, "num_restarts": 2, "num_samples": 100}
QUICK = {"num_layers": 2, "width": 4, "num_steps": 20, "num_restarts": 1, "num_samples": 50}


def banana():
    """Haario, Saksman and Tamminen 1999, doi 10.1007/s001800050022; normalised."""
    x = numpyro.sample("x", dist.Normal(0.0, 10.0))
    numpyro.sample("y", dist.Normal(0.03 * (x**2 - 100), 1.0))


def autoregressive(rng_key, dim):
    options = {"flow_layers": 2, "nn_width": 8, "invert": False}
    return flowjax.flows.masked_autoregressive_flow(rng_key, base_dist=StandardNormal((dim,)), **options).bijection


@pytest.mark.parametrize("bijection", [None, autoregressive], ids=["coupling layers", "a bijection of one's own"])
def test_log_q_is_the_density_of_its_draws(bijection, rng_key, z_bound, monkeypatch):
    proposals = caught(monkeypatch, flow)
    method = vip.Flow(**{**SMALL, "bijection": bijection, "num_steps": 100})
    vip.fit(rng_key, logistic_regression.model, logistic_regression.data(), method=method)
    [proposal] = proposals
    assert len(proposal.components) == 2
    check_density(proposal, rng_key, z_bound)


BENT = {"banana": (banana, {}), "funnel": (funnel.model, {"num_dimensions": 2})}
WITHIN = 0.05
"""Nats between the ELBO and log Z = 0 of both, with a network smaller than the default."""


@pytest.mark.slow
@pytest.mark.parametrize("name", BENT)
def test_what_no_gaussian_fits(name, rng_key, z_bound):
    model, data = BENT[name]
    bent = vip.fit(rng_key, model, data, method=vip.Flow(num_layers=4, width=16, num_steps=6_000, num_restarts=2))
    gaussian = vip.fit(rng_key, model, data, method=vip.FullRank())
    assert -WITHIN < bent.elbo < z_bound() * bent.elbo_mcse
    assert gaussian.elbo + z_bound() * gaussian.elbo_mcse < -0.5
    assert abs(bent.certificate.log_evidence) < 0.02


def test_the_exact_posterior_of_a_skewed_one(rng_key, z_bound):
    """Bioassay, log Z by quadrature: the best Gaussian's ELBO is .1 below it."""
    data = logistic_regression.data()
    fit = vip.fit(rng_key, logistic_regression.model, data, method=vip.Flow(**SMALL))
    log_evidence = float(logistic_regression.log_evidence(**data))
    assert -0.05 < fit.elbo - log_evidence < z_bound() * fit.elbo_mcse
    assert abs(fit.certificate.log_evidence - log_evidence) < z_bound() * fit.certificate.log_evidence_mcse
    assert fit.idata["proposal"].sizes["chain"] == fit.losses.shape[0] == 2


def scaled(sds):
    """Correlation .8; normalised in any units."""
    covariance = sds[:, None] * jnp.array([[1.0, 0.8], [0.8, 1.0]]) * sds
    numpyro.sample("z", dist.MultivariateNormal(jnp.zeros(2), covariance))


def test_units_do_not_matter(rng_key):
    fits = [vip.fit(rng_key, scaled, {"sds": np.array(sds)}, method=vip.Flow(**SMALL)) for sds in ([1.0, 1.0], [1e-6, 1e6])]
    assert [fit.elbo for fit in fits] == pytest.approx([0, 0], abs=0.01)
    np.testing.assert_allclose(fits[1].posterior["z"].std(("chain", "draw")) / [1e-6, 1e6], 1, atol=0.2)


def test_minibatches(rng_key, z_bound):
    """Trained on a tenth of the rows at a time, weighed with all of them."""
    data = linear_regression.data()
    fit = vip.fit(rng_key, linear_regression.model, data, method=vip.Flow(**SMALL, batch_size=10))
    log_evidence = float(linear_regression.log_evidence(**data))
    assert fit.losses[:, -100:].std() > 0.1, "rows come and go"
    assert -0.5 < fit.elbo - log_evidence < z_bound() * fit.elbo_mcse
    assert abs(fit.certificate.log_evidence - log_evidence) < z_bound() * fit.certificate.log_evidence_mcse


def test_the_same_key_gives_the_same_draws_and_another_does_not(rng_key):
    keys = rng_key, rng_key, jax.random.fold_in(rng_key, 1)
    one, again, other = (vip.fit(key, banana, {}, method=vip.Flow(**QUICK)).posterior["x"].values for key in keys)
    np.testing.assert_array_equal(one, again)
    assert not np.isin(one, other).any()


def test_float32(rng_key):
    fit = vip.fit(rng_key, banana, {}, method=vip.Flow(**QUICK, dtype="float32"))
    assert fit.posterior["x"].dtype == np.float32
    assert np.isfinite(fit.elbo)


def wide():
    numpyro.sample("z", dist.Normal(0.0, 1.0).expand([1_001]).to_event(1))


@pytest.mark.parametrize(
    ("model", "data", "said"),
    [
        (gaussian_mean.model, gaussian_mean.data(), r"needs at least 2, the model has 1; use vip.FullRank\(\)"),
        (wide, {}, r"at most 1000 latents, the model has 1001; use vip.LowRank\(\)"),
    ],
)
def test_too_few_and_too_many_latents(model, data, said, rng_key):
    with pytest.raises(vip.InputError, match=said):
        vip.fit(rng_key, model, data, method=vip.Flow())


@pytest.mark.parametrize(("setting", "least"), [("num_layers", 2), ("width", 1), ("num_steps", 1), ("num_restarts", 1), ("num_samples", 1)])
def test_a_setting_that_cannot_be(setting, least, rng_key):
    with pytest.raises(vip.InputError, match=f"Flow needs {setting} of at least {least}, got {least - 1}"):
        vip.fit(rng_key, banana, {}, method=vip.Flow(**{setting: least - 1}))


@pytest.mark.parametrize("missing", ["equinox", "flowjax.flows"])
def test_without_the_extra(missing, rng_key, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(vip.InputError, match=r"Flow needs flowjax, which is not installed; run pip install 'vipatterns\[flow\]'"):
        vip.fit(rng_key, banana, {}, method=vip.Flow())
