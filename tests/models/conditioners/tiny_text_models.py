"""Folders of pretrained text models as the hub has them, but tiny and with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

WORDS = ["a", "bell", "drum", "soft", "loud", "low", "bright", "piano"]


def tokenizer_folder(folder: Path) -> Path:
    """A Unigram tokenizer as T5's: 0 padding, 1 the end, which it adds, 2 unknown."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -10.0), *((f"▁{word}", -2.0) for word in WORDS), ("▁", -4.0)]
    pieces += [(letter, -6.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(folder)
    return folder


def t5_folder(folder: Path, width: int = 16) -> Path:
    from transformers import T5Config, T5EncoderModel

    sizes = {"d_model": width, "d_kv": 4, "d_ff": 32, "num_layers": 2, "num_heads": 4, "feed_forward_proj": "gated-gelu"}
    torch.manual_seed(0)
    model = T5EncoderModel(T5Config(vocab_size=64, **sizes))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return tokenizer_folder(folder)


def clap_folder(folder: Path) -> Path:
    """Text half of width 16 in 2 layers, audio half of a small HTSAT with fusion, a shared space of 8."""
    from transformers import ClapAudioConfig, ClapConfig, ClapModel, ClapTextConfig

    text = ClapTextConfig(
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=100,
        pad_token_id=0,
        projection_dim=8,
    )
    audio = ClapAudioConfig(
        patch_embeds_hidden_size=8,
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 1, 1, 1],
        hidden_size=64,
        enable_fusion=True,
        fusion_type="aff_2d",
        projection_dim=8,
    )
    torch.manual_seed(1)
    model = ClapModel(ClapConfig(text_config=text.to_dict(), audio_config=audio.to_dict(), projection_dim=8)).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return tokenizer_folder(folder)


def authors_clap_folder(source: Path, folder: Path) -> Path:
    """The text half of a `clap_folder` under its authors' names, as they save it, with a score that is a numpy number."""
    import numpy as np
    from safetensors.torch import load_file

    folder.mkdir()
    renamed = {}
    for key, value in load_file(source / "model.safetensors").items():
        if key.startswith("text_") and not key.endswith(("position_ids", "token_type_ids")):
            key = key.replace("text_model.", "text_branch.").replace(".linear1.", ".0.").replace(".linear2.", ".2.")
            renamed[f"module.{key}"] = value
    torch.save({"epoch": 3, "score": np.float64(0.5), "state_dict": renamed}, folder / "pytorch_model.bin")
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config))
    return tokenizer_folder(folder)


def without_key(source: Path, folder: Path, key: str) -> Path:
    """A copy of a model's folder whose weights lack one tensor."""
    from safetensors.torch import load_file

    folder.mkdir()
    (folder / "config.json").write_text((source / "config.json").read_text())
    state = load_file(source / "model.safetensors")
    del state[key]
    save_file(state, folder / "model.safetensors")
    return folder
