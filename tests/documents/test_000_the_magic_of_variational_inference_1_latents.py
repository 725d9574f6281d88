"""Every claim, equation and example of the post "The magic of variational inference", in its order: its first half.

test_holds_...      what the post says, and it is so.
test_corrected_...  what the post says, and what is true instead.

The second half, from the approximate posterior on, is in the file that follows this one.
"""

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from enumeration import PRIOR_VARIANCE, K, Y, labelled, log_cluster, log_joint, names, partitions
from one_latent import LOG_EVIDENCE, LOG_LIK, LOG_PRIOR, H, Z, areas, exact, num_modes
from scipy.integrate import quad
from scipy.special import logsumexp, softmax
from scipy.stats import gamma, kstest, multivariate_normal, norm


@pytest.fixture
def rng(rng_key):
    return np.random.default_rng(np.asarray(jax.random.key_data(rng_key)))


# Latent variable models


def excess(rng_key, rng, density, start, x, sample, log_truth, n=2_000):
    """Held-out log p_true - log p_network, nats a row: its mean, its standard error, and weights per row of training data."""
    y = sample(x)
    log_p, num_weights = networks.train(rng_key, density, start, jnp.asarray(x[:n]), jnp.asarray(y[:n]))
    short = log_truth(x[n:], y[n:]) - np.asarray(log_p(jnp.asarray(x[n:]), jnp.asarray(y[n:])), float)
    return short.mean(), short.std() / len(short) ** 0.5, num_weights / n


def two_branches(rng):
    def sample(x):
        return rng.choice([-1, 1], len(x)) * (2 + x) + 0.3 * rng.normal(size=len(x))

    return sample, lambda x, y: np.logaddexp(norm.logpdf(y, 2 + x, 0.3), norm.logpdf(y, -2 - x, 0.3)) - np.log(2)


def test_holds_a_network_mean_and_variance_are_enough_for_p_of_y_given_x_on_one_branch(rng_key, rng, z_bound):
    """The post: a regression models p(y | x). Held out, it loses no more than its weights cost in data (two half-nats a weight)."""
    mean, sd = lambda x: np.sin(3 * x), lambda x: 0.3 + 0.2 * x
    sample, truth = lambda x: rng.normal(mean(x), sd(x)), lambda x, y: norm.logpdf(y, mean(x), sd(x))
    short, error, cost = excess(rng_key, rng, networks.one_gaussian, (0.0, 0.0), rng.uniform(-1, 1, 4_000), sample, truth)
    assert abs(short) < cost + z_bound() * error


def test_holds_one_gaussian_network_cannot_fit_two_branches(rng_key, rng, z_bound):
    """The post: harder data defeat the simple model. Its loss is that of the best Gaussian at every x, however large the network."""
    sample, truth = two_branches(rng)
    x, y = rng.uniform(-1, 1, 4_000), np.arange(-8, 8, 0.01)
    best = norm.logpdf(y, 0, np.sqrt((2 + x[2_000:, None]) ** 2 + 0.3**2))
    p = truth(x[2_000:, None], y)
    predicted = (np.exp(p) * (p - best)).sum(1).mean() * 0.01
    short, error, cost = excess(rng_key, rng, networks.one_gaussian, (0.0, 0.0), x, sample, truth)
    assert abs(short - predicted) < cost + z_bound() * error
    assert predicted > 1


def test_holds_a_latent_variable_fits_the_two_branches(rng_key, rng, z_bound):
    """The post: a latent variable makes the complex distribution out of simple ones. p(y | x) = sum_z p(z | x) p(y | x, z)."""
    sample, truth = two_branches(rng)
    short, error, cost = excess(
        rng_key, rng, networks.two_gaussians, (0.0, 0.0, -1.0, 1.0, 0.0, 0.0), rng.uniform(-1, 1, 4_000), sample, truth
    )
    assert abs(short) < cost + z_bound() * error


WEIGHTS, CENTRES = np.array([0.2, 0.5, 0.3]), np.array([-4.0, 0.0, 3.0])


def test_holds_p_of_x_is_the_sum_over_z(rng, false_alarm):
    """The post: p(x) = sum_z p(x | z) p(z). Draws of z and then of x follow that sum."""
    x = rng.normal(CENTRES[rng.choice(3, 20_000, p=WEIGHTS)])
    assert kstest(x, lambda x: norm.cdf(x[:, None], CENTRES) @ WEIGHTS).pvalue > false_alarm


def test_corrected_the_sum_over_z_is_a_mixture_and_no_product_of_two_distributions():
    """The post: a multiplication of two simple distributions. A product of Gaussians is one Gaussian; the sum has a mode each."""
    components = norm.pdf(Z[:, None], CENTRES)
    product = components[:, 0] * components[:, 2]
    assert num_modes(components @ WEIGHTS) == 3
    exact(product / (product.sum() * H), norm.pdf(Z, -0.5, 0.5**0.5))


def test_corrected_p_of_x_is_the_models_and_the_datas_only_if_the_model_is_right():
    """The post: the data distribution itself is that sum. Data from elsewhere score their own entropy less a KL divergence."""
    data, model = norm.logpdf(Z, 1, 1.5), np.log(norm.pdf(Z[:, None], CENTRES) @ WEIGHTS)
    entropy, divergence = 0.5 * np.log(2 * np.pi * np.e * 1.5**2), (np.exp(data) * (data - model)).sum() * H
    exact((np.exp(data) * model).sum() * H, -entropy - divergence)
    assert divergence > 0.1


def test_holds_the_cluster_of_a_point_is_a_latent_category():
    """The post: in the picture of three clusters z is the colour of a point. Bayes finds the three groups: who is with whom."""
    z = labelled()
    together = np.array([softmax(log_joint(z)) @ (z[:, [i]] == z) for i in range(len(Y))])
    group = np.array([0] * 3 + [1] * 4 + [2] * 3)
    np.testing.assert_array_equal(together > 0.99, group[:, None] == group)


def test_corrected_standard_gaussian_means_identity_covariance():
    """The post: standard, with variance Sigma^2. Nothing is lost by the identity, for the decoder takes up any other: w L."""
    covariance, w, x = np.array([[2.0, 0.6], [0.6, 0.5]]), np.array([[1.0, -2.0], [0.5, 1.0], [0.0, 3.0]]), np.array([1.0, -1.0, 2.0])
    absorbed = w @ np.linalg.cholesky(covariance)
    assert not np.allclose(covariance, np.eye(2))
    p = [multivariate_normal.logpdf(x, cov=m @ c @ m.T + np.eye(3)) for m, c in [(w, covariance), (absorbed, np.eye(2)), (w, np.eye(2))]]
    exact(p[0], p[1])
    assert abs(p[0] - p[2]) > 0.1


def test_corrected_for_a_gaussian_z_the_sum_is_an_integral():
    """The post: a sum over z, of a Gaussian z. Summed on a grid the density comes out 1/h times too large: the sum needs its dz."""
    x, integral = 0.7, norm.pdf(0.7, 0, 2**0.5)
    for h in (0.1, 0.01):
        z = np.arange(-12, 12, h)
        total = (norm.pdf(x, z) * norm.pdf(z)).sum()
        exact([total * h, total / integral], [integral, 1 / h], 1e-9)


def test_holds_p_of_x_given_z_is_simple_and_p_of_x_is_not():
    """The post: given z, x is normal, with a mean and variance from a network. Excess kurtosis 0, but p(x)'s is not."""
    mean, variance = 2 * np.tanh(1.5 * Z), np.exp(np.sin(Z))
    given = np.array(
        [quad(lambda x, i=i: (x - mean[i]) ** 4 * norm.pdf(x, mean[i], variance[i] ** 0.5), -40, 40)[0] for i in (2_000, 3_100)]
    )
    exact(given, 3 * variance[[2_000, 3_100]] ** 2, 1e-7)
    p = np.exp(LOG_PRIOR) * H
    second, fourth = (
        p @ (mean**2 + variance) - (p @ mean) ** 2,
        p @ ((mean - p @ mean) ** 4 + 6 * (mean - p @ mean) ** 2 * variance + 3 * variance**2),
    )
    assert abs(fourth / second**2 - 3) > 0.3


def test_holds_the_standard_gaussian_prior_has_one_mode():
    """The post: the prior is unimodal. Yes."""
    assert num_modes(norm.pdf(Z)) == 1


def test_corrected_a_unimodal_prior_makes_a_multimodal_x_through_a_non_linear_decoder():
    """The post: so it fits many modes badly. No: x = 5 tanh(10 z) + .5 eps has two; only a linear decoder makes one."""
    x = np.arange(-8, 8, 0.05)
    density = (norm.pdf(x[:, None], 5 * np.tanh(10 * Z), 0.5) * norm.pdf(Z)).sum(1) * H
    assert num_modes(density) == 2
    assert density[np.abs(x) < 2].max() < 0.1 * density.max()
    assert num_modes((norm.pdf(x[:, None], 5 * Z, 0.5) * norm.pdf(Z)).sum(1) * H) == 1


def test_corrected_the_prior_needs_no_training_since_a_decoder_can_make_any_distribution_of_it(rng, false_alarm):
    """The post: the prior holds no knowledge of the data. It need not: F^-1(Phi(z)) has the distribution F, here gamma with shape 0.5."""
    assert kstest(gamma.ppf(norm.cdf(rng.normal(size=20_000)), 0.5), gamma(0.5).cdf).pvalue > false_alarm


# Posterior distribution


def test_holds_bayes_updates_the_prior_to_the_posterior():
    """The post: p(z | x) = p(x | z) p(z) / p(x). On a grid, against the conjugate closed form N(x/2, 1/2)."""
    x = 1.4
    exact(norm.pdf(x, Z) * norm.pdf(Z) / norm.pdf(x, 0, 2**0.5), norm.pdf(Z, x / 2, 0.5**0.5))


def test_holds_the_joint_is_likelihood_times_prior():
    """The post: p(z, x) = p(x | z) p(z). It is a bivariate Gaussian, written down without either factor."""
    z, x = np.meshgrid(np.linspace(-3, 3, 9), np.linspace(-3, 3, 9))
    joint = multivariate_normal.pdf(np.stack([z, x], -1), cov=[[1, 1], [1, 2]])
    exact(norm.pdf(x, z) * norm.pdf(z), joint, 1e-14)


def test_holds_the_evidence_is_the_integral_of_the_joint_over_the_latent():
    """The post: p(x) = integral of p(x | z) p(z) dz. By adaptive quadrature: the closed form N(x; 0, 2), and the running model's grid."""
    area, _ = quad(lambda z: norm.pdf(1.4, z) * norm.pdf(z), -12, 12, epsabs=1e-13)
    exact(area, norm.pdf(1.4, 0, 2**0.5), 1e-12)
    exact(areas(), LOG_EVIDENCE)


def test_holds_a_discrete_latent_is_summed():
    """The post: or by summing, if z is discrete. The sum over z of p(x, z) integrates over x to 1, and the posteriors of z sum to 1."""
    joint = norm.pdf(Z[:, None], CENTRES) * WEIGHTS
    exact(joint.sum() * H, 1)
    exact((joint / joint.sum(1, keepdims=True)).sum(1), 1)


def test_holds_a_grid_grows_exponentially_with_the_dimension_of_z():
    """The post: cost rises rapidly with the dimension. A product rule takes g^D values, here for E exp(-(sum z)^2 / 2) = (1 + D)^-1/2."""
    t, w = np.polynomial.hermite_e.hermegauss(30)
    total, weights = np.zeros(1), np.ones(1)
    for dim in (1, 2, 3, 4):
        total, weights = np.add.outer(total, t).ravel(), np.multiply.outer(weights, w / w.sum()).ravel()
        assert total.size == 30**dim
        exact((np.exp(-0.5 * total**2) * weights).sum(), (1 + dim) ** -0.5, 1e-4)


def test_corrected_a_high_dimension_alone_does_not_make_the_evidence_intractable():
    """The post: the integral is intractable. In 1,000 dimensions that mean is one determinant; a z for each point, one integral each."""
    exact(-0.5 * np.linalg.slogdet(np.eye(1_000) + 1)[1], -0.5 * np.log(1_001), 1e-8)
    both = logsumexp((LOG_LIK[0] + LOG_PRIOR).T[::10] + (LOG_LIK[1] + LOG_PRIOR)[:, ::10]) + 2 * np.log(10 * H)
    exact(both, LOG_EVIDENCE[:2].sum(), 1e-9)


def test_holds_ten_points_in_three_clusters_have_59049_assignments():
    """The post: K^n = 3^10 = 59,049. Listed, and no two alike."""
    assert len(np.unique(labelled(), axis=0)) == 3**10 == 59_049


def test_holds_the_sum_over_all_assignments_is_the_evidence():
    """The post: each of them must be computed. With them all, log p(x) is this number."""
    exact(logsumexp(log_joint(labelled())), -26.362466087635834, 1e-11)


def test_corrected_only_the_partitions_matter():
    """The post: 59,049 of them. Names of clusters change no density: 9,842 partitions, each as often as it can be named, give the same."""
    z = partitions()
    assert len(z) == 9_842
    assert names(z).sum() == 3**10
    exact(logsumexp(log_joint(z), b=names(z)), -26.362466087635834, 1e-11)


def test_corrected_given_an_assignment_the_integral_over_the_means_is_k_closed_forms():
    """The post: a K-dimensional integral each. A three-dimensional sum for one assignment equals the product of three formulas."""
    mu, h = np.linspace(-20, 20, 161, retstep=True)
    axes = [norm.pdf(mu, 0, PRIOR_VARIANCE**0.5) * norm.pdf(rows[:, None], mu).prod(0) for rows in (Y[:4], Y[4:7], Y[7:])]
    volume = np.einsum("a,b,c->abc", *axes).sum() * h**3
    closed = sum(log_cluster(len(rows), rows.sum()) for rows in (Y[:4], Y[4:7], Y[7:])) - 0.5 * (Y**2).sum() - 5 * np.log(2 * np.pi)
    exact(np.log(volume), closed, 1e-9)
    exact(log_joint(np.array([[0] * 4 + [1] * 3 + [2] * 3])), closed - len(Y) * np.log(K))


def test_corrected_one_integral_over_the_means_replaces_all_assignments():
    """The post: an integral for each assignment. With labels summed out point by point, one over three means is enough."""
    mu, h = np.linspace(-20, 20, 161, retstep=True)
    log_p = np.zeros((161, 161, 161))
    for p in norm.pdf(Y[:, None], mu):
        log_p += np.log((p[:, None, None] + p[:, None] + p) / K + 1e-300)
    prior = norm.logpdf(mu, 0, PRIOR_VARIANCE**0.5)
    exact(logsumexp(log_p + prior[:, None, None] + prior[:, None] + prior) + 3 * np.log(h), -26.362466087635834, 1e-7)
