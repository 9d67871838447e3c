"""`lut` and `phoneme`: tables of learned vectors for the parts of a text."""

import copy
import importlib.util
import json
import pickle

import pytest
import torch
from reference_rule import FOLDER, assert_matches, rule_value
from safetensors.torch import load_file

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.configs.parse import validate
from stable_audio_tools.models.conditioners import ConditionerConfig, ConditioningConfig
from stable_audio_tools.models.conditioners.tokens import PHONEMES


def conditioner(kind, dim=24, **config):
    return validate(ConditionerConfig, {"id": "x", "type": kind, "config": config}, "conditioner").build(dim)


def filled(made, name):
    """`made` with the rule's weights, after a check of its layout."""
    table = json.loads((FOLDER / "conditioners.json").read_text())[name]
    state = made.state_dict()
    assert {key: [list(value.shape), str(value.dtype).removeprefix("torch.")] for key, value in state.items()} == {
        key: entry[:2] for key, entry in table.items()
    }
    made.load_state_dict({key: rule_value(table[key][3], state[key], index) for index, key in enumerate(sorted(table))})
    return made.eval()


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A tokenizer of five words, as a folder and, within it, as a bare `tokenizer.json`."""
    pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1, "hello": 2, "world": 3, "drum": 4}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path_factory.mktemp("words")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "output", "config"),
    [
        ("lut_plain", "lut.plain", {}),
        (
            "lut_abspos_proj_special",
            "lut.abspos_proj_special",
            {"use_abs_pos_emb": True, "project_out": True, "special_tokens": ["<x>"]},
        ),
    ],
)
def test_lut_agrees_with_recorded_numbers(words, name, output, config):
    made = filled(conditioner("lut", tokenizer_name=str(words), max_length=6, **config), name)
    condition = made(made.prepare(["hello world", "drum drum bass <x>"]))
    reference = load_file(FOLDER / "conditioners.safetensors")
    assert_matches(condition.tensor, reference[f"{output}.out"])
    assert torch.equal(condition.mask, reference[f"{output}.mask"])


def test_lut_reads_a_tokenizer_file_without_a_padding_token(words):
    made, other = (conditioner("lut", tokenizer_name=str(name), max_length=4) for name in (words, words / "tokenizer.json"))
    other.load_state_dict(made.state_dict())
    want, got = (m(m.prepare(["hello drum", "world"])) for m in (made, other))
    torch.testing.assert_close(got.tensor, want.tensor)
    assert got.mask.tolist() == [[True, True, False, False], [True, False, False, False]]
    assert (got.tensor[~got.mask] == 0).all()


def test_lut_pads_on_the_tokenizers_side(words, tmp_path):
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(words, padding_side="left").save_pretrained(tmp_path)
    made = conditioner("lut", tokenizer_name=str(tmp_path), max_length=3)
    assert made(made.prepare(["drum"])).mask.tolist() == [[False, False, True]]


def test_lut_trains_copies_and_pickles(words):
    made = conditioner("lut", tokenizer_name=str(words), max_length=5, project_out=True, use_abs_pos_emb=True)
    made(made.prepare(["hello"])).tensor.square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in made.parameters())
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        torch.testing.assert_close(other(other.prepare(["world"])).tensor, made(made.prepare(["world"])).tensor)
    assert made.to(torch.bfloat16)(made.prepare(["hello"])).tensor.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("config", "path", "message"),
    [
        ({}, "config.tokenizer_name", "missing"),
        ({"tokenizer_name": "x", "special_tokens": ["<a>", "<a>"]}, "config.special_tokens[1]", '"<a>" is listed twice'),
        ({"tokenizer_name": "x", "special_tokens": [""]}, "config.special_tokens[0]", "no token"),
    ],
)
def test_lut_settings_say_where_and_what(config, path, message):
    with pytest.raises(ConfigError) as error:
        validate(ConditionerConfig, {"id": "x", "type": "lut", "config": config}, "conditioner")
    assert path in str(error.value) and message in str(error.value)


def test_a_tokenizer_that_is_not_there_is_named(tmp_path):
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError) as error:
        conditioner("lut", tokenizer_name=str(tmp_path))
    assert "tokenizer_name" in str(error.value) and "cannot be loaded" in str(error.value) and "local folder" in str(error.value)


def test_phonemes_have_the_published_table_and_no_package_is_needed_to_build_it():
    made = conditioner("phoneme", project_out=True)
    shapes = {key: tuple(value.shape) for key, value in made.state_dict().items()}
    assert shapes == {"phoneme_embedder.weight": (76, 24), "proj_out.weight": (24, 24), "proj_out.bias": (24,)}
    assert len(PHONEMES) == 74 and PHONEMES[:6] == ("<pad>", "<unk>", "<s>", "</s>", "AA0", "AA1")
    assert PHONEMES[-10:] == ("UH2", "UW", "UW0", "UW1", "UW2", "V", "W", "Y", "Z", "ZH")


def test_lists_of_phonemes_are_looked_up_and_padded_to_the_longest():
    made = conditioner("phoneme")
    prepared = made.prepare([["HH", "AH0", " ", "ZH"], ["AA0", "?"]])
    assert prepared.tolist() == [[39, 12, 1, 75], [6, 1, 0, 0]]
    condition = made(prepared)
    torch.testing.assert_close(condition.tensor[1, 0], made.phoneme_embedder.weight[6])
    assert condition.mask.tolist() == [[True] * 4, [True, True, False, False]]
    condition.tensor.sum().backward()
    assert made.phoneme_embedder.weight.grad[39].sum() == 24


def test_max_length_cuts_phonemes_and_says_so(caplog):
    made = conditioner("phoneme", max_length=2)
    assert made.prepare([["AA0", "AA1", "AA2"]]).tolist() == [[6, 7]]
    assert "3 phonemes; the first 2 are read (max_length)" in caplog.text


def test_a_batch_of_nothing_to_say_is_padding():
    condition = conditioner("phoneme")
    made = condition(condition.prepare([[], []]))
    assert made.tensor.shape == (2, 1, 24) and not made.mask.any()


@pytest.mark.skipif(importlib.util.find_spec("g2p_en") is not None, reason="g2p_en is installed")
def test_text_without_g2p_en_names_the_package_the_item_and_the_way_around():
    config = {"cond_dim": 8, "configs": [{"id": "lyrics", "type": "phoneme", "config": {}}]}
    with pytest.raises(ConfigError) as error:
        validate(ConditioningConfig, config, "conditioning").build()([{"lyrics": "hello"}], "cpu")
    text = str(error.value)
    assert "lyrics" in text and "item 0" in text and "pip install g2p_en" in text and "lists of phonemes" in text


@pytest.mark.parametrize("value", [3, [1, 2]])
def test_other_values_are_no_phonemes(value):
    with pytest.raises(ValueError, match="item 0: expected text"):
        conditioner("phoneme").prepare([value])
