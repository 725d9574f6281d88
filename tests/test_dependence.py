"""What a program is said to depend on: never less than it does, and no more where it is written row by row."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from vipatterns.objectives.dependence import dependence, downstream

TABLE = jnp.arange(12.0).reshape(3, 4)
SQUARE = jnp.arange(16.0).reshape(4, 4)
ROWS = frozenset({(0, 0)})
NONE = frozenset()

PROGRAMS = {
    "elementwise": (lambda x: jnp.exp(x) * jnp.arange(4.0) - x**2, ROWS),
    "scalar": (lambda x: x * 3.0 + jnp.asarray(2.0), ROWS),
    "where": (lambda x: jnp.where(x > 0.3, x, 0.0), ROWS),
    "jit": (lambda x: jax.jit(lambda y: jnp.logaddexp(y, 1.0))(x), ROWS),
    "log sigmoid": (lambda x: jax.nn.softplus(x) + jax.nn.relu(x), ROWS),
    "column": (lambda x: (x[:, None] * jnp.arange(3.0)).sum(-1), ROWS),
    "column's maximum": (lambda x: jax.nn.logsumexp(x[:, None] * jnp.arange(3.0), -1), ROWS),
    "stacked in front": (lambda x: jnp.stack([x, 2 * x]), frozenset({(0, 1)})),
    "moved": (lambda x: (x[:, None] * jnp.arange(3.0)).T, frozenset({(0, 1)})),
    "reshaped": (lambda x: x.reshape(4, 1), ROWS),
    "matrix": (lambda x: jnp.stack([x, 2 * x], -1) @ jnp.ones((2, 3)), ROWS),
    "first column": (lambda x: jnp.stack([x, 2 * x], -1)[:, 0], ROWS),
    "normal": (lambda x: dist.Normal(x, 2.0).log_prob(1.0), ROWS),
    "masked": (lambda x: dist.Normal(x, 2.0).mask(np.array([True, False, True, True])).log_prob(1.0), ROWS),
    "event": (lambda x: dist.Normal(jnp.stack([x, x**2], -1), 2.0).to_event(1).log_prob(jnp.ones(2)), ROWS),
    "sum": (lambda x: x.sum(), NONE),
    "mean taken off": (lambda x: x - x.mean(), NONE),
    "matrix of rows": (lambda x: SQUARE @ x, NONE),
    "running sum": (lambda x: jnp.cumsum(x), NONE),
    "shifted": (lambda x: jnp.concatenate([x[1:], x[:1]]), NONE),
    "sorted": (lambda x: jnp.sort(x), NONE),
    "outer": (lambda x: x[:, None] + x[None], NONE),
    "backwards": (lambda x: x[::-1] + x, NONE),
    "folded": (lambda x: x.reshape(2, 2), NONE),
    "permuted": (lambda x: x[jnp.array([1, 0, 3, 2])], NONE),
    "scan": (lambda x: jax.lax.scan(lambda c, y: (c + y, c * y), 0.0, x)[1], NONE),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_what_is_claimed(name):
    function, pairs = PROGRAMS[name]
    assert dependence(lambda d: {"out": function(d["x"])}, {"x": jnp.ones(4)}) == {"out": {"x": pairs}}


@pytest.mark.parametrize("name", PROGRAMS)
def test_what_is_claimed_is_true(name):
    """One row is changed: nothing may change in another."""
    function, _ = PROGRAMS[name]
    x = jnp.array([0.1, 0.7, -0.4, 1.3])
    pairs = dependence(lambda d: {"out": function(d["x"])}, {"x": x})["out"]["x"]
    for row in range(4):
        changed = np.asarray(function(x) != function(x.at[row].add(0.37)))
        for _, axis in pairs:
            assert not np.delete(changed, row, axis).any()


CHOICES = {
    "a table": lambda z: TABLE[:, 0][z],
    "a table's row": lambda z: TABLE[z].sum(-1),
    "a category": lambda z: dist.Categorical(logits=TABLE.T).log_prob(z),
    "a mixture": lambda z: dist.Normal(TABLE[:, 1][z], 1.0).log_prob(jnp.arange(4.0)),
    "a flip": lambda z: dist.Bernoulli(0.3).log_prob(z),
}


@pytest.mark.parametrize("name", CHOICES)
def test_what_an_index_picks_is_its_own(name):
    z = jnp.array([0, 1, 1, 0])
    assert dependence(lambda d: {"out": CHOICES[name](d["z"])}, {"z": z}) == {"out": {"z": ROWS}}


def test_a_table_that_is_picked_from_is_shared():
    z = jnp.array([0, 2, 1, 0])
    found = dependence(lambda d: {"out": d["table"][d["z"]]}, {"table": jnp.ones(3), "z": z})
    assert found == {"out": {"table": NONE, "z": ROWS}}


def test_what_is_not_used_is_left_out():
    found = dependence(lambda d: {"a": d["x"] * 2, "b": jnp.ones(3)}, {"x": jnp.ones(4), "y": jnp.ones(2)})
    assert found == {"a": {"x": ROWS}, "b": {}}


def test_a_cost_belongs_to_every_draw_upstream():
    """x -> y row by row -> s for all; a cost of s is every row's, one of y its own row's, one of x no business of y."""
    scores = {"x": {"x": ROWS}, "y": {"x": ROWS, "y": ROWS}, "s": {"y": NONE, "s": NONE}}
    costs = {"of x": {"x": ROWS}, "of y": {"y": ROWS}, "of s": {"s": NONE}, "of x and s": {"x": ROWS, "s": NONE}}
    assert downstream(costs, scores) == {
        "x": {"of x": ROWS, "of y": ROWS, "of s": NONE, "of x and s": NONE},
        "y": {"of y": ROWS, "of s": NONE, "of x and s": NONE},
        "s": {"of s": NONE, "of x and s": NONE},
    }
