"""The proposal that a method weighs, looked at on a grid: its mass and moments beside those of its draws."""

import jax
import jax.numpy as jnp
import numpy as np

from vipatterns import certification

NUM_POINTS = 801
REACH = 14
"""Sds on both sides of the draws' mean that the grid covers."""
NUM_DRAWS = 20_000


def caught(monkeypatch, room):
    """A list that fills with the Proposal of each fit which the methods in `room` hand on to be certified."""
    proposals = []

    def certify(rng_key, method, target, proposal, *args, **options):
        proposals.append(proposal)
        return certification.certify(rng_key, method, target, proposal, *args, **options)

    monkeypatch.setattr(room, "certify", certify)
    return proposals


def check_density(proposal, rng_key, z_bound):
    """Of a proposal in two latents, each component: log q integrates to one, and its moments are those of the draws."""
    with jax.enable_x64(True):
        for i in proposal.components:
            draws = jax.vmap(proposal.draw, (0, None))(jax.random.split(jax.random.fold_in(rng_key, int(i)), NUM_DRAWS), i)
            centre, sds = draws.mean(0), draws.std(0)

            def density_at(u, i=i, centre=centre, sds=sds):
                return jnp.exp(proposal.log_q(centre + sds * u, i))

            axis = jnp.linspace(-REACH, REACH, NUM_POINTS)
            unit = jnp.stack(jnp.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
            mass = jax.lax.map(density_at, unit, batch_size=10_000) * sds.prod() * (axis[1] - axis[0]) ** 2
            assert abs(float(mass.sum()) - 1) < 1e-4
            moments = jnp.stack([unit[:, 0], unit[:, 1], unit[:, 0] ** 2, unit[:, 1] ** 2, unit[:, 0] * unit[:, 1]])
            on_grid, square = moments @ mass, moments**2 @ mass
            u = (draws - centre) / sds
            # centre and sds are of these draws, so that their own first and second moments are 0 and 1 with no error
            drawn = np.array([0, 0, 1, 1, float((u[:, 0] * u[:, 1]).mean())])
            errors = np.sqrt(np.asarray(square - on_grid**2) / NUM_DRAWS)
            assert (np.abs(np.asarray(on_grid) - drawn) < z_bound(5 * len(proposal.components)) * errors).all()
