"""What published scripts import of upstream's inference modules and what they pass, under the same names."""

import inspect
import math
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import configs

from stable_audio_tools.audio.resample import resample
from stable_audio_tools.diffusion.grids import schedule
from stable_audio_tools.diffusion.objectives import RectifiedFlow
from stable_audio_tools.diffusion.timesteps import ConstantShift
from stable_audio_tools.inference import generation, sampling
from stable_audio_tools.inference.utils import prepare_audio, set_audio_channels
from stable_audio_tools.models import create_model_from_config

# Two values of each result of upstream's own functions (0.0.19, with k-diffusion 0.1.1), run once on `given` and `network` below.
RECORDED = {
    "sample_discrete_euler": (-1.317479, -0.111797),
    "sample_discrete_euler from 0.5": (-1.996113, -0.371435),
    "sample_rk4": (-1.376213, -0.149146),
    "sample_rk4 from 0.5": (-2.011708, -0.386681),
    "sample_flow_dpmpp": (-1.356862, -0.144185),
    "sample_flow_dpmpp from 0.5": (-2.012188, -0.388772),
    "rf euler": (-1.279582, -0.085643),
    "rf euler from data": (-1.208097, 0.050961),
    "rf dpmpp": (-1.319847, -0.130845),
    "rf dpmpp from data": (-1.221072, 0.054620),
    "sample": (-0.488416, -0.021031),
    "k k-heun": (-1.017755, -0.138115),
    "k k-heun from data": (-1.662255, 0.295582),
    "k k-lms": (-0.627965, -0.046790),
    "k k-lms from data": (-1.607409, 0.275383),
    "k k-dpm-2": (-0.896007, -0.101893),
    "k k-dpm-2 from data": (-1.666965, 0.296778),
    "k dpmpp-2m": (-0.867428, -0.117483),
    "k dpmpp-2m from data": (-1.642672, 0.291127),
    "k v-ddim": (-0.603403, -0.035037),
    "k v-ddim from data": (-1.265857, -0.025239),
}


def network(x, t, scale=1.0):
    return torch.tanh(x * scale) * (1 + t[:, None, None]) - 0.3 * x


@pytest.fixture(scope="module")
def given():
    """Noise and data."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, 32, dtype=torch.float64, generator=generator) for _ in range(2)]


def result(name, noise, data):
    start, _, variant = name.partition(" from ")
    kind, _, sampler = start.partition(" ")
    if kind == "sample":
        return sampling.sample(network, noise, 7, 0.0, scale=1.3)
    if kind in ("rf", "k"):
        function, steps, level = (sampling.sample_rf, 7, 0.6) if kind == "rf" else (sampling.sample_k, 12, 0.8)
        options = {"init_data": data, "sigma_max": level} if variant else {}
        return function(network, noise, steps=steps, sampler_type=sampler, device="cpu", scale=1.3, **options)
    return getattr(sampling, kind)(network, noise, 7, float(variant or 1), scale=1.3)


@pytest.mark.parametrize("name", RECORDED)
def test_numbers_are_upstreams(name, given):
    found = result(name, *given)
    assert [float(found[0, 0, 0]), float(found[1, 2, 31])] == pytest.approx(RECORDED[name], abs=2e-6)


def test_pingpong_ends_on_clean_data(given):
    data = given[1]
    found = sampling.sample_flow_pingpong(lambda x, t: (x - data) / t[:, None, None], given[0], 4)
    torch.testing.assert_close(found, data)


def test_flows_follow_the_models_shift(given):
    """Upstream's sample_rf takes no notice of it."""
    seen, shift = [], ConstantShift(shift=3.0)
    sampling.sample_rf(lambda x, t: seen.append(float(t[0])) or x, given[0], steps=4, dist_shift=shift)
    levels = schedule(RectifiedFlow(), 4, length=32, shift=shift)
    assert seen == pytest.approx(levels[:-1].tolist())


def test_cfg_pp_goes_along_the_unconditional_noise(given):
    def model(x, t, return_info=False):
        return (network(x, t), {"uncond_output": network(x, t, 0.5)}) if return_info else network(x, t)

    plus = sampling.sample(model, given[0], 5, 0.0, cfg_pp=True)
    assert not torch.allclose(plus, sampling.sample(model, given[0], 5, 0.0))
    t = torch.linspace(1, 0, 6, dtype=torch.float64)
    x = given[0]
    for now, then in pairwise(t):
        alpha, sigma = torch.cos(now * math.pi / 2), torch.sin(now * math.pi / 2)
        clean = alpha * x - sigma * network(x, now.expand(2))
        noise = sigma * x + alpha * network(x, now.expand(2), 0.5)
        x = torch.cos(then * math.pi / 2) * clean + torch.sin(then * math.pi / 2) * noise
    torch.testing.assert_close(plus, x, rtol=1e-5, atol=1e-6)


def test_levels_and_weights():
    t = torch.linspace(0, 1, 5)
    alpha, sigma = sampling.get_alphas_sigmas(t)
    torch.testing.assert_close(alpha.square() + sigma.square(), torch.ones(5))
    torch.testing.assert_close(sampling.alpha_sigma_to_t(alpha, sigma), t)
    assert sampling.t_to_alpha_sigma is sampling.get_alphas_sigmas


def test_callbacks_get_upstreams_dict(given):
    told = []
    sampling.sample_discrete_euler(network, given[0], 3, callback=told.append, disable_tqdm=True)
    assert [each["i"] for each in told] == [0, 1, 2] and [each["t"] for each in told] == pytest.approx([1, 2 / 3, 1 / 3])
    for each in told:
        assert each["sigma"] == pytest.approx(each["t"])
        torch.testing.assert_close(each["denoised"], each["x"] - each["t"] * network(each["x"], torch.full((2,), each["t"])))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: sampling.sample_rk4(network, x), "give either steps or sigmas"),
        (lambda x: sampling.sample_k(network, x, cond_fn=print), "cond_fn is not to be had"),
        (lambda x: sampling.sample_rf(network, x, device="meta"), "device is meta but the noise is on cpu"),
        (lambda x: sampling.sample_rf(network, x, sampler_type="v-ddim"), "sampler 'v-ddim' does not fit the objective 'rectified_flow'"),
    ],
)
def test_what_does_not_fit_is_told(call, message, given):
    with pytest.raises(ValueError, match=message):
        call(given[0])


# audio


@pytest.mark.parametrize("shape", [(900,), (1, 900), (2, 900), (3, 2, 900)])
@pytest.mark.parametrize("length", [300, 600])
def test_audio_is_prepared(shape, length):
    audio = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    prepared = prepare_audio(audio, 16000, 8000, length, 2, "cpu")
    assert prepared.shape == (3 if len(shape) == 3 else 1, 2, length)
    first = resample(audio.reshape(-1, 900)[:1], 16000, 8000)[0, :length]
    torch.testing.assert_close(prepared[0, 0, :450], first)
    assert not prepared[..., 450:].any()


def test_channels_are_set():
    stereo = torch.randn(2, 2, 50, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(set_audio_channels(stereo, 1), stereo.mean(1, keepdim=True))
    assert set_audio_channels(stereo[:, 0], 2).shape == (2, 2, 50)
    assert torch.equal(set_audio_channels(stereo.repeat(1, 3, 1), 2), stereo)


# arguments

UPSTREAM = {
    "generate_diffusion_uncond": "model steps batch_size sample_size seed device init_audio init_noise_level return_latents",
    "generate_diffusion_cond": (
        "model steps cfg_scale conditioning conditioning_tensors negative_conditioning negative_conditioning_tensors batch_size "
        "sample_size sample_rate seed device init_audio init_noise_level return_latents"
    ),
    "generate_diffusion_cond_inpaint": (
        "model steps cfg_scale conditioning conditioning_tensors negative_conditioning negative_conditioning_tensors batch_size "
        "sample_size seed device init_audio init_noise_level inpaint_audio inpaint_mask return_latents"
    ),
}


@pytest.mark.parametrize("name", UPSTREAM)
def test_arguments_by_position_are_upstreams(name):
    parameters = inspect.signature(getattr(generation, name)).parameters.values()
    assert [each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD] == UPSTREAM[name].split()


def test_positional_arguments_mean_what_they_do_upstream():
    model, prompts = create_model_from_config(configs.text_to_audio()), [{"prompt": "a bell"}]
    by_position = generation.generate_diffusion_cond(model, 2, 3.0, prompts, None, [{"prompt": "rain"}], None, 1, 2048, 8000, 5, "cpu")
    by_name = generation.generate_diffusion_cond(
        model, steps=2, cfg_scale=3.0, conditioning=prompts, negative_conditioning=[{"prompt": "rain"}], sample_size=2048, seed=5
    )
    assert torch.equal(by_position, by_name)


def test_a_dict_in_the_place_of_a_list_is_told():
    model = create_model_from_config(configs.text_to_audio())
    message = r"conditioning is one item's metadata; put it in a list, \[{...}\], which has an entry for each item"
    with pytest.raises(ValueError, match=message):
        generation.generate_diffusion_cond(model, 2, 3.0, {"prompt": "a bell"}, sample_size=2048)
    message = r"negative_conditioning is one item's metadata"
    with pytest.raises(ValueError, match=message):
        generation.generate_diffusion_cond(model, 2, 3.0, [{"prompt": "a"}], negative_conditioning={"prompt": "b"}, sample_size=2048)


@pytest.mark.parametrize("name", ["cond_fn", "disable_tqdm", "mask", "return_info"])
def test_what_upstream_hands_to_its_samplers_alone_is_told(name):
    model = create_model_from_config(configs.text_to_audio())
    with pytest.raises(ValueError, match=f"has no option '?{name}"):
        generation.generate_diffusion_cond(model, 2, 3.0, [{"prompt": "a"}], sample_size=2048, **{name: None})
