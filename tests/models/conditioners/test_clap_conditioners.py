"""`clap_text` and `clap_audio` on a tiny CLAP built here, and the authors' file layout."""

import json
import math

import pytest
import torch
from reference_rule import FOLDER, assert_matches, rule_value
from safetensors.torch import load_file

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.configs.parse import validate
from stable_audio_tools.models.conditioners import ConditioningConfig
from stable_audio_tools.models.conditioners.clap_audio import CLIP, clip_fused, clip_middle, repeat_to_clip

PROMPTS = [{"clap": "a soft bell"}, {"clap": "drum"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("transformers")
    from tiny_text_models import clap_folder

    return clap_folder(tmp_path_factory.mktemp("clap"))


def conditioning(kind, path, cond_dim=8, **config):
    entry = {"id": "clap", "type": kind, "config": {"clap_ckpt_path": str(path), **config}}
    return validate(ConditioningConfig, {"cond_dim": cond_dim, "configs": [entry]}, "conditioning")


def build(kind, path, cond_dim=8, sample_rate=48000, **config):
    return conditioning(kind, path, cond_dim, **config).build(sample_rate=sample_rate)


def of_transformers(folder, texts):
    from transformers import AutoTokenizer, ClapTextModelWithProjection

    encoded = AutoTokenizer.from_pretrained(folder)(texts, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
    inputs = {key: encoded[key] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        return ClapTextModelWithProjection.from_pretrained(folder).eval()(**inputs, output_hidden_states=True), inputs["attention_mask"]


def test_text_is_the_unit_vector_of_the_clap_for_every_route(folder):
    made = build("clap_text", folder)(PROMPTS, "cpu")["clap"]
    want = torch.nn.functional.normalize(of_transformers(folder, ["a soft bell", "drum"])[0].text_embeds, dim=-1)
    torch.testing.assert_close(made.pooled, want, rtol=0, atol=1e-5)
    torch.testing.assert_close(made.tensor, want[:, None], rtol=0, atol=1e-5)
    assert made.mask.shape == (2, 1) and made.mask.all()


@pytest.mark.parametrize("layer", [-1, -2, 0])
def test_text_features_are_a_layers_tokens_padding_included(folder, layer):
    made = build("clap_text", folder, cond_dim=16, use_text_features=True, feature_layer_ix=layer)(PROMPTS, "cpu")["clap"]
    output, mask = of_transformers(folder, ["a soft bell", "drum"])
    torch.testing.assert_close(made.tensor, output.hidden_states[layer], rtol=0, atol=1e-5)
    assert torch.equal(made.mask, mask.bool()) and made.tensor.shape == (2, 77, 16) and made.pooled is None


def test_the_authors_names_are_understood_and_numpy_numbers_beside_them(folder, tmp_path):
    from tiny_text_models import authors_clap_folder

    theirs = authors_clap_folder(folder, tmp_path / "authors")
    made, want = (build("clap_text", path)(PROMPTS, "cpu")["clap"].pooled for path in (theirs, folder))
    torch.testing.assert_close(made, want, rtol=0, atol=1e-6)


def test_a_frozen_clap_is_no_part_of_the_model_and_a_missing_one_is_reported_when_it_is_needed(caplog, tmp_path):
    pytest.importorskip("transformers")
    model = build("clap_text", tmp_path / "clap.ckpt", cond_dim=24, use_text_features=True, feature_layer_ix=-2)
    assert "is not there; the first prompt will need it" in caplog.text
    assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == {
        "conditioners.clap.proj_out.weight": (24, 768),
        "conditioners.clap.proj_out.bias": (24,),
    }
    with pytest.raises(ConfigError, match="no such file"):
        model(PROMPTS, "cpu")


def test_published_configs_build_without_the_clap():
    with torch.device("meta"):
        model = build("clap_text", "/path/to/clap.ckpt", cond_dim=768, use_text_features=True, feature_layer_ix=-2, enable_fusion=True)
    assert list(model.state_dict()) == []


def test_a_fine_tuned_text_half_is_in_the_checkpoint_under_the_authors_names(folder):
    model = build("clap_text", folder, finetune=True, audio_model_type="HTSAT-tiny").train()
    keys = {key.removeprefix("conditioners.clap.") for key in model.state_dict()}
    assert {
        "model.model.text_branch.embeddings.word_embeddings.weight",
        "model.model.text_branch.encoder.layer.0.attention.self.query.weight",
        "model.model.text_branch.pooler.dense.bias",
        "model.model.text_projection.0.weight",
        "model.model.text_projection.2.bias",
        "model.model.text_transform.sequential.3.weight",
        "model.model.audio_transform.sequential.0.weight",
        "model.model.audio_projection.0.weight",
        "model.model.logit_scale_a",
        "model.model.logit_scale_t",
    } <= keys
    made = model(PROMPTS, "cpu")["clap"].pooled
    torch.testing.assert_close(made, build("clap_text", folder)(PROMPTS, "cpu")["clap"].pooled, rtol=0, atol=1e-5)  # no dropout
    made[:, 0].sum().backward()
    assert all((parameter.grad is not None) == parameter.requires_grad for parameter in model.parameters())


def test_layers_behind_the_one_that_is_read_do_not_train(folder):
    model = build("clap_text", folder, cond_dim=16, finetune=True, use_text_features=True, feature_layer_ix=-2)
    model(PROMPTS, "cpu")["clap"].tensor.square().sum().backward()
    assert all((parameter.grad is not None) == parameter.requires_grad for parameter in model.parameters())
    branch = model.conditioners["clap"].model.model.text_branch
    assert branch.encoder.layer[0].output.dense.weight.requires_grad and not branch.encoder.layer[1].output.dense.weight.requires_grad


def test_a_clap_without_its_text_half_is_refused(folder, tmp_path):
    from tiny_text_models import without_key

    broken = without_key(folder, tmp_path / "broken", "text_model.pooler.dense.weight")
    with pytest.raises(ConfigError, match=r"does not hold this half of a CLAP: 1 missing\n.*text_branch\.pooler\.dense\.weight"):
        build("clap_text", broken)(PROMPTS, "cpu")


def test_a_layer_that_is_not_there_is_refused(folder):
    with pytest.raises(ConfigError) as error:
        conditioning("clap_text", folder, use_text_features=True, feature_layer_ix=-4)
    text = str(error.value)
    assert "configs[0].config.feature_layer_ix" in text and "hidden states 0 to 2" in text and "choose from -3 to 2" in text


@pytest.mark.parametrize(
    ("kind", "config", "shape"),
    [("clap_text", {}, (2, 1, 8)), ("clap_text", {"use_text_features": True}, (2, 77, 8)), ("clap_audio", {}, (2, 1, 8))],
)
def test_a_stand_in_has_the_shapes_and_loads_nothing(kind, config, shape):
    model = build(kind, "/path/to/clap.ckpt", **config)
    model.conditioners["clap"].stand_in()
    value = torch.zeros(1, 4800) if kind == "clap_audio" else "a bell"
    assert model([{"clap": value}] * 2, "cpu")["clap"].tensor.shape == shape


def tone(seconds, rate=48000, frequency=440.0):
    return 0.3 * torch.sin(2 * math.pi * frequency * torch.arange(int(seconds * rate)) / rate)


def test_audio_of_any_length_channels_and_rate_is_a_unit_vector(folder):
    model = build("clap_audio", folder, sample_rate=24000)
    given = [{"clap": tone(1.0, 24000).repeat(2, 1)}, {"clap": tone(11.0, 24000)}]
    made = model(given, "cpu")["clap"]
    torch.testing.assert_close(made.pooled.norm(dim=-1), torch.ones(2))
    assert made.tensor.shape == (2, 1, 8) and list(model.state_dict()) == []
    torch.testing.assert_close(model(given, "cpu")["clap"].pooled, made.pooled, rtol=0, atol=0)  # no random places
    alone = build("clap_audio", folder, sample_rate=24000)(given[1:], "cpu")["clap"].pooled
    torch.testing.assert_close(alone[0], made.pooled[1], rtol=0, atol=1e-6)


def test_audio_is_resampled_to_the_rate_of_the_clap(folder):
    def vector(rate, stated):
        return build("clap_audio", folder, sample_rate=stated)([{"clap": tone(2.0, rate)}], "cpu")["clap"].pooled

    right, wrong = ((vector(24000, stated) - vector(48000, 48000)).norm() for stated in (24000, 48000))
    assert right < 0.02 and wrong > 3 * right


def test_a_stated_rate_wins_over_the_models(folder):
    config = {"id": "clap", "type": "clap_audio", "config": {"clap_ckpt_path": str(folder), "sample_rate": 16000}}
    model = validate(ConditioningConfig, {"cond_dim": 8, "configs": [config]}, "c").build(sample_rate=44100)
    assert model.conditioners["clap"].sample_rate == 16000


def test_short_audio_is_repeated_whole_and_then_silent():
    filled = repeat_to_clip(torch.arange(1.0, 200001.0))
    assert filled.shape == (CLIP,) and filled[200000] == 1 and (filled[400000:] == 0).all()


def test_long_audio_is_seen_whole_or_in_the_middle():
    ramp = torch.cat([tone(4.0, frequency=f) for f in (200.0, 1000.0, 5000.0)])
    fused, middle = clip_fused(ramp), clip_middle(ramp)
    assert fused.mels.shape == (4, 1001, 64) and fused.longer and middle.mels.shape == (1, 1001, 64)
    loudest = fused.mels[0].argmax(dim=-1)
    assert loudest[10] < loudest[500] < loudest[-10]  # the squeezed whole has all three
    assert not clip_fused(ramp[: CLIP // 2]).longer


def test_a_wrong_audio_value_names_the_item(folder):
    with pytest.raises(ConfigError, match=r'item 0: expected audio as a tensor \(channels, samples\), got "x.wav"'):
        build("clap_audio", folder)([{"clap": "x.wav"}], "cpu")


@pytest.mark.slow
@pytest.mark.parametrize("fusion", [False, True])
def test_the_audio_half_computes_what_the_authors_do(fusion, tmp_path):
    """Recorded: HTSAT-tiny of the authors' code with rule weights, on 3 s repeated and on 12 s, at fixed places."""
    pytest.importorskip("transformers")
    table = json.loads((FOLDER / "clap_audio_tiny.json").read_text())[str(fusion)]
    state = {f"module.{key}": authors_tensor(key, entry, index) for index, (key, entry) in enumerate(sorted(table.items()))}
    kept = {key: value for key, value in state.items() if not key.endswith("relative_position_index")}
    torch.save({"epoch": 1, "state_dict": kept}, tmp_path / "clap.pt")
    steps = torch.arange(48000 * 3, dtype=torch.float64) / 48000
    short = 0.3 * torch.sin(2 * math.pi * 440 * steps) + 0.2 * torch.sin(2 * math.pi * (1000 + 2000 * steps / 3) * steps)
    steps = torch.arange(48000 * 12, dtype=torch.float64) / 48000
    long = 0.3 * torch.sin(2 * math.pi * (200 + 500 * steps / 12) * steps)
    model = build("clap_audio", tmp_path / "clap.pt", cond_dim=512, audio_model_type="HTSAT-tiny", enable_fusion=fusion)
    made = model([{"clap": short.float()}, {"clap": long.float()}], "cpu")["clap"].pooled
    assert_matches(made, load_file(FOLDER / "clap_audio_tiny.safetensors")[f"vector.{fusion}"])


def authors_tensor(key, entry, index):
    """A weight by its rule; what has none is a statistic of batch norm at its start, or a constant that is not read."""
    shape, dtype, _, kind = entry
    like = torch.full(shape, float(not key.endswith("running_mean")), dtype=getattr(torch, dtype))
    return like if kind == "keep" else rule_value(kind, like, index)


def test_a_spectrogram_does_not_depend_on_the_precision_around_it():
    audio = torch.randn(CLIP, generator=torch.Generator().manual_seed(0))
    exact = clip_middle(audio).mels
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(clip_middle(audio).mels, exact)
