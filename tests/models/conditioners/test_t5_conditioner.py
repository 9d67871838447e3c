"""`t5`: lazy, frozen or trained, cached, padded; on a tiny T5 built here."""

import copy
import json
import pickle
import sys

import pytest
import torch

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.configs.parse import validate
from stable_audio_tools.models.conditioners import ConditioningConfig
from stable_audio_tools.models.conditioners.frozen import Encoded, FrozenTextEncoder

PROMPTS = [{"prompt": "a soft bell"}, {"prompt": "drum"}, {"prompt": ""}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("transformers")
    from tiny_text_models import t5_folder

    return t5_folder(tmp_path_factory.mktemp("t5"))


def conditioning(name, cond_dim=16, **config):
    entry = {"id": "prompt", "type": "t5", "config": {"t5_model_name": str(name), **config}}
    return validate(ConditioningConfig, {"cond_dim": cond_dim, "configs": [entry]}, "conditioning")


def build(name, cond_dim=16, **config):
    return conditioning(name, cond_dim, **config).build()


def t5_by_hand(folder, text, length):
    """The padded way: everything through the T5, then times the mask."""
    from transformers import AutoTokenizer, T5EncoderModel

    encoded = AutoTokenizer.from_pretrained(folder)(text, truncation=True, max_length=length, padding="max_length", return_tensors="pt")
    hidden = T5EncoderModel.from_pretrained(folder).eval()(**{k: encoded[k] for k in ("input_ids", "attention_mask")}).last_hidden_state
    return hidden * encoded["attention_mask"][..., None], encoded["attention_mask"].bool()


def test_tokens_are_those_of_the_t5_padded_with_zeros(folder):
    made = build(folder, max_length=12)(PROMPTS, "cpu")["prompt"]
    want, mask = t5_by_hand(folder, [item["prompt"] for item in PROMPTS], 12)
    assert made.tensor.dtype == torch.float32 and made.tensor.shape == (3, 12, 16)
    torch.testing.assert_close(made.tensor, want, rtol=0, atol=1e-5)
    assert torch.equal(made.mask, mask) and made.mask.sum(1).tolist() == [4, 2, 1]
    assert made.pooled is None


def test_a_long_prompt_is_cut_to_max_length(folder):
    made = build(folder, max_length=3)([{"prompt": "a soft low bright bell"}], "cpu")["prompt"]
    assert made.tensor.shape == (1, 3, 16) and made.mask.all()


def test_the_projection_is_there_where_widths_differ_or_it_is_asked_for(folder):
    assert list(build(folder).state_dict()) == []
    keys = ["conditioners.prompt.proj_out.weight", "conditioners.prompt.proj_out.bias"]
    for model in (build(folder, output_dim=24), build(folder, project_out=True)):
        assert list(model.state_dict()) == keys
    model = build(folder, output_dim=24)
    made = model(PROMPTS, "cpu")["prompt"]
    assert made.tensor.shape == (3, 128, 24)
    assert (made.tensor[~made.mask] == 0).all()  # not the projection's bias
    made.tensor.sum().backward()
    assert model.conditioners["prompt"].proj_out.weight.grad.abs().sum() > 0


def test_frozen_it_is_loaded_at_first_use_and_is_no_part_of_the_model(folder):
    model = build(folder, output_dim=8)
    encoder = model.conditioners["prompt"]._frozen
    assert not encoder.loaded
    copied = copy.deepcopy(model)
    copied(PROMPTS, "cpu")
    assert encoder.loaded and copied.conditioners["prompt"]._frozen is encoder
    assert sum(parameter.numel() for parameter in model.parameters()) == 16 * 8 + 8
    again = pickle.loads(pickle.dumps(model))
    assert not again.conditioners["prompt"]._frozen.loaded
    torch.testing.assert_close(again(PROMPTS, "cpu")["prompt"].tensor, model(PROMPTS, "cpu")["prompt"].tensor)


def test_what_a_demo_encoded_can_be_trained_on(folder):
    model = build(folder, output_dim=8)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        model(PROMPTS, "cpu")
    made = model(PROMPTS, "cpu")["prompt"].tensor
    made.square().sum().backward()
    assert model.conditioners["prompt"].proj_out.weight.grad.abs().sum() > 0
    torch.testing.assert_close(made, build_like(model, folder)(PROMPTS, "cpu")["prompt"].tensor)  # not what autocast would make


def build_like(model, folder):
    other = build(folder, output_dim=8)
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_projection_works_in_its_own_precision(folder, dtype):
    assert build(folder, output_dim=8).to(dtype)(PROMPTS, "cpu")["prompt"].tensor.dtype == dtype


def test_enabled_gradients_train_the_t5_which_is_then_in_the_checkpoint(folder):
    model = build(folder, enable_grad=True, max_length=8).train()
    keys = list(model.state_dict())
    assert "conditioners.prompt.model.shared.weight" in keys
    assert "conditioners.prompt.model.encoder.block.1.layer.1.DenseReluDense.wo.weight" in keys
    made = model(PROMPTS, "cpu")["prompt"].tensor
    torch.testing.assert_close(made, build(folder, max_length=8)(PROMPTS, "cpu")["prompt"].tensor, rtol=0, atol=1e-5)  # no dropout
    made.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    other = build(folder, enable_grad=True, max_length=8)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(PROMPTS, "cpu")["prompt"].tensor, made)


def test_a_trained_t5_has_its_shapes_on_the_meta_device(folder):
    with torch.device("meta"):
        model = build(folder, enable_grad=True)
    want = {key: value.shape for key, value in build(folder, enable_grad=True).state_dict().items()}
    assert {key: value.shape for key, value in model.state_dict().items()} == want
    assert all(value.is_meta for value in model.state_dict().values())


class CountingEncoder:
    """Each letter is a token of width 2."""

    def __init__(self):
        self.asked = []

    def __call__(self, texts):
        self.asked += texts
        return [Encoded(torch.tensor([[float(ord(c)), 1.0] for c in text]), torch.ones(len(text), dtype=torch.bool)) for text in texts]


def test_each_text_is_encoded_once_as_long_as_it_fits_the_memory():
    encoder = CountingEncoder()
    frozen = FrozenTextEncoder(lambda device: encoder, max_bytes=2 * (3 * 2 * 4 + 3))
    cpu = torch.device("cpu")
    made = frozen.encode(["abc", "abc", "def"], cpu)
    assert encoder.asked == ["abc", "def"]
    torch.testing.assert_close(made[0].features, made[1].features)
    frozen.encode(["abc"], cpu)
    frozen.encode(["ghi"], cpu)  # "def" was used longest ago
    frozen.encode(["abc", "ghi"], cpu)
    assert encoder.asked == ["abc", "def", "ghi"]
    assert frozen.encode(["def"], cpu)[0].features[0, 0] == ord("d")
    assert encoder.asked[3:] == ["def"]


def test_more_than_the_memory_holds_is_still_encoded():
    frozen = FrozenTextEncoder(lambda device: CountingEncoder(), max_bytes=0)
    assert [len(row.features) for row in frozen.encode(["ab", "abcd", "ab"], torch.device("cpu"))] == [2, 4, 2]


@pytest.mark.parametrize("name", ["t5-small", "t5-base", "t5-large", "t5-3b", "t5-11b", "google/flan-t5-small", "google/flan-t5-base"])
def test_published_names_build_anywhere(name):
    with torch.device("meta"):
        model = build(name, cond_dim=10)
    width = {"small": 512, "base": 768}.get(name.split("-")[-1], 1024)
    assert model.state_dict()["conditioners.prompt.proj_out.weight"].shape == (10, width)


@pytest.mark.parametrize(
    ("config", "path", "message", "fix"),
    [
        ({"t5_model_name": "t5-bse"}, "configs[0].config.t5_model_name", '"t5-bse" is not known', 'did you mean "t5-base"'),
        ({"t5_model_name": "owner/own-encoder"}, "configs[0].config.t5_model_name", "neither a published T5 nor a", "set model_dim"),
        ({"t5_model_name": "t5-base", "model_dim": 512}, "configs[0].config.model_dim", "has width 768", "remove model_dim"),
        ({"max_length": 0}, "configs[0].config.max_length", "above 0, got 0", ""),
        ({"max_len": 4}, "configs[0].config.max_len", "unknown key", 'did you mean "max_length"'),
    ],
)
def test_bad_settings_say_where_and_what_to_do(config, path, message, fix):
    entry = {"id": "prompt", "type": "t5", "config": config}
    with pytest.raises(ConfigError) as error:
        validate(ConditioningConfig, {"cond_dim": 8, "configs": [entry]}, "conditioning")
    assert path in str(error.value) and message in str(error.value) and fix in str(error.value)


def test_a_hub_name_of_a_stated_width_builds_without_a_download():
    assert build("owner/own-encoder", cond_dim=8, model_dim=24).state_dict()["conditioners.prompt.proj_out.weight"].shape == (8, 24)


def test_a_model_that_is_not_there_names_the_conditioner_and_the_key(tmp_path):
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text(json.dumps({"d_model": 8, "model_type": "t5"}))
    with pytest.raises(ConfigError) as error:
        build(tmp_path, cond_dim=8)(PROMPTS, "cpu")
    assert "prompt.t5_model_name" in str(error.value) and "cannot be loaded" in str(error.value) and "check the name" in str(error.value)


def test_a_wrong_value_names_item_and_conditioner():
    with pytest.raises(ConfigError, match="prompt\n  item 1: expected text, got 3"):
        build("t5-base")([{"prompt": "a"}, {"prompt": 3}], "cpu")


def test_without_transformers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)  # as if it were not installed
    model = build("t5-base", cond_dim=8)
    with pytest.raises(ConfigError) as error:
        model(PROMPTS, "cpu")
    text = str(error.value)
    assert "prompt.t5_model_name" in text and "need the package transformers" in text and 'pip install -e ".[text]"' in text


def test_a_stand_in_has_the_shapes_and_loads_nothing():
    model = build("t5-base", cond_dim=8, max_length=5)
    model.conditioners["prompt"].stand_in()
    made = model(PROMPTS, "cpu")["prompt"]
    assert made.tensor.shape == (3, 5, 8) and made.mask.shape == (3, 5)
