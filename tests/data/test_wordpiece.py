"""WordPiece against the ids and offsets that Hugging Face's tokenizer gave, stored and, where it is installed, anew."""

import gzip
import importlib.util
import json
import random

import numpy as np
import pytest
import tensorflow as tf

from kerasllm.data.published import SPECIAL_TOKENS, Vocabulary
from kerasllm.data.tokenizers import WordpieceTokenizer
from kerasllm.data.wordpiece import Wordpiece, learn_vocabulary

RULES = ("lowercase", "strip_accents", "split_chinese")


@pytest.fixture(scope="module")
def reference(repository):
    """A vocabulary, texts, and for some rules the ids and offsets that the package `tokenizers` gives."""
    with gzip.open(repository / "tests" / "data" / "wordpiece_reference.json.gz") as file:
        return json.load(file)


def found_by(splitter, texts):
    ids, starts, ends = (values.to_list() for values in splitter.tokenize_with_offsets(tf.constant(texts)))
    assert splitter.tokenize(tf.constant(texts)).to_list() == ids
    pairs = [[each for pair in zip(*row, strict=True) for each in pair] for row in zip(starts, ends, strict=True)]
    return ids, pairs


@pytest.mark.parametrize("case", range(4))
def test_ids_and_offsets_are_the_published_ones(reference, case):
    case = reference["cases"][case]
    splitter = Wordpiece(reference["vocabulary"], **{rule: case[rule] for rule in RULES})
    rows = zip(*found_by(splitter, reference["texts"]), strict=True)
    for text, ids, offsets, row in zip(reference["texts"], case["ids"], case["offsets"], rows, strict=True):
        assert row == (ids, offsets), text


def published(vocabulary, lowercase, strip_accents, split_chinese):
    """The published tokenizer."""
    tokenizers = pytest.importorskip("tokenizers")
    rules = (True, split_chinese, strip_accents, lowercase)
    ids = {token: index for index, token in enumerate(vocabulary)}
    found = tokenizers.Tokenizer(tokenizers.models.WordPiece(ids, unk_token="[UNK]"))
    found.normalizer = tokenizers.normalizers.BertNormalizer(*rules)
    found.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    found.add_special_tokens(list(SPECIAL_TOKENS))
    return found


@pytest.mark.parametrize("rules", [(True, True, True), (False, False, True), (True, False, False)])
def test_random_texts_give_the_published_ids_and_offsets(reference, rules):
    generator = random.Random(1)
    known = [*reference["vocabulary"][5:], *SPECIAL_TOKENS]
    ranges = [(0, 0x7F), (0, 0x7FF), (0x300, 0x36F), (0x2000, 0x30FF), (0x800, 0xD7FF), (0xE000, 0x3FFFF)]
    pieces = [lambda: generator.choice(known), lambda: chr(generator.randint(*generator.choice(ranges))), lambda: " "]
    texts = ["".join(generator.choice(pieces)() for _ in range(generator.randint(0, 30))) for _ in range(2000)]
    encoded = published(reference["vocabulary"], *rules).encode_batch(texts, add_special_tokens=False)
    ids, offsets = found_by(Wordpiece(reference["vocabulary"], *rules), texts)
    for text, row, pairs, expected in zip(texts, ids, offsets, encoded, strict=True):
        assert (row, pairs) == (expected.ids, [each for pair in expected.offsets for each in pair]), text


@pytest.mark.slow
def test_every_character_is_treated_as_published(repository):
    pytest.importorskip("tokenizers")
    path = repository / "tools" / "wordpiece_characters.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    asked = tool.ask()
    with np.load(tool.PATH) as stored:
        assert set(stored) == set(asked)
        for name, values in asked.items():
            np.testing.assert_array_equal(stored[name], values, err_msg=name)


def test_offsets_cut_the_text_in_the_graph(reference):
    tokenizer = WordpieceTokenizer(Vocabulary(tuple(reference["vocabulary"])))
    texts = tf.constant(["Un\u00adaffable  CAFE\u0301, 中𠀀!", "", "[MASK]\u200b x"])
    ids, starts, ends = tokenizer.tokenize_with_offsets(texts)
    rows = tf.gather(texts, starts.value_rowids())
    cut = tf.strings.substr(rows, starts.values, ends.values - starts.values, unit="UTF8_CHAR")
    tokens = ["Un", "aff", "able", "CAFE", ",", "中", "𠀀", "!", "[MASK]", "x"]
    assert [each.decode() for each in cut.numpy()] == tokens
    assert ids.row_lengths().numpy().tolist() == [8, 0, 2]
    assert ids[2, 0] == tokenizer.mask_id


def test_a_vocabulary_with_gaps_and_repetitions_keeps_its_ids():
    splitter = Wordpiece([*SPECIAL_TOKENS, "", "dog", "", "dog", "cat"], True, True, True)
    assert splitter.tokenize(tf.constant(["dog cat [5] "])).to_list() == [[8, 9, 1, 1, 1]]


def test_pieces_are_glued_and_unknown_text_is_marked(reference):
    tokenizer = WordpieceTokenizer(Vocabulary(tuple(reference["vocabulary"])))
    token_ids = tokenizer.tokenize(tf.constant(["unaffable fox, ☃ don", "[SEP] x", ""]))
    start = tf.fill([3, 1], tokenizer.start_id)
    texts = tokenizer.detokenize(tf.concat([start, token_ids], axis=1).to_tensor())
    assert [text.decode() for text in texts.numpy()] == ["unaffable fox , ⁇ don", "", ""]


def test_a_learnt_vocabulary_has_whole_words_that_are_frequent_and_knows_every_word():
    texts = ["lesen gelesen lesbar, und sagen", "gesagt sagbar und UND"] * 20 + ["zyx [MASK]"]
    rules = {"lowercase": True, "strip_accents": True, "split_chinese": True}
    vocabulary = learn_vocabulary(texts, 120, rules)
    assert vocabulary[:5] == SPECIAL_TOKENS
    assert len(set(vocabulary)) == len(vocabulary) <= 120
    assert {"und", "sagen", "##bar"} <= set(vocabulary)
    tokenizer = WordpieceTokenizer(Vocabulary(vocabulary))
    token_ids = tokenizer.tokenize(tf.constant(["lesen sagen UND gesagbar xyz"]))
    assert tokenizer.unknown_id not in token_ids[0]
    assert [text.decode() for text in tokenizer.detokenize(token_ids).numpy()] == ["lesen sagen und gesagbar xyz"]
