"""Tokens through an autoencoder and through the pretransform that holds one."""

from copy import deepcopy

import pytest
import torch
from pydantic import TypeAdapter

from stable_audio_tools.models.autoencoders.autoencoder import AutoencoderBody
from stable_audio_tools.models.pretransforms import PretransformConfig

SIZES = {"channels": 4, "c_mults": [1, 2], "strides": [2, 4], "use_snake": True}
BODY = {
    "encoder": {"type": "oobleck", "config": {**SIZES, "in_channels": 2, "latent_dim": 4}},
    "decoder": {"type": "oobleck", "config": {**SIZES, "out_channels": 2, "latent_dim": 4}},
    "bottleneck": {"type": "dac_rvq", "config": {"input_dim": 4, "n_codebooks": 3, "codebook_size": 16, "codebook_dim": 2}},
    "latent_dim": 4,
    "downsampling_ratio": 8,
    "io_channels": 2,
}
FSQ = {"type": "fsq", "config": {"levels": [5, 5, 5, 5]}}


def autoencoder(**changes):
    torch.manual_seed(0)
    return AutoencoderBody.model_validate(deepcopy(BODY) | changes).build(16000).eval()


def pretransform(body=BODY, **wiring):
    config = TypeAdapter(PretransformConfig).validate_python({"type": "autoencoder", "config": deepcopy(body), **wiring})
    torch.manual_seed(0)
    return config, config.build(16000)


@torch.no_grad()
def test_one_item_at_a_time_gives_the_same_tokens():
    model, audio = autoencoder(), torch.randn(3, 2, 64)
    tokens = model.tokenize(audio)
    assert tokens.shape == (3, 3, 8)
    assert torch.equal(model.tokenize(audio, iterate_batch=True), tokens)
    torch.testing.assert_close(model.decode_tokens(tokens, iterate_batch=True), model.decode_tokens(tokens))


@pytest.mark.parametrize("bottleneck", [BODY["bottleneck"], FSQ], ids=["dac_rvq", "fsq"])
@torch.no_grad()
def test_chunks_give_the_tokens_and_the_audio_of_one_pass(bottleneck):
    model, audio = autoencoder(bottleneck=bottleneck), torch.randn(2, 2, 8 * 150)
    tokens = model.tokenize(audio)
    chunked = model.tokenize(audio, chunked=True, chunk_size=70, overlap=50)
    assert torch.equal(chunked, tokens)
    whole = model.decode_tokens(tokens)
    torch.testing.assert_close(model.decode_tokens(tokens, chunked=True, chunk_size=70, overlap=50), whole, rtol=1e-4, atol=1e-5)
    assert torch.equal(model.tokenize(audio[..., :80], chunked=True), model.tokenize(audio[..., :80]))  # shorter than a chunk


def test_tokens_carry_no_graph():
    model, audio = autoencoder(), torch.randn(1, 2, 64, requires_grad=True)
    assert not model.tokenize(audio).requires_grad


@pytest.mark.parametrize("wiring", [{}, {"chunked": True}, {"iterate_batch": True}, {"scale": 2.0}])
@torch.no_grad()
def test_a_pretransform_speaks_the_same_tokens(wiring):
    config, holder = pretransform(**wiring)
    audio = torch.randn(2, 2, 64)
    tokens = holder.tokenize(audio)
    assert (config.is_discrete, config.num_quantizers, config.codebook_size) == (True, 3, 16)
    assert (holder.is_discrete, holder.num_quantizers, holder.codebook_size) == (True, 3, 16)
    assert torch.equal(tokens, autoencoder().tokenize(audio))
    torch.testing.assert_close(holder.decode_tokens(tokens), holder.decode(holder.encode(audio)))


@torch.no_grad()
def test_a_half_precision_pretransform_takes_and_gives_single_precision():
    _, holder = pretransform()
    holder.model.bfloat16()
    tokens = holder.tokenize(torch.randn(1, 2, 64))
    assert tokens.dtype == torch.int64 and holder.decode_tokens(tokens).dtype == torch.float32
    _, scalar = pretransform(BODY | {"bottleneck": FSQ})
    scalar.model.bfloat16()
    assert scalar.decode_tokens(torch.zeros(1, 1, 8, dtype=torch.int64)).dtype == torch.float32


@pytest.mark.parametrize("bottleneck", [None, {"type": "tanh"}])
def test_a_continuous_pretransform_has_no_tokens(bottleneck):
    config, holder = pretransform(BODY | {"bottleneck": bottleneck})
    assert (config.is_discrete, config.num_quantizers, config.codebook_size) == (False, 0, 0)
    assert (holder.is_discrete, holder.num_quantizers, holder.codebook_size) == (False, 0, 0)
    reason = "it has no bottleneck" if bottleneck is None else "TanhBottleneck is continuous"
    for call, value in ((holder.tokenize, torch.zeros(1, 2, 64)), (holder.decode_tokens, torch.zeros(1, 1, 8, dtype=torch.int64))):
        with pytest.raises(ValueError, match=f"this autoencoder has no tokens: {reason}"):
            call(value)


def test_a_pretransform_without_bottleneck_has_none_either():
    holder = TypeAdapter(PretransformConfig).validate_python({"type": "patched", "config": {"channels": 2, "patch_size": 4}}).build(16000)
    assert (holder.is_discrete, holder.num_quantizers, holder.codebook_size) == (False, 0, 0)
    for call in (holder.tokenize, holder.decode_tokens):
        with pytest.raises(ValueError, match="PatchedPretransform is continuous: it has no tokens"):
            call(torch.zeros(1, 2, 8))


def test_a_codebook_in_a_frozen_pretransform_stays_as_it_is():
    _, holder = pretransform(BODY | {"bottleneck": {"type": "rvq", "config": {"dim": 4, "codebook_size": 8, "kmeans_init": False}}})
    before = deepcopy(holder.state_dict())
    holder.train().encode(torch.randn(2, 2, 64))
    assert all(torch.equal(value, before[key]) for key, value in holder.state_dict().items())
