"""Generation with frames that are known and with references, by models that training has told such things."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import configs

from stable_audio_tools.inference.continuation import continue_audio
from stable_audio_tools.inference.generation import generate_diffusion_cond, generate_diffusion_cond_inpaint, inpaints
from stable_audio_tools.models import create_model_from_config
from stable_audio_tools.models.checkpoints import save_model
from stable_audio_tools.models.pretrained import get_pretrained_model

SIZE, RATE, PATCH = 1024, configs.SAMPLE_RATE, 16
PREFIX, REFERENCE = {"type": "prefix", "seconds": 0.05}, {"type": "reference", "source": "like"}
PROMPT = [{"prompt": "a bell"}, {"prompt": "rain"}]


def config(*conditions, objective="rectified_flow", **network):
    made = configs.text_to_audio(conditions=list(conditions))
    made["model"]["diffusion"]["diffusion_objective"] = objective
    made["model"]["diffusion"]["config"] |= network
    return made


def model(*conditions, **options):
    torch.manual_seed(1)
    made = create_model_from_config(config(*conditions, **options))
    for parameter in made.model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return made


AUDIO = (RATE, 0.5 * torch.randn(1, SIZE, generator=torch.Generator().manual_seed(5)))
PART = {"inpaint_audio": AUDIO, "regenerate_s": [(0.05, 0.09)]}
FIRST, LAST = int(0.05 * RATE), -(-int(0.09 * RATE) // PATCH) * PATCH


def filled(made, seed=3, steps=4, **options):
    options = {"conditioning": PROMPT, "sample_size": SIZE, **PART, **options}
    return generate_diffusion_cond_inpaint(made, steps, 3.0, seed=seed, **options)


@pytest.mark.parametrize("objective", ["rectified_flow", "v"])
def test_what_is_known_comes_back_as_it_was_with_every_sampler(objective):
    made = model(PREFIX, objective=objective)
    for sampler in made.objective.samplers:
        scale = {"cfg_scale": 0.5} if "cfgpp" in sampler else {"cfg_scale": 3.0}
        out = generate_diffusion_cond_inpaint(made, 4, conditioning=PROMPT, sample_size=SIZE, seed=3, sampler_type=sampler, **PART, **scale)
        assert out.isfinite().all(), sampler
        kept = torch.cat((out[..., :FIRST], out[..., LAST:]), dim=-1)
        given = torch.cat((AUDIO[1][:, :FIRST], AUDIO[1][:, LAST:]), dim=-1)
        assert torch.equal(kept, given.expand_as(kept)), sampler
        assert not torch.allclose(out[..., FIRST:LAST], AUDIO[1][:, FIRST:LAST].expand(2, 1, -1), atol=1e-3)


def test_what_is_made_depends_on_what_is_known_and_on_the_prompt_and_on_no_neighbour():
    made = model(PREFIX)
    out = filled(made)
    other = filled(made, inpaint_audio=(RATE, -AUDIO[1]))
    assert not torch.allclose(out[..., FIRST:LAST], other[..., FIRST:LAST], atol=1e-4)
    assert not torch.allclose(out[0, :, FIRST:LAST], out[1, :, FIRST:LAST], atol=1e-4)
    alone = filled(made, conditioning=PROMPT[:1], seed=[3])
    torch.testing.assert_close(filled(made, seed=[3, 9])[:1], alone, atol=1e-5, rtol=1e-5)


def test_frames_between_two_patches_are_made():
    made = model(PREFIX, patch_size=4)
    out = filled(made)
    kept = FIRST // (4 * PATCH) * 4 * PATCH
    assert torch.equal(out[..., :kept], AUDIO[1][:, :kept].expand(2, 1, -1))


def test_continuation_begins_as_the_audio_does():
    made = model(PREFIX)
    out = continue_audio(made, (RATE, AUDIO[1][:, :400]), seconds=0.128, conditioning=PROMPT, steps=3, seed=1)
    assert out.shape == (2, 1, 1024) and torch.equal(out[..., :400], AUDIO[1][:, :400].expand(2, 1, -1))


def test_a_reference_is_heard_and_can_be_of_any_length_and_rate():
    made = model(REFERENCE)
    plain = generate_diffusion_cond(made, 4, conditioning=PROMPT, sample_size=SIZE, seed=3)
    options = {"conditioning": PROMPT, "sample_size": SIZE, "seed": 3}
    with_one = generate_diffusion_cond(made, 4, reference_audio=[(RATE, AUDIO[1][:, :300])], **options)
    assert with_one.shape == plain.shape and not torch.allclose(with_one, plain, atol=1e-4)
    assert generate_diffusion_cond(made, 4, reference_audio=[(2 * RATE, torch.randn(2, 1, 5000))], **options).shape == plain.shape
    with pytest.raises(ValueError, match="given 2 references, and it has learned 1"):
        generate_diffusion_cond(made, 4, reference_audio=[AUDIO, AUDIO], **options)


def test_both_together():
    made = model(PREFIX, REFERENCE)
    out = filled(made, reference_audio=[AUDIO])
    assert torch.equal(out[..., :FIRST], AUDIO[1][:, :FIRST].expand(2, 1, -1))
    assert not torch.allclose(out[..., FIRST:LAST], filled(made)[..., FIRST:LAST], atol=1e-4)


def test_a_file_remembers_what_its_model_was_told(tmp_path):
    made = model(PREFIX, {**REFERENCE, "time_scale": 2.0})
    save_model(tmp_path / "model.safetensors", made, config(PREFIX, {**REFERENCE, "time_scale": 2.0}))
    loaded, _ = get_pretrained_model(str(tmp_path / "model.safetensors"))
    assert inpaints(loaded) and loaded.told == made.told and loaded.told.references == (2.0,)
    assert torch.equal(filled(loaded, reference_audio=[AUDIO]), filled(made, reference_audio=[AUDIO]))


def test_models_that_were_not_told_say_so():
    made = model()
    assert not inpaints(made)
    with pytest.raises(ValueError, match=r"was not trained with conditions that make frames known; use generate_diffusion_cond"):
        filled(made)
    with pytest.raises(ValueError, match="not trained with a condition of type reference"):
        generate_diffusion_cond(made, 2, conditioning=PROMPT, sample_size=SIZE, reference_audio=[AUDIO])


def test_a_clip_that_is_known_as_a_whole_is_refused():
    with pytest.raises(ValueError, match="nothing is left to make"):
        filled(model(PREFIX), regenerate_s=None, inpaint_mask=torch.ones(SIZE))
