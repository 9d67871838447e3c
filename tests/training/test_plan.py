"""`plan`: what it says of memory and operations is what a real step takes."""

import json
from pathlib import Path

import pytest
import torch
from configs import autoencoder, text_to_audio
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode

from stable_audio_tools.cli.main import main
from stable_audio_tools.cli.plan import parse_size
from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.training.config import parse_run_config
from stable_audio_tools.training.factory import create_training_wrapper_from_config
from stable_audio_tools.training.plan import largest_batch, make_plan
from stable_audio_tools.training.step_cost import PAST_WARM_UP, example_batch

NANO = sorted((Path(__file__).parents[2] / "model_configs").rglob("*_nano.json"))


def without_discriminator():
    config = autoencoder()
    del config["training"]["loss_configs"]["discriminator"]
    return config


def recomputed():
    config = text_to_audio()
    config["model"]["diffusion"]["config"]["activation_checkpointing"] = True
    return config


def grouped_heads():
    config = text_to_audio(timestep_sampler="uniform")
    config["model"]["diffusion"]["config"]["project_cond_tokens"] = False
    return config


def told():
    mask = {"type": "mask", "source": "hole", "polarity": "generate"}
    return text_to_audio(conditions=[{"type": "prefix", "frames": 9}, mask, {"type": "reference", "source": "like"}])


CONFIGS = {
    "text to audio": text_to_audio,
    "told": told,
    "autoencoder": autoencoder,
    "no discriminator": without_discriminator,
    "recomputed": recomputed,
    "grouped heads": grouped_heads,
}


def planned(make, **options):
    return make_plan(parse_run_config(make()), **options)


def real_peak(config, batch_size):
    """Most bytes that the CPU's allocator has handed out at once in a real train step, once warm-up is over, of all players."""
    module = create_training_wrapper_from_config(config, config.build()).train()
    batch = example_batch(module, config, batch_size, torch.float32)
    players = module.strategy.players(module.model)
    return max(allocated(lambda step=step: run_step(module, batch, step)) for step in range(PAST_WARM_UP, PAST_WARM_UP + len(players)))


def run_step(module, batch, step):
    for update in module.strategy.updates(module.model, module.prepare(batch), step):
        update.output.loss.backward()
        del update
        module.zero_grad(set_to_none=True)


def allocated(function):
    """In the second call, when what is made once has been made."""
    function()
    with profile(profile_memory=True, acc_events=True) as profiler:
        function()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        most = max(most, live)
    return most


def assert_memory_is_real(document, batch_size):
    config = parse_run_config(document)
    planned_peak = max(turn.peak for turn in make_plan(config, batch_size=batch_size).turns)
    assert planned_peak == pytest.approx(real_peak(config, batch_size), rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_memory_is_what_the_allocator_hands_out(name):
    assert_memory_is_real(CONFIGS[name](), batch_size=8)


@pytest.mark.slow
@pytest.mark.parametrize("path", NANO, ids=lambda path: path.stem)
def test_memory_of_every_kind_of_training(path):
    assert_memory_is_real(json.loads(path.read_text()), batch_size=8)


@pytest.mark.slow
def test_operations_are_those_of_a_real_step():
    """Of one without attention, whose fused CPU kernel torch's own counter does not know."""
    config = parse_run_config(autoencoder())
    module = create_training_wrapper_from_config(config, config.build()).train()
    with FlopCounterMode(display=False) as flops:
        run_step(module, example_batch(module, config, 2, torch.float32), PAST_WARM_UP)
    assert planned(autoencoder, batch_size=2).turns[0].flops == flops.get_total_flops()


@pytest.mark.slow
def test_attention_counts():
    """Of a + b N + c N^2 operations at N frames, the last are attention's: 4 N^2 D forward and 10 N^2 D backward, a block."""
    sizes, width, depth = (128, 256, 512), 32, 2
    flops = [planned(lambda n=n: {**text_to_audio(), "sample_size": 16 * n}, batch_size=1).flops for n in sizes]
    slopes = [(flops[i + 1] - flops[i]) / (sizes[i + 1] - sizes[i]) for i in (0, 1)]
    assert (slopes[1] - slopes[0]) / (sizes[2] - sizes[0]) == pytest.approx(14 * width * depth)


@pytest.mark.slow
def test_recomputing_blocks_trades_operations_for_memory():
    kept, again = planned(text_to_audio, batch_size=8), planned(recomputed, batch_size=8)
    assert again.memory.activations < 0.8 * kept.memory.activations
    assert again.flops > 1.1 * kept.flops


@pytest.mark.slow
def test_parts_and_kinds_of_memory_add_up():
    plan = planned(text_to_audio, batch_size=2)
    model = parse_run_config(text_to_audio()).build()
    count = sum(p.numel() for p in model.parameters())
    assert sum(part.parameters for part in plan.parts) == count
    memory = plan.memory
    assert memory.gradients == 4 * count
    assert memory.weights == pytest.approx(4 * count, rel=0.01)
    assert memory.average == pytest.approx(memory.weights, rel=0.01)
    assert memory.optimizer == pytest.approx(8 * count, rel=0.01)
    fixed = memory.weights + memory.average + memory.optimizer
    assert fixed + memory.activations <= memory.total <= fixed + memory.gradients + memory.activations


@pytest.mark.slow
def test_gradients_lie_beside_activations_where_batches_accumulate():
    one, several = (planned(text_to_audio, batch_size=4, accum_batches=n) for n in (1, 4))
    assert several.memory.total > one.memory.total
    assert several.flops == 4 * one.flops


@pytest.mark.slow
@pytest.mark.parametrize("make", [text_to_audio, without_discriminator])
def test_half_precision_takes_less(make):
    full, mixed, half = (planned(make, batch_size=4, precision=p).memory for p in ("32-true", "bf16-mixed", "bf16-true"))
    assert half.activations < full.activations > mixed.activations
    assert mixed.weights == full.weights
    assert half.weights == pytest.approx(full.weights / 2, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("make", [text_to_audio, autoencoder])
def test_the_largest_batch_is_the_last_that_fits(make):
    limit = planned(make, batch_size=6).memory.total + 1000
    config = parse_run_config(make())
    found = largest_batch(config, limit)
    assert found.memory.total <= limit < make_plan(config, batch_size=found.batch_size + 1).memory.total
    assert largest_batch(config, 1000) is None


@pytest.mark.slow
def test_a_frozen_text_model_is_neither_loaded_nor_counted():
    def with_t5():
        config = text_to_audio()
        prompt = config["model"]["conditioning"]["configs"][0]
        prompt |= {"type": "t5", "config": {"t5_model_name": "t5-small", "max_length": 8}}
        diffusion = config["model"]["diffusion"]
        diffusion |= {"global_cond_ids": []}
        diffusion["config"] |= {"global_cond_dim": 0}
        return config

    plan = planned(with_t5)
    assert plan.uncounted == ("prompt",)
    assert plan.flops > 0
    assert not planned(text_to_audio).uncounted


# the command


@pytest.mark.slow
def test_a_model_of_sources_as_latents_and_finished_tensors_is_planned():
    """No data are read, so that the conditioners themselves say what they would be given."""

    def with_sources():
        config = text_to_audio()
        model = config["model"]
        encoder = {"type": "patched", "config": {"channels": 1, "patch_size": 16}}
        mix = {"sample_rate": 8000, "pretransform_config": encoder, "source_keys": ["bass"], "pre_encoded": True, "output_dim": 4}
        model["conditioning"]["configs"].append({"id": "sources", "type": "source_mix", "config": mix})
        model["conditioning"]["pre_encoded_keys"] = ["prompt"]
        model["diffusion"]["input_concat_ids"] = ["sources"]
        model["diffusion"]["config"]["input_concat_dim"] = 4
        return config

    plan = planned(with_sources, batch_size=2)
    assert sum(part.parameters for part in plan.parts) == sum(p.numel() for p in parse_run_config(with_sources()).build().parameters())
    assert plan.flops == planned(with_sources, batch_size=1).flops * 2


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "model.json"
    path.write_text(json.dumps(text_to_audio()))
    return str(path)


@pytest.mark.slow
def test_the_command_says_it_in_words(config_file, capsys):
    assert main(["plan", config_file, "--batch-size", "4", "--memory", "16MiB"]) == 0
    out = capsys.readouterr().out
    for words in ("parameters", "conditioner", "128 latent frames", "FLOP", "activations", "a checkpoint", "16 MiB hold a batch of"):
        assert words in out


@pytest.mark.slow
def test_the_command_for_machines(config_file, capsys):
    assert main(["plan", config_file, "--memory", "20MB", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["latent_frames"] == 128
    assert plan["memory_limit"] == 20_000_000
    assert plan["largest_batch"] > 1
    assert plan["memory"]["total"] > plan["memory"]["weights"]


@pytest.mark.slow
def test_too_little_memory_is_status_2(config_file, capsys):
    assert main(["plan", config_file, "--memory", "1MB"]) == 2
    assert "too little for one clip" in capsys.readouterr().out


@pytest.mark.parametrize(("flags", "message"), [(["--memory", "much"], "--memory"), (["--batch-size", "0"], "--batch-size")])
def test_bad_flags(config_file, capsys, flags, message):
    assert main(["plan", config_file, *flags]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("text", "size"), [("24GiB", 24 * 2**30), ("80GB", 80 * 10**9), ("1.5 gib", 3 * 2**29), ("500M", 5 * 10**8)])
def test_sizes(text, size):
    assert parse_size(text) == size


def test_no_size():
    with pytest.raises(ConfigError, match="24GiB"):
        parse_size("0")
