"""Made-up run folders for the tests of the report, and for looking at the page: `python tests/report/report_samples.py FOLDER`.

The sounds go from noise to clean tones as the steps go on, as those of a training do.
"""

import json
import math
import random
import sys
from pathlib import Path

import soundfile
import torch

from stable_audio_tools.audio.spectrogram import save_spectrogram
from stable_audio_tools.report import build_report

RATE = 8000
PROMPTS = (
    ("a plucked string playing A4, soft", 440.0, 0.15, 5.0),
    ("a saw wave playing C4, loud", 261.6, 0.7, 0.5),
    ("a bell playing E5, medium", 659.3, 0.35, 3.0),
    ("a sine playing D4, medium", 293.7, 0.35, 0.8),
    ("a square wave playing F#3, loud", 185.0, 0.7, 0.5),
    ("a noise burst, soft", 0.0, 0.15, 9.0),
)


def share(hits: int, of: int) -> dict[str, float]:
    """A measured share as `evaluation` writes it."""
    return {"share": hits / of, "low": max(0.0, hits / of - 0.08), "high": min(1.0, hits / of + 0.05), "hits": hits, "of": of}


MODEL = {
    "model_type": "diffusion_cond",
    "sample_rate": RATE,
    "sample_size": 8192,
    "model": {
        "pretransform": {"type": "log_spectrogram", "config": {"n_fft": 512, "hop": 128}},
        "conditioning": {"cond_dim": 160, "configs": [{"id": "prompt", "type": "bytes", "config": {"max_ngram": 4}}]},
        "diffusion": {
            "type": "dit",
            "prediction": "x0",
            "global_cond_ids": ["prompt"],
            "config": {"embed_dim": 160, "depth": 4, "num_heads": 4, "project_cond_tokens": False},
        },
    },
    "training": {
        "learning_rate": 0.001,
        "cfg_dropout_prob": 0.1,
        "demo": {"demo_every": 200, "demo_steps": 25, "demo_cfg_scales": [1, 2.5]},
    },
}
DATASET = {
    "dataset_type": "synthetic",
    "config": {"seed": 0, "instruments": ["sine", "square", "saw"], "notes": ["A3", "A5"], "hold_out": 0.12},
}
OPTIONS = {
    "model_config": "model_configs/quickstart/model.json",
    "dataset_config": "",
    "config_file": "model_configs/quickstart/train.ini",
    "name": "quick start",
    "save_dir": "runs",
    "max_steps": 2000,
    "batch_size": 32,
    "seed": 42,
    "recover": False,
    "ckpt_path": "",
    "allow_partial": True,
}
EVALUATION = {
    "recipe": {"prompts": "48 held-out prompts", "steps": 50, "cfg_scale": 1.5, "seed": 0},
    "pitched": {
        "model": {"pitch": share(47, 48), "median_cents": 2.61, "instrument": share(45, 48), "loudness_error_db": 1.2, "silence": 0.0},
        "real sounds": {
            "pitch": share(48, 48),
            "median_cents": 2.58,
            "instrument": share(48, 48),
            "loudness_error_db": 0.4,
            "silence": 0.0,
        },
        "white noise": {
            "pitch": share(2, 48),
            "median_cents": 412.0,
            "instrument": share(6, 48),
            "loudness_error_db": 7.9,
            "silence": None,
        },
    },
}


def run_state(step: int, max_steps: int = 2000, **more) -> dict:
    """A `run.json`."""
    return {
        "name": "quick start",
        "status": "finished",
        "step": step,
        "max_steps": max_steps,
        "started": "2026-05-02T09:12:04+00:00",
        "updated": "2026-05-02T09:16:10+00:00",
        "wall_s": 246.1,
        "versions": {"python": "3.11.9", "torch": "2.11.0", "lightning": "2.6.0", "stable-audio-tools": "1.0.0.dev0"},
        "parameters": 2_462_344,
        "device": "cpu",
        "resumed": [],
        "resume": "stable-audio-tools train --model-config=model.json --name=quickstart --recover",
        **more,
    }


def metrics_lines(rows: int, *, every: int = 1, noise: float = 0.25, seed: int = 0) -> list[str]:
    """The lines of a `metrics.csv`: a falling, noisy loss, a warmed-up learning rate, now and then a validation."""
    draw = random.Random(seed)
    lines = ["step,time_s,train/loss,train/mse,train/lr,train/grad_norm,val/loss"]
    for i in range(1, rows + 1):
        loss = (0.06 + 1.4 * math.exp(-6 * i / rows)) * math.exp(noise * draw.gauss(0, 1))
        rate = 1e-3 * min(1, 10 * i / rows) * (0.5 + 0.5 * math.cos(math.pi * i / rows))
        validation = f"{0.07 + 1.3 * math.exp(-6 * i / rows):.5g}" if i % max(rows // 12, 1) == 0 else ""
        lines.append(
            f"{i * every},{i * every * 0.12:.2f},{loss:.5g},{loss * 0.9:.5g},{rate:.5g},{0.4 + draw.random() * loss:.5g},{validation}"
        )
    return lines


def write_metrics(folder: Path, lines: list[str]) -> None:
    (folder / "metrics.csv").write_text("".join(line + "\n" for line in lines))


def sound(hertz: float, gain: float, decay: float, cleanness: float, seconds: float, seed: int) -> torch.Tensor:
    """(1, T): a decaying harmonic tone (noise for 0 Hz) under noise that goes away as `cleanness` nears 1."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(int(RATE * seconds)) / RATE
    noise = torch.randn(len(time), generator=generator)
    partials = [torch.sin(2 * math.pi * hertz * k * time) / k for k in range(1, 9) if hertz * k < RATE / 2]
    tone = sum(partials) / 2 if hertz else 0.5 * noise
    audio = cleanness * gain * torch.exp(-decay * time) * tone + (1 - cleanness) * 0.2 * noise
    return audio.clamp(-1, 1)[None]


def write_demos(run: Path, step: int, clips: list[dict]) -> Path:
    """Write one demo step. Each clip is an entry of `demos.json` with a tensor under "samples" instead of the files."""
    folder = run / "demos" / f"step_{step:08d}"
    folder.mkdir(parents=True)
    entries = []
    for index, clip in enumerate(clips):
        clip = dict(clip)
        samples = clip.pop("samples")
        soundfile.write(folder / f"{index:02d}.wav", samples.T.numpy(), clip.pop("rate", RATE))
        save_spectrogram(samples, RATE, folder / f"{index:02d}.png")
        entries.append({"audio": f"{index:02d}.wav", "image": f"{index:02d}.png", **clip})
    (folder / "demos.json").write_text(json.dumps(entries))
    return folder


def diffusion_clips(step: int, last: int, *, prompts: int = 6, scales: tuple = (1.0, 2.5), seconds: float = 1.024) -> list[dict]:
    clips = []
    for index, (prompt, hertz, gain, decay) in enumerate(PROMPTS[:prompts]):
        for scale in scales:
            cleanness = (step / last) ** (0.35 if scale > 1 else 0.6)
            clips.append(
                {
                    "title": f"{index + 1}. {prompt}, cfg {scale:g}",
                    "prompt": prompt,
                    "cfg_scale": scale,
                    "seed": 7,
                    "kind": "generated",
                    "group": f"{index + 1}. {prompt}",
                    "info": {"peak_db": round(-20 * (1 - cleanness) - 3, 1)},
                    "samples": sound(hertz, gain, decay, cleanness, seconds, seed=index),
                }
            )
    return clips


def autoencoder_clips(step: int, last: int, *, seconds: float = 1.024) -> list[dict]:
    clips = []
    for index, (name, hertz, gain, decay) in enumerate(PROMPTS[:2]):
        group = f"{index + 1}. recordings/{name.split()[1]}.wav"
        original = sound(hertz, gain, decay, 1.0, seconds, seed=index)
        rebuilt = sound(hertz, gain, decay, (step / last) ** 0.4, seconds, seed=index + 50)
        clips.append({"title": f"{group}, original", "kind": "original", "group": group, "samples": original})
        info = {"snr_db": round(20 * step / last, 1)}
        clips.append({"title": f"{group}, reconstruction", "kind": "reconstruction", "group": group, "info": info, "samples": rebuilt})
    return clips


def make_run(run: Path, *, demo_steps: tuple = (0, 400, 2000), rows: int = 200, small: bool = True, **state) -> Path:
    """A complete run folder; `small` has three prompts of 0.3 s, otherwise the whole list and an autoencoder's demos too."""
    run.mkdir(parents=True)
    last = max(*demo_steps, 1)
    for name, value in (("config.json", MODEL), ("dataset.json", DATASET), ("args.json", OPTIONS), ("evaluation.json", EVALUATION)):
        (run / name).write_text(json.dumps(value))
    (run / "run.json").write_text(json.dumps(run_state(last, **state)))
    write_metrics(run, metrics_lines(rows, every=max(last // rows, 1)))
    for step in demo_steps:
        if small:
            clips = diffusion_clips(step, last, prompts=2, scales=(1.0,), seconds=0.3) + autoencoder_clips(step, last, seconds=0.3)[:2]
        else:
            clips = diffusion_clips(step, last) + autoencoder_clips(step, last)
        write_demos(run, step, clips)
    return run


if __name__ == "__main__":
    print(build_report(make_run(Path(sys.argv[1]), demo_steps=tuple(range(0, 2001, 100)), rows=2000, small=False, resumed=[800])))
