"""The audio_dir dataset: exact crops, metadata, reproducible choices, replacement of bad files, and code only when allowed."""

import math
import pickle

import numpy as np
import pytest
import torch
from audio_files import make, signal, write

from stable_audio_tools.audio.io import load_audio, to_channels
from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.data.dataset import create_dataloader_from_config, parse_dataset_config
from stable_audio_tools.data.types import ItemKey

RATE, SIZE = 16000, 4000


def folder(root, count=6, seconds=1.0, suffix="wav"):
    for number in range(count):
        write(root / f"{number}.{suffix}", signal(seconds, RATE, 1, number), RATE)
    return root


def config(*roots, items=None, **options):
    datasets = [{"id": f"set {number}", "path": str(root), **(items or {})} for number, root in enumerate(roots)]
    return {"dataset_type": "audio_dir", "datasets": datasets, **options}


def dataset(*roots, channels=1, items=None, **options):
    made = parse_dataset_config(config(*roots, items=items, **options))
    return made.build(sample_size=SIZE, sample_rate=RATE, audio_channels=channels)


def visits(data, count=3, seed=0):
    return [data.visit(ItemKey(seed, visit, item)) for visit in range(count) for item in range(len(data))]


@pytest.mark.parametrize("kind, rate", [("wav", 16000), ("flac", 44100), ("ogg", 22050), ("mp3", 48000), ("opus", 24000)])
def test_crops_are_parts_of_the_file(tmp_path, kind, rate):
    path = make(tmp_path, kind, 2.3, rate)
    data = dataset(tmp_path, channels=1, exact_seconds=True)
    whole = to_channels(load_audio(path, sample_rate=RATE)[0], 1).clamp(-1, 1)
    starts = set()
    for sample in visits(data, 9):
        start = round(sample.metadata["seconds_start"] * RATE)
        starts.add(start)
        assert torch.equal(sample.audio, whole[:, start : start + SIZE])
        assert sample.valid_length == SIZE
        assert sample.metadata["timestamps"] == (start / whole.shape[1], (start + SIZE) / whole.shape[1])
        assert sample.metadata["seconds_total"] == pytest.approx(whole.shape[1] / RATE, abs=1e-4)
    assert len(starts) > 6


def test_the_metadata_of_a_clip(tmp_path):
    write(tmp_path / "in" / "a.wav", signal(2.3, 48000), 48000)
    (tmp_path / "in" / "a.json").write_text('{"caption": "a bell", "bpm": 90, "path": "ours wins"}')
    write(tmp_path / "in" / "b.wav", signal(2.3, 48000), 48000)
    first, second = visits(dataset(tmp_path, channels=2), 1)
    assert first.audio.shape == (2, SIZE) and first.audio.dtype == torch.float32
    meta = dict(first.metadata)
    start = meta.pop("timestamps")[0] * round(2.3 * RATE) / RATE
    assert meta == {
        "prompt": "a bell",
        "bpm": 90,
        "path": str(tmp_path / "in" / "a.wav"),
        "relpath": "in/a.wav",
        "dataset_id": "set 0",
        "sample_rate": RATE,
        "seconds_start": math.floor(start),
        "seconds_total": 3,
    }
    assert second.metadata["prompt"] == ""


def test_a_folder_without_captions_has_no_prompts(tmp_path):
    assert all("prompt" not in sample.metadata for sample in visits(dataset(folder(tmp_path)), 1))


def test_short_files_are_padded_and_the_first_crop_is_the_start(tmp_path):
    write(tmp_path / "a.wav", signal(0.1, RATE, 1), RATE)
    write(tmp_path / "b.wav", signal(1.0, RATE, 1), RATE)
    audio, metadata = next(iter(create_dataloader_from_config(config(tmp_path, random_crop=False), 2, SIZE, RATE, 1, 0, False)))
    assert [int(item["padding_mask"].sum()) for item in metadata] == [1600, SIZE]
    assert audio[0, :, 1600:].abs().max() == 0 < audio[0, :, :1600].abs().max()
    assert torch.equal(audio[1], load_audio(tmp_path / "b.wav", frames=SIZE)[0])
    assert [item["seconds_start"] for item in metadata] == [0, 0]
    assert [item["seconds_total"] for item in metadata] == [1, 1]


def test_a_clip_is_a_function_of_seed_visit_and_item(tmp_path):
    data, again = dataset(folder(tmp_path)), dataset(tmp_path)
    clips = {key: data.visit(key).audio for key in [ItemKey(0, 0, 1), ItemKey(1, 0, 1), ItemKey(0, 1, 1), ItemKey(0, 0, 2)]}
    for key, audio in clips.items():
        assert torch.equal(pickle.loads(pickle.dumps(again)).visit(key).audio, audio)
    assert len({float(audio.sum()) for audio in clips.values()}) == 4
    assert torch.equal(data[1].audio, clips[ItemKey(0, 0, 1)])
    with pytest.raises(IndexError):
        data[6]


def test_workers_serve_the_same(tmp_path):
    folder(tmp_path)
    passes = []
    for workers in (0, 2):
        loader = create_dataloader_from_config(config(tmp_path), 2, SIZE, RATE, 1, num_workers=workers, seed=3)
        passes.append([(audio, [item["timestamps"] for item in metadata]) for _ in range(2) for audio, metadata in loader])
        loader.close()
    for (audio, stamps), (other, other_stamps) in zip(*passes, strict=True):
        assert torch.equal(audio, other) and stamps == other_stamps


def test_polarity(tmp_path):
    folder(tmp_path, seconds=SIZE / RATE)
    plain = visits(dataset(tmp_path), 4)
    signs = {float((a.audio / b.audio).nanmedian()) for a, b in zip(plain, visits(dataset(tmp_path, phase_flip=True), 4), strict=True)}
    assert signs == {-1.0, 1.0}
    assert len({float(sample.audio.sum()) for sample in plain}) == 6


def test_loud_floats_are_limited(tmp_path):
    write(tmp_path / "a.wav", signal(1.0, RATE, 1) * 9, RATE, subtype="FLOAT")
    assert visits(dataset(tmp_path), 1)[0].audio.abs().max() == 1


def test_a_silent_place_is_left_for_another_in_the_same_file(tmp_path):
    frames = np.zeros((RATE * 4, 1), np.float32)
    frames[: RATE * 2] = signal(2.0, RATE, 1)
    write(tmp_path / "half.wav", frames, RATE)
    data = dataset(tmp_path)
    for sample in visits(data, 40):
        assert sample.audio.abs().max() > 1e-3 and not sample.faults
    served = visits(dataset(tmp_path, silence_threshold_db=None), 40)
    assert any(sample.audio.abs().max() < 1e-3 for sample in served)


def test_a_silent_start_without_random_crops_is_replaced_and_said(tmp_path):
    folder(tmp_path, 2)
    write(tmp_path / "2.wav", np.concatenate((np.zeros((SIZE, 1), np.float32), signal(1.0, RATE, 1))), RATE)
    sample = dataset(tmp_path, random_crop=False).visit(ItemKey(0, 0, 2))
    assert sample.metadata["relpath"] in ("0.wav", "1.wav")
    assert sample.faults[0].cause == "the crop is silent, the last one tried at 0.00 s"


@pytest.mark.parametrize("suffix", ["wav", "ogg", "mp3"])
@pytest.mark.slow
def test_when_every_file_is_gone_the_run_ends(tmp_path, suffix):
    loader = create_dataloader_from_config(config(folder(tmp_path, suffix=suffix)), 2, SIZE, RATE, 1, num_workers=1)
    for path in tmp_path.iterdir():
        path.unlink()
    with pytest.raises(ConfigError, match=rf"16 files in a row cannot be served; the first causes:\n.*\.{suffix}: no such file"):
        next(iter(loader))
    loader.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_files_that_go_bad_later_are_replaced_the_same_way_each_time_and_reported_once(tmp_path, caplog, workers):
    loader = create_dataloader_from_config(config(folder(tmp_path)), 2, SIZE, RATE, 1, num_workers=workers)
    (tmp_path / "1.wav").unlink()
    (tmp_path / "4.wav").write_bytes((tmp_path / "4.wav").read_bytes()[:9000])
    damaged = signal(1.0, RATE, 1, 5)
    damaged[:] = np.nan
    write(tmp_path / "5.wav", damaged, RATE, subtype="FLOAT")
    served = [item["relpath"] for _ in range(2) for _, metadata in loader for item in metadata]
    assert len(served) == 12 and set(served) <= {"0.wav", "2.wav", "3.wav"} | ({"4.wav"} & set(served))
    assert "no such file" in loader.faults[str(tmp_path / "1.wav")]
    assert "has changed" in loader.faults[str(tmp_path / "5.wav")]
    assert caplog.text.count("1.wav: no such file") == 1
    loader.close()
    again = create_dataloader_from_config(config(tmp_path), 2, SIZE, RATE, 1, num_workers=0)
    assert len(again.dataset) == 3  # looked over anew: 1 is gone, 4 cut, 5 not finite


def test_several_folders_and_weights(tmp_path):
    first, second = folder(tmp_path / "a", 4), folder(tmp_path / "b", 2)
    settings = config(first, second, drop_last=False)
    settings["datasets"][1]["weight"] = 3.0
    loader = create_dataloader_from_config(settings, 4, SIZE, RATE, 1, num_workers=0)
    served = [(item["dataset_id"], item["relpath"], item["timestamps"]) for _, metadata in loader for item in metadata]
    assert [name for name, *_ in sorted(served)] == ["set 0"] * 4 + ["set 1"] * 6
    assert len(set(served)) == 10  # the repeats are other crops


def test_two_ranks_serve_every_file_once(tmp_path):
    folder(tmp_path, 7)
    served = []
    for rank in (0, 1):
        loader = create_dataloader_from_config(config(tmp_path, drop_last=False), 2, SIZE, RATE, 1, 0, rank=rank, world_size=2)
        served += [item["relpath"] for _, metadata in loader for item in metadata]
    assert sorted(served) == [f"{number}.wav" for number in range(7)]


CODE = """
def get_custom_metadata(info, audio):
    assert info["padding_mask"].shape == audio.shape[-1:]
    name = info["relpath"]
    if name == "1.wav":
        return {"__reject__": True}
    if name == "2.wav" and MODE:
        return MODE()
    return {"prompt": "sound " + name, "peak": float(audio.abs().max())}
"""


@pytest.fixture
def module(tmp_path):
    def write_module(mode="None", code=CODE):
        path = tmp_path / "meta" / f"module_{abs(hash((mode, code)))}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"MODE = {mode}\n{code}")
        return str(path)

    return write_module


def test_code_needs_permission(tmp_path, module):
    settings = config(folder(tmp_path / "in"), items={"custom_metadata_module": module()})
    message = r"datasets\[0\]\.custom_metadata_module\n +runs Python code, which is off unless asked for .*\n.*--allow-code"
    with pytest.raises(ConfigError, match=message):
        create_dataloader_from_config(settings, 1, SIZE, RATE, 1, 0)
    settings["datasets"][0]["custom_metadata_module"] = "nowhere.py"
    with pytest.raises(ConfigError, match="no such file"):
        create_dataloader_from_config(settings, 1, SIZE, RATE, 1, 0, allow_code=True)


def test_code_gives_metadata_and_rejects(tmp_path, module):
    settings = config(folder(tmp_path / "in"), items={"custom_metadata_module": module()})
    loader = create_dataloader_from_config(settings, 1, SIZE, RATE, 1, num_workers=1, allow_code=True)
    items = [item for _, (item,) in loader]
    loader.close()
    assert len(items) == 6 and all(item["prompt"] == f"sound {item['relpath']}" and item["peak"] > 0 for item in items)
    assert "1.wav" not in {item["relpath"] for item in items}
    assert "rejected by" in loader.faults[str(tmp_path / "in" / "1.wav")]


@pytest.mark.parametrize(
    "mode, code, message",
    [
        ("lambda: 1 / 0", CODE, r"get_custom_metadata failed on .*2\.wav: ZeroDivisionError"),
        ("lambda: None or [1]", CODE, r"returned list for .*2\.wav; expected a dict"),
        ("None", "x = 1", r"defines no function get_custom_metadata"),
        ("None", "import nothing_like_this", "ModuleNotFoundError"),
    ],
)
def test_code_that_fails_ends_the_run_with_its_name(tmp_path, module, mode, code, message):
    path = module(mode, code)
    settings = config(folder(tmp_path / "in"), items={"custom_metadata_module": path})
    loader = create_dataloader_from_config(settings, 1, SIZE, RATE, 1, 0, allow_code=True)
    with pytest.raises(ConfigError, match=message) as error:
        list(loader)
    assert path in str(error.value)
