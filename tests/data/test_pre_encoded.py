"""The pre_encoded dataset over upstream's layout of `.npy` and `.json`: crops, times, masks, lengths, bad files, and configs."""

import json
import os
import pickle

import numpy as np
import pytest
import torch

from stable_audio_tools.cli.main import main
from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.data.dataset import create_dataloader_from_config, parse_dataset_config
from stable_audio_tools.data.types import ItemKey

RATE, RATIO, CHANNELS = 8000, 16, 4
LATENTS = {
    "dataset_type": "pre_encoded",
    "datasets": [{"id": "latents", "path": "/latents"}],
    "latent_crop_length": 512,
    "min_length_sec": 1,
    "max_length_sec": 90.5,
    "random_crop": True,
    "latent_extension": "npy",
    "drop_last": False,
}


def ramp(frames, channels=CHANNELS, offset=0):
    """(C, T) that says at each place which frame it is."""
    return (offset + np.arange(frames, dtype=np.float32)[None] + 1000 * np.arange(channels, dtype=np.float32)[:, None]).astype(np.float32)


def item(folder, name, latents, *, real=None, **metadata):
    """A clip as upstream stores it."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / f"{name}.npy", latents)
    frames = latents.shape[1]
    mask = [1] * (frames if real is None else real) + [0] * (0 if real is None else frames - real)
    stored = {
        "padding_mask": mask,
        "seconds_start": 2,
        "seconds_total": 40,
        "timestamps": [0.05, 0.1],
        "prompt": f"clip {name}",
        **metadata,
    }
    (folder / f"{name}.json").write_text(json.dumps(stored))


def details(folder):
    model = {"downsampling_ratio": RATIO, "latent_dim": CHANNELS}
    (folder / "details.json").write_text(
        json.dumps({"model_config": {"sample_rate": RATE, "model": model}, "args": {"ckpt_path": "vae.ckpt"}})
    )


def config(*roots, items=None, **options):
    datasets = [{"id": f"set {number}", "path": str(root), **(items or {})} for number, root in enumerate(roots)]
    return {"dataset_type": "pre_encoded", "datasets": datasets, **options}


def dataset(*roots, **options):
    return parse_dataset_config(config(*roots, **options)).build(sample_size=64 * RATIO, sample_rate=RATE)


def test_items_are_served_whole_with_their_metadata(tmp_path):
    item(tmp_path / "0", "000000", ramp(20), bpm=90, path="/audio/a.wav")
    item(tmp_path / "1", "000001", ramp(20).astype(np.float16), real=7, seconds_start=0)
    first, second = (dataset(tmp_path)[index] for index in range(2))
    assert torch.equal(first.audio, torch.from_numpy(ramp(20))) and first.valid_length == 20
    assert first.metadata["prompt"] == "clip 000000" and first.metadata["bpm"] == 90 and first.metadata["path"] == "/audio/a.wav"
    assert first.metadata["latent_filename"] == str(tmp_path / "0" / "000000.npy") and first.metadata["dataset_id"] == "set 0"
    assert (first.metadata["seconds_start"], first.metadata["seconds_total"], first.metadata["timestamps"]) == (2, 40, (0.05, 0.1))
    assert second.audio.dtype == torch.float32 and second.valid_length == 7


def test_masks_of_batches_are_bool_and_exact_and_shorter_items_are_padded(tmp_path):
    for number, (frames, real) in enumerate([(20, 20), (20, 3), (9, 9), (5, 2)]):
        item(tmp_path, str(number), ramp(frames), real=real)
    loader = create_dataloader_from_config(config(tmp_path), 4, 64 * RATIO, RATE, num_workers=0, shuffle=False)
    latents, metadata = next(iter(loader))
    assert latents.shape == (4, CHANNELS, 20)
    for row, m, (frames, real) in zip(latents, metadata, [(20, 20), (20, 3), (9, 9), (5, 2)], strict=True):
        assert m["padding_mask"].dtype == torch.bool and m["padding_mask"].tolist() == [frame < real for frame in range(20)]
        assert torch.equal(row[:, :frames], torch.from_numpy(ramp(frames))) and not row[:, frames:].any()


@pytest.mark.slow
def test_random_crops_stay_on_the_audio_and_say_where_they_start(tmp_path):
    item(tmp_path, "0", ramp(1000), real=900, seconds_start=0, seconds_total=2, timestamps=[0.0, 0.9])
    details(tmp_path)
    data = dataset(tmp_path, latent_crop_length=100, random_crop=True, exact_seconds=True)
    starts = set()
    for visit in range(2000):
        sample = data.visit(ItemKey(0, visit, 0))
        start = int(sample.audio[0, 0])
        starts.add(start)
        assert torch.equal(sample.audio, torch.from_numpy(ramp(1000)[:, start : start + 100])) and sample.valid_length == 100
        assert sample.metadata["seconds_start"] == start * RATIO / RATE and sample.metadata["latent_crop_start"] == start
        assert sample.metadata["timestamps"] == pytest.approx((start / 1000, (start + 100) / 1000))
    assert min(starts) <= 5 and max(starts) >= 795 and max(starts) <= 800  # the last one ends with the audio
    rounded = dataset(tmp_path, latent_crop_length=100, random_crop=True)
    seconds = {
        (int(s.audio[0, 0]) * RATIO // RATE, s.metadata["seconds_start"]) for s in (rounded.visit(ItemKey(0, v, 0)) for v in range(200))
    }
    assert seconds == {(0, 0), (1, 1)}


def test_without_random_crop_it_is_the_start(tmp_path):
    item(tmp_path, "0", ramp(50))
    sample = dataset(tmp_path, latent_crop_length=10).visit(ItemKey(0, 3, 0))
    assert torch.equal(sample.audio, torch.from_numpy(ramp(10))) and sample.metadata["seconds_start"] == 2


def test_random_crops_need_to_know_what_a_frame_is(tmp_path):
    item(tmp_path, "0", ramp(50))
    with pytest.raises(ConfigError, match=r"samples_per_frame\n(.|\n)*seconds_start is not known(.|\n)*downsampling ratio"):
        dataset(tmp_path, latent_crop_length=10, random_crop=True)
    assert dataset(tmp_path, latent_crop_length=10, random_crop=True, samples_per_frame=RATIO)
    details(tmp_path)
    with pytest.raises(ConfigError, match=r"samples_per_frame(.|\n)*says that a frame has 16 samples"):
        dataset(tmp_path, samples_per_frame=32)


def test_bounds_of_length_choose_items_and_no_other_stands_in(tmp_path):
    for number, seconds in enumerate((1, 5, 30, 80)):
        item(tmp_path, str(number), ramp(10), seconds_total=seconds)
    loader = create_dataloader_from_config(
        config(tmp_path, min_length_sec=5, max_length_sec=30), 2, 64 * RATIO, RATE, num_workers=0, shuffle=True
    )
    for _ in range(3):
        (_, metadata), *others = list(loader)
        assert not others and sorted(m["seconds_total"] for m in metadata) == [5, 30]
    with pytest.raises(ConfigError, match=r"datasets\[0\]\.path(.|\n)*none of 4 items is between min_length_sec and max_length_sec"):
        dataset(tmp_path, min_length_sec=100)


def test_several_folders_with_weights(tmp_path):
    for number in range(4):
        item(tmp_path / "a", str(number), ramp(10, offset=100 * number))
        item(tmp_path / "b", str(number), ramp(10, offset=-100 * number - 100))
    document = config(tmp_path / "a", tmp_path / "b")
    document["datasets"][1]["weight"] = 0.5
    loader = create_dataloader_from_config(document, 2, 64 * RATIO, RATE, num_workers=0)
    seen = [float(row[0, 0]) for _ in range(2) for latents, _ in loader for row in latents]
    assert sorted(seen) == sorted([100.0 * n for n in range(4)] * 2 + [-100.0 * n - 100 for n in range(4)])


def test_a_loader_goes_on_where_it_was_with_other_workers(tmp_path):
    for number in range(9):
        item(tmp_path, str(number), ramp(30, offset=100 * number))
    options = {"random_crop": True, "latent_crop_length": 8, "samples_per_frame": RATIO}
    args = (config(tmp_path, **options), 2, 64 * RATIO, RATE, 2)
    uninterrupted = create_dataloader_from_config(*args, 0)
    whole = [latents for _ in range(2) for latents, _ in uninterrupted]
    first = create_dataloader_from_config(*args, 0)
    begun = [latents for _, (latents, _) in zip(range(3), first, strict=False)]
    second = create_dataloader_from_config(*args, 2)
    second.load_state_dict({**first.state_dict(), "position": 6})
    rest = [latents for _ in range(2) for latents, _ in second]
    assert all(torch.equal(a, b) for a, b in zip(whole, [*begun, *rest], strict=True))
    second.close()
    pickle.loads(pickle.dumps(second.dataset))  # as spawn does


def test_bad_files_are_listed_with_causes_and_never_served(tmp_path, caplog):
    for number in range(3):
        item(tmp_path, f"good{number}", ramp(10))
    item(tmp_path, "wide", ramp(10, channels=5))
    item(tmp_path, "flat", np.zeros(10, np.float32)[None, None])
    item(tmp_path, "text", np.array([["x"]]))
    item(tmp_path, "short_mask", ramp(10), padding_mask=[1, 1])
    item(tmp_path, "silent", ramp(10), real=0)
    item(tmp_path, "cut", ramp(10))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-8])
    (tmp_path / "empty.npy").write_bytes(b"")
    item(tmp_path, "no_metadata", ramp(10))
    (tmp_path / "no_metadata.json").unlink()
    item(tmp_path, "bad_metadata", ramp(10))
    (tmp_path / "bad_metadata.json").write_text("{")
    canary = tmp_path / "canary"
    np.save(tmp_path / "pickle.npy", np.array([[_Touch(str(canary))]], dtype=object), allow_pickle=True)
    (tmp_path / "pickle.json").write_text("{}")
    data = dataset(tmp_path)
    assert {data[index].metadata["prompt"] for index in range(len(data))} == {f"clip good{n}" for n in range(3)}
    causes = {os.path.basename(fault.path).removesuffix(".npy"): fault.cause for fault in data.folders[0].bad}
    expected = {
        "wide": "5 channels",
        "flat": "shape (1, 1, 10)",
        "text": "<U1",
        "short_mask": "no list of 10 numbers",
        "cut": "cut off: 152 of 160",
        "silent": "calls no frame real",
        "empty": "no NumPy array",
        "no_metadata": "cannot be read",
        "bad_metadata": "no JSON",
        "pickle": "object",
    }
    assert causes.keys() == expected.keys()
    assert all(text in causes[name] for name, text in expected.items()), causes
    assert "10 of 13 items cannot be used" in caplog.text and not canary.exists()


class _Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_what_goes_bad_later_is_replaced_and_named(tmp_path):
    for number in range(6):
        item(tmp_path, str(number), ramp(10))
    data = dataset(tmp_path)
    (tmp_path / "2.npy").unlink()
    bad = ramp(10)
    bad[1, 3] = np.nan
    np.save(tmp_path / "4.npy", bad)
    for number, cause in ((2, "cannot be read"), (4, "not finite")):
        sample = data.visit(ItemKey(0, 0, number))
        assert sample.faults and sample.faults[0].path.endswith(f"{number}.npy") and cause in sample.faults[0].cause
        assert torch.equal(sample.audio, torch.from_numpy(ramp(10)))
    for number in range(6):
        (tmp_path / f"{number}.npy").unlink(missing_ok=True)
    with pytest.raises(ConfigError, match="16 files in a row cannot be served"):
        data.visit(ItemKey(0, 0, 1))


def test_a_list_of_files_names_what_is_read_and_stays_in_the_folder(tmp_path):
    for name in ("a", "b", "c"):
        item(tmp_path / "latents", name, ramp(10))
    item(tmp_path, "outside", ramp(10))
    (tmp_path / "latents" / "filelist.txt").write_text("c.npy\na.npy\n")
    assert [dataset(tmp_path / "latents")[index].metadata["prompt"] for index in range(2)] == ["clip c", "clip a"]
    (tmp_path / "latents" / "filelist.txt").write_text("c.npy\n../outside.npy\n")
    with pytest.raises(ConfigError, match=r"line 2 names a file outside of the folder"):
        dataset(tmp_path / "latents")


def test_stored_tokens_stay_whole_numbers(tmp_path):
    item(tmp_path, "0", np.arange(30, dtype=np.int32).reshape(3, 10))
    sample = dataset(tmp_path)[0]
    assert sample.audio.dtype == torch.int64 and torch.equal(sample.audio, torch.arange(30).reshape(3, 10))


def test_the_user_s_code_sees_the_metadata_and_may_reject(tmp_path):
    for number in range(4):
        item(tmp_path / "latents", str(number), ramp(10), bpm=number)
    module = tmp_path / "code.py"
    module.write_text("def get_custom_metadata(info, audio):\n    return {'twice': 2 * info['bpm'], '__reject__': info['bpm'] == 3}\n")
    document = config(tmp_path / "latents", items={"custom_metadata_module": str(module)})
    with pytest.raises(ConfigError, match=r"custom_metadata_module(.|\n)*--allow-code"):
        create_dataloader_from_config(document, 4, 64 * RATIO, RATE)
    loader = create_dataloader_from_config(document, 4, 64 * RATIO, RATE, num_workers=0, shuffle=False, allow_code=True)
    _, metadata = next(iter(loader))
    assert [m["twice"] for m in metadata[:3]] == [0, 2, 4] and metadata[3]["bpm"] < 3


def test_folders_of_two_encoders_are_refused(tmp_path):
    item(tmp_path / "a", "0", ramp(10))
    item(tmp_path / "b", "0", ramp(10, channels=8))
    with pytest.raises(ConfigError, match=r"datasets\[1\]\.path\n(.|\n)*latents of 8 channels, where the first folder has latents of 4"):
        dataset(tmp_path / "a", tmp_path / "b")
    item(tmp_path / "c", "0", ramp(10))
    details(tmp_path / "c")
    with pytest.raises(ConfigError, match=r"made of audio at 8000 Hz, and the model has 44100 Hz"):
        parse_dataset_config(config(tmp_path / "c")).build(sample_size=1024, sample_rate=44100)


@pytest.mark.parametrize(
    "document, message",
    [
        ({**LATENTS, "latent_crop_lenght": 3}, r'did you mean "latent_crop_length"'),
        ({**LATENTS, "min_length_sec": 100}, r"min_length_sec 100 is above max_length_sec 90.5(.|\n)*exchange them"),
        ({**LATENTS, "datasets": LATENTS["datasets"] * 2}, r"datasets\[1\]\.id\n(.|\n)*another dataset has this id"),
    ],
)
def test_problems_of_a_config_are_named_with_their_fix(document, message):
    with pytest.raises(ConfigError, match=message):
        parse_dataset_config(document)


def test_every_published_key_is_kept(tmp_path, capsys):
    assert json.loads(json.dumps(parse_dataset_config(LATENTS).model_dump(exclude_unset=True))) == LATENTS
    path = tmp_path / "data.json"
    path.write_text(json.dumps(LATENTS))
    assert main(["check", str(path)]) == 0
    assert "good dataset config" in capsys.readouterr().out


def test_folders_that_hold_nothing_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no latents in this folder(.|\n)*pre-encode makes such a folder"):
        dataset(tmp_path)
    with pytest.raises(ConfigError, match="cannot list the folder: No such file"):
        dataset(tmp_path / "missing")


def test_check_says_what_is_there(tmp_path, capsys):
    for number in range(3):
        item(
            tmp_path / "latents", str(number), 2.0 * torch.randn(CHANNELS, 500 + 250 * number).numpy(), **{"prompt": "" if number else "x"}
        )
    bad = ramp(10)
    bad[0, 0] = np.inf
    item(tmp_path / "latents", "infinite", bad)
    (tmp_path / "latents" / "cut.npy").write_bytes(b"\x93NUMPY")
    details(tmp_path / "latents")
    path = tmp_path / "data.json"
    path.write_text(json.dumps(config(tmp_path / "latents")))
    assert main(["check", "--data", str(path)]) == 0
    out = capsys.readouterr().out
    assert (
        "3 of 5 items can be used" in out and "latents of 4 channels, made by vae.ckpt" in out and "frames: 500 to 1000, median 750" in out
    )
    assert "length 1.00 to 2.00 s" in out and "infinite.npy: not finite" in out and "cut.npy: no NumPy array" in out
    assert main(["check", "--data", "--json", str(path)]) == 0
    report = json.loads(capsys.readouterr().out)[0]["data"]["folders"][0]
    assert report["files"] == 3 and report["captioned"] == 1 and report["deviation"] == pytest.approx(2, rel=0.05)
    assert report["hours"] == pytest.approx((500 + 750 + 1000) * RATIO / RATE / 3600)
