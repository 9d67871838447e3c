"""A small EnCodec in both of its published layouts: a folder as the hub has it, and an export of AudioCraft."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from stable_audio_tools.models.pretransforms.audiocraft_pretrained import EnCodec, describe_hub_config

HUB = {
    "model_type": "encodec",
    "audio_channels": 1,
    "codebook_size": 16,
    "hidden_size": 6,
    "num_filters": 2,
    "num_lstm_layers": 1,
    "sampling_rate": 8000,
    "target_bandwidths": [4.0, 12.0],  # 1000 frames a second of 4 bits: 3 codebooks
    "upsampling_ratios": [4, 2],
    "use_causal_conv": False,
    "use_conv_shortcut": False,
}
EXPORT = """
sample_rate: 8000
channels: 1
compression_model: encodec
encodec: {autoencoder: seanet, quantizer: rvq, sample_rate: '${sample_rate}', channels: '${channels}', causal: false, renormalize: false}
seanet:
  dimension: 6
  channels: ${channels}
  causal: ${encodec.causal}
  n_filters: 2
  n_residual_layers: 1
  ratios: [4, 2]
  activation: ELU
  activation_params: {alpha: 1.0}
  norm: weight_norm
  norm_params: {}
  kernel_size: 7
  residual_kernel_size: 3
  last_kernel_size: 7
  dilation_base: 2
  pad_mode: reflect
  true_skip: true
  compress: 2
  lstm: 1
  disable_norm_outer_blocks: 0
  decoder: {trim_right_ratio: 1.0, final_activation: null, final_activation_params: null}
  encoder: {}
rvq: {n_q: 3, q_dropout: false, bins: 16, decay: 0.99}
"""
# The hub's name of each entry, and the exported one.
NAMES = {
    "encoder.layers.0.conv.": "encoder.model.0.conv.conv.",
    "encoder.layers.1.block.1.conv.": "encoder.model.1.block.1.conv.conv.",
    "encoder.layers.1.block.3.conv.": "encoder.model.1.block.3.conv.conv.",
    "encoder.layers.3.conv.": "encoder.model.3.conv.conv.",
    "encoder.layers.4.block.1.conv.": "encoder.model.4.block.1.conv.conv.",
    "encoder.layers.4.block.3.conv.": "encoder.model.4.block.3.conv.conv.",
    "encoder.layers.6.conv.": "encoder.model.6.conv.conv.",
    "encoder.layers.7.lstm.": "encoder.model.7.lstm.",
    "encoder.layers.9.conv.": "encoder.model.9.conv.conv.",
    "decoder.layers.0.conv.": "decoder.model.0.conv.conv.",
    "decoder.layers.1.lstm.": "decoder.model.1.lstm.",
    "decoder.layers.3.conv.": "decoder.model.3.convtr.convtr.",
    "decoder.layers.4.block.1.conv.": "decoder.model.4.block.1.conv.conv.",
    "decoder.layers.4.block.3.conv.": "decoder.model.4.block.3.conv.conv.",
    "decoder.layers.6.conv.": "decoder.model.6.convtr.convtr.",
    "decoder.layers.7.block.1.conv.": "decoder.model.7.block.1.conv.conv.",
    "decoder.layers.7.block.3.conv.": "decoder.model.7.block.3.conv.conv.",
    "decoder.layers.9.conv.": "decoder.model.9.conv.conv.",
    **{f"quantizer.layers.{index}.codebook.": f"quantizer.vq.layers.{index}._codebook." for index in range(3)},
}


def exported_state():
    torch.manual_seed(0)
    codec = EnCodec(describe_hub_config(HUB, "test"))
    for codebook in codec.quantizer.codebooks:
        torch.nn.init.normal_(codebook.embed, std=0.1)
    return codec.state_dict()


def hub_state():
    """The same weights under the hub's names."""
    state = {}
    for key, value in exported_state().items():
        theirs, ours = next((theirs, ours) for theirs, ours in NAMES.items() if key.startswith(ours))
        name = theirs + key.removeprefix(ours)
        new = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
        last = name.rpartition(".")[2]
        state[name.removesuffix(last) + new.get(last, last)] = value.contiguous()
    return state


def encodec_folder(folder: Path) -> Path:
    """As the hub has it."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(HUB))
    save_file(hub_state(), folder / "model.safetensors")
    return folder
