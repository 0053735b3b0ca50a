"""What cleaning drops from training, what it only notes in the other splits, and what it reports."""

from collections import Counter

import pytest

from kerasllm.data.cleaning import Cleaner, RecordSet, find_fault, format_report, normalize
from kerasllm.data.settings import CleaningSettings
from kerasllm.errors import UserError

NO_RATIO = {"max_length_ratio": None}


def pairs(*rows):
    return [{"source": source, "target": target} for source, target in rows]


def clean(cleaner, split, *rows):
    return [tuple(record.values()) for record in cleaner.clean(split, pairs(*rows))]


@pytest.mark.parametrize(
    ("options", "text", "expected"),
    [
        ({}, " a\u00a0 b\t\n", "a b"),
        ({}, "u\u0308ber ﬁne", "über ﬁne"),
        ({"normalize_unicode": "NFKC"}, "u\u0308ber ﬁne ２", "über fine 2"),
        ({"normalize_unicode": "none"}, "u\u0308ber", "u\u0308ber"),
        ({"collapse_spaces": False}, " a  b", " a  b"),
    ],
)
def test_normalize(options, text, expected):
    assert normalize(text, CleaningSettings(**options)) == expected


@pytest.mark.parametrize(
    ("options", "source", "target", "reason"),
    [
        ({}, "a", "b", None),
        ({}, "", "b", "empty"),
        ({"collapse_spaces": False}, "a", "  ", "empty"),
        ({"min_characters": 2}, "aa", "b", "too_short"),
        ({"max_characters": 5}, "aaaaa", "bbbbb", None),
        ({"max_characters": 5}, "aaaaa", "bbbbbb", "too_long"),
        ({"max_length_ratio": 2.5}, "aa", "bbbbb", None),
        ({"max_length_ratio": 2.5}, "aa", "bbbbbb", "length_ratio"),
        ({"max_length_ratio": 2.5}, "bbbbbb", "aa", "length_ratio"),
        (NO_RATIO, "a", "b" * 100, None),
    ],
)
def test_faults_of_one_record(options, source, target, reason):
    fields = ("source", "target")
    assert find_fault({"source": source, "target": target}, CleaningSettings(**options), fields) == reason


def test_lengths_are_compared_only_of_texts_that_say_the_same():
    record = {"text": "a" * 100, "label": "1", "other_text": "b" * 9}
    assert find_fault(record, CleaningSettings(max_length_ratio=2.5), ()) is None
    assert find_fault(record, CleaningSettings(max_length_ratio=20), ("text", "other_text")) is None
    assert find_fault(record, CleaningSettings(max_length_ratio=2.5), ("text", "other_text")) == "length_ratio"


def test_duplicates_and_leaks_leave_the_training_split_alone_whole():
    cleaner = Cleaner(CleaningSettings())
    test = [("t", "T"), ("t", "T"), ("", "E")]
    assert clean(cleaner, "test", *test) == test
    assert clean(cleaner, "validation", ("v", "V"), ("t", "T")) == [("v", "V"), ("t", "T")]
    kept = clean(cleaner, "train", ("a", "A"), (" t", "T "), ("v", "V"), ("a ", "A"), ("a", "B"), ("A", "a"), ("x", ""))
    assert kept == [("a", "A"), ("a", "B"), ("A", "a")]
    report = cleaner.report.as_dict()
    assert report["train"]["dropped"] == {"leak": 2, "duplicate": 1, "empty": 1}
    assert (report["train"]["read"], report["train"]["kept"]) == (7, 3)
    assert report["train"]["examples"]["leak"] == ["2: t | T", "3: v | V"]
    assert report["validation"]["noted"] == {"leak": 1}
    assert report["test"]["noted"] == {"duplicate": 1, "empty": 1}
    assert (report["test"]["kept"], report["test"]["dropped"]) == (3, {})


def test_what_is_switched_off_is_kept():
    cleaner = Cleaner(CleaningSettings(drop_duplicates=False, drop_leaks=False))
    clean(cleaner, "test", ("t", "T"))
    rows = [("a", "A"), ("t", "T"), ("a", "A")]
    assert clean(cleaner, "train", *rows) == rows
    cleaner = Cleaner(CleaningSettings(drop_duplicates=False))
    clean(cleaner, "test", ("t", "T"))
    assert clean(cleaner, "train", *rows) == [("a", "A"), ("a", "A")]


def test_train_comes_last():
    cleaner = Cleaner(CleaningSettings())
    clean(cleaner, "train", ("a", "A"))
    with pytest.raises(ValueError, match="train must be cleaned last, but test comes after it"):
        clean(cleaner, "test", ("a", "A"))


def test_the_report_as_text():
    cleaner = Cleaner(CleaningSettings(max_characters=300, max_length_ratio=None))
    clean(cleaner, "train", ("a", "A"), *[("x" * 250, f"{n}" * 2) for n in range(5)], *[("b" * 301, "B")] * 5)
    text = format_report(cleaner.report.as_dict())
    lines = text.splitlines()
    assert lines[0] == "train: 6 of 11 records kept"
    assert lines[1] == "  5 dropped: a text has more than max_characters"
    assert [line[:20] for line in lines[2:]] == [f"    record {n}: bbbbbb" for n in (7, 8, 9)]
    assert max(map(len, lines)) < 200


def test_record_set_against_a_python_set():
    seen = RecordSet()
    records = [{"source": str(n % 3000), "target": str(n % 7)} for n in range(50_000)]
    known = set()
    for record in records:
        key = tuple(record.values())
        assert (record in seen) == (key in known)
        assert seen.add(record) == (key not in known)
        known.add(key)
    assert len(known) == 21_000
    assert {"source": "x", "target": "0"} not in seen
    assert len(seen._table) * 8 <= 24 * len(known)


def test_fields_are_kept_apart():
    seen = RecordSet()
    seen.add({"source": "ab", "target": "c"})
    assert {"source": "a", "target": "bc"} not in seen


def test_fields_that_are_left_as_they_are_and_a_reason_of_the_task():
    def fault_of(record):
        if record["source"] == "?":
            raise UserError("cannot be read")
        return "missing_answer" if record["source"] == "x" else None

    long = "  u\u0308 " * 9
    cleaner = Cleaner(CleaningSettings(max_characters=5, min_characters=2), (), ("source",), fault_of)
    rows = [(long, " u\u0308  b"), ("x", "ab"), (" ", "ab"), (long, "too long"), (long, "a"), ("y", "ab")]
    assert clean(cleaner, "train", *rows) == [(long, "ü b"), ("y", "ab")]
    assert cleaner.report["train"].dropped == {"missing_answer": 1, "empty": 1, "too_long": 1, "too_short": 1}
    with pytest.raises(UserError, match=r"data\.test: record 2: cannot be read"):
        clean(Cleaner(CleaningSettings(), (), (), fault_of), "test", ("a", "b"), ("?", "b"))


def few(rows, number, seed=0, **options):
    """The rows that are kept of `source` texts with labels in `target`."""
    settings = CleaningSettings(max_records_per_label=number, choice_seed=seed, max_length_ratio=None, **options)
    cleaner = Cleaner(settings, label_field="target")
    return clean(cleaner, "train", *rows), cleaner.report


MANY = [(f"text {n}", ["good", "bad", "odd"][n % 5 % 3]) for n in range(60)]


def test_few_of_each_label_are_chosen_in_their_order():
    kept, report = few(MANY, 4)
    assert [label for _, label in kept].count("good") == [label for _, label in kept].count("odd") == 4
    assert len(kept) == 12
    assert kept == [row for row in MANY if row in kept]
    assert (report["train"].read, report["train"].kept) == (60, 12)
    assert "48 dropped: max_records_per_label others of its label were chosen" in format_report(report.as_dict())
    assert Counter(label for _, label in few(MANY, 13)[0]) == {"good": 13, "bad": 13, "odd": 12}  # all that there are


def test_which_ones_follows_from_the_seed_and_the_texts_alone():
    kept = few(MANY, 4)[0]
    assert few(MANY, 4)[0] == kept
    assert set(few(MANY[::-1], 4)[0]) == set(kept)
    assert set(few(MANY, 4, seed=1)[0]) != set(kept)
    assert set(few(MANY, 3)[0]) < set(kept)
    assert set(few([*MANY, ("text of a new label", "new")], 4)[0]) == {*kept, ("text of a new label", "new")}


def test_only_sound_training_records_are_chosen_from():
    settings = CleaningSettings(max_records_per_label=2, max_length_ratio=None)
    cleaner = Cleaner(settings, label_field="target")
    assert len(clean(cleaner, "validation", *MANY)) == 60
    kept = clean(cleaner, "train", *MANY, ("", "good"), ("new", "good"), ("new", "good"), ("newer", "bad"))
    assert kept == [("new", "good"), ("newer", "bad")]
    assert cleaner.report["train"].dropped == {"leak": 60, "empty": 1, "duplicate": 1}
    unlabelled = Cleaner(settings)
    assert len(clean(unlabelled, "train", *MANY)) == 60
