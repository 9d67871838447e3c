"""Frames that are known, and references: one noise level for all is the old path bit for bit, and what is known has no gradient."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import configs

from stable_audio_tools.diffusion.known import Known, Reference
from stable_audio_tools.models import create_model_from_config

B, C, T = 3, 16, 24


def model(objective="rectified_flow", **options):
    config = configs.text_to_audio()
    config["model"]["diffusion"] |= {"diffusion_objective": objective}
    config["model"]["diffusion"]["config"] |= options
    torch.manual_seed(1)
    made = create_model_from_config(config).eval()
    for parameter in made.model.parameters():  # some are zero at first, and would hide what they are given
        parameter.data += 0.05 * torch.randn_like(parameter)
    return made


def inputs(made):
    cond = made.conditioner([{"prompt": text} for text in ("a bell", "a saw, loud", "rain")], "cpu")
    return torch.randn(B, C, T), torch.tensor([0.2, 0.5, 0.9]), cond


def kept(*frames):
    keep = torch.zeros(B, T, dtype=torch.bool)
    for item, count in enumerate(frames):
        keep[item, :count] = True
    return keep


KINDS = {
    "adaLN": {},
    "input_concat": {"timestep_cond_type": "input_concat", "timestep_embed_dim": 8},
    "patches": {"patch_size": 4},
    "learned positions": {"use_abs_pos_emb": True, "abs_pos_emb_max_length": 64, "rotary_pos_emb": False},
}


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_nothing_known_is_the_model_as_it_was_bit_for_bit(options, scale):
    made = model(**options)
    x, t, cond = inputs(made)
    known = Known(torch.randn(B, C, T), kept(0, 0, 0))
    assert torch.equal(made(x, t, cond, cfg_scale=scale, known=known), made(x, t, cond, cfg_scale=scale))


def test_all_frames_known_are_all_at_level_zero():
    made = model()
    x, t, cond = inputs(made)
    known = Known(x, kept(T, T, T))
    torch.testing.assert_close(made(x, t, cond, known=known), made(x, torch.zeros_like(t), cond), atol=1e-6, rtol=1e-6)


def test_of_a_patch_that_is_known_in_part_nothing_is_known():
    made = model(patch_size=4)
    x, t, cond = inputs(made)
    known = Known(torch.randn(B, C, T), kept(8, 7, 3))
    assert known.whole(4).keep.sum(1).tolist() == [8, 4, 0]
    assert torch.equal(made(x, t, cond, known=known), made(x, t, cond, known=known.whole(4)))


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_known_frames_are_seen_clean_and_the_noise_in_their_place_is_not_seen(options):
    made = model(**options)
    x, t, cond = inputs(made)
    known = Known(torch.randn(B, C, T), kept(8, 4, 12))
    out = made(x, t, cond, known=known)
    again = x + torch.randn_like(x) * known.keep[:, None]
    assert torch.equal(made(again, t, cond, known=known), out)
    other = Known(known.latents + 1.0 * known.keep[:, None], known.keep)
    assert not torch.allclose(made(x, t, cond, known=other)[:, :, 12:], out[:, :, 12:], atol=1e-4)
    unseen = Known(known.latents + 1.0 * ~known.keep[:, None], known.keep)
    assert torch.equal(made(x, t, cond, known=unseen), out)


def test_noise_has_no_gradient_where_frames_are_known():
    made = model()
    x, t, cond = inputs(made)
    x.requires_grad_()
    known = Known(torch.randn(B, C, T), kept(8, 4, 0))
    made(x, t, cond, known=known).square().sum().backward()
    assert not x.grad[:, :, :].masked_select(known.keep[:, None]).any()
    assert x.grad.masked_select(~known.keep[:, None]).all()


def reference(frames=8, positions=None, real=(True, True, True)):
    positions = torch.arange(frames) if positions is None else positions
    return Reference(torch.randn(B, C, frames), positions, torch.tensor(real)[:, None].expand(B, frames))


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_an_absent_reference_changes_nothing(options):
    made = model(**options)
    x, t, cond = inputs(made)
    known = Known(x, kept(0, 0, 0), (reference(real=(False, True, False)),))
    out, plain = made(x, t, cond, known=known), made(x, t, cond)
    torch.testing.assert_close(out[::2], plain[::2], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(out[1], plain[1], atol=1e-4)


def test_references_are_a_set_on_a_clock():
    """Whose order does not matter, and whose place in time does; a shift of the whole clock does not, with rotary positions."""
    made = model()
    x, t, cond = inputs(made)
    one, two = reference(4), reference(8)
    keep = kept(6, 0, 3)
    out = made(x, t, cond, known=Known(x, keep, (one, two)))
    torch.testing.assert_close(made(x, t, cond, known=Known(x, keep, (two, one))), out, atol=1e-5, rtol=1e-5)
    late = Reference(one.latents, one.positions + 9, one.real)
    assert not torch.allclose(made(x, t, cond, known=Known(x, keep, (late, two))), out, atol=1e-5)


@pytest.mark.parametrize("batched", [True, False])
def test_guidance_knows_the_same_in_both_halves(batched):
    made = model()
    x, t, cond = inputs(made)
    known = Known(torch.randn(B, C, T), kept(8, 4, 0), (reference(),))
    conditional = made(x, t, cond, known=known)
    empty = made.conditioner([{"prompt": ""}] * B, "cpu")
    other = made(x, t, empty, known=known)
    out = made(x, t, cond, known=known, cfg_scale=3.0, negative_cond=empty, batch_cfg=batched)
    torch.testing.assert_close(out, other + 3 * (conditional - other), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("network", ["x0", "velocity"])
@pytest.mark.parametrize("objective", ["v", "rectified_flow"])
def test_other_objectives_and_predictions_are_finite(objective, network):
    config = configs.text_to_audio()
    config["model"]["diffusion"] |= {"diffusion_objective": objective, "prediction": network}
    made = create_model_from_config(config)
    x, t, cond = inputs(made)
    assert made(x, t, cond, known=Known(x, kept(8, 4, 24))).isfinite().all()


@pytest.mark.parametrize(
    ("options", "known", "said"),
    [
        ({"global_cond_type": "prepend"}, Known(torch.zeros(B, C, T), kept(1, 1, 1)), "global_cond_type"),
        ({"causal": True}, Known(torch.zeros(B, C, T), kept(1, 1, 1), (reference(),)), "causal"),
        ({"sliding_window": [4, 4]}, Known(torch.zeros(B, C, T), kept(1, 1, 1), (reference(),)), "sliding_window"),
    ],
)
def test_networks_that_cannot_are_told_apart(options, known, said):
    made = model(**options)
    assert made.model.takes_known == ("global_cond_type" not in options)
    with pytest.raises(ValueError, match=said):
        made(*inputs(made), known=known)


def test_a_u_net_has_one_noise_level():
    from test_adp import conditional  # any model of that family

    made = create_model_from_config(conditional())
    assert not made.model.takes_known
    with pytest.raises(ValueError, match="one noise level for all frames"):
        made.model.with_known(None, None, None, {}, None, None)
