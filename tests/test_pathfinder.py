"""Pathfinder: log q is the density of its draws; Gaussians exactly, in any units; one path and several; why the Gaussians are made here."""

import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from blackjax.vi.pathfinder import approximate, sample
from grid import caught, check_density
from jax.scipy.stats import multivariate_normal

import vipatterns as vip
from vipatterns.methods import pathfinder
from vipatterns.patterns import eight_schools, gaussian_mean, linear_regression, logistic_regression

MEAN = np.array([3.0, -1.0, 2.0])
COVARIANCE = np.array([[2.0, 0.6, 0.1], [0.6, 1.0, 0.2], [0.1, 0.2, 0.5]])


def log_gaussian(x):
    return multivariate_normal.logpdf(x, MEAN, COVARIANCE)


@pytest.fixture
def path(rng_key):
    """BlackJAX's path to the mode of a Gaussian: state at each point, and how many steps it took."""
    with jax.enable_x64(True):
        _, info = approximate(rng_key, log_gaussian, jnp.zeros(3), num_samples=10)
        yield info.path, int((np.diff(info.path.position, axis=0) != 0).any(1).sum())


def test_why_the_gaussians_are_made_here(path, rng_key, z_bound):
    """When this fails BlackJAX has been mended, and its own draws and ELBOs may be taken."""
    states, taken = path
    far = 0
    for step in range(taken):
        state = jax.tree.map(lambda leaf, step=step: leaf[step], states)
        inverse_hessian = jnp.diag(state.alpha) + state.beta @ state.gamma @ state.beta.T
        newton = inverse_hessian @ jax.grad(log_gaussian)(state.position)
        draws, _ = sample(rng_key, state, 10_000)
        error = z_bound(3 * taken) * jnp.sqrt(jnp.diag(inverse_hessian) / 10_000)
        assert (jnp.abs(draws.mean(0) - (state.position - newton)) < error).all()
        far += bool((jnp.abs(draws.mean(0) - (state.position + newton)) > error).any())
    assert far > 2, "the path has points from which the two sides can be told apart"
    assert states.elbo[taken] == -math.inf, "the last point, the mode, is never looked at"
    assert np.isfinite(states.elbo[:taken]).all()


def test_the_gaussian_of_a_point(path, rng_key):
    """Mean and covariance are those of Algorithm 4; what `draw` draws is what `log_q` weighs."""
    states, taken = path
    noise = jax.random.normal(rng_key, (3,))
    for step in range(taken + 1):
        point = pathfinder._Points(*(getattr(states, name)[step] for name in pathfinder._Points._fields))
        gradient = jax.grad(log_gaussian)(point.position)
        local, gain = pathfinder._local(point, gradient)
        covariance = jnp.diag(point.alpha) + point.beta @ point.gamma @ point.beta.T
        root = jax.jacobian(local.draw)(noise)
        np.testing.assert_allclose(root @ root.T, covariance, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(local.draw(jnp.zeros(3)), point.position + covariance @ gradient, rtol=1e-8, atol=1e-10)
        z = local.draw(noise)
        np.testing.assert_allclose(local.log_q(z), multivariate_normal.logpdf(z, local.mean, covariance), rtol=1e-8)
        np.testing.assert_allclose(local.entropy, 0.5 * jnp.linalg.slogdet(2 * jnp.pi * jnp.e * covariance)[1], rtol=1e-8)
        np.testing.assert_allclose(gain, 0.5 * gradient @ covariance @ gradient, rtol=1e-8, atol=1e-12)
    assert gain < 1e-6, "the last point is the mode"


@pytest.mark.parametrize("num_paths", [1, 3])
def test_log_q_is_the_density_of_its_draws(num_paths, rng_key, z_bound, monkeypatch):
    proposals = caught(monkeypatch, pathfinder)
    method = vip.Pathfinder(num_paths=num_paths, num_samples=100)
    fit = vip.fit(rng_key, logistic_regression.model, logistic_regression.data(), method=method)
    [proposal] = proposals
    assert len(proposal.components) == fit.idata["proposal"].sizes["chain"] == num_paths
    check_density(proposal, rng_key, z_bound)
    log_evidence = float(logistic_regression.log_evidence(**logistic_regression.data()))
    assert abs(fit.certificate.log_evidence - log_evidence) < z_bound() * fit.certificate.log_evidence_mcse


@pytest.mark.parametrize("num_paths", [1, 4])
def test_a_gaussian_posterior_exactly(num_paths, rng_key, z_bound):
    data = linear_regression.data()
    fit = vip.fit(rng_key, linear_regression.model, data, method=vip.Pathfinder(num_paths=num_paths))
    assert fit.certificate.ok
    assert fit.certificate.khat == -math.inf, "the weights are even"
    assert fit.stopped_because.startswith(f"converged: {num_paths} of {num_paths} paths ended in a mode")
    assert fit.certificate.log_evidence == pytest.approx(float(linear_regression.log_evidence(**data)), abs=1e-4)
    mean, precision, _ = linear_regression.gaussian(**data)
    raw = fit.idata["proposal"]
    draws = np.concatenate([raw["intercept"].values[..., None], raw["slopes"].values], -1).reshape(-1, len(mean))
    error = z_bound(len(mean)) * np.sqrt(np.diag(np.linalg.inv(precision)) / len(draws))
    assert (np.abs(draws.mean(0) - mean) < error).all()


def offset(sds, constant):
    """Correlation .8 in any units, times a constant; log Z is the constant."""
    covariance = sds[:, None] * jnp.array([[1.0, 0.8], [0.8, 1.0]]) * sds
    numpyro.sample("z", dist.MultivariateNormal(jnp.zeros(2), covariance))
    numpyro.factor("constant", constant)


@pytest.mark.parametrize(("sds", "constant"), [([1e-6, 1e6], 0.0), ([1.0, 1.0], -1e9)], ids=["units", "a large log p"])
def test_neither_units_nor_a_large_log_p_matters(sds, constant, rng_key):
    fit = vip.fit(rng_key, offset, {"sds": np.array(sds), "constant": np.array(constant)}, method=vip.Pathfinder(num_samples=100))
    assert fit.stopped_because.startswith("converged: 4 of 4 paths ended in a mode")
    assert fit.certificate.khat == -math.inf
    assert fit.elbo - constant == pytest.approx(0, abs=1e-4)


def modes():
    locs, weights = jnp.array([-6.0, 6.0]), jnp.array([0.4, 0.6])
    numpyro.sample("z", dist.MixtureSameFamily(dist.Categorical(probs=weights), dist.Normal(locs, 1.0)))


def test_several_paths_meet_several_modes(rng_key, z_bound):
    """One path holds one mode's mass alone; several hold both, and the verdict still says that there were two."""
    one, many = (vip.fit(rng_key, modes, {}, method=vip.Pathfinder(num_paths=n, radius=20.0)) for n in (1, 8))
    assert min(abs(one.certificate.log_evidence - math.log(weight)) for weight in (0.4, 0.6)) < 0.01
    c = many.certificate
    assert abs(c.log_evidence) < z_bound() * c.log_evidence_mcse
    below = (many.posterior["z"].values < 0).mean()
    assert abs(below - 0.4) < z_bound() * math.sqrt(0.24 / 4_000 + 0.24 / c.ess)
    for fit in (one, many):
        assert not fit.certificate.ok
        assert "mode" in fit.certificate.verdict


def test_it_comes_nearer_than_laplace_where_the_posterior_is_skewed(rng_key):
    """Eight schools, log Z -31.311347: the mode is far from the mass, and a point on the way to it is not."""
    path, laplace = (vip.fit(rng_key, eight_schools.model, eight_schools.data(), method=m) for m in (vip.Pathfinder(), vip.Laplace()))
    assert laplace.elbo < path.elbo - 1
    assert path.elbo < -31.311347


def test_a_small_budget_is_told(rng_key):
    fit = vip.fit(rng_key, eight_schools.model, eight_schools.data(), method=vip.Pathfinder(num_paths=2, max_steps=2, num_samples=100))
    assert fit.stopped_because.startswith("step budget: 0 of 2 paths ended in a mode, after 2 to 2 steps")
    assert fit.num_steps == 2


def test_the_same_key_gives_the_same_draws_and_another_does_not(rng_key):
    keys = rng_key, rng_key, jax.random.fold_in(rng_key, 1)
    method = vip.Pathfinder(num_paths=1, num_samples=100)
    one, again, other = (vip.fit(key, gaussian_mean.model, gaussian_mean.data(), method=method).posterior["mu"].values for key in keys)
    np.testing.assert_array_equal(one, again)
    assert not np.isin(one, other).any()


def test_float32(rng_key):
    fit = vip.fit(rng_key, gaussian_mean.model, gaussian_mean.data(), method=vip.Pathfinder(dtype="float32"))
    assert fit.posterior["mu"].dtype == np.float32
    assert fit.elbo == pytest.approx(-136.80742332823354, abs=0.01)


def walled(x):
    """The support of x ends at a latent: wherever a Gaussian puts draws beyond it, log p is -inf."""
    theta = numpyro.sample("theta", dist.LogNormal(0.0, 2.0))
    numpyro.factor("inside", jnp.where(x.max() < theta, -len(x) * jnp.log(theta), -jnp.inf))


def wide():
    numpyro.sample("z", dist.Normal(0.0, 1.0).expand([1_001]).to_event(1))


@pytest.mark.parametrize(
    ("model", "data", "said"),
    [
        (wide, {}, r"at most 1000 latents, the model has 1001; use vip.MeanField\(\)"),
        (
            walled,
            {"x": np.linspace(0.1, 3, 20)},
            r"finite at no point of any path: draws leave the support of log p; try vip.MeanField\(\)",
        ),
    ],
)
def test_what_is_refused(model, data, said, rng_key):
    with pytest.raises(vip.InputError, match=said):
        vip.fit(rng_key, model, data, method=vip.Pathfinder())


@pytest.mark.parametrize("setting", ["num_paths", "max_steps", "history", "num_samples"])
def test_a_setting_that_cannot_be(setting, rng_key):
    with pytest.raises(vip.InputError, match=f"Pathfinder needs {setting} of at least 1, got 0"):
        vip.fit(rng_key, gaussian_mean.model, gaussian_mean.data(), method=vip.Pathfinder(**{setting: 0}))


@pytest.mark.parametrize("radius", [0.0, -1.0, math.nan])
def test_a_radius_that_cannot_be(radius, rng_key):
    with pytest.raises(vip.InputError, match=f"Pathfinder needs a radius above 0, got {radius}"):
        vip.fit(rng_key, gaussian_mean.model, gaussian_mean.data(), method=vip.Pathfinder(radius=radius))


def test_without_the_extra(rng_key, monkeypatch):
    monkeypatch.setitem(sys.modules, "blackjax.vi.pathfinder", None)
    with pytest.raises(vip.InputError, match=r"Pathfinder needs blackjax, .* run pip install 'vipatterns\[pathfinder\]'"):
        vip.fit(rng_key, gaussian_mean.model, gaussian_mean.data(), method=vip.Pathfinder())
