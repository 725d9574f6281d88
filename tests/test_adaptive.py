"""IMIS beside exact answers: what it certifies is right where DADVI is refused, and it refuses what it cannot cover."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import Distribution

import vipatterns as vip
from vipatterns import keys
from vipatterns.density import Clock
from vipatterns.methods import adaptive
from vipatterns.patterns import correlated_gaussian, eight_schools_centered, funnel

REACH, NUM_POINTS, NUM_DRAWS = 14.0, 801, 20_000
GROUPS, NOISE = 12, 0.3


def banana(bend):
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(bend * (x**2 - 1), 0.5))


def banana_moments(bend):
    """By the moments of a Gaussian: E x^4 = 3."""
    return {"x": (0.0, 1.0), "y": (0.0, math.sqrt(0.25 + 2 * bend**2))}


def two_modes(apart):
    mixture = dist.MixtureSameFamily(dist.Categorical(jnp.array([0.5, 0.5])), dist.Normal(jnp.array([-0.5, 0.5]) * apart, 1.0))
    numpyro.sample("z", mixture)


def flat(y):
    """Nothing is known of `free`."""
    numpyro.sample("free", dist.ImproperUniform(dist.constraints.real, (), ()))
    numpyro.sample("y", dist.Normal(numpyro.sample("mu", dist.Normal(0, 1)), 1.0), obs=y)


def levels(y):
    """A centred hierarchy without its funnel's neck: more latents than are adapted along one by one."""
    mu, log_tau = numpyro.sample("mu", dist.Normal(0.0, 1.0)), numpyro.sample("log_tau", dist.Normal(-1.5, 0.7))
    with numpyro.plate("group", len(y)):
        numpyro.sample("y", dist.Normal(numpyro.sample("theta", dist.Normal(mu, jnp.exp(log_tau))), NOISE), obs=y)


def levels_data():
    return {"y": np.random.default_rng(3).normal(0.2, 0.4, GROUPS)}


def levels_exact(y):
    """Site -> (mean, sd), and the log evidence: all is Gaussian given log_tau, over which a grid runs."""
    log_tau = np.linspace(-1.5 - 9 * 0.7, -1.5 + 9 * 0.7, 4_001)
    tau2 = np.exp(2 * log_tau)[:, None]
    v = tau2 + NOISE**2
    var = 1 / (1 + (np.ones_like(y) / v).sum(1))
    mean = var * (y / v).sum(1)
    log_p = 0.5 * (np.log(var) + mean**2 / var - (np.log(2 * np.pi * v) + y**2 / v).sum(1)) - 0.5 * ((log_tau + 1.5) / 0.7) ** 2
    log_p -= math.log(0.7 * math.sqrt(2 * math.pi))
    w = np.exp(log_p - log_p.max())
    log_evidence = log_p.max() + math.log(w.sum() * (log_tau[1] - log_tau[0]))
    w /= w.sum()
    shrink = tau2 / v
    theta, theta_var = mean[:, None] + shrink * (y - mean[:, None]), shrink * NOISE**2 + (1 - shrink) ** 2 * var[:, None]

    def moments(m, s2):
        overall = w @ m
        return overall, np.sqrt(w @ (s2 + (m - overall) ** 2))

    return {"mu": moments(mean, var), "log_tau": moments(log_tau, 0 * log_tau), "theta": moments(theta, theta_var)}, log_evidence


def check(fit, exact, log_evidence, bound):
    """Every mean and sd within its Monte Carlo errors, of which the certificate states the largest."""
    allowed = bound * fit.certificate.mcse
    for site, (mean, sd) in exact.items():
        draws = fit.posterior[site].values.reshape(fit.posterior[site].shape[0] * fit.posterior[site].shape[1], -1)
        assert (np.abs(draws.mean(0) - mean) < allowed * sd).all(), site
        assert (np.abs(draws.std(0) / sd - 1) < allowed).all(), site
    assert abs(fit.certificate.log_evidence - log_evidence) < bound * fit.certificate.log_evidence_mcse


def caught(monkeypatch):
    """A list that fills with the mixtures that are handed on to be certified."""
    proposals, certify = [], adaptive.certify

    def catching(rng_key, method, target, proposal, *args, **options):
        proposals.append(proposal)
        return certify(rng_key, method, target, proposal, *args, **options)

    monkeypatch.setattr(adaptive, "certify", catching)
    return proposals


def test_a_banana_that_dadvi_is_refused_is_certified_and_right(rng_key, z_bound):
    bend = {"bend": np.asarray(2.0)}
    key_before, key = jax.random.split(rng_key)
    before = vip.fit(key_before, banana, bend, method=vip.DADVI())
    assert not before.certificate.ok
    fit = vip.IMIS().fit(key, banana, bend, around=before.around)
    assert fit.certificate.ok, fit.certificate.verdict
    assert "20 components were added along 2 of 2 directions" in fit.stopped_because
    check(fit, banana_moments(2.0), 0.0, z_bound(5))


def test_a_centred_hierarchy_is_adapted_along_few_directions_and_right(rng_key, z_bound):
    data = levels_data()
    key_before, key = jax.random.split(rng_key)
    before = vip.fit(key_before, levels, data, method=vip.DADVI())
    fit = vip.IMIS().fit(key, levels, data, around=before.around)
    assert fit.certificate.ok, fit.certificate.verdict
    assert fit.certificate.khat < before.certificate.khat
    exact, log_evidence = levels_exact(**data)
    check(fit, exact, log_evidence, z_bound(2 * (GROUPS + 2) + 1))


def test_without_a_start_it_finds_its_own(rng_key, z_bound):
    fit = vip.fit(rng_key, banana, {"bend": np.asarray(2.0)}, method=vip.IMIS())
    assert fit.certificate.ok, fit.certificate.verdict
    check(fit, banana_moments(2.0), 0.0, z_bound(5))


def cut():
    """Half a Gaussian on the whole line: its mode lies on the edge, beyond which half of any q's draws go."""
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.factor("above", jnp.where(z >= 0, 0.0, -jnp.inf))


def test_where_the_elbo_is_finite_nowhere_it_starts_from_the_mode(rng_key, z_bound):
    fit = vip.fit(rng_key, cut, {}, method=vip.IMIS())
    assert fit.certificate.ok, fit.certificate.verdict
    mean = math.sqrt(2 / math.pi)
    check(fit, {"z": (mean, math.sqrt(1 - mean**2))}, math.log(0.5), z_bound(3))


def test_log_q_integrates_to_one_and_has_the_moments_of_its_draws(rng_key, z_bound, monkeypatch):
    proposals = caught(monkeypatch)
    vip.fit(rng_key, banana, {"bend": np.asarray(1.0)}, method=vip.IMIS(num_components=5))
    (q,) = proposals
    z, log_q = q.sampler(Clock())(jax.random.fold_in(rng_key, 1), NUM_DRAWS)
    centre, sds = z.mean(0), z.std(0)
    axis = np.linspace(-REACH, REACH, NUM_POINTS)
    unit = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)

    def density(z):
        y = np.linalg.solve(q.frame, (z - q.loc).T).T
        return np.exp(q.log_parts(y)) @ q.weights / abs(np.linalg.det(q.frame))

    np.testing.assert_allclose(np.log(density(z)), log_q, rtol=1e-8, atol=1e-8)
    mass = density(centre + sds * unit) * sds.prod() * (axis[1] - axis[0]) ** 2
    assert abs(mass.sum() - 1) < 1e-4
    u = (z - centre) / sds
    cross = unit[:, 0] * unit[:, 1]
    on_grid = np.array([mass @ unit[:, 0], mass @ unit[:, 1], mass @ cross])
    squares = np.array([mass @ unit[:, 0] ** 2, mass @ unit[:, 1] ** 2, mass @ cross**2])
    errors = np.sqrt((squares - on_grid**2) / NUM_DRAWS)
    drawn = np.array([0, 0, (u[:, 0] * u[:, 1]).mean()])
    assert (np.abs(on_grid - drawn) < z_bound(3) * errors).all()


def test_the_curvature_across_the_adapted_directions_is_that_of_a_gaussian(rng_key):
    """Given the first of two correlated latents the second has mean rho and variance 1 - rho^2."""
    rho, a = 0.9, np.array([1.5])
    before = vip.fit(rng_key, correlated_gaussian.model, {"rho": rho}, method=vip.DADVI())
    assert before.around is not None
    with jax.enable_x64(True):
        start = adaptive.replace(before.around, loc=np.zeros(2), factor=np.eye(2))
        mode, covariance, slope = adaptive._across(start, np.eye(2), a)
    np.testing.assert_allclose([mode[0], covariance[0, 0], slope[0, 0]], [rho * a[0], 1 - rho**2, rho], rtol=1e-6)


def test_two_far_modes_are_refused(rng_key):
    fit = vip.fit(rng_key, two_modes, {"apart": np.asarray(20.0)}, method=vip.IMIS())
    assert not fit.certificate.ok
    assert "mode" in fit.certificate.verdict


def test_an_improper_posterior_is_refused(rng_key):
    try:
        certificate = vip.fit(rng_key, flat, {"y": np.zeros(3)}, method=vip.IMIS()).certificate
        ok, said = certificate.ok, certificate.verdict
    except vip.InputError as error:
        ok, said = False, str(error)
    assert not ok
    assert said.endswith(".")


def test_too_many_latents_are_refused_by_name(rng_key):
    def wide(y):
        numpyro.sample("y", dist.Normal(numpyro.sample("mu", dist.Normal(0, 1).expand([201]).to_event(1)), 1.0).to_event(1), obs=y)

    with pytest.raises(vip.InputError, match=r"at most 200 latents, the model has 201; use vip.NUTS\(\)"):
        vip.fit(rng_key, wide, {"y": np.zeros(201)}, method=vip.IMIS())


def test_the_ladder_tries_it_before_nuts_from_where_dadvi_ended(rng_key):
    fit = vip.fit(rng_key, banana, {"bend": np.asarray(2.0)})
    assert [(r.method, r.ok) for r in fit.rungs] == [("DADVI", False), ("IMIS", True)]


def exact_moments(draws):
    return {k: (q.mean, q.variance**0.5) if isinstance(q, Distribution) else (q.mean(0), q.std(0)) for k, q in draws.items()}


FAILURES = {
    "funnel 2": (funnel, {"num_dimensions": 2}, {"v": (0.0, 3.0), "x": (0.0, math.exp(9 / 4))}),
    "funnel 10": (funnel, {"num_dimensions": 10}, {"v": (0.0, 3.0), "x": (np.zeros(9), np.full(9, math.exp(9 / 4)))}),
    "schools": (eight_schools_centered, eight_schools_centered.data(), None),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", FAILURES)
def test_what_is_a_failure_of_vi_is_refused_or_right_under_many_keys(case, rng_key, z_bound):
    """The funnel's x has variance E e^v = e^(9/2)."""
    pattern, data, exact = FAILURES[case]
    num_keys = 8
    if exact is None:
        exact = exact_moments(pattern.exact_posterior(**data))
        exact["tau"] = tau_moments(**data)
    for key in keys.split(rng_key, num_keys):
        first, second = keys.split(key)
        before = vip.fit(first, pattern.model, data, method=vip.DADVI())
        fit = vip.IMIS().fit(second, pattern.model, data, around=before.around)
        if fit.certificate.ok:
            size = sum(np.size(mean) for mean, _ in exact.values())
            check(fit, exact, pattern.log_evidence(**data), z_bound(num_keys * (2 * size + 1)))


def tau_moments(sigma, y):
    tau, log_p, _, _ = eight_schools_centered.grid(sigma, y)
    w = np.exp(log_p - log_p.max())
    mean = w @ tau / w.sum()
    return mean, math.sqrt(w @ (tau - mean) ** 2 / w.sum())
