"""Names of components that published configs use, so that one that is missing here is not taken for a slip of the pen.

Only names that are unknown where they stand are looked up: a component that is added needs no change here.
"""

from __future__ import annotations

_CODECS = {"oobleck", "dac", "seanet", "local_attn", "taae"}

PUBLISHED: dict[str, set[str]] = {
    "model type": {"autoencoder", "diffusion_uncond", "diffusion_cond", "diffusion_cond_inpaint", "diffusion_autoencoder", "lm"},
    "encoder": _CODECS,
    "decoder": _CODECS,
    "bottleneck": {"tanh", "vae", "rvq", "rvq_vae", "dac_rvq", "dac_rvq_vae", "l2_norm", "wasserstein", "fsq", "dithered_fsq"},
    "pretransform": {"autoencoder", "wavelet", "pqmf", "dac_pretrained", "audiocraft_pretrained", "patched"},
    "conditioner": {"t5", "clap_text", "clap_audio", "int", "number", "list", "phoneme", "lut", "pretransform", "source_mix"},
    "denoiser": {"dit", "adp_1d", "adp_cfg_1d"},
    "unconditional denoiser": {"dit", "DAU1d", "adp_uncond_1d"},
    "diffusion decoder": {"dit", "DAU1d", "adp_1d"},
    "discriminator": {"encodec", "oobleck", "dac"},
    "dataset": {"audio_dir", "pre_encoded", "s3", "wds"},
}
"""What a component is called in messages (a `Family`'s `what`), and its published names."""
