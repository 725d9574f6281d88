"""Training of an amortised model: minibatches, held-out ELBO, early stopping."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpyro.infer import ELBO, SVI, Trace_ELBO
from numpyro.optim import optax_to_numpyro

from vipatterns import keys
from vipatterns.amortized.stream import Memory, Stream, parted
from vipatterns.amortized.weights import Pair
from vipatterns.density import precision
from vipatterns.draws import as_key
from vipatterns.errors import InputError
from vipatterns.programs import Clock
from vipatterns.progress import reporting

STEPS_A_CALL = 200
"""Most steps in one compiled call; between two calls progress is told and a checkpoint may be written."""
HELD_OUT_BATCH = 1_000
"""Rows of the held-out set that are weighed at once."""


@dataclass(frozen=True, eq=False, repr=False)
class Trained:
    """A trained model with its guide, at the epoch whose held-out ELBO was the highest."""

    pair: Pair
    """The model and the guide."""
    params: dict
    """numpyro.param site -> its value; the networks' are pytrees."""
    elbos: np.ndarray
    """(epoch,): minus the mean loss of its steps, nats a datum, on the rows that were trained on, while they changed."""
    held_out_elbos: np.ndarray
    """(epoch,): nats a datum of the rows held out, one draw each; the draws' noise is the same in every epoch."""
    held_out_mcse: float
    """Standard error of the best of them, over the rows and their draws."""
    held_out: dict[str, np.ndarray] = field(default_factory=dict)
    """The rows held out: argument -> (M, ...)."""
    num_steps: int = 0
    stopped_because: str = ""
    """Begins with converged, epoch budget, diverged or interrupted; then a sentence."""
    compile_seconds: float = 0.0
    run_seconds: float = 0.0
    dtype: str = "float32"

    @property
    def best_epoch(self) -> int:
        """The epoch of `params`, from 0."""
        return int(np.nanargmax(self.held_out_elbos)) if np.isfinite(self.held_out_elbos).any() else -1

    @property
    def elbo(self) -> float:
        """The held-out ELBO of `params`, nats a datum."""
        return float(self.held_out_elbos[self.best_epoch]) if self.best_epoch >= 0 else math.nan

    def __repr__(self) -> str:
        size = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        rows = [
            ("trained", f"{self.pair.model.__module__}.{self.pair.model.__qualname__}, {size} parameters, {self.dtype}"),
            ("elbo", f"{self.elbo:.3f} ± {self.held_out_mcse:.3f} nats a datum on {_length(self.held_out)} rows held out"),
            ("epochs", f"{len(self.elbos)}, the best is {self.best_epoch + 1}; {self.num_steps} steps"),
            ("seconds", f"{self.run_seconds:.1f} and {self.compile_seconds:.1f} of compiling"),
            ("stopped", self.stopped_because),
        ]
        return "\n".join(f"{label:<9}{value}" for label, value in rows)


def train(
    rng_key,
    model: Callable,
    guide: Callable,
    data: dict | Stream,
    *,
    held_out: float | dict = 0.1,
    objective: ELBO | None = None,
    optimizer: optax.GradientTransformation | None = None,
    schedules: Mapping[str, Callable] | None = None,
    batch_size: int = 128,
    num_epochs: int = 200,
    patience: int = 10,
    static: dict | None = None,
    dtype: str = "float32",
    progress: bool | None = None,
) -> Trained:
    """Trains the networks of a model and its guide on minibatches.

    Args:
        rng_key: a JAX key.
        model, guide: NumPyro functions of a batch of rows, by keyword. Every latent stands in a plate over the rows; networks are
            `numpyro.contrib.module.nnx_module`.
        data: argument -> value, of which the longest arrays are the rows; or a `Stream`.
        held_out: the share of the rows that is held out, or rows of their own: argument -> (M, ...).
        objective: NumPyro's or one of `vip.objectives`; default Trace_ELBO().
        optimizer: default `optax.adam(1e-3)`.
        schedules: argument of the model -> function of the step, such as the weight of the KL in a warm-up. Held-out rows are weighed
            at the argument's own default.
        batch_size: rows a step. Rows left over at the end of a chunk wait for another epoch, whose order is another.
        num_epochs: the budget.
        patience: epochs without a better held-out ELBO after which it stops.
        static: with a `Stream`, the arguments that are no rows.
        dtype: "float32" or "float64".
        progress: None for automatic, True or False to force.

    Raises:
        InputError: what was given cannot be trained; the sentence says why.
    """
    rng_key = as_key(rng_key)
    key_split, key_init, key_order, key_eval = keys.split(rng_key, 4)
    clock = Clock()
    stream, kept, static = _sources(key_split, data, held_out, static)
    size = min(batch_size, stream.num_rows)
    with precision(dtype):
        pair = Pair(model, guide, static)
        first = {name: jnp.asarray(_cast(value[:size], dtype)) for name, value in next(_chunks(stream, key_order, 0)).items()}
        speaks_for = pair.check(key_init, first)
        optimizer = optax.adam(1e-3) if optimizer is None else optimizer
        svi = SVI(model, guide, optax_to_numpyro(optimizer), Trace_ELBO() if objective is None else objective)
        state = jax.jit(lambda key: svi.init(key, **first, **static))(key_init)
        run = _program(svi, static, schedules or {}, speaks_for)
        weigh = jax.jit(lambda params, batch: pair.log_weights(key_eval, params, batch))
        told = _Progress()
        with reporting(model.__qualname__, num_epochs * max(stream.num_rows // size, 1), progress) as report:
            try:
                for epoch in range(num_epochs):
                    losses = []
                    for c, chunk in enumerate(_chunks(stream, key_order, epoch)):
                        arrays = {name: jnp.asarray(_cast(value, dtype)) for name, value in chunk.items()}
                        for order in _orders(key_order, epoch, c, len(next(iter(chunk.values()))), size):
                            state, values = run(clock, state, arrays, order, told.num_steps)
                            losses.append(np.asarray(values))
                            told.num_steps += len(order)
                            report(told.num_steps, f"epoch {epoch + 1}, elbo {-losses[-1].mean():.3f}")
                            if not np.isfinite(losses[-1]).all():
                                raise FloatingPointError
                    weights = _held_out_weights(weigh, svi.get_params(state), kept, dtype)
                    told.add(-np.concatenate(losses).mean(), weights, svi.get_params(state))
                    if told.waited >= patience:
                        told.reason = f"converged: the held-out ELBO has not risen for {patience} epochs"
                        break
            except FloatingPointError:
                told.reason = (
                    f"diverged: the loss was NaN or infinite near step {told.num_steps}; kept are the parameters of the best epoch before; "
                    "lower the learning rate, clip the gradient by optax.clip_by_global_norm, or bound the decoder's scale"
                )
            except KeyboardInterrupt:
                told.reason = f"interrupted at step {told.num_steps}; kept are the parameters of the best epoch before"
        if told.params is None:
            raise InputError(f"Training gave no finite held-out ELBO: {told.reason or 'every epoch was NaN or infinite'}.")
    return Trained(
        pair=pair,
        params=told.params,
        elbos=np.array(told.elbos),
        held_out_elbos=np.array(told.held_out),
        held_out_mcse=told.mcse,
        held_out=kept,
        num_steps=told.num_steps,
        stopped_because=told.reason or f"epoch budget: {num_epochs} epochs, and the held-out ELBO was still rising in the last {patience}",
        compile_seconds=clock.compile_seconds,
        run_seconds=clock.run_seconds,
        dtype=dtype,
    )


@dataclass
class _Progress:
    """What training has come to so far."""

    num_steps: int = 0
    elbos: list[float] = field(default_factory=list)
    held_out: list[float] = field(default_factory=list)
    params: dict | None = None
    mcse: float = math.nan
    waited: int = 0
    """Epochs since the best."""
    reason: str = ""

    def add(self, elbo: float, weights: np.ndarray, params: dict) -> None:
        best = max((value for value in self.held_out if math.isfinite(value)), default=-math.inf)
        self.elbos.append(float(elbo))
        self.held_out.append(float(weights.mean()))
        self.waited += 1
        if self.held_out[-1] > best:
            self.params, self.mcse, self.waited = jax.tree.map(np.asarray, params), float(weights.std() / math.sqrt(len(weights))), 0


def _program(svi: SVI, static: dict, schedules: Mapping[str, Callable], speaks_for: float) -> Callable:
    """run(clock, state, arrays, order, step) -> state, losses a datum (S,); compiled once for each shape."""

    def steps(state, arrays, order, step):
        def one(carry, index):
            state, step = carry
            batch = {name: value[index] for name, value in arrays.items()}
            state, loss = svi.update(state, **batch, **static, **{name: f(step) for name, f in schedules.items()})
            return (state, step + 1), loss / speaks_for

        (state, _), losses = jax.lax.scan(one, (state, step), order)
        return state, losses

    programs = {}

    def run(clock: Clock, state, arrays, order, step):
        shapes = (order.shape, tuple(value.shape for value in arrays.values()))
        args = (state, arrays, jnp.asarray(order), jnp.asarray(step))
        if shapes not in programs:
            programs[shapes] = clock.compile(steps, *args)
        return programs[shapes](*args)

    return run


def _sources(rng_key, data: dict | Stream, held_out: float | dict, static: dict | None) -> tuple[Stream, dict, dict]:
    """The rows to train on, those held out, and the arguments that are no rows."""
    if not isinstance(data, dict):
        if not isinstance(held_out, dict):
            raise InputError("With a stream, rows to hold out are given as held_out={argument: rows}.")
        return data, held_out, static or {}
    rows, rest = parted(data)
    if isinstance(held_out, dict):
        return Memory(rows), held_out, {**rest, **(static or {})}
    num = _length(rows)
    few = round(held_out * num)
    if not 0 < few < num:
        raise InputError(f"held_out is a share of the rows, between 0 and 1, or rows of their own; {held_out} of {num} rows leaves none.")
    order = keys.generator(rng_key).permutation(num)
    train, kept = np.sort(order[few:]), np.sort(order[:few])
    return Memory({k: v[train] for k, v in rows.items()}), {k: v[kept] for k, v in rows.items()}, {**rest, **(static or {})}


def _chunks(stream: Stream, rng_key, epoch: int) -> Iterator[dict[str, np.ndarray]]:
    return stream.chunks(keys.generator(keys.fold_in(rng_key, epoch)))


def _orders(rng_key, epoch: int, chunk: int, num: int, size: int) -> Iterator[np.ndarray]:
    """Rows of the minibatches of one chunk, a compiled call at a time, each (S, size)."""
    rng = keys.generator(keys.fold_in(keys.fold_in(rng_key, epoch), chunk))
    order = rng.permutation(num)[: num // size * size].reshape(-1, size)
    for start in range(0, len(order), STEPS_A_CALL):
        yield order[start : start + STEPS_A_CALL]


def _held_out_weights(weigh: Callable, params: dict, kept: dict, dtype: str) -> np.ndarray:
    parts = []
    for start in range(0, _length(kept), HELD_OUT_BATCH):
        batch = {name: _cast(value[start : start + HELD_OUT_BATCH], dtype) for name, value in kept.items()}
        parts.append(np.asarray(weigh(params, batch), float))
    return np.concatenate(parts)


def _cast(value: np.ndarray, dtype: str) -> np.ndarray:
    return np.asarray(value, dtype) if np.asarray(value).dtype.kind == "f" else np.asarray(value)


def _length(rows: dict) -> int:
    return len(next(iter(rows.values()))) if rows else 0
