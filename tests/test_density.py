"""log p of any NumPyro model: against closed forms, against NumPyro's own log_density plus the Jacobian, and against one (a prior
integrates to one)."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.distributions.transforms import biject_to
from numpyro.infer.reparam import LocScaleReparam
from numpyro.infer.util import log_density
from scipy import stats

from vipatterns import density

Y = np.array([1.2, -0.7, 0.4, 2.2, -1.1, 0.3])
COUNTS = np.array([0, 3, 1, 4, 2, 2])


def nested_plates(y):
    scale = numpyro.sample("scale", dist.HalfNormal(2.0))
    with numpyro.plate("row", 2, dim=-2):
        row = numpyro.sample("row_effect", dist.Normal(0.0, scale))
        with numpyro.plate("column", 3, dim=-1):
            cell = numpyro.sample("cell", dist.Normal(row, 1.0))
            numpyro.sample("y", dist.Normal(cell, 0.5), obs=y.reshape(2, 3))


def masked(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", len(y)), handlers.mask(mask=~jnp.isnan(y)):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=jnp.nan_to_num(y))


def partly_observed(y, seen):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", len(y)):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y, obs_mask=seen)


def bounded(y):
    low = numpyro.sample("low", dist.LogNormal(0.0, 1.0))
    share = numpyro.sample("share", dist.Beta(2.0, 3.0))
    top = numpyro.sample("top", dist.Uniform(low, low + 2.0))  # its support moves with another latent
    numpyro.sample("y", dist.Normal(low + share * top, 1.0), obs=y)


def simplex(counts):
    p = numpyro.sample("p", dist.Dirichlet(jnp.array([1.5, 2.0, 0.7, 1.0])))
    numpyro.sample("counts", dist.Multinomial(total_count=10, probs=p), obs=counts)


def correlated(y):
    with numpyro.plate("axis", 3):
        sd = numpyro.sample("sd", dist.HalfCauchy(1.0))
    L = numpyro.sample("L", dist.LKJCholesky(3, concentration=1.5))
    numpyro.deterministic("correlation", L @ L.T)
    with numpyro.plate("row", 2):
        numpyro.sample("y", dist.MultivariateNormal(jnp.zeros(3), scale_tril=sd[:, None] * L), obs=y.reshape(2, 3))


def improper(y):
    mu = numpyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
    tau = numpyro.sample("tau", dist.ImproperUniform(dist.constraints.positive, (), ()))
    numpyro.factor("jeffreys", -jnp.log(tau))
    numpyro.sample("y", dist.Normal(mu, tau**-0.5), obs=y)


def improper_vector():
    b = numpyro.sample("b", dist.ImproperUniform(dist.constraints.ordered_vector, (), event_shape=(3,)))
    numpyro.factor("prior", -0.5 * (b**2).sum())


def walk(y):
    sd = numpyro.sample("sd", dist.HalfNormal(1.0))

    def step(level, y_t):
        level = numpyro.sample("level", dist.Normal(level, sd))
        numpyro.sample("y", dist.Normal(level, 1.0), obs=y_t)
        return level, level

    scan(step, 0.0, y)


def noncentred(y):
    with handlers.reparam(config={"theta": LocScaleReparam(0.0)}), numpyro.plate("row", len(y)):
        theta = numpyro.sample("theta", dist.Normal(3.0, 2.0))
    numpyro.sample("y", dist.Normal(theta, 1.0), obs=y)


def directed():
    numpyro.sample("direction", dist.VonMises(0.3, 2.0))
    numpyro.sample("level", dist.TransformedDistribution(dist.Normal(0.0, 1.0), dist.transforms.AffineTransform(5.0, 3.0)))
    numpyro.sample("zero_sum", dist.ZeroSumNormal(1.0, (4,)))
    numpyro.sample("sorted", dist.TransformedDistribution(dist.Normal(jnp.zeros(3), 1.0).to_event(1), dist.transforms.OrderedTransform()))


def counted(counts, trials):
    rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
    p = numpyro.sample("p", dist.Beta(1.0, 1.0))
    numpyro.sample("counts", dist.Poisson(rate), obs=counts)
    numpyro.sample("hits", dist.Binomial(trials, p), obs=jnp.minimum(counts, trials))


MODELS = {
    "nested plates": (nested_plates, {"y": Y}),
    "handlers.mask": (masked, {"y": np.where(Y > 2, np.nan, Y)}),
    "bounded, dependent support": (bounded, {"y": Y}),
    "simplex": (simplex, {"counts": np.array([1, 4, 3, 2])}),
    "Cholesky factor": (correlated, {"y": Y}),
    "improper and factor": (improper, {"y": Y}),
    "improper ordered vector": (improper_vector, {}),
    "scan": (walk, {"y": Y}),
    "reparametrised": (noncentred, {"y": Y}),
    "circular, affine, zero-sum, ordered": (directed, {}),
    "integer data": (counted, {"counts": COUNTS, "trials": np.full(6, 4)}),
}


@pytest.fixture(params=MODELS)
def case(request):
    """A model, its data and its Density, read and used in float64."""
    with density.precision("float64"):
        model, data = MODELS[request.param]
        yield model, data, density.read(model, data)


@pytest.fixture
def points(case, rng_key):
    return np.asarray(jax.random.normal(rng_key, (3, case[2].dim)))


def value(target, z):
    return float(jax.jit(target.log_p)(z, target.arrays))


def log_joint(model, data, sites):
    """NumPyro's own log density of constrained values, plus the log Jacobian of each site's transform, site by site."""
    total, trace = log_density(model, (), data, sites)
    for site in trace.values():
        if site["type"] == "sample" and not site["is_observed"]:
            transform = biject_to(site["fn"].support)
            u = transform.inv(site["value"])
            total += jnp.sum(transform.log_abs_det_jacobian(u, site["value"]))
    return total


def test_log_p_is_numpyros_log_density_plus_the_jacobian(case, points):
    model, data, target = case

    @jax.jit
    def both(z):
        sites = target.constrain(z, target.arrays, deterministic=False)
        return target.log_p(z, target.arrays), log_joint(handlers.seed(model, jax.random.key(9)), data, sites)

    for z in points:
        ours, theirs = both(z)
        assert float(ours) == pytest.approx(float(theirs), rel=1e-10, abs=1e-10)


def test_terms_add_up_and_deterministic_sites_are_there(case, points):
    _, _, target = case
    terms, whole = jax.jit(lambda z: (target.log_p_terms(z, target.arrays), target.log_p(z, target.arrays)))(points[0])
    assert float(sum(jnp.sum(t) for t in terms.values())) == pytest.approx(float(whole), rel=1e-12)
    sites = jax.jit(target.constrain)(points[0], target.arrays)
    assert {*target.latents, *target.deterministics} <= set(sites)
    assert all(sites[name].shape == site.shape for name, site in {**target.latents, **target.deterministics}.items())
    assert len(target.names) == target.dim == sum(v.size for v in target.split(points[0]).values())


def half_normal(tau):
    return stats.halfnorm.logpdf(tau, scale=2.0)


def test_log_p_of_nested_plates_in_closed_form():
    with density.precision("float64"):
        target = density.read(nested_plates, {"y": Y})
        z = np.linspace(-1, 1, target.dim)
        log_tau, row, cell = target.split(z).values()
        tau = np.exp(log_tau)
        expected = half_normal(tau) + log_tau + stats.norm.logpdf(row, 0, tau).sum()
        expected += stats.norm.logpdf(cell, row, 1).sum() + stats.norm.logpdf(Y.reshape(2, 3), cell, 0.5).sum()
        assert target.dim == 9
        assert value(target, z) == pytest.approx(expected, rel=1e-12)


def test_log_p_of_masked_rows_in_closed_form():
    seen = Y < 2
    with density.precision("float64"):
        by_handler = density.read(masked, {"y": np.where(seen, Y, np.nan)})
        expected = stats.norm.logpdf(0.3) + stats.norm.logpdf(Y[seen], 0.3, 1).sum()
        assert value(by_handler, np.array([0.3])) == pytest.approx(expected, rel=1e-12)
        # With obs_mask each row gets a latent, and NumPyro masks the density of those that nothing uses: ours are standard normal.
        by_site = density.read(partly_observed, {"y": Y, "seen": seen})
        assert by_site.dim == 1 + Y.size
        z = np.full(by_site.dim, 0.3)
        rows = stats.norm.logpdf(np.where(seen, Y, 0.3), 0.3, 1).sum()
        unused = stats.norm.logpdf(0.3) * seen.sum()
        assert value(by_site, z) == pytest.approx(stats.norm.logpdf(0.3) + rows + unused, rel=1e-12)


def test_log_p_of_counts_in_closed_form():
    with density.precision("float64"):
        target = density.read(counted, MODELS["integer data"][1])
        u, v = 0.4, -0.2
        rate, p = math.exp(u), 1 / (1 + math.exp(-v))
        expected = stats.gamma.logpdf(rate, 2) + u + math.log(p * (1 - p)) + stats.poisson.logpmf(COUNTS, rate).sum()
        expected += stats.binom.logpmf(np.minimum(COUNTS, 4), 4, p).sum()
        assert target.names == ("rate", "p")
        assert value(target, np.array([u, v])) == pytest.approx(expected, rel=1e-10)


def test_log_p_of_a_random_walk_in_closed_form():
    with density.precision("float64"):
        target = density.read(walk, {"y": Y})
        z = np.linspace(-1, 1, target.dim)
        log_sd, level = target.split(z).values()
        sd = np.exp(log_sd)
        expected = stats.halfnorm.logpdf(sd) + log_sd + stats.norm.logpdf(np.diff(level, prepend=0), 0, sd).sum()
        assert value(target, z) == pytest.approx(expected + stats.norm.logpdf(Y, level).sum(), rel=1e-12)


PRIORS = {
    "positive": lambda: numpyro.sample("a", dist.Gamma(2.0, 3.0)),
    "interval": lambda: numpyro.sample("a", dist.Beta(2.0, 3.0)),
    "dependent": lambda: numpyro.sample("b", dist.Uniform(0.0, numpyro.sample("a", dist.Beta(2.0, 2.0)))),
    "simplex": lambda: numpyro.sample("a", dist.Dirichlet(jnp.array([1.5, 2.0, 1.2]))),
    "Cholesky": lambda: numpyro.sample("a", dist.LKJCholesky(2, concentration=2.0)),
    "zero-sum": lambda: numpyro.sample("a", dist.ZeroSumNormal(1.0, (3,))),
    "truncated": lambda: numpyro.sample("a", dist.TruncatedNormal(0.5, 1.0, low=-1.0, high=2.0)),
}


@pytest.mark.parametrize("prior", PRIORS)
def test_a_prior_integrates_to_one(prior):
    """Over all of unconstrained space: the Jacobian is right, whatever NumPyro says of it."""
    with density.precision("float64"):
        target = density.read(PRIORS[prior], {})
        axis = np.linspace(-30, 30, 1501)
        grid = np.stack(np.meshgrid(*[axis] * target.dim), axis=-1).reshape(-1, target.dim)
        log_p = jax.jit(jax.vmap(lambda z: target.log_p(z, target.arrays)))(grid)
        total = np.exp(np.asarray(log_p)).sum() * (axis[1] - axis[0]) ** target.dim
    # A zero-sum vector has orthonormal coordinates, and the trapezium rule is exact to rounding for such smooth tails.
    assert total == pytest.approx(1, abs=2e-6)


def subsampled(x, y=None, batch=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", len(x), subsample_size=batch):
        part = numpyro.subsample(x, event_dim=0)
        local = numpyro.sample("local", dist.Normal(mu, 1.0))
        numpyro.sample("y", dist.Normal(local + part, 1.0), obs=numpyro.subsample(y, event_dim=0))


def subsampled_by_index(x, batch):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", len(x), subsample_size=batch) as rows:
        numpyro.sample("x", dist.Normal(mu, 1.0), obs=x[rows])


def test_subsampled_plates_run_at_full_size():
    with density.precision("float64"):
        small, full = (density.read(subsampled, {"x": Y, "y": Y[::-1].copy(), "batch": b}) for b in (2, None))
        assert small.dim == full.dim == 1 + Y.size
        z = np.linspace(-1, 1, full.dim)
        expected = stats.norm.logpdf(z[0]) + stats.norm.logpdf(z[1:], z[0]).sum() + stats.norm.logpdf(Y[::-1], z[1:] + Y).sum()
        for target in (small, full):
            assert value(target, z) == pytest.approx(expected, rel=1e-12)
        by_index = density.read(subsampled_by_index, {"x": Y, "batch": 2})
        expected = stats.norm.logpdf(0.3) + stats.norm.logpdf(Y, 0.3).sum()
        assert value(by_index, np.array([0.3])) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 1e-5), ("float64", 1e-13)])
def test_working_precision(dtype, rtol):
    with density.precision(dtype):
        target = density.read(nested_plates, {"y": Y}, dtype=dtype)
        z = jnp.linspace(-1, 1, target.dim, dtype=dtype)
        log_p = jax.jit(target.log_p)(z, target.arrays)
    assert log_p.dtype == dtype
    assert all(a.dtype == dtype for a in target.arrays)
    tau, row, cell = (np.asarray(v, float) for v in target.split(np.asarray(z)).values())
    expected = half_normal(np.exp(tau)) + tau + stats.norm.logpdf(row, 0, np.exp(tau)).sum()
    expected += stats.norm.logpdf(cell, row, 1).sum() + stats.norm.logpdf(Y.reshape(2, 3), cell, 0.5).sum()
    assert float(log_p) == pytest.approx(float(expected), rel=rtol)


def test_priors_centre_moves_with_the_units():
    """Medians where there is an icdf, means elsewhere, zero where there is neither."""

    def model():
        numpyro.sample("far", dist.Normal(1e4, 3.0))
        numpyro.sample("wide", dist.LogNormal(5.0, 2.0))
        numpyro.sample("half", dist.HalfCauchy(7.0))
        numpyro.sample("flat", dist.ImproperUniform(dist.constraints.positive, (), ()))
        numpyro.sample("many", dist.MultivariateNormal(jnp.array([5.0, -7.0]), jnp.eye(2)))

    with density.precision("float64"):
        target = density.read(model, {})
        centre = dict(zip(target.names, np.asarray(target.prior_centre(target.arrays)), strict=True))
    expected = {"far": 1e4, "wide": 5.0, "half": math.log(7), "flat": 0.0, "many[0]": 5.0, "many[1]": -7.0}
    assert centre == pytest.approx(expected, rel=1e-6)
