"""Units that tell nothing are found, and KLs are those of closed forms."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from exact_vae import Linear, correlated, count_guide, count_model, kl, orthogonal, trained
from scipy.special import digamma, gammaln
from scipy.stats import norm

import vipatterns as vip

NUM_ROWS = 60


@pytest.fixture(scope="module")
def one_dead():
    """The second latent has no weight in the decoder, so that its posterior is its prior."""
    whole = orthogonal()
    return Linear(whole.weights * np.array([1.0, 0.0, 1.0]), whole.offset, whole.noise)


def test_a_dead_dimension_is_found(one_dead):
    x = one_dead.rows(np.random.default_rng(0), NUM_ROWS)
    sds = 1 / np.sqrt(np.diag(one_dead.precision))
    found = vip.amortized.active_units(jax.random.key(0), one_dead.trained(x, factor=sds))
    means, _ = one_dead.posterior(x)
    np.testing.assert_allclose(found.table.variance, means.var(0, ddof=1), atol=1e-12)
    np.testing.assert_allclose(found.table.kl, (0.5 * (sds**2 + means**2 - 1) - np.log(sds)).mean(0), atol=1e-12)
    np.testing.assert_allclose(found.table.prior_variance, 1)
    assert list(found.table.active) == [True, False, True]
    assert found.kl == pytest.approx(found.table.kl.sum())
    assert found.number == 2
    assert found.sentence.startswith("Posterior collapse of a part: 1 of 3 units are not active (z[1])")
    assert "z[1]" in repr(found)


def test_all_alive_is_said():
    linear = orthogonal()
    model = linear.trained(linear.rows(np.random.default_rng(0), NUM_ROWS), factor=1 / np.sqrt(np.diag(linear.precision)))
    assert vip.amortized.active_units(jax.random.key(0), model).sentence == "All 3 units are active."


@pytest.mark.parametrize(
    ("sd", "sentence"), [(1.0, "Posterior collapse: 3 of 3"), (0.1, "3 of 3 units .* the encoder pays there for nothing")]
)
def test_an_encoder_that_ignores_its_input(sd, sentence):
    linear = orthogonal()

    def guide(x):
        with numpyro.plate("row", len(x)):
            numpyro.sample("z", dist.Normal(jnp.zeros((len(x), 3)), sd).to_event(1))

    model = trained(linear.model, guide, {"x": linear.rows(np.random.default_rng(0), NUM_ROWS)})
    found = vip.amortized.active_units(jax.random.key(0), model)
    np.testing.assert_allclose(found.table.kl, 0.5 * (sd**2 - 1) - np.log(sd), atol=1e-12)
    assert not found.table.active.any()
    assert re.match(sentence, found.sentence)


def test_a_full_covariance_has_one_kl(rng_key, z_bound):
    """By draws, in total: its error over data holds theirs, which the exact KL of each datum takes out."""
    linear = correlated()
    x = linear.rows(np.random.default_rng(0), NUM_ROWS)
    means, cov = linear.posterior(x)
    found = vip.amortized.active_units(rng_key, linear.trained(x), num_samples=2_000)
    exact = np.mean([kl(mean, cov, np.zeros(2), np.eye(2)) for mean in means])
    assert found.table.kl.isna().all()
    # Of one datum log q - log p is quadratic in draws: its variance is that of half u'(I - cov)u + a linear term of the mean.
    squares = np.trace((np.eye(2) - cov) @ (np.eye(2) - cov)) / 2 + np.mean(np.einsum("ni,ij,nj->n", means, cov, means))
    assert abs(found.kl - exact) < z_bound() * np.sqrt(squares / 2_000 / NUM_ROWS)
    np.testing.assert_allclose(found.table.variance, means.var(0, ddof=1), atol=1e-12)


def test_another_distribution_by_draws(rng_key, z_bound):
    """Gamma(x + 1, 2) against Exponential(1): means (x + 1) / 2, and a KL in closed form."""
    counts = np.repeat(np.arange(6), 10)
    found = vip.amortized.active_units(rng_key, trained(count_model, count_guide(), {"x": counts}), num_samples=1_000)
    shape = counts + 1.0
    exact = (shape - 1) * digamma(shape) - gammaln(shape) + np.log(2) - shape / 2
    # log q - log p is (shape - 1) log z - z and constants.
    draws = np.random.default_rng(0).gamma(shape, 0.5, (20_000, len(counts)))
    spread = ((shape - 1) * np.log(draws) - draws).var(0).mean()
    assert abs(found.kl - exact.mean()) < z_bound(4) * np.sqrt(spread / 1_000 / len(counts))
    assert found.table.kl.item() == pytest.approx(found.kl)
    noise = shape / 4 / 1_000
    error = 2 * np.sqrt((shape / 2).var() * noise.mean() / len(counts)) + noise.mean()
    assert abs(found.table.variance.item() - (shape / 2).var(ddof=1)) < z_bound(4) * error
    # The prior's variance is 1, by 60,000 draws; the fourth central moment of an exponential is 9.
    assert abs(found.table.prior_variance.item() - 1) < z_bound(4) * np.sqrt(8 / 60_000)
    assert found.number == 1


def test_two_layers_have_one_kl(rng_key, z_bound):
    """top ~ N(0, 1), z | top ~ N(top, 1), x | z ~ N(z, 1) with the exact q: KL = E_q[log p(x | z)] - log p(x)."""

    def model(x):
        with numpyro.plate("row", len(x)):
            top = numpyro.sample("top", dist.Normal(0.0, 1.0))
            z = numpyro.sample("z", dist.Normal(top, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with numpyro.plate("row", len(x)):
            z = numpyro.sample("z", dist.Normal(2 * x / 3, np.sqrt(2 / 3)))
            numpyro.sample("top", dist.Normal(z / 2, np.sqrt(0.5)))

    x = np.random.default_rng(0).normal(0, np.sqrt(3), NUM_ROWS)
    found = vip.amortized.active_units(rng_key, trained(model, guide, {"x": x}), num_samples=2_000)
    exact = norm.logpdf(x, 2 * x / 3, 1) - 1 / 3 - norm.logpdf(x, 0, np.sqrt(3))
    # log q - log p is log p(x | z) - log p(x), and -(x - z)^2 / 2 has variance (2 / 3)^2 / 2 + (x / 3)^2 2 / 3.
    spread = (2 / 9 + 2 * x**2 / 27).mean()
    assert abs(found.kl - exact.mean()) < z_bound(3) * np.sqrt(spread / 2_000 / NUM_ROWS)
    assert found.table.kl.isna().all()
    assert list(found.table.index) == ["z", "top"]
    prior = found.table.prior_variance
    for name, variance in (("z", 2.0), ("top", 1.0)):
        assert abs(prior[name] - variance) < z_bound(3) * variance * np.sqrt(2 / 2_000 / NUM_ROWS) + 1e-12
    assert found.table.active.all()


def test_one_row_is_refused():
    linear = orthogonal()
    with pytest.raises(vip.InputError, match="two rows or more"):
        vip.amortized.active_units(jax.random.key(0), linear.trained(linear.rows(np.random.default_rng(0), 1)))
