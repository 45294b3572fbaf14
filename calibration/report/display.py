"""How the report writes numbers and names: one place, so that a figure, its table and the text agree to the digit.

It trades digits for reading: three significant ones are kept, since intervals say how far a value can be trusted.
"""

import math

from guard.spec.edit_spec import Estimate

TOKEN_GROUP_NAMES = {
    "edited": "all aligned tokens",
    "tail": "template tail",
    "last_prompt": "last prompt token",
    "response": "forced response",
    "first_response": "first response token",
}
KIND_NAMES = {"layer": "layer output", "attention": "attention", "mlp": "MLP"}
FAMILY_NAMES = {
    "scale": "scaled towards 0",
    "clamp": "clamped on one side",
    "benign_mean": "held near the benign mean",
    "reference_mean": "held near the reference mean",
    "hold": "held up to the reference mean",
}
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
SMALLEST_P = 1e-12


def number(value: float) -> str:
    """Three significant digits, a real minus sign, powers of ten for the very small and very large, ∞ for infinity."""
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    size = abs(value)
    if size == 0:
        return "0"
    if size < 1e-3 or size >= 1e6:
        mantissa, exponent = f"{value:.1e}".split("e")
        text = f"{mantissa}\u00a0×\u00a010{str(int(exponent)).translate(SUPERSCRIPTS)}"
    else:
        text = f"{value:.{max(0, min(4, 2 - math.floor(math.log10(size))))}f}"
    return text.replace("-", "−")


def percent(share: float) -> str:
    """A share in [0, 1] as a percentage with one decimal."""
    return f"{100 * share:.1f}%"


def chance(probability: float) -> str:
    """A probability as a percentage; a small one as a bound, so that it does not read as impossible."""
    return "< 0.1%" if probability < 0.0005 else percent(probability)


def points(difference: float) -> str:
    """A difference of two shares, in percentage points."""
    rounded = round(100 * difference, 1) + 0.0  # not −0
    return f"{rounded:.1f}".removesuffix(".0").replace("-", "−") + " points"


def share(value: Estimate) -> str:
    """A share with its 95 % interval, as whole percentages; it may lie above 1 or below 0."""
    low, middle, high = (str(round(100 * part)).replace("-", "−") for part in (value.low, value.value, value.high))
    return f"{middle}% ({low} to {high})"


def setting(value: float) -> str:
    """A value that was set rather than measured: no digits that say nothing."""
    text = number(value)
    return text.rstrip("0").rstrip(".") if "." in text and "×" not in text else text


def estimate(value: Estimate) -> str:
    """A point with its 95 % interval, in the unit of the value."""
    return f"{number(value.value)} ({number(value.low)} to {number(value.high)})"


def probability(value: float) -> str:
    """The right-hand side of a p-value: "= 0.003", "< 10⁻¹²"."""
    return "< 10⁻¹²" if value < SMALLEST_P else f"= {number(value)}"


def plural(count: int, singular: str, several: str | None = None) -> str:
    """ "1 neuron", "8 neurons"."""
    return f"{count:,} {singular if count == 1 else several or singular + 's'}"


def listed(items: list[str]) -> str:
    """ "4", "4 and 5", "3, 4 and 5"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else "none"


def sentence(clause: str) -> str:
    """A clause as a sentence: capital first, full stop last."""
    text = clause.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def visible(text: str) -> str:
    """A text on one line: line ends and tabs as arrows, what does not print as its code point. So nothing in it can
    steer a terminal or turn the text around it.
    """
    arrows = {"\n": "⏎", "\t": "⇥"}
    return "".join(arrows.get(each) or (each if each.isprintable() else f"U+{ord(each):04X}") for each in text)


def token(text: str) -> str:
    """A token so that all of it is seen: `visible`, and spaces as dots."""
    return visible(text).replace(" ", "·") or "∅"


def edit_in_words(scale: float, lower: float, upper: float) -> str:
    """What clip(scale · h, lower, upper) does to a neuron, in a few words."""
    if lower == upper:
        return "ablated to 0" if lower == 0 else f"held at {setting(lower)}"
    steps = [] if scale == 1 else [f"scaled by {setting(scale)}"]
    if math.isfinite(lower) and math.isfinite(upper):
        steps.append("clamped on both sides")
    elif math.isfinite(upper):
        steps.append("clamped from above")
    elif math.isfinite(lower):
        steps.append("clamped from below")
    return ", ".join(steps) or "left as it is"
