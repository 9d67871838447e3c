"""Inpainting in training: what the model is told in steps, validation and demos, and which configs can work."""

import sys
from pathlib import Path

import pytest
import torch
from test_host import Repeat, fit, loader, wrapper

sys.path.insert(0, str(Path(__file__).parents[1]))
import configs

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.models.conditioners import INPAINT_IDS
from stable_audio_tools.training import create_demo_callback_from_config
from stable_audio_tools.training.config import parse_run_config

SEGMENTS = {"mask_kwargs": {"max_mask_segments": 3, "mask_type_probabilities": [1.0, 0.0, 0.0]}}


def plain_type(**training):
    """An inpainting model that calls itself diffusion_cond, as published ones may."""
    config = configs.inpainting(**training)
    config["model_type"] = "diffusion_cond"
    return config


TYPES = {"diffusion_cond_inpaint": configs.inpainting, "diffusion_cond": plain_type}


def batch(real=2048, items=4):
    audio = torch.randn(items, 1, 2048, generator=torch.Generator().manual_seed(0))
    return audio, tuple({"prompt": f"sound {i}", "padding_mask": torch.arange(2048) < real} for i in range(items))


def told(prepared):
    """Mask (B, T) and masked latents (B, C, T) of a prepared batch."""
    mask, given = (prepared.conditions[name].tensor for name in INPAINT_IDS)
    return mask[:, 0], given


@pytest.mark.parametrize("kind", TYPES)
def test_a_step_tells_the_model_what_is_given_at_the_latents_rate(kind):
    """In the peer, masks of samples meet latents in demos, and hide a frame of 32."""
    module = wrapper(TYPES[kind](inpainting=SEGMENTS))
    prepared = module.prepare(batch(real=1024, items=64))
    mask, given = told(prepared)
    assert mask.shape == (64, 128) and given.shape == prepared.latents.shape
    assert torch.equal(given, prepared.latents * mask[:, None])
    assert mask[:, 64:].all() and 0.3 < mask[:, :64].mean() < 0.9
    assert "prompt" in prepared.conditions
    assert not torch.equal(mask, told(module.prepare(batch(real=1024, items=64)))[0])  # drawn anew each time
    fit(module, loader(TYPES[kind]()), 2)


def test_the_model_hears_what_it_is_given():
    module = wrapper(configs.inpainting())
    fit(module, loader(configs.inpainting()), 1)  # before it, the network's last layer is zero
    prepared = module.prepare(batch())
    noisy = module.strategy.noising.draw(module.model, prepared)
    base = module.velocity(module.model, noisy, prepared)
    for name in INPAINT_IDS:
        changed = {**prepared.conditions, name: prepared.conditions[name]._replace(tensor=prepared.conditions[name].tensor + 1)}
        assert not torch.allclose(module.model(noisy.x_t, noisy.t, cond=changed), base)


class Twice(Repeat):
    def __iter__(self):
        return iter([self.batch] * 2)

    def __len__(self):
        return 2


def test_validation_masks_differ_by_batch_and_not_by_time():
    module = wrapper(configs.inpainting(inpainting=SEGMENTS))
    seen = []

    def keep(model, arguments, options):
        seen.append(options["cond"]["inpaint_mask"].tensor.clone())

    trainer = fit(module, loader(configs.inpainting()), 1)
    hook = module.sampling_model.register_forward_pre_hook(keep, with_kwargs=True)
    for _ in range(2):
        trainer.validate(module, Twice(batch()), verbose=False)
    hook.remove()
    once = len(seen) // 2
    assert all(torch.equal(a, b) for a, b in zip(seen[:once], seen[once:], strict=True))
    assert not torch.equal(seen[0], seen[once - 1])


def test_dropping_conditions_for_guidance_leaves_the_masked_input():
    module = wrapper(configs.inpainting(cfg_dropout_prob=1.0, inpainting=SEGMENTS))
    prepared = module.prepare(batch())
    inputs = []
    hook = module.model.model.register_forward_pre_hook(lambda m, a, options: inputs.append(options), with_kwargs=True)
    module.strategy.loss(module.model, prepared)
    hook.remove()
    assert not inputs[0]["cross_attn_cond"].any()
    assert torch.equal(inputs[0]["input_concat_cond"], torch.cat((told(prepared)[0][:, None], told(prepared)[1]), 1))


# demos


def demos_of(config, **options):
    module = wrapper(config).eval()
    with torch.no_grad():
        return module, create_demo_callback_from_config(config, demo_dl=[batch()], **options).render(module)


@pytest.mark.parametrize("kind", TYPES)
def test_demos_show_the_original_what_is_given_and_what_is_made(kind):
    demo = {"demo_steps": 2, "num_demos": 3, "demo_cfg_scales": [1, 3]}
    shares = {"mask_kwargs": {"mask_type_probabilities": [0.2, 0.6, 0.2]}}
    _, shown = demos_of(TYPES[kind](demo=demo, inpainting=shares))
    assert [d.kind for d in shown] == ["original"] * 3 + ["masked"] * 3 + ["generated"] * 6
    assert [d.group for d in shown] == [f"{i + 1}. sound {i}" for i in range(3)] * 4
    assert len({d.title for d in shown}) == len(shown)
    for original, given in zip(shown[:3], shown[3:6], strict=True):
        frames = (given.audio == original.audio).view(128, 16).all(1)
        assert torch.equal(given.audio != 0, (original.audio != 0) & frames.repeat_interleave(16))
        assert 0 < frames.sum() < 128  # part is given, part is not: masks that give nothing would show no inpainting
    assert [d.cfg_scale for d in shown[6:]] == [1.0] * 3 + [3.0] * 3


def test_demos_generate_under_the_masks_they_show():
    config = configs.inpainting()
    module = wrapper(config).eval()
    seen = []
    hook = module.diffusion_ema.ema_model.register_forward_pre_hook(
        lambda m, a, options: seen.append(options["input_concat_cond"]), with_kwargs=True
    )
    with torch.no_grad():
        shown = create_demo_callback_from_config(config, demo_dl=[batch()]).render(module)
    hook.remove()
    given = torch.stack([demo.audio for demo in shown if demo.kind == "masked"])
    assert torch.equal(seen[0][:2, 1:], module.model.pretransform.encode(given))


def test_demo_cond_takes_the_place_of_the_clips_metadata():
    demo = {"demo_steps": 2, "demo_cond": [{"prompt": "a whale"}, {"prompt": "a gull"}]}
    _, shown = demos_of(configs.inpainting(demo=demo))
    assert [d.prompt for d in shown if d.kind == "generated"] == ["a whale", "a gull"]
    assert [d.prompt for d in shown if d.kind == "original"] == ["sound 0", "sound 1"]


def test_there_are_eight_demos_unless_the_config_says_otherwise():
    config = configs.inpainting(demo={"demo_steps": 1})
    module = wrapper(config).eval()
    with torch.no_grad():
        shown = create_demo_callback_from_config(config, demo_dl=[batch()] * 3).render(module)
    assert len(shown) == 3 * 8


@pytest.mark.parametrize("kind", ["inpaint", "cond"])
def test_demos_of_stored_latents_are_heard(kind):
    """Originals of stored latents are decoded, at the scale they were stored in."""
    config = configs.inpainting(pre_encoded=True) if kind == "inpaint" else configs.text_to_audio(pre_encoded=True, demo={"demo_steps": 1})
    module = wrapper(config).eval()
    audio, metadata = batch()
    latents = module.model.pretransform.encode(audio)
    stored = tuple({"prompt": "x", "padding_mask": [torch.arange(128) < 64]} for _ in metadata)
    with torch.no_grad():
        shown = create_demo_callback_from_config(config, demo_dl=[(latents, stored)]).render(module)
    originals = [demo.audio for demo in shown if demo.kind == "original"]
    assert all(torch.equal(found, clip[:, :1024]) for found, clip in zip(originals, audio, strict=False))
    assert all(demo.audio.shape == (1, 2048) for demo in shown if demo.kind == "generated")


def test_without_data_a_demo_says_what_it_lacks():
    config = configs.inpainting()
    with pytest.raises(ValueError, match="there is no data to take the demos' clips or conditions from"):
        create_demo_callback_from_config(config).render(wrapper(config))


# what is refused


def without_ids():
    config = configs.inpainting()
    config["model_type"] = "diffusion_cond"
    del config["model"]["diffusion"]["input_concat_ids"], config["model"]["diffusion"]["config"]["input_concat_dim"]
    return config


def without_masks(kind):
    config = TYPES[kind]()
    del config["training"]["inpainting"]
    return config


@pytest.mark.parametrize(
    "config, path, message, fix",
    [
        (without_ids(), "training.inpainting", "no effect: the model takes neither inpaint_mask nor", "input_concat_ids, and 17 to"),
        (
            without_masks("diffusion_cond"),
            "training.inpainting",
            "inpaint_mask and inpaint_masked_input, which only",
            '"inpainting": {}',
        ),
        (without_masks("diffusion_cond_inpaint"), "training.inpainting", "which only training with inpainting makes", '"inpainting": {}'),
        (
            configs.inpainting(inpainting={"mask_kwargs": {"mask_type_probabilities": [0.2, 0.2, 0.2]}}),
            "training.inpainting.mask_kwargs.mask_type_probabilities",
            "the probabilities add up to 0.6 and not to 1",
            "change one",
        ),
        (
            configs.inpainting(inpainting={"mask_kwargs": {"mask_type_probabilities": [1.0]}}),
            "training.inpainting.mask_kwargs.mask_type_probabilities",
            "3 or 4 probabilities are expected, got 1",
            "full",
        ),
        (configs.inpainting(inpainting={"mask": {}}), "training.inpainting.mask", 'unknown key "mask"', "mask_kwargs"),
    ],
    ids=["no ids", "no masks", "no masks inpaint", "sum", "count", "key"],
)
def test_settings_that_cannot_act_are_refused(config, path, message, fix):
    with pytest.raises(ConfigError) as caught:
        parse_run_config(config)
    (problem,) = caught.value.to_dict()["problems"]
    assert problem["path"] == path and message in problem["message"] and fix in problem["fix"]


def test_the_published_keys_and_defaults():
    inpainting = parse_run_config(configs.inpainting(inpainting={})).training.inpainting
    assert inpainting.mask_kwargs.max_mask_segments == 10
    assert inpainting.mask_kwargs.mask_type_probabilities == (0.1, 0.8, 0.1)


@pytest.mark.slow
def test_the_loss_falls_below_where_frames_are_given():
    config = configs.inpainting(inpainting=SEGMENTS, timestep_sampler="uniform", cfg_dropout_prob=0.0)
    module = wrapper(config)
    fit(module, loader(config), 100)
    prepared = module.prepare(next(iter(loader(config))))
    noisy = module.strategy.noising.draw(module.model, prepared)
    with torch.no_grad():
        error = (module.velocity(module.model, noisy, prepared) - noisy.target).square().mean(1)
    mask = told(prepared)[0].bool()
    assert error[mask].mean() < 0.7 * error[~mask].mean()
