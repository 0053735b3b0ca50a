"""Documents become full sequences; whether a pair belongs together follows from where its parts are from."""

import numpy as np
import pytest

from kerasllm.data.packing import (
    FOLLOWS,
    FOLLOWS_NOT,
    document_key,
    pack_pairs,
    pack_stretches,
    split_sentences,
)

END = 2


def documents_of(*sizes, first=10):
    """documents_of([3, 2], [4]): sentences of these lengths, in which no token comes twice."""
    documents, at = [], first
    for lengths in sizes:
        documents.append([np.arange(at + sum(lengths[:i]), at + sum(lengths[: i + 1])) for i in range(len(lengths))])
        at += sum(lengths)
    return documents


def random_documents(number, seed=0):
    generator = np.random.default_rng(seed)
    return documents_of(
        *([int(n) for n in generator.integers(1, 40, generator.integers(1, 30))] for _ in range(number))
    )


def flat(document):
    return np.concatenate(document).tolist()


@pytest.mark.parametrize(
    ("document", "sentences"),
    [
        ("A title\nOne, e.g. this. Two! (Three.)", ["A title", "One, e.g. this.", "Two!", "(Three.)"]),
        ('It is 3.5 m . He said: "No." Then he went.\n\n  \n', ["It is 3.5 m .", 'He said: "No."', "Then he went."]),
        ("我们走。好！Да. Нет", ["我们走。", "好！", "Да.", "Нет"]),
        ("", []),
    ],
)
def test_sentences(document, sentences):
    assert split_sentences(document) == sentences
    assert "".join(split_sentences(document)).replace(" ", "") == "".join(document.split())


def test_stretches_by_hand():
    documents = documents_of([3, 2], [4], [1])  # 10 11 12 | 13 14 END 15 16 17 18 END 19 END
    stretches = [(stretch.tolist(), owner) for stretch, owner in pack_stretches(documents, 6, END)]
    # The end of the first document would be the last token, and is left out.
    assert stretches == [([10, 11, 12, 13, 14], 0), ([15, 16, 17, 18, END, 19], 1)]
    assert pack_stretches([], 6, END) == []


def test_stretches_lose_nothing_and_are_full():
    documents = random_documents(50)
    stretches = [stretch for stretch, _ in pack_stretches(documents, 30, END)]
    tokens = np.concatenate(stretches)
    assert tokens[tokens != END].tolist() == [token for document in documents for token in flat(document)]
    assert all(len(stretch) >= 28 for stretch in stretches[:-1])
    assert max(map(len, stretches)) == 30


ROOM = 61


@pytest.fixture(scope="module")
def packed():
    documents = random_documents(300)
    return documents, pack_pairs(documents, [1000 + number for number in range(300)], ROOM)


def owners_of(documents):
    return {int(token): number for number, document in enumerate(documents) for token in flat(document)}


def test_half_of_the_pairs_follow_and_the_others_are_of_another_document(packed):
    documents, pairs = packed
    owners = owners_of(documents)
    for pair in pairs:
        assert {owners[token] for token in pair.first.tolist()} == {pair.document}
        assert (np.diff(pair.first) == 1).all()
        assert (np.diff(pair.second) == 1).all()
        if pair.label == FOLLOWS:
            assert pair.second[0] == pair.first[-1] + 1
            assert owners[int(pair.second[-1])] == pair.document
        else:
            assert {owners[token] for token in pair.second.tolist()} != {pair.document}
            assert len({owners[token] for token in pair.second.tolist()}) == 1
    assert np.mean([pair.label == FOLLOWS_NOT for pair in pairs]) == pytest.approx(0.5, abs=0.03)


def test_pairs_are_full_but_at_the_end_of_a_document(packed):
    documents, pairs = packed
    last = {number: flat(document)[-1] for number, document in enumerate(documents)}
    lengths = np.array([len(pair.first) + len(pair.second) for pair in pairs])
    assert lengths.max() == ROOM
    for pair, length in zip(pairs, lengths, strict=True):
        if pair.label == FOLLOWS and pair.second[-1] != last[pair.document]:
            assert length == ROOM
    seconds = {label: np.mean([len(p.second) for p in pairs if p.label == label]) for label in (FOLLOWS, FOLLOWS_NOT)}
    assert seconds[FOLLOWS] == pytest.approx(seconds[FOLLOWS_NOT], rel=0.05), "lengths tell what follows"


def test_nothing_is_lost_but_halves_that_end_a_document(packed):
    documents, pairs = packed
    seen = {token for pair in pairs for part in (pair.first, pair.second) for token in part.tolist()}
    for number, document in enumerate(documents):
        missing = [token for token in flat(document) if token not in seen]
        own = [pair for pair in pairs if pair.document == number]
        assert len(missing) <= -(-ROOM // 4)
        if missing and own:
            assert own[-1].label == FOLLOWS_NOT
            assert missing[-1] == flat(document)[-1]


def test_parts_begin_with_a_sentence(packed):
    documents, pairs = packed
    lengths = [[len(sentence) for sentence in document] for document in documents]
    pieces = {int(s[at]) for d in documents for s in d for at in range(0, len(s), ROOM // 2)}
    tails = {flat(document)[-1] for document in documents}
    assert max(map(max, lengths)) > ROOM // 2, "some sentences are too long to be taken whole"
    assert all(int(pair.first[0]) in pieces for pair in pairs)
    halved = [pair for pair in pairs if int(pair.first[-1]) + 1 not in pieces and int(pair.first[-1]) not in tails]
    for pair in pairs:
        if not any(pair is each for each in halved):
            assert int(pair.second[0]) in pieces
    assert 0 < len(halved) < 0.2 * len(pairs)


def test_what_is_drawn_follows_from_the_document_alone():
    documents, keys = random_documents(20), list(range(20))
    first, again = pack_pairs(documents, keys, ROOM), pack_pairs(documents, keys, ROOM)
    assert all(np.array_equal(a.second, b.second) and a.label == b.label for a, b in zip(first, again, strict=True))
    others = pack_pairs(documents, [key + 77 for key in keys], ROOM)
    assert [pair.label for pair in first] != [pair.label for pair in others]
    assert document_key("a") == document_key("a") != document_key("b")


def test_one_document_alone_is_left_for_another_place_in_it():
    (document,) = documents_of([10] * 60)
    pairs = pack_pairs([document], [5], 40)
    wrong = [pair for pair in pairs if pair.label == FOLLOWS_NOT]
    assert 0.2 < len(wrong) / len(pairs) < 0.8
    for pair in wrong:
        assert not set(pair.first.tolist()) & set(pair.second.tolist())
        assert pair.second[0] != pair.first[-1] + 1


def test_too_little_to_make_a_pair():
    assert pack_pairs(documents_of([1], [], [1]), [1, 2, 3], 10) == []
    (pair,) = pack_pairs(documents_of([2]), [1], 10)
    assert (pair.first.tolist(), pair.second.tolist(), pair.label) == ([10], [11], FOLLOWS)
