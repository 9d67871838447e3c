"""Operations of adversarial autoencoder training against the peer's, with equal gradients: one turn of each player.

    python benchmarks/gan_step.py --peer FOLDER [--discriminator encodec|dac] [--shrink 16] [--samples 8192] [--single]

FOLDER: see `dit_step.py`. Both packages build the published configuration of the 2.0 VAE with all widths divided by `--shrink`, which
leaves the shares of its parts alone, and take two steps of training in a Lightning Trainer, in float64 unless `--single`, on the same
weights, audio and noise. The peer's dac discriminator has no float64. Counted is what torch counts, recomputation included, and each
Fourier transform that is run, as 5/2 N log2 N, and twice that where it is complex. The peer calls spectral convergence with original
and reconstruction exchanged; here they are in their places.

Goal: at most 0.70 of the peer's operations.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from peer_training import PeerProcess, take_turns
from torch import Tensor

from stable_audio_tools.models import create_model_from_config
from stable_audio_tools.training import create_training_wrapper_from_config

PUBLISHED = Path(__file__).parents[1] / "model_configs" / "autoencoder" / "stable_audio_2_0_vae.json"
STILL = {"optimizer": {"type": "SGD", "config": {"lr": 1e-30}}}  # both turns start from the same weights
DAC = {"type": "dac", "config": {"periods": [2, 3, 5], "fft_sizes": [1024, 512]}}


def configuration(discriminator: str, shrink: int) -> dict[str, Any]:
    """The published one, narrower."""
    config: dict[str, Any] = json.loads(PUBLISHED.read_text())
    model, training = config["model"], config["training"]
    for part in (model["encoder"]["config"], model["decoder"]["config"]):
        part["channels"] //= shrink
        part["latent_dim"] //= shrink
    model["latent_dim"] //= shrink
    losses = training["loss_configs"]
    if discriminator == "dac":
        losses["discriminator"] = {**DAC, "weights": losses["discriminator"]["weights"]}
    else:
        losses["discriminator"]["config"]["filters"] //= shrink
    losses["time"] = {"type": "l1", "weights": {"l1": 0.1}}
    training |= {"use_ema": False, "warmup_steps": 0, "optimizer_configs": {"autoencoder": STILL, "discriminator": STILL}}
    return config


def our_turns(config: dict[str, Any], state: dict[str, Tensor], audio: Tensor) -> list[dict[str, Any]]:
    """On the peer's weights, and with the taps of its filter, which are rounded to float32."""
    torch.set_default_dtype(audio.dtype)
    module = create_training_wrapper_from_config(config, create_model_from_config(config))
    torch.set_default_dtype(torch.float32)
    for name, part in (("autoencoder", module.autoencoder), ("discriminator", module.strategy.discriminator)):
        part.load_state_dict({key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")})
    taps = next(value for key, value in state.items() if key.endswith("prefilter.fir.weight"))
    module.strategy.losses.stft.fir = taps.to(audio.dtype).flatten()
    return take_turns(pl, module, audio)


def worst_gradient(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Largest difference, relative to each tensor's largest."""
    assert ours.keys() == theirs.keys(), sorted(ours.keys() ^ theirs.keys())[:4]
    return max(float((ours[name] - theirs[name]).abs().max() / theirs[name].abs().max()) for name in ours)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, required=True, help="folder with the other implementation")
    parser.add_argument("--discriminator", choices=["encodec", "dac"], default="encodec")
    parser.add_argument("--shrink", type=int, default=16)
    parser.add_argument("--samples", type=int, default=8192)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--single", action="store_true", help="float32: faster, and gradients agree in fewer digits")
    args = parser.parse_args()

    dtype = torch.float32 if args.single else torch.float64
    config = configuration(args.discriminator, args.shrink)
    audio = 0.1 * torch.randn(args.batch, 2, args.samples, generator=torch.Generator().manual_seed(0), dtype=dtype)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(config))
        torch.save(audio, folder / "audio.pt")
        with PeerProcess(args.peer, folder, "gan") as peer:
            theirs = peer.recorded("turns")
    ours = our_turns(config, theirs["state"], audio)
    for player, our_turn, their_turn in zip(("autoencoder", "discriminator"), ours, theirs["turns"], strict=True):
        worst = worst_gradient(our_turn["gradients"], their_turn["gradients"])
        share = our_turn["operations"] / their_turn["operations"]
        print(f"{player}: {our_turn['operations'] / 1e9:.2f} G operations against {their_turn['operations'] / 1e9:.2f} G: {share:.3f}")
        print(f"    {len(our_turn['gradients'])} gradients, equal within {worst:.1e} of each tensor's largest")
    totals = [sum(turn["operations"] for turn in turns) for turns in (ours, theirs["turns"])]
    print(f"both turns: {totals[0] / 1e9:.2f} G against {totals[1] / 1e9:.2f} G: {totals[0] / totals[1]:.3f}")


if __name__ == "__main__":
    main()
