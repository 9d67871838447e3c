"""Attention against its definition, and masks that are honoured."""

import pytest
import torch
from torch import nn

from stable_audio_tools.nn.attention import Attention
from stable_audio_tools.nn.embeddings import RotaryEmbedding
from stable_audio_tools.nn.visibility import Visibility


def filled(**options):
    """Attention of width 16 with heads of 8 whose output is not zero."""
    module = Attention(16, dim_heads=8, zero_init_output=False, **options).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def heads(x, width=8):
    return x.unflatten(-1, (-1, width)).transpose(1, 2)


def softmax_attention(q, k, v, mask=None):
    """The definition, one head group at a time."""
    k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for t in (k, v))
    scores = q @ k.mT / q.shape[-1] ** 0.5
    return (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(-1) @ v


def x_and(context_width=None):
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    return (x, None) if context_width is None else (x, torch.randn(2, 7, context_width, dtype=torch.float64))


def test_self_attention_is_the_definition():
    module, (x, _) = filled(), x_and()
    q, k, v = (heads(part) for part in module.to_qkv(x).chunk(3, dim=-1))
    want = module.to_out(softmax_attention(q, k, v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(module(x), want)


@pytest.mark.parametrize("width", [16, 8])
def test_a_narrower_context_is_shared_by_groups_of_heads(width):
    module, (x, context) = filled(dim_context=width), x_and(width)
    k, v = (heads(part) for part in module.to_kv(context).chunk(2, dim=-1))
    want = module.to_out(softmax_attention(heads(module.to_q(x)), k, v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(module(x, context), want)


@pytest.mark.parametrize("width", [None, 8])
def test_differential_attention_subtracts_a_second_one(width):
    module, (x, context) = filled(differential=True, dim_context=width), x_and(width)
    if context is None:
        q, k, v, q2, k2 = (heads(part) for part in module.to_qkv(x).chunk(5, dim=-1))
    else:
        (q, q2), (k, k2, v) = (
            [heads(p) for p in module.to_q(x).chunk(2, dim=-1)],
            [heads(p) for p in module.to_kv(context).chunk(3, dim=-1)],
        )
    want = module.to_out((softmax_attention(q, k, v) - softmax_attention(q2, k2, v)).transpose(1, 2).flatten(2))
    torch.testing.assert_close(module(x, context), want)


@pytest.mark.parametrize("qk_norm", ["none", "l2", "ln", "dyt"])
@pytest.mark.parametrize("width", [None, 8])
def test_a_masked_key_is_as_if_absent(qk_norm, width):
    module, (x, context) = filled(qk_norm=qk_norm, dim_context=width), x_and(width)
    keys = x if context is None else context
    keep = torch.arange(keys.shape[1]) != 2
    shorter = keys[:, keep]
    without = module(shorter) if context is None else module(x, shorter)
    masked = module(x, context, mask=keep[None])
    torch.testing.assert_close(masked[:, keep] if context is None else masked, without)


@pytest.mark.parametrize("masked", [False, True])
def test_causal_attention_does_not_see_later_tokens(masked):
    module, (x, _) = filled(causal=True), x_and()
    mask = torch.ones(5, dtype=torch.bool) if masked else None
    later = x.clone()
    later[:, 3:] += 1
    torch.testing.assert_close(module(x, mask=mask)[:, :3], module(later, mask=mask)[:, :3])


def test_a_query_that_may_see_nothing_gets_zeros_and_gradients_stay_finite():
    module, (x, context) = filled(dim_context=8), x_and(8)
    mask = torch.ones(2, 1, 1, 7, dtype=torch.bool)
    mask[0] = False
    out = module(x.requires_grad_(), context, mask=mask)
    assert out[0].eq(0).all() and out[1].ne(0).all()
    out.sum().backward()
    assert x.grad.isfinite().all()


def test_feature_scales_start_as_the_identity_and_act():
    module, (x, _) = filled(feat_scale=True), x_and()
    nn.init.zeros_(module.lambda_dc)
    nn.init.zeros_(module.lambda_hf)
    plain = module(x)
    mean = plain.mean(dim=1, keepdim=True)
    nn.init.constant_(module.lambda_dc, 2)
    torch.testing.assert_close(module(x), plain + 2 * mean)
    nn.init.constant_(module.lambda_hf, 2)
    torch.testing.assert_close(module(x), 3 * plain)


def test_positions_matter_only_with_a_rotary_table():
    module, (x, _) = filled(), x_and()
    turned = x.flip(1)
    torch.testing.assert_close(module(turned), module(x).flip(1))
    table = RotaryEmbedding(8)(5)
    assert not torch.allclose(module(turned, rotary=table), module(x, rotary=table).flip(1))


def test_it_starts_as_a_zero_branch():
    assert Attention(16, dim_heads=8)(torch.randn(1, 3, 16)).eq(0).all()


def test_mixed_precision_runs_with_normed_queries():
    with torch.autocast("cpu", torch.bfloat16):
        assert Attention(16, dim_heads=8, qk_norm="ln")(torch.randn(1, 3, 16)).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_unit_length_of_a_zero_key_is_zero_in_half_precision(dtype):
    """Guidance drops a prompt by zero tokens."""
    module = Attention(16, dim_heads=8, dim_context=16, qk_norm="l2", zero_init_output=False).to(dtype)
    assert module(torch.randn(1, 3, 16, dtype=dtype), torch.zeros(1, 2, 16, dtype=dtype)).eq(0).all()


@pytest.mark.parametrize("widths", [(16, 5, None), (16, 8, 12), (16, 8, 32)])
def test_widths_that_do_not_divide_are_refused(widths):
    dim, dim_heads, dim_context = widths
    with pytest.raises(ValueError, match="widths must divide"):
        Attention(dim, dim_heads=dim_heads, dim_context=dim_context)


def test_a_context_in_the_wrong_place_is_refused():
    x = torch.randn(1, 3, 16)
    with pytest.raises(ValueError, match="not taken"):
        Attention(16, dim_heads=8)(x, x)
    with pytest.raises(ValueError, match="needed"):
        Attention(16, dim_heads=8, dim_context=16)(x)


def test_a_mask_of_another_size_is_refused():
    module, (x, context) = filled(dim_context=8), x_and(8)
    with pytest.raises(ValueError, match="a mask for 5 queries and 5 keys, but there are 5 and 7"):
        module(x, context, mask=Visibility(5, 5))
