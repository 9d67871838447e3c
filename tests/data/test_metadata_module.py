"""The user's own code for metadata: what it may return, how its failures are told, and that it runs only when allowed."""

import json
import multiprocessing

import numpy as np
import pytest
import torch
from audio_files import signal, write

from stable_audio_tools.audio.io import load_audio
from stable_audio_tools.cli.main import main
from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.data.dataset import create_dataloader_from_config, parse_dataset_config
from stable_audio_tools.data.metadata_module import custom_metadata, part_beside
from stable_audio_tools.data.needs import Need, check_needs
from stable_audio_tools.data.types import ItemKey

RATE, SIZE = 16000, 1600
INFO = {"path": "x.wav"}


@pytest.fixture
def folder(tmp_path):
    for number in range(3):
        write(tmp_path / "in" / f"{number}.wav", signal(0.5, RATE, 2, number), RATE)
    return tmp_path / "in"


@pytest.fixture
def module(tmp_path):
    def write_module(body, name="meta.py"):
        path = tmp_path / name
        path.write_text(f"import torch\n\ndef get_custom_metadata(info, audio):\n    {body}\n")
        return str(path)

    return write_module


def build(folder, module, channels=2, item=None, **options):
    datasets = [{"id": "a", "path": str(folder), "custom_metadata_module": module, **(item or {})}]
    config = parse_dataset_config({"dataset_type": "audio_dir", "datasets": datasets, **options})
    return config.build(sample_size=SIZE, sample_rate=RATE, audio_channels=channels)


def test_info_has_the_published_keys(folder, module):
    (folder / "0.txt").write_text("a bell")
    keys = "path, relpath, timestamps, seconds_start, seconds_total, padding_mask, sample_rate, load_time, prompt"
    body = f"assert {{*'{keys}'.split(', ')}} <= {{*info}}\n    return {{'mine': info['prompt'] + ' and more'}}"
    metadata = build(folder, module(body))[0].metadata
    assert metadata["mine"] == "a bell and more"
    assert not {"load_time", "padding_mask"} & metadata.keys()


def test_a_module_is_for_its_own_folder_alone(tmp_path, module):
    """Also where the path of one folder begins with that of another, or lies in it."""
    for name in ("in/0.wav", "in2/0.wav", "in/deep/0.wav"):
        write(tmp_path / name, signal(0.5, RATE, 2), RATE)
    datasets = [{"id": "a", "path": str(tmp_path / "in"), "custom_metadata_module": module("return {'mine': 1}")}]
    datasets += [{"id": name, "path": str(tmp_path / name)} for name in ("in2", "in/deep")]
    config = parse_dataset_config({"dataset_type": "audio_dir", "datasets": datasets})
    data = config.build(sample_size=SIZE, sample_rate=RATE, audio_channels=2)
    served = [(data[item].metadata["dataset_id"], "mine" in data[item].metadata) for item in range(len(data))]
    assert served == [("a", True), ("a", True), ("in2", False), ("in/deep", False)]


def test_an_answer_may_be_the_modules_own_constant(folder, module):
    path = module("return ANSWER\n\nANSWER = {'__reject__': False, 'prompt': 'a'}")
    data = build(folder, path)
    assert [data[0].metadata["prompt"], data[0].metadata["prompt"]] == ["a", "a"]


def test_modules_may_define_dataclasses(folder, tmp_path):
    path = tmp_path / "meta.py"
    code = "@dataclass\nclass A:\n    x: int\n\ndef get_custom_metadata(info, audio):\n    return {'x': A(3).x}\n"
    path.write_text(f"from __future__ import annotations\nfrom dataclasses import dataclass\n\n{code}")
    assert build(folder, str(path))[0].metadata["x"] == 3


def test_further_audio_is_the_same_part_with_the_same_polarity(folder, module):
    body = (
        "import soundfile\n    frames = soundfile.read(info['path'], dtype='float32')[0].T\n"
        "    return {'__audio__': {'stem': torch.from_numpy(frames.copy()) / 2, 'made': audio[:1] / 4}}"
    )
    data = build(folder, module(body), phase_flip=True)
    samples = [data.visit(ItemKey(0, visit, item)) for visit in range(8) for item in range(3)]
    assert len({sample.metadata["timestamps"] for sample in samples}) > 20
    assert {float((sample.audio / sample.metadata["stem"]).nanmedian()) for sample in samples} == {2.0}
    whole = load_audio(folder / "0.wav")[0]
    signs = set()
    for sample in samples:
        assert torch.equal(sample.metadata["stem"], sample.audio / 2)
        assert torch.equal(sample.metadata["made"], (sample.audio[:1] / 4).expand(2, -1))
        if sample.metadata["relpath"] == "0.wav":
            start = round(sample.metadata["timestamps"][0] * whole.shape[-1])
            signs.add(round(float((sample.metadata["stem"] * 2 / whole[:, start : start + SIZE]).nanmedian())))
    assert signs == {-1, 1}


def test_further_audio_is_brought_to_the_same_level(folder, module):
    body = (
        "import soundfile\n    return {'__audio__': {'stem': torch.from_numpy(soundfile.read(info['path'], dtype='float32')[0].T.copy())}}"
    )
    for sample in (build(folder, module(body), volume_norm="peak", volume_norm_param=[-20.0, 6.0])[item] for item in range(3)):
        torch.testing.assert_close(sample.metadata["stem"], sample.audio, rtol=1e-5, atol=1e-6)


def test_the_part_of_another_recording():
    ramp = torch.arange(100.0) / 100
    assert torch.equal(part_beside(ramp, 1, 30, 20), ramp[None, 30:50])
    assert torch.equal(part_beside(ramp, 2, 90, 20), torch.nn.functional.pad(ramp[90:], (0, 10)).repeat(2, 1))
    assert torch.equal(part_beside(ramp[:15], 1, 30, 20), torch.nn.functional.pad(ramp[:15], (0, 5))[None])
    assert part_beside(ramp * 9, 1, 30, 20).max() == 1
    with pytest.raises(ValueError, match="it ends after 100 samples, before the clip begins at 100; give one of the whole file"):
        part_beside(ramp, 1, 100, 20)


@pytest.mark.parametrize(
    "body, message",
    [
        ("return {'__audio__': [1]}", r"returned __audio__ for .*0\.wav that is no audio; expected a dict of floating-point tensors"),
        ("return {'__audio__': {'a': torch.ones(3, dtype=torch.int64)}}", "that is no audio"),
        ("return {'__audio__': {'a': torch.ones(3, 9, 9)}}", "that is no audio"),
        ("return {'__replace__': 5}", r"returned __replace__ for .*0\.wav that is no tensor \(C, T\)"),
        ("return {'__replace__': audio}", r"__replace__ is for stored latents; this dataset is of audio"),
        ("return None", r"returned NoneType for .*0\.wav; expected a dict"),
    ],
)
def test_answers_that_cannot_be_used_are_refused(folder, module, body, message):
    path = module(body)
    with pytest.raises(ConfigError, match=message) as error:
        build(folder, path)[0]
    assert path in str(error.value)


def test_channels_that_cannot_be_made_are_refused(module):
    with pytest.raises(ValueError, match="cannot make 3 channels of 5"):
        part_beside(torch.ones(5, 10), 3, 0, 10)


def test_recordings_of_whole_files_do_not_fit_trimmed_clips(folder, module):
    with pytest.raises(ConfigError, match="trim_silence and remove_silence move the clip"):
        build(folder, module("return {'__audio__': {'a': torch.ones(2, 8000)}}"), trim_silence="end")[0]


@pytest.mark.parametrize(
    "code, message",
    [
        (
            "def get_custom_metadata(info, audio):\n    return helper(info)\n\ndef helper(info):\n    x = 1\n    return info['no']\n",
            r"get_custom_metadata failed on x\.wav: KeyError: 'no'",
        ),
        ("\n\n\nimport nothing_like_this\n\n\n", "the module cannot be loaded: ModuleNotFoundError"),
        ("import os\nimport sys\n\n\n\nsys.exit(3)", "the module cannot be loaded: SystemExit: 3"),
        ("def get_custom_metadata(info, audio):\n\n\n\n\n    return ]\n", "the module cannot be loaded: SyntaxError"),
        ("def get_custom_metadata(info, audio):\n    import json\n\n\n\n    return json.loads('{')\n", "failed on x.wav: JSONDecodeError"),
    ],
)
def test_failures_name_the_users_own_line(tmp_path, code, message):
    path = tmp_path / "meta.py"
    path.write_text(code)
    line = 4 if "nothing" in code else 6
    with pytest.raises(ConfigError, match=message) as error:
        custom_metadata(str(path), INFO, torch.zeros(1, 8))
    assert str(error.value).startswith(f"{path}:{line}: ")


@pytest.fixture
def latents(tmp_path):
    """Two items of 8 frames of 3 channels, one of 5 real frames, as upstream stores them."""
    folder = tmp_path / "latents"
    folder.mkdir()
    for item, real in enumerate((8, 5)):
        np.save(folder / f"{item}.npy", np.full((3, 8), item + 1, np.float32))
        mask = [1] * real + [0] * (8 - real)
        stored = {"seconds_start": 0, "seconds_total": 4, "padding_mask": mask, "prompt": "a", "prompts": ["a", "b"], "bpm": 90}
        (folder / f"{item}.json").write_text(json.dumps(stored))
    return folder


def stored(folder, **item):
    datasets = [{"id": "a", "path": str(folder), **item}]
    config = {"dataset_type": "pre_encoded", "datasets": datasets, "latent_crop_length": 6}
    return parse_dataset_config(config).build(sample_size=SIZE, sample_rate=RATE, audio_channels=2)


@pytest.mark.parametrize(
    "answer, value, length",
    [
        ("{}", torch.full((3, 6), 2.0), 5),
        ("{'__replace__': None}", torch.full((3, 6), 2.0), 5),
        ("{'__replace__': audio * 2}", torch.full((3, 6), 4.0), 5),
        ("{'__replace__': torch.ones(3, 9).double()}", torch.ones(3, 6), 6),
        ("{'__replace__': torch.ones(3, 2)}", torch.tensor([1.0, 1, 0, 0, 0, 0]).expand(3, 6), 2),
    ],
)
def test_other_latents_stand_in_for_stored_ones(latents, module, answer, value, length):
    body = f"assert info['latent_filename'].endswith('npy') and info['latent_crop_length'] == 6\n    return {answer}"
    sample = stored(latents, custom_metadata_module=module(body))[1]
    assert torch.equal(sample.audio, value) and sample.audio.dtype == torch.float32 and sample.valid_length == length
    assert "__replace__" not in sample.metadata


@pytest.mark.parametrize(
    "answer, message",
    [
        ("{'__replace__': torch.ones(4, 6)}", r"__replace__ of .* has 4 channels, and the stored latents 3"),
        ("{'__audio__': {'a': torch.ones(6)}}", "__audio__ is for datasets of audio"),
    ],
)
def test_other_latents_must_fit(latents, module, answer, message):
    with pytest.raises(ConfigError, match=message):
        stored(latents, custom_metadata_module=module(f"return {answer}"))[0]


def test_prompts_of_stored_items_are_drawn_anew(latents):
    data = stored(latents, prompts={"templates": ["{prompt}, {bpm} bpm"]})
    assert {data.visit(ItemKey(0, visit, 0)).metadata["prompt"] for visit in range(20)} == {"a, 90 bpm", "b, 90 bpm"}
    check_needs(data, [Need("bpm", ("bpm",), "a number")])
    with pytest.raises(ConfigError, match='2 of 2 items have no "mood"'):
        check_needs(data, [Need("mood", ("mood",))])


def _first(data, results):
    results.put(data[0].metadata["prompt"])


@pytest.mark.slow
@pytest.mark.parametrize("start", ["spawn", "fork"])
def test_it_works_in_processes_of_any_kind(folder, module, start):
    data = build(folder, module("return {'prompt': 'from ' + info['relpath']}"))
    assert data[1].metadata["prompt"] == "from 1.wav"  # loaded here before, which must not keep it from being sent
    context = multiprocessing.get_context(start)
    results = context.Queue()
    process = context.Process(target=_first, args=(data, results))
    process.start()
    assert results.get(timeout=120) == "from 0.wav"
    process.join()


@pytest.mark.parametrize("kind", ["audio_dir", "pre_encoded", "wds", "s3"])
def test_a_config_from_elsewhere_runs_no_code_without_permission(folder, tmp_path, kind, capsys):
    """Neither the loader, nor a check of config and data, nor a training touches the module; each says what to do instead or passes."""
    canary = tmp_path / "canary"
    code = tmp_path / "evil.py"
    code.write_text(
        f"open({str(canary)!r}, 'w')\n\ndef get_custom_metadata(info, audio):\n    open({str(canary)!r}, 'w')\n    return {{}}\n"
    )
    place = "s3_path" if kind == "s3" else "path"
    where = "s3://nowhere-at-all/x" if kind == "s3" else str(folder)
    document = {"dataset_type": kind, "datasets": [{"id": "a", place: where, "custom_metadata_module": str(code)}]}
    with pytest.raises(ConfigError, match=r"runs Python code, which is off unless asked for(.|\n)*--allow-code"):
        create_dataloader_from_config(document, 1, SIZE, RATE, 2, 0)
    config = tmp_path / "data.json"
    config.write_text(json.dumps(document))
    assert main(["check", str(config)]) == 0
    assert main(["train", "--dataset-config", str(config), "--save-dir", str(tmp_path / "runs"), "--max-steps", "1"]) == 2
    if kind == "audio_dir":
        assert main(["check", str(config), "--data"]) == 0
    assert not canary.exists()
    assert "--allow-code" in capsys.readouterr().err


def test_a_prompt_is_words_whatever_they_look_like(folder, tmp_path):
    """Captions, tags and templates are data: braces, dunders and shell text in them stay what they are."""
    text = "{__class__.__init__} $(touch canary) {0} %s `id`"
    (folder / "0.txt").write_text(text)
    item = {"id": "a", "path": str(folder), "prompts": {"templates": ["{prompt}"]}}
    config = parse_dataset_config({"dataset_type": "audio_dir", "datasets": [item]})
    assert config.build(sample_size=SIZE, sample_rate=RATE, audio_channels=2)[0].metadata["prompt"] == text
