"""Generation: cached as uncached, guided in one batch as in two, continued, seeded."""

import pytest
import torch
from lm_models import METADATA, ROUTES, built, conditions, lm_config, routed, tokens

from stable_audio_tools.models.codebook_patterns import PATTERNS
from stable_audio_tools.models.lm import nothing_said

FRAMES = 7
TRANSFORMERS = [
    {"num_memory_tokens": 2},
    {"use_sinusoidal_emb": True},
    {"use_abs_pos_emb": True, "abs_pos_emb_max_length": 64},
    {"rotary_pos_emb": False, "add_rope": True},
    {"sliding_window": [4, 0]},
    {"attn_kwargs": {"qk_norm": "ln", "differential": True}},
    {"causal_cross_attention": False, "mask_condition_padding": False},
    {"final_cross_attn_ix": 0, "project_cross_attn_cond": True},
    {"layer_scale": True, "remove_norms": True},
]


def greedy(model, given=None, **options):
    return model.generate(FRAMES, 2, conditioning_tensors=given, temp=0, **options)


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.slow
def test_a_cache_changes_nothing(pattern, route, scale):
    model = built(routed(route, {"codebook_pattern": pattern}))
    given = conditions(model)
    without = greedy(model, given, cfg_scale=scale, use_cache=False)
    assert torch.equal(greedy(model, given, cfg_scale=scale), without)
    assert without.shape == (2, 3, FRAMES) and without.min() >= 0 and without.max() < 16


@pytest.mark.parametrize("config", TRANSFORMERS, ids=str)
def test_a_cache_changes_nothing_with_any_transformer(config):
    model = built(routed("cross", {"prepend_cond_ids": ["seconds"]}, prepend_cond_dim=16, **config))
    given = conditions(model)
    assert torch.equal(greedy(model, given, cfg_scale=2.0), greedy(model, given, cfg_scale=2.0, use_cache=False))


@torch.no_grad()
def test_logits_of_the_cache_are_those_of_the_whole_sequence():
    model = built(routed("all"))
    sequence, _ = model.pattern(FRAMES).build(tokens(FRAMES), 16)
    inputs = model.get_conditioning_inputs(conditions(model))
    whole = model.lm(sequence, inputs)
    cache = model.lm.backbone.model.make_cache()
    steps = [model.lm(part, inputs, cache) for part in sequence.split([3, 1, 1, sequence.shape[-1] - 5], dim=-1)]
    torch.testing.assert_close(torch.cat(steps, dim=2), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_is_most_likely_follows_from_what_was_generated(pattern):
    """Tokens generated greedily are the arg max of the logits that training computes for them."""
    model = built(lm_config({"codebook_pattern": pattern}))
    codes = greedy(model)
    with torch.no_grad():
        logits, mask = model.compute_logits(codes)
    assert torch.equal(logits.argmax(-1)[mask], codes[mask])


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_continuation_keeps_what_was_given_and_goes_on_as_before(pattern):
    model = built(lm_config({"codebook_pattern": pattern}))
    whole = greedy(model)
    continued = greedy(model, init_data=whole[..., :3])
    assert torch.equal(continued, whole)
    other = tokens(3)
    assert torch.equal(greedy(model, init_data=other)[..., :3], other)


def test_guidance_is_the_same_in_one_batch_and_in_two_passes():
    model = built(routed("all"))
    given = conditions(model)
    assert torch.equal(greedy(model, given, cfg_scale=3.0, batch_cfg=False), greedy(model, given, cfg_scale=3.0))


def test_guidance_moves_away_from_nothing_said_or_from_what_is_negative():
    model = built(routed("all"))
    given = conditions(model)
    plain = greedy(model, given)
    assert not torch.equal(greedy(model, given, cfg_scale=4.0), plain)
    same = greedy(model, given, cfg_scale=4.0, negative_conditioning_tensors=nothing_said(given))
    assert torch.equal(same, greedy(model, given, cfg_scale=4.0))
    # A condition that is its own negative leaves nothing to move along.
    assert torch.equal(greedy(model, given, cfg_scale=4.0, negative_conditioning=METADATA), plain)
    # A scale of 0 is the other prediction alone.
    assert torch.equal(
        greedy(model, given, cfg_scale=0.0, negative_conditioning=METADATA[::-1]), greedy(model, model.conditioner(METADATA[::-1], "cpu"))
    )


def test_negatives_of_another_length_take_two_passes():
    model = built(routed("cross"))
    given = conditions(model)
    short = {name: condition._replace(tensor=condition.tensor[:, :1], mask=condition.mask[:, :1]) for name, condition in given.items()}
    assert torch.equal(greedy(model, given, cfg_scale=0.0, negative_conditioning_tensors=short), greedy(model, short))


@pytest.mark.parametrize(("route", "flag"), [("cross", "cross_attn_use_cfg"), ("prepend", "prepend_use_cfg"), ("global", "global_use_cfg")])
def test_guidance_can_spare_a_route(route, flag):
    # Batches that do not fit each other in the peer.
    model = built(routed(route))
    given = conditions(model)
    assert torch.equal(greedy(model, given, cfg_scale=4.0, **{flag: False}), greedy(model, given))
    assert not torch.equal(greedy(model, given, cfg_scale=4.0), greedy(model, given))


def test_guidance_without_conditions_is_reported_and_changes_nothing(caplog):
    model = built(routed("none"))
    assert torch.equal(greedy(model, cfg_scale=3.0), greedy(model))
    assert "cfg_scale 3 has no effect" in caplog.text


def test_a_seed_decides_on_each_item_alone():
    model = built(routed("none"))
    before = torch.random.get_rng_state()
    both = model.generate(FRAMES, 2, seed=5)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(model.generate(FRAMES, 1, seed=5), both[:1])
    assert not torch.equal(both[0], both[1])
    assert torch.equal(model.generate(FRAMES, 2, seed=[5, 7])[1:], model.generate(FRAMES, 1, seed=7))


def test_draws_depend_on_temperature_and_top_k():
    model = built(routed("none"))
    hot = model.generate(32, 2, temp=50.0, top_k=0, seed=0)
    assert len(hot.unique()) == 16
    assert torch.equal(model.generate(FRAMES, 2, top_k=1, seed=0), greedy(model))
    assert torch.equal(model.generate(FRAMES, 2, top_p=1e-6, seed=0), greedy(model))


def test_progress_is_told_step_by_step():
    calls = []
    built(lm_config()).generate(4, callback=lambda done, total: calls.append((done, total)))
    assert calls == [(step, 6) for step in range(1, 7)]  # four frames, and two more for the delays


def test_one_condition_serves_all_items():
    model = built(routed("all"))
    given = conditions(model)
    alone = {
        name: condition._replace(
            tensor=condition.tensor[:1],
            mask=None if condition.mask is None else condition.mask[:1],
            pooled=None if condition.pooled is None else condition.pooled[:1],
        )
        for name, condition in given.items()
    }
    shared = greedy(model, alone)
    assert torch.equal(shared[0], shared[1]) and torch.equal(shared[0], greedy(model, given)[0])
    assert torch.equal(model.generate(FRAMES, 2, conditioning=METADATA[:1], temp=0), shared)


def test_the_batch_is_as_large_as_what_is_given():
    model = built(routed("all"))
    assert model.generate(3, conditioning=METADATA).shape == (2, 3, 3)
    assert built(lm_config()).generate(3, init_data=tokens(2, batch=3)).shape == (3, 3, 3)
    assert built(lm_config()).generate(3).shape == (1, 3, 3)


def test_audio_is_what_the_tokens_stand_for():
    model = built(routed("cross"))
    audio = model.generate_audio(FRAMES, conditioning=METADATA, seed=1)
    assert audio.shape == (2, 1, 8 * FRAMES)
    assert torch.equal(audio, model.decode_tokens(model.generate(FRAMES, conditioning=METADATA, seed=1)))


def test_half_precision_generates():
    model = built(routed("all")).bfloat16()
    assert model.generate(FRAMES, conditioning=METADATA, cfg_scale=2.0, seed=0).shape == (2, 3, FRAMES)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_gen_len": 3, "init_data": tokens(3)}, "max_gen_len must be more than the 3 frames that are there already, got 3"),
        ({"max_gen_len": 0}, "max_gen_len must be more than the 0 frames"),
        ({"init_data": tokens(2, batch=3), "batch_size": 2}, "init_data has 3 items for a batch of 2"),
        ({"init_data": tokens(2) + 1}, "init_data has tokens from 2 to 16, expected 0 to 15"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"temp": -1.0}, "temp must be 0"),
        ({"seed": [1, 2, 3], "batch_size": 2}, "3 seeds for 2 items"),
    ],
)
def test_arguments_that_do_not_fit(options, text):
    with pytest.raises(ValueError, match=text):
        built(routed("none")).generate(**options)


def test_conditions_that_do_not_fit():
    model = built(routed("cross"))
    given = conditions(model)
    with pytest.raises(ValueError, match="condition prompt has 2, condition pitch has 2"):
        model.generate(4, 3, conditioning_tensors=given)
    with pytest.raises(ValueError, match="give either conditioning or conditioning_tensors, not both"):
        model.generate(4, conditioning=METADATA, conditioning_tensors=given)
    with pytest.raises(ValueError, match="no effect with cfg_scale 1"):
        model.generate(4, conditioning_tensors=given, negative_conditioning=METADATA)
