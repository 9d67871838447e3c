"""What every bottleneck does: widths, tokens, gradients, precisions, copies."""

import pickle
from copy import deepcopy

import pytest
import torch
from pydantic import TypeAdapter

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.configs.parse import validate
from stable_audio_tools.models.autoencoders.autoencoder import AutoencoderBody
from stable_audio_tools.models.bottlenecks import BOTTLENECKS, BottleneckConfig
from stable_audio_tools.training.losses.terms import BOTTLENECK_TERMS, bottleneck_terms

RVQ = {"dim": 4, "codebook_size": 16, "num_quantizers": 3, "kmeans_init": False}
DAC = {"input_dim": 4, "n_codebooks": 3, "codebook_size": 16, "codebook_dim": 2}
CASES = {
    "vae": ("vae", {}),
    "vae_mean": ("vae", {"mode": "mean"}),
    "tanh": ("tanh", {"scale": 2.0}),
    "l2_norm": ("l2_norm", {}),
    "softnorm": ("softnorm", {"dim": 4, "noise_augment_dim": 2, "noise_regularize": True}),
    "wasserstein": ("wasserstein", {"noise_augment_dim": 3, "use_tanh": True}),
    "rvq": ("rvq", RVQ),
    "rvq_one": ("rvq", {**RVQ, "num_quantizers": 1}),
    "rvq_projected": ("rvq", {**RVQ, "codebook_dim": 2}),
    "rvq_cosine": ("rvq", {**RVQ, "use_cosine_sim": True, "shared_codebook": True}),
    "rvq_learned": ("rvq", {**RVQ, "learnable_codebook": True, "ema_update": False, "orthogonal_reg_weight": 1.0}),
    "rvq_stochastic": (
        "rvq",
        {**RVQ, "stochastic_sample_codes": True, "quantize_dropout": True, "commitment_use_cross_entropy_loss": True},
    ),
    "rvq_vae": ("rvq_vae", RVQ),
    "dac_rvq": ("dac_rvq", {**DAC, "quantizer_dropout": 0.5}),
    "dac_rvq_noise": ("dac_rvq", {**DAC, "noise_augment_dim": 2, "codebook_dim": [2, 3, 4]}),
    "dac_rvq_on_decode": ("dac_rvq", {**DAC, "quantize_on_decode": True}),
    "dac_rvq_vae": ("dac_rvq_vae", DAC),
    "dac_rvq_vae_on_decode": ("dac_rvq_vae", {**DAC, "quantize_on_decode": True}),
    "fsq": ("fsq", {"levels": [5, 4, 3, 3]}),
    "fsq_two": ("fsq", {"levels": [5, 4], "num_codebooks": 2, "noise_augment_dim": 1}),
    "fsq_projected": ("fsq", {"levels": [5, 49, 2], "num_codebooks": 2, "dim": 4}),
    "dithered_fsq": ("dithered_fsq", {"dim": 4, "levels": [5, 4, 3, 3]}),
    "dithered_fsq_two": ("dithered_fsq", {"dim": 2, "levels": 7, "num_codebooks": 2}),
}
DISCRETE = [name for name, (kind, _) in CASES.items() if "rvq" in kind or "fsq" in kind]


def parsed(name, **wiring):
    kind, config = CASES[name]
    return TypeAdapter(BottleneckConfig).validate_python({"type": kind, "config": config, **wiring})


def built(name, **wiring):
    """The bottleneck of a case with 4 latent channels, trained for a step, in eval mode."""
    torch.manual_seed(0)
    module = parsed(name, **wiring).build()
    module.encode(encoded(name))
    return module.eval()


def encoded(name, frames=11, seed=3):
    return torch.randn(2, parsed(name).encoder_channels(4), frames, generator=torch.Generator().manual_seed(seed))


def seeded(call):
    """For those that give the decoder noise."""
    torch.manual_seed(1)
    return call()


def body(name):
    config, sizes = parsed(name), {"channels": 4, "c_mults": [1, 2], "strides": [2, 4], "use_snake": True}
    encoder = {**sizes, "in_channels": 2, "latent_dim": config.encoder_channels(4)}
    decoder = {**sizes, "out_channels": 2, "latent_dim": config.decoder_channels(4)}
    kind, inner = CASES[name]
    return {
        "encoder": {"type": "oobleck", "config": encoder},
        "decoder": {"type": "oobleck", "config": decoder},
        "bottleneck": {"type": kind, "config": inner},
        "latent_dim": 4,
        "downsampling_ratio": 8,
        "io_channels": 2,
    }


def test_every_bottleneck_is_among_the_cases():
    assert {kind for kind, _ in CASES.values()} == set(BOTTLENECKS.names)


@pytest.mark.parametrize("name", CASES)
def test_it_states_the_widths_it_works_at(name):
    config, module = parsed(name), built(name)
    x = encoded(name)
    for mode in (True, False):
        latents, info = module.train(mode).encode(x, return_info=True)
        assert latents.shape == (2, 4, 11) and isinstance(info, dict)
        assert isinstance(module.encode(x), torch.Tensor)  # never a tuple
        assert module.decode(latents).shape == (2, config.decoder_channels(4), 11)
    state = torch.get_rng_state()
    assert torch.equal(module.encode(x, sample=False), module.encode(x, sample=False))
    assert torch.equal(torch.get_rng_state(), state)
    assert config.latent_channels in (4, None)


@pytest.mark.parametrize("name", CASES)
def test_saved_weights_copies_and_pickles_compute_the_same(name):
    module, x = built(name), encoded(name)
    fresh = parsed(name).build().eval()
    fresh.load_state_dict(module.state_dict())
    for other in (fresh, deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other.encode(x, sample=False), module.encode(x, sample=False))


@pytest.mark.parametrize("name", CASES)
def test_it_builds_without_memory(name):
    with torch.device("meta"):
        state = parsed(name).build().state_dict()
    assert {key: value.shape for key, value in state.items()} == {key: value.shape for key, value in built(name).state_dict().items()}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_the_gradient_of_the_decoder_reaches_the_encoder(name, training):
    module = built(name).train(training)
    x = encoded(name).requires_grad_()
    out = module.decode(module.encode(x))
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    assert x.grad.isfinite().all() and x.grad.abs().sum() > 0


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_works_forward_and_backward(name):
    module = built(name).bfloat16().train()
    x = encoded(name).bfloat16().requires_grad_()
    latents, info = module.encode(x, return_info=True)
    out = module.decode(latents)
    assert latents.dtype == out.dtype == torch.bfloat16
    (out.sum() + sum(bottleneck_terms(info, {}).values())).backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("name", [name for name in DISCRETE if "dac" not in name and "projected" not in name])
def test_mixed_precision_chooses_the_same_tokens(name):
    module, x = built(name), encoded(name, frames=200)
    with torch.autocast("cpu", torch.bfloat16):
        latents, tokens = module.encode(x, sample=False), module.tokenize(x, sample=False)
    assert torch.equal(tokens, module.tokenize(x, sample=False))
    assert torch.equal(latents, module.encode(x, sample=False))


@pytest.mark.parametrize("name", CASES)
def test_without_requires_grad_nothing_of_it_changes(name):
    module = parsed(name, requires_grad=False).build()
    before = deepcopy(module.state_dict())
    assert not any(parameter.requires_grad for parameter in module.parameters())
    module.train().encode(encoded(name))
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


@pytest.mark.parametrize("name", DISCRETE)
def test_tokens_say_what_the_latents_say(name):
    module, x, config = built(name), encoded(name), parsed(name)
    tokens = module.tokenize(x, sample=False)
    assert tokens.dtype == torch.int64 and tokens.shape == (2, config.num_quantizers, 11)
    assert tokens.min() >= 0 and tokens.max() < config.codebook_size
    assert (module.is_discrete, module.num_quantizers, module.codebook_size) == (True, config.num_quantizers, config.codebook_size)
    want = seeded(lambda: module.decode(module.encode(x, sample=False)))
    got = seeded(lambda: module.decode_tokens(tokens))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
    info = module.encode(x, return_info=True, sample=False)[1]
    assert torch.equal(info["codes" if "codes" in info else "quantizer_indices"], tokens)


@pytest.mark.parametrize("name", DISCRETE)
def test_training_mode_neither_changes_tokens_nor_is_changed_by_them(name):
    module, x = built(name), encoded(name)
    tokens, state = module.tokenize(x, sample=False), deepcopy(module.state_dict())
    assert torch.equal(module.train().tokenize(x, sample=False), tokens)
    assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())


@pytest.mark.parametrize("name", DISCRETE)
def test_every_token_is_heard(name):
    """Each codebook takes part: no two of its values decode alike."""
    module, config = built(name), parsed(name)
    frames = torch.arange(config.codebook_size)
    for codebook in range(config.num_quantizers):
        tokens = torch.zeros(1, config.num_quantizers, len(frames), dtype=torch.int64)
        tokens[0, codebook] = frames
        torch.manual_seed(0)
        latents = module.decode_tokens(tokens)[0, :4]
        assert len(latents.mT.round(decimals=5).unique(dim=0)) > 0.9 * len(frames)


@pytest.mark.parametrize("name", DISCRETE)
@torch.no_grad()
def test_an_autoencoder_decodes_its_tokens_as_its_latents(name):
    torch.manual_seed(0)
    config = AutoencoderBody.model_validate(body(name))
    model = config.build(16000).eval()
    audio = torch.randn(2, 2, 64)
    tokens = model.tokenize(audio, sample=False)
    assert (config.is_discrete, config.num_quantizers, config.codebook_size) == (True, *tokens.shape[1:2], model.codebook_size)
    want = seeded(lambda: model.decode(model.encode(audio, sample=False)))
    got = seeded(lambda: model.decode_tokens(tokens))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [n for n in DISCRETE if "rvq" in n and "one" not in n])
def test_the_first_codebooks_alone_are_a_coarser_version(name):
    module, x = built(name), encoded(name)
    tokens = module.tokenize(x, sample=False)
    coarse, fine = module.decode_tokens(tokens[:, :1]), module.decode_tokens(tokens)
    assert coarse.shape == fine.shape and not torch.equal(coarse, fine)


@pytest.mark.parametrize("name", DISCRETE)
def test_tokens_of_another_kind_are_refused(name):
    module, config = built(name), parsed(name)
    count, size = config.num_quantizers, config.codebook_size
    good = torch.zeros(1, count, 5, dtype=torch.int64)
    allowed = f"1..{count}" if "rvq" in name and count > 1 else str(count)
    with pytest.raises(ValueError, match=rf"shape \(1, {count + 1}, 5\), expected \(batch, {allowed}, frames\)"):
        module.decode_tokens(torch.zeros(1, count + 1, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match="expected"):
        module.decode_tokens(good[0])
    with pytest.raises(ValueError, match=r"must be integers, these are torch.float32"):
        module.decode_tokens(good.float())
    with pytest.raises(ValueError, match=rf"tokens lie in 0..{size}, expected 0..{size - 1}"):
        module.decode_tokens(good.index_fill(2, torch.tensor([1]), size))


@pytest.mark.parametrize("name", sorted(CASES.keys() - set(DISCRETE)))
def test_continuous_ones_have_no_tokens(name):
    module, config = built(name), parsed(name)
    assert (module.is_discrete, module.num_quantizers, module.codebook_size) == (False, 0, 0)
    assert (config.is_discrete, config.num_quantizers, config.codebook_size) == (False, 0, 0)
    for call in (module.tokenize, module.decode_tokens):
        with pytest.raises(ValueError, match="is continuous: it has no tokens"):
            call(encoded(name))
    model = AutoencoderBody.model_validate(body(name)).build(16000)
    with pytest.raises(ValueError, match=r"this autoencoder has no tokens: .* is continuous"):
        model.tokenize(torch.zeros(1, 2, 64))


LOSSES = {
    "vae": {"kl"},
    "softnorm": {"softnorm"},
    "wasserstein": {"mmd"},
    "rvq": {"quantizer"},
    "rvq_vae": {"kl", "quantizer"},
    "dac_rvq": {"codebook", "commitment"},
    "dac_rvq_on_decode": {"codebook", "commitment"},
    "dac_rvq_vae": {"kl", "codebook", "commitment"},
    "dac_rvq_vae_on_decode": {"kl", "codebook", "commitment"},
    "fsq": set(),
    "tanh": set(),
}


@pytest.mark.parametrize(("name", "terms"), LOSSES.items())
def test_training_always_reports_the_losses(name, terms):
    module, x = built(name).train(), encoded(name).requires_grad_()
    info = module.encode(x, return_info=True)[1]
    found = bottleneck_terms(info, {})
    assert set(found) == terms
    assert not {key for key in info if "loss" in key} - set(BOTTLENECK_TERMS)
    if terms:
        sum(found.values()).backward()
        assert x.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("name", "key", "made_for"),
    [("rvq", "dim", 4), ("dac_rvq", "input_dim", 4), ("fsq", "levels", 4), ("fsq_projected", "dim", 4), ("softnorm", "dim", 4)],
)
def test_a_bottleneck_for_other_latents_is_named(name, key, made_for):
    document = body(name) | {"latent_dim": 6}
    with pytest.raises(ConfigError) as caught:
        validate(AutoencoderBody, document, "model config")
    problem = next(p for p in caught.value.problems if p.path[0] == "bottleneck")
    assert problem.path == ("bottleneck", "config", key)
    assert problem.message == f"the bottleneck is for {made_for} latent channels (bottleneck.config.{key}), but latent_dim is 6"
    assert problem.fix == f"change bottleneck.config.{key}, or set latent_dim to {made_for}"
