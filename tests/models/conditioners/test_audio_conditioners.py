"""`pretransform` and `source_mix`: audio as latents, which pretransform encodes it, and what is refused."""

import copy
import json

import pytest
import torch
from configs import text_to_audio
from reference_rule import FOLDER, assert_matches, assert_same_layout, fill, load_reference, rule_value
from safetensors.torch import load_file, save_file

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.configs.parse import validate
from stable_audio_tools.models import create_model_from_config
from stable_audio_tools.models.conditioners import ConditioningConfig
from stable_audio_tools.models.pretransforms import PretransformConfig


class PretransformHolder(StrictModel):
    it: PretransformConfig


PATCHED = {"type": "patched", "config": {"channels": 2, "patch_size": 16}}


def autoencoder(**wiring):
    """A pretransform of 4 channels at a sixteenth of the rate, without randomness."""
    coder = {"channels": 4, "c_mults": [1, 1], "strides": [4, 4], "latent_dim": 4}
    body = {
        "encoder": {"type": "oobleck", "config": {"in_channels": 2, **coder}},
        "decoder": {"type": "oobleck", "config": {"out_channels": 2, **coder}},
        "latent_dim": 4,
        "downsampling_ratio": 16,
        "io_channels": 2,
    }
    return {"type": "autoencoder", "config": body, **wiring}


def conditioning(kind="pretransform", cond_dim=24, **config):
    entry = {"id": "ref", "type": kind, "config": {"sample_rate": 8000, **config}}
    return validate(ConditioningConfig, {"cond_dim": cond_dim, "configs": [entry]}, "conditioning")


def build(kind="pretransform", cond_dim=24, pretransform=None, **config):
    return conditioning(kind, cond_dim, **config).build(pretransform=pretransform)


def audio(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_model_with_audio_beside_the_latents_agrees_with_recorded_numbers():
    reference = load_reference("tiny_cond_dit_latent_concat")
    model = create_model_from_config(copy.deepcopy(reference.config)).eval()
    assert_same_layout(model, reference.table)
    fill(model, reference)
    items = [{"seconds_total": seconds, "ref_audio": reference["in.ref_audio"][i]} for i, seconds in enumerate((30, 600))]
    with torch.no_grad():
        conditions = model.conditioner(items, "cpu")
        for name in ("seconds_total", "ref_audio"):
            assert_matches(conditions[name].tensor, reference[f"out.cond.{name}"])
            assert torch.equal(conditions[name].mask.float(), reference[f"out.cond_mask.{name}"])
        assert_matches(model(reference["in.x"], reference["in.t"], conditions), reference["out.cfg1"])


def test_the_projection_runs_over_the_channels_whatever_their_number():
    model = build(cond_dim=24, pretransform_config=PATCHED)
    layer = model.conditioners["ref"].proj_out
    given = audio(2, 2, 160)
    made = model([{"ref": row} for row in given], "cpu")["ref"]
    patches = given.unflatten(-1, (10, 16)).transpose(-1, -2).flatten(1, 2)
    want = torch.einsum("dc,bcn->bdn", layer.weight, patches) + layer.bias[:, None]
    torch.testing.assert_close(made.tensor, want, rtol=0, atol=1e-5)
    assert made.tensor.shape == (2, 24, 10) and made.mask.shape == (2, 10)
    assert list(model.state_dict()) == ["conditioners.ref.proj_out.weight", "conditioners.ref.proj_out.bias"]


@pytest.mark.parametrize("channels", [0, 1, 2, 4])
def test_audio_gets_the_pretransforms_channels(channels):
    model = build(cond_dim=32, pretransform_config=PATCHED)
    given = audio(32) if channels == 0 else audio(channels, 32)
    stereo = given.expand(2, -1) if channels < 2 else given[:2]
    made = model([{"ref": given}], "cpu")["ref"].tensor
    torch.testing.assert_close(made, model([{"ref": stereo}], "cpu")["ref"].tensor)


@pytest.mark.parametrize("save", [False, True])
def test_the_pretransform_is_in_the_checkpoint_only_if_it_is_saved(save):
    model = build(pretransform_config=autoencoder(), save_pretransform=save)
    keys = list(model.state_dict())
    assert any(key.startswith("conditioners.ref.pretransform.model.encoder.") for key in keys) == save
    assert {"conditioners.ref.proj_out.weight", "conditioners.ref.proj_out.bias"} <= set(keys)
    assert (len(keys) == 2) is not save
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {key for key in keys if "proj_out" in key}
    model([{"ref": audio(2, 64)}], "cpu")["ref"].tensor.square().sum().backward()
    assert model.conditioners["ref"].proj_out.weight.grad.abs().sum() > 0


def test_a_saved_pretransform_may_train_and_another_one_may_not():
    model = build(pretransform_config=autoencoder(enable_grad=True), save_pretransform=True)
    model([{"ref": audio(2, 64)}], "cpu")["ref"].tensor.square().sum().backward()
    assert model.conditioners["ref"].pretransform.model.encoder.layers[0].weight_v.grad.abs().sum() > 0
    with pytest.raises(ConfigError, match=r"configs\[0\]\.config\.pretransform_config\.enable_grad\n.*not saved is not trained"):
        conditioning(pretransform_config=autoencoder(enable_grad=True))


def test_weights_come_from_a_file_of_the_autoencoders_own(tmp_path):
    source = build(pretransform_config=autoencoder(), cond_dim=4)
    inner = source.conditioners["ref"]._unowned.module.model
    save_file(inner.state_dict(), tmp_path / "vae.safetensors")
    other = build(pretransform_config=autoencoder(), cond_dim=4, pretransform_ckpt_path=str(tmp_path / "vae.safetensors"))
    given = [{"ref": audio(2, 64)}]
    torch.testing.assert_close(other(given, "cpu")["ref"].tensor, source(given, "cpu")["ref"].tensor, rtol=0, atol=0)
    assert list(other.state_dict()) == []
    with pytest.raises(ConfigError, match="no such file"):
        build(pretransform_config=autoencoder(), pretransform_ckpt_path=str(tmp_path / "none.safetensors"))
    with torch.device("meta"):
        build(pretransform_config=autoencoder(), pretransform_ckpt_path=str(tmp_path / "none.safetensors"))


def test_a_null_path_is_no_path():
    build(pretransform_config=PATCHED, pretransform_ckpt_path=None)


def concat_model(**config):
    document = text_to_audio()
    model = document["model"]
    entry = {"id": "ref", "type": "pretransform", "config": {"sample_rate": 8000, **config}}
    model["conditioning"]["configs"].append(entry)
    model["diffusion"]["input_concat_ids"] = ["ref"]
    model["diffusion"]["config"]["input_concat_dim"] = 16
    return document


def test_a_conditioner_shares_the_models_pretransform():
    document = concat_model(use_model_pretransform=True)
    document["model"]["pretransform"] = {"type": "autoencoder", **vae_of_16()}
    model = create_model_from_config(document)
    assert model.conditioner.conditioners["ref"]._unowned.module is model.pretransform
    assert not [key for key in model.state_dict() if key.startswith("conditioner.conditioners.ref")]
    given = audio(1, 2048)
    conditions = model.conditioner([{"prompt": "a", "ref": given}], "cpu")
    assert_matches(conditions["ref"].tensor, model.pretransform.encode(given[None]))
    out = model(audio(1, 16, 128), torch.tensor([0.5]), conditions)
    assert out.shape == (1, 16, 128)
    copied = copy.deepcopy(model)
    assert copied.conditioner.conditioners["ref"]._unowned.module is model.pretransform  # frozen, so one is enough


def vae_of_16(**wiring):
    coder = {"channels": 4, "c_mults": [1, 1], "strides": [4, 4], "latent_dim": 16}
    body = {
        "encoder": {"type": "oobleck", "config": {"in_channels": 1, **coder}},
        "decoder": {"type": "oobleck", "config": {"out_channels": 1, **coder}},
        "latent_dim": 16,
        "downsampling_ratio": 16,
        "io_channels": 1,
    }
    return {"config": body, **wiring}


def test_a_copy_of_a_model_whose_pretransform_trains_uses_its_own():
    document = concat_model(use_model_pretransform=True)
    document["model"]["pretransform"] = {"type": "autoencoder", **vae_of_16(enable_grad=True)}
    copied = copy.deepcopy(create_model_from_config(document))
    assert copied.conditioner.conditioners["ref"]._unowned.module is copied.pretransform


def test_a_model_without_a_pretransform_has_none_to_share():
    with pytest.raises(ConfigError, match=r"use_model_pretransform\n.*the model has no pretransform(.|\n)*give pretransform_config"):
        build(use_model_pretransform=True)


@pytest.mark.parametrize(
    ("config", "path", "message", "fix"),
    [
        ({}, "configs[0].config.pretransform_config", "no pretransform is given", "set use_model_pretransform"),
        (
            {"use_model_pretransform": True, "pretransform_config": PATCHED},
            "configs[0].config.use_model_pretransform",
            "both",
            "give pretransform_config, or",
        ),
        ({"sample_rate": None}, "configs[0].config.sample_rate", "null", ""),
        (
            {"pretransform_config": {"type": "pached", "config": {}}},
            "configs[0].config.pretransform_config.type",
            'unknown pretransform "pached"',
            'did you mean "patched"',
        ),
    ],
)
def test_bad_settings_say_where_and_what_to_do(config, path, message, fix):
    with pytest.raises(ConfigError) as error:
        conditioning(**config)
    assert path in str(error.value) and message in str(error.value) and fix in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["x.wav"], 'item 0: expected audio as a tensor (channels, samples), got "x.wav"'),
        ([audio(1, 2, 32)], "item 0: expected audio as a tensor (channels, samples), got a float32 tensor of shape (1, 2, 32)"),
        ([audio(2, 40)], "item 0: audio has 40 samples, which is no multiple of the pretransform's 16"),
        ([audio(2, 32), audio(2, 48)], "audio of one batch must be of one length, got 32, 48"),
    ],
)
def test_bad_audio_names_item_and_conditioner(values, message):
    with pytest.raises(ConfigError) as error:
        build(pretransform_config=PATCHED)([{"ref": value} for value in values], "cpu")
    assert "metadata: ref" in str(error.value) and message in str(error.value)


MIX = {"pretransform_config": PATCHED, "source_keys": ["drums", "bass"]}


def filled_mix():
    table = json.loads((FOLDER / "conditioners.json").read_text())["source_mix"]
    model = build("source_mix", allow_null_source=True, source_length=8, **MIX)
    made = model.conditioners["ref"]
    state = made.state_dict()
    assert {key: list(value.shape) for key, value in state.items()} == {key: entry[0] for key, entry in table.items()}
    made.load_state_dict({key: rule_value(table[key][3], state[key], index) for index, key in enumerate(sorted(table))})
    return model


def test_the_mix_agrees_with_recorded_numbers():
    reference = load_file(FOLDER / "conditioners.safetensors")
    x = reference["source_mix.in"]
    made = filled_mix()([{"ref": {"drums": x, "bass": 0.5 * x}}, {"ref": {"vocals": x}}], "cpu")["ref"]
    assert_matches(made.tensor, reference["source_mix.out"])
    assert made.mask.shape == (2, 8) and made.mask.all()


def test_each_item_mixes_the_sources_that_it_has():
    model = filled_mix()
    a, b = audio(2, 128), audio(2, 128, seed=1)
    items = [{"drums": a, "bass": b}, {"bass": b}, {}, {"drums": a}]
    made = model([{"ref": item} for item in items], "cpu")["ref"].tensor
    torch.testing.assert_close(made[0], made[1] + made[3], rtol=0, atol=1e-5)
    torch.testing.assert_close(made[2], model.conditioners["ref"].null_source.expand(-1, 8))
    for index, item in enumerate(items):
        torch.testing.assert_close(model([{"ref": item}], "cpu")["ref"].tensor[0], made[index], rtol=0, atol=1e-5)


@pytest.mark.parametrize("item", [{"drums": audio(2, 128)}, {"bass": audio(2, 128)}, {}])
def test_every_weight_that_trains_takes_part_in_every_batch(item):
    model = build("source_mix", allow_null_source=True, source_length=8, **MIX)
    model([{"ref": item}], "cpu")["ref"].tensor.square().sum().backward()
    assert all((parameter.grad is not None) == parameter.requires_grad for parameter in model.parameters())
    assert {name.split(".")[2] for name, p in model.named_parameters() if not p.requires_grad} == {"proj_out"}


def test_sources_may_be_latents_and_widths_may_agree():
    encode = build("source_mix", cond_dim=32, **MIX)
    plain = build("source_mix", cond_dim=32, pre_encoded=True, **MIX)
    plain.load_state_dict(encode.state_dict())
    given = audio(2, 64)
    latents = given.unflatten(-1, (4, 16)).transpose(-1, -2).flatten(0, 1)
    torch.testing.assert_close(
        plain([{"ref": {"bass": latents}}], "cpu")["ref"].tensor, encode([{"ref": {"bass": given}}], "cpu")["ref"].tensor
    )
    assert not any("proj_out" in key or "null" in key for key in encode.state_dict())


def test_nothing_in_the_metadata_is_changed():
    item = {"ref": {"drums": audio(2, 128), "bass": audio(1, 128)}}
    before = copy.deepcopy(item)
    filled_mix()([item, item], "cpu")
    assert item.keys() == before.keys() and all(torch.equal(item["ref"][key], before["ref"][key]) for key in before["ref"])


@pytest.mark.parametrize(
    ("config", "items", "message"),
    [
        ({}, [{"vocals": audio(2, 32)}], "item 0: none of the sources drums, bass is there; given: vocals; allow_null_source permits that"),
        ({}, [{"drums": audio(2, 32)}, audio(2, 32)], "item 1: expected an object of sources by name, got a float32 tensor"),
        ({}, [{"drums": audio(2, 40)}], 'item 0: source "drums": audio has 40 samples'),
        ({}, [{"drums": audio(2, 32), "bass": audio(2, 48)}], "sources of one batch must be of one length, got 32, 48"),
        (
            {"pre_encoded": True},
            [{"bass": audio(2, 32)}],
            'source "bass": expected latents (32, frames), got a float32 tensor of shape (2, 32)',
        ),
        (
            {"allow_null_source": True, "source_length": 8},
            [{"drums": audio(2, 32)}, {}],
            "an item without sources has 8 frames (source_length), but the others have 2",
        ),
    ],
)
def test_bad_sources_name_item_and_key(config, items, message):
    with pytest.raises(ConfigError) as error:
        build("source_mix", **MIX, **config)([{"ref": item} for item in items], "cpu")
    assert "metadata: ref" in str(error.value) and message in str(error.value)


@pytest.mark.parametrize(
    ("changes", "path", "message", "fix"),
    [
        ({"source_keys": []}, "source_keys", "no source is named", "name the sources"),
        ({"source_keys": ["a", "a"]}, "source_keys[1]", '"a" is listed twice', "keep one"),
        ({"allow_null_source": True}, "source_length", "needs the length", "set source_length"),
    ],
)
def test_bad_mixes_say_where_and_what_to_do(changes, path, message, fix):
    with pytest.raises(ConfigError) as error:
        conditioning("source_mix", **{**MIX, **changes})
    assert f"configs[0].config.{path}" in str(error.value) and message in str(error.value) and fix in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "value"), [("pretransform", audio(2, 64)), ("source_mix", {"bass": audio(2, 64)})])
def test_each_works_in_the_precision_of_its_weights(kind, value, dtype):
    config = {**MIX} if kind == "source_mix" else {"pretransform_config": PATCHED}
    made = build(kind, **config).to(dtype)([{"ref": value}], "cpu")["ref"].tensor
    assert made.dtype == dtype and made.shape == (1, 24, 4)


@pytest.mark.parametrize(
    ("kind", "config", "key", "fix"),
    [
        ("pretransform", {"sample_rate": 8000, "use_model_pretransform": True}, "global_cond_ids", "input_concat_ids"),
        ("pretransform", {"sample_rate": 8000, "use_model_pretransform": True}, "cross_attention_cond_ids", "input_concat_ids"),
        ("t5", {}, "global_cond_ids", "cross_attention_cond_ids or prepend_cond_ids"),
        ("phoneme", {}, "input_concat_ids", "cross_attention_cond_ids or prepend_cond_ids"),
    ],
)
def test_a_condition_that_cannot_take_its_route_is_refused(kind, config, key, fix):
    document = text_to_audio()
    document["model"]["conditioning"]["configs"].append({"id": "extra", "type": kind, "config": config})
    document["model"]["diffusion"].setdefault(key, []).append("extra")
    with pytest.raises(ConfigError) as error:
        create_model_from_config(document)
    assert f"model.diffusion.{key}[" in str(error.value) and '"extra" is' in str(error.value) and f"move it to {fix}" in str(error.value)


OWN_OR_THE_MODELS = [{"pretransform_config": autoencoder()}, {"use_model_pretransform": True}]


@pytest.mark.parametrize("encoder", OWN_OR_THE_MODELS, ids=["own", "the model's"])
@pytest.mark.parametrize(
    ("kind", "config"),
    [("pretransform", {}), ("source_mix", {"source_keys": ["a", "b"]}), ("source_mix", {"source_keys": ["a"], "pre_encoded": True})],
    ids=["audio", "sources", "sources as latents"],
)
def test_an_example_is_a_second_of_what_the_conditioner_reads(kind, config, encoder):
    pretransform = validate(PretransformHolder, {"it": autoencoder()}, "pretransform").it
    section = conditioning(kind, **config, **encoder)
    model = section.build(pretransform=pretransform.build(8000))
    made = model([section.example(8000, pretransform)], "cpu")["ref"]
    assert made.tensor.shape == (1, 24, 500)


@pytest.mark.parametrize("kind", ["pretransform", "int", "t5"])
def test_an_example_of_finished_tensors_is_one(kind):
    config = {"sample_rate": 8000, "use_model_pretransform": True} if kind == "pretransform" else {}
    document = {"cond_dim": 24, "configs": [{"id": "ref", "type": kind, "config": config}], "pre_encoded_keys": ["ref"]}
    example = validate(ConditioningConfig, document, "conditioning").example(8000)["ref"]
    assert example.shape == {"pretransform": (24, 1), "int": (24,), "t5": (128, 24)}[kind]


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"pretransform_config": autoencoder()}, True),
        ({"pretransform_config": autoencoder(), "save_pretransform": True}, False),
        ({"pretransform_config": PATCHED}, False),
    ],
    ids=["nowhere", "of this model's checkpoint", "none"],
)
def test_weights_that_nothing_keeps_are_told(config, told, caplog):
    build(**config)
    assert ("its weights stay random" in caplog.text) == told
    assert ("name its file, or use_model_pretransform" in caplog.text) == told
