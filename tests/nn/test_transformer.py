"""The transformer: what is masked reaches nothing, what stands in front is taken off, options that must not change a number do not."""

import copy

import pytest
import torch
from torch import nn

from stable_audio_tools.nn.embeddings import RotaryEmbedding
from stable_audio_tools.nn.transformer import ContinuousTransformer, TransformerBlock, rotary_channels
from stable_audio_tools.nn.visibility import Visibility


def transformer(depth=2, **options):
    """Width 16, heads of 8, no branch zero, float64."""
    model = ContinuousTransformer(16, depth, dim_heads=8, **options).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def tokens(length=6, batch=2):
    return torch.randn(batch, length, 16, dtype=torch.float64)


MASKABLE = {
    "plain": {},
    "rotary off": {"rotary_pos_emb": False},
    "conformer": {"conformer": True},
    "convolutional feed-forward": {"ff_kwargs": {"use_conv": True}},
    "convolutional feed-forward without gate": {"ff_kwargs": {"use_conv": True, "glu": False}},
    "window": {"sliding_window": (2, 1)},
    "memory tokens": {"num_memory_tokens": 3},
    "causal": {"causal": True},
    "differential": {"attn_kwargs": {"differential": True}},
    "dynamic tanh": {"remove_norms": True},
    "feature scales": {"attn_kwargs": {"feat_scale": True}},
    "learned positions": {"use_abs_pos_emb": True, "abs_pos_emb_max_length": 32},
}


@pytest.mark.parametrize("options", MASKABLE.values(), ids=MASKABLE.keys())
def test_masked_tokens_at_the_end_are_as_if_absent(options):
    model, x = transformer(**options), tokens()
    keep = torch.arange(6) < 4
    masked = model(x, mask=keep.expand(2, -1))[:, :4]
    torch.testing.assert_close(masked, model(x[:, :4]))


def test_masked_prepended_tokens_and_masked_context_reach_nothing():
    model, x = transformer(cross_attend=True, cond_token_dim=8), tokens()
    context, front = torch.randn(2, 3, 8, dtype=torch.float64), tokens(2)
    keep_context, keep_front = torch.tensor([[True, False, True]] * 2), torch.tensor([[False, True]] * 2)

    def run(context, front):
        return model(x, context=context, context_mask=keep_context, prepend_embeds=front, prepend_mask=keep_front)[:, 1:]

    changed = context.clone(), front.clone()
    changed[0][:, 1] += 5
    changed[1][:, 0] += 5
    torch.testing.assert_close(run(*changed), run(context, front))
    torch.testing.assert_close(
        run(context, front), model(x, context=context[:, [0, 2]], prepend_embeds=front, prepend_mask=keep_front)[:, 1:]
    )


def test_a_window_bounds_what_a_layer_sees():
    model, x = transformer(depth=1, sliding_window=(1, 2)), tokens(9)
    for position in range(9):
        changed = x.clone()
        changed[:, position] = torch.randn(16)
        moved = (model(changed) - model(x)).abs().amax(dim=(0, 2)) > 1e-12
        assert moved.nonzero().flatten().tolist() == [i for i in range(9) if i - 1 <= position <= i + 2]


def test_an_open_window_is_no_mask():
    assert Visibility(5, 5, window=(-1, -1)).dense() is None
    assert torch.equal(Visibility(5, 5, window=(-1, 0)).dense(), torch.ones(5, 5, dtype=torch.bool).tril())


def test_what_stands_in_front_is_seen_and_taken_off():
    model, x, front = transformer(num_memory_tokens=3), tokens(), tokens(2)
    out = model(x, prepend_embeds=front)
    assert out.shape == (2, 2 + 6, 16)
    assert not torch.allclose(out[:, 2:], model(x))
    nn.init.zeros_(model.memory_tokens)
    assert not torch.allclose(out, model(x, prepend_embeds=front))


def test_hidden_states_end_in_the_output_and_an_exit_gives_one_of_them():
    model, x = transformer(depth=3, num_memory_tokens=2, dim_out=4), tokens()
    hidden = []
    out = model(x, hidden=hidden)
    assert [state.shape for state in hidden] == [(2, 8, 16)] * 3
    torch.testing.assert_close(model.project_out(hidden[-1][:, 2:]), out)
    for index, state in enumerate(hidden):
        torch.testing.assert_close(model(x, exit_layer_ix=index), state[:, 2:])
    with pytest.raises(ValueError, match="exit_layer_ix 3 is none of the 3 layers"):
        model(x, exit_layer_ix=3)


def test_an_early_exit_does_not_run_the_other_layers():
    model, x = transformer(depth=3), tokens()
    model.layers[1].forward = model.layers[2].forward = None  # calling them would fail
    model(x, exit_layer_ix=0)


def test_batch_is_a_loop_over_items():
    model, x = transformer(cross_attend=True, global_cond_dim=4, conformer=True), tokens()
    context, global_cond = tokens(3), torch.randn(2, 4, dtype=torch.float64)
    together = model(x, context=context, global_cond=global_cond)
    alone = [model(x[i : i + 1], context=context[i : i + 1], global_cond=global_cond[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(together, torch.cat(alone))


@pytest.mark.parametrize("options", [{"conformer": True, "num_memory_tokens": 2}, {"global_cond_dim": 4, "cross_attend": True}])
@pytest.mark.parametrize("how", ["selective", "full"])
def test_recomputing_activations_changes_no_gradient(how, options):
    stored = transformer(**options)
    recomputed = copy.deepcopy(stored)
    recomputed.activation_checkpointing = how
    x = tokens()
    inputs = {"global_cond": torch.randn(2, 4, dtype=torch.float64), "context": tokens(3)} if "global_cond_dim" in options else {}
    for model in (stored, recomputed):
        model(x, **inputs).square().sum().backward()
    for a, b in zip(stored.parameters(), recomputed.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=0)


def test_one_rotary_table_serves_a_whole_forward(monkeypatch):
    calls = []
    forward = RotaryEmbedding.forward
    monkeypatch.setattr(RotaryEmbedding, "forward", lambda self, length: calls.append(length) or forward(self, length))
    transformer(depth=4)(tokens())
    assert calls == [6]


def test_a_block_with_its_own_rotary_table_needs_none_given():
    block = TransformerBlock(16, dim_heads=16, add_rope=True, zero_init_branch_outputs=False).double()
    x = tokens()
    torch.testing.assert_close(block(x), block(x, rotary=block.rope(6)))


@pytest.mark.parametrize("options", [{}, {"conformer": True}, {"cross_attend": True}, {"layer_scale": True, "conformer": True}])
def test_blocks_start_as_the_identity(options):
    model = ContinuousTransformer(16, 2, dim_heads=8, **options)
    x = torch.randn(2, 5, 16)
    context = {"context": torch.randn(2, 3, 16)} if "cross_attend" in options else {}
    tolerance = 1e-3 if "layer_scale" in options else 0
    torch.testing.assert_close(model(x, **context), x, rtol=0, atol=tolerance)


def test_adaptive_norm_scales_and_gates_each_branch():
    """x + sigmoid(1 - g) branch((1 + s) norm(x) + b), by the definition."""
    block = TransformerBlock(16, dim_heads=8, global_cond=True, zero_init_branch_outputs=False).double()
    x, cond = tokens(), torch.randn(2, 96, dtype=torch.float64)
    s1, b1, g1, s2, b2, g2 = (cond + block.to_scale_shift_gate)[:, None].chunk(6, dim=-1)
    y = x + torch.sigmoid(1 - g1) * block.self_attn((1 + s1) * block.pre_norm(x) + b1)
    want = y + torch.sigmoid(1 - g2) * block.ff((1 + s2) * block.ff_norm(y) + b2)
    torch.testing.assert_close(block(x, global_cond=cond), want)


def test_a_global_condition_in_the_wrong_place_is_refused():
    with pytest.raises(ValueError, match="exactly when"):
        transformer()(tokens(), global_cond=torch.randn(2, 4))
    with pytest.raises(ValueError, match="exactly when"):
        transformer(global_cond_dim=4)(tokens())


def test_cross_attention_stops_at_its_final_layer():
    model = transformer(depth=3, cross_attend=True, final_cross_attn_ix=1)
    assert [layer.cross_attend for layer in model.layers] == [True, True, False]


@pytest.mark.parametrize(("dim_heads", "rotating"), [(128, 64), (66, 33), (64, 32), (40, 32), (32, 32), (31, 30), (16, 16), (7, 6)])
def test_half_of_a_head_rotates_but_at_least_32_channels_where_it_has_them(dim_heads, rotating):
    assert rotary_channels(dim_heads) == rotating


@pytest.mark.parametrize("options", [{"glu": False}, {"no_bias": True}, {"use_conv": True}, {"mult": 2}, {"use_conv": True, "glu": False}])
def test_feed_forward_options_build_and_run(options):
    model = transformer(ff_kwargs=options)
    assert model(tokens()).shape == (2, 6, 16)
    assert ("layers.0.ff.ff.2.bias" in model.state_dict()) is not options.get("no_bias", False)


def test_norm_options_choose_what_is_learned():
    block = TransformerBlock(16, dim_heads=8, norm_kwargs={"bias": True, "fix_scale": True, "force_fp32": True, "eps": 1e-2})
    learned = {name for name, _ in block.named_parameters() if name.startswith("pre_norm")}
    assert learned == {"pre_norm.beta"}
    assert block.half()(torch.randn(1, 3, 16).half()).dtype == torch.float16


def test_it_can_be_copied():
    model, x = transformer(num_memory_tokens=2, conformer=True), tokens()
    torch.testing.assert_close(copy.deepcopy(model)(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize("options", [{}, {"rotary_pos_emb": False, "add_rope": True}], ids=["rotary", "rope of the blocks"])
@pytest.mark.parametrize("how", ["none", "full"])
def test_rotary_tables_are_made_once_for_all_blocks(options, how):
    """Also where the backward pass runs the blocks again."""
    model, made = transformer(depth=3, activation_checkpointing=how, **options), []
    for module in model.modules():
        if isinstance(module, RotaryEmbedding):
            module.register_forward_hook(lambda *_: made.append(1))
    model(tokens()).sum().backward()
    assert len(made) == 1


def test_a_block_by_itself_uses_its_own_rope():
    block = TransformerBlock(16, dim_heads=8, add_rope=True, zero_init_branch_outputs=False).double()
    x = tokens()
    torch.testing.assert_close(block(x), block(x, rotary=RotaryEmbedding(4)(6)))
    assert not torch.allclose(block(x.flip(1)).flip(1), block(x))


def test_a_causal_context_is_seen_up_to_each_position_unless_all_of_it_is_wanted():
    x, context = tokens(), tokens(4)
    later = context.clone()
    later[:, 2:] += 1
    torch.manual_seed(0)
    model = transformer(causal=True, cross_attend=True, cond_token_dim=16)
    moved = (model(x, context=later) - model(x, context=context)).abs().amax(dim=(0, 2)) > 1e-12
    assert moved.tolist() == [False, False, True, True, True, True]
    model = transformer(causal=True, cross_attend=True, cond_token_dim=16, causal_cross_attention=False)
    assert ((model(x, context=later) - model(x, context=context)).abs().amax(dim=(0, 2)) > 1e-12).all()


def test_a_context_where_there_is_no_cross_attention_is_refused():
    with pytest.raises(ValueError, match="a context is given exactly when the transformer was made with cross_attend"):
        transformer()(tokens(), context=tokens(3))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["none", "selective", "full"])
@pytest.mark.parametrize("options", [{}, {"sliding_window": (2, 1)}, {"causal": True, "causal_cross_attention": False}], ids=str)
def test_it_compiles_as_one_graph(options, how):
    torch.compiler.reset()
    model = transformer(cross_attend=True, num_memory_tokens=2, activation_checkpointing=how, **options)
    inputs = {"context": tokens(3), "mask": torch.arange(6).expand(2, -1) < 5}
    x, results = tokens(), []
    for run in (model, torch.compile(model, backend="aot_eager", fullgraph=True)):
        out = run(x, **inputs)
        results.append((out, *torch.autograd.grad(out.square().sum(), list(model.parameters()))))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)
