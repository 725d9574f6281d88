"""Rows from files larger than memory: each once an epoch, mixed across the file, in bounded memory, in an order that the key decides."""

import gc
import re
import threading
import time
import tracemalloc

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from linear import best_loglik, guide, loglik, model, rows

import vipatterns as vip
from vipatterns.amortized import training
from vipatterns.amortized.files import ArrayFile, Parquet
from vipatterns.amortized.stream import Memory, ahead, parted
from vipatterns.amortized.values import Values
from vipatterns.errors import InputError

GROUP, WINDOW = 50, 200
COLUMNS = {"x": ["a", "b"], "number": "number"}


def parquet(path, num=2_130, group=GROUP, **more):
    """Rows that know their number, in many row groups; x is (number, -number)."""
    number = np.arange(num)
    pq.write_table(pa.table({"a": number * 1.0, "b": -number * 1.0, "number": number, **more}), path, row_group_size=group)
    return path


def arrays(folder, num=2_130):
    number = np.arange(num)
    np.save(folder / "x.npy", np.column_stack([number, -number]) * 1.0)
    np.save(folder / "number.npy", number)
    return {"x": folder / "x.npy", "number": folder / "number.npy"}


@pytest.fixture(params=["parquet", "arrays"])
def stream(request, tmp_path):
    """A stream of 2,130 rows."""
    if request.param == "parquet":
        return Parquet(parquet(tmp_path / "t.parquet"), COLUMNS, window=WINDOW)
    return ArrayFile(arrays(tmp_path), window=WINDOW)


def epoch(stream, seed=0):
    return list(stream.chunks(np.random.default_rng(seed)))


def test_every_row_comes_once_in_chunks_of_one_size(stream):
    chunks = epoch(stream)
    assert [len(chunk["x"]) for chunk in chunks] == [WINDOW] * 10 + [130]
    number = np.concatenate([chunk["number"] for chunk in chunks])
    np.testing.assert_array_equal(np.sort(number), np.arange(2_130))
    np.testing.assert_array_equal(np.concatenate([chunk["x"] for chunk in chunks]), np.column_stack([number, -number]))
    assert (stream.num_rows, chunks[0]["x"].dtype, number.dtype) == (2_130, np.float64, np.int64)


def test_the_rng_alone_decides_the_order(stream):
    first, same, other = epoch(stream), epoch(stream), epoch(stream, seed=1)
    for one, two in zip(first, same, strict=True):
        np.testing.assert_array_equal(one["x"], two["x"])
    assert (first[0]["number"] != other[0]["number"]).any()


def test_rows_of_neighbouring_groups_meet_and_rows_of_one_group_part(stream):
    """A chunk is drawn from twice its rows or more: of 8 groups or more, none of which it takes whole."""
    groups = [chunk["number"] // GROUP for chunk in epoch(stream)]
    sizes = [np.bincount(group, minlength=43) for group in groups[:-1]]
    assert min((size > 0).sum() for size in sizes) >= 8
    assert max(size.max() for size in sizes) < GROUP
    met = np.zeros((43, 43), bool)
    for seed in range(40):
        for chunk in epoch(stream, seed):
            there = np.unique(chunk["number"] // GROUP)
            met[np.ix_(there, there)] = True
    assert met.diagonal(1).all()
    assert met.all()  # and those that lie far from one another
    assert abs(np.corrcoef(np.arange(2_130), np.concatenate([c["number"] for c in epoch(stream)]))[0, 1]) < 0.5


def test_a_part_is_held_out_and_never_trained_on(stream):
    rest, out = stream.split(np.random.default_rng(1), 213)
    again, more = rest.split(np.random.default_rng(2), 100)
    np.testing.assert_array_equal(out["x"], np.column_stack([out["number"], -out["number"]]))
    seen = np.concatenate([chunk["number"] for chunk in epoch(again)])
    assert (stream.num_rows, rest.num_rows, again.num_rows, len(out["number"])) == (2_130, 1_917, 1_817, 213)
    np.testing.assert_array_equal(np.sort(np.concatenate([seen, out["number"], more["number"]])), np.arange(2_130))
    assert len(epoch(stream)) == 11  # it is as it was
    assert np.bincount(out["number"] // GROUP, minlength=43).max() < GROUP / 2


@pytest.mark.parametrize("kind", ["parquet", "arrays"])
def test_memory_is_bounded_by_the_window_and_not_by_the_file(tmp_path, kind):
    num, width, window, group = 60_000, 20, 1_000, 500
    x = np.random.default_rng(0).normal(size=(num, width))
    if kind == "parquet":
        table = pa.table({"pixels": pa.FixedSizeListArray.from_arrays(x.ravel(), width)})
        pq.write_table(table, tmp_path / "t.parquet", row_group_size=group)
        stream = Parquet(tmp_path / "t.parquet", {"x": "pixels"}, window=window)
        del table
    else:
        np.save(tmp_path / "x.npy", x)
        stream = ArrayFile(tmp_path / "x.npy", window=window)
    total, x = x.sum(), None
    next(stream.chunks(np.random.default_rng(0)))  # what is imported on the way counts once
    gc.collect()
    tracemalloc.start()
    found = sum(chunk["x"].sum() for chunk in stream.chunks(np.random.default_rng(0)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert abs(found - total) < 1e-6
    assert peak < 8 * width * (2 * (3 * window + group) + window) < 8 * width * num / 7
    assert peak > 8 * width * 2 * window  # the measure sees the pool


# Columns


def test_columns_become_arguments(tmp_path):
    path = parquet(
        tmp_path / "t.parquet",
        num=120,
        lists=pa.array([[i, i + 1] for i in range(120)], pa.list_(pa.uint8())),
        half=pa.array(np.arange(120) / 2, pa.float32()),
        yes=pa.array([i % 2 == 0 for i in range(120)]),
    )
    columns = {"x": "lists", "pair": "lists", "y": "half", "yes": "yes", "both": ["number", "half"]}
    [chunk] = epoch(Parquet(path, columns, scale=2))
    number = chunk["y"] * 2
    np.testing.assert_array_equal(chunk["pair"], np.column_stack([number, number + 1]))
    np.testing.assert_array_equal(chunk["x"], chunk["pair"] / 2)
    np.testing.assert_array_equal(chunk["both"], np.column_stack([number, number / 2]))
    kinds = {name: value.dtype.str for name, value in chunk.items()}
    assert kinds == {"x": "<f4", "pair": "|u1", "y": "<f4", "yes": "|b1", "both": "<f8"}
    np.testing.assert_array_equal(chunk["yes"], number % 2 == 0)


def test_bytes_in_an_array_file_are_scaled_when_asked(tmp_path):
    np.save(tmp_path / "x.npy", np.full((20, 2, 2), 51, np.uint8))
    [chunk] = epoch(ArrayFile(tmp_path / "x.npy", scale=255))
    assert (chunk["x"].shape, chunk["x"].dtype) == ((20, 2, 2), np.float32)
    np.testing.assert_allclose(chunk["x"], 0.2, rtol=1e-6)


def test_a_tuple_is_a_shape_and_no_rows():
    taken, rest = parted({"x": np.zeros((2, 4)), "image_shape": (2, 2), "size": 3})
    assert (list(taken), rest) == (["x"], {"image_shape": (2, 2), "size": 3})


# Training


SETTINGS = {"batch_size": 32, "optimizer": optax.adam(0.01), "progress": False, "patience": 50}


def small(path, num=400):
    x = rows(num)["x"]
    pq.write_table(pa.table({name: x[:, i] for i, name in enumerate("abcd")}), path, row_group_size=20)
    return Parquet(path, {"x": list("abcd")}, window=64)


def test_a_run_on_a_stream_goes_on_to_the_same_bits(rng_key, tmp_path):
    stream = small(tmp_path / "t.parquet")
    whole = vip.train(rng_key, model, guide, stream, num_epochs=2, **SETTINGS)
    kept = tmp_path / "run.safetensors"
    vip.train(rng_key, model, guide, stream, num_epochs=1, checkpoint=kept, **SETTINGS)
    after = vip.train(rng_key, model, guide, stream, num_epochs=2, checkpoint=kept, **SETTINGS)
    assert (len(whole.held_out["x"]), len(whole.elbos)) == (40, 2)
    assert_same(after, whole)


@pytest.mark.slow
def test_a_run_cut_between_two_chunks_goes_on_to_the_same_bits(rng_key, tmp_path, monkeypatch):
    stream = small(tmp_path / "t.parquet")
    whole = vip.train(rng_key, model, guide, stream, num_epochs=2, **SETTINGS)
    assert_same(interrupted(rng_key, stream, tmp_path / "cut.safetensors", monkeypatch), whole)


def assert_same(one, two):
    assert one.elbos.tolist() == two.elbos.tolist()
    assert one.held_out_elbos.tolist() == two.held_out_elbos.tolist()
    for name, value in two.params.items():
        np.testing.assert_array_equal(one.params[name], value)


def interrupted(rng_key, stream, kept, monkeypatch):
    """The same run, which ends in the middle of a chunk's epoch by an error, and then goes on from its checkpoint."""

    class Cut(Exception):
        pass

    def keep(self, state, told, at_once=False):
        calls.append(told.chunk)
        write(self, state, told, at_once=True)
        if len(calls) == 9:
            raise Cut

    calls, write = [], training.Disk.keep
    with monkeypatch.context() as patch:
        patch.setattr(training.Disk, "keep", keep)
        with pytest.raises(Cut):
            vip.train(rng_key, model, guide, stream, num_epochs=2, checkpoint=kept, **SETTINGS)
    assert calls == [0, 1, 2, 3, 4, 5, 0, 1, 2]  # two chunks of the second epoch are done, and the third is worked on
    return vip.train(rng_key, model, guide, stream, num_epochs=2, checkpoint=kept, **SETTINGS)


@pytest.mark.slow
def test_a_stream_learns_what_memory_learns(rng_key, tmp_path):
    """Not the same bits, since the order is another, but the same maximum of the likelihood."""
    data = rows(400)
    fitted = vip.train(
        rng_key,
        model,
        guide,
        small(tmp_path / "t.parquet"),
        held_out=data,
        num_epochs=150,
        **{**SETTINGS, "patience": 150, "batch_size": 64},
    )
    reached = loglik(fitted.params, data["x"]).mean()
    assert best_loglik(data["x"]) - 0.02 < reached <= best_loglik(data["x"]) + 1e-9


class Own:
    """A stream of one's own: chunks of 64 rows, of which one comes late with a value that is spoilt, in every epoch or only after some."""

    num_rows = 256

    def __init__(self, value, after=0):
        self.value, self.left = value, after

    def chunks(self, rng):
        for i in range(4):
            x = rows(64, seed=i)["x"]
            if i == 2 and self.left <= 0:
                x[7, 1] = self.value
            yield {"x": x}
        self.left -= 1


def test_what_cannot_be_trained_on_is_a_sentence(rng_key, tmp_path):
    held_out = rows(20)
    with pytest.raises(InputError, match=r"rows to hold out are given as held_out="):
        vip.train(rng_key, model, guide, Own(0.0), **SETTINGS)
    with pytest.raises(InputError, match=r"^Row 7 of chunk 2 of the first epoch \(counted from 0\) holds NaN or infinity for x: drop"):
        vip.train(rng_key, model, guide, Own(np.nan), held_out=held_out, **SETTINGS)
    late = vip.train(rng_key, model, guide, Own(np.nan, after=1), held_out=held_out, num_epochs=3, **SETTINGS)
    assert late.stopped_because.startswith("diverged: the loss was NaN or infinite near step 14;")
    with pytest.raises(InputError, match=r"A batch has 100 rows, and the first chunk of the stream only 64: give it a larger window"):
        vip.train(rng_key, model, guide, small(tmp_path / "t.parquet"), held_out=held_out, **{**SETTINGS, "batch_size": 100})
    with pytest.raises(InputError, match=r"0\.0 of 400 rows leaves none"):
        vip.train(rng_key, model, guide, small(tmp_path / "t.parquet"), held_out=0.0, **SETTINGS)


def test_a_nan_late_in_the_file_is_named_with_its_row(rng_key, tmp_path):
    x = rows(400)["x"]
    x[333, 2] = np.nan
    pq.write_table(pa.table({name: x[:, i] for i, name in enumerate("abcd")}), tmp_path / "t.parquet", row_group_size=20)
    np.save(tmp_path / "x.npy", x)
    for stream in (Parquet(tmp_path / "t.parquet", {"x": list("abcd")}, window=64), ArrayFile(tmp_path / "x.npy", window=64)):
        with pytest.raises(InputError, match=r"(t\.parquet|x\.npy), row 333 \(counted from 0\), holds NaN or infinity for x: drop or fill"):
            vip.train(rng_key, model, guide, stream, held_out=rows(20), **SETTINGS)
        assert threads() == 0


def coins(x=None):
    """Bernoulli columns: every value but 0 and 1 is outside the support."""
    chances = numpyro.param("chances", jnp.full(4, 0.5), constraint=dist.constraints.unit_interval)
    with numpyro.plate("row", len(x)):
        numpyro.sample("z", dist.Normal(0, 1))
        numpyro.sample("x", dist.Bernoulli(chances).to_event(1), obs=x)


def any_guide(x=None):
    with numpyro.plate("row", len(x)):
        numpyro.sample("z", dist.Normal(numpyro.param("m", 0.0), 1))


@pytest.mark.parametrize("held_out", [0.1, {"x": np.zeros((5, 4))}])
@pytest.mark.parametrize("kind", ["t.parquet", "x.npy"])
def test_a_value_outside_the_support_late_in_the_file_is_named_with_its_row(rng_key, tmp_path, kind, held_out):
    """Whichever chunk it comes in, of those to train on or those held out."""
    x = (rows(400)["x"] > 0) * 1.0
    for row in (3, 222, 399):
        spoilt = x.copy()
        spoilt[row, 2] = 2.0
        pq.write_table(pa.table({name: spoilt[:, i] for i, name in enumerate("abcd")}), tmp_path / "t.parquet", row_group_size=20)
        np.save(tmp_path / "x.npy", spoilt)
        stream = Parquet(tmp_path / kind, {"x": list("abcd")}, window=64) if kind == "t.parquet" else ArrayFile(tmp_path / kind, window=64)
        told = rf"{re.escape(kind)}, row {row} \(counted from 0\), has values from \d to 2 that are outside the support of the site 'x':"
        with pytest.raises(InputError, match=told):
            vip.train(rng_key, coins, any_guide, stream, held_out=held_out, num_epochs=1, **SETTINGS)
        assert threads() == 0


def test_a_stream_without_a_bad_value_is_looked_at_once(rng_key, tmp_path, monkeypatch):
    seen, look = [], Values.refuse
    monkeypatch.setattr(Values, "refuse", lambda self, rows, where: (seen.append(len(rows["x"])), look(self, rows, where)))
    vip.train(rng_key, model, guide, small(tmp_path / "t.parquet"), held_out=rows(20), num_epochs=3, **SETTINGS)
    assert sorted(seen) == sorted([64] * 6 + [16, 20])  # the chunks of one epoch, and what is held out


# The next chunk


def threads():
    """Threads that prepare chunks."""
    return sum("ThreadPoolExecutor" in thread.name for thread in threading.enumerate())


def test_the_next_chunk_is_prepared_while_the_first_is_worked_on():
    made, ready = [], threading.Event()

    def chunks():
        for i in range(4):
            made.append((i, threading.current_thread() is threading.main_thread()))
            if i == 1:
                ready.set()
            yield i

    coming = ahead(chunks())
    assert made == []
    assert next(coming) == 0
    assert ready.wait(10)  # the first is still being worked on: nothing has asked for the second
    time.sleep(0.05)
    assert [i for i, _ in made] == [0, 1]  # and not more than one ahead
    assert list(coming) == [1, 2, 3]
    assert not any(main for _, main in made)
    assert threads() == 0


def test_an_error_in_the_thread_reaches_the_caller():
    def chunks():
        yield 1
        raise InputError("The file is gone.")

    coming = ahead(chunks())
    assert next(coming) == 1
    with pytest.raises(InputError, match="The file is gone"):
        next(coming)
    assert threads() == 0


def test_leaving_early_leaves_no_thread_and_no_open_file(stream):
    coming = ahead(stream.chunks(np.random.default_rng(0)))
    next(coming)
    assert threads() == 1
    del coming
    assert threads() == 0

    def fails():
        for _ in ahead(stream.chunks(np.random.default_rng(0))):
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    gc.collect()  # a file left open would warn
    assert threads() == 0


# What cannot be read


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda p: Parquet(p / "none.parquet", COLUMNS), r"There is no file .*none\.parquet: check"),
        (lambda p: Parquet(p / "t.parquet", {"x": "numbers"}), r"t\.parquet has no column numbers: did you mean number\?"),
        (lambda p: Parquet(p / "t.parquet", {"x": "zzz"}), r"has no column zzz: it has a, b, number, text, lists, holes, within\."),
        (lambda p: Parquet(p / "t.parquet", {}), r"gives no rows to train on: it has 120, of which 0 arguments"),
        (lambda p: Parquet(p / "empty.parquet", COLUMNS), r"empty\.parquet gives no rows to train on: it has 0"),
        (lambda p: Parquet(p / "text.parquet", COLUMNS), r"text\.parquet is no whole Parquet file \(.*\): write it again"),
        (lambda p: Parquet(p / "cut.parquet", COLUMNS), r"cut\.parquet is no whole Parquet file \(.*\): write it again"),
        (lambda p: Parquet(p / "holed.parquet", COLUMNS), r"holed\.parquet is no whole Parquet file \(.*\): write it again"),
        (lambda p: Parquet(p / "t.parquet", COLUMNS, window=0), r"window must be a whole number"),
        (lambda p: Parquet(p / "t.parquet", {"x": "text"}), r"Column text of .* should hold numbers, .* and holds string: convert it"),
        (lambda p: Parquet(p / "t.parquet", {"x": "lists"}), r"lists of .* one length, and row 77 .* has 3 where others have 2: mend"),
        (
            lambda p: Parquet(p / "t.parquet", {"n": "holes"}),
            r"Column holes of .* has missing values, the first in row 88 \(counted from 0\)",
        ),
        (lambda p: Parquet(p / "t.parquet", {"n": "within"}), r"Column within of .* has missing values within lists: drop or fill"),
        (lambda p: ArrayFile(p / "none.npy"), r"There is no file .*none\.npy: check"),
        (lambda p: ArrayFile(p / "cut.npy"), r"cut\.npy is no whole \.npy file of numbers \(.*\): write it again"),
        (lambda p: ArrayFile(p / "text.npy"), r"text\.npy is no whole \.npy file of numbers \(.*\): write it again"),
        (lambda p: ArrayFile(p / "objects.npy"), r"objects\.npy is no whole \.npy file of numbers \(.*\): write it again"),
        (lambda p: ArrayFile(p / "words.npy"), r"words\.npy should hold one array of numbers"),
        (lambda p: ArrayFile({"x": p / "x.npy", "y": p / "y.npy"}), r"as many rows each, .*x\.npy has 10, .*y\.npy has 9\."),
        (lambda p: ArrayFile({}), r"no file was named"),
        (lambda p: Memory({"x": np.zeros(3), "y": np.zeros(2)}), r"all of one length"),
    ],
)
def test_what_cannot_be_read_gets_a_sentence(tmp_path, make, sentence):
    path = parquet(
        tmp_path / "t.parquet",
        num=120,
        text=["a"] * 120,
        lists=[[1.0, 2.0] if i != 77 else [1.0, 2.0, 3.0] for i in range(120)],
        holes=[i if i != 88 else None for i in range(120)],
        within=[[1, None] if i == 3 else [1, 2] for i in range(120)],
    )
    parquet(tmp_path / "empty.parquet", num=0)
    whole = parquet(tmp_path / "whole.parquet", num=5_000).read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[:-100])
    (tmp_path / "holed.parquet").write_bytes(b"PAR1" + b"\xff" * 2_000 + whole[2_004:])
    (tmp_path / "text.parquet").write_text("once upon a time")
    (tmp_path / "text.npy").write_text("once upon a time")
    np.save(tmp_path / "x.npy", np.zeros((10, 2)))
    np.save(tmp_path / "y.npy", np.zeros(9))
    np.save(tmp_path / "objects.npy", np.array([{}, 1], object))
    np.save(tmp_path / "words.npy", np.array(["a", "b"]))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-10])
    assert path.exists()
    with pytest.raises(InputError, match=sentence) as error:
        epoch(make(tmp_path))
    assert "\n" not in str(error.value)
