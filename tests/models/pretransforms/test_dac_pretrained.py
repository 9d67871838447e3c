import copy
import json
import logging
import urllib.error

import pytest
import torch
from reference_rule import FOLDER, assert_matches
from safetensors import safe_open

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.configs.parse import validate
from stable_audio_tools.models.pretransforms import PretransformConfig
from stable_audio_tools.models.pretransforms.dac_pretrained import DAC, DACParams, DACPretransform


@pytest.fixture(scope="module")
def reference():
    """Tensors of a small codec: `weights.*`, `in.*`, `out.*`, and the arguments it was made with."""
    with safe_open(FOLDER / "dac_codec.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()} | {"kwargs": json.loads(file.metadata()["kwargs"])}  # noqa: SIM118


@pytest.fixture
def path(reference, tmp_path):
    """A weight file of the published layout."""
    state = {key.removeprefix("weights."): value for key, value in reference.items() if key.startswith("weights.")}
    file = tmp_path / "weights.pth"
    torch.save({"state_dict": state, "metadata": {"kwargs": reference["kwargs"]}}, file)
    return file


def parse(**config):
    data = {"type": "dac_pretrained", "config": config}
    return validate(PretransformConfig, data, "pretransform", json.dumps(data))


def build(path, *, sample_rate=16000, **config):
    return parse(path=str(path), **config).build(sample_rate)


def problems(**config):
    with pytest.raises(ConfigError) as caught:
        parse(**config)
    return caught.value.problems


@torch.no_grad()
def test_numbers_are_the_published_codecs(path, reference):
    audio, latents, quantized = (reference[key] for key in ("in.audio", "out.latents", "out.quantized"))
    late, early = build(path, scale=2.0), build(path, scale=2.0, quantize_on_decode=False)
    assert_matches(late.encode(audio), latents / 2)
    assert_matches(early.encode(audio), quantized / 2)
    for module, z in ((late, latents), (early, quantized)):
        assert_matches(module.decode(z / 2), reference["out.decoded"])


@torch.no_grad()
def test_tokens_are_the_published_codecs_and_decode_to_what_the_latents_do(path, reference):
    module = build(path)
    tokens = module.tokenize(reference["in.audio"])
    assert torch.equal(tokens, reference["out.tokens"])
    assert_matches(module.decode_tokens(tokens), reference["out.decoded"])
    assert module.decode_tokens(tokens[:, :1]).shape == reference["out.decoded"].shape


def test_sizes_are_the_files_and_known_before_building(path):
    for sizes in (parse(path=str(path)), build(path)):
        assert (sizes.io_channels, sizes.encoded_channels, sizes.downsampling_ratio) == (1, 6, 6)
        assert (sizes.is_discrete, sizes.num_quantizers, sizes.codebook_size) == (True, 3, 16)


@pytest.mark.parametrize(
    ("model_type", "bitrate", "sizes"),
    [
        ("44khz", "8kbps", (1024, 512, 9)),
        ("44khz", "16kbps", (128, 512, 18)),
        ("24khz", "8kbps", (1024, 320, 32)),
        ("16khz", "8kbps", (1024, 320, 12)),
    ],
)
def test_released_codecs_have_their_sizes_and_build_on_the_meta_device_without_a_download(model_type, bitrate, sizes):
    config = parse(model_type=model_type, model_bitrate=bitrate)
    with torch.device("meta"):
        module = config.build(int(model_type.removesuffix("khz")) * 1000)
    for found in (config, module):
        assert (found.encoded_channels, found.downsampling_ratio, found.num_quantizers) == sizes
        assert (found.io_channels, found.codebook_size) == (1, 1024)


def test_a_folder_stands_for_the_weight_file_in_it(path, reference):
    for folder in (path.parent, path.parent.parent):
        (folder / "dac").mkdir(exist_ok=True)
    named = path.rename(path.parent / "dac" / "weights.pth")
    assert build(named.parent.parent).num_quantizers == 3
    assert build(named.parent).num_quantizers == 3


def test_frozen_by_default_and_gradients_pass_through(path):
    module = build(path).train()
    assert not any(part.training for part in module.modules())
    assert not any(p.requires_grad for p in module.parameters())
    audio = torch.randn(1, 1, 12, requires_grad=True)
    module.decode(module.encode(audio)).square().mean().backward()
    assert audio.grad is not None and audio.grad.abs().max() > 0


def test_enable_grad_trains_every_weight(path):
    data = {"type": "dac_pretrained", "enable_grad": True, "config": {"path": str(path), "quantize_on_decode": False}}
    module = validate(PretransformConfig, data, "pretransform").build(16000).train()
    module.decode(module.encode(torch.randn(2, 1, 24))).square().mean().backward()
    without = {name for name, p in module.named_parameters() if p.grad is None or not p.grad.isfinite().all()}
    # The straight-through gradient passes by the codebooks, which only losses on them move.
    assert without == {f"model.quantizer.quantizers.{index}.codebook.weight" for index in range(3)}


def test_state_round_trips_into_a_codec_of_other_weights(path, reference):
    module = build(path)
    other = DACPretransform(DAC(DACParams.model_validate({key: reference["kwargs"][key] for key in DACParams.model_fields})))
    other.load_state_dict(module.state_dict())
    assert torch.equal(other.tokenize(reference["in.audio"]), reference["out.tokens"])
    assert torch.equal(copy.deepcopy(module).tokenize(reference["in.audio"]), reference["out.tokens"])
    assert set(module.state_dict()) == {f"model.{key[8:]}" for key in reference if key.startswith("weights.")}


def test_half_precision_gives_back_the_callers_precision(path, reference):
    module = build(path).bfloat16()
    latents = module.encode(reference["in.audio"])
    assert latents.dtype == torch.float32
    torch.testing.assert_close(latents, reference["out.latents"], rtol=0, atol=0.2)


def test_another_sample_rate_is_warned_about(path, caplog):
    with caplog.at_level(logging.WARNING):
        build(path, sample_rate=44100)
    assert "sample_rate is 44100 Hz, but the DAC was trained at 16000 Hz" in caplog.text


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.zeros(1, 4, 5, dtype=torch.long), r"tokens have shape \(1, 4, 5\)"),
        (torch.full((1, 3, 5), 16), r"tokens lie in 16..16, expected 0..15"),
        (torch.zeros(1, 3, 5), "tokens must be integers"),
    ],
)
def test_tokens_of_another_codec_are_refused(path, tokens, message):
    with pytest.raises(ValueError, match=message):
        build(path).decode_tokens(tokens)


def test_unreleased_weights_are_refused():
    (problem,) = problems(model_type="24khz", model_bitrate="16kbps")
    assert problem.path == ("config", "model_bitrate")
    assert problem.fix == 'set it to "8kbps", or model_type to "44khz"'


def test_a_missing_file_is_told_at_its_key_before_any_weight_exists(tmp_path):
    (problem,) = problems(path=str(tmp_path / "weights.pth"))
    assert problem.path == ("config", "path")
    assert "weights.pth: no such file" in problem.message


def test_a_folder_without_weights_says_what_is_in_it(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    (problem,) = problems(path=str(tmp_path))
    assert problem.path == ("config", "path") and "it has notes.txt" in problem.message


def test_several_weight_files_in_a_folder_are_a_question(tmp_path):
    for name in ("a.pth", "b.pth"):
        (tmp_path / name).write_bytes(b"x")
    (problem,) = problems(path=str(tmp_path))
    assert "a.pth, b.pth" in problem.message and problem.fix == "name one of them"


def test_a_file_of_bare_weights_is_refused(path, tmp_path):
    bare = tmp_path / "bare.pth"
    torch.save(torch.load(path, weights_only=True)["state_dict"], bare)
    (problem,) = problems(path=str(bare))
    assert problem.path == ("config", "path") and 'no "metadata" with the "kwargs"' in problem.message


def test_a_file_that_would_run_code_is_refused(tmp_path):
    torch.save({"state_dict": {}, "metadata": {"kwargs": logging.getLogger("x").manager}}, tmp_path / "weights.pth")
    (problem,) = problems(path=str(tmp_path / "weights.pth"))
    assert problem.path == ("config", "path") and "it is refused" in problem.message


def test_weights_that_do_not_fit_their_own_description_are_refused(path):
    content = torch.load(path, weights_only=True)
    content["metadata"]["kwargs"]["codebook_size"] = 8
    torch.save(content, path)
    with pytest.raises(ConfigError, match="of another shape"):
        build(path)


def test_without_a_network_the_message_names_the_key_and_the_place_for_the_file(monkeypatch, tmp_path):
    def offline(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", offline)
    monkeypatch.setattr("torch.hub.urlopen", offline)
    with pytest.raises(ConfigError) as caught:
        parse().build(44100)
    (problem,) = caught.value.problems
    assert "weights.pth" in caught.value.source and "no network" in problem.message
    assert '"path": "FILE OR FOLDER"' in problem.fix
    assert str(tmp_path / ".cache" / "descript" / "dac" / "weights_44khz_8kbps_0.0.1.pth") in problem.fix


def test_a_file_downloaded_before_is_used(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    cached = tmp_path / ".cache" / "descript" / "dac" / "weights_44khz_8kbps_0.0.1.pth"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"x")
    assert parse().config.file() == cached
