"""Where DADVI has no posterior to give: two modes, none, or one at infinity, and what its sentence says."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import vipatterns as vip
from vipatterns.patterns import gaussian_mixture

REAL, POSITIVE = dist.constraints.real, dist.constraints.positive
NOT_LOOKED_AT = "modes that no start met are not covered"


def two_modes(weight, apart, centre=0.0):
    """Two unit Gaussians."""
    means = centre + apart * jnp.array([-0.5, 0.5])
    numpyro.sample("z", dist.MixtureSameFamily(dist.Categorical(probs=jnp.array([weight, 1 - weight])), dist.Normal(means, 1.0)))


def fit_of(rng_key, model, data=None):
    return vip.fit(rng_key, model, data, method=vip.DADVI())


@pytest.mark.parametrize(("weight", "apart"), [pytest.param(0.4, 8.0, marks=pytest.mark.slow), (0.1, 20.0)])
def test_two_modes_are_refused(weight, apart, rng_key):
    certificate = fit_of(rng_key, two_modes, {"weight": np.asarray(weight), "apart": np.asarray(apart)}).certificate
    assert not certificate.ok
    assert certificate.verdict.startswith("Not safe")
    assert "another mode" in certificate.verdict or "q misses part of the posterior" in certificate.verdict


def test_a_mode_that_no_start_meets_is_said_to_be_left_out(rng_key):
    """5,000 sds away, further than any start: half of the mass is missing, which the sentence does not rule out."""
    data = {"weight": np.asarray(0.5), "apart": np.asarray(5_000.0), "centre": np.asarray(2_500.0)}
    certificate = fit_of(rng_key, two_modes, data).certificate
    assert not certificate.ok or NOT_LOOKED_AT in certificate.verdict
    if certificate.ok:
        assert certificate.log_evidence == pytest.approx(math.log(0.5), abs=6 * certificate.log_evidence_mcse)


def test_two_modes_that_q_covers_are_one_posterior(rng_key, z_bound):
    """Three sds apart their mixture is one hump: certified, and exact."""
    weight, apart = 0.4, 3.0
    fit = fit_of(rng_key, two_modes, {"weight": np.asarray(weight), "apart": np.asarray(apart)})
    assert fit.certificate.ok, fit.certificate.verdict
    assert NOT_LOOKED_AT in fit.certificate.verdict
    mean, sd = apart * (0.5 - weight), math.sqrt(1 + weight * (1 - weight) * apart**2)
    allowed = z_bound(3) * fit.certificate.mcse
    assert abs(float(fit.posterior["z"].mean()) - mean) < allowed * sd
    assert abs(float(fit.posterior["z"].std()) / sd - 1) < allowed
    assert abs(fit.certificate.log_evidence) < z_bound(3) * fit.certificate.log_evidence_mcse


@pytest.mark.slow
def test_modes_at_any_distance_are_covered_or_refused_under_many_keys(rng_key, z_bound):
    """From one hump to two islands: what is certified is right."""
    cases = [(weight, apart) for weight in (0.5, 0.3, 0.05) for apart in (2.0, 4.0, 5.0, 6.0, 10.0)]
    verdicts = []
    for i, (weight, apart) in enumerate(cases):
        for key in jax.random.split(jax.random.fold_in(rng_key, i), 2):
            fit = fit_of(key, two_modes, {"weight": np.asarray(weight), "apart": np.asarray(apart)})
            verdicts.append((apart, fit.certificate.ok))
            if fit.certificate.ok:
                mean, sd = apart * (0.5 - weight), math.sqrt(1 + weight * (1 - weight) * apart**2)
                bound = z_bound(3 * 2 * len(cases))
                assert abs(float(fit.posterior["z"].mean()) - mean) < bound * fit.certificate.mcse * sd, (weight, apart)
                assert abs(float(fit.posterior["z"].std()) / sd - 1) < bound * fit.certificate.mcse, (weight, apart)
                assert abs(fit.certificate.log_evidence) < bound * fit.certificate.log_evidence_mcse, (weight, apart)
    assert all(ok for apart, ok in verdicts if apart == 2)
    assert not any(ok for apart, ok in verdicts if apart == 10)


@pytest.mark.slow
def test_the_mixtures_evidence_counts_its_labellings_under_many_keys(rng_key, z_bound):
    """log p = -26.362466, by summing over all 59,049 assignments; one labelling alone would be log 6 short."""
    fits = [fit_of(key, gaussian_mixture.model, gaussian_mixture.data()) for key in jax.random.split(rng_key, 10)]
    assert all(fit.certificate.ok for fit in fits)
    assert all("one labelling among 6" in fit.certificate.verdict for fit in fits)
    z = np.array([(fit.certificate.log_evidence + 26.362466087635834) / fit.certificate.log_evidence_mcse for fit in fits])
    # 3e-4: what a fit leaves out of one labelling's mass, where its Gaussian reaches into the next
    floor = 3e-4 / min(fit.certificate.log_evidence_mcse for fit in fits)
    assert np.abs(z).max() < z_bound(11) + floor
    assert abs(z.mean()) < z_bound(11) / math.sqrt(len(z)) + floor


def flat(y):
    """Nothing is known of `free`."""
    numpyro.sample("free", dist.ImproperUniform(REAL, (), ()))
    numpyro.sample("y", dist.Normal(numpyro.sample("mu", dist.Normal(0, 1)), 1.0), obs=y)


def ridge(y):
    """Only the sum of two latents is known."""
    a, b = (numpyro.sample(name, dist.ImproperUniform(REAL, (), ())) for name in "ab")
    numpyro.sample("y", dist.Normal(a + b, 1.0), obs=y)


def scale(y):
    """Flat in the scale of n rows: density s^-n in the tail, improper with one row, without a mean with two, without a sd with three."""
    s = numpyro.sample("s", dist.ImproperUniform(POSITIVE, (), ()))
    numpyro.sample("y", dist.Normal(0.0, s), obs=y)


def no_events(y):
    """Counts of zero and a flat log rate: the likelihood rises to one as the rate goes to zero."""
    log_rate = numpyro.sample("log_rate", dist.ImproperUniform(REAL, (), ()))
    numpyro.sample("y", dist.Poisson(jnp.exp(log_rate)), obs=y)


def separated(x, y):
    """A line parts the classes: the likelihood rises for ever."""
    slopes = numpyro.sample("slopes", dist.ImproperUniform(REAL, (), event_shape=(2,)))
    numpyro.sample("y", dist.Bernoulli(logits=x @ slopes), obs=y)


ROWS = np.array([1.3, -0.4, 0.7, 0.1, 0.9, -1.2])
UNFIT = {
    "flat direction": (flat, {"y": np.zeros(3)}),
    "ridge": (ridge, {"y": np.zeros(3)}),
    "improper": (scale, {"y": ROWS[:1]}),
    "mode at minus infinity": (no_events, {"y": np.zeros(5, int)}),
    "mode at infinity": (separated, {"x": np.array([[1, -2.0], [1, -1], [1, 1], [1, 2]]), "y": np.array([0, 0, 1, 1])}),
}


@pytest.mark.parametrize(
    "case", [case if case in ("improper", "mode at infinity") else pytest.param(case, marks=pytest.mark.slow) for case in UNFIT]
)
def test_an_improper_posterior_is_refused_in_a_sentence(case, rng_key):
    model, data = UNFIT[case]
    fit = fit_of(rng_key, model, data)
    assert not fit.certificate.ok
    assert fit.certificate.verdict.startswith("Not safe")
    assert fit.certificate.verdict.endswith(".")
    assert "\n" not in fit.certificate.verdict
    assert "may lie at infinity" in fit.stopped_because


def test_a_mean_that_does_not_exist_is_refused(rng_key):
    """Two rows: the evidence is finite and the weights are fine, but the mean of s is infinite, which the sentence says of s."""
    certificate = fit_of(rng_key, scale, {"y": ROWS[:2]}).certificate
    assert not certificate.ok
    assert certificate.khat < certificate.khat_threshold
    assert certificate.verdict.startswith("Not safe for s: the weighted tail of s is too heavy")


@pytest.mark.slow
def test_a_sd_that_does_not_exist_is_refused_under_many_keys(rng_key):
    """Three rows."""
    for key in jax.random.split(rng_key, 4):
        assert not fit_of(key, scale, {"y": ROWS[:3]}).certificate.ok


def test_moments_that_do_exist_are_certified(rng_key, z_bound):
    """Ten rows: s^-2 ~ Gamma((n - 1) / 2, rate S / 2), so moments of s are ratios of gamma functions."""
    y = np.append(ROWS, [0.3, -0.8, 1.6, -0.2])
    fit = fit_of(rng_key, scale, {"y": y})
    assert fit.certificate.ok, fit.certificate.verdict
    half, rate = (len(y) - 1) / 2, y @ y / 2
    mean = math.sqrt(rate) * math.exp(math.lgamma(half - 0.5) - math.lgamma(half))
    sd = math.sqrt(rate / (half - 1) - mean**2)
    allowed = z_bound(3) * fit.certificate.mcse
    assert abs(float(fit.posterior["s"].mean()) - mean) < allowed * sd
    assert abs(float(fit.posterior["s"].std()) / sd - 1) < allowed
    log_evidence = math.lgamma(half) - half * math.log(rate) - math.log(2) - len(y) / 2 * math.log(2 * math.pi)
    assert abs(fit.certificate.log_evidence - log_evidence) < z_bound(3) * fit.certificate.log_evidence_mcse


def test_a_prior_so_wide_that_the_mode_is_far_is_exact(rng_key, z_bound):
    """Separated classes under N(0, 100^2): half a Gaussian, but for a corner; by quadrature."""

    def model(x, y):
        slope = numpyro.sample("slope", dist.Normal(0.0, 100.0))
        numpyro.sample("y", dist.Bernoulli(logits=slope * x), obs=y)

    x, y = np.array([-2.0, -1, 1, 2]), np.array([0, 0, 1, 1])
    fit = fit_of(rng_key, model, {"x": x, "y": y})
    b = np.linspace(-20, 800, 400_001)
    log_p = -0.5 * (b / 100) ** 2 - math.log(100 * math.sqrt(2 * math.pi)) - np.logaddexp(0, -np.outer(2 * y - 1, b) * x[:, None]).sum(0)
    weight = np.exp(log_p)
    total = weight.sum() * (b[1] - b[0])
    mean = weight @ b / weight.sum()
    sd = math.sqrt(weight @ (b - mean) ** 2 / weight.sum())
    assert fit.certificate.ok, fit.certificate.verdict
    allowed = z_bound(3) * fit.certificate.mcse
    assert abs(float(fit.posterior["slope"].mean()) - mean) < allowed * sd
    assert abs(float(fit.posterior["slope"].std()) / sd - 1) < allowed
    assert abs(fit.certificate.log_evidence - math.log(total)) < z_bound(3) * fit.certificate.log_evidence_mcse


def unbounded(y):
    """The scale is in no likelihood, and its density on the log scale is that of a constant: exp(u)."""
    numpyro.sample("s", dist.ImproperUniform(POSITIVE, (), ()))
    numpyro.sample("y", dist.Normal(numpyro.sample("mu", dist.Normal(0, 1)), 1.0), obs=y)


def rising(y):
    """A factor with its sign wrong."""
    z = numpyro.sample("z", dist.ImproperUniform(REAL, (), ()))
    numpyro.factor("penalty", z + y.sum())


@pytest.mark.parametrize(
    "model",
    [
        unbounded,
        rising,
    ],
)
def test_a_density_that_rises_for_ever_is_refused_in_a_sentence(model, rng_key):
    try:
        certificate = fit_of(rng_key, model, {"y": np.zeros(3)}).certificate
        ok, said = certificate.ok, certificate.verdict
    except vip.InputError as error:
        ok, said = False, str(error)
    assert not ok
    assert said.endswith(".")


def normal(y):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def no_latents(y):
    numpyro.sample("y", dist.Normal(0.0, 1.0), obs=y)


def with_param(y):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    numpyro.sample("y", dist.Normal(mu, numpyro.param("sd", 1.0, constraint=POSITIVE)), obs=y)


@pytest.mark.parametrize(
    ("model", "y", "match"),
    [
        (normal, [1.0, math.nan], r"'y' holds 1 NaN or infinite values \(the first at index 1\)"),
        (no_latents, [1.0, 2.0], "no latent sample sites"),
        (with_param, [1.0, 2.0], r"numpyro.param 'sd'.*prior with numpyro.sample"),
    ],
    ids=["NaN", "no latents", "param"],
)
@pytest.mark.parametrize("method", [vip.DADVI(), None], ids=["DADVI", "default"])
def test_what_cannot_be_fitted_is_an_error_of_one_sentence(model, y, match, method, rng_key):
    with pytest.raises(vip.InputError, match=match) as caught:
        vip.fit(rng_key, model, {"y": np.array(y)}, method=method)
    assert "\n" not in str(caught.value)
    assert str(caught.value).rstrip().endswith((".", "?"))
