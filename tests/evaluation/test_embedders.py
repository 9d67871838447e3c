"""Embedders: what `log_mel` and `latents` hear, CLAP and PANNs on tiny weights built here, and what is said where something lacks."""

import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "models" / "conditioners"))
import configs

from stable_audio_tools.audio.resample import resample
from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.evaluation import embedders as module
from stable_audio_tools.evaluation.bootstrap import Bootstrap
from stable_audio_tools.evaluation.clip_sets import Clip
from stable_audio_tools.evaluation.comparison import Comparison
from stable_audio_tools.evaluation.embedded import embed_clips
from stable_audio_tools.evaluation.embedders import EMBEDDERS, build_embedder, register_embedder
from stable_audio_tools.evaluation.embedders.base import file_hash
from stable_audio_tools.evaluation.embedders.clap import kind_of
from stable_audio_tools.evaluation.embedders.panns import Cnn14
from stable_audio_tools.evaluation.metrics import measure
from stable_audio_tools.models import create_model_from_config
from stable_audio_tools.models.checkpoints import save_model
from stable_audio_tools.models.conditioners.clap_files import CLAPFile


def tone(hertz, seconds=0.5, rate=32000, level=0.3):
    return level * torch.sin(2 * math.pi * hertz * torch.arange(round(seconds * rate)) / rate)[None]


def autoencoder(seed=0):
    torch.manual_seed(seed)
    return create_model_from_config(configs.autoencoder()).eval()


def test_log_mel_holds_mean_deviation_and_change_of_each_band():
    log_mel = build_embedder("log_mel")
    steady, silence = log_mel.embed(tone(1000)), log_mel.embed(torch.zeros(1, 16000))
    mean, deviation, change = steady.split(64)
    assert mean.argmax() == pytest.approx(64 * math.log10(1 + 1000 / 700) / math.log10(1 + 16000 / 700), abs=2)
    assert mean.max() == pytest.approx(math.log10(0.3**2), abs=0.3) and deviation[mean.argmax()] < 0.01 and change[mean.argmax()] < 0.01
    torch.testing.assert_close(silence, torch.cat((torch.full((64,), -8.0), torch.zeros(128))))
    beating = log_mel.embed(tone(1000) * (1 + torch.sin(2 * math.pi * 8 * torch.arange(16000) / 32000)))
    assert beating.split(64)[1].amax() > 0.2 and beating.split(64)[2].amax() > 0.05


def test_log_mel_hears_level_and_not_polarity_channels_or_length():
    log_mel = build_embedder("log_mel")
    noise = torch.randn(1, 64000, generator=torch.Generator().manual_seed(0)) * 0.1
    plain = log_mel.embed(noise)
    torch.testing.assert_close(log_mel.embed(-noise), plain)
    torch.testing.assert_close(log_mel.embed(noise.expand(2, -1)), plain)
    torch.testing.assert_close(log_mel.embed(noise[:, :32000])[:64], plain[:64], rtol=0, atol=0.1)
    torch.testing.assert_close(log_mel.embed(10 * noise)[:64], plain[:64] + 2, rtol=0, atol=1e-3)
    for length in (1, 700, 1024, 1535):
        assert log_mel.embed(noise[:, :length]).isfinite().all()


def test_log_mel_is_the_same_number_everywhere():
    """The recipe's numbers, so that no change goes unnoticed: a change of what is computed must change the hash."""
    log_mel = build_embedder("log_mel")
    assert log_mel.recipe["hash"] == "c5668fb7ed66"
    found = log_mel.embed(tone(440, 0.25) + tone(3000, 0.25, level=0.1))
    golden = torch.tensor([-0.9778, -1.8051, -1.8865, -2.7283])
    torch.testing.assert_close(found[[9, 8, 33, 34]], golden, rtol=0, atol=2e-3)


def test_one_sound_at_two_rates_is_one_vector():
    log_mel, sound = build_embedder("log_mel"), torch.randn(1, 12000, generator=torch.Generator().manual_seed(2)) * 0.1
    sound = resample(sound, 8000, 44100)
    clips = [Clip(sound, 44100), Clip(resample(sound, 44100, 16000), 16000)]
    first, second = embed_clips(log_mel, clips).vectors
    heard = first[:64] > -6
    torch.testing.assert_close(first[:64][heard], second[:64][heard], rtol=0, atol=0.05)


def test_latents_are_statistics_of_the_means_of_any_model_that_has_an_autoencoder():
    model = autoencoder()
    latents = build_embedder("latents", model)
    assert latents.sample_rate == configs.SAMPLE_RATE and latents.name == "latents"
    audio = torch.randn(2, 2 * model.downsampling_ratio * 9, generator=torch.Generator().manual_seed(1)) * 0.1
    wanted = model.encode(audio[None], sample=False)[0].detach()
    torch.testing.assert_close(latents.embed(audio), torch.cat((wanted.mean(-1), wanted.std(-1, correction=0))))
    assert torch.equal(latents.embed(audio), latents.embed(audio)), "no draw from the bottleneck"
    ragged = audio[:, :-3]
    torch.testing.assert_close(latents.embed(ragged), latents.embed(torch.nn.functional.pad(ragged, (0, 3))))
    assert latents.embed(audio[:1]).shape == latents.embed(audio).shape


def test_the_recipe_of_latents_knows_the_weights():
    first, same, other = (build_embedder("latents", autoencoder(seed)).recipe for seed in (0, 0, 1))
    assert first == same and first["hash"] != other["hash"]


def test_latents_of_a_file_are_those_of_its_model(tmp_path):
    config, model = configs.autoencoder(), autoencoder(4)
    save_model(tmp_path / "autoencoder.safetensors", model, config)
    loaded, given = build_embedder(f"latents:{tmp_path}/autoencoder.safetensors"), build_embedder("latents", model)
    assert loaded.recipe == given.recipe
    torch.testing.assert_close(loaded.embed(tone(300, 0.2, 8000)), given.embed(tone(300, 0.2, 8000)))


def test_a_diffusion_model_is_heard_by_its_pretransform():
    torch.manual_seed(0)
    model = create_model_from_config(configs.text_to_audio()).eval()
    latents = build_embedder("latents", model)
    assert latents.sample_rate == configs.SAMPLE_RATE and latents.embed(tone(300, 0.2, 8000)).shape == (32,)


def test_what_lacks_is_said_with_its_fix(tmp_path, monkeypatch):
    unconditional = torch.nn.Linear(2, 2)
    weights = tmp_path / "weights.pth"
    torch.save({"model": {"bn0.weight": torch.zeros(64)}}, weights)
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    for spec, model, message in (
        ("log_mell", None, 'there is no embedder of this name.*did you mean "log_mel"'),
        ("log_mel:x.pth", None, "it has no weights, but x.pth is named.*leave the path out"),
        ("latents", None, "there is no model to take one from.*latents:FILE or FOLDER"),
        ("latents", unconditional, "the model has no autoencoder.*latents:FILE"),
        ("clap", None, "its weights are not named, and nothing is downloaded.*clap:PATH"),
        (f"clap:{tmp_path}/none.pt", None, "there is no .*none.pt.*LAION"),
        ("panns", None, "its weights are not named.*Cnn14_mAP=0.431.pth"),
        (f"panns:{weights}", None, "is no Cnn14.*32 kHz"),
        ("audiobox_aesthetics", None, "needs the package audiobox_aesthetics, which is not installed.*pip install audiobox-aesthetics"),
    ):
        with pytest.raises(ConfigError, match=f"(?s){message}"):
            build_embedder(spec, model)


def test_a_plugin_adds_an_embedder():
    class Length:
        name, sample_rate = "length", 1000

        @property
        def recipe(self):
            return {"embedder": "length", "hash": "0", "sample_rate": 1000}

        def embed(self, audio):
            return torch.tensor([float(audio.shape[-1])])

    build = lambda request: Length()  # noqa: E731
    register_embedder("length", build)
    try:
        vectors = embed_clips(build_embedder("length"), [Clip(torch.zeros(1, 4000), 2000)]).vectors
        assert vectors.tolist() == [[2000.0]]
        with pytest.raises(ValueError, match="'length' is already registered"):
            register_embedder("length", lambda request: Length())
    finally:
        del EMBEDDERS["length"]


@pytest.fixture(scope="module")
def panns_file(tmp_path_factory):
    torch.manual_seed(0)
    network = Cnn14((2, 3, 4, 5, 6, 7))
    network.logmel_extractor["melW"].data.uniform_()
    unused = {
        "fc_audioset.weight": torch.zeros(527, 7),
        "spectrogram_extractor.stft.conv_real.weight": torch.zeros(1),
    }
    path = tmp_path_factory.mktemp("panns") / "Cnn14.pth"
    torch.save({"iteration": 600000, "model": network.state_dict() | unused}, path)
    return path


def test_panns_reads_the_authors_file(panns_file):
    panns = build_embedder(f"panns:{panns_file}")
    noise = torch.randn(1, 40000, generator=torch.Generator().manual_seed(0)) * 0.1
    vector = panns.embed(noise)
    assert vector.shape == (7,) and (vector >= 0).all() and vector.any()
    assert panns.embed(noise[:, :200]).isfinite().all()
    torch.testing.assert_close(panns.embed(noise.expand(2, -1)), vector)
    assert len(panns.recipe["hash"]) == 12 and panns.sample_rate == 32000
    with torch.device("meta"):
        published = Cnn14()
    assert list(published.state_dict())[:2] == ["logmel_extractor.melW", "bn0.weight"]
    parameters = sum(parameter.numel() for name, parameter in published.named_parameters() if not name.startswith("logmel"))
    last_layer = 2048 * 527 + 527  # not built here
    assert parameters + last_layer == 80_753_615, "arXiv:1912.10211, table 5, names 80.8 million"


@pytest.fixture(scope="module")
def clap(tmp_path_factory):
    pytest.importorskip("transformers")
    from tiny_text_models import clap_folder

    return build_embedder(f"clap:{clap_folder(tmp_path_factory.mktemp('clap'))}")


def test_clap_gives_unit_vectors_of_one_space(clap):
    audio, texts = clap.embed(tone(440, 0.2, 48000)), clap.embed_texts(["a soft bell", "drum"])
    assert audio.shape == (8,) and texts.shape == (2, 8) and clap.sample_rate == 48000
    torch.testing.assert_close(torch.cat((audio[None], texts)).norm(dim=1), torch.ones(3))
    assert clap.recipe["embedder"] == "clap" and clap.recipe["fused"] is True and len(clap.recipe["hash"]) == 12


@pytest.mark.parametrize(("width", "size"), [(96, "HTSAT-tiny"), (128, "HTSAT-base"), (256, "HTSAT-large")])
@pytest.mark.parametrize("fused", [True, False])
def test_the_kind_of_an_authors_checkpoint_is_read_from_its_weights(width, size, fused):
    state = {"audio_branch.patch_embed.proj.weight": torch.zeros(width, 1, 4, 4)}
    state |= {"audio_branch.patch_embed.mel_conv2d.weight": torch.zeros(width, 1, 4, 12)} if fused else {}
    assert kind_of(CLAPFile("x.pt", state, {})) == {"audio_model_type": size, "enable_fusion": fused}
    assert kind_of(CLAPFile("folder", {"audio_model.x": torch.zeros(1)}, {"audio_config": {}})) == {}


AUDIOBOX = """
AXES_NAME = ["CE", "CU", "PC", "PQ"]

class Predictor:
    def forward(self, batch):
        (item,) = batch
        assert item["path"].shape[0] == 1 and item["sample_rate"] == 16000
        return [{"PQ": 4.0, "PC": 3.0, "CU": 2.0, "CE": float(item["path"].shape[-1])}]

def initialize_predictor(ckpt):
    assert ckpt.endswith("checkpoint.pt")
    return Predictor()
"""


def test_audiobox_ratings_are_in_the_order_of_their_names(tmp_path, monkeypatch):
    """Against the interface of audiobox-aesthetics 0.0.4."""
    (tmp_path / "audiobox_aesthetics").mkdir()
    (tmp_path / "audiobox_aesthetics" / "__init__.py").touch()
    (tmp_path / "audiobox_aesthetics" / "infer.py").write_text(AUDIOBOX)
    (tmp_path / "checkpoint.pt").write_bytes(b"weights")
    monkeypatch.syspath_prepend(tmp_path)
    rater = build_embedder(f"audiobox_aesthetics:{tmp_path / 'checkpoint.pt'}")
    found = measure(["ratings"], Comparison([Clip(torch.zeros(2, 8000), 8000)], embedders=[rater], bootstrap=Bootstrap(5)))
    values = {of.name.removeprefix("audiobox_aesthetics_"): of.value for of in found}
    assert values == {"enjoyment": 16000, "usefulness": 2, "complexity": 3, "quality": 4}
    assert rater.recipe["hash"] == file_hash(tmp_path / "checkpoint.pt") and len(rater.recipe["hash"]) == 12


def test_text_score_is_the_mean_cosine_and_knows_its_chance(clap):
    clips = [Clip(tone(hertz, 0.1, 48000), 48000) for hertz in (200, 2000, 9000)]
    prompts = ["a soft bell", "drum", "loud piano"]
    comparison = Comparison(clips, prompts=prompts, embedders=[build_embedder("log_mel"), clap], bootstrap=Bootstrap(20))
    (score,) = measure(["text_score"], comparison)
    cosines = torch.stack([clap.embed(clip.audio) for clip in clips]) @ clap.embed_texts(prompts).T
    assert score.name == "clap_score" and score.better == "higher"
    assert score.value == pytest.approx(float(cosines.diagonal().mean()), abs=1e-5)
    assert cosines.min() <= score.same_source[0] <= score.same_source[1] <= cosines.max()
    broken = Comparison(
        [*clips[:2], Clip(torch.full((1, 9), torch.nan), 48000)], prompts=prompts, embedders=[clap], bootstrap=Bootstrap(20)
    )
    (score,) = measure(["text_score"], broken)
    assert score.n == 2 and score.recipe["left_out"] == 1 and score.value == pytest.approx(float(cosines.diagonal()[:2].mean()), abs=1e-5)


def test_ratings_are_means_of_each_axis():
    class Rater:
        name, sample_rate, axes = "rater", 8000, ("loud", "long")

        @property
        def recipe(self):
            return {"embedder": "rater", "hash": "0", "sample_rate": 8000}

        def embed(self, audio):
            return torch.tensor([float(audio.abs().max()), float(audio.shape[-1])])

    clips = [Clip(torch.full((1, 100), 0.5), 8000), Clip(torch.full((1, 300), 0.1), 8000)]
    found = measure(["ratings"], Comparison(clips, embedders=[Rater()], bootstrap=Bootstrap(20)))
    assert [(of.name, round(of.value, 6), of.better) for of in found] == [("rater_loud", 0.3, "higher"), ("rater_long", 200, "higher")]
