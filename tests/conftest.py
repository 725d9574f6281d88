"""One key, one false-alarm rate and one compilation cache for the whole suite."""

import os
import pathlib
import re
from collections import defaultdict

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
# Two workers share two cores, and BLAS threads that spin for one another make small matrices take a hundred times as long.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# A run reports its progress in lines where CI is set: what a test reads must not depend on where it runs.
os.environ.pop("CI", None)

import jax
import pytest
from scipy.stats import norm

SUITE_FALSE_ALARM = 1e-3
"""Probability that a suite of correct code fails somewhere by bad luck, had its keys been drawn afresh."""
MOST_STATISTICAL_TESTS = 1_000
"""The suite's rate is shared evenly by at most this many tests; collecting more is an error, so the promise holds."""


def pytest_addoption(parser):
    parser.addoption(
        "--keys",
        type=int,
        default=1,
        metavar="N",
        help="run only the tests that take rng_key, each under N keys, and report how often each fails",
    )


def pytest_configure(config):
    if config.getoption("keys") < 1:
        raise pytest.UsageError("--keys takes a number of keys, 1 or more")
    if os.environ.get("VIP_NO_JAX_CACHE"):
        return
    cache = pathlib.Path(__file__).parents[1] / ".pytest_cache" / "jax"
    jax.config.update("jax_compilation_cache_dir", str(cache))
    # At its default threshold of one second the cache keeps next to nothing of a test suite.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def pytest_generate_tests(metafunc):
    keys = metafunc.config.getoption("keys")
    if keys > 1 and "rng_key" in metafunc.fixturenames:
        metafunc.parametrize("rng_key", range(keys), indirect=True, ids=lambda i: f"key{i}", scope="session")


def pytest_collection_modifyitems(config, items):
    keys = config.getoption("keys")
    statistical = sum("z_bound" in item.fixturenames or "false_alarm" in item.fixturenames for item in items)
    if statistical > MOST_STATISTICAL_TESTS * keys:
        raise pytest.UsageError(
            f"{statistical} statistical tests share the false-alarm rate of {MOST_STATISTICAL_TESTS}: raise MOST_STATISTICAL_TESTS"
        )
    if keys > 1:
        config.hook.pytest_deselected(items=[item for item in items if "rng_key" not in item.fixturenames])
        items[:] = [item for item in items if "rng_key" in item.fixturenames]


def pytest_terminal_summary(terminalreporter, config):
    if config.getoption("keys") == 1:
        return
    outcome = defaultdict(dict)  # test without its key -> key -> failed
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed") + terminalreporter.getreports("error"):
        if key := re.search(r"[\[-](key(\d+))(?=[\]-])", report.nodeid):
            test = re.sub(r"\[\]$", "", (report.nodeid[: key.start(1)] + report.nodeid[key.end(1) :]).replace("-]", "]").replace("[-", "["))
            number = int(key.group(2))
            outcome[test][number] = outcome[test].get(number, False) or report.outcome == "failed"
    terminalreporter.section("flake rate by test")
    for test, failed in sorted(outcome.items()):
        bad = sorted(number for number, wrong in failed.items() if wrong)
        terminalreporter.write_line(
            f"{len(bad)} of {len(failed)} keys fail  {test}" + (f"  (keys {', '.join(map(str, bad))})" if bad else "")
        )


@pytest.fixture(scope="session")
def rng_key(request):
    """The key of a statistical test: always the same one, or each of N under --keys N."""
    return jax.random.key(getattr(request, "param", 0))


@pytest.fixture(scope="session")
def false_alarm():
    """Probability with which one correct test may fail, for checks with a reference distribution of their own."""
    return SUITE_FALSE_ALARM / MOST_STATISTICAL_TESTS


@pytest.fixture(scope="session")
def z_bound(false_alarm):
    """z_bound(m): how many standard errors one test allows when it makes m comparisons, two-sided (Bonferroni)."""

    def bound(num_comparisons=1):
        return norm.isf(false_alarm / (2 * num_comparisons))

    return bound


@pytest.fixture(autouse=True)
def _settings_guard():
    """No test, and nothing that it calls, leaves a setting of JAX changed behind."""
    before = dict(jax.config.values)
    yield
    after = dict(jax.config.values)
    for name in before:
        if after[name] != before[name]:
            jax.config.update(name, before[name])
    assert after == before, {name: (before[name], after[name]) for name in before if after[name] != before[name]}
