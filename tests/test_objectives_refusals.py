"""What an estimator refuses, in a sentence, and how it is written."""

import enumerable as known
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest

import vipatterns as vip
from vipatterns.objectives import DoublyReparameterized, ForwardKL, ScoreFunction, StickingTheLanding


def some(*names):
    def program(batch=2):
        for name in names:
            numpyro.sample(name, dist.Normal(numpyro.param(f"m_{name}", 0.0), 1.0))

    return program


def count(batch=2):
    numpyro.sample("z", dist.Poisson(numpyro.param("rate", 1.0)))


EVERY = [ScoreFunction(2), StickingTheLanding(2), DoublyReparameterized(2), ForwardKL(2)]


@pytest.mark.parametrize("objective", EVERY, ids=lambda o: type(o).__name__)
def test_guides_that_do_not_fit_the_model(objective):
    key = jax.random.key(0)
    with pytest.raises(vip.InputError, match=r"latent sites: it lacks \['b'\], and the model has no \['c'\]"):
        objective.loss(key, {}, some("a", "b"), some("a", "c"))
    with pytest.raises(vip.InputError, match=r"The guide draws 'a' with shape \(\), the model with shape \(3,\)"):
        objective.loss(key, {}, lambda: numpyro.sample("a", dist.Normal(jnp.zeros(3), 1.0)), some("a"))


@pytest.mark.parametrize("objective", EVERY[1:3], ids=lambda o: type(o).__name__)
def test_a_draw_without_a_path(objective):
    with pytest.raises(vip.InputError, match=r"Site 'z' of the guide is drawn from Poisson.*ScoreFunction"):
        objective.loss(jax.random.key(0), {}, count, count)


@pytest.mark.parametrize("objective", EVERY[2:], ids=lambda o: type(o).__name__)
def test_a_bound_cannot_be_taken_from_some_of_the_rows_of_a_global_draw(objective):
    with pytest.raises(vip.InputError, match=r"Plate 'row' is subsampled and does not hold every site"):
        objective.loss(jax.random.key(0), {}, known.gaussian_model, known.gaussian_guide, 2)
    objective.loss(jax.random.key(0), {}, known.gaussian_model, known.gaussian_guide, 4)


@pytest.mark.parametrize("objective", [*EVERY, ScoreFunction(3, control_variate="optimal", reparameterize=True)], ids=repr)
def test_an_objective_is_written_as_it_is_made(objective):
    again = eval(repr(objective))
    assert {k: v for k, v in vars(again).items() if k != "vectorize_particles_fn"} == {
        k: v for k, v in vars(objective).items() if k != "vectorize_particles_fn"
    }


def test_settings_that_are_none():
    with pytest.raises(vip.InputError, match=r"control_variate must be one of none, running_mean, .*, got 'mean'"):
        ScoreFunction(control_variate="mean")
    with pytest.raises(vip.InputError, match=r"compares particles: num_particles must be 2 or more, got 1"):
        ScoreFunction(1)
    with pytest.raises(vip.InputError, match=r"give it objective.remembering\(guide\)"):
        ScoreFunction(control_variate="running_mean").loss(jax.random.key(0), {}, some("a"), some("a"))
