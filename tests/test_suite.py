"""The suite's own machinery: keys, the flake report, the false-alarm rate, the guard over JAX's settings."""

import pathlib

import jax
import numpy as np
import pytest
from scipy.stats import norm

CONFTEST = (pathlib.Path(__file__).parent / "conftest.py").read_text()
A_SUITE = """
import jax
import pytest

@pytest.fixture
def draw(rng_key):
    return jax.random.uniform(rng_key)

@pytest.mark.parametrize("shift", [0, 1])
def test_often_wrong(rng_key, shift):
    assert int(jax.random.key_data(rng_key)[-1]) % 4 > shift

def test_right(draw):
    assert 0 <= draw < 1

def test_without_a_key():
    raise AssertionError("not to be re-run")
"""


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch):
    """A suite within the suite would move the cache."""
    monkeypatch.setenv("VIP_NO_JAX_CACHE", "1")


@pytest.fixture
def suite(pytester):
    pytester.makeconftest(CONFTEST)
    pytester.makeini("[pytest]\naddopts = -p no:playwright")  # which does not bear to be nested
    pytester.makepyfile(A_SUITE)
    return pytester


def test_one_key_by_default(suite):
    result = suite.runpytest_inprocess("-k", "right")
    result.assert_outcomes(passed=1, deselected=3)
    result.stdout.no_fnmatch_line("*flake rate*")


@pytest.mark.parametrize("workers", [[], pytest.param(["-n", "2"], marks=pytest.mark.slow)], ids=["here", "in workers"])
def test_many_keys_report_the_rate_of_each_test(suite, workers):
    result = suite.runpytest_subprocess("--keys", "8", *workers)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=18, failed=6, **({} if workers else {"deselected": 1}))
    result.stdout.fnmatch_lines(
        [
            "*flake rate by test*",
            "2 of 8 keys fail  *::test_often_wrong[[]0]  (keys 0, 4)",
            "4 of 8 keys fail  *::test_often_wrong[[]1]  (keys 0, 1, 4, 5)",
            "0 of 8 keys fail  *::test_right",
        ]
    )


def test_no_keys_is_refused(suite):
    result = suite.runpytest_inprocess("--keys", "0")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--keys takes a number of keys, 1 or more*"])


def test_more_tests_than_share_the_rate_are_refused(pytester):
    pytester.makeconftest(CONFTEST.replace("MOST_STATISTICAL_TESTS = 1_000", "MOST_STATISTICAL_TESTS = 1"))
    pytester.makepyfile("def test_a(z_bound): pass\ndef test_b(false_alarm): pass")
    result = pytester.runpytest_inprocess()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*2 statistical tests share the false-alarm rate of 1*"])


def test_a_test_that_changes_a_setting_fails_and_is_undone(suite):
    suite.makepyfile("import jax\ndef test_it(): jax.config.update('jax_enable_x64', not jax.config.jax_enable_x64)")
    before = jax.config.jax_enable_x64
    suite.runpytest_inprocess("-k", "test_it").assert_outcomes(passed=1, errors=1)
    assert jax.config.jax_enable_x64 == before


def test_z_bound_spends_one_test_s_share(z_bound, false_alarm):
    for m in (1, 10, 1000):
        np.testing.assert_allclose(m * 2 * norm.sf(z_bound(m)), false_alarm, rtol=1e-9)
    assert z_bound() < z_bound(2) < z_bound(100)


def test_the_key_is_the_same_every_time(rng_key):
    assert jax.numpy.array_equal(jax.random.key_data(rng_key), jax.random.key_data(jax.random.key(0)))
