import pytest
import torch

from stable_audio_tools.models.autoencoders.autoencoder import AutoencoderBody
from stable_audio_tools.models.autoencoders.chunking import map_chunks


def model(strides=(2, 2)):
    """Small enough that 16 frames of overlap cover twice the receptive field of every frame."""
    sizes = {"channels": 2, "c_mults": [1] * len(strides), "strides": list(strides), "latent_dim": 2, "use_snake": True}
    sides = {side: {"type": "oobleck", "config": sizes} for side in ("encoder", "decoder")}
    ratio = 1
    for stride in strides:
        ratio *= stride
    return AutoencoderBody.model_validate({**sides, "latent_dim": 2, "downsampling_ratio": ratio, "io_channels": 2}).build(8000).eval()


RECEPTIVE_OVERLAP = 128  # residual units look 39 steps to each side at each rate: 39/2 + 39/4 frames and the ends' kernels, twice


@torch.no_grad()
@pytest.mark.parametrize("frames", [200, 256, 301])
def test_chunked_equals_whole(frames):
    codec, audio = model(), torch.randn(1, 2, frames * 4)
    whole = codec.encode_audio(audio)
    chunked = codec.encode_audio(audio, chunked=True, overlap=RECEPTIVE_OVERLAP, chunk_size=160)
    torch.testing.assert_close(chunked, whole, atol=1e-5, rtol=1e-5)
    chunked = codec.decode_audio(whole, chunked=True, overlap=RECEPTIVE_OVERLAP, chunk_size=160)
    torch.testing.assert_close(chunked, codec.decode_audio(whole), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_odd_strides_lose_samples_at_the_end_only():
    codec, latents = model((3, 5)), torch.randn(1, 2, 128)
    whole = codec.decode_audio(latents)
    assert whole.shape[-1] == 128 * 15 - 4
    torch.testing.assert_close(codec.decode_audio(latents, chunked=True, overlap=32, chunk_size=64), whole, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="chunks lose 4 samples at their end: overlap 0 is too small"):
        codec.decode_audio(latents, chunked=True, overlap=0, chunk_size=64)


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 31, 32])
def test_input_within_one_chunk_is_one_pass(frames):
    codec, audio = model(), torch.randn(2, 2, frames * 4)
    latents = codec.encode_audio(audio, chunked=True, overlap=8, chunk_size=32)
    assert torch.equal(latents, codec.encode_audio(audio))
    assert torch.equal(codec.decode_audio(latents, chunked=True, overlap=8, chunk_size=32), codec.decode_audio(latents))


@pytest.mark.parametrize("overlap", [0, 1, 3, 4, 7])
@pytest.mark.parametrize("frames", [9, 10, 17, 40])
def test_a_pointwise_function_is_exact_with_any_overlap(frames, overlap):
    x, calls = torch.arange(frames * 3.0).view(1, 1, -1), []

    def average(piece):
        calls.append(piece.shape[-1])
        return piece.unflatten(-1, (-1, 3)).mean(-1).repeat_interleave(2, -1)

    assert torch.equal(map_chunks(average, x, frame_in=3, frame_out=2, chunk_size=8, overlap=overlap), average(x))
    assert set(calls[:-1]) == {24}


@pytest.mark.parametrize(
    ("length", "chunk_size", "overlap", "message"),
    [
        (64, 8, 8, r"overlap must lie in 0..7 \(chunk_size - 1\), got 8"),
        (64, 8, -1, "overlap must lie in 0..7"),
        (65, 8, 4, "65 samples are no multiple of 4: pad the input, or preprocess_audio_for_encoder does"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(length, chunk_size, overlap, message):
    with pytest.raises(ValueError, match=message):
        model().encode_audio(torch.zeros(1, 2, length), chunked=True, chunk_size=chunk_size, overlap=overlap)
