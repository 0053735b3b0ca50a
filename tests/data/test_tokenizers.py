"""Tokenizers: exact round trips, the same normalisation as cleaning, and graphs that a stock server can load."""

import json
import shutil
import subprocess
import sys
import unicodedata
from collections import Counter

import keras
import pytest
import tensorflow as tf

from kerasllm.data.cleaning import normalize as clean_text
from kerasllm.data.settings import CleaningSettings, TokenizerSettings
from kerasllm.data.tokenizer_training import thin_out, train_tokenizer
from kerasllm.data.tokenizers import load_tokenizer, normalize
from kerasllm.errors import UserError

TEXTS = [
    "Zwei Männer mit Schutzhelmen, größer als üblich, bedienen ein Antriebsradsystem.",
    "Ein Mädchen klettert in ein Spielhaus aus Holz!",
    "Ein Mann in einem blauen Hemd steht auf einer Leiter und putzt ein Fenster (2. Stock).",
    "2021年3月5日 星期五",
    "Die Straße führt über die Brücke; ÄÖÜ ẞ „Zitat“ – fertig…",
] * 3
KINDS = ["subwords", "words", "characters", "wordpiece"]
EXACT_KINDS = KINDS[:3]  # WordPiece sets punctuation apart

RUN_AS_A_SERVER_DOES = """
import json, sys
import tensorflow as tf
import tensorflow_text
with tf.compat.v1.Session(graph=tf.Graph()) as session:
    model = tf.compat.v1.saved_model.loader.load(session, ["serve"], sys.argv[1])
    signature = model.signature_def["serving_default"]
    outputs = {name: output.name for name, output in signature.outputs.items()}
    found = session.run(outputs, {signature.inputs["text"].name: json.loads(sys.argv[2])})
print(json.dumps({name: [text.decode() for text in texts.tolist()] for name, texts in found.items()}))
assert "kerasllm" not in sys.modules
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directories = {}
    for kind in KINDS:
        directories[kind] = tmp_path_factory.mktemp(kind)
        settings = TokenizerSettings(kind=kind, max_vocabulary_size=200)
        train_tokenizer(settings, CleaningSettings(), TEXTS, directories[kind])
    return directories.__getitem__


def texts_of(tensor):
    return [text.decode() for text in tensor.numpy()]


@pytest.mark.parametrize("kind", EXACT_KINDS)
def test_round_trip_is_exact_and_cased(directory, kind):
    tokenizer = load_tokenizer(directory(kind))
    token_ids = tokenizer.tokenize(tf.constant([*TEXTS[:5], ""]))
    assert token_ids.dtype == tf.int32
    assert tf.reduce_min(token_ids.flat_values) > tokenizer.unknown_id  # every word of the training texts is known
    assert tf.reduce_max(token_ids.flat_values) < tokenizer.vocabulary_size <= 200
    assert texts_of(tokenizer.detokenize(token_ids)) == [*TEXTS[:5], ""]
    assert token_ids[5].shape == (0,)


@pytest.mark.parametrize("model", ["unigram", "bpe"])
def test_subword_models_share_pieces_between_words(tmp_path, model):
    settings = TokenizerSettings(max_vocabulary_size=120, model=model)
    tokenizer = train_tokenizer(
        settings, CleaningSettings(), ["lesen gelesen lesbar", "sagen gesagt sagbar"] * 9, tmp_path
    )
    text = ["gelesen sagen lesbar sagt"]  # the last word is new
    token_ids = tokenizer.tokenize(tf.constant(text))
    assert texts_of(tokenizer.detokenize(token_ids)) == text
    assert 4 <= len(token_ids[0]) < len(text[0])


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_are_dropped_and_text_ends_at_the_first_end(directory, kind):
    tokenizer = load_tokenizer(directory(kind))
    one, two = (tokenizer.tokenize(tf.constant([text]))[0].numpy().tolist() for text in ("Mann", "Hemd"))
    start, end = tokenizer.start_id, tokenizer.end_id
    rows = [[start, *one, end, *two], [0, start, 0, *one, *two, end, end], [end, *one], [*one, 0, 0]]
    expected = ["Mann", "MannHemd" if kind == "characters" else "Mann Hemd", "", "Mann"]
    dense = tf.ragged.constant(rows, dtype=tf.int32).to_tensor()
    assert texts_of(tokenizer.detokenize(dense)) == expected
    assert texts_of(tokenizer.detokenize(tf.ragged.constant(rows, dtype=tf.int32))) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_text_is_marked_and_never_a_special_token(directory, kind):
    tokenizer = load_tokenizer(directory(kind))
    token_ids = tokenizer.tokenize(tf.constant(["Ein ☃ Mann", "<s> </s> <pad>"]))
    assert tokenizer.unknown_id in token_ids[0]
    assert texts_of(tokenizer.detokenize(token_ids))[0] == "Ein ⁇ Mann"
    assert tf.reduce_min(token_ids.flat_values) >= tokenizer.unknown_id


@pytest.mark.parametrize(("kind", "expected"), [("words", ["b", "a", "d"]), ("characters", [" ", "b", "a"])])
def test_lists_keep_the_most_frequent_entries(tmp_path, kind, expected):
    settings = TokenizerSettings(kind=kind, max_vocabulary_size=8)
    train_tokenizer(settings, CleaningSettings(), ["b a b d", "a b d d a b"], tmp_path)
    assert json.loads((tmp_path / "vocabulary.json").read_text())[:3] == expected
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.tokenize(tf.constant(["b"])).to_list() == [[4 + expected.index("b")]]


def test_every_white_space_and_composition_is_normalised_as_cleaning_does():
    spaces = [chr(code) for code in range(1, 0x3100) if not 0xD800 <= code < 0xE000]
    texts = [f"{character}a{character} b{character}" for character in spaces]
    texts += [unicodedata.normalize("NFD", "Grüße, Élan, 各がく"), "ﬁ ² ㎏ … ｱ"]
    for form in ("NFC", "NFKC", "none"):
        for collapse in (True, False):
            cleaning = CleaningSettings(normalize_unicode=form, collapse_spaces=collapse)
            in_graph = normalize(tf.constant(texts), {**cleaning.model_dump(), "lowercase": False})
            assert texts_of(in_graph) == [clean_text(text, cleaning) for text in texts]


@pytest.mark.parametrize("kind", EXACT_KINDS)
def test_lowercase_is_done_in_the_graph(tmp_path, kind):
    settings = TokenizerSettings(kind=kind, max_vocabulary_size=200, lowercase=True)
    tokenizer = train_tokenizer(settings, CleaningSettings(), TEXTS, tmp_path)
    token_ids = tokenizer.tokenize(tf.constant(["EIN MÄDCHEN", "ein mädchen"]))
    assert token_ids[0].numpy().tolist() == token_ids[1].numpy().tolist()
    assert texts_of(tokenizer.detokenize(token_ids)) == ["ein mädchen"] * 2


def test_white_space_is_kept_where_cleaning_keeps_it(tmp_path):
    cleaning = CleaningSettings(collapse_spaces=False)
    for kind in ("subwords", "characters"):
        tokenizer = train_tokenizer(
            TokenizerSettings(kind=kind, max_vocabulary_size=200), cleaning, ["a  b ", " a b"] * 9, tmp_path / kind
        )
        assert texts_of(tokenizer.detokenize(tokenizer.tokenize(tf.constant(["b  a ", " a"])))) == ["b  a ", " a"]


def test_characters_beyond_the_vocabulary_are_an_error(tmp_path):
    settings = TokenizerSettings(max_vocabulary_size=8)
    with pytest.raises(
        UserError, match=r"tokenizer\.max_vocabulary_size: .* no 8 subwords .*17 different .*; raise it"
    ):
        train_tokenizer(settings, CleaningSettings(), ["abcdefghijklm nopq"], tmp_path)


def test_thin_out_keeps_proportions_and_takes_rare_words_in_turn():
    counts = Counter({b"the": 600_000, b"dog": 300_000, **{b"rare%d" % n: 1 for n in range(100_000)}})
    thinned = thin_out(counts, 100_000)
    assert sum(thinned.values()) == 100_000
    assert abs(thinned[b"the"] - 60_000) <= 1
    assert abs(thinned[b"dog"] - 30_000) <= 1
    assert sum(token.startswith(b"rare") for token in thinned) == pytest.approx(10_000, abs=1)
    assert thin_out(counts, 1_000_000) == counts


def test_a_character_that_thinning_leaves_out_is_still_known(tmp_path, monkeypatch):
    monkeypatch.setattr("kerasllm.data.tokenizer_training._MAX_WORDS", 10)
    tokenizer = train_tokenizer(TokenizerSettings(), CleaningSettings(), ["ab ba"] * 500 + ["žluť"], tmp_path)
    assert texts_of(tokenizer.detokenize(tokenizer.tokenize(tf.constant(["ťulž"])))) == ["ťulž"]


def test_invalid_bytes_are_no_error(directory):
    for kind in EXACT_KINDS:
        tokenizer = load_tokenizer(directory(kind))
        assert tokenizer.unknown_id in tokenizer.tokenize(tf.constant([b"Ein \xff\xfe Mann"]))[0]
    tokenizer = load_tokenizer(directory("wordpiece"))  # BERT's leaves them out
    clean, damaged = tokenizer.tokenize(tf.constant([b"Ein Mann", b"Ein \xff\xfe Mann"])).to_list()
    assert clean == damaged


@pytest.mark.parametrize("kind", KINDS)
def test_training_again_gives_the_same_file(directory, tmp_path, kind):
    train_tokenizer(TokenizerSettings(kind=kind, max_vocabulary_size=200), CleaningSettings(), TEXTS, tmp_path)
    assert (tmp_path / "tokenizer.json").read_text() == (directory(kind) / "tokenizer.json").read_text()


@pytest.mark.parametrize("kind", ["subwords", "characters"])
def test_a_changed_vocabulary_is_refused(directory, tmp_path, kind):
    for file in directory(kind).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    vocabulary = next(file for file in tmp_path.iterdir() if file.name != "tokenizer.json")
    vocabulary.write_bytes(vocabulary.read_bytes() + b" ")
    with pytest.raises(UserError, match=rf"{vocabulary.name}: does not match its checksum; run prepare again"):
        load_tokenizer(tmp_path)
    vocabulary.unlink()
    with pytest.raises(UserError, match=r"holds no readable tokenizer .*run prepare again"):
        load_tokenizer(tmp_path)


def test_export_holds_all_that_it_needs(directory, tmp_path):
    for kind in KINDS:
        shutil.copytree(directory(kind), tmp_path / kind)
    tokenizers = {kind: load_tokenizer(tmp_path / kind) for kind in KINDS}

    def round_trips(text):
        return {kind: each.detokenize(each.tokenize(text).to_tensor()) for kind, each in tokenizers.items()}

    archive = keras.export.ExportArchive()
    for tokenizer in tokenizers.values():
        archive.track(tokenizer)
    signature = [tf.TensorSpec([None], tf.string, name="text")]
    archive.add_endpoint("serving_default", tf.function(round_trips, input_signature=signature, autograph=False))
    archive.write_out(str(tmp_path / "model"), verbose=False)
    for kind in KINDS:
        shutil.rmtree(tmp_path / kind)
    texts = ["Ein Mann  klettert über die Straße.", "Die Brücke", ""]
    command = [sys.executable, "-c", RUN_AS_A_SERVER_DOES, str(tmp_path / "model"), json.dumps(texts)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    expected = {kind: texts_of(answers) for kind, answers in round_trips(tf.constant(texts)).items()}
    assert json.loads(result.stdout) == expected
    assert expected["characters"] == ["Ein Mann klettert über die Straße.", "Die Brücke", ""]


@pytest.mark.parametrize("lowercase", [False, True])
def test_subwords_have_a_mask_where_it_is_asked_for(tmp_path, lowercase):
    settings = TokenizerSettings(max_vocabulary_size=200, lowercase=lowercase)
    plain = train_tokenizer(settings, CleaningSettings(), TEXTS, tmp_path / "plain")
    assert plain.mask_id is None
    assert "has_mask" not in (tmp_path / "plain" / "tokenizer.json").read_text()
    texts = [*TEXTS, "a [MASK] \ue000 and [mask]"]
    train_tokenizer(settings, CleaningSettings(), texts, tmp_path / "masked", with_mask=True)
    masked = load_tokenizer(tmp_path / "masked")
    assert masked.special_ids == [0, 1, 2, 3, masked.mask_id]
    ids = masked.tokenize(tf.constant(["[MASK]", " [MASK]  [MASK]a", "[mask]", ""])).to_list()
    assert ids[0] == [masked.mask_id]
    assert ids[1][:2] == [masked.mask_id] * 2
    assert masked.mask_id not in ids[2] + ids[1][2:]
    assert ids[3] == []
    assert masked.detokenize(tf.ragged.constant(ids)).numpy()[0] == b"[MASK]"
    parts, goes_on = masked.word_parts()
    words = masked.tokenize(tf.constant([TEXTS[0]])).to_list()[0]
    found = "".join(parts[i] if goes_on[i] else f" {parts[i]}" for i in words).strip()
    assert found == masked.detokenize(tf.constant([words])).numpy()[0].decode()


def test_a_mask_is_refused_where_there_is_none(tmp_path):
    with pytest.raises(UserError, match=r"tokenizer\.kind: characters has no token for \[MASK\]; use wordpiece or"):
        train_tokenizer(TokenizerSettings(kind="characters"), CleaningSettings(), TEXTS, tmp_path, with_mask=True)
