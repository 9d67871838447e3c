"""Metadata that conditioners read and items lack is told before training, with counts and names."""

import json

import pytest
from audio_files import signal, write

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.data.dataset import parse_dataset_config
from stable_audio_tools.data.needs import Need, check_needs

RATE, SIZE = 16000, 1600


@pytest.fixture
def folder(tmp_path):
    """Five clips; 0, 1, 2 with a tempo, which is a text in 2."""
    for number in range(5):
        write(tmp_path / f"{number}.wav", signal(0.2, RATE, 1, number), RATE)
    for number, bpm in enumerate((90, 99.5, "fast")):
        (tmp_path / f"{number}.json").write_text(json.dumps({"bpm": bpm, "prompt": "a"}))
    return tmp_path


def build(folder, **item):
    config = {"dataset_type": "audio_dir", "datasets": [{"id": "a", "path": str(folder), **item}]}
    return parse_dataset_config(config).build(sample_size=SIZE, sample_rate=RATE, audio_channels=1)


def refusal(dataset, *needs, **options):
    with pytest.raises(ConfigError) as error:
        check_needs(dataset, needs, **options)
    return [(problem.message, problem.fix) for problem in error.value.problems]


def test_missing_and_wrong_values_are_counted_and_named(folder):
    (lacking, fix), (wrong, _) = refusal(build(folder), Need("tempo", ("bpm",), "a number"))
    assert lacking == '2 of 5 items have no "bpm", which the conditioner "tempo" reads: 3.wav, 4.wav'
    assert "default_keys.tempo" in fix and "path_pattern" in fix
    assert wrong == '1 of 5 items have no number as "bpm", which the conditioner "tempo" needs: 2.wav has "fast"'


def test_a_key_that_no_item_has_is_likely_a_slip(folder):
    ((message, fix),) = refusal(build(folder), Need("bmp", ("bmp", "tempo")))
    assert message == '5 of 5 items have no "bmp" or "tempo", which the conditioner "bmp" reads: 0.wav, 1.wav, 2.wav and others'
    assert fix.startswith('did you mean "bpm"?')


def test_what_every_item_has_is_no_problem(folder):
    needs = [Need("seconds_total", ("seconds_total",), "a number"), Need("prompt", ("prompt",), "text"), Need("x", ("x", "relpath"))]
    check_needs(build(folder), needs)
    ((message, _),) = refusal(build(folder), Need("whole", ("bpm", "sample_rate"), "a whole number"))
    assert message.startswith('2 of 5 items have no whole number as "bpm"') and "1.wav has 99.5, 2.wav" in message


def test_a_folder_without_captions_lacks_prompts_unless_templates_make_them(folder):
    for path in folder.glob("*.json"):
        path.unlink()
    ((message, _),) = refusal(build(folder), Need("prompt", ("prompt",), "text"))
    assert message.startswith('5 of 5 items have no "prompt"')
    check_needs(build(folder, path_pattern="{n}", prompts={"templates": ["number {n}"]}), [Need("prompt", ("prompt",), "text")])


def test_sources_of_the_config_count(folder):
    check_needs(build(folder, path_pattern="{n}"), [Need("n", ("n",), "a whole number")])


def test_items_that_code_describes_are_tried_only_where_code_may_run(folder, tmp_path):
    module = tmp_path / "meta.py"
    module.write_text("def get_custom_metadata(info, audio):\n    return {'mood': 'calm'}\n")
    data = build(folder, custom_metadata_module=str(module))
    check_needs(data, [Need("mood", ("mood",), "text")])
    ((message, _),) = refusal(data, Need("energy", ("energy",)))
    assert message.startswith('2 of 2 items have no "energy"')
    module.write_text("raise SystemExit\n")
    check_needs(build(folder, custom_metadata_module=str(module)), [Need("energy", ("energy",))], run_code=False)


def test_of_other_data_sets_the_first_item_is_asked():
    data = parse_dataset_config({"dataset_type": "synthetic"}).build(sample_size=SIZE, sample_rate=RATE, audio_channels=1)
    check_needs(data, [Need("prompt", ("prompt",), "text"), Need("seconds_total", ("seconds_total",), "a number")])
    ((message, _),) = refusal(data, Need("bpm", ("bpm",)))
    assert message.startswith('1 of 1 items have no "bpm"')


@pytest.mark.parametrize(
    "kind, good, bad",
    [
        ("text", ["", "a", ["a"]], [1, True, ["a", "b"]]),
        ("a number", [1, 1.5, [2]], ["1", True, float("inf"), float("nan"), [1, 2]]),
        ("a whole number", [1, 2.0], [1.5, "1"]),
        ("anything", [1, "a", object()], []),
    ],
)
def test_kinds_of_values(kind, good, bad):
    need = Need("x", ("x",), kind)
    assert all(need.accepts(need.value({"x": value})) for value in good)
    assert not any(need.accepts(need.value({"x": value})) for value in bad)
