"""The json of SQuAD: records with answers where they stand, parts of a file, and one clear line for each mistake."""

import gzip
import json

import pytest

from kerasllm.data.source_settings import SquadPartSettings, SquadSettings
from kerasllm.data.sources import read_records, source_fingerprint
from kerasllm.data.squad import find_answer, is_squad, read_answers
from kerasllm.errors import UserError

CONTEXT = "𝔄da wrote it.\r\n  Ada, the cafe\u0301's 北京 owner, wrote it."


def question(text, *answers, **more):
    return {"question": text, "answers": [{"text": t, "answer_start": s} for t, s in answers], **more}


def article(title, *questions, context=CONTEXT):
    return {"title": title, "paragraphs": [{"context": context, "qas": list(questions)}]}


ARTICLES = [
    article("One", question("Who?", ("Ada", 17)), question("Where?", ("北京", CONTEXT.index("北")))),
    article("Two", question("What?", ("cafe\u0301", CONTEXT.index("cafe")), ("it", 9))),
    article("Three", question("Why?", is_impossible=True, plausible_answers=[]), question("No?")),
]


@pytest.fixture
def read(tmp_path):
    """read(articles, "0:2") are the records of a file, with the answers read."""

    def read(articles, chosen=None, name="a.json", text=None, **settings):
        content = (text or json.dumps({"version": "v2.0", "data": articles})).encode()
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        data = SquadSettings(source="squad", train=SquadPartSettings(file=name, articles=chosen), **settings)
        return [{**r, "answers": read_answers(r["answers"])} for r in read_records(data, "train", tmp_path)]

    return read


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_records_and_their_answers(read, name):
    records = read(ARTICLES, name=name)
    assert [record["question"] for record in records] == ["Who?", "Where?", "What?", "Why?", "No?"]
    assert [[answer["text"] for answer in record["answers"]] for record in records] == [
        ["Ada"],
        ["北京"],
        ["cafe\u0301", "it"],
        [],
        [],
    ]
    for record in records:
        assert record["context"] == CONTEXT, "verbatim"
        for answer in record["answers"]:
            assert CONTEXT[answer["start"] :].startswith(answer["text"])


@pytest.mark.parametrize(
    ("chosen", "questions"), [("0:1", 2), ("1:", 3), (":-1", 3), ("-1:", 2), ("1:99", 3), (":", 5), (None, 5)]
)
def test_some_articles_of_a_file(read, chosen, questions):
    assert len(read(ARTICLES, chosen)) == questions


def test_a_file_alone_is_its_name():
    assert SquadSettings(source="squad", train="a.json").train == SquadPartSettings(file="a.json")


def test_splits_of_one_file_have_their_fingerprint(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    data = SquadSettings(source="squad", train="a.json", test={"file": "a.json", "articles": "0:1"})
    first = source_fingerprint(data, tmp_path)
    assert list(first) == ["train/squad", "test/squad"]
    (tmp_path / "a.json").write_text("{ }")
    assert source_fingerprint(data, tmp_path)["test/squad"] != first["test/squad"]


@pytest.mark.parametrize(("start", "found"), [(0, 0), (1, 0), (3, 4), (9, 8), (99, 8), (-5, 0)])
def test_an_answer_is_found_where_it_is_nearest(start, found):
    assert find_answer({"text": "aba", "start": start}, "aba aba aba".replace(" ", "-")) == {
        "text": "aba",
        "start": found,
    }


def test_places_that_overlap():
    assert find_answer({"text": "aa", "start": 3}, "baaaa")["start"] == 3
    assert find_answer({"text": "aa", "start": 9}, "baaaa")["start"] == 3


def test_an_answer_that_is_nowhere_stays_and_can_be_an_error(read):
    wrong = [*ARTICLES, article("Four", question("When?", ("it", 9), ("Charles", 3)))]
    assert read(wrong)[-1]["answers"][1] == {"text": "Charles", "start": 3}
    place = r"a\.json: data\[3\]\.paragraphs\[0\]\.qas\[0\] \(Four\): answers\[1\]: 'Charles' does not occur"
    with pytest.raises(UserError, match=place):
        read(wrong, on_missing_answer="error")


def without(holder, key):
    return {name: value for name, value in holder.items() if name != key}


PARAGRAPH = ARTICLES[0]["paragraphs"][0]
QUESTION = PARAGRAPH["qas"][0]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (without(ARTICLES[0], "paragraphs"), r"data\[1\] \(One\): has no 'paragraphs', .*; it has title"),
        ({"title": "x", "paragraphs": [without(PARAGRAPH, "context")]}, r"data\[1\]\.paragraphs\[0\] \(x\): has no 'c"),
        ({"paragraphs": [without(PARAGRAPH, "qas")]}, r"data\[1\]\.paragraphs\[0\]: has no 'qas'"),
        (article("x", QUESTION, without(QUESTION, "question")), r"\.qas\[1\] \(x\): has no 'question'"),
        (article("x", without(QUESTION, "answers")), r"\.qas\[0\] \(x\): has no 'answers', as"),
        (article("x", {**QUESTION, "answers": [{"text": "a"}]}), r"answers\[0\]: has no 'answer_start'"),
        (article("x", {**QUESTION, "answers": {"text": "a"}}), r"'answers' must be a list, found \{"),
        (article("x", question("q", ("Ada", "17"))), r"'answer_start' must be a whole number, found \"17\""),
        (article("x", question("q", ("Ada", True))), r"'answer_start' must be a whole number, found true"),
        (article("x", context="\ud800"), r"'context' holds half of a character"),
        ("x", r"data\[1\] must be an object, found \"x\""),
    ],
)
def test_broken_articles_are_named(read, broken, message):
    with pytest.raises(UserError, match=message) as error:
        read([ARTICLES[0], broken])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "chosen", "message"),
    [
        ('{"data": [\n{"title" 1}]}', None, r"a\.json:2: column 10: not JSON"),
        ("[]", None, r"a\.json: it must be an object, found \[\]"),
        ('{"version": 1}', None, r"a\.json: has no 'data', .*; it has version"),
        ('{"data": [1]}', "1:3", r"a\.json: articles '1:3' are none of the 1 that it has"),
        ('{"data": []}', None, r"a\.json: articles ':' are none of the 0"),
        ("[" * 100_000, None, r"a\.json: not the json of SQuAD: nested too deeply"),
        ('{"data": [{"paragraphs": []}]}', None, r"a\.json: holds no records; data\.train needs at least one"),
    ],
)
def test_broken_files(read, text, chosen, message):
    with pytest.raises(UserError, match=message):
        read(None, chosen, text=text)


@pytest.mark.parametrize("text", ["", "{}", "3", '["Ada"]', '[{"text": "a"}]', '[{"text": 1, "start": 1}]', "Ada"])
def test_answers_that_cannot_be_read(text):
    with pytest.raises(UserError, match="answers must be a JSON list such as"):
        read_answers(text)


def test_it_is_known_by_its_content(tmp_path):
    for name, content, expected in [
        ("a.json", '\n {"data": []}', True),
        ("b.txt", "\ufeff{", True),
        ("c.jsonl", '{"text": "a"}', False),
        ("d.json", '[{"text": "a"}]', False),
        ("e", "", False),
    ]:
        (tmp_path / name).write_text(content, encoding="utf-8")
        assert is_squad(tmp_path / name) == expected, name
    assert not is_squad(tmp_path / "f.json")
