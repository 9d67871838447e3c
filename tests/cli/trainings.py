"""Trainings of every kind of model as they stand in checkpoints, for the tests of `test_export*.py`."""

import configs
import torch

from stable_audio_tools.inference.generation import generate_diffusion_cond, generate_diffusion_cond_inpaint, generate_diffusion_uncond
from stable_audio_tools.inference.reconstruction import reconstruct
from stable_audio_tools.models import create_model_from_config
from stable_audio_tools.training.factory import create_training_wrapper_from_config

KINDS = {
    "autoencoder": configs.autoencoder,
    "diffusion_cond": configs.text_to_audio,
    "diffusion_cond_inpaint": configs.inpainting,
    "diffusion_uncond": configs.unconditional,
    "diffusion_autoencoder": configs.diffusion_autoencoder,
    "lm": configs.language_model,
}
ALWAYS_AVERAGED = ("diffusion_uncond", "diffusion_autoencoder")


def config_of(kind, *, averaged=True):
    return KINDS[kind](**({} if kind in ALWAYS_AVERAGED else {"use_ema": averaged}))


def moved(module, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def trained(config):
    """A training whose averages differ from its online weights."""
    torch.manual_seed(0)
    wrapper = create_training_wrapper_from_config(config, create_model_from_config(config))
    moved(wrapper.model, 1)
    for average, _ in wrapper.averages().values():
        moved(average.ema_model, 2)
    return wrapper


def checkpoint(path, wrapper, **more):
    content = {"state_dict": wrapper.state_dict(), "pytorch-lightning_version": "2.6.0", "model_config": wrapper.model_config}
    torch.save(content | {"stable_audio_tools": {"train_step": 7}, "optimizer_states": [], "global_step": 14} | more, path)
    return str(path)


def outputs(model, kind):
    """What the model makes, the same every time."""
    model.eval()
    audio = torch.sin(torch.arange(2048) / 7)[None]
    match kind:
        case "autoencoder" | "diffusion_autoencoder":
            return reconstruct(model, (8000, audio), seed=0, **({"steps": 2} if kind == "diffusion_autoencoder" else {}))
        case "diffusion_uncond":
            return generate_diffusion_uncond(model, steps=2, sample_size=2048, seed=0)
        case "diffusion_cond":
            return generate_diffusion_cond(model, 2, 2.0, conditioning=[{"prompt": "a bell"}], sample_size=2048, seed=0)
        case "diffusion_cond_inpaint":
            more = {"inpaint_audio": (8000, audio), "regenerate_s": [(0.0, 0.1)]}
            return generate_diffusion_cond_inpaint(model, 2, 2.0, conditioning=[{"prompt": "a bell"}], sample_size=2048, seed=0, **more)
    codes = torch.arange(3 * 16).reshape(1, 3, 16) % 16
    with torch.no_grad():
        logits = model.compute_logits(codes, model.conditioner([{"prompt": "a bell"}], "cpu")).logits.nan_to_num()
        return torch.cat([logits.flatten(), model.pretransform.decode_tokens(codes).flatten()])


def exact(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0)
