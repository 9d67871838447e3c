"""Generation with a cache: tokens in pieces give what all of them at once give, or the option is refused."""

import pytest
import torch
from torch import nn

from stable_audio_tools.nn.cache import KeyValueCache, TransformerCache
from stable_audio_tools.nn.transformer import ContinuousTransformer

LENGTH = 9


def transformer(**options):
    model = ContinuousTransformer(16, 2, dim_heads=8, dim_in=6, dim_out=4, **{"causal": True, **options}).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def doubles(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def in_pieces(model, x, sizes, *, every=None, first=None):
    """`every` holds what each call gets for its tokens, `first` what goes with the first."""
    cache, outputs, start = model.make_cache(), [], 0
    for size in sizes:
        piece = slice(start, start + size)
        per_call = {name: value[:, piece] if value.shape[1:2] == (LENGTH,) else value for name, value in (every or {}).items()}
        outputs.append(model(x[:, piece], cache=cache, **per_call, **((first or {}) if start == 0 else {})))
        start += size
    return torch.cat(outputs, dim=1)


CACHEABLE = {
    "rotary": {},
    "no positions": {"rotary_pos_emb": False},
    "rope of the blocks": {"rotary_pos_emb": False, "add_rope": True},
    "learned positions": {"use_abs_pos_emb": True, "abs_pos_emb_max_length": 16},
    "sinusoidal positions": {"use_sinusoidal_emb": True},
    "convolutions of one token": {"ff_kwargs": {"use_conv": True, "conv_kernel_size": 1}},
    "memory tokens": {"num_memory_tokens": 3},
    "window": {"sliding_window": (2, 0)},
    "window that only looks back": {"sliding_window": (3, 0), "causal": False},
    "differential": {"attn_kwargs": {"differential": True}},
    "qk_norm l2": {"attn_kwargs": {"qk_norm": "l2"}},
    "qk_norm ln": {"attn_kwargs": {"qk_norm": "ln"}},
    "qk_norm dyt": {"attn_kwargs": {"qk_norm": "dyt"}},
    "no norms, layer scale": {"remove_norms": True, "layer_scale": True},
    "adaLN": {"global_cond_dim": 5},
    "cross-attention": {"cross_attend": True, "cond_token_dim": 16},
    "grouped cross-attention of one layer": {"cross_attend": True, "cond_token_dim": 8, "final_cross_attn_ix": 0},
    "cross-attention to the whole context": {"cross_attend": True, "cond_token_dim": 8, "causal_cross_attention": False},
    "differential cross-attention": {"cross_attend": True, "cond_token_dim": 8, "attn_kwargs": {"differential": True, "qk_norm": "ln"}},
}


@pytest.mark.parametrize("sizes", [(1,) * LENGTH, (4, 1, 3, 1)], ids=str)
@pytest.mark.parametrize("in_front", [False, True], ids=["", "prepended"])
@pytest.mark.parametrize("options", CACHEABLE.values(), ids=CACHEABLE.keys())
@torch.no_grad()
def test_pieces_equal_the_whole(options, in_front, sizes):
    model, x = transformer(**options), doubles(2, LENGTH, 6)
    first, every = {}, {}
    if "cross_attend" in options:
        keep = torch.tensor([[True, True, True], [True, True, False]])
        first |= {"context": doubles(2, 3, options["cond_token_dim"]), "context_mask": keep}
    if in_front:
        first |= {"prepend_embeds": doubles(2, 2, 16), "prepend_mask": torch.tensor([[True, True], [True, False]])}
    if "global_cond_dim" in options:
        every["global_cond"] = doubles(2, 5)
    torch.testing.assert_close(in_pieces(model, x, sizes, every=every, first=first), model(x, **every, **first))


@torch.no_grad()
def test_padding_stays_hidden_and_positions_go_on():
    model, x = transformer(), doubles(2, LENGTH, 6)
    mask = torch.ones(2, LENGTH, dtype=torch.bool)
    mask[1, :3] = False
    positions = torch.linspace(0, 3.5, LENGTH, dtype=torch.float64)
    for every in ({"mask": mask}, {"mask": mask, "positions": positions.expand(2, -1)}):
        torch.testing.assert_close(in_pieces(model, x, (4, 1, 1, 3), every=every)[mask], model(x, **every)[mask])


@torch.no_grad()
def test_a_condition_per_token_goes_with_its_tokens():
    model, x, every = transformer(global_cond_dim=5), doubles(2, LENGTH, 6), {"global_cond": doubles(2, LENGTH, 5)}
    torch.testing.assert_close(in_pieces(model, x, (4, 5), every=every), model(x, **every))
    model = transformer(global_cond_dim=5, num_memory_tokens=1)
    with pytest.raises(ValueError, match=r"mean of the tokens to come; give global_cond \(B, D\)"):
        in_pieces(model, x, (4, 5), every=every)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"conformer": True}, "conformer"),
        ({"ff_kwargs": {"use_conv": True}}, "use_conv"),
        ({"attn_kwargs": {"feat_scale": True}}, "feat_scale"),
        ({"causal": False}, "causal false"),
        ({"causal": False, "sliding_window": (2, 1)}, "causal false"),
    ],
)
def test_what_looks_ahead_is_refused(options, named):
    model = transformer(**options)
    with pytest.raises(ValueError, match=f"no cache with {named}"):
        model.make_cache()
    with pytest.raises(ValueError, match=f"no cache with {named}"):
        model(doubles(1, 2, 6), cache=TransformerCache(2))


@torch.no_grad()
def test_what_belongs_to_the_first_tokens_is_refused_later():
    model, x, context = transformer(cross_attend=True, cond_token_dim=8), doubles(1, 2, 6), doubles(1, 3, 8)
    cache = model.make_cache()
    with pytest.raises(ValueError, match="a context is given exactly when"):
        model(x, cache=cache)
    model(x, context=context, cache=cache)
    with pytest.raises(ValueError, match="context and prepend_embeds belong to the first tokens of a cache"):
        model(x, context=context, prepend_embeds=doubles(1, 1, 16), cache=cache)
    with pytest.raises(ValueError, match="the cache holds a batch of 1, got 2"):
        model(x.expand(2, -1, -1), cache=cache)
    with pytest.raises(ValueError, match="exit_layer_ix leaves layers of the cache"):
        model(x, context=context, exit_layer_ix=0, cache=model.make_cache())


def test_a_graph_is_refused():
    model = transformer()
    with pytest.raises(ValueError, match=r"generate under torch.no_grad\(\)"):
        model(doubles(1, 2, 6), cache=model.make_cache())


@torch.no_grad()
def test_more_tokens_than_learned_positions_is_an_error_while_generating():
    model = transformer(use_abs_pos_emb=True, abs_pos_emb_max_length=4)
    cache = model.make_cache()
    model(doubles(1, 4, 6), cache=cache)
    with pytest.raises(ValueError, match="sequence of 5 tokens, but there are 4 learned positions"):
        model(doubles(1, 1, 6), cache=cache)


@pytest.mark.parametrize("capacity", [0, 3, 20])
def test_a_buffer_grows_and_keeps_what_it_holds(capacity):
    cache, parts = KeyValueCache(capacity), [torch.randn(2, 3, n, 4) for n in (2, 1, 1, 7)]
    for index, part in enumerate(parts):
        keys, values = cache.append(part, -part)
        whole = torch.cat(parts[: index + 1], dim=2)
        assert keys.equal(whole) and values.equal(-whole)
    assert cache.length == 11
