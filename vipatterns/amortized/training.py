"""Training of an amortised model: minibatches, held-out ELBO, early stopping."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpyro.infer import ELBO, SVI, Trace_ELBO
from numpyro.optim import optax_to_numpyro

from vipatterns import keys
from vipatterns.amortized.files import Rows
from vipatterns.amortized.run import Disk, Progress, described
from vipatterns.amortized.stream import Memory, Stream, ahead, in_rows, parted
from vipatterns.amortized.trained import Trained
from vipatterns.amortized.values import Values, refuse_unlike
from vipatterns.amortized.weights import Pair
from vipatterns.density import precision
from vipatterns.draws import as_count, as_key
from vipatterns.errors import InputError
from vipatterns.programs import Clock
from vipatterns.progress import reporting

STEPS_A_CALL = 200
"""Most steps in one compiled call; between two calls progress is told and a checkpoint may be written."""
HELD_OUT_BATCH = 1_000
"""Rows of the held-out set that are weighed at once."""
MOST_HELD_OUT = 10_000
"""Rows that are held out of a file that is streamed: they are kept in memory."""


def train(
    rng_key: jax.Array,
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
    checkpoint: str | Path | None = None,
    progress: bool | None = None,
) -> Trained:
    """Trains the networks of a model and its guide on minibatches.

    The same call with the same `checkpoint` goes on where the last one ended, or was killed; on a CPU it then comes to the same bits. Where
    the run had come to its end it returns at once.

    Args:
        rng_key: a JAX key.
        model: a NumPyro function of a batch of rows, by keyword. Every latent stands in a plate over the rows; networks are
            `numpyro.contrib.module.nnx_module`.
        guide: of the same arguments and latents.
        data: argument -> value, of which the longest arrays are the rows; or a `Stream`, such as `vip.amortized.Parquet` and
            `vip.amortized.ArrayFile`.
        held_out: the share of the rows that is held out, of a file that is streamed `MOST_HELD_OUT` rows at most; or rows of their
            own: argument -> (M, ...).
        objective: NumPyro's or one of `vip.objectives`; default Trace_ELBO().
        optimizer: default `optax.adam(1e-3)`.
        schedules: argument of the model -> function of the step, such as the weight of the KL in a warm-up. Held-out rows are weighed
            at the argument's own default.
        batch_size: rows a step. Rows left over at the end of a chunk wait for another epoch, whose order is another.
        num_epochs: the budget.
        patience: epochs without a better held-out ELBO after which it stops.
        static: with a `Stream`, the arguments that are no rows.
        dtype: "float32" or "float64".
        checkpoint: a file that the run is kept in, `run.safetensors`: parameters, optimizer, key and position in the data.
        progress: None for automatic, True or False to force.

    Returns:
        A Trained, at the epoch whose held-out ELBO was the highest. Training that diverged comes back with a sentence.

    Raises:
        InputError: what was given cannot be trained, or the checkpoint is of another run; the sentence says why.
    """
    rng_key, num_epochs, batch_size = as_key(rng_key), as_count(num_epochs, "num_epochs"), as_count(batch_size, "batch_size")
    key_split, key_init, key_order, key_eval = keys.split(rng_key, 4)
    clock = Clock()
    stream, kept, static, where_kept = _sources(key_split, data, held_out, static)
    size = min(batch_size, stream.num_rows)
    with precision(dtype):
        pair = Pair(model, guide, static)
        chunk = next(_chunks(stream, key_order, 0), {})
        if _length(chunk) < size:
            raise InputError(f"A batch has {size} rows, and the first chunk of the stream only {_length(chunk)}: give it a larger window.")
        first = {name: jnp.asarray(_cast(value[:size], dtype)) for name, value in chunk.items()}
        refuse_unlike(kept, chunk)
        values = Values(pair, key_init, dtype)
        values.refuse(chunk, lambda row: _where(stream, 0, chunk, row))
        values.refuse(kept, where_kept)
        speaks_for, num_dims = pair.check(key_init, first)
        optimizer = optax.adam(1e-3) if optimizer is None else optimizer
        svi = SVI(model, guide, optax_to_numpyro(optimizer), Trace_ELBO() if objective is None else objective)
        state = jax.jit(lambda key: svi.init(key, **first, **static))(key_init)
        run = _program(svi, static, schedules or {}, speaks_for)
        weigh = jax.jit(lambda params, batch: pair.log_weights(key_eval, params, batch))
        starts = range(0, _length(kept), HELD_OUT_BATCH)
        weighed = [_placed({name: value[start : start + HELD_OUT_BATCH] for name, value in kept.items()}, dtype) for start in starts]
        told = Progress(params=svi.get_params(state))
        disk = Disk(checkpoint, described(rng_key, size, stream.num_rows, dtype, first))
        state, told = disk.resume(state, told)
        in_memory, placed = isinstance(stream, Memory), {}
        with reporting(model.__qualname__, num_epochs * max(stream.num_rows // size, 1), progress) as report:
            try:
                while told.epoch < num_epochs and told.waited < patience:
                    chunks = _chunks(stream, key_order, told.epoch)
                    for c, chunk in enumerate(chunks if in_memory else ahead(chunks)):
                        if c < told.chunk:
                            continue
                        if not (placed and in_memory):  # whose one chunk is always the same
                            placed = _placed(chunk, dtype)
                        if told.epoch == 0 < c:  # the first one has been looked at
                            values.refuse(chunk, lambda row, c=c, chunk=chunk: _where(stream, c, chunk, row))
                        orders = list(_orders(key_order, told.epoch, c, len(next(iter(chunk.values()))), size))
                        for order in orders[told.call :]:
                            began = time.perf_counter()
                            state, losses = run(clock, state, placed, order, told.num_steps)
                            told.took(np.asarray(losses, float))
                            said = _said(told, len(order), num_dims, order.size / (time.perf_counter() - began))
                            disk.keep(state, told)
                            report(told.num_steps, "checkpoint not written, " * bool(disk.failed) + said)
                        told.chunk, told.call = c + 1, 0
                    params = svi.get_params(state)
                    told.end_epoch(np.concatenate([np.asarray(weigh(params, batch), float) for batch in weighed]), params)
                reason = ""
            except FloatingPointError:
                reason = (
                    f"diverged: the loss was NaN or infinite near step {told.num_steps}; kept are the parameters of the best epoch before; "
                    "lower the learning rate, clip the gradient by optax.clip_by_global_norm, or bound the decoder's scale"
                )
            except KeyboardInterrupt:
                reason = f"interrupted at step {told.num_steps}; kept are the parameters of the best epoch before"
        if not reason:
            disk.keep(state, told, at_once=True)
        if not told.held_out:
            raise InputError(f"Training came to no whole epoch with a finite held-out ELBO: {reason}.")
    if not reason and told.waited >= patience:
        reason = f"converged: the held-out ELBO has not risen for {patience} epochs"
    return Trained(
        pair=pair,
        params=told.params,
        elbos=np.array(told.elbos),
        held_out_elbos=np.array(told.held_out),
        held_out_mcse=told.mcse,
        held_out=kept,
        num_steps=told.num_steps,
        stopped_because=reason
        or f"epoch budget: {num_epochs} epochs; the best held-out ELBO is {told.waited} epochs old, patience is {patience}",
        compile_seconds=clock.compile_seconds,
        run_seconds=clock.run_seconds,
        dtype=dtype,
        not_saved=disk.failed,
    )


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


def _said(told: Progress, num_steps: int, num_dims: int, rate: float) -> str:
    """How it goes, by the last so many steps; `num_dims` elements a datum, `rate` rows a second."""
    elbo = -told.losses[-num_steps:].mean()
    return f"epoch {told.epoch + 1}, elbo {elbo:.2f} nats, {-elbo / num_dims / math.log(2):.3f} bits/dim, {rate:,.0f} rows/s"


def _sources(rng_key, data: dict | Stream, held_out: float | dict, static: dict | None) -> tuple[Stream, dict, dict, Callable]:
    """The rows to train on, those held out, the arguments that are no rows, and where the user finds a row that is held out."""
    if isinstance(held_out, dict):
        rows, rest = parted(data) if isinstance(data, dict) else ({}, {})
        kept = {name: np.asarray(value) for name, value in held_out.items()}
        return Memory(rows) if isinstance(data, dict) else data, kept, {**rest, **(static or {})}, lambda row: in_rows(row, "held_out")
    if not isinstance(data, dict):
        if not isinstance(data, Rows):
            raise InputError("With a stream of your own, rows to hold out are given as held_out={argument: rows}.")
        few = min(_few(held_out, data.num_rows), MOST_HELD_OUT)
        stream, kept = data.split(keys.generator(rng_key), few)
        return stream, kept, static or {}, lambda row: data.where(kept, row)
    rows, rest = parted(data)
    num = _length(rows)
    few = _few(held_out, num)
    order = keys.generator(rng_key).permutation(num)
    train, out = np.sort(order[few:]), np.sort(order[:few])
    kept = {name: value[out] for name, value in rows.items()}
    memory = Memory({name: value[train] for name, value in rows.items()}, train)
    return memory, kept, {**rest, **(static or {})}, lambda row: in_rows(int(out[row]))


def _few(held_out: float, num: int) -> int:
    few = round(held_out * num)
    if not 0 < few < num:
        raise InputError(f"held_out is a share of the rows, between 0 and 1, or rows of their own; {held_out} of {num} rows leaves none.")
    return few


def _where(stream: Stream, c: int, chunk: dict, row: int) -> str:
    """A row of the stream's c-th chunk, as the beginning of a sentence."""
    if isinstance(stream, Memory | Rows):
        return stream.where(chunk, row)
    return in_rows(row, f"chunk {c} of the first epoch")


def _chunks(stream: Stream, rng_key, epoch: int) -> Iterator[dict[str, np.ndarray]]:
    return stream.chunks(keys.generator(rng_key, epoch))


def _orders(rng_key, epoch: int, chunk: int, num: int, size: int) -> Iterator[np.ndarray]:
    """Rows of the minibatches of one chunk, a compiled call at a time, each (S, size)."""
    rng = keys.generator(rng_key, epoch, chunk)
    order = rng.permutation(num)[: num // size * size].reshape(-1, size)
    for start in range(0, len(order), STEPS_A_CALL):
        yield order[start : start + STEPS_A_CALL]


def _placed(rows: dict[str, np.ndarray], dtype: str) -> dict[str, jax.Array]:
    return {name: jnp.asarray(_cast(value, dtype)) for name, value in rows.items()}


def _cast(value: np.ndarray, dtype: str) -> np.ndarray:
    return np.asarray(value, dtype) if np.asarray(value).dtype.kind == "f" else np.asarray(value)


def _length(rows: dict) -> int:
    return len(next(iter(rows.values()))) if rows else 0
