"""The importance-weighted bound with a doubly reparameterised gradient, whose signal does not drown as the number of draws grows.

Tucker, Lawson, Gu and Maddison 2019, Doubly reparameterized gradient estimators for Monte Carlo objectives, arXiv 1810.04152. The bound
is that of Burda, Grosse and Salakhutdinov 2016, arXiv 1509.00519.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from numpyro.infer import ELBO

from vipatterns.objectives.particles import Particles, is_path


class DoublyReparameterized(ELBO):
    """Minus L_K = E[log(1/K sum_k p(x, z_k) / q(z_k))], a bound that is tighter the larger K, and no ELBO for K > 1.

    With weights w_k normalised over the draws, the path of draw k counts w_k^2 and the direct gradient of log p (the model's own
    parameters) w_k. The bound is taken row by row of the plates that hold every site, whose scale stays outside the logarithm;
    any other scale is part of the weight. With one draw it is `StickingTheLanding`.

    Args:
        num_particles: K, draws of the guide for one evaluation of the bound.
        vectorize_particles: as in numpyro.infer.ELBO.
    """

    def __init__(self, num_particles: int = 8, vectorize_particles: bool | Callable = True):
        super().__init__(num_particles, vectorize_particles)

    def __repr__(self):
        return f"DoublyReparameterized(num_particles={self.num_particles})"

    def loss(self, rng_key, param_map, model, guide, *args, **kwargs):
        """Minus the bound in nats, a scalar, with that gradient.

        Raises:
            InputError: a draw has no reparameterised sampler, or a plate is subsampled that does not hold every site.
        """
        plate_key, rng_key = jax.random.split(rng_key)
        particles = Particles(model, guide, args, kwargs, plate_key)
        keys = jax.random.split(rng_key, self.num_particles)
        values = self.vectorize_particles_fn(lambda key: particles.draw(key, param_map, is_path), keys)

        def log_weights(params, values):
            def one(pair):
                key, drawn = pair
                log_p, log_q, scale = particles.weigh(key, drawn, params, fixed=True).rows
                return log_p - log_q, jnp.asarray(scale)

            log_w, scale = self.vectorize_particles_fn(one, (keys, values))
            return log_w, scale[0]

        held = jax.tree.map(jax.lax.stop_gradient, (param_map, values))
        log_w, pull, scale = jax.vjp(log_weights, *held, has_aux=True)
        weights = jax.nn.softmax(log_w, axis=0)
        direct, _ = pull(scale * weights)
        _, path = pull(scale * weights**2)
        bound = scale * (logsumexp(log_w, axis=0) - jnp.log(self.num_particles)).sum()
        # Linear in parameters and draws: its gradient is what was pulled back, its value the bound.
        pieces = zip(*map(jax.tree.leaves, ((param_map, values), held, (direct, path))), strict=True)
        return -(bound + sum(((x - h) * g).sum() for x, h, g in pieces))
