"""Conditional diffusion as a whole: every route carries text and gradients, guidance works on each, masks and predictions are kept."""

import copy
import logging

import pytest
import torch
from configs import text_to_audio
from torch import nn

from stable_audio_tools.diffusion.objectives import velocity_from_x0
from stable_audio_tools.models.conditioners.base import Condition
from stable_audio_tools.models.factory import create_model_from_config

WIDTH = 8
ROUTES = {
    "cross-attention": ({"cross_attention_cond_ids": ["prompt"]}, {"cond_token_dim": WIDTH}),
    "prepend": ({"prepend_cond_ids": ["prompt"]}, {"prepend_cond_dim": WIDTH}),
    "global token": ({"global_cond_ids": ["prompt"]}, {"global_cond_dim": WIDTH}),
    "global adaLN": ({"global_cond_ids": ["prompt"]}, {"global_cond_dim": WIDTH, "global_cond_type": "adaLN"}),
    "input concatenation": ({"input_concat_ids": ["prompt"]}, {"input_concat_dim": WIDTH}),
}
PROMPTS = ["a bell", "a saw wave"]


def config(ids, widths, *, conditioners=(), **diffusion):
    prompt = {"id": "prompt", "type": "bytes", "config": {"max_length": 12, "embed_dim": 8, "bigram_buckets": 32, "trigram_buckets": 32}}
    return {
        "model_type": "diffusion_cond",
        "sample_rate": 8000,
        "sample_size": 32,
        "model": {
            "io_channels": 4,
            "conditioning": {"cond_dim": WIDTH, "configs": [prompt, *conditioners]},
            "diffusion": {
                "type": "dit",
                "diffusion_objective": "rectified_flow",
                "config": {"io_channels": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, **widths},
                **ids,
                **diffusion,
            },
        },
    }


def build(*args, **options):
    """A model none of whose branches is zero."""
    model = create_model_from_config(config(*args, **options)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def noisy(frames=16, batch=2):
    return torch.randn(batch, 4, frames), torch.tensor([0.3, 0.8])[:batch]


def conditions(model, prompts=PROMPTS, **more):
    return model.conditioner([{"prompt": prompt, **more} for prompt in prompts], "cpu")


@pytest.fixture(params=ROUTES.values(), ids=ROUTES.keys())
def model(request):
    return build(*request.param)


def test_the_text_arrives_by_every_route(model):
    x, t = noisy()
    given, swapped = (model(x, t, conditions(model, prompts)) for prompts in (PROMPTS, PROMPTS[::-1]))
    assert given.shape == x.shape
    assert (given - swapped).abs().amax(dim=(1, 2)).min() > 1e-4


def test_gradients_reach_the_text_encoder_by_every_route(model):
    x, t = noisy()
    model(x, t, conditions(model, ["a bell", ""])).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert all(p.grad.abs().sum() > 0 for p in model.conditioner.parameters())


def test_guidance_is_the_formula_on_every_route(model):
    x, t = noisy()
    cond = conditions(model)
    info = {}
    out = model(x, t, cond, cfg_scale=3.0, info=info)
    plain, other = model(x, t, cond), info["uncond_output"]
    assert (plain - other).abs().max() > 1e-4
    torch.testing.assert_close(out, other + 3 * (plain - other), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model(x, t, cond, cfg_scale=3.0, batch_cfg=False), out, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model(x, t, cond, cfg_scale=1.0), plain)


def test_guidance_acts_item_by_item_inside_its_interval(model):
    x, t = noisy()
    cond = conditions(model)
    out = model(x, t, cond, cfg_scale=3.0, cfg_interval=(0.5, 1.0))
    torch.testing.assert_close(out[0], model(x, t, cond)[0])
    torch.testing.assert_close(out[1], model(x, t, cond, cfg_scale=3.0)[1], rtol=1e-4, atol=1e-4)


def test_dropout_of_everything_is_the_unconditional_branch(model):
    x, t = noisy()
    cond = conditions(model)
    info = {}
    model(x, t, cond, cfg_scale=3.0, info=info)
    torch.testing.assert_close(model(x, t, cond, cfg_dropout_prob=1.0), info["uncond_output"], rtol=1e-4, atol=1e-4)


def test_dropout_is_by_item(model):
    x, t = noisy(batch=1)
    x, t, cond = x.expand(64, -1, -1), t.expand(64), conditions(model, ["a bell"] * 64)
    out = model(x, t, cond, cfg_dropout_prob=0.3)
    kept = (out - model(x, t, cond)).abs().amax(dim=(1, 2)) < 1e-5
    lost = (out - model(x, t, cond, cfg_dropout_prob=1.0)).abs().amax(dim=(1, 2)) < 1e-5
    assert (kept ^ lost).all() and 30 < kept.sum() < 60


def test_a_negative_prompt_is_taken_on_every_route(model):
    x, t = noisy()
    cond, negative = conditions(model), conditions(model, ["noise", "hiss"])
    plain, other = model(x, t, cond), model(x, t, negative)
    torch.testing.assert_close(model(x, t, cond, cfg_scale=2.0, negative_cond=negative), other + 2 * (plain - other), rtol=1e-4, atol=1e-4)


def test_where_text_is_a_vector_the_null_is_the_empty_prompt():
    model = build({"global_cond_ids": ["prompt"], "input_concat_ids": ["prompt"]}, {"global_cond_dim": WIDTH, "input_concat_dim": WIDTH})
    x, t = noisy()
    torch.testing.assert_close(model(x, t, conditions(model), cfg_dropout_prob=1.0), model(x, t, conditions(model, ["", ""])))


SECONDS = {"id": "seconds", "type": "number", "config": {"max_val": 10.0}}


def test_durations_stay_when_the_text_is_dropped():
    ids = {"global_cond_ids": ["seconds", "prompt"], "cross_attention_cond_ids": ["prompt"]}
    model = build(ids, {"global_cond_dim": 2 * WIDTH, "cond_token_dim": WIDTH}, conditioners=[SECONDS])
    short, long = (model.get_conditioning_inputs(conditions(model, seconds=s))["global_cond"][:, :WIDTH] for s in (1, 9))
    for seconds, kept in ((1, short), (9, long)):
        cond = conditions(model, seconds=seconds)
        dropped = model.routes.unconditional(cond, model.routes.inputs(cond))
        torch.testing.assert_close(dropped["global_cond"][:, :WIDTH], kept)
        torch.testing.assert_close(dropped["global_cond"][:, WIDTH:], cond["prompt"].null.expand(2, -1))
        assert dropped["cross_attn_cond"].eq(0).all()


@pytest.mark.parametrize("ids", ["global_cond_ids", "input_concat_ids", "cross_attention_cond_ids", "prepend_cond_ids"])
def test_a_negative_may_be_a_number_on_any_route(ids):
    """Also where guidance could not leave the number out."""
    width = {
        "global_cond_ids": "global_cond_dim",
        "input_concat_ids": "input_concat_dim",
        "cross_attention_cond_ids": "cond_token_dim",
        "prepend_cond_ids": "prepend_cond_dim",
    }[ids]
    model = build({ids: ["seconds"]}, {width: WIDTH}, conditioners=[SECONDS])
    x, t = noisy()
    cond, negative = conditions(model, seconds=1), conditions(model, seconds=9)
    plain, other = model(x, t, cond), model(x, t, negative)
    assert (plain - other).abs().max() > 1e-4
    for batch_cfg in (True, False):
        got = model(x, t, cond, cfg_scale=2.0, negative_cond=negative, batch_cfg=batch_cfg)
        torch.testing.assert_close(got, other + 2 * (plain - other), rtol=1e-4, atol=1e-4)


def test_a_negative_keeps_the_audio_to_inpaint_and_names_all_else():
    ids = {"cross_attention_cond_ids": ["prompt"], "input_concat_ids": ["inpaint_mask", "inpaint_masked_input"]}
    model = build(ids, {"cond_token_dim": WIDTH, "input_concat_dim": 1 + 4})
    x, t = noisy()
    kept = {"inpaint_mask": [torch.ones(2, 1, 16)], "inpaint_masked_input": [torch.randn(2, 4, 16)]}
    cond, negative = {**conditions(model), **kept}, conditions(model, ["noise", "hiss"])
    got = model(x, t, cond, cfg_scale=2.0, negative_cond=negative)
    other = model(x, t, {**negative, **kept})
    torch.testing.assert_close(got, other + 2 * (model(x, t, cond) - other), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="there is no condition 'prompt', which the model takes by cross_attention_cond_ids"):
        model(x, t, cond, cfg_scale=2.0, negative_cond=kept)


def test_guidance_of_what_cannot_be_left_out_is_reported_once(caplog):
    model = build({"global_cond_ids": ["seconds"]}, {"global_cond_dim": WIDTH}, conditioners=[SECONDS])
    x, t = noisy()
    cond = conditions(model, seconds=2)
    with caplog.at_level(logging.WARNING):
        outs = [model(x, t, cond, cfg_scale=scale) for scale in (1.0, 4.0, 4.0)]
    torch.testing.assert_close(outs[0], outs[1])
    assert [record.message for record in caplog.records if "prompt" not in record.message] == [
        "cfg_scale 4 has no effect: the model has no condition that guidance could leave out"
    ]


def test_an_unused_conditioner_is_reported_and_neither_trains_nor_reads(caplog):
    with caplog.at_level(logging.WARNING):
        model = build(*ROUTES["global token"], conditioners=[SECONDS])
    assert 'the conditioner "seconds" has no effect' in caplog.text
    assert list(conditions(model)) == ["prompt"]
    assert not any(p.requires_grad for p in model.conditioner.conditioners["seconds"].parameters())


def test_rescaled_guidance_keeps_the_deviation(model):
    x, t = noisy()
    cond = conditions(model)
    out = model(x, t, cond, cfg_scale=6.0, scale_phi=1.0)
    torch.testing.assert_close(out.std(dim=1), model(x, t, cond).std(dim=1), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("objective", ["v", "rectified_flow"])
def test_a_predicted_x0_becomes_the_velocity_that_denoises_to_it(objective):
    ids, widths = ROUTES["global adaLN"]
    model = build(ids, widths, diffusion_objective=objective, prediction="x0")
    x, t = noisy()
    cond = conditions(model)
    x0 = model.model(x, t, **model.get_conditioning_inputs(cond))
    velocity = model(x, t, cond)
    torch.testing.assert_close(velocity, velocity_from_x0(model.objective, x, x0, t))
    torch.testing.assert_close(model.objective.denoised(x, velocity, t), x0, rtol=1e-4, atol=1e-4)
    model.prediction = "velocity"
    torch.testing.assert_close(model(x, t, cond), x0)


def test_a_batch_is_a_loop(model):
    x, t = noisy()
    together = model(x, t, conditions(model), cfg_scale=2.0)
    alone = [model(x[i : i + 1], t[i : i + 1], conditions(model, PROMPTS[i : i + 1]), cfg_scale=2.0) for i in range(2)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("route", ["cross-attention", "prepend"])
def test_padding_of_a_prompt_is_left_out_on_request(route):
    """By default it is attended to, as zero vectors, as published models were trained."""
    ids, widths = ROUTES[route]
    for masked in (False, True):
        model = build(ids, {**widths, "mask_condition_padding": masked})
        x, t = noisy()
        cond = conditions(model)
        padded = cond["prompt"].tensor + 3.0 * ~cond["prompt"].mask[..., None]
        changed = {"prompt": Condition(padded, cond["prompt"].mask)}
        assert torch.allclose(model(x, t, changed), model(x, t, cond), atol=1e-5) is masked


@pytest.mark.parametrize("widths", [{"patch_size": 2}, {"conformer": True, "num_memory_tokens": 2}])
def test_padding_frames_do_not_influence_real_ones(widths):
    ids, more = ROUTES["global adaLN"]
    model = build(ids, {**more, **widths})
    x, t = noisy()
    mask = (torch.arange(16) < 10).expand(2, -1)
    out = model(x, t, conditions(model), mask=mask, cfg_scale=2.0)[..., :10]
    torch.testing.assert_close(out, model(x[..., :10], t, conditions(model), cfg_scale=2.0), rtol=1e-4, atol=1e-4)


def test_the_timestep_can_be_a_channel():
    ids, widths = ROUTES["cross-attention"]
    model = build(ids, {**widths, "timestep_cond_type": "input_concat", "timestep_embed_dim": 3})
    x, t = noisy()
    out, later = model(x, t, conditions(model)), model(x, t + 0.1, conditions(model))
    assert out.shape == x.shape and (out - later).abs().amax(dim=(1, 2)).min() > 1e-4


def test_signals_beside_the_latents_are_resized_and_vectors_repeated():
    ids = {"input_concat_ids": ["prompt", "inpaint_mask", "inpaint_masked_input"]}
    model = build(ids, {"input_concat_dim": WIDTH + 1 + 4})
    cond = {**conditions(model), "inpaint_mask": [torch.ones(2, 1, 8)], "inpaint_masked_input": (torch.randn(2, 4, 16), None)}
    given = model.get_conditioning_inputs(cond)["input_concat_cond"]
    assert given.shape == (2, 13, 16)
    assert given[:, :8].eq(given[:, :8, :1]).all() and given[:, 8].eq(1).all()
    x, t = noisy(frames=32)
    assert model(x, t, cond).shape == x.shape
    negative = model.get_conditioning_inputs(cond, negative=True)
    assert set(negative) == {f"negative_{name}" for name in model.get_conditioning_inputs(cond)}


def test_what_a_caller_can_get_wrong_is_said():
    model = build(*ROUTES["cross-attention"])
    x, t = noisy()
    cond = conditions(model)
    with pytest.raises(ValueError, match="there is no condition 'prompt', which the model takes by cross_attention_cond_ids; given: none"):
        model(x, t, {})
    with pytest.raises(ValueError, match="exit_layer_ix goes with cfg_scale 1, got 2"):
        model(x, t, cond, cfg_scale=2.0, exit_layer_ix=0)
    with pytest.raises(ValueError, match="latents have 3 channels, the model has io_channels 4"):
        model(x[:, :3], t, cond)
    with pytest.raises(ValueError, match="cross_attn_cond has width 5, the model has cond_token_dim 8"):
        model(x, t, {"prompt": [torch.randn(2, 3, 5)]})
    with pytest.raises(ValueError, match="tokens are"):
        model(x, t, {"prompt": [torch.randn(2, 8)]})
    patched = build(ROUTES["prepend"][0], {**ROUTES["prepend"][1], "patch_size": 4})
    with pytest.raises(ValueError, match="14 latent frames are no multiple of patch_size 4; pad to 16"):
        patched(x[..., :14], t, conditions(patched))
    as_vector = build(*ROUTES["global token"])
    with pytest.raises(ValueError, match="takes one vector an item"):
        as_vector(x, t, {"prompt": [torch.randn(2, 3, 8)]})


def test_a_copy_is_equal_and_independent(model):
    x, t = noisy()
    copied = copy.deepcopy(model)
    torch.testing.assert_close(copied(x, t, conditions(copied)), model(x, t, conditions(model)), rtol=0, atol=0)
    assert not {p.data_ptr() for p in copied.parameters()} & {p.data_ptr() for p in model.parameters()}


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_it_runs_in_lower_precision_near_the_full_result(precision):
    model = create_model_from_config(config(*ROUTES["global adaLN"])).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.05)
    x, t = noisy()
    full = model(x, t, conditions(model))
    low = copy.deepcopy(model).to(precision)
    out = low(x.to(precision), t, conditions(low))
    assert out.dtype == precision
    torch.testing.assert_close(out.float(), full, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    "more", [{"attn_kwargs": {"qk_norm": "ln"}}, {"conformer": True}, {"remove_norms": True, "attn_kwargs": {"qk_norm": "dyt"}}]
)
def test_it_trains_in_mixed_precision(more):
    ids, widths = ROUTES["global adaLN"]
    model = build(ids, {**widths, **more})
    x, t = noisy()
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x, t, conditions(model), cfg_dropout_prob=0.5)
    out.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_it_learns():
    torch.manual_seed(0)
    ids, widths = ROUTES["global adaLN"]
    model = create_model_from_config(config(ids, widths, prediction="x0"))
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    x0, losses = torch.randn(2, 4, 16), []
    for _ in range(60):
        t, noise = torch.rand(2), torch.randn(2, 4, 16)
        out = model(model.objective.add_noise(x0, noise, t), t, conditions(model), cfg_dropout_prob=0.1)
        loss = (out - model.objective.target(x0, noise, t)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])


def test_an_empty_list_of_global_conditions_leaves_their_weights_unused(caplog):
    """As a published fine-tune has it: its checkpoint holds the weights, and nothing feeds them."""
    config = text_to_audio()
    config["model"]["diffusion"]["global_cond_ids"] = []
    model = create_model_from_config(config)
    assert "those weights stay unused" in caplog.text
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen == ["model.model.to_global_embed.0.weight", "model.model.to_global_embed.2.weight"]
    out = model(torch.randn(1, 16, 8), torch.tensor([0.5]), model.conditioner([{"prompt": "a bell"}], "cpu"))
    out.sum().backward()
    assert all(parameter.grad is not None for parameter in model.model.parameters() if parameter.requires_grad)
