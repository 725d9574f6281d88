"""Sticking the landing: the reparameterised gradient of the ELBO without its score term, which vanishes on average.

Roeder, Wu and Duvenaud 2017, arXiv 1703.09194: the path derivative.
"""

from collections.abc import Callable

import jax
from numpyro.infer import ELBO

from vipatterns.objectives.particles import Particles, is_path


class StickingTheLanding(ELBO):
    """Minus the ELBO, whose gradient reaches log q through the draws alone: no variance at all where q is the posterior.

    The draws' own density is evaluated at the draws: a guide of transformed draws needs the inverse of its transforms (an inverse
    autoregressive flow takes as many passes for it as there are latents).

    Args:
        num_particles: draws of the guide a step.
        vectorize_particles: as in numpyro.infer.ELBO.
    """

    def __init__(self, num_particles: int = 1, vectorize_particles: bool | Callable = True):
        super().__init__(num_particles, vectorize_particles)

    def __repr__(self):
        return f"StickingTheLanding(num_particles={self.num_particles})"

    def loss(self, rng_key, param_map, model, guide, *args, **kwargs):
        """Minus the ELBO in nats, a scalar; its gradient is the path derivative.

        Raises:
            InputError: a draw has no reparameterised sampler.
        """
        plate_key, rng_key = jax.random.split(rng_key)
        particles = Particles(model, guide, args, kwargs, plate_key)

        def elbo(key):
            return particles.weigh(key, particles.draw(key, param_map, is_path), param_map, fixed=True).elbo

        return -self.vectorize_particles_fn(elbo, jax.random.split(rng_key, self.num_particles)).mean()
