"""Paired statistics against scipy's, and by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ohem.studies.statistics import Interval, holm, interval, p_columns_differ, p_greater, p_less, p_outside, p_within

values = st.lists(st.floats(-5, 5), min_size=2, max_size=8).filter(lambda v: np.std(v) > 1e-3)


@given(values, st.floats(-2, 2))
def test_one_sided_p_values_are_scipy_s(sample: list[float], than: float) -> None:
    assert p_greater(sample, than) == pytest.approx(stats.ttest_1samp(sample, than, alternative="greater").pvalue)
    assert p_less(sample, than) == pytest.approx(stats.ttest_1samp(sample, than, alternative="less").pvalue)


@given(values)
def test_intervals_are_scipy_s(sample: list[float]) -> None:
    low, high = stats.ttest_1samp(sample, 0).confidence_interval(0.95)
    assert (interval(sample).low, interval(sample).high) == pytest.approx((low, high))


@given(values)
def test_the_interval_excludes_zero_when_the_test_says_so(sample: list[float]) -> None:
    assert (interval(sample, 0.9).low > 0) == (p_greater(sample) < 0.05)


def test_one_seed_proves_nothing() -> None:
    assert p_greater([3.0]) == p_less([3.0]) == p_within([0.0], 1.0) == 1.0
    assert math.isnan(interval([3.0]).low)


def test_equivalence_needs_both_sides() -> None:
    assert p_within([0.1, -0.1, 0.0, 0.05], 1.0) < 0.01
    assert p_within([2.1, 1.9, 2.0, 2.05], 1.0) > 0.5
    assert p_outside([2.1, 1.9, 2.0, 2.05], 1.0) < 0.01
    assert p_within([-3.0, 3.0, 2.0, -2.0], 1.0) > 0.05
    assert p_outside([-3.0, 3.0, 2.0, -2.0], 1.0) > 0.05


def test_equal_values_say_nothing_of_chance() -> None:
    """Such as differences of detectors that have learned nothing."""
    assert p_greater([2.0, 2.0]) == p_within([0.0, 0.0], 1.0) == p_outside([9.0, 9.0], 1.0) == 1.0
    assert p_columns_differ([[1.0, 2.0], [1.0, 2.0]]) == 1.0


def test_columns_that_differ_by_more_than_their_noise() -> None:
    noise = np.random.default_rng(0).normal(size=(5, 6))
    assert p_columns_differ((noise + np.array([0, 0, 0, 9, 0, 0])).tolist()) < 1e-6
    assert p_columns_differ(noise.tolist()) > 0.05
    shifted = noise + np.array([[0], [5], [-5], [3], [1]])
    assert p_columns_differ(shifted.tolist()) == pytest.approx(p_columns_differ(noise.tolist()))


def test_two_columns_are_the_paired_t_test() -> None:
    sample = np.random.default_rng(1).normal(size=(6, 2))
    assert p_columns_differ(sample.tolist()) == pytest.approx(stats.ttest_rel(*sample.T).pvalue)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_an_interval_has_the_digits_that_its_size_needs() -> None:
    assert str(Interval(0.004, -0.0012, 0.0092)) == "+0.0040 [-0.0012, +0.0092]"
    assert str(Interval(0.03, -0.5, 0.56)) == "+0.03 [-0.50, +0.56]"
    assert str(Interval(-1.25, math.nan, math.nan)) == "-1.25"
