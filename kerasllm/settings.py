"""Strict configuration: a YAML file and `--set` overrides -> validated objects, or one line that says what is wrong.

    document = apply_overrides(load_document(path), ["training.seed=3"])
    recipe = build_settings(Recipe, document)

Every error names the file and line, or the override, and the key; an unknown key is answered with the nearest one.
"""

from __future__ import annotations

import io
import json
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pydantic
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from kerasllm.errors import UserError, did_you_mean

KeyPath = tuple[typing.Any, ...]
SettingsClass = typing.TypeVar("SettingsClass", bound=pydantic.BaseModel)

SCALAR_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str")}
TIMESTAMP_TAG = "tag:yaml.org,2002:timestamp"

EXPECTED = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "int_parsing": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "path_type": "a path",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a section of `key: value` lines",
    "model_type": "a section of `key: value` lines",
    "model_attributes_type": "a section of `key: value` lines",
    "literal_error": "{expected}",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
}


class Settings(pydantic.BaseModel):
    """The base of every section of a recipe: unknown keys are errors, values are never converted, none changes later.

    An integer is accepted where a number is asked for; a truth value or quoted text is not.
    """

    model_config = pydantic.ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_default=False
    )


@dataclass(frozen=True)
class Document:
    """A parsed YAML file, and where each of its keys stands.

    Attributes:
        path: the file, as the person named it.
        data: plain dicts, lists and scalars.
        lines: key path -> line number, from 1.
        overrides: the key paths that came from `--set`.
    """

    path: Path
    data: dict[str, typing.Any]
    lines: dict[KeyPath, int] = field(default_factory=dict)
    overrides: tuple[KeyPath, ...] = ()

    def line(self, key_path: KeyPath) -> int | None:
        """Returns the line of a key or, where it is absent, of the section in which it would stand."""
        lengths = range(len(key_path), 0, -1)
        return next((self.lines[key_path[:n]] for n in lengths if key_path[:n] in self.lines), None)

    def place(self, key_path: KeyPath) -> str:
        """Returns how an error begins: `file:line: section.key`, or `--set section.key`."""
        name = _dotted(key_path)
        if any(key_path[: len(override)] == override for override in self.overrides):
            return f"--set {name}"
        line = self.line(key_path)
        start = f"{self.path}:{line}" if line else f"{self.path}"
        below = [_dotted(override) for override in self.overrides if override[: len(key_path)] == key_path]
        together = f" (with --set {', '.join(below)})" if below else ""
        return f"{start}: {name}{together}" if name else f"{start}{together}"


def load_document(path: str | Path) -> Document:
    """Reads a YAML file.

    Raises:
        UserError: it is missing, unreadable, not UTF-8 or not YAML, has a key twice, or is not a section of keys.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: byte {error.start}: not UTF-8; save the file as UTF-8") from error
    lines: dict[KeyPath, int] = {}
    data = _parse(text, str(path), lines)
    if data is None:
        raise UserError(f"{path}: empty; write `key: value` lines")
    if not isinstance(data, dict):
        raise UserError(f"{path}:1: must be `key: value` lines, found {_shown(data)}")
    return Document(path, data, lines)


def apply_overrides(document: Document, overrides: Sequence[str]) -> Document:
    """Returns the document with each `section.key=value` put in; values are read as YAML.

    Raises:
        UserError: an override is not of that form, or reaches into something that is not a section.
    """
    data = json.loads(json.dumps(document.data))
    applied = list(document.overrides)
    for override in overrides:
        name, equals, text = override.partition("=")
        keys = tuple(name.strip().split("."))
        if not equals or not all(keys):
            raise UserError(f"--set {override}: must be section.key=value")
        value = _parse(text, f"--set {override}", {})
        section = data
        for depth, key in enumerate(keys[:-1], start=1):
            section = section.setdefault(key, {})
            if not isinstance(section, dict):
                raise UserError(f"--set {override}: '{_dotted(keys[:depth])}' is a value, not a section")
        section[keys[-1]] = value
        applied.append(keys)
    return Document(document.path, data, document.lines, tuple(applied))


def parse_values(text: str, name: str) -> list[typing.Any]:
    """Reads `a, b, c`: the values of a YAML list without its brackets.

    Args:
        name: what an error begins with, such as the option that holds the text.

    Raises:
        UserError: it is not YAML, or there is no value.
    """
    values = _parse(f"[{text}]", name, {})
    if not isinstance(values, list) or not values:
        raise UserError(f"{name}: names no value; write them as a,b,c")
    return values


def build_settings(cls: type[SettingsClass], document: Document) -> SettingsClass:
    """Validates a document as `cls`.

    Raises:
        UserError: the first mistake, unknown keys before all others, as `file:line: key: what is wrong`.
    """
    try:
        # As JSON, because strict validation then takes a list for a tuple and text for a path, and nothing else.
        return cls.model_validate_json(json.dumps(_with_default_choices(cls, document.data)))
    except pydantic.ValidationError as error:
        mistakes = [_Mistake(document, cls, detail) for detail in error.errors(include_url=False)]
    first = min(mistakes, key=lambda mistake: (not mistake.is_unknown_key, document.line(mistake.key_path) or 0))
    same_place = [mistake for mistake in mistakes if mistake.key_path == first.key_path]
    alternatives = dict.fromkeys(mistake.expected for mistake in same_place if mistake.expected)
    raise UserError(f"{document.place(first.key_path)}: {first.text(list(alternatives))}")


class _Mistake:
    """One pydantic error, put in the words of the file."""

    def __init__(self, document: Document, cls: type[pydantic.BaseModel], detail: typing.Any):
        self.kind: str = detail["type"]
        self.message: str = detail["msg"]
        self.context: dict[str, typing.Any] = detail.get("ctx", {})
        self.found = detail["input"]
        location = detail["loc"]
        steps = list(_walk(cls, location))
        sections = [[cls], *(step.classes for step in steps)]
        self.known_keys = [key for each in sections[max(0, len(location) - 1)] for key in each.model_fields]
        self.choice = steps[-2].choice if len(steps) > 1 else ""
        keys = tuple(part for part, step in zip(location, steps, strict=True) if not step.choice)
        self.key_path = _key_path(document.data, keys, absent=self.kind == "missing")
        self.tags: list[str] = []
        if self.kind.startswith("union_tag"):
            discriminator = self.context["discriminator"].strip("'")
            self.key_path += (discriminator,)
            self.tags = sorted(_tag(each, discriminator) for each in sections[-1])
        if self.kind == "value_error":
            self._follow_key(document.data)
        self.is_unknown_key = self.kind == "extra_forbidden"
        self.expected = EXPECTED.get(self.kind, "").format(**self.context)

    def _follow_key(self, data: typing.Any) -> None:
        """Goes to the key that is meant where the validator of a section begins its message with it: `test: is ...`."""
        name, colon, rest = self.message.removeprefix("Value error, ").partition(": ")
        for key in self.key_path:
            data = data[key]
        keys = tuple(name.split("."))
        for key in keys:
            data = data.get(key) if isinstance(data, dict) else None
        if colon and data is not None:
            self.key_path, self.message = (*self.key_path, *keys), rest

    def text(self, alternatives: list[str]) -> str:
        """Returns what is wrong and what to do; `alternatives` are what all members of a union expect here."""
        if self.is_unknown_key:
            hint = did_you_mean(str(self.key_path[-1]), self.known_keys)
            return f"unknown key; {hint} ({self.choice})" if self.choice else f"unknown key; {hint}"
        if self.kind == "missing":
            return "is missing"
        if self.kind == "union_tag_not_found":
            return f"is missing; use one of {', '.join(self.tags)}"
        if self.kind == "union_tag_invalid":
            return f"unknown value {_shown(self.context['tag'])}; {did_you_mean(self.context['tag'], self.tags)}"
        if alternatives:
            return f"must be {' or '.join(alternatives)}, found {_shown(self.found)}"
        return self.message.removeprefix("Value error, ").removeprefix("Assertion failed, ")


def _parse(text: str, name: str, lines: dict[KeyPath, int]) -> typing.Any:
    """Parses YAML into plain values, and notes the line of every key and list item."""
    yaml = YAML(typ="safe", pure=True)
    try:
        root = yaml.compose(io.StringIO(text))
        return None if root is None else _plain(yaml, root, (), name, lines)
    except MarkedYAMLError as error:
        place = f"{name}:{error.problem_mark.line + 1}" if error.problem_mark and "\n" in text else name
        raise UserError(f"{place}: not YAML: {error.problem}") from error
    except (YAMLError, ValueError) as error:
        raise UserError(f"{name}: not YAML: {str(error).splitlines()[0]}") from error
    except RecursionError as error:
        raise UserError(f"{name}: nested too deeply, or an alias that contains itself") from error


def _plain(yaml: YAML, node: Node, key_path: KeyPath, name: str, lines: dict[KeyPath, int]) -> typing.Any:
    """Turns a YAML node into a dict, list or scalar; only the plain tags are known, so nothing is ever constructed."""
    if isinstance(node, MappingNode):
        section: dict[str, typing.Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, ScalarNode):
                raise UserError(f"{name}:{line}: a key must be text")
            key = key_node.value
            if key in section:
                first = lines[(*key_path, key)]
                raise UserError(f"{name}:{line}: {_dotted((*key_path, key))}: given twice, first in line {first}")
            lines[(*key_path, key)] = line
            section[key] = _plain(yaml, value_node, (*key_path, key), name, lines)
        return section
    if isinstance(node, SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*key_path, index)] = item.start_mark.line + 1
        return [_plain(yaml, item, (*key_path, index), name, lines) for index, item in enumerate(node.value)]
    tag = str(node.tag)
    if tag == TIMESTAMP_TAG:
        return node.value
    if tag not in SCALAR_TAGS:
        raise UserError(f"{name}:{node.start_mark.line + 1}: {_dotted(key_path)}: the tag {tag} is not allowed")
    return yaml.constructor.construct_object(node)


def _with_default_choices(cls: type[pydantic.BaseModel], data: dict[str, typing.Any]) -> dict[str, typing.Any]:
    """Returns the data where each section that leaves out which member of a union it is takes that of its default."""
    filled = dict(data)
    for key in data.keys() & cls.model_fields.keys():
        section, setting = data[key], cls.model_fields[key]
        if isinstance(section, dict) and setting.discriminator and isinstance(setting.default, pydantic.BaseModel):
            name = str(setting.discriminator)
            filled[key] = {name: getattr(setting.default, name), **section}
        elif isinstance(section, dict) and setting.annotation in _classes_in(cls, key):
            filled[key] = _with_default_choices(setting.annotation, section)
    return filled


def _key_path(data: typing.Any, location: KeyPath, absent: bool) -> KeyPath:
    """Returns the keys of the file for a pydantic location, which also holds the names of union members."""
    key_path: list[typing.Any] = []
    for index, part in enumerate(location):
        last = index == len(location) - 1
        if isinstance(data, dict) and (part in data or (last and absent)):
            key_path.append(part)
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            key_path.append(part)
            data = data[part]
    return tuple(key_path)


@dataclass(frozen=True)
class _Step:
    """One part of a pydantic location.

    Attributes:
        classes: the settings classes that the section it leads to may have.
        choice: `name: sgd`, where it is no key of the file but the chosen member of a discriminated union, else "".
    """

    classes: list[type[pydantic.BaseModel]]
    choice: str


def _walk(cls: type[pydantic.BaseModel], location: KeyPath) -> Iterator[_Step]:
    """Follows a pydantic location down from a settings class."""
    classes, discriminator = [cls], ""
    for part in location:
        chosen = [each for each in classes if discriminator and _tag(each, discriminator) == part]
        holders = [] if chosen else [each for each in classes if part in each.model_fields]
        below = [member for each in holders for member in _classes_in(each, part)]
        classes = chosen or below or classes
        yield _Step(classes, f"{discriminator}: {part}" if chosen else "")
        if not isinstance(part, int):  # the index of a list stands between its key and the name of a member
            discriminator = next(filter(None, (_discriminator(each, part) for each in holders)), "")


def _annotations(cls: type[pydantic.BaseModel], name: str) -> list[typing.Any]:
    """Returns a field's annotation and all that stands inside it."""
    found = [cls.model_fields[name].annotation]
    for annotation in found:
        found.extend(typing.get_args(annotation))
    return found


def _classes_in(cls: type[pydantic.BaseModel], name: str) -> list[type[pydantic.BaseModel]]:
    """Returns the settings classes that a field's annotation mentions."""
    return [each for each in _annotations(cls, name) if isinstance(each, type) and issubclass(each, pydantic.BaseModel)]


def _discriminator(cls: type[pydantic.BaseModel], name: str) -> str:
    """Returns the key that chooses the member of the union that a field is, or holds; "" if it is none."""
    inner = [each for each in _annotations(cls, name) if isinstance(each, pydantic.fields.FieldInfo)]
    return next((str(each.discriminator) for each in (cls.model_fields[name], *inner) if each.discriminator), "")


def _tag(cls: type[pydantic.BaseModel], discriminator: str) -> str:
    """Returns the value of the discriminator that chooses this class."""
    return str(typing.get_args(cls.model_fields[discriminator].annotation)[0])


def _dotted(key_path: KeyPath) -> str:
    """Returns `section.list[0].key`."""
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key_path)
    return name.removeprefix(".")


def _shown(value: typing.Any) -> str:
    """Returns a value as YAML would have it, cut short."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
