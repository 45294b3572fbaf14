"""The JSON schema of an edit spec, for programs that are not this one: `python -m guard.spec.schema` writes it anew.

It describes both forms: `EditSpec`, with the contents of the tensors, and `Header`, the document that a spec file's
metadata holds under `neuron_guard`. What relates one part to another (sorted layers, a trigger before the first)
is beyond a JSON schema; loading checks that.
"""

import json
from pathlib import Path

from pydantic.json_schema import models_json_schema

from guard.spec.edit_spec import EditSpec
from guard.spec.header import Header

PATH = Path(__file__).parent / "edit_spec.schema.json"


def schema() -> str:
    """The text of the schema file."""
    _, definitions = models_json_schema([(EditSpec, "validation"), (Header, "validation")])
    document = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "neuron-guard edit spec",
        "$ref": "#/$defs/EditSpec",
        **definitions,
    }
    return json.dumps(document, indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    PATH.write_text(schema(), encoding="utf-8")
