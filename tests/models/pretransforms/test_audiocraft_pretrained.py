import copy
import json
import logging
import sys
from pathlib import Path

import pytest
import torch
from tiny_codecs import EXPORT, HUB, encodec_folder, exported_state

sys.path.insert(0, str(Path(__file__).parents[2]))
import configs

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.configs.parse import validate
from stable_audio_tools.models.conditioners import ConditioningConfig
from stable_audio_tools.models.factory import parse_model_config
from stable_audio_tools.models.pretransforms import PretransformConfig
from stable_audio_tools.models.pretransforms.audiocraft_pretrained import describe_export, describe_hub_config


@pytest.fixture
def hub_folder(tmp_path):
    return encodec_folder(tmp_path / "encodec")


@pytest.fixture
def export_folder(tmp_path):
    folder = tmp_path / "export"
    folder.mkdir()
    torch.save({"best_state": exported_state(), "xp.cfg": EXPORT, "version": "1", "exported": True}, folder / "compression_state_dict.bin")
    return folder


def parse(**config):
    data = {"type": "audiocraft_pretrained", "config": config}
    return validate(PretransformConfig, data, "pretransform", json.dumps(data))


def build(path):
    return parse(path=str(path)).build(8000)


def problems(**config):
    with pytest.raises(ConfigError) as caught:
        parse(**config)
    return caught.value.problems


@torch.no_grad()
def test_both_formats_of_one_codec_give_the_same_tokens_and_audio(hub_folder, export_folder):
    hub, folder, file = build(hub_folder), build(export_folder), build(export_folder / "compression_state_dict.bin")
    audio = 3 * torch.randn(2, 1, 83)
    tokens = hub.tokenize(audio)
    assert tokens.shape == (2, 3, 11) and tokens.dtype == torch.int64 and len(tokens.unique()) > 4
    for other in (folder, file, copy.deepcopy(hub)):
        assert torch.equal(other.tokenize(audio), tokens)
        assert torch.equal(other.decode_tokens(tokens), hub.decode_tokens(tokens))
    assert hub.decode_tokens(tokens).shape == (2, 1, 88)
    assert set(folder.state_dict()) == {f"model.{key}" for key in exported_state()}


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_causal_conv": True, "use_conv_shortcut": True, "upsampling_ratios": [5, 2], "target_bandwidths": [9.6]},
        {"audio_channels": 2, "normalize": True, "norm_type": "time_group_norm", "num_residual_layers": 2},
    ],
)
def test_numbers_are_those_of_the_hubs_own_class(tmp_path, settings):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    theirs = transformers.EncodecModel(transformers.EncodecConfig(**{**HUB, **settings})).eval()
    for layer in theirs.quantizer.layers:
        layer.codebook.embed.normal_()
    theirs.save_pretrained(tmp_path)
    module = build(tmp_path)
    audio = torch.randn(2, module.io_channels, 120)
    tokens = theirs.encode(audio, None, theirs.config.target_bandwidths[-1])[0][0]
    assert torch.equal(module.tokenize(audio), tokens)
    torch.testing.assert_close(module.decode_tokens(tokens), theirs.decode(tokens[None], [None])[0], rtol=0, atol=1e-5)


@torch.no_grad()
def test_tokens_are_a_residual_search_over_the_codebooks(hub_folder):
    module = build(hub_folder)
    residual = module.model.encoder(torch.randn(1, 1, 40))[0].mT
    for codebook, tokens in zip(module.model.quantizer.codebooks, module.model.quantizer.tokenize(residual.mT[None])[0], strict=True):
        assert torch.equal(tokens, torch.cdist(residual, codebook.embed).argmin(-1))
        residual = residual - codebook.embed[tokens]


@torch.no_grad()
def test_a_normalising_codec_does_not_hear_the_loudness(hub_folder):
    (hub_folder / "config.json").write_text(json.dumps({**HUB, "normalize": True}))
    module, audio = build(hub_folder), torch.randn(1, 1, 40)
    assert torch.equal(module.tokenize(audio), module.tokenize(audio * 0.1))


def test_sizes_are_the_files_and_known_before_building(hub_folder, export_folder):
    for folder in (hub_folder, export_folder):
        for sizes in (parse(path=str(folder)), parse(model_type=str(folder)), build(folder)):
            assert (sizes.io_channels, sizes.encoded_channels, sizes.downsampling_ratio) == (1, 6, 8)
            assert (sizes.is_discrete, sizes.num_quantizers, sizes.codebook_size) == (True, 3, 16)


@pytest.mark.parametrize(("name", "rate", "sizes"), [("32khz", 32000, (640, 4, 2048)), ("24khz", 24000, (320, 32, 1024))])
def test_the_hubs_codecs_have_their_sizes_and_build_on_the_meta_device_without_a_download(name, rate, sizes):
    config = parse(model_type=f"facebook/encodec_{name}")
    with torch.device("meta"):
        module = config.build(rate)
    for found in (config, module):
        assert (found.downsampling_ratio, found.num_quantizers, found.codebook_size) == sizes
        assert (found.io_channels, found.encoded_channels) == (1, 128)


def test_both_descriptions_agree():
    import yaml

    text = EXPORT
    for reference, value in (("'${sample_rate}'", "8000"), ("${channels}", "1"), ("${encodec.causal}", "false"), ("{alpha: 1.0}", "{}")):
        text = text.replace(reference, value)
    assert describe_export(yaml.safe_load(text), "test") == describe_hub_config(HUB, "test")


def test_frozen_whatever_the_owner_does(hub_folder):
    module = torch.nn.Sequential(build(hub_folder)).train()[0]
    assert not any(part.training for part in module.modules())
    assert not any(p.requires_grad for p in module.parameters())


def test_continuous_latents_are_refused_with_what_to_call_instead(hub_folder):
    module = build(hub_folder)
    with pytest.raises(ValueError, match="use tokenize and decode_tokens"):
        module.encode(torch.randn(1, 1, 8))
    with pytest.raises(ValueError, match="use decode_tokens"):
        module.decode(torch.randn(1, 6, 1))
    with pytest.raises(ValueError, match=r"tokens lie in 16..16, expected 0..15"):
        module.decode_tokens(torch.full((1, 3, 2), 16))


def test_another_sample_rate_is_warned_about(hub_folder, caplog):
    with caplog.at_level(logging.WARNING):
        parse(path=str(hub_folder)).build(44100)
    assert "sample_rate is 44100 Hz, but the codec was trained at 8000 Hz" in caplog.text


@pytest.mark.parametrize(("name", "fix"), [("facebook/encodec_40khz", '"path": "FILE OR FOLDER"'), ("dac_44khz", "dac_pretrained")])
def test_an_unknown_name_is_refused_with_the_known_ones(name, fix):
    (problem,) = problems(model_type=name)
    assert problem.path == ("config", "model_type")
    assert "facebook/encodec_24khz, facebook/encodec_32khz" in problem.message and fix in problem.fix


@pytest.mark.parametrize(
    ("change", "text"),
    [({"chunk_length_s": 1.0}, "codes pieces of 1.0 s"), ({"model_type": "dac"}, "'dac' model"), ({"pad_mode": "mirror"}, "pad_mode")],
)
def test_a_hub_folder_of_something_else_is_refused_at_its_key(hub_folder, change, text):
    (hub_folder / "config.json").write_text(json.dumps({**HUB, **change}))
    assert all(problem.path == ("config", "path") for problem in problems(path=str(hub_folder)))
    assert any(text in problem.message for problem in problems(path=str(hub_folder)))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"pretrained": "facebook/encodec_32khz"}, 'set model_type to "facebook/encodec_32khz"'),
        ({"best_state": {}}, '"best_state" with its "xp.cfg"'),
        ({"best_state": {}, "xp.cfg": "a: [1"}, "no YAML"),
        ({"best_state": {}, "xp.cfg": "sample_rate: 1"}, "not an EnCodec of seanet and rvq"),
        ({"best_state": {}, "xp.cfg": EXPORT.replace("outer_blocks: 0", "outer_blocks: 1")}, "disable_norm_outer_blocks"),
    ],
)
def test_an_export_of_something_else_is_refused_at_its_key(tmp_path, content, text):
    torch.save(content, tmp_path / "compression_state_dict.bin")
    (problem,) = problems(path=str(tmp_path))
    assert problem.path == ("config", "path") and text in problem.message + problem.fix


def test_packages_that_are_missing_are_named_with_the_extra_that_has_them(export_folder, monkeypatch):
    for package in ("yaml", "huggingface_hub"):
        monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    (problem,) = problems(path=str(export_folder))
    assert problem.path == ("config", "path") and "needs the package pyyaml" in problem.message
    assert problem.fix == 'pip install -e ".[codec]"'
    with pytest.raises(ConfigError, match=r'pip install -e "\.\[hub\]", or give a local copy'):
        parse().build(32000)


def test_weights_that_do_not_fit_are_refused(hub_folder):
    (hub_folder / "config.json").write_text(json.dumps({**HUB, "codebook_size": 8, "target_bandwidths": [9.0]}))
    with pytest.raises(ConfigError, match="of another shape"):
        build(hub_folder)


def test_without_a_network_the_message_names_the_key(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    with pytest.raises(ConfigError) as caught:
        parse().build(32000)
    (problem,) = caught.value.problems
    assert caught.value.source == "facebook/encodec_32khz" and "no network" in problem.message
    assert '"path": "FILE OR FOLDER"' in problem.fix


@pytest.mark.parametrize("name", ["text_to_audio", "unconditional", "diffusion_autoencoder", "autoencoder"])
def test_a_model_of_latents_refuses_it(name):
    config = getattr(configs, name)()
    config["model"]["pretransform"] = {"type": "audiocraft_pretrained"}
    with pytest.raises(ConfigError) as caught:
        parse_model_config(config)
    problem = next(problem for problem in caught.value.problems if problem.path == ("model", "pretransform"))
    assert problem.message == "audiocraft_pretrained makes tokens alone, and here its latents are needed"
    assert problem.fix.startswith("use one that makes latents, such as an autoencoder")


def test_a_conditioner_of_latents_refuses_it_and_a_language_model_takes_it():
    entry = {"id": "x", "type": "pretransform", "config": {"sample_rate": 32000, "pretransform_config": {"type": "audiocraft_pretrained"}}}
    with pytest.raises(ConfigError) as caught:
        validate(ConditioningConfig, {"cond_dim": 4, "configs": [entry]}, "conditioning")
    assert [problem.path for problem in caught.value.problems] == [("configs", 0, "config", "pretransform_config")]
    config = configs.language_model() | {"sample_rate": 32000, "sample_size": 6400}
    config["model"]["pretransform"] = {"type": "audiocraft_pretrained"}
    parse_model_config(config)
