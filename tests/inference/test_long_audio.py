"""Chunks of long audio: they overlap by what the network looks at, and make what one pass makes."""

import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
import configs

from stable_audio_tools.inference.decoding import decode_latents, decode_tokens, encode_audio
from stable_audio_tools.inference.generation import generate_diffusion_cond, isolated_generators
from stable_audio_tools.inference.long_audio import LONG_S, UNBOUNDED_OVERLAP, chunks_of, mapped, reach
from stable_audio_tools.models import create_model_from_config
from stable_audio_tools.models.autoencoders.chunking import Chunks, map_chunks
from stable_audio_tools.models.factory import create_pretransform_from_config

RATE = configs.SAMPLE_RATE


def filled(module, scale=0.05):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return module.eval()


@pytest.fixture(scope="module")
def codec():
    """A VAE of 16 samples a frame, as a pretransform."""
    body = configs.autoencoder()["model"]
    return filled(create_pretransform_from_config({"type": "autoencoder", "config": body}, RATE))


# how far a network looks


@pytest.mark.parametrize(("kernel", "dilation", "sides"), [(1, 1, 0), (3, 1, 1), (7, 1, 3), (7, 9, 27), (127, 1, 63)])
def test_reach_is_that_of_the_convolution(kernel, dilation, sides):
    convolution = nn.Conv1d(2, 3, kernel, dilation=dilation, padding=dilation * (kernel - 1) // 2)
    assert reach(convolution, torch.zeros(4, 2, 500), frame_in=1, frame_out=1) == sides


@torch.no_grad()
def test_reach_counts_frames_on_either_side():
    up = nn.ConvTranspose1d(2, 1, 16, stride=4, padding=6)  # a frame of 4 samples touches 6 before and 6 behind
    assert reach(up, torch.zeros(1, 2, 200), frame_in=1, frame_out=4) == 2
    down = nn.Conv1d(1, 2, 16, stride=4, padding=6)
    assert reach(down, torch.zeros(1, 1, 800), frame_in=4, frame_out=1) == 2


@pytest.mark.parametrize(
    "function",
    [lambda x: x - x.mean(-1, keepdim=True), lambda x: x.cumsum(-1), lambda x: x.nan_to_num(), nn.Conv1d(1, 1, 129, padding=64)],
    ids=["everywhere", "all before", "hidden", "beyond the trial"],
)
def test_what_has_no_known_reach_is_said(function):
    assert reach(function, torch.zeros(1, 1, 500), frame_in=1, frame_out=1) is None


@pytest.mark.parametrize(("way", "frames"), [("encode", 200), ("decode", 200)])
@torch.no_grad()
def test_frames_beyond_the_reach_change_nothing_and_those_within_do(codec, way, frames):
    function, ratios = (partial(codec.model.encode, skip_bottleneck=True), (16, 1)) if way == "encode" else (codec.decode, (1, 16))
    frame_in, frame_out = ratios
    x = torch.randn(1, 2 if way == "encode" else 4, frames * frame_in, generator=torch.Generator().manual_seed(1))
    sides = reach(function, x, frame_in=frame_in, frame_out=frame_out)
    changed = x.clone()
    changed[..., : 100 * frame_in] += 1
    same = (function(changed) == function(x)).all(1)[0].unflatten(0, (frames, frame_out)).all(1)
    assert same[100 + sides :].all() and not same[100 + sides - 1]


# where audio is cut


def test_clips_of_a_minute_are_one_pass_and_longer_ones_chunks_of_twenty_seconds():
    assert chunks_of(int(LONG_S * 20), 20.0, pytest.fail) is None
    assert chunks_of(int(LONG_S * 20) + 1, 20.0, lambda: 9) == Chunks(size=420, overlap=20)
    assert chunks_of(5000, 20.0, lambda: None) == Chunks(size=400 + UNBOUNDED_OVERLAP, overlap=UNBOUNDED_OVERLAP)


def test_sizes_are_those_the_network_takes():
    assert chunks_of(1000, 20.0, lambda: 9, chunk_s=5.1, multiple=8) == Chunks(size=104 + 24, overlap=24)
    assert chunks_of(110, 20.0, lambda: 9, chunk_s=5.0) is None  # one chunk and its surroundings are more


@pytest.mark.parametrize("chunk_s", [0.0, -1.0, float("nan")])
def test_a_chunk_of_nothing_is_refused(chunk_s):
    with pytest.raises(ValueError, match="chunk_s must be above 0"):
        chunks_of(1000, 20.0, lambda: 9, chunk_s=chunk_s)


# what comes out


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 5, 80, 81, 114, 115, 116, 400, 1001])
def test_a_convolutional_decoder_makes_in_chunks_what_it_makes_in_one_pass(codec, frames):
    latents = torch.randn(2, 4, frames, generator=torch.Generator().manual_seed(frames))
    sides = reach(codec.decode, latents, frame_in=1, frame_out=16)
    chunks = chunks_of(frames, RATE / 16, lambda: sides, chunk_s=80 * 16 / RATE)
    assert (chunks is not None) == (frames > 114)
    pieces = []
    audio = mapped(codec.decode, latents, chunks, frame_in=1, frame_out=16, callback=lambda *done: pieces.append(done))
    torch.testing.assert_close(audio, codec.decode(latents), rtol=1e-5, atol=1e-6)
    assert pieces == [(index, len(pieces)) for index in range(1, len(pieces) + 1)]
    assert len(pieces) == (1 if chunks is None else len(chunks.starts(frames)))


@torch.no_grad()
def test_a_long_clip_is_cut_by_itself_and_a_short_one_is_not(codec, monkeypatch):
    monkeypatch.setattr("stable_audio_tools.inference.long_audio.LONG_S", 3.0)
    monkeypatch.setattr("stable_audio_tools.inference.decoding.CHUNK_S", 1.0)
    monkeypatch.setattr("stable_audio_tools.inference.long_audio.CHUNK_S", 1.0)
    decode, lengths, most, second = codec.model.decode, [], 3 * RATE // 16, RATE // 16
    monkeypatch.setattr(codec.model, "decode", lambda x, **options: lengths.append(x.shape[-1]) or decode(x, **options))
    latents = torch.randn(1, 4, most + 1, generator=torch.Generator().manual_seed(0))

    def made(latents, **options):
        lengths.clear()
        audio = decode_latents(codec, latents, RATE, [(0, 0)], **options)
        torch.testing.assert_close(audio, decode(latents), rtol=1e-5, atol=1e-6)
        return list(lengths)

    assert made(latents[..., :-1]) == [most]
    assert made(latents) == [129, *[second + 34] * 3]  # a trial, and three chunks
    assert made(latents, chunked=False) == [most + 1]
    assert made(latents[..., : 2 * second], chunked=True) == [129, *[second + 34] * 2]


@torch.no_grad()
def test_long_audio_is_encoded_in_chunks_to_the_latents_of_one_pass(codec, monkeypatch):
    monkeypatch.setattr("stable_audio_tools.inference.long_audio.LONG_S", 0.5)
    monkeypatch.setattr("stable_audio_tools.inference.long_audio.CHUNK_S", 0.2)
    codec.model.bottleneck.mode, mode = "mean", codec.model.bottleneck.mode
    audio = torch.randn(1, 2, RATE, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(encode_audio(codec, audio, RATE), codec.encode(audio), rtol=1e-4, atol=1e-5)
    codec.model.bottleneck.mode = mode


def test_a_seam_of_chunks_that_differ_is_no_click():
    """Each chunk adds an offset of its own, as a network that sees all of a chunk may."""
    offsets = iter([0.0, 1.0, 2.0, 3.0])

    def shifted(x):
        return torch.zeros_like(x).repeat_interleave(8, -1) + next(offsets)

    x = torch.zeros(1, 1, 28)
    audio = map_chunks(shifted, x, frame_in=1, frame_out=8, chunk_size=10, overlap=4, fade=8)
    steps = audio.diff(dim=-1)
    assert steps.max() <= 1 / 8 and steps.min() >= 0
    assert audio[0, 0, 0] == 0 and audio[0, 0, -1] == 3


def test_chunks_where_no_network_decodes_are_refused():
    model = create_model_from_config(configs.text_to_audio())
    with pytest.raises(ValueError, match="chunked_decode has no effect: the model decodes by PatchedPretransform, which is no network"):
        generate_diffusion_cond(model, 1, 1.0, conditioning=[{"prompt": "a"}], sample_size=2048, seed=0, chunked_decode=True)


def test_a_pretransform_set_to_chunks_keeps_its_own(monkeypatch):
    monkeypatch.setattr("stable_audio_tools.inference.long_audio.LONG_S", 1.0)
    body = {"type": "autoencoder", "chunked": True, "config": configs.autoencoder()["model"]}
    codec, lengths = filled(create_pretransform_from_config(body, RATE)), []
    decode = codec.model.decode
    monkeypatch.setattr(codec.model, "decode", lambda x, **options: lengths.append(x.shape[-1]) or decode(x, **options))
    with torch.no_grad():
        decode_latents(codec, torch.zeros(1, 4, 2 * RATE // 16), RATE, [(0, 0)])
    assert set(lengths) == {128}


def test_tokens_of_a_pretransform_set_to_chunks_are_decoded_in_them():
    config = configs.language_model()
    config["model"]["pretransform"]["chunked"] = True
    model = filled(create_model_from_config(config))
    tokens, lengths = torch.zeros(1, 3, 300, dtype=torch.int64), []
    model.pretransform.model.decoder.register_forward_hook(lambda module, given, output: lengths.append(given[0].shape[-1]))
    with torch.no_grad():
        audio = decode_tokens(model.pretransform, tokens, RATE, [(0, 0)])
        assert lengths == [128] * 3
        torch.testing.assert_close(audio, model.decode_tokens(tokens))


def test_noise_beside_the_latents_is_each_items_own():
    body = configs.autoencoder()["model"]
    quantizer = {"input_dim": 4, "n_codebooks": 2, "codebook_size": 16, "codebook_dim": 2, "noise_augment_dim": 4}
    body["bottleneck"] = {"type": "dac_rvq", "config": quantizer}
    body["encoder"]["config"]["latent_dim"], body["decoder"]["config"]["latent_dim"] = 4, 8
    codec = filled(create_pretransform_from_config({"type": "autoencoder", "config": body}, RATE))
    latents = torch.randn(2, 4, 30, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), isolated_generators(torch.device("cpu"), 0):
        both = decode_latents(codec, latents, RATE, [(5, 0), (5, 1)])
        alone = decode_latents(codec, latents[1:], RATE, [(5, 1)])
        other = decode_latents(codec, latents[1:], RATE, [(6, 1)])
    torch.testing.assert_close(alone, both[1:])
    assert not torch.allclose(other, alone)


PROBE = """
import resource, sys, torch
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
import configs
from stable_audio_tools.inference.decoding import decode_latents
from stable_audio_tools.models.factory import create_pretransform_from_config
body = configs.autoencoder()["model"]
for side in ("encoder", "decoder"):
    body[side]["config"]["channels"] = 16
codec = create_pretransform_from_config({{"type": "autoencoder", "config": body}}, 16000)
latents = torch.randn(1, 4, int({seconds} * 16000 / 16))
with torch.no_grad():
    decode_latents(codec, latents, 16000, [(0, 0)])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_decoding_three_minutes_takes_no_more_memory_than_thirty_seconds_and_a_third():
    import subprocess

    def peak(seconds):
        code = PROBE.format(tests=str(Path(__file__).parents[1]), seconds=seconds)
        return int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)

    assert peak(180) < 1.3 * peak(30)
