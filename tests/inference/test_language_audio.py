"""Audio of a language model: of the seconds asked for, the same clip in any batch, going on from what is given."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import configs

from stable_audio_tools.inference.language import generate_lm
from stable_audio_tools.models import create_model_from_config

RATE = configs.SAMPLE_RATE
PROMPTS = [{"prompt": "a bell"}, {"prompt": "rain"}, {"prompt": "a saw playing C3"}]
FRAME = 32


def language_model(**codec):
    config = configs.language_model()
    config["model"]["pretransform"]["config"]["bottleneck"]["config"].update(codec)
    if width := codec.get("noise_augment_dim"):
        config["model"]["pretransform"]["config"]["decoder"]["config"]["latent_dim"] += width
    model = create_model_from_config(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


@pytest.fixture(scope="module")
def model():
    return language_model()


def generate(model, conditioning=PROMPTS, seconds=0.1, seed=7, **options):
    return generate_lm(model, conditioning=conditioning, seconds=seconds, seed=seed, **options)


def tone(samples, channels=1):
    return 0.5 * torch.sin(torch.arange(samples) / 5).expand(channels, -1)


@pytest.mark.parametrize("seconds", [1 / RATE, 0.004, 0.1, 0.1001])
def test_audio_is_as_long_as_asked_for(model, seconds):
    audio = generate(model, seconds=seconds)
    assert audio.shape == (3, 1, round(seconds * RATE)) and audio.dtype == torch.float32 and audio.isfinite().all()


def test_without_seconds_it_is_256_frames(model):
    assert generate(model, PROMPTS[:1], seconds=None).shape == (1, 1, 256 * FRAME)


@pytest.mark.parametrize("codec", [{}, {"noise_augment_dim": 2}], ids=["plain", "with noise beside the latents"])
def test_an_item_does_not_depend_on_its_batch(codec):
    model = language_model(**codec)
    three = generate(model, cfg_scale=2.0)
    assert not torch.allclose(three[0], three[1])
    torch.testing.assert_close(generate(model, PROMPTS[:2], cfg_scale=2.0), three[:2], rtol=1e-4, atol=1e-5)
    seeds = generate(model, cfg_scale=2.0, seed=[4, 5, 6])
    torch.testing.assert_close(generate(model, PROMPTS[2:], cfg_scale=2.0, seed=6), seeds[2:], rtol=1e-4, atol=1e-5)


def test_one_seed_one_clip_and_a_fresh_one_is_logged(model, caplog):
    assert torch.equal(generate(model), generate(model)) and not torch.equal(generate(model), generate(model, seed=8))
    with caplog.at_level("INFO"):
        fresh = generate(model, seed=-1)
    assert torch.equal(fresh, generate(model, seed=int(caplog.messages[-1].removeprefix("seed "))))


def test_neither_mode_nor_global_generator_moves(model):
    model.train()
    before = torch.get_rng_state()
    generate(model)
    assert model.training and torch.equal(torch.get_rng_state(), before)


def test_one_prompt_serves_all_items(model):
    audio = generate(model, PROMPTS[:1], batch_size=3)
    assert audio.shape[0] == 3 and not torch.equal(audio[0], audio[1])
    torch.testing.assert_close(audio, generate(model, PROMPTS[:1] * 3))


@pytest.mark.slow
def test_the_draws_follow_their_settings(model):
    likely = generate(model, temperature=0.0)
    assert torch.equal(likely, generate(model, temperature=0.0, seed=8))
    torch.testing.assert_close(generate(model, top_k=1), likely)
    torch.testing.assert_close(generate(model, top_p=1e-6), likely)
    assert not torch.equal(generate(model, top_p=0.5), generate(model))
    assert not torch.equal(generate(model, cfg_scale=5.0), generate(model))
    away = generate(model, cfg_scale=5.0, negative_conditioning=[{"prompt": "silence"}])
    assert not torch.equal(away, generate(model, cfg_scale=5.0))


# going on from audio


@pytest.mark.parametrize(("samples", "kept"), [(320, 10), (351, 10), (352, 11)])
def test_the_tokens_of_whole_frames_are_kept(model, samples, kept, monkeypatch):
    made = []
    decode = model.pretransform.model.bottleneck.decode_tokens
    monkeypatch.setattr(model.pretransform.model.bottleneck, "decode_tokens", lambda tokens: made.append(tokens) or decode(tokens))
    audio = generate(model, PROMPTS[:1], init_audio=(RATE, tone(samples)))
    given = model.pretransform.tokenize(tone(samples)[None, :, : kept * FRAME])
    assert audio.shape == (1, 1, 800)
    assert torch.equal(made[0][..., :kept], given) and made[0].shape[-1] == 25


def test_a_clip_for_all_items_or_one_for_each(model):
    clips = torch.stack([tone(320), tone(320).flip(-1)])
    assert generate(model, PROMPTS[:1], init_audio=(RATE, clips)).shape[0] == 2
    audio = generate(model, PROMPTS[:2], init_audio=(RATE, tone(320)))
    begun, rest = (part[1] - part[0] for part in audio.tensor_split([160], dim=-1))
    assert begun.std() < 0.1 * rest.std()  # the decoder hears a little of what follows
    with pytest.raises(ValueError, match=r"init_audio has shape \(2, 1, 320\), expected \(C, T\), or \(B, C, T\) with B = 1 or 3"):
        generate(model, PROMPTS, batch_size=3, init_audio=(RATE, clips))


def test_what_is_continued_may_be_of_another_rate_and_of_more_channels(model):
    audio = generate(model, PROMPTS[:1], init_audio=(2 * RATE, tone(640, channels=2)))
    torch.testing.assert_close(audio, generate(model, PROMPTS[:1], init_audio=(2 * RATE, tone(640))))


# the end


def test_progress_counts_steps(model):
    done = []
    generate(model, PROMPTS[:1], callback=lambda *each: done.append(each))
    assert done == [(step, done[-1][1]) for step in range(1, done[-1][1] + 1)]


def test_long_tokens_are_decoded_in_chunks_to_the_same_audio(model, monkeypatch):
    whole = generate(model, PROMPTS[:1], seconds=0.8)
    monkeypatch.setattr("stable_audio_tools.inference.long_audio.LONG_S", 0.3)
    monkeypatch.setattr("stable_audio_tools.inference.long_audio.CHUNK_S", 0.2)
    decode, lengths = model.pretransform.model.decode, []
    monkeypatch.setattr(model.pretransform.model, "decode", lambda x, **options: lengths.append(x.shape[-1]) or decode(x, **options))
    torch.testing.assert_close(generate(model, PROMPTS[:1], seconds=0.8), whole, rtol=1e-5, atol=1e-6)
    assert len(lengths) > 2 and max(lengths[1:]) < 0.8 * RATE / FRAME


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seconds": 0.0}, "seconds must be above 0, got 0.0"),
        ({"top_k": 5, "top_p": 0.5}, "give either top_k or top_p, not both"),
        ({"temperature": -1.0}, "temp must be 0"),
        ({"seed": [1, 2]}, "2 seeds for 3 items"),
        ({"init_audio": (RATE, torch.zeros(1, 31))}, "init_audio has 31 samples at 8000 Hz, a frame of tokens takes 32"),
        ({"init_audio": (RATE, torch.zeros(1, 800))}, "init_audio holds 0.1 s, and the whole is to be 0.1 s: nothing is left to make"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"negative_conditioning": PROMPTS}, "negative conditions have no effect with cfg_scale 1"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_told(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        generate(model, **arguments)
