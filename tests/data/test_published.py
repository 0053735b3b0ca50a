"""Vocabularies of published models in each layout, and what is said of those that are none."""

import json

import huggingface_hub
import keras_hub
import pytest
import tensorflow as tf

from kerasllm.data.published import SPECIAL_TOKENS, Vocabulary, fingerprint, locate, read_vocabulary
from kerasllm.data.settings import CleaningSettings, TokenizerSettings
from kerasllm.data.tokenizer_training import train_tokenizer
from kerasllm.data.tokenizers import load_tokenizer
from kerasllm.errors import UserError

TOKENS = (*SPECIAL_TOKENS, "dog", "##s", "é")


@pytest.fixture
def directory(tmp_path):
    """The layout of older models."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "vocab.txt").write_text("\n".join(TOKENS) + "\n", "utf-8")
    (path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False, "strip_accents": None}))
    return path


def write_whole(path, tokens=TOKENS, kind="WordPiece"):
    """`tokenizer.json` alone, as newer models have it, the last token added later."""
    ids = {token: index for index, token in enumerate(tokens)}
    normalizer = {"type": "BertNormalizer", "lowercase": True, "strip_accents": False, "handle_chinese_chars": False}
    added = [{"id": len(tokens) - 1, "content": tokens[-1]}]
    model = {"type": kind, "vocab": {token: ids[token] for token in tokens[:-1]}}
    content = {"normalizer": normalizer, "added_tokens": added, "model": model}
    (path / "tokenizer.json").write_text(json.dumps(content), "utf-8")


def test_each_layout_says_what_it_says(directory, tmp_path):
    assert read_vocabulary(str(directory)) == Vocabulary(TOKENS, lowercase=False)
    assert read_vocabulary("model", tmp_path) == Vocabulary(TOKENS, lowercase=False)
    assert read_vocabulary(str(directory / "vocab.txt")) == Vocabulary(TOKENS)
    rules = {"lowercase": False, "strip_accents": True, "split_chinese": False}
    assert read_vocabulary(str(directory / "vocab.txt"), rules=rules) == Vocabulary(TOKENS, **rules)
    write_whole(directory)
    assert read_vocabulary(str(directory)) == Vocabulary(TOKENS, True, False, False)


def test_accents_go_with_the_case_unless_said_otherwise():
    assert Vocabulary(TOKENS).normalization()["strip_accents"]
    assert not Vocabulary(TOKENS, lowercase=False).normalization()["strip_accents"]
    assert not Vocabulary(TOKENS, strip_accents=False).normalization()["strip_accents"]


def test_a_model_of_the_hub_is_downloaded_without_what_could_be_executed(directory, monkeypatch):
    asked = []

    def download(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(directory)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert read_vocabulary("hf:someone/small").tokens == TOKENS
    ((name, patterns),) = asked
    assert name == "someone/small"
    assert set(patterns) >= {"config.json", "model.safetensors", "vocab.txt"}
    assert not [pattern for pattern in patterns if pattern.endswith((".bin", ".py", ".pt", "*"))]

    def fail(name, allow_patterns):
        raise OSError("401 Unauthorized\nmore about it")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(UserError, match=r"^hf:someone/none: cannot be downloaded \(401 Unauthorized\); check the name"):
        locate("hf:someone/none")


def test_a_preset_says_its_rules(tmp_path):
    sizes = {"num_layers": 1, "num_heads": 1, "hidden_dim": 2, "intermediate_dim": 2}
    keras_hub.models.BertBackbone(len(TOKENS), **sizes).save_to_preset(str(tmp_path / "preset"))
    tokenizer = keras_hub.models.BertTokenizer(list(TOKENS), lowercase=True)
    tokenizer.save_to_preset(str(tmp_path / "preset"))
    found = read_vocabulary(f"preset:{tmp_path / 'preset'}")
    assert found.tokens == TOKENS
    assert found.normalization() == {"lowercase": True, "strip_accents": False, "split_chinese": True}
    with pytest.raises(UserError, match=r"preset:no_such_preset: no tokenizer of BERT can be loaded \("):
        read_vocabulary("preset:no_such_preset")


@pytest.mark.parametrize(
    ("tokens", "kind", "complaint"),
    [
        (("[PAD]", "[UNK]", "[CLS]", "[SEP]", "dog"), "WordPiece", r"model: the vocabulary has no \[MASK\]; it is not"),
        (("dog", *SPECIAL_TOKENS), "WordPiece", r"token 0 is 'dog', but must be \[PAD\]: 0 is padding"),
        (TOKENS, "BPE", r"model: holds no WordPiece vocabulary .*its kind is BPE"),
    ],
)
def test_what_is_no_vocabulary_of_bert_is_refused(directory, tokens, kind, complaint):
    write_whole(directory, tokens, kind)
    with pytest.raises(UserError, match=complaint):
        read_vocabulary(str(directory))


def test_what_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"nothing: does not exist; name a path, hf:OWNER/NAME or preset:NAME"):
        read_vocabulary("nothing", tmp_path)
    with pytest.raises(UserError, match=r"holds no WordPiece vocabulary that can be read \(FileNotFoundError"):
        read_vocabulary(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"holds no WordPiece vocabulary that can be read \(JSONDecodeError"):
        read_vocabulary(str(tmp_path))


def test_prepare_keeps_a_published_vocabulary_with_its_rules(directory, tmp_path):
    settings = TokenizerSettings(kind="wordpiece", vocabulary="model", lowercase=True)
    train_tokenizer(settings, CleaningSettings(), iter(()), tmp_path / "tokenizer", tmp_path)
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    assert tokenizer.vocabulary.tokens == TOKENS
    assert tokenizer.tokenize(tf.constant(["dogs Dogs é"])).to_list() == [[5, 6, 1, 7]]
    settings = TokenizerSettings(kind="wordpiece", vocabulary="model/vocab.txt", lowercase=True)
    tokenizer = train_tokenizer(settings, CleaningSettings(), iter(()), tmp_path / "other", tmp_path)
    assert tokenizer.tokenize(tf.constant(["dogs Dogs é"])).to_list() == [[5, 6, 5, 6, 1]]


def test_the_fingerprint_follows_tokens_and_rules(directory):
    before = fingerprint(str(directory))
    assert fingerprint(str(directory)) == before
    (directory / "tokenizer_config.json").write_text("{}")
    lowered = fingerprint(str(directory))
    (directory / "vocab.txt").write_text("\n".join([*TOKENS, "cat"]), "utf-8")
    assert len({before, lowered, fingerprint(str(directory))}) == 3
    assert fingerprint("preset:name") == "preset:name"


def test_options_of_one_kind_are_refused_for_others():
    with pytest.raises(ValueError, match="'vocabulary' is for kind: wordpiece only"):
        TokenizerSettings(vocabulary="vocab.txt")
    with pytest.raises(ValueError, match="'model' is for kind: subwords only"):
        TokenizerSettings(kind="wordpiece", model="bpe")
    with pytest.raises(ValueError, match="give either vocabulary or run"):
        TokenizerSettings(kind="wordpiece", vocabulary="vocab.txt", run="runs/a")


def test_a_tokenizer_comes_with_a_run_of_its_kind_alone(directory, tmp_path):
    settings = TokenizerSettings(kind="wordpiece", run="run")
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match=r"^run: holds no run; name a directory with recipe\.yaml and manifest\.json"):
        train_tokenizer(settings, CleaningSettings(), (), tmp_path / "new", tmp_path)
    for name in ("recipe.yaml", "manifest.json"):
        (tmp_path / "run" / name).write_text("{}")
    with pytest.raises(UserError, match=r"run: has no tokenizer; name a run of a task that reads text"):
        train_tokenizer(settings, CleaningSettings(), (), tmp_path / "new", tmp_path)
    words = train_tokenizer(TokenizerSettings(kind="words"), CleaningSettings(), ["b a b"], tmp_path / "run/tokenizer")
    with pytest.raises(UserError, match=r"tokenizer\.kind: is wordpiece, and .*run/tokenizer holds one of kind words"):
        train_tokenizer(settings, CleaningSettings(), (), tmp_path / "new", tmp_path)
    settings = TokenizerSettings(kind="words", run="run")
    same = train_tokenizer(settings, CleaningSettings(), ["c c"], tmp_path / "same", tmp_path)
    assert same.tokenize(tf.constant(["a b c"])).to_list() == words.tokenize(tf.constant(["a b c"])).to_list()


def test_a_path_is_of_the_data_directory_or_else_of_the_working_directory(directory, tmp_path, monkeypatch):
    data = tmp_path / "data"
    data.mkdir()
    monkeypatch.chdir(tmp_path)
    assert locate("model", data).resolve() == directory
    (data / "model").mkdir()
    assert locate("model", data).resolve() == data / "model"
