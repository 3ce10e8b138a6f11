"""Which option of a multiple-choice question its references name."""

from collections.abc import Mapping

from vlmkit.eval.predictions import Row
from vlmkit.io.choices import FIELDS


def right_option(row: Row, options: Mapping[str, str]) -> str | None:
    """The letter of the right option; None where the references name none or several.

    A number is the place of an option from 0, unless the options are numbers, too; a text may also be such a place.
    """
    if len(set(row.references)) > 1:
        return None
    reference = row.references[0].strip()
    if (letter := reference.strip("().").upper()) in options:
        return letter
    value = row.reference_value
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    lists = (row.record.get(name) for name in FIELDS)
    texts = isinstance(value, str | list | dict) or any(isinstance(found, list) and value in found for found in lists)
    named = [letter for letter, text in options.items() if text.strip().casefold() == reference.casefold()]
    if texts and len(named) == 1:
        return named[0]
    if reference.isdecimal() and int(reference) < len(options) and not (texts and named):
        return list(options)[int(reference)]
    return None
