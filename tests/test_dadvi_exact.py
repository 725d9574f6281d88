"""DADVI under many keys on posteriors known exactly: every mean, sd and log evidence has the error that it states, no more and no less."""

import jax
import numpy as np
import pytest
from numpyro.distributions import Distribution
from scipy.special import softmax
from scipy.stats import chi2

import vipatterns as vip
from vipatterns import diagnosis
from vipatterns.patterns import eight_schools, linear_regression, logistic_regression

NUM_KEYS = 10
NUM_KEPT = 4_000


def linear():
    exact = linear_regression.exact_posterior(**linear_regression.data())
    assert all(isinstance(q, Distribution) for q in exact.values())
    return {site: (np.asarray(q.mean), np.asarray(q.variance) ** 0.5) for site, q in exact.items()}


def schools():
    """By quadrature over tau, to the digits shown."""
    theta = [6.211884, 4.940178, 3.927004, 4.757098, 3.615477, 4.042613, 6.296724, 4.854253]
    sds = [5.593126, 4.674268, 5.262615, 4.780297, 4.657453, 4.826866, 5.077849, 5.290801]
    return {"mu": (4.396821, 3.317704), "tau": (3.597705, 3.219958), "theta": (np.array(theta), np.array(sds))}


def bioassay():
    """By quadrature; Gelman et al., BDA3, section 3.7, with priors of sd 2 and 10."""
    a, b, log_p = logistic_regression.grid(**logistic_regression.data())
    weight = softmax(log_p)
    mean = [np.sum(weight * x) for x in (a, b)]
    sd = [np.sum(weight * (x - m) ** 2) ** 0.5 for x, m in zip((a, b), mean, strict=True)]
    np.testing.assert_allclose([*mean, *sd], [0.774519, 8.404909, 0.818435, 3.672280], atol=1e-6)
    return {"intercept": (mean[0], sd[0]), "slopes": (np.array(mean[1:]), np.array(sd[1:]))}


CASES = {
    "linear_regression": (linear_regression, linear, None),
    "eight_schools": (eight_schools, schools, -31.311347),
    "bioassay": (logistic_regression, bioassay, -4.455368),
}


def draws(group, site):
    """(S, K) of one group; the proposal has latents only, so that the schools' effects are computed here."""
    flat = {k: v.values.reshape(v.shape[0] * v.shape[1], -1) for k, v in group.data_vars.items()}
    return flat["mu"] + flat["tau"] * flat["z"] if site == "theta" else flat[site]


def scores(fit, exact, log_evidence):
    """Each mean's and sd's error in its own Monte Carlo errors, those of the weights that were resampled; and the log evidence's."""
    weights = diagnosis.smooth(*(fit.idata["proposal_stats"][k].values.ravel() for k in ("log_p", "log_q")))
    found = []
    for site, (mean, sd) in exact.items():
        posterior, raw = (draws(fit.idata[group], site) for group in ("posterior", "proposal"))
        stated = diagnosis.monte_carlo_error(raw, np.exp(weights.log_weights), NUM_KEPT)
        mean, sd = np.ravel(mean), np.ravel(sd)
        found += [(posterior.mean(0) - mean) / sd / stated[0], (posterior.std(0) / sd - 1) / stated[1]]
    return np.concatenate(found), (fit.certificate.log_evidence - log_evidence) / fit.certificate.log_evidence_mcse


@pytest.fixture(scope="module")
def by_case(rng_key):
    """Case -> scores (NUM_KEYS, scalars) and those of the log evidence (NUM_KEYS,)."""
    out = {}
    for i, (name, (pattern, exact_answer, log_evidence)) in enumerate(CASES.items()):
        data, exact = pattern.data(), exact_answer()
        if log_evidence is None:
            log_evidence = pattern.log_evidence(**data)
        fits = [
            vip.fit(key, pattern.model, data, method=vip.DADVI(num_samples=NUM_KEPT // 4))
            for key in jax.random.split(jax.random.fold_in(rng_key, i), NUM_KEYS)
        ]
        assert all(fit.certificate.ok for fit in fits), [fit.certificate.verdict for fit in fits]
        z, evidence = zip(*[scores(fit, exact, log_evidence) for fit in fits], strict=True)
        out[name] = np.array(z), np.array(evidence)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_no_score_is_far_out(case, by_case, z_bound):
    z, evidence = by_case[case]
    assert z.shape[1] >= 4
    assert np.abs(z).max() < z_bound(z.size + NUM_KEYS)
    assert np.abs(evidence).max() < z_bound(z.size + NUM_KEYS)
    assert np.abs(z.mean(0)).max() < z_bound(z.shape[1] + 1) / np.sqrt(NUM_KEYS)
    assert abs(evidence.mean()) < z_bound(z.shape[1] + 1) / np.sqrt(NUM_KEYS)


@pytest.mark.slow
def test_the_stated_errors_are_neither_too_small_nor_too_large(by_case, false_alarm):
    """Mean square scores are one. A fit's scalars are dependent and count as two, the means and the sds, though there are up to 20."""
    by_fit = np.concatenate([(z**2).mean(1) for z, _ in by_case.values()])
    of_evidence = np.concatenate([evidence**2 for _, evidence in by_case.values()])
    for squares, degrees in ((by_fit, 2 * by_fit.size), (of_evidence, of_evidence.size)):
        low, high = chi2.isf([1 - false_alarm / 4, false_alarm / 4], degrees) / degrees
        assert low < squares.mean() < high
