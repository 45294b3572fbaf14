"""Statistics against known values, against scipy where it is slower, and by simulation under known truth."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from calibration.effects.statistics import (
    Alternative,
    benjamini_hochberg,
    bootstrap_estimate,
    bootstrap_estimates,
    rank_p_value,
    rate_drop_p_value,
    selectivity_estimates,
    sign_flip_p_values,
    wilson_estimate,
)

finite = st.floats(-1e6, 1e6, allow_subnormal=False)


def test_the_bootstrap_interval_holds_the_true_mean_about_as_often_as_it_says() -> None:
    samples = np.random.default_rng(0).exponential(size=(60, 400))  # skewed, true mean 1
    estimates = bootstrap_estimates(samples, seed=1)
    covered = np.mean([estimate.low <= 1.0 <= estimate.high for estimate in estimates])
    assert 0.90 <= covered <= 0.98


def test_the_bootstrap_interval_of_a_normal_sample_is_near_the_t_interval() -> None:
    sample = np.random.default_rng(2).normal(3.0, 2.0, size=200)
    estimate = bootstrap_estimate(sample, seed=0)
    t_low, t_high = stats.t.interval(0.95, 199, loc=sample.mean(), scale=stats.sem(sample))
    assert (estimate.low, estimate.high) == pytest.approx((t_low, t_high), abs=0.06)
    assert estimate.value == pytest.approx(sample.mean())
    assert estimate.n == 200


@given(values=arrays(np.float64, st.tuples(st.integers(2, 12), st.integers(1, 4)), elements=finite))
def test_every_interval_is_finite_and_holds_its_point(values: np.ndarray) -> None:
    for estimate, column in zip(bootstrap_estimates(values, seed=0), values.T, strict=True):
        assert estimate.low <= estimate.value <= estimate.high
        scale = np.abs(column).max()
        assert column.min() - 1e-9 * scale <= estimate.low
        assert estimate.high <= column.max() + 1e-9 * scale


def test_a_constant_sample_has_its_value_for_an_interval() -> None:
    estimate = bootstrap_estimate([0.1] * 7, seed=0)
    assert estimate.low == estimate.value == estimate.high == pytest.approx(0.1)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    sample = np.random.default_rng(3).normal(size=30)
    first, again, other = (bootstrap_estimate(sample, seed=seed) for seed in (5, 5, 6))
    assert first == again
    assert first != other


@pytest.mark.parametrize("values", [[1.0], [], [[1.0], [2.0]], [1.0, float("nan")], [1.0, float("inf")]])
def test_values_without_an_interval_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match=r"values|pairs"):
        bootstrap_estimate(values, seed=0)


def test_wilson_gives_the_published_interval() -> None:
    estimate = wilson_estimate(81, 263)  # Newcombe 1998, table I
    assert (estimate.low, estimate.high) == pytest.approx((0.2553, 0.3662), abs=5e-5)


@given(n=st.integers(1, 500), share=st.floats(0, 1))
def test_a_rate_lies_in_its_interval_and_the_interval_in_zero_to_one(n: int, share: float) -> None:
    estimate = wilson_estimate(round(share * n), n)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    assert estimate.low < estimate.high


@pytest.mark.parametrize(("count", "n"), [(0, 0), (3, 2), (-1, 4)])
def test_a_rate_of_nothing_is_refused(count: int, n: int) -> None:
    with pytest.raises(ValueError, match="a rate needs"):
        wilson_estimate(count, n)


def test_benjamini_hochberg_gives_the_discoveries_of_the_published_example() -> None:
    p = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262, 0.5719, 0.6528]
    p += [0.7590, 1.0]  # Benjamini and Hochberg 1995, section 3.2: the first four at q = 0.05
    assert (benjamini_hochberg(p) <= 0.05).sum() == 4


def test_false_discoveries_stay_under_their_rate() -> None:
    random = np.random.default_rng(4)
    shares = []
    for _ in range(200):
        effects = np.concatenate([np.full(20, 3.5), np.zeros(180)])
        found = benjamini_hochberg(stats.norm.sf(random.normal(effects))) <= 0.1
        shares.append(found[20:].sum() / max(1, found.sum()))
    assert np.mean(shares) <= 0.1


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
def test_all_sign_flips_of_a_small_sample_agree_with_scipy(alternative: Alternative) -> None:
    table = np.random.default_rng(5).normal(0.4, 1.0, size=(9, 5))
    expected = [
        stats.permutation_test((column,), np.mean, permutation_type="samples", alternative=alternative).pvalue
        for column in table.T
    ]
    if alternative == "two-sided":
        expected = [min(1.0, p) for p in expected]
    assert sign_flip_p_values(table, seed=0, alternative=alternative) == pytest.approx(expected, abs=1e-12)


def test_random_sign_flips_agree_with_all_of_them() -> None:
    table = np.random.default_rng(6).normal(0.4, 1.0, size=(12, 8))
    every, drawn = (sign_flip_p_values(table, seed=0, flips=flips) for flips in (4096, 4000))
    assert drawn == pytest.approx(every, abs=0.03)
    assert not np.array_equal(every, drawn)


def test_p_is_uniform_where_nothing_is_there() -> None:
    table = np.random.default_rng(7).standard_t(3, size=(40, 2000))
    p = sign_flip_p_values(table, seed=0, flips=999)
    assert stats.kstest(p, "uniform").pvalue > 0.001
    assert (p <= 0.05).mean() == pytest.approx(0.05, abs=0.02)


@given(table=arrays(np.float64, st.tuples(st.integers(1, 20), st.integers(1, 4)), elements=finite))
def test_no_p_value_is_zero_or_above_one(table: np.ndarray) -> None:
    p = sign_flip_p_values(table, seed=0, flips=200)
    assert p.shape == (table.shape[1],)
    assert ((p > 0) & (p <= 1)).all()


def test_a_neuron_that_never_differs_is_no_discovery() -> None:
    assert sign_flip_p_values(np.zeros((30, 2)), seed=0).tolist() == [1.0, 1.0]


def test_a_rank_counts_the_value_itself_and_ties() -> None:
    null = [1.0, 2.0, 3.0, 4.0]
    assert rank_p_value(5.0, null) == pytest.approx(1 / 5)
    assert rank_p_value(3.0, null) == pytest.approx(3 / 5)
    assert rank_p_value(0.0, null, alternative="less") == pytest.approx(1 / 5)


def outcomes(both: int, falls: int, rises: int, neither: int) -> tuple[list[bool], list[bool]]:
    off = [True] * both + [True] * falls + [False] * rises + [False] * neither
    on = [True] * both + [False] * falls + [True] * rises + [False] * neither
    return off, on


def test_without_a_margin_it_is_the_exact_test_of_mcnemar() -> None:
    assert rate_drop_p_value(*outcomes(10, 9, 1, 5)) == pytest.approx(11 / 1024)
    assert rate_drop_p_value(*outcomes(10, 1, 9, 5)) == pytest.approx(1 - 1 / 1024)


def test_with_a_margin_the_p_value_of_an_unbroken_fall_is_its_probability_at_the_worst_rates() -> None:
    # Every request fell: P(T >= n) = q^n, largest at q = (1 + margin) / 2.
    assert rate_drop_p_value(*outcomes(0, 12, 0, 0), margin=0.3) == pytest.approx(0.65**12)


def test_a_fall_within_the_margin_is_no_finding() -> None:
    assert rate_drop_p_value(*outcomes(80, 20, 0, 0), margin=0.3) > 0.9
    assert rate_drop_p_value(*outcomes(0, 0, 0, 50), margin=0.3) == 1.0
    assert rate_drop_p_value(*outcomes(0, 0, 30, 20), margin=0.3) == 1.0


@given(falls=st.integers(0, 30), rises=st.integers(0, 30), rest=st.integers(1, 30))
def test_a_wider_margin_and_a_further_rise_never_make_it_surer(falls: int, rises: int, rest: int) -> None:
    p = [rate_drop_p_value(*outcomes(0, falls, rises, rest), margin=margin) for margin in (0.05, 0.2, 0.4)]
    assert p == sorted(p)
    assert all(0 < value <= 1 for value in p)
    assert rate_drop_p_value(*outcomes(0, falls, rises + 1, rest - 1), margin=0.2) >= p[1] - 1e-9


@pytest.mark.parametrize(("fall_rate", "rise_rate"), [(0.3, 0.0), (0.4, 0.1), (0.65, 0.35)])
def test_a_fall_of_just_the_margin_is_called_one_no_more_often_than_it_says(fall_rate: float, rise_rate: float) -> None:
    random = np.random.default_rng(8)
    called = 0
    for _ in range(300):
        falls, rises, rest = random.multinomial(50, [fall_rate, rise_rate, max(0.0, 1 - fall_rate - rise_rate)])
        called += rate_drop_p_value(*outcomes(0, falls, rises, rest), margin=0.3) <= 0.05
    assert called <= 0.05 * 300 + 3 * np.sqrt(0.05 * 0.95 * 300)


@pytest.mark.parametrize(("off", "on", "margin"), [([True], [True, False], 0.0), ([], [], 0.0), ([True], [True], 1.0)])
def test_requests_that_are_not_paired_are_refused(off: list[bool], on: list[bool], margin: float) -> None:
    with pytest.raises(ValueError, match=r"paired|margin"):
        rate_drop_p_value(off, on, margin=margin)


@given(
    wanted=arrays(np.float64, (5, 3), elements=st.floats(-10, 10)),
    unwanted=arrays(np.float64, (7, 3), elements=st.floats(-10, 10)),
)
def test_a_selectivity_index_lies_between_its_ends_and_is_1_only_for_what_is_wanted_alone(
    wanted: np.ndarray, unwanted: np.ndarray
) -> None:
    for place, index in enumerate(selectivity_estimates(wanted, unwanted, seed=0)):
        assert -1 <= index.low <= index.value <= index.high <= 1
        a, b = max(wanted[:, place].mean(), 0.0), np.abs(unwanted[:, place]).mean()
        assert index.value == pytest.approx((a - b) / (a + b) if a + b > 0 else 0.0)


def test_a_selectivity_index_has_its_true_value_in_its_interval_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(5)
    wanted = random.normal(3.0, 1.0, size=(40, 300))
    unwanted = np.abs(random.normal(0.0, 1.0, size=(40, 300)))
    truth = (3 - np.sqrt(2 / np.pi)) / (3 + np.sqrt(2 / np.pi))
    indices = selectivity_estimates(wanted, unwanted, seed=0)
    assert 0.88 <= np.mean([index.low <= truth <= index.high for index in indices]) <= 0.99


def test_one_request_has_no_selectivity() -> None:
    with pytest.raises(ValueError, match="at least two"):
        selectivity_estimates([[1.0]], [[1.0], [2.0]], seed=0)
