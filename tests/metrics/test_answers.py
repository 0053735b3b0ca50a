"""Exact match and F1 by hand, after the rules of SQuAD's official script."""

import pytest

from kerasllm.metrics.answers import answer_metrics, exact_match, f1, normalized


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Cat's\tpaw.", "cats paw"),
        ("A an the", ""),
        ("Theatre, an-other a.", "theatre another"),  # punctuation goes before articles are looked for
        ("U.S.A. (1,000)", "usa 1000"),
        ("Café “x”", "café “x”"),  # only ASCII punctuation, as in the script
        ("the_end", "theend"),
    ],
)
def test_normalized(text, expected):
    assert normalized(text) == expected


def test_punctuation_of_chinese_answers():
    assert exact_match("“北京，中国。”", "北京中国") == 1.0
    assert exact_match("Khan。", "Khan") == 0.0  # as in the script, where no right answer is Chinese
    assert f1("Khan 成吉思汗", "Khan") == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("given", "wanted", "expected"),
    [
        ("the cat sat", "cat sat", 1.0),
        ("cat cat sat", "cat sat down", 2 / 3),  # a word counts as often as it stands in both
        ("in the year 1999", "1999", 2 * (1 / 3) * 1 / (1 / 3 + 1)),
        ("dog", "cat", 0.0),
        ("", "", 1.0),
        ("the", "", 1.0),  # nothing is left of it
        ("cat", "", 0.0),
        ("", "cat", 0.0),
        ("北京市", "北京", 2 * (2 / 3) * 1 / (2 / 3 + 1)),  # by character
        ("iPhone手机", "iphone 手", 2 * (2 / 3) * 1 / (2 / 3 + 1)),
    ],
)
def test_f1(given, wanted, expected):
    assert f1(given, wanted) == pytest.approx(expected)
    assert f1(wanted, given) == pytest.approx(expected)


def test_exact_match():
    assert exact_match("The cat!", "cat") == 1.0
    assert exact_match("cats", "cat") == 0.0


def test_the_best_reference_counts_and_none_is_right_where_there_is_none():
    given = ["Denver Broncos", "the Broncos", "", "something", ""]
    wanted = [["Broncos", "Denver Broncos"], ["Denver Broncos", "Carolina"], [], [], ["The", "Ada"]]
    metrics = answer_metrics(given, wanted)
    # 1: exact; 2: half of the words, F1 2/3; 3: rightly none; 4: wrongly one; 5: references without a word do not count
    assert metrics == {"exact_match": pytest.approx(2 / 5), "f1": pytest.approx((1 + 2 / 3 + 1 + 0 + 0) / 5)}
    assert answer_metrics(["", "x"], [["The"], ["The"]]) == {"exact_match": 0.5, "f1": 0.5}
