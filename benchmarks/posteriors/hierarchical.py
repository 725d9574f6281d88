"""Groups, people and items: hierarchical models, centred only where the failure is what is wanted."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from scipy.special import betaln, expit, logsumexp

from posteriors.record import Posterior
from vipatterns.patterns import eight_schools, eight_schools_centered, funnel

N, Half = dist.Normal, dist.HalfNormal


def moments(weights, means, variances):
    """Mean and sd of a mixture: weights (G,), means and variances (G, ...)."""
    mean = np.tensordot(weights, means, 1)
    return mean, np.sqrt(np.tensordot(weights, variances + (means - mean) ** 2, 1))


def schools_exact(sigma, y):
    """Given tau all is Gaussian; one integral is left, on a grid in log tau."""
    tau, log_p, m, var = eight_schools_centered.grid(sigma, y)
    weights = np.exp(log_p - logsumexp(log_p))
    v = sigma**2 + tau[:, None] ** 2
    kept, m, var, t = sigma**2 / v, m[:, None], var[:, None], tau[:, None]
    return {
        "mu": moments(weights, m[:, 0], var[:, 0]),
        "tau": moments(weights, tau, 0 * tau),
        "theta": moments(weights, m * kept + t**2 * y / v, t**2 * kept + kept**2 * var),
        "z": moments(weights, t * (y - m) / v, kept + t**2 * var / v**2),
    }


def centred_exact(sigma, y):
    found = schools_exact(sigma, y)
    del found["z"]
    return found


def funnel_exact(num_dimensions):
    """x's variance is the mean of exp(v), v normal with sd 3."""
    return {"v": (0.0, 3.0), "x": (np.zeros(num_dimensions - 1), np.full(num_dimensions - 1, np.exp(9 / 4)))}


def radon_data():
    """240 houses in 24 counties: radon (log pCi/l); floor measured on, and uranium in the county's soil (ppm)."""
    rng = np.random.default_rng(201)
    county = np.sort(rng.choice(24, 240, p=rng.dirichlet(np.full(24, 2.0))))
    uranium, floor = rng.gamma(4, 0.25, 24), (rng.random(240) < 0.25).astype(float)
    level, slope = 0.9 + 0.5 * uranium + 0.25 * rng.normal(size=24), -0.65 + 0.3 * rng.normal(size=24)
    return {
        "county": county,
        "floor": floor,
        "uranium": uranium,
        "radon": level[county] + slope[county] * floor + 0.7 * rng.normal(size=240),
    }


def radon(county, floor, uranium, radon=None):
    start = numpyro.sample("start", N(0.0, 3.0))
    by_uranium = numpyro.sample("by_uranium", N(0.0, 2.0))
    slope = numpyro.sample("slope", N(0.0, 2.0))
    level_sd, slope_sd = numpyro.sample("level_sd", Half(1.0)), numpyro.sample("slope_sd", Half(1.0))
    with numpyro.plate("county_", len(uranium)):
        level_z, slope_z = numpyro.sample("level_z", N(0.0, 1.0)), numpyro.sample("slope_z", N(0.0, 1.0))
        levels = numpyro.deterministic("levels", start + by_uranium * uranium + level_sd * level_z)
        slopes = numpyro.deterministic("slopes", slope + slope_sd * slope_z)
    sd = numpyro.sample("sd", Half(2.0))
    with numpyro.plate("house", len(county)):
        numpyro.sample("radon", N(levels[county] + slopes[county] * floor, sd), obs=radon)


def sleep_data():
    """18 drivers on ten days of little sleep: reaction time in ms."""
    rng = np.random.default_rng(202)
    driver, day = np.repeat(np.arange(18), 10), np.tile(np.arange(10.0), 18)
    effects = rng.multivariate_normal([251, 10.5], [[24.0**2, 0.3 * 24 * 6], [0.3 * 24 * 6, 6.0**2]], 18)
    return {"driver": driver, "day": day, "ms": effects[driver, 0] + effects[driver, 1] * day + 25 * rng.normal(size=180)}


def sleep(driver, day, ms=None):
    mean = numpyro.sample("mean", N(jnp.array([250.0, 0.0]), jnp.array([100.0, 20.0])).to_event(1))
    sds = numpyro.sample("sds", Half(jnp.array([50.0, 20.0])).to_event(1))
    L = numpyro.sample("L", dist.LKJCholesky(2, 2.0))
    with numpyro.plate("driver_", 18):
        z = numpyro.sample("z", N(0.0, 1.0).expand([2]).to_event(1))
    effects = mean + z @ (sds[:, None] * L).T
    sd = numpyro.sample("sd", Half(100.0))
    with numpyro.plate("measurement", len(day)):
        numpyro.sample("ms", N(effects[driver, 0] + effects[driver, 1] * day, sd), obs=ms)


def rats_data():
    """Tarone 1982, doi 10.2307/2530304: rats with tumours, and rats, in 71 groups."""
    tumours = "0 " * 14 + "1 " * 8 + "2 " * 9 + "1 5 2 5 3 2 7 7 3 3 2 9 10 4 4 4 4 4 4 4 10 4 4 4 5 11 12 5 5 6 5 6 6 6 6 16 15 15 9 4"
    rats = "20 " * 7 + "19 19 19 19 18 18 17 20 20 20 20 19 19 18 18 25 24 23 20 20 20 20 20 20 10 49 19 46 27 17 49 47 20 20 13 48 50"
    rats += " 20 20 20 20 20 20 20 48 19 19 19 22 46 49 20 20 23 19 22 20 20 20 52 46 47 24 14"
    return {"rats": np.array(rats.split(), int), "tumours": np.array(tumours.split(), int)}


def rats(rats, tumours=None):
    mean = numpyro.sample("mean", dist.Uniform(0.0, 1.0))
    size = numpyro.sample("size", dist.LogNormal(jnp.log(10.0), 1.0))
    with numpyro.plate("group", len(rats)):
        rate = numpyro.sample("rate", dist.Beta(mean * size, (1 - mean) * size))
        numpyro.sample("tumours", dist.Binomial(rats, rate), obs=tumours)


def rats_exact(rats, tumours):
    """Given mean and size every rate is Beta; the two are summed over a grid in logit and log."""
    logit, log_size = (v.ravel() for v in np.meshgrid(np.linspace(-5, 2, 701), np.linspace(-3, 9, 1_201), indexing="ij"))
    mean, size = expit(logit), np.exp(log_size)
    a, b = (mean * size)[:, None], ((1 - mean) * size)[:, None]
    log_p = -((log_size - np.log(10)) ** 2) / 2 + np.log(mean * (1 - mean))
    for y, n in zip(tumours, rats, strict=True):
        log_p += betaln(a[:, 0] + y, b[:, 0] + n - y) - betaln(a[:, 0], b[:, 0])
    weights = np.exp(log_p - logsumexp(log_p))
    kept = weights > 1e-16
    weights, mean, size, a, b = weights[kept], mean[kept], size[kept], a[kept], b[kept]
    rate = (a + tumours) / (a + b + rats)
    return {
        "mean": moments(weights, mean, 0 * mean),
        "size": moments(weights, size, 0 * size),
        "rate": moments(weights, rate, rate * (1 - rate) / (a + b + rats + 1)),
    }


def exam_data():
    """60 pupils, 12 questions: right or wrong."""
    rng = np.random.default_rng(203)
    ability, difficulty, slope = rng.normal(size=60), rng.normal(0, 1.2, 12), rng.lognormal(0.1, 0.4, 12)
    right = rng.random((60, 12)) < expit(slope * (ability[:, None] - difficulty))
    return {"num_pupils": 60, "num_questions": 12, "right": right.astype(int)}


def exam(num_pupils, num_questions, right=None):
    with numpyro.plate("question", num_questions):
        difficulty = numpyro.sample("difficulty", N(0.0, 1.5))
        slope = numpyro.sample("slope", dist.LogNormal(0.0, 0.5))
    with numpyro.plate("pupil_", num_pupils):
        ability = numpyro.sample("ability", N(0.0, 1.0))
    with numpyro.plate("pupil", num_pupils, dim=-2), numpyro.plate("answer", num_questions, dim=-1):
        numpyro.sample("right", dist.Bernoulli(logits=slope * (ability[:, None] - difficulty)), obs=right)


def polls_data():
    """Votes for four parties in polls of eight regions."""
    rng = np.random.default_rng(204)
    size = rng.integers(40, 400, 8)
    votes = np.array([rng.multinomial(n, rng.dirichlet(30 * np.array([0.4, 0.3, 0.22, 0.08]))) for n in size])
    return {"size": size, "votes": votes}


def polls(size, votes=None):
    share = numpyro.sample("share", dist.Dirichlet(jnp.ones(4)))
    alike = numpyro.sample("alike", dist.LogNormal(jnp.log(20.0), 1.0))
    with numpyro.plate("region", len(size)):
        local = numpyro.sample("local", dist.Dirichlet(alike * share))
        numpyro.sample("votes", dist.Multinomial(size, local), obs=votes)


def frogs_data():
    """70 ponds, each visited five times: visits at which a frog was heard; forest cover in percent, and depth in cm."""
    rng = np.random.default_rng(205)
    forest, depth = rng.uniform(0, 100, 70).round(), rng.gamma(6, 12, 70).round()
    lives = rng.random(70) < expit(-1.5 + 0.045 * forest)
    return {"forest": forest, "depth": depth, "heard": rng.binomial(5, 0.15 + 0.4 * expit((depth - 70) / 30)) * lives}


def frogs(forest, depth, heard):
    """Occupancy: whether a frog lives there is summed out."""
    lives, by_forest = numpyro.sample("lives", N(0.0, 3.0)), numpyro.sample("by_forest", N(0.0, 0.1))
    calls, by_depth = numpyro.sample("calls", N(0.0, 3.0)), numpyro.sample("by_depth", N(0.0, 0.1))
    occupied = lives + by_forest * (forest - 50)
    with numpyro.plate("pond", len(forest)):
        seen = dist.Binomial(5, logits=calls + by_depth * (depth - 70)).log_prob(heard) - jnp.logaddexp(0.0, -occupied)
        absent = jnp.where(heard == 0, -jnp.logaddexp(0.0, occupied), -jnp.inf)
        numpyro.factor("heard", jnp.logaddexp(seen, absent))


POSTERIORS = [
    Posterior("eight_schools", eight_schools.model, eight_schools.data, "hierarchical, not centred", schools_exact),
    Posterior(
        "eight_schools_centered",
        eight_schools_centered.model,
        eight_schools_centered.data,
        "hierarchical, centred: a failure",
        centred_exact,
    ),
    Posterior("funnel", funnel.model, funnel.data, "Neal's funnel: a failure", funnel_exact),
    Posterior("radon", radon, radon_data, "varying intercepts and slopes, 24 counties"),
    Posterior("sleep", sleep, sleep_data, "correlated random effects, LKJ Cholesky factor"),
    Posterior("rats", rats, rats_data, "beta-binomial, 71 groups", rats_exact),
    Posterior("exam", exam, exam_data, "item response, 2PL, 60 pupils and 12 questions"),
    Posterior("polls", polls, polls_data, "Dirichlet-multinomial, eight simplexes"),
    Posterior("frogs", frogs, frogs_data, "occupancy, the discrete latent summed out"),
]
