"""Questions about contexts from the json of SQuAD, versions 1.1 and 2.0.

    {"question": "Who?", "answers": "[{\"text\": \"Ada\", \"start\": 4}]", "context": "It, Ada wrote."}

`start` counts the characters (Unicode code points) of the context before the answer. A question without an answer has
an empty list. A file is one JSON value, so all of it is in memory while its records are read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kerasllm.data.source_settings import TABLE_KINDS, table_kind
from kerasllm.data.tables import read_lines
from kerasllm.errors import UserError

Answer = dict[str, Any]
"""`text`, and `start` in characters."""
Record = dict[str, str]


def is_squad(path: Path) -> bool:
    """Whether a file holds one JSON object, and is no table.

    Raises:
        UserError: it cannot be read.
    """
    if table_kind(path.name) in TABLE_KINDS or not path.is_file():
        return False
    filled = (line for line in read_lines(path) if line.strip())
    return next(filled, "").lstrip().startswith("{")


def read_answers(text: str) -> list[Answer]:
    """The field `answers` of a record.

    Raises:
        UserError: it is not of that form.
    """
    try:
        answers = json.loads(text)
        if type(answers) is list and all(
            isinstance(answer["text"], str) and type(answer["start"]) is int for answer in answers
        ):
            return answers
    except (ValueError, TypeError, KeyError):
        pass
    raise UserError(f'answers must be a JSON list such as [{{"text": "Ada", "start": 4}}], found {text[:60]}')


def stands_in(answer: Answer, context: str) -> bool:
    """Whether an answer is not empty and stands where it says."""
    text, start = answer["text"], answer["start"]
    return bool(text.strip()) and start >= 0 and context[start : start + len(text)] == text


def find_answer(answer: Answer, context: str) -> Answer:
    """The answer where it stands nearest to the start that was given; as it is, if it stands nowhere."""
    text, places = answer["text"], []
    if stands_in(answer, context) or not text.strip():
        return answer
    place = context.find(text)
    while place >= 0:
        places.append(place)
        place = context.find(text, place + 1)
    return {"text": text, "start": min(places, key=lambda place: abs(place - answer["start"]))} if places else answer


def read_squad(path: Path, articles: str | None = None, must_be_found: bool = False) -> Iterator[Record]:
    """Yield a record for each question, in the order of the file.

    Args:
        path: .json or .json.gz.
        articles: those to be read, as `START:STOP` with the bounds of a Python slice; None reads all.
        must_be_found: whether an answer that does not occur in its context is an error.

    Raises:
        UserError: the file cannot be read, is no JSON or lacks a key; the place is named as `data[3].paragraphs[0]`,
            counted from 0, with the title. Or there is no such article, or no such answer.
    """
    everything = _load_articles(path)
    bounds = [int(bound) if bound else None for bound in (articles or ":").split(":")]
    chosen = range(len(everything))[slice(*bounds)]
    if not chosen:
        raise UserError(f"{path}: articles '{articles or ':'}' are none of the {len(everything)} that it has")
    for number in chosen:
        yield from _read_article(everything[number], f"{path}: data[{number}]", must_be_found)


def count_articles(path: Path) -> int:
    """How many articles a file has; errors are those of `read_squad`."""
    return len(_load_articles(path))


def _load_articles(path: Path) -> list[Any]:
    try:
        content = json.loads("".join(read_lines(path)))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: column {error.colno}: not JSON: {error.msg}") from error
    except RecursionError as error:
        raise UserError(f"{path}: not the json of SQuAD: nested too deeply") from error
    return _value(_checked(content, dict, f"{path}: it"), "data", list, f"{path}")


def _read_article(article: Any, place: str, must_be_found: bool) -> Iterator[Record]:
    article = _checked(article, dict, place)
    title = f" ({article['title']})" if isinstance(article.get("title"), str) else ""
    for index, paragraph in enumerate(_value(article, "paragraphs", list, f"{place}{title}")):
        at = f"{place}.paragraphs[{index}]{title}"
        context = _value(_checked(paragraph, dict, at), "context", str, at)
        for number, question in enumerate(_value(paragraph, "qas", list, at)):
            at = f"{place}.paragraphs[{index}].qas[{number}]{title}"
            answers = _answers_of(_checked(question, dict, at), context, at, must_be_found)
            # The long context comes last, so that what is shown of a record shows the others.
            yield {
                "question": _value(question, "question", str, at),
                "answers": json.dumps(answers, ensure_ascii=False),
                "context": context,
            }


def _answers_of(question: dict[str, Any], context: str, place: str, must_be_found: bool) -> list[Answer]:
    """What SQuAD 2.0 says to be impossible has no answer, though some may look plausible."""
    if question.get("is_impossible") is True:
        return []
    answers = []
    for index, given in enumerate(_value(question, "answers", list, place)):
        at = f"{place}: answers[{index}]"
        text, start = (_value(_checked(given, dict, at), *key, at) for key in (("text", str), ("answer_start", int)))
        answer = find_answer({"text": text, "start": start}, context)
        if must_be_found and not stands_in(answer, context):
            raise UserError(
                f"{at}: '{text[:60]}' does not occur in the context; put it right, or set data.on_missing_answer: drop"
            )
        answers.append(answer)
    return answers


_KINDS = {dict: "an object", list: "a list", str: "text", int: "a whole number"}


def _checked(value: Any, kind: type, place: str) -> Any:
    if type(value) is not kind:
        raise UserError(f"{place} must be {_KINDS[kind]}, found {json.dumps(value)[:40]}")
    try:
        if kind is str:
            value.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{place} holds half of a character (a lone surrogate); write it whole") from error
    return value


def _value(holder: dict[str, Any], key: str, kind: type, place: str) -> Any:
    if key not in holder:
        raise UserError(f"{place}: has no '{key}', as the json of SQuAD has; it has {', '.join(holder) or 'nothing'}")
    return _checked(holder[key], kind, f"{place}: '{key}'")
