"""The JSON schema in the repository is the one that the models have now."""

import json

from guard.spec import schema
from guard.spec.edit_spec import EditSpec
from guard.spec.header import Header


def test_the_committed_schema_is_current() -> None:
    assert schema.PATH.read_text(encoding="utf-8") == schema.schema(), "run `python -m guard.spec.schema`"


def test_the_schema_describes_both_forms_and_knows_no_other_fields() -> None:
    definitions = json.loads(schema.schema())["$defs"]
    for model in (EditSpec, Header):
        described = definitions[model.__name__]
        assert described["properties"].keys() == model.model_fields.keys()
        assert described["additionalProperties"] is False
