"""Numbers as the report writes them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.report.display import (
    edit_in_words,
    listed,
    number,
    percent,
    plural,
    points,
    probability,
    sentence,
    setting,
)

finite = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e300, max_value=1e300)


def read_back(text: str) -> float:
    plain = text.replace("−", "-").replace("\u00a0", "").replace("∞", "inf")
    if "×" in plain:
        mantissa, power = plain.split("×10")
        return float(mantissa) * 10.0 ** int(power.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")))
    return float(plain)


@given(finite)
def test_a_number_is_written_to_within_five_percent_of_itself(value: float) -> None:
    assert math.isclose(read_back(number(value)), value, rel_tol=0.051, abs_tol=1e-300)


@given(st.floats(min_value=0.1, max_value=9e5))
def test_an_ordinary_number_keeps_three_significant_digits(value: float) -> None:
    assert math.isclose(read_back(number(value)), value, rel_tol=0.0051)


@given(finite)
def test_a_setting_says_the_same_as_the_number(value: float) -> None:
    assert read_back(setting(value)) == read_back(number(value))


@pytest.mark.parametrize(
    ("value", "text"), [(math.inf, "∞"), (-math.inf, "−∞"), (0.0, "0"), (1.0, "1"), (100.0, "100"), (-0.12, "−0.12")]
)
def test_settings_are_written_without_digits_that_say_nothing(value: float, text: str) -> None:
    assert setting(value) == text


def test_shares_are_percentages_and_their_differences_points() -> None:
    assert (percent(0.969), percent(0.0), points(0.3), points(0.9612)) == ("96.9%", "0.0%", "30 points", "96.1 points")


def test_a_vanishing_p_value_is_a_bound() -> None:
    assert (probability(0.0), probability(0.004)) == ("< 10⁻¹²", "= 0.0040")


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        ((1.0, 0.0, 0.0), "ablated to 0"),
        ((3.0, 0.5, 0.5), "held at 0.5"),
        ((0.5, -math.inf, math.inf), "scaled by 0.5"),
        ((1.0, -math.inf, 2.0), "clamped from above"),
        ((2.0, -1.0, math.inf), "scaled by 2, clamped from below"),
        ((1.0, -1.0, 1.0), "clamped on both sides"),
        ((1.0, -math.inf, math.inf), "left as it is"),
    ],
)
def test_an_edit_is_told_in_words(edit: tuple[float, float, float], words: str) -> None:
    assert edit_in_words(*edit) == words


def test_lists_counts_and_sentences_read_as_english() -> None:
    assert [listed(items) for items in ([], ["4"], ["4", "5"], ["3", "4", "5"])] == [
        "none",
        "4",
        "4 and 5",
        "3, 4 and 5",
    ]
    assert (plural(1, "neuron"), plural(1200, "neuron")) == ("1 neuron", "1,200 neurons")
    assert (sentence("it fell"), sentence("It fell.")) == ("It fell.", "It fell.")


def test_a_change_that_rounds_to_nothing_has_no_sign() -> None:
    assert points(-0.0001) == "0 points"
    assert points(-0.126) == "−12.6 points"
