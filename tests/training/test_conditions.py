"""Conditions on frames and references: what is drawn, what the loss sees, what is refused, and that training goes on exactly."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import configs
from ranks import batches, train
from test_host import wrapper

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.training.conditions import TOKEN_CONDITIONS, ConditionPlan
from stable_audio_tools.training.config import parse_run_config
from stable_audio_tools.training.strategies.base import LatentBatch

RATE, T, B = 10.0, 20, 400


def drawn(*conditions, metadata=None, real=None, multiple=1, encode=lambda audio: audio):
    plan = ConditionPlan([TOKEN_CONDITIONS.select(condition) for condition in conditions], RATE, multiple)
    latents = torch.randn(B, 4, T)
    real = torch.ones(B, T, dtype=torch.bool) if real is None else real
    return plan.draw(LatentBatch(latents, real, None, metadata or ({},) * B), encode)


def lengths(*sizes):
    return torch.arange(T) < torch.tensor(sizes).repeat_interleave(B // len(sizes))[:, None]


# what is drawn


@pytest.mark.parametrize(
    ("condition", "frames"),
    [
        ({"type": "prefix", "seconds": 0.5}, range(5)),
        ({"type": "prefix", "frames": 3}, range(3)),
        ({"type": "first_frame"}, range(1)),
        ({"type": "suffix", "seconds": 0.5}, range(15, 20)),
        ({"type": "region", "start": 0.3, "end": 0.7}, range(3, 7)),
    ],
)
def test_which_frames_are_known(condition, frames):
    keep = drawn(condition).keep
    assert [*keep[0].nonzero()[:, 0].tolist()] == [*frames]
    assert (keep == keep[0]).all()


def test_each_example_draws_for_itself_as_often_as_it_says():
    keep = drawn({"type": "prefix", "frames": 3, "probability": 0.25}, {"type": "suffix", "frames": 2, "probability": 0.5}).keep
    assert keep[:, 0].float().mean() == pytest.approx(0.25, abs=0.08)
    assert keep[:, -1].float().mean() == pytest.approx(0.5, abs=0.09)
    assert (keep[:, 0] & keep[:, -1]).float().mean() == pytest.approx(0.125, abs=0.06)


def test_lengths_are_drawn_between_the_least_and_the_most():
    sizes = drawn({"type": "prefix", "seconds": [0.2, 1.0]}).keep.sum(1)
    assert sizes.min() == 2 and sizes.max() == 10 and len(sizes.unique()) == 9


def test_the_end_of_a_short_clip_is_where_it_ends():
    keep = drawn({"type": "suffix", "frames": 4}, real=lengths(20, 12)).keep
    assert keep[0].nonzero()[:, 0].tolist() == [16, 17, 18, 19]
    assert keep[-1].nonzero()[:, 0].tolist() == [8, 9, 10, 11]


def test_a_clip_of_which_nothing_is_left_to_make_is_told_nothing():
    keep = drawn({"type": "prefix", "frames": 6}, real=lengths(20, 6)).keep
    assert keep[0].sum() == 6 and not keep[-1].any()


@pytest.mark.parametrize("polarity", ["keep", "generate"])
def test_masks_of_the_data_have_a_polarity_and_a_frame_is_known_if_all_of_it_is(polarity):
    known = torch.zeros(T * 3)
    known[7:18] = 1  # of 3 numbers a frame: frames 3 to 5 whole, frame 2 in part
    metadata = ({"hole": (known if polarity == "keep" else 1 - known).tolist()},) * B
    keep = drawn({"type": "mask", "source": "hole", "polarity": polarity}, metadata=metadata).keep
    assert keep[0].nonzero()[:, 0].tolist() == [3, 4, 5]


def test_masks_that_are_missing_or_too_short_name_the_file():
    condition = {"type": "mask", "source": "hole", "polarity": "keep"}
    with pytest.raises(ValueError, match=r"a\.wav: hole: missing"):
        drawn(condition, metadata=({"path": "a.wav"},) * B)
    with pytest.raises(ValueError, match=r"a\.wav: hole: 5 numbers for 20 frames"):
        drawn(condition, metadata=({"path": "a.wav", "hole": [1] * 5},) * B)


def test_of_patches_whole_ones_are_known():
    assert drawn({"type": "prefix", "frames": 7}, multiple=4).keep[0].sum() == 4


def test_references_of_several_lengths_are_filled_up_and_some_examples_get_none():
    metadata = tuple({"like": torch.full((4, 2 + index % 2), float(index))} for index in range(B))
    condition = {"type": "reference", "source": "like", "time_scale": 2.0, "probability": 0.5}
    (reference,) = drawn(condition, metadata=metadata, multiple=4, encode=lambda audio: audio + 1).references
    assert reference.latents.shape == (B, 4, 4) and reference.positions.tolist() == [0, 2, 4, 6]
    assert (reference.latents[5, :, :3] == 6).all() and (reference.latents[5, :, 3:] == 0).all()
    told = reference.real.any(1)
    assert told.float().mean() == pytest.approx(0.5, abs=0.09)
    assert torch.equal(reference.real.sum(1)[told], (2 + torch.arange(B) % 2)[told])


@pytest.mark.parametrize(
    ("item", "said"),
    [({}, "missing"), ({"like": torch.zeros(4)}, "expected"), ({"like": torch.zeros(3, 5)}, "3 latent channels, and the clip has 4")],
)
def test_references_that_cannot_be_name_the_file(item, said):
    with pytest.raises(ValueError, match=rf"a\.wav: like: .*{said}"):
        drawn({"type": "reference", "source": "like"}, metadata=({"path": "a.wav", **item},) * B)


# training


def prepared(*conditions, **training):
    config = configs.text_to_audio(conditions=list(conditions), mask_padding=True, use_ema=False, **training)
    module = wrapper(config)
    for parameter in module.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    audio, metadata = next(iter(batches(config, 4, 8)))
    return module, (audio, metadata)


def loss(module, batch, spoil=None):
    torch.manual_seed(3)
    made = module.prepare(batch)
    if spoil is not None:
        made.latents.data[made.known.keep[:, None].expand_as(made.latents)] += spoil
    return made, module.strategy.loss(module.model, made)


def test_known_frames_are_outside_of_the_loss_and_every_example_counts_the_same():
    module, batch = prepared({"type": "prefix", "seconds": [0.02, 0.2]})
    made, output = loss(module, batch)
    assert made.known.keep.any(1).all() and len(made.known.keep.sum(1).unique()) > 1
    assert float(output.loss.detach()) == pytest.approx(float(output.per_example.mean()))
    noisy_target = []
    strategy = module.strategy.noising
    original = strategy.draw

    def record(model, latents):
        noisy = original(model, latents)
        noisy.target[made.known.keep[:, None].expand_as(noisy.target)] += 100
        noisy_target.append(noisy)
        return noisy

    strategy.draw = record
    _, again = loss(module, batch)
    assert noisy_target and torch.equal(again.loss, output.loss)


def test_a_model_that_is_told_more_can_use_it():
    """The prefix reaches the loss through what the network sees, and only so."""
    module, batch = prepared({"type": "prefix", "frames": 40})
    _, output = loss(module, batch)
    (gradient,) = torch.autograd.grad(output.loss, module.diffusion.model.model.transformer.project_in.weight)
    assert gradient.abs().sum() > 0
    _, other = loss(module, batch, spoil=1.0)
    assert not torch.equal(other.loss, output.loss)


def learned(steps, *conditions):
    """The loss at the end of training on noise, of which nothing can be known but what a condition says."""
    config = configs.text_to_audio(use_ema=False)
    config["model"]["diffusion"]["config"] |= {"embed_dim": 64}
    module, plan = wrapper(config), ConditionPlan([TOKEN_CONDITIONS.select(condition) for condition in conditions], RATE)
    optimizer = torch.optim.Adam(module.diffusion.parameters(), 2e-3)
    real, losses = torch.ones(16, 16, dtype=torch.bool), []
    for _ in range(steps):
        clips = torch.randn(16, 16, 16)
        metadata = tuple({"prompt": "a", "like": clip} for clip in clips)
        batch = LatentBatch(clips, real, module.model.conditioner(metadata, "cpu"), metadata)
        batch = replace(batch, known=plan.draw(batch, lambda audio: audio))
        output = module.strategy.loss(module.model, batch)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(float(output.loss.detach()))
    return sum(losses[-20:]) / 20


@pytest.mark.slow
def test_a_model_learns_to_take_from_a_reference_what_it_cannot_know():
    assert learned(120) > 1.5
    assert learned(120, {"type": "reference", "source": "like"}) < 0.6


KINDS = {
    "ends": [{"type": "prefix", "seconds": 0.1, "probability": 0.5}, {"type": "suffix", "frames": 8, "probability": 0.5}],
    "region": [{"type": "region", "start": 0.1, "end": 0.2}],
    "first_frame": [{"type": "first_frame"}],
}


@pytest.mark.slow
@pytest.mark.parametrize("conditions", KINDS.values(), ids=KINDS)
def test_training_goes_on_exactly(conditions, tmp_path):
    config = configs.text_to_audio(conditions=conditions, log_loss_info=True)
    validation = {"validation": batches(config, 2, 4, shuffle=False), "limit_val_batches": 1.0, "val_check_interval": 2}
    _, whole, _ = train(config, batches(config, 4, 16), tmp_path / "whole", steps=5, **validation)
    _, first, _ = train(config, batches(config, 4, 16), tmp_path / "first", steps=2, **validation)
    start = {"ckpt_path": tmp_path / "first" / "last.ckpt", "seed": 9}
    _, rest, _ = train(config, batches(config, 4, 16), tmp_path / "rest", steps=5, **start, **validation)
    assert [row for row in whole if row] == [row for row in first + rest if row]


# what is refused


def refusal(**changes):
    config = configs.text_to_audio(**changes.pop("training", {}))
    config["model"]["diffusion"]["config"] |= changes.pop("network", {})
    with pytest.raises(ConfigError) as refused:
        parse_run_config(config)
    return str(refused.value)


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ({"type": "prefx", "frames": 1}, ["training.conditions[0].type", "did you mean", "prefix"]),
        ({"type": "prefix"}, ["training.conditions[0].seconds", "give either seconds or frames"]),
        ({"type": "prefix", "seconds": 1.0, "frames": 3}, ["either seconds or frames"]),
        ({"type": "prefix", "seconds": [0.2, 0.1]}, ["the least comes first"]),
        ({"type": "suffix", "seconds": 4.0}, ["training.conditions[0].seconds", "the clip has 0.256 s", "nothing would be left to make"]),
        ({"type": "region", "start": 0.2, "end": 0.1}, ["ends before its start"]),
        ({"type": "region", "start": 1.0, "end": 2.0}, ["the clip ends at 0.256 s"]),
        ({"type": "region", "start": 0.0, "end": 2.0}, ["nothing would be left to make"]),
        ({"type": "mask", "source": "hole"}, ["training.conditions[0].polarity"]),
        ({"type": "reference", "source": "x", "probability": 0.0}, ["training.conditions[0].probability"]),
    ],
)
def test_conditions_that_cannot_be_are_refused(condition, said):
    message = refusal(training={"conditions": [condition]})
    assert all(part in message for part in said), message


def test_networks_that_cannot_are_told_what_to_change():
    first = {"conditions": [{"type": "first_frame"}]}
    assert '"global_cond_type": "adaLN"' in refusal(training=first, network={"global_cond_type": "prepend"})
    message = refusal(training={"conditions": [{"type": "reference", "source": "x"}]}, network={"causal": True})
    assert "training.conditions[0]" in message and "causal" in message
    arc = {"discriminator": {"type": "conv", "dit_hidden_layer": 1}, "use_model_as_discriminator": True}
    assert "conditions" in refusal(training={**first, "arc": arc})


# demos


@pytest.mark.slow
def test_demos_show_what_was_given_and_what_was_made(tmp_path):
    from stable_audio_tools.training import create_demo_callback_from_config

    ends = [{"type": "prefix", "frames": 40, "probability": 0.1}, {"type": "suffix", "frames": 30}]
    like = {"type": "reference", "source": "like", "probability": 0.5}
    config = configs.text_to_audio(
        conditions=[*ends, like], demo={"demo_every": 1, "demo_steps": 2, "num_demos": 3, "demo_cfg_scales": [2.0]}
    )
    module = wrapper(config)
    audio, metadata = next(iter(batches(config, 4, 8, shuffle=False)))
    metadata = tuple({**item, "like": torch.sin(torch.arange(160 * (1 + index)) / 9.0)[None]} for index, item in enumerate(metadata))
    callback = create_demo_callback_from_config(config, demo_dl=[(audio, metadata)], folder=tmp_path)
    demos = callback.render(module)
    kinds = [demo.kind for demo in demos]
    assert {kind: kinds.count(kind) for kind in kinds} == {"original": 3, "masked": 3, "condition": 3, "generated": 3}
    of = {kind: [demo.audio for demo in demos if demo.kind == kind] for kind in kinds}
    assert torch.equal(of["masked"][0][:, :640], audio[0][:, :640]) and not of["masked"][0][:, 640:].any()
    assert torch.equal(of["generated"][0].cpu()[:, :640], audio[0][:, :640])
    real = metadata[1]["padding_mask"].sum() if "padding_mask" in metadata[1] else audio.shape[-1]
    begin = int(real) // 16 * 16 - 480
    assert torch.equal(of["generated"][1].cpu()[:, begin : begin + 480], audio[1][:, begin : begin + 480])
    assert torch.equal(of["condition"][1][:, :320], metadata[1]["like"]) and of["condition"][2].shape[-1] == 480
    again = callback.render(module)
    assert all(torch.equal(a.audio, b.audio) for a, b in zip(demos, again, strict=True))


def test_frames_are_told_once():
    config = configs.inpainting(conditions=[{"type": "first_frame"}])
    config["model"]["diffusion"]["config"] |= {"global_cond_type": "adaLN"}
    with pytest.raises(ConfigError, match=r"told of frames twice"):
        parse_run_config(config)
