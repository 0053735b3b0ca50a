"""The built-in dates: right, never ambiguous, the same for the same seed, and unseen days in validation and test."""

import random
import re
import unicodedata
from collections import defaultdict
from datetime import date
from itertools import islice

import pytest

from kerasllm.data.dates import BENDS, FORMS, generate_dates, ordinal, split_of, write_date


@pytest.fixture(scope="module")
def records():
    return {split: list(generate_dates(split, 4000, seed=0)) for split in ("train", "validation", "test")}


class FixedForm(random.Random):
    """Chooses the language, the form and the bend that it is told."""

    def __new__(cls, *_choice):  # in Python 3.10 random.Random takes one argument here
        return super().__new__(cls)

    def __init__(self, language, form, bend="as it is"):
        super().__init__(0)
        self.choices = lambda names, weights: [bend]
        self.wanted = [language, form]

    def choice(self, names):
        wanted = self.wanted.pop(0)
        assert wanted in names
        return wanted


def write(day, *choice):
    return unicodedata.normalize("NFKC", write_date(day, FixedForm(*choice)))


@pytest.mark.parametrize(
    ("choice", "text"),
    [
        (("en", "full"), "Friday, March 5, 2021"),
        (("en", "MMMM {nth}, y"), "March 5th, 2021"),
        (("en", "EEEE, MMMM {nth}, y", "no comma"), "Friday March 5th 2021"),
        (("de", "long"), "5. März 2021"),
        (("de", "long", "upper case"), "5. MÄRZ 2021"),
        (("de", "dd. MMMM y", "no dot"), "05 März 2021"),
        (("de", "medium", "no dot"), "05.03.2021"),
        (("de", "EEE, dd.MM.y", "no dot"), "Fr, 05.03.2021"),
        (("fr", "full"), "vendredi 5 mars 2021"),
        (("es", "full"), "viernes, 5 de marzo de 2021"),
        (("ru", "long", "no dot"), "5 марта 2021 г"),
        (("zh", "y年M月d日 EEEE"), "2021年3月5日 星期五"),
        (("ja", "full"), "2021年3月5日金曜日"),
        (("ko", "long"), "2021년 3월 5일"),
    ],
)
def test_one_day_in_many_ways(choice, text):
    assert write(date(2021, 3, 5), *choice) == text


def test_ordinals():
    assert [ordinal(day, "en") for day in (1, 2, 3, 4, 11, 12, 13, 21, 22, 23, 30, 31)] == (
        ["1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "22nd", "23rd", "30th", "31st"]
    )
    assert [ordinal(1, "fr"), ordinal(2, "fr"), ordinal(1, "it"), ordinal(2, "it")] == ["1er", "2", "1º", "2"]


def test_every_text_holds_its_date_in_an_order_that_can_be_told(records):
    for record in records["train"]:
        day = date.fromisoformat(record["target"])
        assert 1900 <= day.year <= 2099
        numbers = [int(number) for number in re.findall(r"\d+", record["source"])]
        year_first = [day.year, day.month, day.day]
        assert numbers in (year_first, year_first[::-1], [day.day, day.year], [day.year, day.day])
        if numbers == year_first[::-1]:  # day before month only where dots say so
            assert re.search(r"\d\.\d+\.\d{4}", record["source"])


def test_no_text_has_two_answers():
    days_of = defaultdict(set)
    for record in generate_dates("train", 60_000, seed=3):
        days_of[" ".join(record["source"].split()).lower()].add(record["target"])
    assert max(map(len, days_of.values())) == 1


def test_every_form_of_every_language_can_be_written():
    for language, forms in FORMS.items():
        for form in forms:
            for bend in BENDS:
                text = write(date(2021, 9, 22), language, form, bend)
                assert "2021" in text
                assert "22" in text
                assert len(text) <= 45
                assert not set("{}'") & set(text)


def test_weekdays_are_right(records):
    english = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
    found = 0
    for record in records["train"]:
        for number, name in enumerate(english):
            if name in record["source"].lower():
                found += 1
                assert date.fromisoformat(record["target"]).weekday() == number
    assert found > 30


def test_splits_share_no_day_and_no_text(records):
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        for field in ("source", "target"):
            assert not {record[field] for record in records[one]} & {record[field] for record in records[other]}


def test_a_split_walks_through_all_its_days_before_one_comes_again(records):
    days = [record["target"] for record in records["test"]]
    assert len(set(days[:3000])) == 3000
    assert len(set(days)) < 4000
    assert all(split_of(date.fromisoformat(day), seed=0) == "test" for day in days)


def test_the_same_seed_gives_the_same_records_whatever_their_number(records):
    assert list(islice(generate_dates("train", 4, seed=0), 4)) == records["train"][:4]
    assert list(generate_dates("train", 4, seed=1)) != records["train"][:4]


def test_all_languages_and_bends_occur(records):
    text = "\n".join(record["source"] for record in records["train"])
    for word in (
        "March",
        "März",
        "mars",
        "marzo",
        "gennaio",
        "марта",
        "星期五",
        "金曜日",
        "금요일",
        "MARCH",
        "march",
        "05. ",
    ):
        assert word in text
