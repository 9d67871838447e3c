"""The perceptual loss, with tiny networks of the kinds that people have: equal to an independent computation, frozen, never saved."""

import sys
from pathlib import Path

import pytest
import torch
from test_host import Recorder, Repeat, fit, loader, wrapper
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))
import configs

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.configs.parse import validate
from stable_audio_tools.training.config import parse_run_config
from stable_audio_tools.training.losses.config import AutoencoderLossConfig
from stable_audio_tools.training.losses.hubert import BUNDLES, HubertDistance, HubertLossConfig, HubertParams
from stable_audio_tools.training.plan import make_plan

transformers = pytest.importorskip("transformers")

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": (8, 8, 8),
    "conv_stride": (5, 4, 2),
    "conv_kernel": (10, 8, 4),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
KINDS = {"hubert": "Hubert", "wav2vec2": "Wav2Vec2", "wavlm": "WavLM"}


def build(kind, *, large=True):
    torch.manual_seed(3)
    config = getattr(transformers, f"{KINDS[kind]}Config")
    style = {"do_stable_layer_norm": large, "feat_extract_norm": "layer" if large else "group"}
    return getattr(transformers, f"{KINDS[kind]}Model")(config(**SIZES, **style)).eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("networks")
    for kind in KINDS:
        build(kind).save_pretrained(root / kind)
    build("wav2vec2", large=False).save_pretrained(root / "base")
    return root


def distance(folder, sample_rate=16000, **params):
    made = HubertDistance(HubertParams(model_name=str(folder), **params), sample_rate)
    made.load()
    return made


def sounds(channels=1, samples=4000):
    return torch.randn(2, 2, channels, samples, generator=torch.Generator().manual_seed(0)).unbind(0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_it_is_the_distance_of_all_layers_in_units_of_the_originals_deviation(folders, kind):
    target, estimate = sounds()
    wanted, given = (_layers(build(kind), x[:, 0]) for x in (target, estimate))
    terms = [(g - w).abs().mean() / (w.std() + 1e-5) for g, w in zip(given, wanted, strict=True)]
    torch.testing.assert_close(distance(folders / kind)(target, estimate), torch.stack(terms).mean(), rtol=1e-5, atol=1e-6)


def _layers(model, heard):
    heard = (heard - heard.mean(-1, keepdim=True)) / (heard.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    outputs = []

    def keep(layer, inputs, output):
        outputs.append(output if isinstance(output, torch.Tensor) else output[0])

    hooks = [layer.register_forward_hook(keep) for layer in model.encoder.layers]
    with torch.no_grad():
        model(heard)
    for hook in hooks:
        hook.remove()
    return outputs


def test_chosen_layers_and_the_convolutions_alone(folders):
    target, estimate = sounds()
    one = [distance(folders / "hubert", feature_ids=(layer,))(target, estimate) for layer in range(3)]
    torch.testing.assert_close(distance(folders / "hubert", feature_ids=(2, 0))(target, estimate), (one[0] + one[2]) / 2)
    torch.testing.assert_close(distance(folders / "hubert")(target, estimate), torch.stack(one).mean())
    convolutions = distance(folders / "hubert", feature_ids=(-1,), weight=2.0)(target, estimate)
    model = build("hubert").feature_extractor
    given, wanted = (model(F.layer_norm(x[:, 0], x.shape[-1:])).mT for x in (estimate, target))
    torch.testing.assert_close(convolutions, 2 * (given - wanted).abs().mean() / (wanted.std() + 1e-5), rtol=1e-5, atol=1e-6)


def test_waveforms_are_normalised_each_by_itself_where_the_network_wants_it(folders):
    target, estimate = sounds()
    heard = distance(folders / "hubert")
    torch.testing.assert_close(heard(target, 5 * estimate + 0.3), heard(target, estimate), rtol=1e-3, atol=1e-4)
    louder = torch.stack([target[0], 9 * target[1]])  # the peer normalises a batch as one signal
    torch.testing.assert_close(heard(louder, estimate), heard(target, estimate), rtol=1e-3, atol=1e-4)
    assert not distance(folders / "base").normalises
    (folders / "base" / "preprocessor_config.json").write_text('{"do_normalize": true}')
    assert distance(folders / "base").normalises


@pytest.mark.slow
def test_any_rate_and_channels_are_heard_as_mono_at_16_khz(folders):
    time = torch.arange(32000) / 32000
    tone = torch.sin(2 * torch.pi * 440 * time)[None, None]
    heard = distance(folders / "hubert", 32000)
    plain = distance(folders / "hubert")
    noisy = tone + 0.1 * torch.sin(2 * torch.pi * 3000 * time)
    expected = plain(tone[..., ::2], noisy[..., ::2])
    torch.testing.assert_close(heard(tone, noisy), expected, rtol=0.05, atol=0)
    stereo = torch.cat([1.5 * noisy, 0.5 * noisy], 1)
    torch.testing.assert_close(heard(tone.expand(-1, 2, -1), stereo), heard(tone, noisy), rtol=1e-4, atol=1e-5)
    assert heard(tone, tone) == 0


def test_the_gradient_reaches_the_estimate_alone_and_dropout_never_acts(folders):
    target, estimate = (x.requires_grad_() for x in sounds())
    made = distance(folders / "hubert").train()
    first = made(target, estimate)
    first.backward()
    assert estimate.grad.any() and estimate.grad.isfinite().all() and target.grad is None
    assert not any(p.requires_grad or p.grad is not None for p in made.parameters())
    assert made(target, estimate) == first
    assert not made.state_dict()


def document(folder, **hubert):
    config = configs.autoencoder(learning_rate=3e-3)
    losses = config["training"]["loss_configs"]
    del losses["discriminator"]
    losses["hubert"] = {"config": {"model_name": str(folder)}, "weights": {"hubert": 0.5}, **hubert}
    return config


@pytest.mark.slow
def test_training_reads_the_network_when_it_starts_and_never_saves_it(folders):
    config, recorder = document(folders / "hubert", decay=0.9), Recorder()
    config["training"]["loss_configs"]["spectral"]["weights"]["mrstft"] = 0.0
    module = wrapper(config)
    network = module.strategy.losses.hubert.network
    assert all(p.is_meta for p in network.parameters())
    fit(module, Repeat(next(iter(loader(config)))), 20, recorder)
    values = [float.fromhex(row["train/loss_hubert"]) / 0.9**step for step, row in enumerate(recorder.losses)]
    assert sum(values[-5:]) < 0.93 * sum(values[:5])
    weights = build("hubert").state_dict()
    trained = module.strategy.losses.hubert.network.module.state_dict()
    key = "layers.0.attention.k_proj.weight"
    assert torch.equal(trained[f"encoder.transformer.{key}"], weights[f"encoder.{key}"])
    assert not any("hubert" in key for key in module.state_dict())
    wrapper(config).load_state_dict(module.state_dict())


@pytest.mark.slow
def test_a_plan_counts_the_network_without_reading_it(folders):
    config = document(folders / "hubert")
    planned = make_plan(parse_run_config(config), batch_size=1)
    del config["training"]["loss_configs"]["hubert"]
    plain = make_plan(parse_run_config(config), batch_size=1)
    assert planned.flops > plain.flops and planned.memory.weights > plain.memory.weights and planned.checkpoint >= plain.checkpoint


def test_weight_zero_loads_and_asks_for_nothing():
    block = {"config": {"model_name": "not/here"}, "weights": {"hubert": 0.0}}
    config = validate(AutoencoderLossConfig, {"time": {"weights": {"l1": 1.0}}, "hubert": block}, "x.json")
    assert config.build(8000, 2).hubert is None and config.min_samples_at(8000) == 1


@pytest.mark.parametrize("name", BUNDLES)
def test_published_networks_have_their_shape_and_their_weights_are_not_fetched(name):
    config = HubertLossConfig(config=HubertParams(model_name=name, feature_ids=(0, 23)), weights={"hubert": 1.0})
    made = HubertDistance(config.config, 44100)
    assert all(p.is_meta for p in made.parameters()) and made.normalises
    assert len(made.network.module.encoder.transformer.layers) == config.config.layers == 24
    assert config.min_samples(16000) == 400 and config.min_samples(44100) == 1103


@pytest.mark.parametrize(
    ("change", "path", "message", "fix"),
    [
        ({"model_name": "HUBERT_LARG"}, "model_name", "is neither a known model nor a local folder", 'did you mean "HUBERT_LARGE"?'),
        ({"feature_ids": [0, 24]}, "feature_ids[1]", "the model has 24 layers", "0 to 23"),
        ({"feature_ids": [-1, 3]}, "feature_ids[0]", "the model has 24 layers", "[-1] alone for the convolutions"),
        ({"feature_ids": []}, "feature_ids", "a list of whole numbers, but it is empty", ""),
        ({"weight": 0.0}, "weight", "above 0", ""),
    ],
)
def test_what_cannot_listen_is_refused(change, path, message, fix):
    config = document("HUBERT_LARGE")
    config["training"]["loss_configs"]["hubert"]["config"] |= change
    _refused(config, f"training.loss_configs.hubert.config.{path}", message, fix)


def _refused(config, path, message, fix):
    with pytest.raises(ConfigError) as caught:
        parse_run_config(config)
    (problem,) = caught.value.to_dict()["problems"]
    assert problem["path"] == path and message in problem["message"] and fix in problem["fix"]


def test_folders_of_other_models_and_layers_they_lack_are_refused(folders, tmp_path):
    path = "training.loss_configs.hubert.config"
    config = document(folders / "wavlm")
    config["training"]["loss_configs"]["hubert"]["config"]["feature_ids"] = [3]
    _refused(config, f"{path}.feature_ids[0]", "the model has 3 layers", "0 to 2")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    _refused(document(tmp_path), f"{path}.model_name", 'of type "bert"', "hubert, wav2vec2, wavlm")
    (tmp_path / "config.json").write_text("{")
    _refused(document(tmp_path), f"{path}.model_name", "its config.json cannot be read", "")


def test_a_folder_without_weights_is_named_when_training_starts(folders, tmp_path):
    (tmp_path / "config.json").write_text((folders / "hubert" / "config.json").read_text())
    made = HubertDistance(HubertParams(model_name=str(tmp_path)), 16000)
    with pytest.raises(ConfigError, match="cannot be loaded"):
        made.load()


def test_clips_too_short_to_be_heard_are_refused():
    config = document("HUBERT_LARGE")
    config["sample_size"], config["sample_rate"] = 1040, 48000
    _refused(config, "sample_size", "1040 samples are too short for the losses", "at least 1200")
