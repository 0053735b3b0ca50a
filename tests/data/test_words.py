"""Where the words of raw texts are: by hand, and cut out again."""

import random

import pytest
import tensorflow as tf

from kerasllm.data.date_mentions import SENTENCES, generate_date_mentions, split_words
from kerasllm.data.words import cut_out, find_words

find = tf.function(find_words, input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("EU rejects German call to boycott British lamb.", "EU|rejects|German|call|to|boycott|British|lamb|."),
        ('He (J. Smith) said: "Well..."', 'He|(|J.|Smith|)|said|:|"|Well|...|"'),
        ("the U.S., in the U.S. it rose 3.5.", "the|U.S.|,|in|the|U.S.|it|rose|3.5|."),
        ("John's, Peter’S and the boys'", "John|'s|,|Peter|’S|and|the|boys|'"),
        ("e.g. at example.com. Plan 9.", "e.g.|at|example.com|.|Plan|9|."),
        ("$5 or 5€, U.S.-led", "$|5|or|5|€|,|U.S.-led"),
        ("¿Qué? «Ça va» — „gut“", "¿|Qué|?|«|Ça|va|»|—|„|gut|“"),
        ("... -- , . 'tis €.”", "...|--|,|.|'|tis|€|.|”"),
        ("  日本語、🎉!\u2003e\u0301\u00ad \x00a", "日本語、🎉|!|e\u0301\u00ad|\x00a"),
        ("a lone \u00ad here", "a|lone|\u00ad|here"),
        ("'s", "'|s"),
        ("", ""),
        (" \u2028\n ", ""),
        # With TAB alone between them they are given.
        ("lamb.\t(AP)\tU.S.,\t", "lamb.|(AP)|U.S.,"),
        ("lamb.\t", "lamb."),
        ("Name:\tJohn Smith.", "Name|:|John|Smith|."),
    ],
)
def test_words_by_hand(text, words):
    found = find(tf.constant(["x", text, "(y)"]))
    expected = words.split("|") if words else []
    assert [word.decode() for word in found.texts[1].numpy()] == expected
    spans = zip(found.starts[1].numpy(), found.ends[1].numpy(), strict=True)
    assert [text[start:end] for start, end in spans] == expected
    assert found.texts[0].numpy().tolist() == [b"x"]
    assert found.texts[2].numpy().tolist() == [b"(", b"y", b")"]


def test_parts_of_texts():
    texts = tf.constant(["aé日b", "🎉x"])
    starts, ends = tf.ragged.constant([[0, 1], [0]], tf.int32), tf.ragged.constant([[2, 3], [1]], tf.int32)
    found = cut_out(texts, starts, ends)
    assert [[part.decode() for part in row] for row in found.to_list()] == [["aé", "é日"], ["🎉"]]
    assert find(tf.constant([], tf.string)).texts.to_list() == []


def test_the_built_in_set_has_the_words_that_are_found_in_raw_text():
    sentences = [sentence for each in SENTENCES.values() for sentence in each]
    raw = [sentence.replace("{DATE}", "Mar 5, 2021").replace("{TIME}", "3:45 PM") for sentence in sentences]
    raw = [sentence.replace("{MONEY}", "1.234,50 €") for sentence in raw]
    found = find(tf.constant(raw)).texts.to_list()
    assert [[word.decode() for word in row] for row in found] == [split_words(text) for text in raw]


def test_the_built_in_set():
    records = list(generate_date_mentions("train", 300, seed=0))
    assert (
        records[:9] == list(generate_date_mentions("train", 9, seed=0)) != list(generate_date_mentions("train", 9, 1))
    )
    held_out = {record["words"] for record in generate_date_mentions("test", 300, seed=0)}
    dated = {record["words"] for record in records if "B-DATE" in record["tags"]}
    assert len(dated) > 100
    assert not dated & held_out
    kinds = {tag for record in records for tag in record["tags"].split()}
    assert {f"B-{kind}" for kind in ("DATE", "TIME", "MONEY")} < kinds
    for record in random.Random(0).sample(records, 50):
        words, tags = record["words"].split(), record["tags"].split()
        assert len(words) == len(tags)
        assert all(tag != "B-TIME" or ":" in word for word, tag in zip(words, tags, strict=True))
