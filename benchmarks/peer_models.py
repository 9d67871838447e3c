"""Builds and runs the cases of `peer_agreement.py`, in its own process with our package and in another, as a script, with the peer's."""

from __future__ import annotations

import importlib.abc
import json
import math
import sys
import warnings
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import torch
from torch import Tensor, nn

UNUSED = {"skimage", "matplotlib", "k_diffusion", "hyper_connections", "clip", "torchvision", "kornia", "wandb", "webdataset"}
UNUSED |= {"nltk", "g2p_en", "gradio"}
METADATA = [{"a": 0.3, "b": 2, "c": "jazz"}, {"a": 7, "b": 99, "c": "unknown"}]
GUIDED = ({"cfg_scale": 3.0}, {"cfg_scale": 3.0, "scale_phi": 0.7}, {"cfg_scale": 2.0, "cfg_interval": (0.0, 0.99)})

Case = dict[str, Any]
Tensors = dict[str, Tensor]
Draw = Callable[..., Tensor]


def build(case: Case, *, peer: bool) -> nn.Module:
    """The model or discriminator of a case, by whichever package `stable_audio_tools` is here."""
    config = json.loads(json.dumps(case["config"]))
    torch.manual_seed(case["seed"])
    if case["family"] == "discriminator":
        return peers_discriminator(config) if peer else our_discriminator(config)
    from stable_audio_tools.models.factory import create_model_from_config

    model: nn.Module = create_model_from_config(config)
    return model.eval()


def outputs(case: Case, model: nn.Module, *, peer: bool) -> Tensors:
    """Every output of the model of `case`; inputs are drawn from its seed, noise from the global generator behind it."""
    family = case["family"]
    generator = torch.Generator().manual_seed(case["seed"])
    kind = torch.float64 if case["double"] else torch.float32
    batch = case["batch"]

    def draw(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=generator).to(kind)

    model = model.to(kind)
    torch.manual_seed(case["seed"])
    if family == "discriminator":
        return verdicts(case, model, draw, peer=peer)
    if family == "lm":
        return tokens(case, model, draw)
    if family == "autoencoder":
        return autoencoded(case, model, draw)
    t = torch.linspace(0.2, 0.8, batch, dtype=kind)
    if family == "diffusion_autoencoder":
        encoded = model.encode(draw(case["channels"], case["length"]), skip_bottleneck=True)
        x, beside = draw(case["io"], case["frames"]), draw(case["beside"], case["frames"])
        return {"pre_bottleneck": encoded, "diffusion": model.diffusion(x, t, input_concat_cond=beside)}
    x = draw(case["io"], case["frames"])
    return {"model": model(x, t)} if family == "diffusion_uncond" else conditioned(case, model, x, t, draw)


def verdicts(case: Case, model: nn.Module, draw: Draw, *, peer: bool) -> Tensors:
    """Losses of both players, and the slope of what the reconstructions are told."""
    reals, fakes = (draw(case["config"]["channels"], case["length"]) for _ in range(2))
    fakes.requires_grad_()
    scored = model.loss(reals, fakes) if peer else (None, *model.generator_loss(reals, fakes))
    (slope,) = torch.autograd.grad(scored[1] + scored[2], fakes)
    own = model.loss(reals, fakes.detach())[0] if peer else model.discriminator_loss(reals, fakes)
    return {"discriminator": own, "generator": scored[1].detach(), "features": scored[2].detach(), "slope": slope}


def autoencoded(case: Case, model: nn.Module, draw: Draw) -> Tensors:
    audio, width = draw(case["channels"], case["length"]), case["config"]["model"]["latent_dim"]
    coded, info = model.encode(audio, return_info=True)
    losses = {key: info[key] for key in ("kl", "vq/commitment_loss", "vq/codebook_loss") if key in info}
    out = {"pre_bottleneck": info["pre_bottleneck_latents"], "latents": coded, **losses, "decoded": model.decode(draw(width, 6))}
    if case["chunked"]:
        out["chunked"] = model.decode_audio(draw(width, 21), chunked=True, overlap=4, chunk_size=8)
    return out


def conditioned(case: Case, model: nn.Module, x: Tensor, t: Tensor, draw: Draw) -> Tensors:
    """Outputs of a conditional model, alone and guided."""
    items = [{**item} for item in METADATA[: x.shape[0]]]
    if "audio" in case:
        for item, audio in zip(items, draw(*case["audio"]).float(), strict=True):
            item["ref"] = audio
    made = model.conditioner(items, "cpu")
    section = case["config"]["model"]["diffusion"]
    used = {name for key, names in section.items() if key.endswith("_ids") for name in names}
    out = {f"cond.{name}": value[0] for name, value in made.items() if name in used}
    if case["config"]["model_type"] == "diffusion_cond_inpaint":
        mask = (draw(1, x.shape[-1]) > 0).to(x)
        made = {**made, "inpaint_mask": [mask], "inpaint_masked_input": [draw(*x.shape[1:]) * mask]}
    out["cfg1"] = model(x, t, cond=made)
    if not case["guidable"]:
        return out
    for index, options in enumerate(GUIDED if section["type"] == "dit" else GUIDED[:1]):
        out[f"guided{index}"] = model(x, t, cond=made, batch_cfg=True, **options)
    return out


def tokens(case: Case, model: nn.Module, draw: Draw) -> Tensors:
    """Logits and the likeliest continuation of a language model."""
    values, codebooks = case["codebook_size"], case["codebooks"]
    codes = (draw(codebooks, case["frames"]).abs() * 1000).long() % values
    conditioner = getattr(model, "conditioner", None)
    given = conditioner(METADATA[: codes.shape[0]], "cpu") if conditioner is not None and case["conditioned"] else None
    made = model.compute_logits(codes, condition_tensors=given)
    with torch.no_grad():
        # From a few frames on: on a lone first step the peer's cross-attention sees what it does not in training.
        greedy = model.generate(max_gen_len=9, init_data=codes[..., :3], conditioning_tensors=given, temp=0, cfg_scale=2.0)
    return {"logits": torch.nan_to_num(made.logits), "mask": made.mask, "greedy": greedy}


def gradients(out: Tensors, model: nn.Module, sloped: list[str]) -> Tensors:
    """Of a weighted sum of those outputs that the peer gives a gradient, for every parameter that it depends on."""
    total = torch.zeros((), dtype=torch.float64)
    for value in (out[name] for name in sloped if name in out):
        if value.requires_grad:
            total = total + (value.double() * torch.linspace(-1, 1, value.numel(), dtype=torch.float64).reshape(value.shape)).sum()
    if not total.requires_grad:
        return {}
    total.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@torch.no_grad()
def draw_weights(model: nn.Module, seed: int) -> None:
    """Gains near 1, matrices that keep the scale, small biases; codebooks as if in use. Constants stay."""
    generator = torch.Generator().manual_seed(seed)
    parameters = dict(model.named_parameters())
    for name, value in sorted(model.state_dict(keep_vars=True).items()):
        last = name.rpartition(".")[2]
        noise = torch.randn(value.shape, generator=generator).to(value) if value.is_floating_point() else value
        if last in ("initted", "cluster_size"):
            value.fill_(1)
        elif "_codebook" in name and last in ("embed", "embed_avg"):
            value.copy_(model.state_dict()[name.removesuffix("_avg")] if last == "embed_avg" else noise)
        elif name in parameters:
            gain = last in ("weight_g", "gamma", "g", "scale") or last == ("weight" if value.ndim < 2 else "alpha")
            matrix = noise / math.sqrt(max(1, value.numel() // max(1, value.shape[0]))) if value.ndim > 1 else 0.1 * noise
            value.copy_(1 + 0.1 * noise if gain else matrix)


def our_discriminator(section: dict[str, Any]) -> nn.Module:
    from stable_audio_tools.configs.parse import validate
    from stable_audio_tools.models.discriminators import DiscriminatorConfig

    weights = {"adversarial": 1.0, "feature_matching": 1.0}
    config = validate(DiscriminatorConfig, {"type": section["type"], "config": section["config"], "weights": weights}, "config")
    made: nn.Module = config.build(16000, section["channels"])
    return made


# ---- the peer's process ----


def record(folder: Path) -> None:
    """Build and run every case of `folder` by the peer, and write what came out."""
    stand_in()
    mend()
    for case in json.loads((folder / "cases.json").read_text()):
        try:
            model = build(case, peer=True)
            draw_weights(model, case["seed"])
            state = {key: value.clone() for key, value in model.state_dict().items()}
            out = outputs(case, model, peer=True)
            sloped = [
                name for name, value in out.items() if value.requires_grad and name != "latents"
            ]  # quantizers have theirs in training
            values = {name: value.detach() for name, value in out.items()}
            found = {"state": state, "out": values, "sloped": sloped, "grad": gradients(out, model, sloped)}
        except Exception as error:  # noqa: BLE001  what the peer refuses is a result
            found = {"error": f"{type(error).__name__}: {error}"}
        torch.save(found, folder / f"{case['name']}.pt")


def stand_in() -> None:
    """Empty modules for what the peer imports at the top and these models never call."""

    class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
        def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
            return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] in UNUSED else None

        def create_module(self, spec: ModuleSpec) -> Any:
            module = MagicMock(name=spec.name)
            module.__path__, module.__spec__, module.__name__ = [], spec, spec.name
            return module

        def exec_module(self, module: Any) -> None:
            return None

    sys.meta_path.insert(0, Finder())


def mend() -> None:
    """The least that makes run what the peer publishes broken: PQMF filters, DAU1d, TAAE, the language model's backbone."""
    import scipy.signal

    scipy.signal.kaiser = scipy.signal.windows.kaiser
    firwin = scipy.signal.firwin
    scipy.signal.firwin = lambda *args, nyq=None, **options: firwin(*args, **options, **({} if nyq is None else {"fs": 2 * nyq}))
    from dac.nn.layers import Snake1d
    from stable_audio_tools.models.blocks import ResConvBlock

    from stable_audio_tools.models import diffusion, lm_backbone, pqmf, transformer

    class SnakeBlock(ResConvBlock):
        def __init__(self, c_in: int, c_mid: int, c_out: int, is_last: bool = False, use_snake: bool = False, **options: Any):
            super().__init__(c_in, c_mid, c_out, is_last=is_last, **options)
            for place, width in ((2, c_mid), (5, c_out)) if use_snake else ():
                if isinstance(self.main[place], nn.GELU):
                    self.main[place] = Snake1d(width)

    diffusion.ResConvBlock = SnakeBlock
    lowpass, attention = pqmf.design_kaiser_lowpass, transformer.Attention.__init__
    pqmf.design_kaiser_lowpass = lambda cutoff, *args: lowpass(float(torch.as_tensor(cutoff).reshape(-1)[0]), *args)

    def init(self: Any, *args: Any, sliding_window: Any = None, **options: Any) -> None:
        attention(self, *args, **options)  # windows are wider than the sequences here

    transformer.Attention.__init__ = init

    def forward(self: Any, x: Tensor, mask: Any = None, prepend_cond: Any = None, cross_attn_cond: Any = None, **unread: Any) -> Tensor:
        prefix = None if prepend_cond is None else self.to_prepend_embed(prepend_cond)
        context = None if cross_attn_cond is None else self.to_cross_attn_embed(cross_attn_cond)
        out: Tensor = self.model(x, context=context, prepend_embeds=prefix)
        return out if prefix is None else out[:, prefix.shape[1] :]

    lm_backbone.ContinuousTransformerAudioLMBackbone.forward = forward


def peers_discriminator(section: dict[str, Any]) -> nn.Module:
    from stable_audio_tools.models import discriminators

    kind, channels = section["type"], section["channels"]
    name = {"encodec": "EncodecDiscriminator", "dac": "DACGANLoss", "oobleck": "OobleckDiscriminator"}[kind]
    own = {"encodec": {"in_channels": channels}, "dac": {"channels": channels, "sample_rate": 16000}, "oobleck": {}}[kind]
    made: nn.Module = getattr(discriminators, name)(**section["config"], **own)
    return made


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    record(Path(sys.argv[1]))
