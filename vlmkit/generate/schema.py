"""--schema: answers as JSON of a schema, given as a file, as JSON, or as `name, age int, bio: what is known`."""

import itertools
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import orjson

from vlmkit.errors import VlmkitError, check_installed
from vlmkit.models.types import Answer, ChatModel, Reply, Request, RequestError, Sampling

if TYPE_CHECKING:
    from referencing import Resource
    from referencing._core import Resolver  # for the type checker alone; no public name up to referencing 0.37

TYPES = {"str": "string", "string": "string", "int": "integer", "float": "number", "bool": "boolean"}
FIELD = re.compile(r"([A-Za-z_]\w*)(?:\s+(\w+))?(?:\s*:\s*(.+))?")
STEPS = 20_000  # of checking one value by a schema, which may refer to itself without end
FENCE = re.compile(r"```(?:json)?\s*\n?(.*?)```", re.DOTALL)
REMEDY = "give a JSON Schema, a file of one, or fields such as 'name, age int, bio: what is known'"


def read_schema(text: str) -> dict[str, Any]:
    """The JSON Schema that `text` is or names. Raises VlmkitError."""
    check_installed("--schema", "vlmkit[schema]", "jsonschema")
    if os.path.isfile(text):
        with open(text, "rb") as file:
            schema = _parsed(file.read(), text)
    elif text.lstrip().startswith("{"):
        schema = _parsed(text.encode(), "--schema")
    else:
        schema = _concise(text)
    check_schema(schema, "--schema")
    return schema


def check_schema(schema: dict[str, Any], name: str) -> None:
    """Raise VlmkitError, which calls the schema `name`, unless it is one that refers to nothing outside itself and
    comes to an end.
    """
    from jsonschema import SchemaError
    from jsonschema.validators import validator_for
    from jsonschema_specifications import REGISTRY
    from referencing import Resource
    from referencing.jsonschema import DRAFT202012

    if not isinstance(schema.get("$schema", ""), str):
        raise VlmkitError(f"{name} is not a JSON Schema: $schema is not a text", REMEDY)
    try:
        validator_for(schema).check_schema(schema)
    except SchemaError as error:
        raise VlmkitError(f"{name} is not a JSON Schema: {error.message}", REMEDY) from None
    root: Resource[Any] = Resource.from_contents(schema, default_specification=DRAFT202012)
    _check_references(root, REGISTRY.with_resource(root.id() or "", root).resolver_with_root(root), name)
    for data in (b"null", b"true", b"0", b'""', b"[]", b"{}"):
        _matches(orjson.loads(data), schema)


def _check_references(part: "Resource[Any]", resolver: "Resolver[Any]", name: str) -> None:
    """Raise VlmkitError for a reference to something outside the schema: nothing is fetched."""
    from referencing.exceptions import Unresolvable

    for key in ("$ref", "$dynamicRef"):
        if isinstance(part.contents, dict) and key in part.contents:
            try:
                resolver.lookup(part.contents[key])
            except Unresolvable:
                what = f"{name} refers to {part.contents[key]}, which is not in it"
                raise VlmkitError(what, "write that part under $defs; nothing is fetched") from None
    for inner in part.subresources():
        _check_references(inner, resolver.in_subresource(inner), name)


def _parsed(data: bytes, name: str) -> dict[str, Any]:
    try:
        found = orjson.loads(data)
    except ValueError as error:
        raise VlmkitError(f"{name} is not JSON ({error})", REMEDY) from None
    if not isinstance(found, dict):
        raise VlmkitError(f"{name} is not a JSON object", REMEDY)
    return found


def _concise(text: str) -> dict[str, Any]:
    """The schema of an object with the fields in `text`, separated by line breaks if there are any, else by commas."""
    properties: dict[str, Any] = {}
    for part in filter(None, map(str.strip, text.split("\n" if "\n" in text else ","))):
        match = FIELD.fullmatch(part)
        if match is None or (match[2] or "str") not in TYPES:
            raise VlmkitError(f"--schema: {part!r} is neither a file nor a field (TYPE: {', '.join(TYPES)})", REMEDY)
        if match[1] in properties:
            raise VlmkitError(f"--schema has two fields {match[1]}", "leave one of them out")
        about = {"description": match[3]} if match[3] else {}
        properties[match[1]] = {"type": TYPES[match[2] or "str"]} | about
    if not properties:
        raise VlmkitError("--schema is empty", REMEDY)
    required = list(properties)
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def matching_json(text: str, schema: dict[str, Any]) -> str | None:
    """The JSON in an answer, on one line, if it matches the schema; text or a code fence around it is dropped."""
    for written in (text, *FENCE.findall(text), text[text.find("{") : text.rfind("}") + 1]):
        try:
            found = orjson.loads(written)
        except ValueError:
            continue
        if _matches(found, schema):
            return orjson.dumps(found).decode()
    return None


def _matches(value: Any, schema: dict[str, Any]) -> bool:
    """Whether `value` is of the schema. Raises VlmkitError where that takes too many steps to know."""
    import attrs
    from jsonschema.validators import extend, validator_for
    from jsonschema_specifications import REGISTRY

    bounded: Any = extend(validator_for(schema))
    steps = itertools.count()

    def evolve(self: Any, **changes: Any) -> Any:
        """The validator of a part of the schema, which each step makes."""
        if next(steps) > STEPS:
            raise RecursionError
        return attrs.evolve(self, **changes)

    bounded.evolve = evolve
    try:
        return bounded(schema, registry=REGISTRY).is_valid(value)  # which fetches nothing
    except RecursionError:
        what = f"the schema takes more than {STEPS} steps to check an answer"
        raise VlmkitError(what, "simplify it, and let no part refer to itself alone") from None


def answer_by_schema(
    model: ChatModel, requests: Sequence[Request], sampling: Sampling, schema: dict[str, Any]
) -> list[Reply | RequestError]:
    """Answers as JSON on one line, and whether they are `valid`. What does not match is asked for once more."""
    instruction = f"Answer with JSON alone, of this JSON Schema: {orjson.dumps(schema).decode()}"
    asked = [replace(request, prompt=f"{request.prompt}\n{instruction}", schema=schema) for request in requests]
    replies = [_checked(answer, schema) for answer in model.answer(asked, sampling)]
    wrong = [i for i, reply in enumerate(replies) if isinstance(reply, Reply) and not reply.fields["valid"]]
    again = [replace(asked[i], prompt=f"{asked[i].prompt}\nGive nothing but the JSON.") for i in wrong]
    for i, answer in zip(wrong, model.answer(again, sampling) if again else [], strict=True):
        replies[i] = _checked(answer, schema)
    return replies


def _checked(answer: Answer | RequestError, schema: dict[str, Any]) -> Reply | RequestError:
    if isinstance(answer, RequestError):
        return answer
    try:
        found = matching_json(answer.text, schema)
    except VlmkitError as error:
        return RequestError(error.what, error.remedy)
    return Reply(answer if found is None else replace(answer, text=found), {"valid": found is not None})
