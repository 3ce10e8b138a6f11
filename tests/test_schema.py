"""--schema: what it may say, and what fits it."""

import json
from pathlib import Path

import pytest

from vlmkit.errors import VlmkitError
from vlmkit.generate.schema import matching_json, read_schema

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "bio": {"type": "string", "description": "what is known, in short"},
    },
    "required": ["name", "age", "bio"],
    "additionalProperties": False,
}


def test_fields_in_short() -> None:
    assert read_schema("name\nage int\nbio: what is known, in short") == PERSON
    assert read_schema("name, height float, tall bool")["properties"] == {
        "name": {"type": "string"},
        "height": {"type": "number"},
        "tall": {"type": "boolean"},
    }


def test_json_and_a_file_of_it(tmp_path: Path) -> None:
    assert read_schema(json.dumps(PERSON)) == PERSON
    (tmp_path / "person.json").write_text(json.dumps(PERSON))
    assert read_schema(str(tmp_path / "person.json")) == PERSON


@pytest.mark.parametrize("text", ["", " , ", "{", "[1]", '{"type": "thing"}', "name what", "missing.json", "a-b"])
def test_what_says_no_schema(text: str) -> None:
    with pytest.raises(VlmkitError, match=r"schema|JSON"):
        read_schema(text)


def test_what_fits() -> None:
    person = '{"name": "Ada", "age": 36, "bio": "wrote the first program"}'
    line = '{"name":"Ada","age":36,"bio":"wrote the first program"}'
    for said in (person, f"```json\n{person}\n```", f"```\n{person}```", f"Here it is: {person} I hope it helps."):
        assert matching_json(said, PERSON) == line
    for said in ("Ada, 36", "", person.replace("36", '"36"'), person[:-1], '{"name": "Ada"}', "{}"):
        assert matching_json(said, PERSON) is None
    assert matching_json("[1, 2]", {"type": "array", "items": {"type": "integer"}}) == "[1,2]"


@pytest.mark.parametrize("where", ["#/$defs/nope", "http://127.0.0.1:9/x.json", "file:///etc/hostname", "other.json"])
def test_a_reference_out_of_the_schema_is_refused(where: str) -> None:
    with pytest.raises(VlmkitError, match="which is not in it"):
        read_schema(json.dumps({"properties": {"x": {"items": {"$ref": where}}}}))


def test_references_within_the_schema() -> None:
    schema = {"properties": {"x": {"$ref": "#/$defs/word"}}, "$defs": {"word": {"type": "string"}}}
    schema |= {"$schema": "http://json-schema.org/draft-07/schema#"}
    assert read_schema(json.dumps(schema)) == schema
    assert matching_json('{"x": "a"}', schema) == '{"x":"a"}' and matching_json('{"x": 1}', schema) is None


def test_a_schema_that_comes_to_no_end_is_refused() -> None:
    laughs = {"a0": {"type": "object"}}
    laughs |= {f"a{i}": {"allOf": [{"$ref": f"#/$defs/a{i - 1}"}] * 2} for i in range(1, 40)}
    mutual = {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}
    endless = {"$ref": "#/$defs/a39", "$defs": laughs}
    for schema in (endless, endless | {"unevaluatedProperties": False}, {"$ref": "#/$defs/a", "$defs": mutual}):
        with pytest.raises(VlmkitError, match="takes more than"):
            read_schema(json.dumps(schema))
    with pytest.raises(VlmkitError, match="is not a text"):
        read_schema('{"$schema": 5}')
    within = {"properties": {"a": endless}, "$defs": laughs}  # is only seen with an answer
    assert read_schema(json.dumps(within)) == within
    with pytest.raises(VlmkitError, match="takes more than"):
        matching_json('{"a": {}}', within)
    tree = {"properties": {"leaves": {"type": "array", "items": {"$ref": "#"}}}}
    assert matching_json('{"leaves":[{"leaves":[]}]}', tree) == '{"leaves":[{"leaves":[]}]}'


def test_a_field_twice() -> None:
    with pytest.raises(VlmkitError, match="two fields a"):
        read_schema("a, b, a int")
