"""The latents that `numpyro.sample(obs_mask=)` makes: one for every row, used where the row was not seen."""

import jax
import jax.numpy as jnp
from numpyro.distributions import Distribution, ExpandedDistribution, MaskedDistribution, Normal
from numpyro.distributions.transforms import biject_to


def spared(fn: Distribution) -> Distribution:
    """A masked distribution that is proper where it was masked, and depends on no other latent there.

    NumPyro leaves the masked elements free to go anywhere. With their own density they would be tied to the latents that it has for
    parameters, and a guide of independent factors would pay for ties that mean nothing.
    """
    fn, used = _unmasked(fn)
    return fn if fn.is_discrete else Spared(fn, used)


def _unmasked(fn: Distribution) -> tuple[Distribution, jax.Array]:
    """What a masked distribution masks, and where it does not."""
    if not isinstance(fn, (MaskedDistribution, ExpandedDistribution)):
        return fn, jnp.array(True)
    inner, used = _unmasked(fn.base_dist)
    return inner.expand(fn.batch_shape), used & fn._mask if isinstance(fn, MaskedDistribution) else used


class Spared(Distribution):
    """`fn` where it is used; elsewhere a standard normal in unconstrained coordinates."""

    def __init__(self, fn: Distribution, used):
        self.fn, self.used = fn, used
        super().__init__(fn.batch_shape, fn.event_shape)

    @property
    def support(self):
        return self.fn.support

    @property
    def mean(self):
        return self.fn.mean

    def icdf(self, q):
        return self.fn.icdf(q)

    def sample(self, key, sample_shape=()):
        return self.fn.sample(key, sample_shape)

    def log_prob(self, value, intermediates=None):
        transform = biject_to(self.fn.support)
        z = transform.inv(value)
        standard = Normal().log_prob(z)
        standard = standard.sum(tuple(range(len(self.batch_shape), standard.ndim))) - transform.log_abs_det_jacobian(z, value)
        return jnp.where(self.used, self.fn.log_prob(value), standard)
