"""Training from stored latents against encoding on the fly: steps a second, and how fast the encoding itself is.

    python benchmarks/pre_encoded.py [--config FILE] [--batch-size 8] [--steps 30] [--pairs 5] [--device cuda] [--precision bf16-mixed]

The files are noise, longer than a clip, in a temporary folder; the encoder's weights are random, which costs as much as trained ones.
Both trainings are the real ones, by a Lightning Trainer with the real loaders, and take turns A, B, B, A; a figure is the median of the
ratios of pairs, with the quartiles. The first five steps of each are not timed.

Goal: at least 1.6 times the steps a second, on a GPU.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import soundfile
import torch

from stable_audio_tools.cli.main import main as command_line
from stable_audio_tools.models import create_model_from_config
from stable_audio_tools.training import create_training_wrapper_from_config
from stable_audio_tools.training.config import parse_run_config
from stable_audio_tools.training.data_module import AudioDataModule

NANO = Path(__file__).parents[1] / "model_configs" / "text_to_audio" / "stable_audio_2_0_nano.json"
WARM_UP = 5
FILES, CLIPS = 64, 1.5  # files, and the length of each in clips


def write_audio(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Noise with captions; the dataset config of it."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for number in range(FILES):
        frames = 0.3 * torch.randn(round(CLIPS * config["sample_size"]), config["audio_channels"], generator=generator).clamp(-3, 3)
        soundfile.write(folder / f"{number:03d}.wav", frames.numpy(), config["sample_rate"])
        (folder / f"{number:03d}.txt").write_text(f"noise number {number}")
    return {"dataset_type": "audio_dir", "datasets": [{"id": "noise", "path": str(folder)}]}


def pre_encode(folder: Path, config: dict[str, Any], audio: dict[str, Any], args: argparse.Namespace) -> tuple[dict[str, Any], Path, float]:
    """The dataset config of the latents, the encoder's weights, and the seconds that encoding took."""
    (folder / "model.json").write_text(json.dumps(config))
    (folder / "audio.json").write_text(json.dumps(audio))
    torch.manual_seed(0)
    weights = folder / "encoder.ckpt"
    torch.save(create_model_from_config(config).pretransform.model.state_dict(), weights)
    command = ["pre-encode", "--model-config", str(folder / "model.json"), "--ckpt-path", str(weights)]
    command += ["--dataset-config", str(folder / "audio.json"), "--output-path", str(folder / "latents"), "--device", args.device]
    begun = time.perf_counter()
    assert command_line([*command, "--batch-size", str(args.batch_size), "--num-workers", str(args.num_workers)]) == 0
    spent = time.perf_counter() - begun
    return {"dataset_type": "pre_encoded", "datasets": [{"id": "noise", "path": str(folder / "latents")}]}, weights, spent


class Clock(pl.Callback):
    """Seconds of the steps after the warm-up."""

    def __init__(self) -> None:
        self.steps, self.begun, self.ended = 0, 0.0, 0.0

    def on_train_batch_end(self, *args: Any) -> None:
        self.steps += 1
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if self.steps == WARM_UP:
            self.begun = time.perf_counter()
        self.ended = time.perf_counter()

    @property
    def per_step(self) -> float:
        return (self.ended - self.begun) / (self.steps - WARM_UP)


def seconds_per_step(config: dict[str, Any], data: dict[str, Any], weights: Path, args: argparse.Namespace) -> float:
    """Of a new training."""
    stored = data["dataset_type"] == "pre_encoded"
    config = {**config, "training": {**config["training"], "pre_encoded": stored}}
    torch.manual_seed(0)
    module = create_training_wrapper_from_config(config, create_model_from_config(config))
    module.model_config = config
    module.model.pretransform.model.load_state_dict(torch.load(weights, weights_only=True))
    loaders = AudioDataModule(data, batch_size=args.batch_size, num_workers=args.num_workers)
    loaders.build(parse_run_config(config))
    clock = Clock()
    trainer = pl.Trainer(
        accelerator="gpu" if args.device == "cuda" else "cpu",
        devices=1,
        precision=args.precision,
        max_epochs=-(-(WARM_UP + args.steps) // (FILES // args.batch_size)),
        callbacks=[clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        use_distributed_sampler=False,
    )
    trainer.fit(module, datamodule=loaders)
    loaders.train_dataloader().close()
    return clock.per_step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=NANO, help="of a model with an autoencoder for its pretransform")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--num-workers", type=int, default=0)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", default="32-true")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    config = json.loads(args.config.read_text())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        audio = write_audio(folder / "audio", config)
        latents, weights, spent = pre_encode(folder, config, audio, args)
        seconds = FILES * config["sample_size"] / config["sample_rate"]
        print(f"encoding: {FILES / spent:.1f} clips a second, {seconds / spent:.0f} times real time, start of the command included")
        ratios, times = [], []
        for pair in range(args.pairs):
            order = (audio, latents) if pair % 2 == 0 else (latents, audio)
            taken = {data["dataset_type"]: seconds_per_step(config, data, weights, args) for data in order}
            ratios.append(taken["audio_dir"] / taken["pre_encoded"])
            times.append((taken["audio_dir"], taken["pre_encoded"]))
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    fly, stored = (1 / statistics.median(column) for column in zip(*times, strict=True))
    print(f"on the fly {fly:.2f} steps a second, from latents {stored:.2f}: {middle:.2f} times as fast [{low:.2f} to {high:.2f}]")


if __name__ == "__main__":
    main()
