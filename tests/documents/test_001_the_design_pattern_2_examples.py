"""Claims of the page "Variational inference" in a lexicon of design patterns, in its order: its two programs.

test_holds_...      what the page says, and it is so.
test_corrected_...  what the page says, and what is true instead.

Nothing of theirs is copied: what is wrong in the first is rebuilt, with NumPyro or by hand, from its formulas.
"""

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from gaussian_example import DATA, LOG_EVIDENCE, MEAN, SD, N, elbo, exact, kl, log_joint
from numpyro import handlers
from numpyro.infer import SVI
from numpyro.infer.autoguide import AutoNormal
from numpyro.infer.util import log_density
from numpyro.optim import Adam
from scipy.optimize import minimize
from scipy.special import logsumexp
from scipy.stats import norm

import vipatterns as vip
from vipatterns.objectives import StickingTheLanding
from vipatterns.patterns import gaussian_mean


@pytest.fixture
def rng(rng_key):
    return np.random.default_rng(np.asarray(jax.random.key_data(rng_key)))


# The example in TensorFlow Probability: what is printed, and why it could not work


def printed(mu, s):
    """What it would ascend: E[log p(w, x) - log q(w)] with w *and x* drawn from the model."""
    return -0.5 * np.log(2 * np.pi) - 1 + np.log(s) + (1 + mu**2) / (2 * s**2)


def joint_draw(key):
    """w and x from the NumPyro model that nothing conditions, and their log joint density."""
    drawn = handlers.trace(handlers.seed(gaussian_mean.model, key)).get_trace()
    sites = {name: drawn[name]["value"] for name in ("mu", "y")}
    return sites["mu"], log_density(gaussian_mean.model, (), {}, sites)[0]


def test_corrected_the_printed_objective_is_this_formula(rng_key, z_bound):
    """The page calls it the ELBO. Drawn as printed, from the model alone, its mean is a formula of q's mean and sd."""
    w, log_p = jax.jit(jax.vmap(joint_draw))(jax.random.split(rng_key, 20_000))
    for mu, s in [(0.0, 0.9991627), (1.0, 0.5), (-2.0, 3.0)]:
        draws = np.asarray(log_p, float) - norm.logpdf(np.asarray(w, float), mu, s)
        assert abs(draws.mean() - printed(mu, s)) < z_bound(3) * draws.std() / 20_000**0.5


def test_corrected_the_printed_objective_never_sees_the_data():
    """The page makes data first. The printed model observes none, so the formula holds no x; the slope of an ELBO moves by N as x
    moves by 1."""
    assert not handlers.trace(handlers.seed(gaussian_mean.model, 0)).get_trace()["y"]["is_observed"]
    assert handlers.trace(handlers.seed(gaussian_mean.model, 0)).get_trace(DATA)["y"]["is_observed"]
    slope = [(elbo(1.01, 1, DATA + shift) - elbo(0.99, 1, DATA + shift)) / 0.02 for shift in (0, 1)]
    exact(slope[1] - slope[0], N, 1e-9)


def test_corrected_the_printed_objective_has_no_maximum():
    """The page ascends it. It is unbounded as s -> 0, and in the mean: Adam runs away from the printed start."""
    values = printed(0.0, np.array([1e-1, 1e-2, 1e-3, 1e-4]))
    np.testing.assert_allclose(values[1:] / values[:-1], 100, rtol=0.25)
    assert printed(1e4, 1.0) > 1e7
    optimizer = optax.adam(0.1)
    params = jnp.array([0.0, 0.54])

    @jax.jit
    def step(params, state):
        slope = jax.grad(lambda v: jnp.log(jax.nn.softplus(v[1])) + (1 + v[0] ** 2) / (2 * jax.nn.softplus(v[1]) ** 2))(params)
        updates, state = optimizer.update(-slope, state)
        return optax.apply_updates(params, updates), state

    state, seen = optimizer.init(params), []
    for _ in range(80):
        params, state = step(params, state)
        seen.append(printed(float(params[0]), float(jax.nn.softplus(params[1]))))
    assert np.all(np.diff(seen) > 0)
    assert seen[-1] > 1e5


def test_corrected_the_printed_objective_is_the_divergence_from_the_prior_and_is_made_large():
    """The page takes its top for the posterior. It is KL(prior || q) plus a constant: going up leaves the prior behind, going down
    ends in it."""
    for mu, s in [(0.0, 1.0), (1.0, 0.5), (-2.0, 3.0)]:
        exact(printed(mu, s), kl(0.0, 1.0, mu, s) - 0.5 * np.log(2 * np.pi) - 0.5)
    exact(minimize(lambda v: printed(v[0], np.exp(v[1])), [0.5, 0.5], tol=1e-10).x, [0, 0], 1e-5)


def test_corrected_the_expectation_belongs_under_q(rng, z_bound):
    """The page draws from the model. Drawn from q, and with the data, the same difference is highest on average where q is the
    posterior."""
    eps = rng.normal(size=20_000)
    for m, s in [(MEAN, SD), (MEAN + 0.1, SD), (MEAN, 1.5 * SD)]:
        draws = log_joint(m + s * eps) - norm.logpdf(m + s * eps, m, s)
        assert abs(draws.mean() - LOG_EVIDENCE + kl(m, s)) < z_bound(3) * draws.std() / 20_000**0.5 + 1e-9


def test_corrected_softplus_of_the_printed_start_is_the_scale_that_it_would_print():
    """The page prints a scale as its estimate. Nothing has moved it: softplus(.54) = .9991627, ten times the posterior's sd."""
    exact(np.log1p(np.exp(0.54)), 0.9991627, 1e-7)
    assert 10 < np.log1p(np.exp(0.54)) / SD < 10.1


def test_corrected_variables_made_at_every_call_learn_nothing():
    """The page makes the variables of q anew whenever it asks for q. The loss then has no slope in what the optimiser holds."""

    def anew(held):
        return dist.Normal(jnp.array(0.0), jax.nn.softplus(jnp.array(0.54)))

    def kept(held):
        return dist.Normal(held["loc"], jax.nn.softplus(held["scale"]))

    optimizer = optax.adam(0.1)
    for q, learns in ((anew, False), (kept, True)):
        held = start = {"loc": jnp.array(0.0), "scale": jnp.array(0.54)}
        state = optimizer.init(held)
        slope = jax.jit(jax.grad(lambda v, q=q: (N + 1) * ((q(v).mean - MEAN) ** 2 + q(v).variance) / 2 - jnp.log(q(v).variance) / 2))
        for _ in range(50):
            updates, state = optimizer.update(slope(held), state)
            held = optax.apply_updates(held, updates)
        assert (held["loc"] != start["loc"]) == learns
        assert (q(held).mean != 0) == learns


def test_corrected_names_that_are_undefined_or_ask_the_wrong_object():
    """The page presents a program that runs. A name never bound, a log_prob of a dict, a plain function asked for its variables:
    each stops it."""
    with pytest.raises(NameError):
        eval("tfd", {"tfp": None})
    with pytest.raises(TypeError):
        dist.Normal(0.0, 1.0).log_prob({"w": 0.0, "x": 0.0})
    assert not hasattr(gaussian_mean.model, "trainable_variables")


def test_corrected_x_is_a_plate_of_a_hundred_and_not_one_number():
    """The page's model has one x. Spread over a hundred data, its prior counts a hundred times (sum), or all the data count as one
    (mean)."""
    w = np.linspace(-5, 5, 20_001)
    rows = norm.logpdf(w) + norm.logpdf(DATA[:, None], w)
    for log_p, m, v in [
        (log_joint(w), MEAN, 1 / (N + 1)),
        (rows.sum(0), DATA.mean() / 2, 1 / (2 * N)),
        (rows.mean(0), DATA.mean() / 2, 1 / 2),
    ]:
        p = np.exp(log_p - logsumexp(log_p))
        exact([p @ w, p @ w**2 - (p @ w) ** 2], [m, v], 1e-7)


def test_corrected_a_rate_of_a_tenth_does_not_come_to_rest_in_a_thousand_steps(rng_key):
    """The page keeps one step size for a thousand steps. On the right objective, a draw a step, the mean still jumps; with a
    falling one it rests."""

    def error(rate, key):
        optimizer = optax.adam(rate)

        def step(state, eps):
            v, opt = state
            m, s = v[0], jax.nn.softplus(v[1])
            slope = (N + 1) * (m + s * eps - MEAN)
            gradient = jnp.array([slope, (slope * eps - 1 / s) * jax.nn.sigmoid(v[1])])
            updates, opt = optimizer.update(gradient, opt)
            return (optax.apply_updates(v, updates), opt), None

        v = jnp.array([0.0, 0.54])
        (v, _), _ = jax.lax.scan(step, (v, optimizer.init(v)), jax.random.normal(key, (1_000,)))
        return (v[0] - MEAN) / SD

    keys = jax.random.split(rng_key, 400)
    fixed, falling = (np.asarray(jax.vmap(lambda k, r=r: error(r, k))(keys)) for r in (0.1, optax.exponential_decay(0.1, 1_000, 1e-3)))
    assert fixed.std() > 0.3  # posterior sds
    assert falling.std() < fixed.std() / 4


def test_corrected_the_example_with_data_q_and_plate_finds_the_posterior(rng_key, z_bound):
    """The page wants a mean and a scale. The pattern gaussian_mean, with data, q and plate in place, finds the posterior's."""
    q, losses = gaussian_mean.fit(rng_key, **gaussian_mean.data())
    np.testing.assert_array_equal(gaussian_mean.data()["y"], DATA)
    m, s, last = float(q["mu"].mean), float(q["mu"].scale), np.asarray(losses[-100:], float)
    assert abs(m - MEAN) < 0.05 * SD
    assert abs(np.log(s / SD)) < 0.05
    assert abs(LOG_EVIDENCE + last.mean() - kl(m, s)) < z_bound() * last.std() / 10 + 1e-4  # float32, and q still moves


def test_corrected_the_answer_moves_with_the_data(rng_key):
    """The page's answer would stand still. Shift the data by 1: the posterior's mean moves by 100/101, and the fit with it."""
    before, after = (gaussian_mean.fit(rng_key, **gaussian_mean.data({"y": DATA + shift}))[0]["mu"].mean for shift in (0, 1))
    exact((DATA + 1).sum() / (N + 1) - MEAN, N / (N + 1))
    assert float(after - before) == pytest.approx(N / (N + 1), abs=0.002)


# The example in PyMC3 (PyMC today): mean-field ADVI, a thousand draws of it, and their summary


@pytest.fixture(scope="module")
def advi(rng_key):
    """NumPyro's mean-field Gaussian, with the path gradient, whose noise ends where q is the posterior; and a thousand draws."""
    key_fit, key_draw = jax.random.split(rng_key)
    guide = AutoNormal(gaussian_mean.model)
    svi = SVI(gaussian_mean.model, guide, Adam(lambda step: 0.1 * 0.001 ** (step / 2_000)), StickingTheLanding(num_particles=4))
    params = svi.run(key_fit, 2_000, DATA, progress_bar=False).params
    draws = np.asarray(guide.sample_posterior(key_draw, params, sample_shape=(1_000,))["mu"], float)
    return {k: float(v) for k, v in params.items()}, draws, az.from_dict({"posterior": {"w": draws[None]}})


def test_holds_mean_field_advi_on_one_latent_is_the_exact_posterior(advi):
    """The page fits mean-field ADVI. One latent has no correlation to lose, and its posterior is Gaussian: q is exact, to float32."""
    params, _, _ = advi
    assert abs(params["mu_auto_loc"] - MEAN) < 1e-3 * SD
    assert params["mu_auto_scale"] == pytest.approx(SD, rel=1e-3)


def test_holds_observed_is_what_lets_the_data_in():
    """The page marks x as observed in this program, and rightly: the joint density at a given w then moves with the data, as the
    likelihood does."""
    before, after = (log_density(gaussian_mean.model, (DATA + shift,), {}, {"mu": 1.5})[0] for shift in (0, 1))
    assert float(after - before) == pytest.approx(norm.logpdf(DATA + 1, 1.5).sum() - norm.logpdf(DATA, 1.5).sum(), rel=1e-5)


def test_holds_the_summarys_mean_is_the_posteriors(advi, z_bound):
    """The page prints a summary of 1,000 draws. Its mean is the posterior's within SD / sqrt(1000), which it knows as its mcse."""
    table = az.summary(advi[2], round_to="none")
    assert abs(table["mean"].item() - MEAN) < z_bound() * SD / 1_000**0.5
    assert table["mcse_mean"].item() == pytest.approx(SD / 1_000**0.5, rel=0.25)


def test_holds_the_summarys_sd_is_the_posteriors(advi, z_bound):
    """The summary's sd is the posterior's, within SD / sqrt(2 * 999)."""
    assert abs(az.summary(advi[2], round_to="none")["sd"].item() - SD) < z_bound() * SD / 1998**0.5


def test_holds_the_summarys_interval_is_the_posteriors(advi, rng, z_bound):
    """The summary's 94% highest-density interval is like those of 2,000 other sets of 1,000 draws of the posterior, and they lie about
    the posterior's own."""
    low, high = az.hdi(advi[2], prob=0.94)["w"].values
    others = np.sort(rng.normal(MEAN, SD, (2_000, 1_000)), axis=1)
    shortest = (others[:, 940:] - others[:, :-940]).argmin(1)[:, None]
    ends = np.concatenate([np.take_along_axis(others, shortest, 1), np.take_along_axis(others, shortest + 940, 1)], axis=1)
    assert np.all(np.abs(np.array([low, high]) - ends.mean(0)) < z_bound(2) * ends.std(0))
    exact(ends.mean(0), norm.ppf([0.03, 0.97], MEAN, SD), 0.1 * SD)


def test_holds_draws_of_q_are_independent(advi):
    """The page draws a trace, as from a chain. Draws of q have no memory: a thousand are worth about a thousand."""
    assert az.summary(advi[2], round_to="none")["ess_bulk"].item() > 600


@pytest.mark.slow
def test_holds_the_same_by_this_librarys_mean_field(rng_key, z_bound):
    """The same by vip.MeanField, whose certificate says that q may be trusted, with the exact log evidence."""
    fit = vip.fit(rng_key, gaussian_mean.model, gaussian_mean.data(), method=vip.MeanField(), progress=False)
    draws = fit.sample(rng_key, 1_000)["mu"].values
    assert fit.certificate.ok
    assert fit.certificate.log_evidence == pytest.approx(LOG_EVIDENCE, abs=1e-6)
    assert abs(draws.mean() - MEAN) < z_bound(2) * SD / 1_000**0.5
    assert abs(draws.std() - SD) < z_bound(2) * SD / 1998**0.5
