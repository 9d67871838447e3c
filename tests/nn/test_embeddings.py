"""Fourier features, rotary tables and positions."""

import copy

import pytest
import torch

from stable_audio_tools.nn.embeddings import (
    AbsolutePositions,
    FourierFeatures,
    NumberEmbedding,
    RotaryEmbedding,
    SinusoidalPositions,
    rotate,
)


def test_rotation_keeps_lengths_and_depends_on_distance_alone():
    table = RotaryEmbedding(8)(20)
    q, k = torch.randn(2, 8, dtype=torch.float64)
    rotated = [rotate(v.expand(1, 1, 20, 8), table)[0, 0] for v in (q, k)]
    torch.testing.assert_close(rotated[0].norm(dim=-1), q.norm().expand(20), rtol=1e-6, atol=0)
    products = rotated[0] @ rotated[1].T
    for distance in (0, 3, 7):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-5, atol=1e-5)


def test_only_the_first_channels_rotate():
    x = torch.randn(2, 3, 5, 12)
    torch.testing.assert_close(rotate(x, RotaryEmbedding(8)(5))[..., 8:], x[..., 8:])


def test_an_odd_number_of_channels_rotates_in_pairs_at_its_own_frequencies():
    embedding, x = RotaryEmbedding(7), torch.randn(1, 1, 3, 12)
    torch.testing.assert_close(embedding.inv_freq, 10000.0 ** -(torch.tensor([0.0, 2.0, 4.0, 6.0]) / 7))
    turned = rotate(x, embedding(3))
    assert (turned[..., 1:, :8] != x[..., 1:, :8]).all()
    torch.testing.assert_close(turned[..., 8:], x[..., 8:])


@pytest.mark.parametrize("cast", ["half", "bfloat16", "double"])
def test_the_rotary_table_ignores_casts_of_the_model(cast):
    """Half-precision frequencies would be off by radians at position 1000."""
    exact = RotaryEmbedding(32)
    moved = getattr(torch.nn.ModuleList([copy.deepcopy(exact)]), cast)()[0]
    torch.testing.assert_close(moved(1000).cos, exact(1000).cos, rtol=0, atol=0)


def test_fourier_features_are_cos_then_sin_and_do_not_round_under_autocast():
    features = FourierFeatures(64)
    t = torch.rand(5)
    angles = 2 * torch.pi * t[:, None] * features.weight[:, 0]
    torch.testing.assert_close(features(t), torch.cat((angles.cos(), angles.sin()), dim=1))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(features(t), torch.cat((angles.cos(), angles.sin()), dim=1))


def test_number_embedding_is_linear_in_257_features():
    embedding = NumberEmbedding(6)
    assert {key: tuple(value.shape) for key, value in embedding.state_dict().items()} == {
        "embedding.0.weights": (128,),
        "embedding.1.weight": (6, 257),
        "embedding.1.bias": (6,),
    }
    assert embedding(torch.rand(4)).shape == (4, 6)


@pytest.mark.parametrize("positions", [AbsolutePositions(6, 32), SinusoidalPositions(6)], ids=lambda p: type(p).__name__)
def test_positions_of_a_prefix_are_a_prefix(positions):
    torch.testing.assert_close(positions(9)[:5], positions(5))
    assert positions(9).shape == (9, 6)


def test_more_tokens_than_learned_positions_is_an_error():
    with pytest.raises(ValueError, match=r"33 tokens, but there are 32 learned positions; raise abs_pos_emb_max_length"):
        AbsolutePositions(6, 32)(33)


@pytest.mark.parametrize("make", [SinusoidalPositions, FourierFeatures])
def test_odd_widths_are_refused(make):
    with pytest.raises(ValueError, match="even"):
        make(7)
