"""Generation of audio that is partly given: what the model is told, in samples, frames and seconds, and what is refused."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import configs

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.inference.generation import generate_diffusion_cond, generate_diffusion_cond_inpaint
from stable_audio_tools.models import create_model_from_config

PROMPTS = [{"prompt": "a bell playing A4, soft"}, {"prompt": "a noise burst, loud"}]
SIZE, FRAMES, RATE = 2048, 128, 8000
MASK = torch.arange(SIZE) < 800


def filled(model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return filled(create_model_from_config(configs.inpainting()))


@pytest.fixture(scope="module")
def audio():
    return 0.5 * torch.randn(1, SIZE, generator=torch.Generator().manual_seed(1))


def generate(model, conditioning=PROMPTS, steps=2, cfg_scale=1.0, sample_size=SIZE, seed=7, **options):
    return generate_diffusion_cond_inpaint(
        model, steps, cfg_scale, conditioning=conditioning, sample_size=sample_size, seed=seed, **options
    )


def told(model, **options):
    """The mask (B, T) and the masked latents (B, C, T) that the network sees, and what is generated."""
    seen = []
    hook = model.model.register_forward_pre_hook(lambda m, a, options: seen.append(options["input_concat_cond"]), with_kwargs=True)
    made = generate(model, **options)
    hook.remove()
    assert all(torch.equal(each, seen[0]) for each in seen)
    return seen[0][:, 0], seen[0][:, 1:], made


def test_the_model_sees_the_mask_and_the_latents_that_are_kept(model, audio):
    mask, given, made = told(model, inpaint_audio=(RATE, audio), inpaint_mask=MASK)
    assert made.shape == (2, 1, SIZE) and made.isfinite().all()
    assert torch.equal(mask, MASK[::16].float().expand(2, -1))
    latents = model.pretransform.encode(audio[None])
    torch.testing.assert_close(given, (latents * MASK[::16]).expand(2, -1, -1))


@pytest.mark.parametrize(
    "same",
    [
        {"inpaint_mask": MASK[None]},
        {"inpaint_mask": MASK.float().expand(2, -1)},
        {"inpaint_mask": MASK[::16]},
        {"inpaint_mask": MASK[::16].long()},
        {"regenerate_s": [(0.1, 0.256)]},
        {"regenerate_s": [(0.1, 0.2), (0.15, 9.0)]},
    ],
    ids=["(1, T)", "(B, T)", "frames", "whole numbers", "seconds", "two parts"],
)
def test_a_mask_may_be_said_in_many_ways(model, audio, same):
    expected = told(model, inpaint_audio=(RATE, audio), inpaint_mask=MASK)
    for found, wanted in zip(told(model, inpaint_audio=(RATE, audio), **same), expected, strict=True):
        assert torch.equal(found, wanted)


def test_a_frame_that_a_part_reaches_into_is_made(model, audio):
    mask, *_ = told(model, inpaint_audio=(RATE, audio), regenerate_s=[(17 / RATE, 49 / RATE)])
    assert (mask[0] == 0).nonzero().flatten().tolist() == [1, 2, 3]


def test_a_mask_for_each_item(model, audio):
    each = torch.stack((MASK, ~MASK))
    mask, *_ = told(model, inpaint_audio=(RATE, audio), inpaint_mask=each)
    assert torch.equal(mask, each[:, ::16].float())


def test_without_audio_everything_is_made(model):
    mask, given, made = told(model)
    assert not mask.any() and not given.any() and made.isfinite().all()


def test_an_item_is_the_same_alone_and_in_a_batch(model, audio):
    options = {"inpaint_audio": (RATE, audio), "inpaint_mask": MASK}
    torch.testing.assert_close(generate(model, PROMPTS[:1], **options), generate(model, **options)[:1], rtol=1e-4, atol=1e-5)


def test_guidance_keeps_what_is_given_with_and_without_a_negative(model, audio):
    options = {"inpaint_audio": (RATE, audio), "inpaint_mask": MASK, "cfg_scale": 3.0}
    for extra in ({}, {"negative_conditioning": [{"prompt": "silence"}]}):
        mask, given, made = told(model, **options, **extra)
        assert made.isfinite().all()
        assert torch.equal(mask, MASK[::16].float().expand(4, -1)) and torch.equal(given[:2], given[2:])


def test_a_clip_that_is_no_whole_number_of_frames_ends_in_a_frame_to_make(model, audio):
    mask, _, made = told(model, sample_size=1000, inpaint_audio=(RATE, audio), inpaint_mask=torch.ones(1000))
    assert made.shape[-1] == 1000 and mask.shape[-1] == 63 and mask.all()
    mask, *_ = told(model, sample_size=1000, inpaint_audio=(RATE, audio), inpaint_mask=torch.arange(1000) < 900)
    assert mask[0].sum() == 57


def test_audio_to_keep_is_resampled_and_padded(model):
    tone = torch.sin(torch.arange(1600) / 8000 * 2 * torch.pi * 440)[None]
    wanted = told(model, inpaint_audio=(RATE, tone), inpaint_mask=torch.ones(SIZE))[1]
    assert not wanted[..., 101:].any()
    upsampled = torch.sin(torch.arange(3200) / 16000 * 2 * torch.pi * 440)[None]
    found = told(model, inpaint_audio=(16000, upsampled), inpaint_mask=torch.ones(SIZE))[1]
    assert (found - wanted).abs().mean() < 0.02


def test_variations_of_one_sound_with_parts_of_another(model, audio):
    options = {"inpaint_audio": (RATE, audio), "inpaint_mask": MASK}
    varied = generate(model, init_audio=(RATE, audio), init_noise_level=0.01, **options)
    assert (varied - audio).square().mean() < 1e-2
    assert not torch.allclose(varied, generate(model, **options))


def test_global_random_numbers_neither_move_nor_matter(model, audio):
    made = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        made.append(generate(model, inpaint_audio=(RATE, audio), inpaint_mask=MASK))
        assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(*made)


def test_nothing_given_is_changed(model, audio):
    tensors = model.conditioner(PROMPTS, "cpu")
    before, mask = audio.clone(), MASK.clone()
    made = generate(model, None, conditioning_tensors=tensors, inpaint_audio=(RATE, audio), inpaint_mask=mask)
    assert list(tensors) == ["prompt"] and torch.equal(audio, before) and torch.equal(mask, MASK)
    torch.testing.assert_close(made, generate(model, inpaint_audio=(RATE, audio), inpaint_mask=MASK))


def test_latents_are_what_is_decoded(model, audio):
    options = {"inpaint_audio": (RATE, audio), "inpaint_mask": MASK}
    latents = generate(model, return_latents=True, **options)
    torch.testing.assert_close(model.pretransform.decode(latents), generate(model, **options))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(audio, dtype):
    model = filled(create_model_from_config(configs.inpainting())).to(dtype)
    made = generate(model, inpaint_audio=(RATE, audio), inpaint_mask=MASK, cfg_scale=2.0)
    assert made.dtype == torch.float32 and made.isfinite().all()


SOUND = (RATE, torch.zeros(1, SIZE))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"inpaint_audio": SOUND}, "inpaint_audio needs inpaint_mask or regenerate_s"),
        ({"inpaint_mask": MASK}, "inpaint_mask says which audio is kept, but there is no inpaint_audio"),
        ({"regenerate_s": [(0, 1)]}, "regenerate_s says which audio is kept, but there is no inpaint_audio"),
        ({"inpaint_audio": SOUND, "inpaint_mask": MASK, "regenerate_s": [(0, 1)]}, "give either inpaint_mask or regenerate_s, not both"),
        (
            {"inpaint_audio": SOUND, "inpaint_mask": torch.ones(99)},
            r"inpaint_mask has shape \(1, 99\), expected \(T,\) or \(B, T\) with T = 2048 or 128 and B = 1 or 2",
        ),
        ({"inpaint_audio": SOUND, "inpaint_mask": torch.ones(3, SIZE)}, r"inpaint_mask has shape \(3, 2048\)"),
        ({"inpaint_audio": SOUND, "inpaint_mask": 255 * torch.ones(SIZE)}, "inpaint_mask holds values outside 0 to 1"),
        ({"inpaint_audio": SOUND, "regenerate_s": [(0.2, 0.1)]}, r"regenerate_s has 0.2 to 0.1; .* within 0 to 0.256 s"),
        ({"inpaint_audio": SOUND, "regenerate_s": [(3.0, 4.0)]}, "regenerate_s has 3 to 4"),
        ({"inpaint_audio": (RATE, torch.zeros(3, 1, SIZE)), "inpaint_mask": MASK}, r"inpaint_audio has shape \(3, 1, 2048\), expected"),
        ({"sample_rate": 44100}, "sample_rate is 44100 but the model's is 8000"),
        ({"sampler_type": "v-ddim"}, "sampler 'v-ddim' does not fit the objective 'rectified_flow'"),
    ],
    ids=str,
)
def test_arguments_that_do_not_fit_are_told(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        generate(model, **arguments)


def test_a_model_that_does_not_inpaint_is_told():
    with pytest.raises(ValueError, match="the model does not inpaint: it takes neither inpaint_mask nor inpaint_masked_input"):
        generate(create_model_from_config(configs.text_to_audio()))


def test_an_inpainting_model_asked_without_a_mask_names_the_function_to_use(model):
    with pytest.raises(ValueError, match="use generate_diffusion_cond_inpaint"):
        generate_diffusion_cond(model, 2, conditioning=PROMPTS, sample_size=SIZE)


def test_metadata_that_do_not_suffice_are_told(model):
    with pytest.raises(ConfigError, match="prompt"):
        generate(model, [{"promt": "x"}])
