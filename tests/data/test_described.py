"""What an audio_dir config says about metadata and prompts reaches the clips, and what cannot act is refused before training."""

import pickle

import pytest
from audio_files import signal, write

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.data.dataset import create_dataloader_from_config, parse_dataset_config
from stable_audio_tools.data.types import ItemKey

RATE, SIZE = 16000, 1600


@pytest.fixture
def music(tmp_path):
    for number, name in enumerate(("Nina/90bpm_Sun", "Nina/120bpm_Rain", "Abbey/75bpm_Moon")):
        write(tmp_path / f"{name}.wav", signal(0.3, RATE, 1, number), RATE)
    (tmp_path / "Nina" / "90bpm_Sun.txt").write_text("a song\nvoice and piano\n\n")
    return tmp_path


def config(folder, **item):
    return {"dataset_type": "audio_dir", "datasets": [{"id": "a", "path": str(folder), **item}]}


def clips(folder, visits=1, **item):
    data = parse_dataset_config(config(folder, **item)).build(sample_size=SIZE, sample_rate=RATE, audio_channels=1)
    data = pickle.loads(pickle.dumps(data))
    return [dict(data.visit(ItemKey(0, visit, index)).metadata) for visit in range(visits) for index in range(len(data))]


def test_paths_and_templates_make_prompts_without_code(music):
    prompts = {"templates": ["{title} by {artist}, {bpm} bpm"]}
    made = clips(music, path_pattern="{artist}/{bpm}bpm_{title}", prompts=prompts)
    assert [clip["prompt"] for clip in made] == ["Moon by Abbey, 75 bpm", "Rain by Nina, 120 bpm", "Sun by Nina, 90 bpm"]
    assert [(clip["artist"], clip["bpm"]) for clip in made] == [("Abbey", 75), ("Nina", 120), ("Nina", 90)]


def test_a_path_may_be_the_caption_and_a_file_beside_wins(music):
    assert [clip["prompt"] for clip in clips(music, path_pattern="*/{prompt}")] == ["75bpm_Moon", "120bpm_Rain", "a song\nvoice and piano"]
    assert [clip["prompt"] for clip in clips(music)] == ["", "", "a song\nvoice and piano"]


def test_lines_of_a_caption_may_be_several(music):
    drawn = [clip["prompt"] for clip in clips(music, 20, captions_per_line=True)][2::3]
    assert set(drawn) == {"a song", "voice and piano"}
    assert drawn == [clip["prompt"] for clip in clips(music, 20, captions_per_line=True)][2::3]


def test_what_the_data_set_knows_can_stand_in_a_template(music):
    assert clips(music, prompts={"templates": ["{seconds_total} s, {dataset_id}"]})[0]["prompt"] == "1 s, a"


@pytest.mark.parametrize("workers", [0, 2])
def test_prompts_depend_on_the_visit_and_not_on_workers(music, workers):
    settings = config(music, captions_per_line=True, prompts={"shuffle_tags": True, "tag_dropout": 0.5, "dropout": 0.2})
    settings["drop_last"] = False
    for name in ("Nina/120bpm_Rain", "Abbey/75bpm_Moon"):
        (music / f"{name}.txt").write_text("a, b, c, d\ne, f, g")

    def served(workers):
        loader = create_dataloader_from_config(settings, 2, SIZE, RATE, 1, workers, seed=3)
        epochs = [[(item["relpath"], item["prompt"]) for _, batch in loader for item in batch] for _ in range(4)]
        loader.close()
        return epochs

    epochs = served(workers)
    assert epochs == served(0)
    assert len({prompt for epoch in epochs for _, prompt in epoch}) > 6


@pytest.mark.parametrize(
    "item, message",
    [
        (
            {"prompts": {"templates": ["x", "{artist}, {bmp}"]}, "path_pattern": "{artist}/{bpm}bpm_*"},
            r'datasets\[0\]\.prompts\.templates\[1\]\n +no item has "bmp"',
        ),
        ({"prompts": {"templates": ["{padding_mask}"]}}, r'no item has "padding_mask"'),
        (
            {"path_pattern": "{artist}/{album}/{title}"},
            r"datasets\[0\]\.path_pattern\n +matches none of 3 paths, such as Abbey/75bpm_Moon\.wav",
        ),
    ],
)
def test_settings_that_fit_no_item_are_refused_before_training(music, item, message):
    with pytest.raises(ConfigError, match=message):
        clips(music, **item)


def test_a_slip_in_a_template_names_what_is_known(music):
    with pytest.raises(ConfigError) as error:
        clips(music, path_pattern="{artist}/{bpm}bpm_*", prompts={"templates": ["{bmp}"]})
    (problem,) = error.value.problems
    assert problem.path == ("datasets", 0, "prompts", "templates", 0)
    assert problem.fix.startswith('did you mean "bpm"? known: artist, bpm, dataset_id')


def test_a_field_that_cannot_be_text_is_named_with_its_file(music):
    (music / "Abbey" / "75bpm_Moon.json").write_text('{"mood": {"calm": 1}}')
    with pytest.raises(ConfigError, match=r"Abbey/75bpm_Moon\.wav: 'mood' is \{\"calm\": 1\}, which cannot stand in a prompt"):
        clips(music, prompts={"templates": ["{mood}"]})


@pytest.mark.parametrize(
    "item, path",
    [
        ({"path_pattern": "{a}/{a}"}, r"datasets\[0\]\.path_pattern\n +not a pattern: the field \{a\} stands here twice"),
        ({"prompts": {"templates": ["{a.b}"]}}, r"datasets\[0\]\.prompts\.templates\[0\]\n +not a template"),
        ({"prompts": {"template": ["{a}"]}}, r'did you mean "templates"'),
        ({"file_tag": True}, r'did you mean "file_tags"'),
    ],
)
def test_wrong_settings_are_refused_with_their_place(item, path):
    with pytest.raises(ConfigError, match=path):
        parse_dataset_config(config("x", **item))
