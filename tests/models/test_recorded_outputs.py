"""Every output that was recorded of a whole model is computed again, none is left out; tests of single parts vary the call."""

from collections.abc import Callable, Mapping
from functools import partial

import pytest
import torch
from reference_rule import FOLDER, Reference, assert_matches, assert_same_layout, fill, load_reference
from torch import Tensor, nn

from stable_audio_tools.diffusion.grids import schedule
from stable_audio_tools.diffusion.guidance import guided
from stable_audio_tools.diffusion.samplers import Prediction, find_sampler
from stable_audio_tools.inference.generation import generate_diffusion_cond
from stable_audio_tools.models.conditioners.base import Condition
from stable_audio_tools.models.factory import create_model_from_config

NAMES = sorted(path.stem for path in FOLDER.glob("tiny_*.safetensors"))
METADATA = (
    {"pitch": 3, "genre": "jazz", "seconds_start": 0, "seconds_total": 30},
    {"pitch": 99, "genre": "unknown", "seconds_start": 12.5, "seconds_total": 600},
)
NEGATIVE = {"pitch": 7, "genre": "rock", "seconds_total": 5}
Outputs = Mapping[str, Callable[[], Tensor]]


def autoencoder(model: nn.Module, reference: Reference) -> Outputs:
    latents = reference.tensors.get("in.latents")
    return {
        "pre_bottleneck_latents": lambda: model.encode(reference["in.audio"], skip_bottleneck=True),
        "decoded": lambda: model.decode(latents),
        "decoded_skip_bottleneck": lambda: model.decode(latents, skip_bottleneck=True),
        "decoded_chunked_c24_o8": lambda: model.decode_audio(reference["in.latents_long"], chunked=True, overlap=8, chunk_size=24),
    }


def diffusion_autoencoder(model: nn.Module, reference: Reference) -> Outputs:
    def diffusion() -> Tensor:
        beside = reference["in.cond_latents_upsampled"]
        return model.diffusion(reference["in.audio"], reference["in.t"], input_concat_cond=beside)

    return {"diffusion": diffusion, "pre_bottleneck_latents": autoencoder(model, reference)["pre_bottleneck_latents"]}


def diffusion_uncond(model: nn.Module, reference: Reference) -> Outputs:
    def field(x: Tensor, t: Tensor) -> Prediction:
        output = model(x, t)
        return Prediction(output, model.objective.denoised(x, output, t), model.objective.noise(x, output, t))

    def sampled() -> Tensor:
        x = reference["in.x"]
        return find_sampler("v-ddim", model.objective, {}).sample(field, x, schedule(model.objective, 4, length=x.shape[-1]))

    return {"model": lambda: model(reference["in.x"], reference["in.t"]), "v_ddim_eta0_steps4": sampled}


def diffusion_cond(model: nn.Module, reference: Reference) -> Outputs:
    x, t = reference["in.x"], reference["in.t"]
    cond = conditions(model, reference, {})
    inputs = model.get_conditioning_inputs(cond)
    call = partial(model, x, t, cond)
    rescaled = {"scale_phi": 0.7} | ({} if reference.config["model"]["diffusion"]["type"] == "dit" else {"rescale_cfg": True})

    def negative() -> Tensor:
        """Recorded where a negative reaches cross-attention alone; here it takes every route, see `test_dit_reference`."""
        away = model.get_conditioning_inputs(conditions(model, reference, NEGATIVE))
        tokens = {name: value for name, value in away.items() if name.startswith("cross_attn")}
        other = model.model(x, t, **{**model.routes.unconditional(cond, inputs), **tokens})
        return guided(call(), other, model.objective.alpha_sigma(t)[1], scale=3.0)

    def hidden(index: int) -> Tensor:
        info: dict = {}
        call(info=info)
        return info["hidden_states"][index]

    return {
        **{f"cond.{name}": partial(lambda c: c.tensor, c) for name, c in cond.items()},
        **{f"cond_mask.{name}": partial(lambda c: c.mask.float(), c) for name, c in cond.items() if c.mask is not None},
        **{f"inputs.{name}": partial(lambda v: v.float(), value) for name, value in inputs.items() if value is not None},
        **{f"hidden{index}": partial(hidden, index) for index in range(3)},
        "cfg1": call,
        "cfg3": partial(call, cfg_scale=3.0),
        "cfg3_scale_phi0.7": partial(call, cfg_scale=3.0, **rescaled),
        "cfg3_interval_0_0.2": partial(call, cfg_scale=3.0, cfg_interval=(0.0, 0.2)),
        "cfg3_negative": negative,
        "exit_layer0": partial(call, exit_layer_ix=0),
    }


def conditions(model: nn.Module, reference: Reference, changes: Mapping[str, object]) -> dict[str, Condition]:
    items = [{**item, **changes} for item in METADATA]
    for conditioner in reference.config["model"].get("conditioning", {}).get("configs", []):
        for item in items if conditioner["type"] == "int" else ():
            item[conditioner["id"]] = int(item[conditioner["id"]])
    for item, audio in zip(items, reference.tensors.get("in.ref_audio", ()), strict=False):
        item["ref_audio"] = audio
    made = model.conditioner(items, "cpu")
    for name in ("inpaint_mask", "inpaint_masked_input"):
        if f"in.{name}" in reference.tensors:
            made[name] = Condition(reference[f"in.{name}"], None)
    return made


def lm(model: nn.Module, reference: Reference) -> Outputs:
    codes = reference["in.codes"]
    given = model.conditioner(METADATA, "cpu")
    pattern = model.pattern(codes.shape[-1])
    sequence, holds = pattern.build(codes, model.lm.masked_token_id, trained=True)
    logits = partial(model.compute_logits, codes, given)

    def greedy(scale: float) -> Tensor:
        return model.generate(12, 2, conditioning_tensors=given, temp=0, cfg_scale=scale)

    return {
        "pattern_codes": lambda: sequence,
        "pattern_mask": lambda: holds,
        "logits": lambda: logits().logits.nan_to_num(),
        "logits_nan": lambda: logits().logits.isnan().all(-1),
        "mask": lambda: logits().mask,
        "greedy_cfg1.0": partial(greedy, 1.0),
        "greedy_cfg3.0": partial(greedy, 3.0),
        "tokenized": lambda: model.pretransform.tokenize(reference["in.audio"]),
        "decoded_tokens": lambda: model.decode_tokens(codes),
    }


KINDS = {
    "autoencoder": autoencoder,
    "diffusion_autoencoder": diffusion_autoencoder,
    "diffusion_uncond": diffusion_uncond,
    "diffusion_cond": diffusion_cond,
    "diffusion_cond_inpaint": diffusion_cond,
    "lm": lm,
}


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_every_recorded_output_is_met(name):
    reference = load_reference(name)
    model = create_model_from_config(reference.config).eval()
    assert_same_layout(model, reference.table)
    fill(model, reference)
    recorded = {key.removeprefix("out."): value for key, value in reference.tensors.items() if key.startswith("out.")}
    outputs = KINDS[reference.config["model_type"]](model, reference)
    assert recorded and recorded.keys() <= outputs.keys()
    for key, want in recorded.items():
        assert_matches(outputs[key]().float(), want.float())


RATIOS = {"sigma_min": 0.03, "sigma_max": 50.0}


@pytest.mark.parametrize(
    ("name", "sampler", "options"),
    [
        ("tiny_cond_adp_cfg", "v-ddim", {}),
        ("tiny_cond_adp_cfg", "dpmpp-2m", RATIOS),
        ("tiny_cond_dit_latent_concat", "v-ddim", {}),
        ("tiny_cond_dit_latent_concat", "dpmpp-2m", RATIOS),
        ("tiny_cond_dit_v_prepend", "v-ddim", {}),
        ("tiny_cond_dit_v_prepend", "dpmpp-2m", RATIOS),
        ("tiny_cond_dit_rf_adaln", "rk4", {}),
    ],
)
def test_generation_from_the_recorded_noise_makes_the_recorded_audio(name, sampler, options, monkeypatch):
    """Those recorded on schedules that are ours, too: the peer's euler and dpmpp have one of their own."""
    reference = load_reference(name)
    model = create_model_from_config(reference.config).eval()
    fill(model, reference)
    noise = torch.randn(2, model.io_channels, reference["in.x"].shape[-1], generator=torch.Generator().manual_seed(42))
    monkeypatch.setattr("stable_audio_tools.inference.job.noise_like", lambda x, generators: noise)
    given = {"conditioning_tensors": conditions(model, reference, {}), "batch_size": 2, "sample_size": reference.config["sample_size"]}
    made = generate_diffusion_cond(model, 4, 3.0, **given, sampler_type=sampler, seed=0, **options)
    assert_matches(made, reference[f"seeded.generate_{sampler}_steps4_seed42_cfg3"])
