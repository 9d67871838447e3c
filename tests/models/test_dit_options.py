"""Every option of the DiT: recorded numbers, pairs of options, masks, timesteps per frame, explicit positions, recomputation."""

import copy
import json
import random
from functools import cache

import pytest
import torch
from configs import text_to_audio
from pydantic import ValidationError
from reference_rule import FOLDER, Reference, assert_matches, assert_same_layout, fill, load_reference
from safetensors.torch import load_file
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.models.denoisers.dit import DiffusionTransformer, DiTParams
from stable_audio_tools.models.factory import create_model_from_config, parse_model_config

FRAMES = 12


@cache
def recorded(name):
    """`dit_options.*` hold one small network per option: its config, its keys, its inputs and its output."""
    about = json.loads((FOLDER / "dit_options.json").read_text())[name]
    tensors = load_file(FOLDER / "dit_options.safetensors")
    own = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
    return Reference(about["config"], about["table"], own, about["weights_sha256"])


def parse(config):
    return DiTParams.model_validate_json(json.dumps(config))


@pytest.mark.parametrize("name", json.loads((FOLDER / "dit_options.json").read_text()))
def test_an_option_gives_the_recorded_keys_and_numbers(name):
    reference = recorded(name)
    model = DiffusionTransformer(parse(reference.config)).eval()
    assert_same_layout(model, reference.table)
    fill(model, reference)
    inputs = {key.removeprefix("in."): value for key, value in reference.tensors.items() if key.startswith("in.")}
    with torch.no_grad():
        out = model(inputs.pop("x"), inputs.pop("t"), **inputs)
    assert_matches(out, reference["out"], tolerance=1e-5)


def dit(dtype=torch.float64, **options):
    """Width 32, heads of 8, no branch zero."""
    config = {"io_channels": 4, "embed_dim": 32, "depth": 2, "num_heads": 4, "global_cond_type": "adaLN", **options}
    model = DiffusionTransformer(parse(config)).to(dtype)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def inputs_for(model, batch=2, dtype=torch.float64, frames=FRAMES):
    params = model.params
    shapes = {
        "cross_attn_cond": (5, params.cond_token_dim),
        "global_cond": (params.global_cond_dim,),
        "input_concat_cond": (params.input_concat_dim, frames),
        "prepend_cond": (2, params.prepend_cond_dim),
    }
    given = {name: torch.randn(batch, *shape, dtype=dtype) for name, shape in shapes.items() if min(shape)}
    return {"x": torch.randn(batch, 4, frames, dtype=dtype), "t": torch.rand(batch, dtype=dtype), **given}


ADALN = {"global_cond_type": "adaLN", "global_cond_dim": 6}
# The values of an option, the first of which is its default; together they are section 5.3 of what configs can say.
OPTIONS = {
    "patch_size": [{}, {"patch_size": 3}],
    "cross": [
        {},
        {"cond_token_dim": 16},
        {"cond_token_dim": 16, "project_cond_tokens": False},
        {"cond_token_dim": 16, "final_cross_attn_ix": 0},
    ],
    "global": [{"global_cond_type": "prepend"}, {"global_cond_type": "prepend", "global_cond_dim": 6}, ADALN],
    "own global width": [{}, {"global_cond_dim": 32, "project_global_cond": False}],
    "input concat": [{}, {"input_concat_dim": 3}],
    "prepend": [{}, {"prepend_cond_dim": 5}],
    "timestep": [{}, {"timestep_cond_type": "input_concat", "timestep_embed_dim": 6, **ADALN}],
    "positions": [
        {},
        {"rotary_pos_emb": False},
        {"rotary_pos_emb": False, "add_rope": True},
        {"use_sinusoidal_emb": True},
        {"use_abs_pos_emb": True, "abs_pos_emb_max_length": 32},
    ],
    "zero init": [{}, {"zero_init_branch_outputs": False}],
    "conformer": [{}, {"conformer": True}],
    "memory": [{}, {"num_memory_tokens": 3}],
    "window": [{}, {"sliding_window": [3, 2]}, {"sliding_window": [-1, 1]}],
    "causal": [{}, {"causal": True}],
    "norms": [{}, {"remove_norms": True}, {"norm_kwargs": {"bias": True, "fix_scale": True, "force_fp32": True, "eps": 1e-2}}],
    "layer scale": [{}, {"layer_scale": True}],
    "qk_norm": [{}, *({"attn_kwargs": {"qk_norm": kind}} for kind in ("l2", "ln", "dyt"))],
    "attention": [{}, {"attn_kwargs": {"differential": True}}, {"attn_kwargs": {"feat_scale": True}}],
    "backend": [{}, {"attn_kwargs": {"backend": "sdpa"}}],
    "feed-forward": [
        {},
        {"ff_kwargs": {"glu": False, "mult": 1.5}},
        {"ff_kwargs": {"no_bias": True, "zero_init_output": False}},
        {"ff_kwargs": {"use_conv": True, "conv_kernel_size": 5}},
        {"ff_kwargs": {"use_conv": True, "glu": False}},
    ],
    "recomputation": [{}, {"activation_checkpointing": True}, {"activation_checkpointing": "selective"}],
}
ALONE = [value for values in OPTIONS.values() for value in values if value]


def merged(*parts):
    """Options side by side, those of attention within each other."""
    options = {}
    for part in parts:
        for key, value in part.items():
            options[key] = {**options.get(key, {}), **value} if isinstance(value, dict) else value
    return options


def check(options, dtype=torch.float64):
    """Builds, runs, moves every weight, and its state_dict is all there is to know of it."""
    model = dit(dtype, **options)
    inputs = inputs_for(model, dtype=dtype)
    out = model(**inputs)
    assert out.shape == inputs["x"].shape
    out.float().square().sum().backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not still and out.isfinite().all()
    again = dit(dtype, **options)
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(**inputs), copy.deepcopy(model)(**inputs), rtol=0, atol=0)


@pytest.mark.parametrize("options", ALONE, ids=json.dumps)
@pytest.mark.slow
def test_each_option_alone(options):
    check(options)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(150))
def test_options_beside_each_other(seed):
    """With 150 draws, two given values of two options miss each other with a chance of about 1e-4 (one in 16 pairs of values)."""
    draw = random.Random(seed)
    while True:
        options = merged(*(draw.choice(values) for values in OPTIONS.values()))
        try:
            parse({"embed_dim": 32, "num_heads": 4, "depth": 2, **options})
        except (ConfigError, ValidationError):
            continue
        return check(options, draw.choice([torch.float64, torch.float32]))


@pytest.mark.parametrize("options", [ADALN | {"cond_token_dim": 16}, {"attn_kwargs": {"qk_norm": "ln", "differential": True}}], ids=str)
def test_it_trains_in_bfloat16(options):
    check(options, torch.bfloat16)


def test_it_builds_without_memory():
    with torch.device("meta"):
        model = DiffusionTransformer(parse({"embed_dim": 1536, "depth": 24, "num_heads": 24, "cond_token_dim": 768, "add_rope": False}))
    assert all(p.is_meta for p in model.parameters())


# Masks


@pytest.mark.parametrize("options", [value for value in ALONE if value.get("sliding_window") != [-1, 1]], ids=json.dumps)
@torch.no_grad()
def test_padding_reaches_no_real_frame(options):
    """Also where padding shares a patch with real frames, and where its frames have timesteps of their own."""
    model = dit(**options)
    inputs, real = inputs_for(model), torch.arange(FRAMES) < 7
    mask = real.expand(2, -1)
    louder = {**inputs, "x": torch.where(real, inputs["x"], 100.0)}
    torch.testing.assert_close(model(**louder, mask=mask)[..., real], model(**inputs, mask=mask)[..., real])
    if model.params.global_cond_type == "adaLN":
        t = torch.rand(2, FRAMES, dtype=torch.float64)
        changed = {**inputs, "t": torch.where(real, t, 0.0)}
        torch.testing.assert_close(model(**changed, mask=mask)[..., real], model(**{**inputs, "t": t}, mask=mask)[..., real])


# Timesteps per frame

PER_FRAME = [
    {},
    ADALN,
    ADALN | {"patch_size": 3},
    ADALN | {"num_memory_tokens": 2, "prepend_cond_dim": 5},
    {"timestep_cond_type": "input_concat", "timestep_embed_dim": 6, "global_cond_type": "prepend"},
    {"timestep_cond_type": "input_concat", "timestep_embed_dim": 6, "patch_size": 3, **ADALN},
]


@pytest.mark.parametrize("options", PER_FRAME, ids=str)
@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@torch.no_grad()
def test_one_timestep_for_all_frames_is_one_timestep(options, masked):
    model = dit(**options)
    inputs = inputs_for(model)
    mask = (torch.arange(FRAMES) < 8).expand(2, -1) if masked else None
    per_frame = {**inputs, "t": inputs["t"][:, None].expand(-1, FRAMES)}
    real = ... if mask is None else mask[0]
    torch.testing.assert_close(model(**per_frame, mask=mask)[..., real], model(**inputs, mask=mask)[..., real])


@pytest.mark.parametrize("options", PER_FRAME, ids=str)
@torch.no_grad()
def test_timesteps_of_frames_go_to_their_frames(options):
    """Without attention between tokens, a frame's timestep moves its token alone."""
    model = dit(**{**options, "depth": 1, "num_memory_tokens": 0, "prepend_cond_dim": 0, "sliding_window": [0, 0]})
    inputs = inputs_for(model)
    t = torch.rand(2, FRAMES, dtype=torch.float64)
    later = t.clone()
    later[:, 4] = 0.9 * later[:, 4] + 0.05
    moved = (model(**{**inputs, "t": later}) - model(**{**inputs, "t": t})).abs().amax(dim=(0, 1)) > 1e-12
    patch = model.params.patch_size
    assert moved.nonzero().flatten().tolist() == list(range(4 // patch * patch, 4 // patch * patch + patch))


def test_timesteps_per_frame_without_a_place_are_refused():
    model = dit(global_cond_type="prepend")
    inputs = inputs_for(model)
    with pytest.raises(ValueError, match=r"one token of global_cond_type prepend; set \"global_cond_type\": \"adaLN\", or"):
        model(**{**inputs, "t": torch.rand(2, FRAMES, dtype=torch.float64)})
    with pytest.raises(ValueError, match="timesteps for 5 frames, but there are 12"):
        dit()(**{**inputs, "t": torch.rand(2, 5, dtype=torch.float64)})


@torch.no_grad()
def test_a_timestep_as_input_channels_works():
    """With the recorded keys."""
    reference = load_reference("tiny_cond_dit_ic_timestep")
    model = create_model_from_config(reference.config).eval()
    assert_same_layout(model, reference.table)
    fill(model, reference)
    x, context = torch.randn(2, 8, 16), torch.randn(2, 1, 32)
    network = model.model.model
    outs = [network(x, torch.full((2,), t), cross_attn_cond=context) for t in (0.2, 0.8)]
    assert outs[0].shape == x.shape and not torch.allclose(*outs)


# Explicit positions

PLACED = {
    "rotary": {},
    "rotary, grouped memory": {"num_memory_tokens": 2, "prepend_cond_dim": 5},
    "rope of the blocks": {"rotary_pos_emb": False, "add_rope": True},
    "sinusoidal": {"use_sinusoidal_emb": True, "num_memory_tokens": 2},
    "learned": {"use_abs_pos_emb": True, "abs_pos_emb_max_length": 32, "num_memory_tokens": 2},
}


@pytest.mark.parametrize("options", PLACED.values(), ids=PLACED.keys())
@torch.no_grad()
def test_positions_default_to_those_of_a_sequence(options):
    model = dit(patch_size=3, **options)
    inputs, places = inputs_for(model), torch.arange(FRAMES // 3)
    plain = model(**inputs)
    for positions in (places, places.expand(2, -1)):
        torch.testing.assert_close(model(**inputs, positions=positions), plain)
    assert not torch.allclose(model(**inputs, positions=places.flip(0)), plain)


@torch.no_grad()
def test_rotary_positions_count_by_distance_and_may_be_fractions():
    model = dit()
    inputs, places = inputs_for(model), torch.arange(FRAMES, dtype=torch.float64)
    plain = model(**inputs)
    torch.testing.assert_close(model(**inputs, positions=places + 7.25), plain, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(model(**inputs, positions=places * 0.5), plain, atol=1e-3)
    both = torch.stack((places, places * 0.5))
    torch.testing.assert_close(model(**inputs, positions=both)[0], plain[0])
    torch.testing.assert_close(model(**inputs, positions=both)[1], model(**inputs, positions=places * 0.5)[1])


def test_learned_positions_are_whole():
    model = dit(use_abs_pos_emb=True, abs_pos_emb_max_length=32)
    with pytest.raises(ValueError, match="learned positions are whole numbers; give integers"):
        model(**inputs_for(model), positions=torch.arange(FRAMES) + 0.5)


# Recomputation


class LiveBytes(TorchDispatchMode):
    """Knows the storages that were made while it is active, and the bytes of those that are alive."""

    def __init__(self):
        super().__init__()
        self.storages = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.storages[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return out

    @property
    def total(self):
        return sum(size for reference, size in self.storages.values() if not reference.expired())


def step(model, inputs):
    """Loss, gradients, and the bytes alive between forward and backward pass."""
    model.zero_grad(set_to_none=True)
    with LiveBytes() as live:
        loss = model(**inputs).square().mean()
        kept = live.total
    loss.backward()
    return loss.detach(), [p.grad for p in model.parameters()], kept


@pytest.mark.parametrize("options", [{"cond_token_dim": 16}, {"conformer": True, "sliding_window": [2, 2]}], ids=str)
def test_recomputation_changes_memory_and_no_number(options):
    models = [dit(depth=3, activation_checkpointing=how, **ADALN, **options) for how in ("none", "selective", "full")]
    for model in models[1:]:
        model.load_state_dict(models[0].state_dict())
    inputs = inputs_for(models[0], frames=96)
    none, selective, full = (step(model, inputs) for model in models)
    for other in (selective, full):
        torch.testing.assert_close(other[0], none[0], rtol=0, atol=0)
        for got, want in zip(other[1], none[1], strict=True):
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    assert full[2] < 0.5 * selective[2] and selective[2] < 0.8 * none[2]


@pytest.mark.parametrize(("word", "meaning"), [(True, "full"), (False, "none"), ("selective", "selective")])
def test_recomputation_by_word_or_by_yes_and_no(word, meaning):
    assert parse({"activation_checkpointing": word}).activation_checkpointing == meaning


# What the config refuses


@pytest.mark.parametrize(
    ("options", "path", "fix"),
    [
        (
            {"mask_condition_padding": True, "attn_kwargs": {"backend": "flash"}},
            ("attn_kwargs", "backend"),
            'set it to "auto", "sdpa" or "flex"',
        ),
        (
            {"causal": True, "attn_kwargs": {"backend": "flash"}},
            ("attn_kwargs", "backend"),
            'set it to "auto", or "causal_cross_attention" to false',
        ),
        ({"causal_cross_attention": False}, ("causal_cross_attention",), "remove it"),
        ({"causal_cross_attention": True}, ("causal_cross_attention",), "remove it"),
    ],
)
def test_settings_that_cannot_act_are_refused(options, path, fix):
    config = text_to_audio()
    config["model"]["diffusion"]["config"] |= {"embed_dim": 32, "num_heads": 4, "cond_token_dim": 16, **options}
    with pytest.raises(ConfigError) as error:
        parse_model_config(config)
    assert [(problem.path, problem.fix) for problem in error.value.problems] == [(("model", "diffusion", "config", *path), fix)]


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValidationError, match="'auto', 'sdpa', 'flash' or 'flex'"):
        parse({"attn_kwargs": {"backend": "xformers"}})


def test_a_last_block_with_cross_attention_needs_cross_attention():
    with pytest.raises(ValidationError, match="has no effect without cond_token_dim"):
        parse({"final_cross_attn_ix": 0})
