"""Generation by a language model with its key-value cache against the same generation without.

    python benchmarks/lm_generation.py [--frames 128] [--width 256] [--depth 6] [--batch 2] [--codebooks 4] [--pairs 3] [--cfg-scale 3]

Random weights, the delay pattern, greedy tokens, which must be equal. Prints the time of a token either way and the median ratio of
interleaved pairs; the ratio grows with the number of frames, since a step without the cache does the work of all steps before it.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import Tensor

from stable_audio_tools.models.conditioners.base import Condition
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.models.lm import AudioLanguageModel


def build(args: argparse.Namespace) -> AudioLanguageModel:
    oobleck = {"channels": 4, "c_mults": [1], "strides": [4], "latent_dim": 8}
    codec = {
        "encoder": {"type": "oobleck", "config": {**oobleck, "in_channels": 1}},
        "decoder": {"type": "oobleck", "config": {**oobleck, "out_channels": 1}},
        "bottleneck": {"type": "dac_rvq", "config": {"input_dim": 8, "n_codebooks": args.codebooks, "codebook_size": 1024}},
        "latent_dim": 8,
        "downsampling_ratio": 4,
        "io_channels": 1,
    }
    network = {"embed_dim": args.width, "depth": args.depth, "cross_attn_cond_dim": 64, "causal_cross_attention": False}
    network["zero_init_branch_outputs"] = False
    model = {
        "pretransform": {"type": "autoencoder", "config": codec},
        "conditioning": {"cond_dim": 64, "configs": [{"id": "pitch", "type": "int", "config": {}}]},
        "lm": {"type": "continuous_transformer", "config": network, "cross_attention_cond_ids": ["pitch"]},
    }
    torch.manual_seed(0)
    config = {"model_type": "lm", "sample_rate": 16000, "sample_size": 4 * args.frames, "audio_channels": 1, "model": model}
    return create_model_from_config(config).to(args.device).eval()


def timed(
    model: AudioLanguageModel, conditions: dict[str, Condition], args: argparse.Namespace, *, use_cache: bool
) -> tuple[float, Tensor]:
    """Seconds, and the tokens."""
    start = time.perf_counter()
    tokens = model.generate(
        args.frames, args.batch, conditioning_tensors=conditions, temp=0, cfg_scale=args.cfg_scale, use_cache=use_cache
    ).cpu()
    return time.perf_counter() - start, tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    for name, default in {"frames": 128, "width": 256, "depth": 6, "batch": 2, "codebooks": 4, "pairs": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--cfg-scale", type=float, default=3.0)
    args = parser.parse_args()

    model = build(args)
    with torch.no_grad():
        conditions = model.conditioner([{"pitch": 60}], args.device)
    timed(model, conditions, args, use_cache=True)  # warm-up
    ratios, seconds = [], {True: [], False: []}
    for pair in range(args.pairs):
        order = (True, False) if pair % 2 == 0 else (False, True)
        results = {use_cache: timed(model, conditions, args, use_cache=use_cache) for use_cache in order}
        if not torch.equal(results[True][1], results[False][1]):
            raise SystemExit("the tokens differ")
        for use_cache, (took, _) in results.items():
            seconds[use_cache].append(took)
        ratios.append(results[False][0] / results[True][0])
    for use_cache, name in ((False, "without"), (True, "with")):
        took = statistics.median(seconds[use_cache])
        print(f"{name:>8} cache: {took:.2f} s, {1000 * took / args.frames:.1f} ms a frame of {args.codebooks} tokens x {args.batch}")
    print(f"tokens equal; with the cache {statistics.median(ratios):.1f} times as fast over {args.frames} frames")


if __name__ == "__main__":
    main()
