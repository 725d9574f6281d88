"""Labels that may be exchanged: a mixture is compared up to their order, and nothing else is rearranged."""

import json

import jax
import numpy as np
import pytest
from synthetic import fit_of, normal

from vipatterns.comparison import side_by_side
from vipatterns.methods.nuts import NUTS
from vipatterns.relabelling import _settle

KEY = jax.random.key(0)
DIMS = {"dims": {"mu": ["component"], "weight": ["component"], "order": ["component"]}}


def mixture(seed, permute, num=500, site_shift=0.0):
    """Components at -5, 0, 5 with weights .5, .3, .2, their labels permuted by permute(chain, draw), and a global site."""
    rng = np.random.default_rng(seed)
    mu, weight = normal(rng, [-5, 0, 5], 0.5, num), normal(rng, [0.5, 0.3, 0.2], 0.02, num)
    for chain, draw in np.ndindex(4, num):
        order = permute(rng, chain)
        mu[chain, draw], weight[chain, draw] = mu[chain, draw][order], weight[chain, draw][order]
    return {"mu": mu, "weight": weight, "sigma": normal(rng, site_shift, 1.0, num)}


def fixed(*order):
    return lambda rng, chain: list(order)


def marked(draws, axes=None, **settings):
    fit = fit_of(draws, **DIMS, **settings)
    fit.idata.attrs["exchangeable"] = json.dumps({"mu": 0, "weight": 0} if axes is None else axes)
    return fit


def test_fits_with_other_labels_agree():
    fits = {"A": marked(mixture(0, fixed(2, 0, 1))), "NUTS": marked(mixture(1, fixed(1, 2, 0)), method=NUTS(), resampled=False)}
    compared = side_by_side(KEY, fits)
    assert compared.relabelled == ("mu", "weight")
    assert compared.verdicts["A"].standing == "safe"
    assert "Labels of mu and weight" in repr(compared)
    # the reference's own labels stay
    np.testing.assert_array_equal(compared.fits["NUTS"].posterior["mu"], fits["NUTS"].posterior["mu"])


def test_without_a_mark_nothing_is_rearranged():
    fits = {"A": marked(mixture(0, fixed(2, 0, 1)), {}), "NUTS": marked(mixture(1, fixed(1, 2, 0)), {}, method=NUTS(), resampled=False)}
    compared = side_by_side(KEY, fits)
    assert compared.relabelled == ()
    assert compared.agreement["A"].mean_error > 5


def test_a_reference_over_all_labellings_is_arranged_draw_by_draw():
    anyhow = mixture(1, lambda rng, chain: rng.permutation(3), 2000)
    reference = {name: value.reshape(-1, *value.shape[2:]) for name, value in anyhow.items()}
    compared = side_by_side(KEY, {"A": marked(mixture(0, fixed(2, 0, 1)))}, reference=reference)
    assert compared.verdicts["A"].standing == "safe"
    assert sorted(compared.agreement["A"].scalars.reference_mean[:3].round()) == [-5, 0, 5]


def test_sites_are_rearranged_together():
    compared = side_by_side(KEY, {"A": marked(mixture(0, lambda rng, chain: np.roll(range(3), chain)))})
    draws = compared.fits["A"].posterior
    by_component = {
        round(float(m)): float(w) for m, w in zip(draws["mu"].mean(("chain", "draw")), draws["weight"].mean(("chain", "draw")), strict=True)
    }
    assert by_component == pytest.approx({-5: 0.5, 0: 0.3, 5: 0.2}, abs=0.01)


def test_sites_that_share_the_dim_follow():
    draws = mixture(0, fixed(2, 0, 1))
    other = mixture(1, fixed(0, 1, 2))
    for d in (draws, other):
        d["order"] = 10 * d["mu"]
    compared = side_by_side(KEY, {"A": marked(draws), "NUTS": marked(other, method=NUTS(), resampled=False)})
    assert compared.relabelled == ("mu", "weight", "order")
    assert compared.verdicts["A"].standing == "safe"


def test_what_is_wrong_stays_wrong():
    wrong = mixture(0, fixed(2, 0, 1), site_shift=1.0)
    wrong["mu"] += 1.0
    compared = side_by_side(KEY, {"A": marked(wrong), "NUTS": marked(mixture(1, fixed(0, 1, 2)), method=NUTS(), resampled=False)})
    assert compared.agreement["A"].mean_error == pytest.approx(2, abs=0.3)
    assert compared.agreement["A"].scalars.loc["sigma"].mean_error == pytest.approx(1, abs=0.1)


def test_the_pivot_is_the_mean_of_the_draws_that_it_arranges(rng_key):
    """A wide component and a narrow one that overlap: the first draw alone is a poor pivot."""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(rng_key)))
    features = np.stack([rng.normal(0, 3, 2000), rng.normal(2, 0.2, 2000)], axis=1)[..., None]
    features = np.take_along_axis(features, rng.permuted(np.tile([[0], [1]], (2000, 1, 1)), axis=1), axis=1)
    pivot = _settle(features)
    arranged = np.take_along_axis(features, pivot.arrange(features)[..., None], axis=1)
    np.testing.assert_allclose(arranged.mean(0), pivot.mean, atol=1e-12)
    np.testing.assert_allclose(arranged.std(0), pivot.sd, atol=1e-12)
    assert sorted(pivot.sd.ravel())[0] == pytest.approx(0.2, rel=0.3)
