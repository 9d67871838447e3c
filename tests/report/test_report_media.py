"""What is embedded: small and playable files, the last and first step before all others, and never twice."""

import base64
import io
import itertools

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from stable_audio_tools.audio.spectrogram import plot_area, save_spectrogram
from stable_audio_tools.report import media as media_module
from stable_audio_tools.report.demos import Clip, DemoStep
from stable_audio_tools.report.media import FLAC_BYTES, WHOLE, MediaCache, choose_embedded, encode, read_plot_area


def noise(seconds: float, channels: int = 2, rate: int = 44100) -> np.ndarray:
    return (0.2 * np.random.default_rng(0).standard_normal((int(seconds * rate), channels))).astype(np.float32)


def decoded(media) -> tuple[np.ndarray, int]:
    return soundfile.read(io.BytesIO(base64.b64decode(media.base64)), always_2d=True)


def test_a_small_sound_is_embedded_as_it_is(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(0.2), 44100)
    media = encode(tmp_path / "a.wav")
    assert (media.mime, media.lossy) == ("audio/wav", False)
    assert base64.b64decode(media.base64) == (tmp_path / "a.wav").read_bytes()


def test_a_larger_sound_becomes_flac_without_loss(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(2), 44100)
    media = encode(tmp_path / "a.wav")
    assert (media.mime, media.lossy) == ("audio/flac", False)
    np.testing.assert_array_equal(decoded(media)[0], soundfile.read(tmp_path / "a.wav")[0])


def test_a_long_sound_becomes_mp3_and_says_that_it_lost_something(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(6), 44100)
    media = encode(tmp_path / "a.wav")
    assert (media.mime, media.lossy) == ("audio/mpeg", True)
    assert len(media.base64) < FLAC_BYTES
    audio, rate = decoded(media)
    assert rate == 44100
    assert len(audio) / rate == pytest.approx(6, abs=0.1)


def test_a_rate_that_mp3_does_not_know_stays_flac(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(3, rate=96000), 96000)
    assert encode(tmp_path / "a.wav").mime == "audio/flac"


def test_pictures_become_smaller_and_keep_their_size_in_pixels(tmp_path):
    save_spectrogram(torch.randn(1, 8000), 8000, tmp_path / "a.png")
    media = encode(tmp_path / "a.png")
    content = base64.b64decode(media.base64)
    assert media.mime == "image/webp"
    assert len(content) < (tmp_path / "a.png").stat().st_size / 3
    with Image.open(io.BytesIO(content)) as image:
        assert image.size == (640, 288)


@pytest.mark.parametrize("name", ["a.wav", "a.png", "a.svg", "a.exe"])
@pytest.mark.parametrize("content", [b"", b"RIFF\x00\x00", b"\x89PNG\r\n\x1a\n", b"<svg onload=alert(1)>"])
def test_what_is_no_sound_or_picture_is_not_embedded(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert encode(tmp_path / name) is None


def test_a_half_written_file_is_embedded_once_it_is_whole(tmp_path):
    path, cache = tmp_path / "a.png", MediaCache()
    save_spectrogram(torch.randn(1, 8000), 8000, path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert cache.get(path) is None
    path.write_bytes(content)
    assert cache.get(path) is not None


def test_plot_area_is_read_where_the_file_has_one(tmp_path):
    save_spectrogram(torch.randn(1, 800), 8000, tmp_path / "a.png")
    assert read_plot_area(tmp_path / "a.png") == pytest.approx(plot_area(640, 288), abs=1e-4)
    Image.new("RGB", (4, 4)).save(tmp_path / "b.png")
    (tmp_path / "c.png").write_bytes(b"no picture")
    assert read_plot_area(tmp_path / "b.png") == read_plot_area(tmp_path / "c.png") == WHOLE


def make_steps(folder, count: int, clips: int = 1, size: int = 3000) -> list[DemoStep]:
    """Steps of clips that take 4/3 of `size` bytes each, all different."""
    steps = []
    for step in range(count):
        paths = [folder / f"{step}_{i}.wav" for i in range(clips)]
        for i, path in enumerate(paths):
            soundfile.write(path, np.random.default_rng((step, i)).standard_normal((size - 44) // 2) * 0.1, 8000)
        steps.append(DemoStep(step, [Clip(step, path.name, "generated", "g", "p", (), (), path, None, None) for path in paths]))
    return steps


def chosen_steps(steps: list[DemoStep], budget: int, cache: MediaCache | None = None) -> list[int]:
    chosen = choose_embedded(steps, cache or MediaCache(), budget)
    return [demo.step for demo in steps if demo.clips[0].audio in chosen]


def test_everything_is_embedded_while_there_is_room(tmp_path):
    steps = make_steps(tmp_path, 7)
    assert chosen_steps(steps, 1 << 20) == list(range(7))
    assert chosen_steps([], 1 << 20) == []


def test_last_and_first_come_first_then_even_spacing(tmp_path):
    steps = make_steps(tmp_path, 20)
    seen = [chosen_steps(steps, n * 4000) for n in range(21)]
    assert seen[:3] == [[], [19], [0, 19]]
    assert seen[10] == [0, 4, 8, 12, 16, 19]
    assert seen[20] == list(range(20))
    for fewer, more in itertools.pairwise(seen):
        assert set(fewer) <= set(more)


def test_of_a_step_that_is_too_large_the_leading_clips_are_embedded(tmp_path):
    steps = make_steps(tmp_path, 2, clips=5)
    chosen = choose_embedded(steps, MediaCache(), 3 * 4000)
    assert chosen == {clip.audio for clip in steps[1].clips[:3]}


def test_a_growing_run_never_encodes_an_old_step_again(tmp_path, monkeypatch):
    steps, cache, encoded = make_steps(tmp_path, 40), MediaCache(), []
    original = media_module.encode
    monkeypatch.setattr(media_module, "encode", lambda path: encoded.append(path) or original(path))
    for count in range(1, 41):
        chosen = choose_embedded(steps[:count], cache, 6 * 4000)
        cache.keep_only(chosen)
        assert all(cache.get(path) for path in chosen)
    assert len(encoded) == len(set(encoded)) <= 40


def test_equal_files_take_room_once(tmp_path):
    steps = make_steps(tmp_path, 6)
    for demo in steps:
        demo.clips[0].audio.write_bytes(steps[0].clips[0].audio.read_bytes())
    assert chosen_steps(steps, 4000) == list(range(6))
