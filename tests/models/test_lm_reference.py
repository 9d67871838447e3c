"""Language models against recorded numbers: every pattern the peer names, conditions by cross-attention and prefix, two quantizers."""

from functools import cache

import pytest
import torch
from reference_rule import Reference, assert_matches, assert_same_layout, fill, load_reference

from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.models.lm import AudioLanguageModel

NAMES = ("tiny_lm_dac_delay", "tiny_lm_dac_parallel", "tiny_lm_dac_unroll", "tiny_lm_dac_crossnoproj", "tiny_lm_rvq_delay")
METADATA = [{"pitch": 3, "seconds_total": 30}, {"pitch": 99, "seconds_total": 600}]


class Case:
    """A recorded model with the recorded weights, and its conditions."""

    def __init__(self, name: str):
        self.reference: Reference = load_reference(name)
        self.model: AudioLanguageModel = create_model_from_config(self.reference.config).eval()
        assert_same_layout(self.model, self.reference.table)
        fill(self.model, self.reference)
        self.codes = self.reference["in.codes"]
        with torch.no_grad():
            self.conditions = self.model.conditioner(METADATA, "cpu")


@cache
def case(name: str) -> Case:
    return Case(name)


def has(name: str, key: str) -> bool:
    return key in load_reference(name).tensors


def recorded(key: str) -> list[str]:
    return [name for name in NAMES if has(name, key)]


@pytest.mark.parametrize("name", NAMES)
def test_the_sequence_of_the_pattern(name):
    recorded = case(name)
    pattern = recorded.model.pattern(recorded.codes.shape[-1])
    sequence, holds = pattern.build(recorded.codes, recorded.model.lm.masked_token_id, trained=True)
    assert torch.equal(sequence, recorded.reference["out.pattern_codes"])
    assert torch.equal(holds, recorded.reference["out.pattern_mask"])


@torch.no_grad()
@pytest.mark.parametrize("name", recorded("out.logits"))
def test_logits(name):
    recorded = case(name)
    output = recorded.model.compute_logits(recorded.codes, recorded.conditions)
    assert_matches(output.logits.nan_to_num(), recorded.reference["out.logits"])
    assert torch.equal(output.logits.isnan().all(-1), recorded.reference["out.logits_nan"])
    assert torch.equal(output.mask, recorded.reference["out.mask"])


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("name", recorded("out.greedy_cfg1.0"))
def test_the_most_likely_tokens(name, scale, use_cache):
    recorded = case(name)
    got = recorded.model.generate(12, 2, conditioning_tensors=recorded.conditions, temp=0, cfg_scale=scale, use_cache=use_cache)
    assert torch.equal(got, recorded.reference[f"out.greedy_cfg{scale}"])


@pytest.mark.parametrize("name", recorded("seeded.generate_topk5"))
def test_drawn_tokens_follow_the_global_generator(name):
    recorded = case(name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        got = recorded.model.generate(12, 2, conditioning_tensors=recorded.conditions, top_k=5)
    assert torch.equal(got, recorded.reference["seeded.generate_topk5"])


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_tokens_of_audio_and_back(name):
    recorded = case(name)
    assert torch.equal(recorded.model.pretransform.tokenize(recorded.reference["in.audio"]), recorded.reference["out.tokenized"])
    if has(name, "out.decoded_tokens"):
        assert_matches(recorded.model.decode_tokens(recorded.codes), recorded.reference["out.decoded_tokens"])


@torch.no_grad()
def test_cross_attention_without_a_projection_runs_and_listens():
    # A TypeError in the peer, so there are no logits to compare with.
    recorded = case("tiny_lm_dac_crossnoproj")
    logits, mask = recorded.model.compute_logits(recorded.codes, recorded.conditions)
    other = recorded.model.compute_logits(recorded.codes, recorded.model.conditioner(METADATA[::-1], "cpu")).logits
    assert logits[mask].isfinite().all()
    assert (logits - other)[mask].abs().max() > 1e-3
