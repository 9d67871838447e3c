import math

import pytest
import torch

from stable_audio_tools.models.pretransforms.spectrogram import STFT, LogSpectrogramConfig, start_phases

RATE, LENGTH = 8000, 8192
TIME = torch.arange(LENGTH) / RATE


def build(**config):
    return LogSpectrogramConfig.model_validate({"type": "log_spectrogram", "config": {"channels": 1, **config}}).build(RATE)


def tones(waveform, frequencies):
    """(len(frequencies), 1, T): sines, or saws of all partials below 3.8 kHz, faded in and out."""
    rows = []
    for frequency in frequencies:
        partials = range(1, int(3800 / frequency) + 1) if waveform == "saw" else [1]
        rows.append(sum(torch.sin(2 * math.pi * frequency * k * TIME + k) / k for k in partials))
    audio = torch.stack(rows)[:, None]
    fade = (TIME / 0.02).clamp(max=1) * ((TIME[-1] - TIME) / 0.02).clamp(max=1)
    return 0.5 * audio / audio.abs().amax(-1, keepdim=True) * fade


def pitch(audio):
    """Frequency of the strongest partial, Hz, by a parabola through the logarithm of a padded spectrum."""
    spectrum = torch.fft.rfft(audio * torch.hann_window(LENGTH), n=8 * LENGTH).abs().log()
    peak = int(spectrum.argmax())
    left, middle, right = spectrum[peak - 1 : peak + 2].tolist()
    return (peak + 0.5 * (left - right) / (left - 2 * middle + right)) * RATE / (8 * LENGTH)


def amplitudes(module, latents):
    """(B, bins, frames) linear amplitudes that latents stand for."""
    return (latents * module.std + module.mean).exp() - module.params.floor


def convergence(module, latents, audio):
    """Share of the asked-for magnitudes that the audio misses, per item."""
    want, got = amplitudes(module, latents), amplitudes(module, module.encode(audio))
    return ((got - want).square().sum((1, 2)) / want.square().sum((1, 2))).sqrt()


@pytest.mark.parametrize("waveform", ["sine", "saw"])
def test_tones_keep_their_pitch_and_spectrum(waveform):
    module, notes = build(), [220 * 2 ** (i / 5) for i in range(11)]
    audio = tones(waveform, notes)
    latents = module.encode(audio)
    decoded = module.decode(latents)
    cents = [1200 * abs(math.log2(pitch(got[0]) / note)) for got, note in zip(decoded, notes, strict=True)]
    assert max(cents) < 3
    assert convergence(module, latents, decoded).max() < 0.03
    level = decoded.square().mean((1, 2)) / audio.square().mean((1, 2))
    assert level.sub(1).abs().max() < 0.01


def test_noise_and_silence_come_back_as_such():
    module = build()
    noise = 0.1 * torch.randn(4, 1, LENGTH)
    latents = module.encode(noise)
    assert convergence(module, latents, module.decode(latents)).max() < 0.2
    silence = module.encode(torch.zeros(1, 1, LENGTH))
    assert module.decode(silence).abs().max() < 1e-3


@pytest.mark.parametrize(("n_fft", "hop", "rate"), [(512, 128, 8000), (2048, 512, 44100), (256, 64, 16000), (64, 32, 8000)])
def test_a_full_scale_sine_has_amplitude_one_at_any_size(n_fft, hop, rate):
    module = build(n_fft=n_fft, hop_length=hop, mean=0.0, std=1.0)
    audio = torch.sin(2 * math.pi * (8 / n_fft) * torch.arange(16 * n_fft)).view(1, 1, -1)  # in the middle of bin 8
    latents = module.encode(audio)
    assert latents.shape == (1, n_fft // 2, 16 * n_fft // hop)
    middle = latents[0, :, latents.shape[-1] // 2]
    assert middle.argmax() == 8 and middle[8].exp() == pytest.approx(1 + module.params.floor, abs=1e-3)


def test_default_statistics_normalise_music_like_audio():
    fundamentals = [110.0, 138.6, 164.8, 220.0, 329.6]
    decay = torch.exp(-2 * (TIME % 0.25) / 0.25)
    chord = sum(torch.sin(2 * math.pi * f * k * TIME + f * k) / k for f in fundamentals for k in range(1, int(3900 / f)))
    audio = chord / chord.std() + 0.5 * decay * torch.randn(LENGTH)
    latents = build().encode(0.1 * (audio / audio.std()).view(1, 1, -1))
    assert abs(latents.mean()) < 1 and 0.5 < latents.std() < 1.6


def test_mean_and_std_may_differ_by_bin():
    plain, audio = build(n_fft=32, hop_length=8, mean=0.0, std=1.0), torch.randn(1, 1, 64)
    mean, std = [0.1 * i for i in range(16)], [1.0 + i for i in range(16)]
    module = build(n_fft=32, hop_length=8, mean=mean, std=std)
    want = (plain.encode(audio) - torch.tensor(mean)[:, None]) / torch.tensor(std)[:, None]
    torch.testing.assert_close(module.encode(audio), want)
    torch.testing.assert_close(module.decode(want), plain.decode(plain.encode(audio)), atol=1e-5, rtol=1e-5)


def test_equal_latents_give_equal_audio_alone_or_in_a_batch():
    module = build()
    latents = torch.randn(3, 256, 16)
    state = torch.get_rng_state()
    audio = module.decode(latents)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(module.decode(latents), audio)
    torch.testing.assert_close(module.decode(latents[1:2]), audio[1:2], atol=1e-4, rtol=0)


def test_channels_are_independent():
    stereo, mono, audio = build(channels=2), build(), 0.3 * torch.randn(2, 2, 1024)
    latents = stereo.encode(audio)
    assert torch.equal(latents[:, 256:], mono.encode(audio[:, 1:]))
    torch.testing.assert_close(stereo.decode(latents)[:, 1:], mono.decode(latents[:, 256:]), atol=1e-4, rtol=0)


def test_more_steps_find_better_phases_and_outliers_stay_bounded():
    audio = tones("saw", [300.0])
    latents = build().encode(audio)
    errors = [float(convergence(build(), latents, build(iterations=n).decode(latents))) for n in (0, 4, 32)]
    assert errors[0] > errors[1] > errors[2]
    assert float(convergence(build(), latents, build(momentum=0.0).decode(latents))) > errors[2]
    assert build().decode(torch.full((1, 256, 8), 1e4)).isfinite().all()


def test_start_phases_stay_exact_over_a_minute():
    exact = torch.randn(1, 4, 257, dtype=torch.float64).repeat(1, 700, 1)
    short, long = (start_phases(logs, STFT(512, 128, logs)) for logs in (exact.float(), exact))
    assert (short - long).abs().max() < 0.01


def test_a_single_frame_is_enough():
    module = build()
    assert module.decode(module.encode(0.1 * torch.randn(1, 1, 128))).shape == (1, 1, 128)


def test_half_precision_goes_in_and_out():
    module, audio = build(), 0.3 * torch.randn(1, 1, 1024)
    latents = module.encode(audio.bfloat16())
    assert latents.dtype == torch.bfloat16 and module.decode(latents).dtype == torch.bfloat16
    torch.testing.assert_close(latents.float(), module.encode(audio.bfloat16().float()), atol=0.05, rtol=0.01)
