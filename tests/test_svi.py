"""The SVI loop on losses with known minima: what it says of itself is true, and why it stopped is said for every way to stop."""

import contextlib
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vipatterns import svi
from vipatterns.density import Clock

OPTIMUM = np.array([1.5, -0.7, 0.2])


def noisy_quadratic(params, rng_key, context, arrays):
    """Minimum at OPTIMUM, 0; gradient noise of sd .5 in every direction."""
    p = params["p"]
    return 0.5 * jnp.sum((p - OPTIMUM) ** 2) + 0.5 * p @ jax.random.normal(rng_key, p.shape)


def uneven(params, rng_key, context, arrays):
    """The same with curvatures 1, .5 and .25: coordinates are never perfect."""
    p = params["p"]
    return 0.5 * jnp.sum(jnp.array([1.0, 0.5, 0.25]) * (p - OPTIMUM) ** 2) + 0.1 * p @ jax.random.normal(rng_key, p.shape)


def two_wells(params, rng_key, context, arrays):
    """Minima at +2 and -2, equally deep."""
    p = params["p"]
    return jnp.sum((p**2 - 4) ** 2 / 16) + 0.05 * p @ jax.random.normal(rng_key, p.shape)


def cliff(params, rng_key, context, arrays):
    """Downhill to the right, and NaN beyond .5."""
    p = params["p"][0]
    return jnp.where(p > 0.5, jnp.nan, -p)


def nan_everywhere(params, rng_key, context, arrays):
    return params["p"][0] * jnp.nan


def optimise(loss, rng_key, *, start=None, num_restarts=4, **settings):
    start = np.asarray(jax.random.normal(rng_key, (num_restarts, 3))) if start is None else start
    with jax.enable_x64(True):
        options = {"num_steps": 20_000, "learning_rate": 0.1, "progress": False, **settings}
        params = {"p": jnp.asarray(start, float)}
        found = svi.optimise(jax.random.fold_in(rng_key, 1), loss, params, jnp.zeros(()), (), Clock(), **options)
        return replace(found, params={"p": np.asarray(found.params["p"])})


@pytest.mark.parametrize("loss", [noisy_quadratic, uneven])
def test_converged_means_near_the_minimum(loss, rng_key):
    """Its own tolerance is .02 for the Monte Carlo error of the averages: four restarts, three parameters, and none off by .1."""
    found = optimise(loss, rng_key)
    assert found.stopped_because.startswith("converged: restarts agree within")
    assert np.abs(found.params["p"] - OPTIMUM).max() < 0.1
    assert np.abs(found.params["p"].mean(0) - OPTIMUM).max() < 0.06
    assert found.rhat < 1.2
    assert found.losses.shape == (4, found.num_steps)
    np.testing.assert_allclose(found.elbos, -found.losses[:, -found.num_steps // 8 :].mean(1), atol=0.5)


@pytest.mark.slow
def test_converged_means_near_the_minimum_under_many_keys(rng_key):
    worst = []
    for key in jax.random.split(rng_key, 30):
        found = optimise(uneven, key)
        if found.stopped_because.startswith("converged: "):
            worst.append(np.abs(found.params["p"] - OPTIMUM).max())
    assert len(worst) > 20
    assert max(worst) < 0.15
    assert np.median(worst) < 0.06


def test_the_step_budget_is_kept_and_told(rng_key):
    found = optimise(uneven, rng_key, num_steps=150)
    assert found.num_steps == 200  # whole chunks
    assert found.stopped_because.startswith("step budget: 200 steps were not enough (R-hat ")
    assert "try num_steps=600" in found.stopped_because


def test_restarts_that_differ_stop_on_the_elbo_alone(rng_key):
    found = optimise(two_wells, rng_key, start=2.0 * np.array([[1, 1, 1], [1, -1, 1], [-1, 1, -1], [-1, -1, -1]]))
    assert found.stopped_because.startswith("converged on the ELBO alone: the restarts' parameters differ (R-hat ")
    assert found.stopped_because.endswith("they agree")
    np.testing.assert_allclose(np.abs(found.params["p"]), 2, atol=0.15)


def test_restarts_that_end_at_different_heights_say_so(rng_key):
    def tilted(params, key, context, arrays):
        return two_wells(params, key, context, arrays) - 0.2 * params["p"].sum()

    found = optimise(tilted, rng_key, start=2.0 * np.array([[1, 1, 1], [-1, -1, -1]]), learning_rate=0.02)
    assert re.search(r"converged on the ELBO alone.*the restarts end between -\d+\.\d and \d+\.\d", found.stopped_because)


def test_a_loss_that_turns_nan_is_told_with_its_step(rng_key):
    """Plain gradient steps of .01 from 0 pass .5 between steps 50 and 51; chunks of 20: 40 steps are kept, and half the rate is tried."""
    found = optimise(
        cliff, rng_key, start=np.zeros((2, 1)), optimizer=optax.identity(), learning_rate=0.01, chunk_size=20, num_steps=100_000
    )
    assert found.stopped_because.startswith("diverged: the loss was NaN or infinite at step ")
    assert "bound its scales away from zero" in found.stopped_because
    step = int(re.search(r"at step (\d+)", found.stopped_because)[1])
    assert found.num_steps <= step < found.num_steps + 20
    assert np.isfinite(found.losses).all()
    assert found.losses.shape == (2, found.num_steps)
    assert (found.params["p"] <= 0.5).all()
    assert found.num_steps > 40  # a smaller rate went further


def test_the_first_bad_step_is_the_one_named(rng_key, monkeypatch):
    monkeypatch.setattr(svi, "MAX_ROLLBACKS", 0)
    found = optimise(cliff, rng_key, start=np.zeros((2, 1)), optimizer=optax.identity(), learning_rate=0.01, chunk_size=20)
    assert re.search(r"at step 5[01],", found.stopped_because)
    assert found.num_steps == 40


def test_nothing_finite_ever(rng_key):
    found = optimise(nan_everywhere, rng_key)
    assert found.stopped_because.startswith("diverged: the loss was NaN or infinite at step 0, and again at each of 5 smaller")
    assert found.num_steps == 0
    assert np.isfinite(found.params["p"]).all()


@pytest.mark.parametrize("after", [1, 3])
def test_ctrl_c_keeps_what_was_reached(after, rng_key, monkeypatch):
    seen = []

    @contextlib.contextmanager
    def interrupting(title, num_steps, progress):
        def report(step, what):
            seen.append(step)
            if len(seen) == after:
                raise KeyboardInterrupt

        yield report

    monkeypatch.setattr(svi, "reporting", interrupting)
    found = optimise(noisy_quadratic, rng_key)
    assert found.stopped_because == f"interrupted: Ctrl-C after {100 * after} steps; what was reached by then is kept"
    assert found.num_steps == 100 * after
    assert found.losses.shape == (4, 100 * after)
    assert np.abs(found.params["p"] - OPTIMUM).max() < 1


def test_ctrl_c_before_anything_is_finished_goes_through(rng_key, monkeypatch):
    @contextlib.contextmanager
    def interrupting(title, num_steps, progress):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(svi, "reporting", interrupting)
    with pytest.raises(KeyboardInterrupt):
        optimise(noisy_quadratic, rng_key)


def test_another_optimizer_is_used(rng_key):
    """With updates of zero nothing moves, whatever the loss."""
    start = np.asarray(jax.random.normal(rng_key, (4, 3)))
    found = optimise(noisy_quadratic, rng_key, start=start, optimizer=optax.set_to_zero(), num_steps=100)
    np.testing.assert_allclose(found.params["p"], start)


def test_restarts_are_independent_and_keys_matter(rng_key):
    same = np.tile([[0.3, 0.3, 0.3]], (4, 1))
    one, again = (optimise(noisy_quadratic, rng_key, start=same, num_steps=100) for _ in range(2))
    other = optimise(noisy_quadratic, jax.random.fold_in(rng_key, 7), start=same, num_steps=100)
    np.testing.assert_array_equal(one.losses, again.losses)
    assert np.ptp(one.losses[:, 50:], axis=0).min() > 0
    assert not np.allclose(one.losses, other.losses)


def test_kept_restarts_are_within_ten_nats():
    elbos = np.array([-20.0, -9.0, np.nan, -11.0, -np.inf, -1.5])
    np.testing.assert_array_equal(svi.kept_restarts(elbos), [1, 3, 5])


@pytest.mark.parametrize(("evaluations", "expected"), [(1, 100), (10**5, 100), (3 * 10**6, 60), (10**9, 20)])
def test_chunks_are_shorter_where_a_step_is_dear(evaluations, expected):
    assert svi.chunk_size(evaluations) == expected
    assert expected % svi.RECORDS == 0


def coordinates_that_move(params, rng_key, context, arrays):
    """In units of context: the minimum lies 300 units away at first, at zero once the coordinates are taken anew."""
    return 0.5 * jnp.sum((context["loc"] + params["p"] - 300.0) ** 2) + 0.5 * params["p"] @ jax.random.normal(rng_key, (3,))


def test_coordinates_are_taken_anew(rng_key):
    calls = []

    def refresh(params, elbos, context):
        assert elbos.shape == (4,)
        locs = context["loc"] + np.asarray(params["p"])
        calls.append(locs.mean())
        loc = locs[int(np.argmax(elbos))]
        return {"p": jnp.asarray(locs - loc)}, {"loc": jnp.asarray(loc)}

    with jax.enable_x64(True):
        start = {"p": jax.random.normal(rng_key, (4, 3), dtype=float)}
        found = svi.optimise(
            rng_key,
            coordinates_that_move,
            start,
            {"loc": jnp.zeros(3)},
            (),
            Clock(),
            num_steps=20_000,
            learning_rate=0.1,
            refresh=refresh,
            progress=False,
        )
        where = np.asarray(found.context["loc"] + found.params["p"])
    assert found.stopped_because.startswith("converged: ")
    assert len(calls) > 1
    assert np.abs(where - 300).max() < 0.1
