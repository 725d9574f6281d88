"""The divergence KL(p || q) of the guide from the posterior, which covers what reverse KL leaves out.

Its gradient -E_p[d log q] is taken from draws of q by self-normalised importance weights: the wake-phase update of reweighted
wake-sleep, Bornschein and Bengio 2015, arXiv 1406.2751.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from numpyro.infer import ELBO

from vipatterns.objectives.particles import Particles


class ForwardKL(ELBO):
    """KL(p(z | x) || q(z)) as K draws of q see it; the model's own parameters climb log p(x) as the same draws see it.

    The loss is the KL of the self-normalised weights from even ones, in nats: between 0 and log K, and no ELBO. Its gradient is unbiased
    for the expectation of the K-draw estimate, -sum_k w_k d(log q + log p), which differs from the gradient at K = infinity by a term
    that vanishes as 1/K. No draw is differentiated, so that any guide will do, also a discrete one. Rows of plates that hold every site
    are weighed one by one; scales are treated as in `DoublyReparameterized`.

    Args:
        num_particles: K.
        vectorize_particles: as in numpyro.infer.ELBO.
    """

    can_infer_discrete = True

    def __init__(self, num_particles: int = 32, vectorize_particles: bool | Callable = True):
        super().__init__(num_particles, vectorize_particles)

    def __repr__(self):
        return f"ForwardKL(num_particles={self.num_particles})"

    def loss(self, rng_key, param_map, model, guide, *args, **kwargs):
        """The divergence in nats, a scalar.

        Raises:
            InputError: a plate is subsampled that does not hold every site.
        """
        plate_key, rng_key = jax.random.split(rng_key)
        particles = Particles(model, guide, args, kwargs, plate_key)

        def one(key):
            log_p, log_q, scale = particles.weigh(key, particles.draw(key, param_map, lambda site: False), param_map).rows
            return log_p, log_q, jnp.asarray(scale)

        log_p, log_q, scale = self.vectorize_particles_fn(one, jax.random.split(rng_key, self.num_particles))
        log_w = jax.lax.stop_gradient(jax.nn.log_softmax(log_p - log_q, axis=0))
        weights, scale = jnp.exp(log_w), scale[0]
        divergence = scale * (jnp.where(weights > 0, weights * log_w, 0.0).sum() + log_w[0].size * jnp.log(self.num_particles))
        surrogate = -scale * (weights * (log_q + log_p)).sum()
        return divergence + surrogate - jax.lax.stop_gradient(surrogate)
