"""DADVI in other coordinates: the same posterior to Monte Carlo error, the same evidence but for the units of y, the same verdict."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.stats import ortho_group

import vipatterns as vip
from vipatterns.patterns import eight_schools_centered

NUM_ROWS, NUM_FEATURES = 40, 3
RNG = np.random.default_rng(5)
X = RNG.normal(size=(NUM_ROWS, NUM_FEATURES)) @ np.array([[1, 0.8, 0], [0, 0.6, 0.3], [0, 0, 1]])
Y = X @ [1.0, -0.5, 0.3] + 0.7 * RNG.standard_t(4, NUM_ROWS)
ROTATION = ortho_group.rvs(NUM_FEATURES, random_state=2)
MAPS = {
    "as it is": (np.eye(NUM_FEATURES), np.zeros(NUM_FEATURES), 1.0),
    "other units": (np.diag([1e-3, 1.0, 1e4]), np.zeros(NUM_FEATURES), 1e3),
    "shifted": (np.eye(NUM_FEATURES), np.array([300.0, -20.0, 7.0]), 1.0),
    "rotated": (ROTATION, np.zeros(NUM_FEATURES), 1.0),
    "all of these": (ROTATION @ np.diag([1e-3, 1.0, 1e4]), np.array([300.0, -20.0, 7.0]), 1e-2),
}


def regression(x, y, loc, root, unit):
    """Student-t noise of unknown scale; slopes are a linear map of those that have a standard normal prior."""
    slopes = numpyro.sample("slopes", dist.MultivariateNormal(loc, scale_tril=root))
    scale = numpyro.sample("scale", dist.LogNormal(jnp.log(unit), 1.0))
    with numpyro.plate("row", len(y)):
        numpyro.sample("y", dist.StudentT(4.0, x @ slopes, scale), obs=y)


def fitted(rng_key, how):
    """The fit in coordinates slopes = unit (matrix beta + shift), and its draws of beta and of the scale in the first units (S, 4)."""
    matrix, shift, unit = MAPS[how]
    root = np.linalg.cholesky(unit**2 * matrix @ matrix.T)
    there = np.linalg.inv(matrix)
    # beta = there @ (slopes / unit - shift), so that x beta is linear in the slopes, beside a known offset.
    data = {"x": X @ there, "y": unit * (Y + X @ there @ shift), "loc": unit * shift, "root": root, "unit": np.asarray(unit)}
    fit = vip.fit(rng_key, regression, data, method=vip.DADVI(num_samples=5_000))
    slopes, scale = (fit.posterior[k].values.reshape(20_000, -1) for k in ("slopes", "scale"))
    return fit, np.concatenate([(slopes / unit - shift) @ there.T, scale / unit], axis=1), NUM_ROWS * np.log(unit)


@pytest.fixture(scope="module")
def plain(rng_key):
    return fitted(jax.random.fold_in(rng_key, 1), "as it is")


@pytest.mark.parametrize("how", [*(pytest.param(how, marks=pytest.mark.slow) for how in list(MAPS)[1:-1]), "all of these"])
def test_the_same_posterior_in_other_coordinates(how, plain, rng_key, z_bound):
    """Under another key, so that agreement is of posteriors and not of draws: means, sds, correlations and evidence."""
    first, here, _ = plain
    fit, there, volume = fitted(jax.random.fold_in(rng_key, 2), how)
    assert first.certificate.ok
    assert fit.certificate.ok, fit.certificate.verdict
    size = here.shape[1]
    bound = z_bound(2 * size + size * (size - 1) // 2 + 1)
    # A scalar of these is a sum of those that were judged, and no worse known than the worst of them is in its own sds.
    error = np.hypot(first.certificate.mcse, fit.certificate.mcse)
    assert (np.abs(here.mean(0) - there.mean(0)) / here.std(0) < bound * error).all()
    assert (np.abs(there.std(0) / here.std(0) - 1) < bound * error).all()
    assert np.abs(np.corrcoef(here.T) - np.corrcoef(there.T)).max() < bound * error
    error = np.hypot(first.certificate.log_evidence_mcse, fit.certificate.log_evidence_mcse)
    assert abs(fit.certificate.log_evidence + volume - first.certificate.log_evidence) < bound * error


def funnel_along(direction):
    """Neal's funnel in two dimensions, its axes turned and stretched by a matrix."""
    z = numpyro.sample("z", dist.ImproperUniform(dist.constraints.real, (), event_shape=(2,)))
    v, x = jnp.linalg.solve(direction, z)
    numpyro.factor("funnel", dist.Normal(0.0, 3.0).log_prob(v) + dist.Normal(0.0, jnp.exp(v / 2)).log_prob(x))


def schools_in(unit, y, sigma):
    """Centred, which DADVI cannot fit."""
    mu = numpyro.sample("mu", dist.Normal(0, 5 * unit))
    tau = numpyro.sample("tau", dist.HalfCauchy(5 * unit))
    with numpyro.plate("school", len(y)):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


SCHOOLS = {k: np.asarray(v, float) for k, v in eight_schools_centered.data().items()}
TURNED = np.array([[np.cos(0.6), -np.sin(0.6)], [np.sin(0.6), np.cos(0.6)]])
REFUSED = {
    "funnel, turned": (funnel_along, {"direction": TURNED}),
    "funnel, turned and stretched": (funnel_along, {"direction": np.diag([1e3, 1e-2]) @ TURNED}),
    "centred schools, thousandfold": (schools_in, {"unit": np.asarray(1e3), **{k: 1e3 * v for k, v in SCHOOLS.items()}}),
}


@pytest.mark.parametrize(
    "case", [case if case == "funnel, turned and stretched" else pytest.param(case, marks=pytest.mark.slow) for case in REFUSED]
)
def test_what_is_refused_stays_refused_in_other_coordinates(case, rng_key):
    model, data = REFUSED[case]
    assert not vip.fit(rng_key, model, data, method=vip.DADVI()).certificate.ok
