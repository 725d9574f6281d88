"""Importance-sampled log p(x) against closed forms, and what it says of itself."""

import math
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from exact_vae import Linear, count_guide, count_model, orthogonal, trained
from scipy.stats import chi2, norm

import vipatterns as vip
from vipatterns import diagnosis, programs
from vipatterns.amortized import rows as rows_module

NUM_ROWS = 120


@pytest.fixture(scope="module")
def linear():
    return orthogonal()


@pytest.fixture(scope="module")
def x(linear):
    return linear.rows(np.random.default_rng(0), NUM_ROWS)


@pytest.fixture(scope="module")
def wide(linear, x):
    """An encoder whose sds are too large, so that its weights are bounded."""
    return linear.trained(x, factor=1.3 / np.sqrt(np.diag(linear.precision)))


@pytest.fixture(scope="module")
def found(rng_key, wide):
    return vip.amortized.log_likelihood(rng_key, wide)


def test_it_lies_within_its_error_and_the_error_is_honest(found, linear, x, z_bound, false_alarm):
    z = (found.log_p - linear.log_p(x)) / found.mcse
    assert np.abs(z).max() < z_bound(NUM_ROWS + 1)
    assert abs(found.mean - linear.log_p(x).mean()) < z_bound(NUM_ROWS + 1) * found.mean_mcse
    low, high = chi2.ppf([false_alarm / 2, 1 - false_alarm / 2], NUM_ROWS)
    assert low < (z**2).sum() < high


def test_one_weight_a_datum_is_the_elbo(found, linear, x, z_bound):
    """L_1 averaged over all draws: log p - KL(q || posterior), which has a closed form."""
    elbo = linear.log_p(x) - linear.kls(x, factor=1.3 / np.sqrt(np.diag(linear.precision)))
    # The log weight is minus half of the difference of two sums of squares, z times 1.3^2 - 1: a chi-squared of three.
    error = math.sqrt(2 * 3) * (1.3**2 - 1) / 2 / math.sqrt(found.num_samples)
    assert (np.abs(found.bounds[1] - elbo) < z_bound(NUM_ROWS) * error).all()


def test_a_perfect_encoder_has_no_error(linear, x, rng_key):
    found = vip.amortized.log_likelihood(rng_key, linear.trained(x), num_samples=100, bounds=(1,))
    np.testing.assert_allclose(found.log_p, linear.log_p(x), rtol=1e-10)
    assert found.mcse.max() < 1e-10
    assert (found.khat == -np.inf).all()
    np.testing.assert_allclose(found.ess, 100)


def test_bounds_from_the_same_draws_rise_for_every_datum(found):
    """By Jensen's inequality group by group, so without a tolerance but rounding's."""
    assert (found.bounds[1] <= found.bounds[50] + 1e-12).all()
    assert (found.bounds[50] <= found.log_p + 1e-12).all()


def test_bounds_rise_with_k_for_one_fixed_model(found, wide, rng_key, linear, x, z_bound):
    """K = 1, 50 and 5,000 from keys of their own: each bound is below the next, and none is above log p, within error."""
    keys = jax.random.split(rng_key, 2)
    few = [vip.amortized.log_likelihood(key, wide, num_samples=size, bounds=()) for key, size in zip(keys, (1, 50), strict=True)]
    bounds = [few[0].log_p, few[1].log_p, found.log_p, linear.log_p(x)]
    for lower, upper in pairwise(bounds):
        rise = upper - lower
        assert rise.mean() > -z_bound(3) * rise.std(ddof=1) / math.sqrt(NUM_ROWS)
    assert np.isnan(few[0].mcse).all()
    assert np.isnan(few[0].khat).all()
    assert "above it" in few[0].sentence


def test_the_bounds_of_one_and_two_weights_by_quadrature(rng_key, z_bound):
    """z ~ N(0, 1), x | z ~ N(z, 1), x = 2, proposal the prior; many copies of the datum give the scatter."""
    line = Linear(np.ones((1, 1)), np.zeros(1), 1.0)

    def guide(x):
        with numpyro.plate("row", len(x)):
            numpyro.sample("z", dist.Normal(jnp.zeros((len(x), 1)), 1.0).to_event(1))

    copies = trained(line.model, guide, {"x": np.full((400, 1), 2.0)})
    found = vip.amortized.log_likelihood(rng_key, copies, num_samples=100, bounds=(1, 2))
    nodes, shares = np.polynomial.hermite_e.hermegauss(80)
    shares /= shares.sum()
    log_w = norm.logpdf(2.0, nodes, 1.0)
    two = shares @ (np.logaddexp(log_w[:, None], log_w[None]) - math.log(2)) @ shares
    for bound, exact in ((found.bounds[1], shares @ log_w), (found.bounds[2], two)):
        assert abs(bound.mean() - exact) < z_bound(2) * bound.std(ddof=1) / math.sqrt(400)
    assert shares @ log_w == pytest.approx(-3.4189385332)
    assert -3.41 < two < line.log_p(np.array([[2.0]]))


@pytest.mark.parametrize(("scale", "refused"), [(0.2, True), (1.5, False)])
def test_khat_tells_a_narrow_encoder(scale, refused, rng_key, z_bound):
    """Of one latent: k = 1 - scale^2 in the limit, on average over data above what so many weights allow; and no tail where q is wide."""
    line = Linear(np.ones((1, 1)), np.zeros(1), 1.0)
    x = line.rows(np.random.default_rng(0), 100)
    found = vip.amortized.log_likelihood(rng_key, line.trained(x, factor=np.full(1, scale * math.sqrt(0.5))))
    threshold, error = diagnosis.khat_threshold(found.num_samples), found.khat.std(ddof=1) / math.sqrt(100)
    if refused:
        assert found.khat.mean() - z_bound() * error > threshold
        assert found.khat.mean() < 1 - scale**2 + z_bound() * error
        assert "annealed_log_likelihood" in found.sentence
        assert found.unreliable == (found.khat > threshold).sum() > 0
    else:
        assert (found.khat < 0.2).all()
        assert found.unreliable == 0


def test_pieces_change_nothing(wide, rng_key, monkeypatch):
    """However little goes through at once, each draw keeps its key."""
    rows = {"x": wide.held_out["x"][:7]}
    whole = vip.amortized.log_likelihood(rng_key, wide, rows, num_samples=20, bounds=(1, 3))
    for elements in (6 * 9, 6 * 20 * 3):
        monkeypatch.setattr(rows_module, "MAX_ELEMENTS", elements)
        parted = vip.amortized.log_likelihood(rng_key, wide, rows, num_samples=20, bounds=(1, 3))
        np.testing.assert_allclose(parted.log_p, whole.log_p, rtol=1e-12)
        np.testing.assert_allclose(parted.bounds[3], whole.bounds[3], rtol=1e-12)


def test_fewer_draws_are_the_first_of_more(wide, rng_key):
    rows = {"x": wide.held_out["x"][:3]}
    one, two = (vip.amortized.log_likelihood(rng_key, wide, rows, num_samples=size, bounds=(1,)) for size in (1, 2))
    second = 2 * two.bounds[1] - one.log_p
    np.testing.assert_allclose(two.log_p, np.logaddexp(one.log_p, second) - math.log(2), rtol=1e-12)


def test_other_networks_of_the_same_shapes_are_measured_by_the_same_program(rng_key):
    """The encoder is right for every slope, so that one draw gives log p(x)."""
    x = np.linspace(-2, 2, 5)

    def model(x):
        slope = numpyro.param("slope", 1.0)
        with numpyro.plate("row", len(x)):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(slope * z, 1.0), obs=x)

    def guide(x):
        slope = numpyro.param("slope", 1.0)
        with numpyro.plate("row", len(x)):
            numpyro.sample("z", dist.Normal(slope * x / (1 + slope**2), (1 + slope**2) ** -0.5))

    programs._kept.clear()
    for slope in (1.0, 2.0):
        found = vip.amortized.log_likelihood(rng_key, trained(model, guide, {"x": x}, {"slope": slope}), num_samples=2, bounds=())
        np.testing.assert_allclose(found.log_p, norm.logpdf(x, 0, math.hypot(1, slope)), rtol=1e-10)
        assert len(programs._kept) == 1


def test_a_latent_with_a_support_of_its_own(rng_key, z_bound):
    counts = np.arange(8)
    found = vip.amortized.log_likelihood(rng_key, trained(count_model, count_guide(1.7), {"x": counts}))
    z = (found.log_p + (counts + 1) * math.log(2)) / found.mcse
    assert np.abs(z).max() < z_bound(len(counts))
    assert found.num_dims == 1


def test_the_figures_of_one_screen(found, x):
    assert found.mean_error == pytest.approx(found.log_p.std(ddof=1) / math.sqrt(NUM_ROWS))
    assert found.bits_per_dim == pytest.approx(-found.mean / math.log(2) / x.shape[1])
    assert list(found.table) == ["log_p", "mcse", "khat", "ess", "bound_1", "bound_50"]
    assert len(found.table) == NUM_ROWS
    said = repr(found)
    for part in (f"{found.mean:.3f} ± {found.mean_error:.3f} nats a datum", f"{found.bits_per_dim:.4f}", "L_1", "5000 draws"):
        assert part in said


def test_what_was_trained_is_measured(rng_key, z_bound):
    """Parameters that vip.train learned, in float32, under a plate that subsamples: log p of the learned model by its closed form, and the
    posterior of its first datum."""

    def model(x, num_rows=300):
        slope = numpyro.param("slope", jnp.array([1.0, 0.5]))
        noise = numpyro.param("noise", jnp.array(1.0), constraint=dist.constraints.positive)
        with numpyro.plate("row", num_rows, subsample_size=len(x)):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(z[:, None] * slope, noise).to_event(1), obs=x)

    def guide(x, num_rows=300):
        weights = numpyro.param("weights", jnp.array([0.1, 0.1]))
        sd = numpyro.param("sd", jnp.array(1.5), constraint=dist.constraints.positive)
        with numpyro.plate("row", num_rows, subsample_size=len(x)):
            numpyro.sample("z", dist.Normal(x @ weights, sd))

    x = Linear(np.array([[2.0], [1.0]]), np.zeros(2), 0.8).rows(np.random.default_rng(3), 300)
    done = vip.train(
        jax.random.key(0), model, guide, {"x": x, "num_rows": 300}, num_epochs=3, batch_size=50, optimizer=optax.adam(0.02), progress=False
    )
    learned = Linear(np.asarray(done.params["slope"], float)[:, None], np.zeros(2), float(done.params["noise"]))
    assert abs(learned.noise - 1.0) > 0.01, "training moved nothing"
    found = vip.amortized.log_likelihood(rng_key, done, num_samples=2_000)
    exact = learned.log_p(done.held_out["x"])
    # float32 keeps seven digits of each log density, of which a weight sums a few.
    rounding = 1e-5 * np.abs(exact).max()
    assert (np.abs(found.log_p - exact) < z_bound(len(exact) + 2) * found.mcse + rounding).all()
    row = {"x": done.held_out["x"][:1]}
    beside = vip.amortized.reference(rng_key, done, row, method=vip.Laplace())
    mean, cov = learned.posterior(row["x"])
    assert abs(beside.reference_mean.item() - mean.item()) < z_bound(len(exact) + 2) * beside.mcse.item() * cov.item() ** 0.5
    q_mean = (row["x"] @ np.asarray(done.params["weights"], float)).item()
    assert abs(beside["mean"].item() - q_mean) < z_bound(len(exact) + 2) * beside.mcse.item() * cov.item() ** 0.5


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ({"y": np.zeros((2, 6))}, r"arguments that were trained on, \['x'\]; got \['y'\]"),
        (np.zeros((2, 6)), "got ndarray"),
        ({"x": np.zeros((2, 5))}, r"shape \(5,\), and were trained with \(6,\)"),
        ({"x": np.full((2, 6), np.nan)}, "12 NaN or infinite values, the first in row 0"),
        ({"x": np.zeros((0, 6))}, "1 or more"),
        ({"x": np.full((2, 6), "a")}, "must hold numbers"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_rows_that_cannot_be_measured(wide, rows, sentence):
    with pytest.raises(vip.InputError, match=sentence):
        vip.amortized.log_likelihood(jax.random.key(0), wide, rows)
