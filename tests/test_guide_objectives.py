"""vip.Guide with every objective: what is fitted, and that the fit's `elbo` is one whatever the losses are."""

import math

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer import RenyiELBO, Trace_ELBO, TraceMeanField_ELBO

import vipatterns as vip
from vipatterns.objectives import DoublyReparameterized, ForwardKL, ScoreFunction, StickingTheLanding
from vipatterns.patterns import correlated_gaussian, gaussian_mean
from vipatterns.posterior import described

RHO = 0.6
ELBOS = [StickingTheLanding(8), ScoreFunction(8), TraceMeanField_ELBO(8)]
OTHERS = [DoublyReparameterized(8), ForwardKL(128), RenyiELBO(0.0, 8)]


def name_of(objective):
    return type(objective).__name__


def fitted(rng_key, objective):
    return vip.fit(rng_key, correlated_gaussian.model, {"rho": RHO}, method=vip.Guide(correlated_gaussian.guide, objective=objective))


def account(fit):
    """sds of q, and the ELBO of a Gaussian with its means and sds."""
    z = fit.idata["proposal"]["z"].values.reshape(-1, 2)
    mean, sd = z.mean(0), z.std(0)
    covariance = np.array([[1.0, RHO], [RHO, 1.0]])
    precision = np.linalg.inv(covariance)
    trace = np.trace(precision * sd**2)
    return sd, -0.5 * (trace - 2 + mean @ precision @ mean + np.linalg.slogdet(covariance)[1] - 2 * np.log(sd).sum())


@pytest.mark.parametrize("objective", [ELBOS[0], *(pytest.param(o, marks=pytest.mark.slow) for o in ELBOS[1:])], ids=name_of)
def test_an_elbo_finds_the_sds_of_the_conditionals(objective, rng_key):
    fit = fitted(rng_key, objective)
    sd, elbo = account(fit)
    np.testing.assert_allclose(sd, math.sqrt(1 - RHO**2), rtol=0.05)  # the optimiser stops within .02 sds of q, .04 of its log
    assert fit.elbo == pytest.approx(elbo, abs=6 * fit.elbo_mcse)
    assert -fit.losses[:, -100:].mean() == pytest.approx(fit.elbo, abs=0.05)


@pytest.mark.parametrize("objective", [OTHERS[1], *(pytest.param(o, marks=pytest.mark.slow) for o in OTHERS[::2])], ids=name_of)
def test_another_objective_has_losses_and_the_fit_an_elbo(objective, rng_key):
    """Its q is wider than that of the best ELBO and its loss is no ELBO of it; the fit's `elbo` is."""
    fit = fitted(rng_key, objective)
    sd, elbo = account(fit)
    assert (sd > 1.1 * math.sqrt(1 - RHO**2)).all()
    assert fit.elbo == pytest.approx(elbo, abs=6 * fit.elbo_mcse)
    assert abs(-fit.losses[:, -100:].mean() - fit.elbo) > 0.05
    assert "ELBO" not in fit.stopped_because
    assert fit.certificate.log_evidence == pytest.approx(0.0, abs=6 * fit.certificate.log_evidence_mcse)


def test_forward_kl_finds_the_marginal_sds(rng_key):
    """The moments of p, 1, where reverse KL finds .8."""
    sd, _ = account(fitted(rng_key, OTHERS[1]))
    np.testing.assert_allclose(sd, 1, rtol=0.05)


def test_sticking_the_landing_lands(rng_key):
    """The noise vanishes at the perfect guide, so that the posterior is found to many digits."""
    data = gaussian_mean.data()
    fit = vip.fit(rng_key, gaussian_mean.model, data, method=vip.Guide(gaussian_mean.guide, objective=StickingTheLanding(2)))
    assert fit.certificate.ok
    assert fit.elbo == pytest.approx(gaussian_mean.log_evidence(**data), abs=1e-3)


def test_what_only_svi_carries():
    method = vip.Guide(gaussian_mean.guide, objective=ScoreFunction(control_variate="running_mean"))
    with pytest.raises(vip.InputError, match=r"vip.Guide and SVI.evaluate carry none"):
        vip.fit(jax.random.key(0), gaussian_mean.model, gaussian_mean.data(), method=method)


def test_a_bound_on_minibatches_of_a_global_latent():
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        with numpyro.plate("row", len(y), subsample_size=10):
            numpyro.sample("y", dist.Normal(mu, 1.0), obs=numpyro.subsample(y, 0))

    def guide(y):
        numpyro.sample("mu", dist.Normal(numpyro.param("m", 0.0), 1.0))

    with pytest.raises(vip.InputError, match=r"Plate 'row' is subsampled and does not hold every site"):
        vip.fit(jax.random.key(0), model, {"y": np.ones(50)}, method=vip.Guide(guide, objective=DoublyReparameterized(4)))


def test_a_fit_names_its_guide_objective_and_optimizer_without_addresses(rng_key, tmp_path):
    """Two runs of one program say the same, and the settings can be read."""

    def fit():
        method = vip.Guide(
            correlated_gaussian.guide, objective=ScoreFunction(4, rao_blackwellize=False), optimizer=optax.scale_by_adam(), num_steps=100
        )
        return vip.fit(rng_key, correlated_gaussian.model, {"rho": RHO}, method=method)

    first, second = fit(), fit()
    said = first.idata.attrs["method"]
    assert " 0x" not in said
    assert said == second.idata.attrs["method"]
    assert said.startswith(f"Guide(guide={correlated_gaussian.__name__}.guide, objective=ScoreFunction(num_particles=4, ")
    assert "rao_blackwellize=False" in said
    assert "optimizer=GradientTransformation(init=optax" in said
    for text in (repr(first), first._repr_html_(), repr(vip.load(first.save(tmp_path / "fit.nc"))), str(first.sample(rng_key, 10).attrs)):
        assert "ScoreFunction(num_particles=4" in text
        assert " 0x" not in text


def test_what_has_a_text_of_its_own_keeps_it():
    for value in (3, "a", None, vip.NUTS(), vip.Ladder(), (1, [vip.DADVI()])):
        assert described(value) == repr(value)
    assert described((Trace_ELBO(2), [Trace_ELBO])) == f"({described(Trace_ELBO(2))}, [{Trace_ELBO!r}])"
    assert described(object()) == "<object object>"
