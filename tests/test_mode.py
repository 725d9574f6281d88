"""The start: exact on Gaussians of any scale and size, the same point in any units, useful where the mode is not."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from vipatterns import density, evaluation, mode, newton
from vipatterns.patterns import eight_schools_centered, funnel


def gaussian(mean, precision):
    """N(mean, precision^-1), unnormalised, and no prior to say where it lies."""
    z = numpyro.sample("z", dist.ImproperUniform(dist.constraints.real, (), event_shape=mean.shape))
    d = z - mean
    numpyro.factor("gaussian", -0.5 * (d @ (precision @ d) if precision.ndim == 2 else (precision * d**2).sum()))


def robust_regression(x, y, scale):
    """Student-t noise, so that Newton takes several steps; priors in the units of the data."""
    a = numpyro.sample("a", dist.Normal(y.mean(), 10 * scale))
    b = numpyro.sample("b", dist.Normal(jnp.zeros(2), 10 * scale / x.std(0)).to_event(1))
    s = numpyro.sample("s", dist.LogNormal(jnp.log(scale), 1.0))
    numpyro.sample("y", dist.StudentT(4.0, a + (x - x.mean(0)) @ b, s), obs=y)


def two_modes():
    numpyro.sample("z", dist.MixtureSameFamily(dist.Categorical(probs=jnp.array([0.4, 0.6])), dist.Normal(jnp.array([-10.0, 10.0]), 1.0)))


@pytest.fixture(autouse=True)
def float64():
    with density.precision("float64"):
        yield


def find(rng_key, model, data):
    return mode.find(rng_key, density.read(model, data), density.Clock())


def correlated(dim, units):
    """Mean and precision of an AR(1) process at correlation .9, in those units."""
    lag = np.abs(np.subtract.outer(np.arange(dim), np.arange(dim)))
    covariance = 0.9**lag * np.outer(units, units)
    return 3.0 * units + np.arange(dim) * units / dim, np.linalg.inv(0.9**lag) / np.outer(units, units), covariance


UNITS = {
    "one latent": np.ones(1),
    "unit": np.ones(5),
    "tiny and huge": 10.0 ** np.array([-6, 0, 3, 6, -3]),
    "most latents with a full Hessian": np.logspace(-3, 3, 200),
}


@pytest.mark.parametrize("units", UNITS)
def test_exact_on_a_gaussian(units, rng_key):
    mean, precision, covariance = correlated(len(UNITS[units]), UNITS[units])
    start = find(rng_key, gaussian, {"mean": mean, "precision": precision})
    sds = np.sqrt(np.diag(covariance))
    assert start.at_mode
    np.testing.assert_allclose((start.loc - mean) / sds, 0, atol=1e-4)
    np.testing.assert_allclose(start.hessian * np.outer(sds, sds), precision * np.outer(sds, sds), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(start.factor @ start.factor.T / np.outer(sds, sds), covariance / np.outer(sds, sds), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(start.sds, sds, rtol=1e-5)
    assert (np.diagonal(start.factor) > 0).all()
    np.testing.assert_array_equal(start.factor, np.tril(start.factor))
    assert start.others.shape == (0, len(mean))


def test_coordinates_and_their_way_back(rng_key):
    mean, precision, _ = correlated(5, UNITS["tiny and huge"])
    start = find(rng_key, gaussian, {"mean": mean, "precision": precision})
    u = np.asarray(jax.random.normal(rng_key, (3, 5)))
    np.testing.assert_allclose(start.unscaled(mode.scaled(start.factor, u)), u, rtol=1e-8)


def test_curvature_over_q_is_exact_on_a_gaussian(rng_key):
    mean, precision, covariance = correlated(5, UNITS["tiny and huge"])
    start = find(rng_key, gaussian, {"mean": mean, "precision": precision})
    sds = np.sqrt(np.diag(covariance))
    offsets = np.asarray(jax.random.normal(rng_key, (8, 5))) * sds
    around = start.around(mean + 0.3 * sds, offsets)
    assert around.trust == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(around.precision_diagonal * sds**2, np.diag(precision) * sds**2, rtol=1e-6)


@pytest.mark.parametrize("dim", [201, 250])
def test_many_latents_that_are_independent(dim, rng_key):
    """Above DENSE_DIM the Hessian's diagonal is estimated: exactly, where it is diagonal; and starts scale with the units."""
    assert dim > mode.DENSE_DIM
    units = np.logspace(-3, 3, dim)
    start = find(rng_key, gaussian, {"mean": 3 * units, "precision": units**-2.0})
    assert start.at_mode
    np.testing.assert_allclose(start.loc / units, 3, atol=0.01)
    np.testing.assert_allclose(start.factor / units, 1, rtol=1e-6)
    np.testing.assert_allclose(start.precision_diagonal * units**2, 1, rtol=1e-6)
    u = np.asarray(jax.random.normal(rng_key, (3, dim)))
    np.testing.assert_allclose(start.unscaled(mode.scaled(start.factor, u)), u, rtol=1e-10)


def test_many_latents_that_are_correlated(rng_key):
    """The diagonal's estimate from 32 probes has variance 2 sum_j H_ij^2 / 32 (off the diagonal): .59 of H_ii here, at most."""
    mean, precision, covariance = correlated(250, np.logspace(-1, 1, 250))
    start = find(rng_key, gaussian, {"mean": mean, "precision": precision})
    assert start.at_mode
    np.testing.assert_allclose((start.loc - mean) / np.sqrt(np.diag(covariance)), 0, atol=0.05)
    off = precision - np.diag(np.diag(precision))
    noise = np.sqrt((off**2).sum(1) / 32) / np.diag(precision)
    assert (np.abs(start.precision_diagonal / np.diag(precision) - 1) < 6 * noise).all()


def data(rng_key, unit_x=1.0, unit_y=1.0, shift_y=0.0):
    rng = np.random.default_rng(np.asarray(jax.random.key_data(rng_key)))
    x = rng.normal(size=(40, 2))
    y = 1 + x @ [2.0, -1.0] + 0.5 * rng.standard_t(4, size=40)
    return {"x": x * unit_x, "y": unit_y * y + shift_y, "scale": np.asarray(unit_y)}


@pytest.mark.parametrize(("unit_x", "unit_y", "shift"), [(1e3, 1.0, 0.0), (1.0, 1e-3, 0.0), (np.array([1e3, 1e-3]), 1e3, 1e4)])
def test_the_same_start_in_other_units(unit_x, unit_y, shift, rng_key):
    """z' = unit z + shift: the mode moves along, to rounding, and so does its curvature."""
    plain = find(rng_key, robust_regression, data(rng_key))
    other = find(rng_key, robust_regression, data(rng_key, unit_x, unit_y, shift))
    unit = np.array([unit_y, *np.broadcast_to(unit_y / unit_x, 2), 1.0])
    offset = np.array([shift, 0, 0, math.log(unit_y)])
    assert plain.at_mode
    assert other.at_mode
    np.testing.assert_allclose((other.loc - offset) / unit, plain.loc, atol=1e-5)
    np.testing.assert_allclose(other.factor / unit[:, None], plain.factor, rtol=1e-4, atol=1e-7)


def test_newton_is_equivariant_start_by_start(rng_key, monkeypatch):
    """From the same places in other units every start goes the same way."""
    minimise, paths = newton.minimise, []
    for unit in (1.0, 1e3):
        target = density.read(robust_regression, data(rng_key, unit_y=unit))
        scale, offset = np.array([unit, unit, unit, 1.0]), np.array([0, 0, 0, math.log(unit)])
        starts = scale * np.asarray(jax.random.normal(rng_key, (4, 4))) + offset
        seen = []
        monkeypatch.setattr(newton, "minimise", lambda *args, seen=seen: seen.append(minimise(*args)) or seen[0])
        mode._newton(target, starts, density.Clock())
        assert seen[0].converged.all()
        paths.append([(x - offset) / scale for x, _, _ in seen[0].path])
    # Rounding may make one of them a step longer: they stop where less than 1e-9 nats are left.
    both = list(zip(*paths, strict=False))
    assert len(both) > 5
    np.testing.assert_allclose(*zip(*both, strict=True), atol=1e-5)


def test_where_hessians_are_dear_no_start_is_made_twice_and_none_is_computed_for_padding(rng_key, monkeypatch):
    """The prior's centre is zero here: the second start is a dispersed one. Derivatives are those of where they are cheap."""
    data = {"mean": np.arange(3.0), "precision": np.eye(3) + 1.0}
    target = density.read(gaussian, data)
    cheap = mode.derivatives(target, density.Clock())
    minimise, seen = newton.minimise, []
    monkeypatch.setattr(newton, "minimise", lambda at, starts, *args: seen.append(starts) or minimise(at, starts, *args))
    monkeypatch.setattr(mode, "_affordable", lambda target: 2)
    start = mode.find(rng_key, target, density.Clock())
    assert (seen[0][0] == 0).all()
    assert (seen[0][1] != 0).all()
    assert start.loc == pytest.approx(data["mean"], abs=1e-6)
    points = np.asarray(jax.random.normal(rng_key, (35, 3)))  # more than one call
    for dear, same in zip(start.derivatives(points), cheap(points), strict=True):
        np.testing.assert_allclose(dear, same, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("num_points", [1, 300, 1_100])
def test_points_that_do_not_fit_in_memory_at_once_go_through_in_batches(num_points, rng_key, monkeypatch):
    data = {"mean": np.arange(3.0), "precision": np.eye(3) + 1.0, "extra": np.zeros(10**6)}

    def model(mean, precision, extra):  # so much data that blocks are small
        gaussian(mean, precision)
        numpyro.deterministic("first", mean[0] + numpyro.sample("w", dist.Normal(0, 1)) + extra[0])

    target = density.read(model, data)
    z = np.asarray(jax.random.normal(rng_key, (num_points, target.dim)))
    whole, values = evaluation.Points(target, density.Clock())(z)
    monkeypatch.setattr(density, "MAX_BATCH_ELEMENTS", 100)
    batches = evaluation.Points(target, density.Clock())
    assert batches.rows > batches.block == 256
    assert evaluation.few(target) == 16
    log_p, same = batches(z)
    np.testing.assert_allclose(log_p, whole, rtol=1e-12)
    assert log_p.shape == (num_points,)
    for name, value in values.items():
        np.testing.assert_array_equal(same[name], value)


def test_in_batches_nothing_is_computed_for_padding():
    """Zeros are what was not computed: 5 of 8 points need 3 batches of 2."""
    program = jax.jit(evaluation.over_first(lambda z, shift: z + shift, 2))
    np.testing.assert_array_equal(program(jnp.ones((8, 1)), 5, 1.0).ravel(), [2, 2, 2, 2, 2, 2, 0, 0])


def test_of_two_modes_the_heavier_is_taken_and_the_other_is_told(rng_key):
    start = find(rng_key, two_modes, {})
    assert start.at_mode
    assert start.loc == pytest.approx([10], abs=1e-3)
    assert start.others.ravel() == pytest.approx([-10], abs=1e-3)


def test_a_funnel_starts_away_from_its_mode(rng_key):
    """The mode lies at v = -9 (D - 1) / 2 = -40.5, where there is no mass: v ~ N(0, 3^2)."""
    start = find(rng_key, funnel.model, {"num_dimensions": 10})
    v = list(density.read(funnel.model, {"num_dimensions": 10}).names).index("v")
    assert abs(start.loc[v]) < 6
    assert np.isfinite(start.factor).all()


def test_a_mode_at_infinity(rng_key):
    """Centred eight schools: the density grows without bound as tau goes to zero."""
    start = find(rng_key, eight_schools_centered.model, eight_schools_centered.data())
    assert not start.at_mode
    assert np.isfinite(start.loc).all()
    names = density.read(eight_schools_centered.model, eight_schools_centered.data()).names
    assert -3 < start.loc[list(names).index("tau")] < 4


def walled():
    """A fifth of all starts, the prior's centre and zero among them, meet NaN."""
    z = numpyro.sample("z", dist.Normal(0.0, 3.0))
    numpyro.factor("wall", jnp.where(jnp.abs(z) < 0.4, jnp.nan, -0.5 * (z - 1.0) ** 2))


def test_starts_that_meet_nan_are_left_behind(rng_key):
    start = find(rng_key, walled, {})
    assert start.loc == pytest.approx([0.9], abs=1e-6)
    assert start.at_mode


@pytest.mark.parametrize("size", [1e-250, 1.0, 1e250])
def test_a_curvature_of_any_size_is_positive_definite_or_not(size):
    assert newton.positive_definite(size * np.array([[2.0, 1.0], [1.0, 2.0]]))
    assert not newton.positive_definite(size * np.array([[1.0, 2.0], [2.0, 1.0]]))
    assert not newton.positive_definite(size * np.array([[1.0, 0.0], [0.0, -1.0]]))
