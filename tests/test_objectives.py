"""Estimators: unbiased for what they state at every subsample size, with masks and scales; variances as the formulas say."""

import math

import enumerable as known
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer import SVI, RenyiELBO, Trace_ELBO
from scipy.stats import binom

from vipatterns.objectives import DoublyReparameterized, ForwardKL, ScoreFunction, StickingTheLanding
from vipatterns.objectives.score_function import STATE
from vipatterns.patterns import gaussian_mean


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def gradients(rng_key, objective, model, guide, params, *args, num=4_000, state=None):
    """`num` independent gradients of the loss: name -> (num, *shape)."""
    params = {k: jnp.asarray(v, float) for k, v in params.items()}

    def gradient(key):
        return jax.grad(lambda p: objective.loss(key, p | (state or {}), model, guide, *args))(params)

    return jax.jit(lambda keys: jax.lax.map(gradient, keys, batch_size=1_000))(jax.random.split(rng_key, num))


def z_scores(estimates, exact):
    """Differences between mean estimates and exact values in standard errors, over all parameters."""
    scores = []
    for name, value in exact.items():
        e = np.asarray(estimates[name])
        error = e.std(0, ddof=1) / math.sqrt(len(e))
        difference = np.abs(e.mean(0) - value)
        scores.append(np.ravel(np.where(difference < 1e-12 * np.abs(value), 0.0, difference / np.maximum(error, 1e-300))))
    return np.concatenate(scores)


def hold(estimates, elbo, params, z_bound):
    exact = jax.tree.map(lambda g: -np.asarray(g), jax.grad(elbo)({k: jnp.asarray(v, float) for k, v in params.items()}))
    scores = z_scores(estimates, exact)
    assert scores.max() < z_bound(scores.size)


BATCHES = [2, pytest.param(1, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)]
"""Of four rows. One alone may hide rows that are mixed up, all of them a scale that is wrong."""
SCORES = {
    "none": lambda: ScoreFunction(2, control_variate="none"),
    "whole": lambda: ScoreFunction(2, control_variate="none", rao_blackwellize=False),
    "leave_one_out": lambda: ScoreFunction(3),
    "optimal": lambda: ScoreFunction(3, control_variate="optimal"),
    "running_mean": lambda: ScoreFunction(2, control_variate="running_mean"),
}
REMEMBERED = {STATE: {"weight": 0.5, "total": {"g": -3.0, "z": -1.0, "w": -4.0, "m": -1.0}}}


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", SCORES)
def test_the_score_function_is_unbiased_at_every_subsample_size(name, batch, rng_key, z_bound):
    """Draws of the plate and outside, masked latents, masked observations, a scale, a parameter of the model."""
    state = REMEMBERED if name == "running_mean" else None
    estimates = gradients(
        rng_key, SCORES[name](), known.discrete_model, known.discrete_guide, known.DISCRETE, batch, num=20_000, state=state
    )
    hold(estimates, known.discrete_elbo, known.DISCRETE, z_bound)


def test_rows_that_reach_one_another_are_seen_to(rng_key, z_bound):
    """By way of a draw outside the plate, and by a mean over it: what the plate promises is not taken for granted."""
    estimates = gradients(rng_key, ScoreFunction(3), known.reentered_model, known.reentered_guide, known.REENTERED, num=20_000)
    hold(estimates, known.reentered_elbo, known.REENTERED, z_bound)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(
    "objective", [StickingTheLanding(2), ScoreFunction(3), ScoreFunction(3, reparameterize=True)], ids=["path", "score", "both"]
)
def test_the_elbo_of_a_gaussian(objective, batch, rng_key, z_bound):
    estimates = gradients(rng_key, objective, known.gaussian_model, known.gaussian_guide, known.GAUSSIAN, batch)
    hold(estimates, known.gaussian_elbo, known.GAUSSIAN, z_bound)


@pytest.mark.parametrize("control_variate", ["leave_one_out", "optimal"])
def test_a_discrete_draw_by_score_and_the_others_by_path(control_variate, rng_key, z_bound):
    objective = ScoreFunction(3, control_variate=control_variate, reparameterize=True)
    estimates = gradients(rng_key, objective, known.mixed_model, known.mixed_guide, known.MIXED, 2, num=20_000)
    hold(estimates, known.mixed_elbo, known.MIXED, z_bound)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("objective", [DoublyReparameterized(2), RenyiELBO(0.0, 2), RenyiELBO(0.5, 2)], ids=["doubly", "iwae", "half"])
def test_a_bound_of_two_draws(objective, batch, rng_key, z_bound):
    """Row by row of the plate that holds all, whatever part of it is taken; NumPyro's Rényi bound as it is."""
    alpha = getattr(objective, "alpha", 0.0)
    estimates = gradients(rng_key, objective, known.local_model, known.local_guide, known.LOCAL, batch, num=20_000)
    hold(estimates, lambda p: known.local_bound(p, alpha), known.LOCAL, z_bound)


@pytest.mark.parametrize("batch", BATCHES)
def test_forward_kl_is_unbiased_for_its_number_of_draws(batch, rng_key, z_bound):
    estimates = gradients(rng_key, ForwardKL(3), known.flips_model, known.flips_guide, known.FLIPS, batch, num=20_000)
    hold(estimates, lambda p: known.flips_surrogate(p, 3), known.FLIPS, z_bound)


def test_forward_kl_tends_to_the_divergence():
    """What its gradient at K draws lacks of that of KL(p || q) is halved when K is doubled: K draws hold a binomial number of ones."""
    params = {k: jnp.asarray(v) for k, v in known.FLIPS.items()}
    log_lik = known.SCALE * known.SEEN * np.asarray(known.log_normal(known.Y, np.array([[0.0], [1.0]]) + params["shift"], 0.8))
    joint, q = np.exp(log_lik) * [[0.7], [0.3]], np.asarray(jax.nn.sigmoid(params["b"]))
    w = joint / [1 - q, q]

    def expected(k):
        """E of the ones' share in the weights, by row."""
        ones = np.arange(k + 1)[:, None]
        return (binom.pmf(ones, k, q) * ones * w[1] / (ones * w[1] + (k - ones) * w[0])).sum(0)

    np.testing.assert_allclose(jax.grad(known.flips_surrogate)(params, 3)["b"], expected(3) - q, rtol=1e-10)
    off = [expected(k) - joint[1] / joint.sum(0) for k in (64, 128, 256)]
    np.testing.assert_allclose(off[0] / off[1], 2, rtol=0.05)
    np.testing.assert_allclose(off[1] / off[2], 2, rtol=0.03)


@pytest.mark.parametrize(
    ("objective", "model", "guide", "params", "elbo"),
    [
        (ScoreFunction(4), known.discrete_model, known.discrete_guide, known.DISCRETE, known.discrete_elbo),
        (ScoreFunction(4, control_variate="optimal"), known.discrete_model, known.discrete_guide, known.DISCRETE, known.discrete_elbo),
        (StickingTheLanding(4), known.gaussian_model, known.gaussian_guide, known.GAUSSIAN, known.gaussian_elbo),
        (DoublyReparameterized(2), known.local_model, known.local_guide, known.LOCAL, known.local_bound),
    ],
    ids=["score", "optimal", "path", "doubly"],
)
def test_the_loss_is_minus_the_bound(objective, model, guide, params, elbo, rng_key, z_bound):
    params = {k: jnp.asarray(v, float) for k, v in params.items()}
    losses = jax.jit(jax.vmap(lambda key: objective.loss(key, params, model, guide, 2)))(jax.random.split(rng_key, 5_000))
    assert abs(losses.mean() + elbo(params)) < z_bound() * losses.std() / math.sqrt(losses.size)


def test_the_loss_of_forward_kl_lies_between_zero_and_log_k(rng_key):
    params = jax.tree.map(jnp.asarray, known.FLIPS)
    losses = jax.vmap(lambda key: ForwardKL(5).loss(key, params, known.flips_model, known.flips_guide, 2))(jax.random.split(rng_key, 99))
    assert losses.min() >= 0
    assert losses.max() < 4 * math.log(5)  # for four rows


MU = 2.0


def square():
    """log p - log q = z^2, so that the ELBO is E[z^2], its gradient 2 mu."""
    z = numpyro.sample("z", dist.Normal(jax.lax.stop_gradient(numpyro.param("mu", MU)), 1.0))
    numpyro.factor("square", z**2)


def shifted():
    numpyro.sample("z", dist.Normal(numpyro.param("mu", MU), 1.0))


def by_leave_one_out(k):
    """VarGrad is the sample covariance of score and cost, whose variance is known from their moments."""
    m22, m11, m20, m02 = 12 * MU**2 + 10, 2 * MU, 1.0, 4 * MU**2 + 2
    return m22 / k - (k - 2) / (k * (k - 1)) * m11**2 + m20 * m02 / (k * (k - 1))


B = 5.0
VARIANCES = {
    "none": (ScoreFunction(1, control_variate="none"), MU**4 + 14 * MU**2 + 15),
    "two of none": (ScoreFunction(2, control_variate="none"), (MU**4 + 14 * MU**2 + 15) / 2),
    "running mean": (ScoreFunction(1, control_variate="running_mean"), MU**4 + 14 * MU**2 + 15 - 2 * B * (MU**2 + 3) + B**2),
    "leave one out, 2": (ScoreFunction(2), by_leave_one_out(2)),
    "leave one out, 5": (ScoreFunction(5), by_leave_one_out(5)),
    "optimal": (ScoreFunction(1_000, control_variate="optimal"), (8 * MU**2 + 6) / 1_000),
    "path": (StickingTheLanding(1), 4.0),
    "path of two": (StickingTheLanding(2), 2.0),
    "doubly, one draw": (DoublyReparameterized(1), 4.0),
}
"""`optimal` holds to order 1/K: its coefficient is estimated from the other draws."""


@pytest.mark.parametrize("name", VARIANCES)
def test_variances_are_those_of_the_formulas(name, rng_key, z_bound):
    """E_N(mu, 1)[z^2] with respect to mu: mu^4 + 14 mu^2 + 15 by the score function, 8 mu^2 + 6 with a* = mu^2 + 3, 4 by the path."""
    objective, exact = VARIANCES[name]
    state = {STATE: {"weight": 0.5, "total": {"z": B / 2}}}
    g = -np.asarray(gradients(rng_key, objective, square, shifted, {"mu": MU}, num=20_000, state=state)["mu"])
    assert abs(g.mean() - 2 * MU) < z_bound(2) * g.std() / math.sqrt(g.size)
    error = math.sqrt((((g - g.mean()) ** 2).var()) / g.size)
    assert abs(g.var() - exact) < z_bound(2) * error


@pytest.mark.parametrize("rao_blackwellize", [True, False])
def test_what_rao_blackwellisation_saves(rao_blackwellize, rng_key, z_bound):
    """Independent rows: the score of a row meets the costs of its own row, or of all; both variances by enumeration."""
    objective = ScoreFunction(1, control_variate="none", rao_blackwellize=rao_blackwellize)
    g = np.asarray(gradients(rng_key, objective, known.flips_model, known.flips_guide, known.FLIPS, 4, num=20_000)["b"])
    q = 1 / (1 + np.exp(-known.FLIPS["b"]))
    z = np.array([0.0, 1.0])[:, None]
    lik = known.SCALE * known.SEEN * np.asarray(known.log_normal(known.Y, z + known.FLIPS["shift"], 0.8))
    cost = np.log([[0.7], [0.3]]) + lik - np.log([1 - q, q])  # (state, row)
    p, score = np.stack([1 - q, q]), z - q
    mean_cost, gradient = (p * cost).sum(0), (p * score * cost).sum(0)
    exact = (p * score**2 * cost**2).sum(0) - gradient**2
    if not rao_blackwellize:  # the others' costs are independent of this row's score: score^2 (own + others)^2
        others, spread = mean_cost.sum() - mean_cost, (p * cost**2).sum(0) - mean_cost**2
        exact += (p * score**2).sum(0) * (others**2 + spread.sum() - spread) + 2 * (p * score**2 * cost).sum(0) * others
    errors = np.sqrt(((g - g.mean(0)) ** 2).var(0) / len(g))
    assert (np.abs(g.var(0) - exact) / errors).max() < z_bound(4)


def bell(x):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", len(x)):
        numpyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def bell_guide(x):
    numpyro.sample("mu", dist.Normal(numpyro.param("m", 0.0), jnp.exp(numpyro.param("log_s", 0.0))))


X = gaussian_mean.data()["y"]
PERFECT = {"m": X.sum() / 101, "log_s": -0.5 * math.log(101)}


@pytest.mark.parametrize(
    "objective",
    [StickingTheLanding(1), DoublyReparameterized(3), ScoreFunction(2), ScoreFunction(3, control_variate="optimal")],
    ids=["path", "doubly", "leave one out", "optimal"],
)
def test_no_variance_at_a_perfect_guide(objective, rng_key):
    """To roundoff: log p is about -137, and so is each of the costs that cancel."""
    g = gradients(rng_key, objective, bell, bell_guide, PERFECT, X, num=1_000)
    assert max(np.abs(e).max() for e in g.values()) < 1e-9


TOTAL = [Trace_ELBO(), ScoreFunction(1, control_variate="none", reparameterize=True)]


@pytest.mark.parametrize("objective", TOTAL, ids=["NumPyro's", "ours"])
def test_the_total_derivative_has_variance_there(objective, rng_key, z_bound):
    """The posterior's precision, 101: what sticking the landing leaves out."""
    g = np.asarray(gradients(rng_key, objective, bell, bell_guide, PERFECT, X, num=20_000)["m"])
    assert abs(g.var() - 101) < z_bound() * math.sqrt(((g - g.mean()) ** 2).var() / g.size)


def lopsided():
    """A cost that is large whatever the draw: what a control variate takes off."""
    numpyro.factor("large", 30.0 + 2.0 * numpyro.sample("z", dist.Bernoulli(0.5)))


def tipped():
    numpyro.sample("z", dist.Bernoulli(logits=numpyro.param("logit", 0.0)))


def test_a_running_mean_lives_in_the_state_of_svi():
    """It becomes the mean cost, and the guide the posterior, whose log odds are 2."""
    objective = ScoreFunction(8, control_variate="running_mean")
    svi = SVI(lopsided, objective.remembering(tipped), optax.sgd(0.05), objective)
    result = svi.run(jax.random.key(0), 3_000, progress_bar=False)
    state = result.state.mutable_state[STATE]
    log_evidence = math.log(0.5 * math.exp(30) + 0.5 * math.exp(32))
    assert state["total"]["z"] / state["weight"] == pytest.approx(log_evidence, abs=0.05)
    assert result.params["logit"] == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("objective", [ScoreFunction(4), ScoreFunction(4, control_variate="optimal")], ids=["leave one out", "optimal"])
def test_svi_runs_with_ours_as_with_its_own(objective):
    """Where the guide is the posterior the costs are constant, so that the last steps are without noise."""
    result = SVI(lopsided, tipped, optax.adam(0.05), objective).run(jax.random.key(0), 2_000, progress_bar=False)
    assert result.params["logit"] == pytest.approx(2, abs=1e-2)
    assert result.losses[-1] == pytest.approx(-math.log(0.5 * math.exp(30) + 0.5 * math.exp(32)), abs=1e-3)


def pointed():
    m = numpyro.sample("m", dist.Normal(0.0, 1.0))
    w = numpyro.sample("w", dist.LogNormal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(m * w, 1.0), obs=1.5)


def pointed_guide():
    """A point, and a draw whose Jacobian has a parameter of its own: a Delta's density is a term like any other."""
    numpyro.sample("m", dist.Delta(numpyro.param("point", 0.3)))
    base = numpyro.sample("base", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
    s = numpyro.param("s", 0.4)
    log_density = -(s * base + jnp.log(s))  # of exp(s base)
    numpyro.sample("w", dist.Delta(jnp.exp(s * base), log_density=log_density))


def pointed_elbo(params):
    """log w is N(0, s^2); E[w] and E[w^2] of a log-normal."""
    m, s = params["point"], params["s"]
    mean, square = jnp.exp(s**2 / 2), jnp.exp(2 * s**2)
    entropy = jnp.log(s) + 0.5 * math.log(2 * math.pi) + 0.5
    prior = -0.5 * m**2 - 0.5 * s**2 - math.log(2 * math.pi)
    return prior + entropy - 0.5 * (1.5**2 - 2 * 1.5 * m * mean + m**2 * square) - 0.5 * math.log(2 * math.pi)


@pytest.mark.parametrize("objective", [StickingTheLanding(2), DoublyReparameterized(1)], ids=["path", "doubly"])
def test_points_and_jacobians_keep_their_gradient(objective, rng_key, z_bound):
    """`base` keeps nothing: its law has no parameters."""
    params = {"point": 0.3, "s": 0.4}
    hold(gradients(rng_key, objective, pointed, pointed_guide, params, num=20_000), pointed_elbo, params, z_bound)
