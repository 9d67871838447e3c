"""All conditioners of a model: which metadata they read, what they do not touch, and the config section."""

import copy

import pytest
import torch
from configs import text_to_audio

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.configs.parse import validate
from stable_audio_tools.models import create_model_from_config
from stable_audio_tools.models.conditioners import ConditioningConfig
from stable_audio_tools.models.conditioners.routing import Routes


def conditioning(**changes):
    document = {
        "cond_dim": 8,
        "configs": [
            {"id": "prompt", "type": "bytes", "config": {"max_length": 8, "embed_dim": 8, "bigram_buckets": 16, "trigram_buckets": 16}},
            {"id": "seconds", "type": "number", "config": {"max_val": 10.0, "output_dim": 4}},
        ],
        **changes,
    }
    return validate(ConditioningConfig, document, "conditioning")


def test_every_condition_by_its_id_and_width():
    config = conditioning()
    made = config.build()([{"prompt": "a", "seconds": 1}, {"prompt": "b", "seconds": 2, "path": "x.wav"}], "cpu")
    assert {name: condition.pooled.shape for name, condition in made.items()} == {"prompt": (2, 8), "seconds": (2, 4)}
    assert [config.width(name) for name in config.ids] == [8, 4]


def test_the_fallback_key_is_chosen_for_each_item_alone():
    model = conditioning(default_keys={"prompt": "caption"}).build()
    given = [{"caption": "x", "seconds": 0}, {"prompt": "y", "caption": "no", "seconds": 0}, {"prompt": None, "caption": "z", "seconds": 0}]
    want = model([{"prompt": text, "seconds": 0} for text in "xyz"], "cpu")
    torch.testing.assert_close(model(given, "cpu")["prompt"].pooled, want["prompt"].pooled, rtol=0, atol=0)


def test_a_missing_key_names_the_item_the_id_and_what_is_there():
    model = conditioning(default_keys={"prompt": "caption"}).build()
    with pytest.raises(ConfigError) as error:
        model([{"prompt": "a", "seconds": 1}, {"seconds": 1, "path": "x.wav"}], "cpu")
    assert 'item 1 has no "prompt" or "caption", which the conditioner "prompt" reads; its keys: seconds, path' in str(error.value)
    assert "conditioning.default_keys.prompt" in str(error.value)


def test_a_bad_value_names_the_conditioner():
    with pytest.raises(ConfigError, match=r'metadata: seconds\n  item 0: expected a number, got "1"'):
        conditioning().build()([{"prompt": "a", "seconds": "1"}], "cpu")


def test_lists_of_one_are_unwrapped_and_nothing_is_changed():
    model = conditioning().build()
    wrapped = ({"prompt": ["a bell"], "seconds": (3,), "tags": ["x"]},)
    before = copy.deepcopy(wrapped)
    made = model(wrapped, "cpu")
    assert wrapped == before
    plain = model([{"prompt": "a bell", "seconds": 3}], "cpu")
    for name in made:
        torch.testing.assert_close(made[name].pooled, plain[name].pooled, rtol=0, atol=0)


def test_pre_encoded_tensors_are_taken_as_they_are():
    model = conditioning(pre_encoded_keys=["prompt"]).build()
    rows = torch.randn(2, 5, 8)
    made = model([{"prompt": row, "seconds": 1} for row in rows], "cpu")["prompt"]
    torch.testing.assert_close(made.tensor, rows)
    assert made.mask is None and made.pooled is None
    assert not any(parameter.requires_grad for parameter in model.conditioners["prompt"].parameters())


ROUTES = {
    "cross_attention_cond_ids": ("cond_token_dim", (5, 8)),
    "prepend_cond_ids": ("prepend_cond_dim", (5, 8)),
    "global_cond_ids": ("global_cond_dim", (8,)),
    "input_concat_ids": ("input_concat_dim", (8, 16)),
}


@pytest.mark.parametrize("key", ROUTES)
@pytest.mark.parametrize("cfg_scale", [1.0, 3.0])
def test_pre_encoded_tensors_go_by_every_route(key, cfg_scale):
    width_key, shape = ROUTES[key]
    document = text_to_audio()
    body = document["model"]
    entries = [{"id": "pre", "type": "t5", "config": {}}, {"id": "seconds", "type": "number", "config": {}}]
    body["conditioning"] = {"cond_dim": 8, "configs": entries, "pre_encoded_keys": ["pre"]}
    network = body["diffusion"]["config"]
    for name in ("cond_token_dim", "global_cond_dim"):
        network.pop(name)
    body["diffusion"] |= {"cross_attention_cond_ids": ["seconds"], "global_cond_ids": []}
    network["cond_token_dim"] = 8
    body["diffusion"][key] = [*body["diffusion"].get(key, []), "pre"]
    network[width_key] = 8
    model = create_model_from_config(document)
    conditions = model.conditioner([{"pre": torch.randn(*shape), "seconds": 0.5} for _ in range(2)], "cpu")
    out = model(torch.randn(2, 16, 16), torch.tensor([0.3, 0.6]), conditions, cfg_scale=cfg_scale)
    assert out.shape == (2, 16, 16)


def test_a_pre_encoded_vector_is_constant_over_time_where_it_is_concatenated():
    rows = torch.randn(2, 8)
    made = conditioning(pre_encoded_keys=["prompt"]).build()([{"prompt": row, "seconds": 1} for row in rows], "cpu")
    inputs = Routes(input_concat=("prompt",), global_=("prompt",), prepend=("prompt",)).inputs(made)
    assert torch.equal(inputs["global_cond"], rows) and torch.equal(inputs["input_concat_cond"], rows[:, :, None])
    assert torch.equal(inputs["prepend_cond"], rows[:, None])


@pytest.mark.parametrize(
    ("value", "message"), [("text", "must be tensors"), (torch.zeros(4, 8), r"differ in shape: \[\(4, 8\), \(5, 8\)\]")]
)
def test_pre_encoded_tensors_of_another_kind_are_refused(value, message):
    model = conditioning(pre_encoded_keys=["prompt"]).build()
    with pytest.raises(ConfigError, match=message):
        model([{"prompt": torch.zeros(5, 8), "seconds": 1}, {"prompt": value, "seconds": 1}], "cpu")


NUMBER = {"type": "number", "config": {}}


@pytest.mark.parametrize(
    ("changes", "path", "message", "fix"),
    [
        ({"configs": [{"id": "a", **NUMBER}, {"id": "a", **NUMBER}]}, "configs[1].id", 'the id "a" is taken', "its own id"),
        ({"configs": [{"id": "inpaint_mask", **NUMBER}]}, "configs[0].id", "made from the audio", "remove this"),
        ({"configs": [{"id": "a.b", **NUMBER}]}, "configs[0].id", '"a.b" cannot name a part', "without dots"),
        ({"configs": [{"id": "keys", **NUMBER}]}, "configs[0].id", '"keys" cannot name a part', "another id"),
        (
            {"configs": [{"id": "a", "type": "nummer", "config": {}}]},
            "configs[0].type",
            'unknown conditioner "nummer"',
            'did you mean "number"?',
        ),
        ({"default_keys": {"promt": "caption"}}, "default_keys.promt", 'no conditioner "promt"', 'did you mean "prompt"?'),
        ({"pre_encoded_keys": ["second"]}, "pre_encoded_keys[0]", 'no conditioner "second"', 'did you mean "seconds"?'),
    ],
)
def test_bad_sections_say_where_and_what_to_do(changes, path, message, fix):
    with pytest.raises(ConfigError) as error:
        conditioning(**changes)
    text = str(error.value)
    assert path in text and message in text and fix in text


@pytest.mark.parametrize(
    ("kind", "config", "value", "count"),
    [
        ("int", {}, 3, 1),
        ("bytes", {"max_length": 6}, "a bell", 6),
        ("t5", {"t5_model_name": "t5-base", "max_length": 5}, "a bell", 5),
        ("clap_text", {"clap_ckpt_path": "clap.ckpt"}, "a bell", 1),
        ("clap_text", {"clap_ckpt_path": "clap.ckpt", "use_text_features": True}, "a bell", 77),
        ("phoneme", {"max_length": 5}, ["HH", "AH0"], None),
    ],
)
def test_the_number_of_tokens_is_known_where_it_is_always_the_same(kind, config, value, count):
    made = conditioning(configs=[{"id": "it", "type": kind, "config": config}])
    model = made.build()
    model.conditioners["it"].stand_in()
    tokens = model([{"it": value}], "cpu")["it"].tensor.shape[1]
    assert made.num_tokens("it") == count and tokens == (count or len(value))
    assert conditioning(configs=[{"id": "it", "type": kind, "config": config}], pre_encoded_keys=["it"]).num_tokens("it") is None
