"""The list of analyses, as it is told to who may choose among them."""

import inspect

from calibration.analyses.registry import NAMES
from neuron_guard import calibrate


def test_the_help_of_calibrate_names_every_analysis() -> None:
    (option,) = inspect.signature(calibrate).parameters["analyses"].annotation.__metadata__
    told = option.help.rpartition(" of ")[2].rstrip(".").split(", ")
    assert told == list(NAMES)
