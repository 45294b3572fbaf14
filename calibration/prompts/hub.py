"""A public data set as numbered rows, through the `datasets` library.

Kept apart so that reading a local file neither imports `datasets` nor touches the network.
"""

from collections.abc import Iterator

from calibration.prompts.rows import PromptFileError, Row


def read_hub_rows(source: str, split: str | None) -> Iterator[Row]:
    """The rows of the data set `source`, "name" or "name:configuration".

    Without `split`, the one named train is taken, or the only one there is. Raises PromptFileError when the data set
    cannot be had: unknown name, no network, no such configuration or split.
    """
    import datasets

    name, _, configuration = source.partition(":")
    try:
        loaded = datasets.load_dataset(name, configuration or None)
    except (OSError, ValueError, RuntimeError) as error:
        reason = (
            f"is neither a file here nor a data set that the hub gave ({type(error).__name__}); "
            "check the spelling and the network, or pass a csv, json or jsonl file"
        )
        raise PromptFileError(source, None, reason) from error
    wanted = split or ("train" if "train" in loaded or len(loaded) != 1 else next(iter(loaded)))
    if wanted not in loaded:
        raise PromptFileError(source, None, f"has no split {wanted!r}; it has {', '.join(map(str, loaded))}")
    for number, cells in enumerate(loaded[wanted], start=1):
        yield Row(number, {str(column).strip().lower(): cell for column, cell in cells.items()})
