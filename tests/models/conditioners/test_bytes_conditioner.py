"""The learned text encoder: lengths, UTF-8, order, the empty prompt, and where gradients arrive."""

import copy
import logging

import pytest
import torch

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.configs.parse import validate
from stable_audio_tools.models.conditioners import ConditionerConfig

TINY = {"max_length": 12, "embed_dim": 8, "hidden_dim": 16, "bigram_buckets": 64, "trigram_buckets": 64}
PROMPTS = ["a bell", "", "a long saw wave, loud", "à côté"]


def conditioner(dim=6, *, tokens=True, pooled=True, **config):
    torch.manual_seed(1)
    document = {"id": "prompt", "type": "bytes", "config": {**TINY, **config}}
    return validate(ConditionerConfig, document, "conditioner").build(dim, tokens=tokens, pooled=pooled)


@pytest.fixture(params=["ngram", "transformer"])
def made(request):
    built = conditioner(encoder=request.param)
    for parameter in built.parameters():  # no branch of the transformer is zero
        torch.nn.init.normal_(parameter, std=0.5)
    return built


def test_tokens_mask_and_vectors(made):
    tokens, mask, pooled, null = made(made.prepare(PROMPTS))
    assert tokens.shape == (4, 12, 6) and pooled.shape == (4, 6) and null.shape == (1, 6)
    assert mask.sum(dim=1).tolist() == [6, 1, 12, len("à côté".encode())]
    assert tokens[~mask].eq(0).all()
    assert tokens.isfinite().all() and pooled.isfinite().all()


def test_a_batch_is_a_loop(made):
    together = made(made.prepare(PROMPTS))
    for index, prompt in enumerate(PROMPTS):
        alone = made(made.prepare([prompt]))
        for part, whole in zip(alone[:3], together[:3], strict=True):
            torch.testing.assert_close(part[0], whole[index])
        torch.testing.assert_close(alone.null, together.null)


def test_the_empty_prompt_is_the_null(made):
    condition = made(made.prepare(["", "  "]))
    torch.testing.assert_close(condition.pooled, condition.null.expand(2, -1))
    torch.testing.assert_close(condition.tensor[0], condition.tensor[1])


def test_prompts_differ_by_any_byte_and_by_order_but_not_by_space_around(made):
    pooled = made(made.prepare(["ab cd", "cd ab", "ab ce", " ab cd\n"])).pooled
    torch.testing.assert_close(pooled[0], pooled[3])
    distances = torch.cdist(pooled[:3], pooled[:3]) + torch.eye(3)
    assert distances.min() > 1e-3


def test_long_prompts_are_cut_and_reported_once(made, caplog):
    with caplog.at_level(logging.WARNING):
        prepared = made.prepare(["x" * 12, "x" * 13, "x" * 500])
    assert (prepared == prepared[0]).all()
    assert [record.message for record in caplog.records] == [
        'prompt "xxxxxxxxxxxxx" has 13 bytes; the conditioner reads the first 12 (max_length)'
    ]


def test_symbols_are_bytes_plus_one():
    assert conditioner().prepare(["Aé"])[0].tolist() == [66, 0xC3 + 1, 0xA9 + 1, *[0] * 9]


def test_an_unpaired_surrogate_is_no_crash():
    assert conditioner().prepare(["a\ud800"])[0, :2].tolist() == [98, 64]


@pytest.mark.parametrize("value", [None, 3, b"bytes", ["a", "b"]])
def test_only_text_is_taken(value):
    with pytest.raises(ValueError, match="item 0: expected text, got"):
        conditioner().prepare([value])


def test_a_copy_and_a_second_call_are_equal(made):
    prepared = made.prepare(PROMPTS)
    first = made(prepared)
    for other in (made(prepared), copy.deepcopy(made)(prepared)):
        for a, b in zip(first, other, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_hashes_fill_their_tables():
    made = conditioner(bigram_buckets=97, trigram_buckets=101)
    symbols = torch.randint(1, 257, (200, 12), generator=torch.Generator().manual_seed(0))
    for length, rows in ((2, 97), (3, 101)):
        counts = torch.bincount(made._hash(symbols, length).flatten(), minlength=rows)
        assert counts.numel() == rows and counts.min() > 0 and counts.max() < 3 * counts.float().mean()


def test_an_ngram_ends_where_it_stands():
    made = conditioner()
    early, late = made.prepare(["abcX", "abcY"])
    for length in (2, 3):
        rows = made._hash(torch.stack((early, late)), length)
        assert (rows[0] != rows[1]).nonzero().flatten().min() == 3


@pytest.mark.parametrize(("tokens", "pooled"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("encoder", ["ngram", "transformer"])
def test_only_what_is_used_is_built_and_all_of_it_trains(tokens, pooled, encoder):
    made = conditioner(tokens=tokens, pooled=pooled, encoder=encoder)
    for name, parameter in made.named_parameters():
        if "to_out" in name or "ff.2" in name:  # zero branches would hide what is behind them
            torch.nn.init.normal_(parameter, std=0.5)
    condition = made(made.prepare(PROMPTS))
    used = [condition.tensor] if tokens or not pooled else []
    used += [condition.pooled, condition.null] if pooled else []
    sum(part.square().sum() for part in used).backward()
    assert [name for name, parameter in made.named_parameters() if parameter.grad is None or parameter.grad.eq(0).all()] == []
    assert (condition.pooled is None) is not pooled


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"depth": 3}, "depth belongs to the transformer"),
        ({"encoder": "transformer", "num_heads": 3}, "embed_dim 8 is no multiple of num_heads 3"),
        ({"max_length": 0}, "above 0"),
    ],
)
def test_bad_configs(config, message):
    with pytest.raises(ConfigError, match=message):
        conditioner(**config)
