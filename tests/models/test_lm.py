"""The language model as training sees it: what a token depends on, conditions, dropout, loss."""

import copy
import itertools
import pickle

import pytest
import torch
from lm_models import METADATA, ROUTES, built, conditions, lm_config, routed, tokens

from stable_audio_tools.models.codebook_patterns import PATTERNS
from stable_audio_tools.models.conditioners.base import Condition
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.models.lm import AudioLanguageModel, codebook_cross_entropy, nothing_said

FRAMES = 6
OPTIONS = [{}, {"delays": [0, 2, 2]}, {"flatten_first": 2}, {"empty_initial": 1}]


def logits_of(model, codes, given=None):
    with torch.no_grad():
        return model.compute_logits(codes, conditions(model) if given is None else given)


@pytest.mark.parametrize(
    "lm", [*({"codebook_pattern": name} for name in PATTERNS), *({"codebook_pattern_options": o} for o in OPTIONS[1:])]
)
def test_a_token_depends_on_the_steps_before_its_own_and_on_no_other(lm):
    model = built(lm_config(lm))
    codes, steps = tokens(FRAMES), torch.tensor(model.pattern(FRAMES).step_of)
    before, mask = logits_of(model, codes)
    for codebook, frame in itertools.product(range(3), range(FRAMES)):
        changed = codes.clone()
        changed[:, codebook, frame] = (changed[:, codebook, frame] + 1) % 16
        differs = (logits_of(model, changed).logits - before).abs().amax((0, 3)) > 0
        step = steps[codebook, frame]
        assert not differs[steps <= step].any()
        if step < model.pattern(FRAMES).trained_steps - 1:
            assert differs[mask[0] & (steps > step)].all()


@pytest.mark.parametrize("route", ROUTES)
def test_state_dicts_round_trip(route):
    config = routed(route)
    first, second = built(config), create_model_from_config(config).eval()
    second.load_state_dict(first.state_dict())
    codes = tokens(FRAMES)
    torch.testing.assert_close(logits_of(second, codes).logits, logits_of(first, codes).logits, equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"])
def test_a_copy_is_the_same_model(duplicate):
    model = built(routed("all"))
    same = duplicate(model)
    assert torch.equal(logits_of(same, tokens(FRAMES)).logits.nan_to_num(), logits_of(model, tokens(FRAMES)).logits.nan_to_num())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("route", ROUTES)
def test_training_reaches_the_network_and_its_conditioners_and_not_the_pretransform(route, dtype):
    model = built(routed(route)).train().to(dtype)
    codes = model.pretransform.tokenize(torch.randn(2, 1, 8 * FRAMES, dtype=dtype))
    assert codes.shape == (2, 3, FRAMES)
    output = model.compute_logits(codes, conditions(model))
    assert output.logits.shape == (2, 3, FRAMES, 16) and output.logits.dtype == dtype
    codebook_cross_entropy(output.logits, codes, output.mask).loss.backward()
    assert {name for name, p in model.lm.named_parameters() if p.grad is None or not p.grad.isfinite().all()} == set()
    used = model.routes.tokens | model.routes.vectors
    reached = {name.split(".")[1] for name, p in model.conditioner.named_parameters() if p.grad is not None}
    assert reached == used
    assert all(p.grad is None and not p.requires_grad for p in model.pretransform.parameters())
    assert not model.pretransform.training


@pytest.mark.parametrize(
    ("route", "name"), [("cross", "prompt"), ("cross", "pitch"), ("prepend", "seconds"), ("global", "seconds"), ("global", "prompt")]
)
def test_a_condition_is_heard_by_its_own_item_alone(route, name):
    # A global condition is dropped in the peer, and its causal cross-attention does not get to the pitch behind the prompt.
    model = built(routed(route, **({"causal_cross_attention": False} if route == "cross" else {})))
    codes, given = tokens(FRAMES), conditions(model)
    mask = logits_of(model, codes).mask
    other = given[name]._replace(
        tensor=torch.stack([given[name].tensor[0], given[name].tensor[1] + 1]),
        pooled=None if given[name].pooled is None else torch.stack([given[name].pooled[0], given[name].pooled[1] + 1]),
    )
    change = (logits_of(model, codes, {**given, name: other}).logits - logits_of(model, codes).logits).abs()
    assert change[0][mask[0]].max() < 1e-6
    assert change[1][mask[1]].max() > 1e-3


@pytest.mark.parametrize("route", ["cross", "prepend"])
def test_padding_of_a_prompt_is_not_heard_unless_asked_for(route):
    for masked in (True, False):
        model = built(routed(route, mask_condition_padding=masked))
        codes, given = tokens(FRAMES), conditions(model)
        assert given["prompt"].mask is not None and not given["prompt"].mask.all()
        loud = given["prompt"].tensor.masked_fill(~given["prompt"].mask[..., None], 3.0)
        mask = logits_of(model, codes).mask
        change = (
            logits_of(model, codes, {**given, "prompt": given["prompt"]._replace(tensor=loud)}).logits - logits_of(model, codes).logits
        )[mask]
        assert (change.abs().max() < 1e-6) == masked


@pytest.mark.parametrize("causal", [True, False])
def test_the_first_step_hears_all_of_a_prompt_where_cross_attention_is_not_causal(causal):
    model = built(routed("cross", causal_cross_attention=causal))
    codes, given = tokens(FRAMES), conditions(model)
    last = given["pitch"]._replace(tensor=given["pitch"].tensor + 1)  # behind the prompt's eight tokens
    change = (logits_of(model, codes, {**given, "pitch": last}).logits - logits_of(model, codes).logits).abs()
    assert (change[:, 0, 0].max() > 1e-4) == (not causal)


@pytest.mark.parametrize("causal", [None, True, False])
def test_causal_cross_attention_that_nobody_asked_for_is_reported(causal, caplog):
    create_model_from_config(routed("cross", **({} if causal is None else {"causal_cross_attention": causal})))
    assert ("causal_cross_attention" in caplog.text) == (causal is None)


def test_a_narrow_context_has_fewer_heads():
    model = built(routed("cross"))
    assert model.lm.backbone.model.layers[0].cross_attn.to_kv.weight.shape == (32, 16)
    wide = built(routed("cross", project_cross_attn_cond=True))
    assert wide.lm.backbone.model.layers[0].cross_attn.to_kv.weight.shape == (64, 32)


class TestDropout:
    """An item that lost its conditions is an item without any."""

    @pytest.mark.parametrize("route", ["cross", "prepend", "global", "all"])
    def test_all_or_nothing(self, route):
        model = built(routed(route))
        codes, given = tokens(FRAMES), conditions(model)
        with torch.no_grad():
            dropped = model.compute_logits(codes, given, cfg_dropout_prob=1.0).logits
            torch.testing.assert_close(dropped, logits_of(model, codes, nothing_said(given)).logits, equal_nan=True)
            kept = model.compute_logits(codes, given, cfg_dropout_prob=0.0).logits
            torch.testing.assert_close(kept, logits_of(model, codes).logits, equal_nan=True)

    def test_some_items(self):
        model = built(routed("cross"))
        codes, given = tokens(FRAMES).repeat(32, 1, 1), model.conditioner(METADATA * 32, "cpu")
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            mixed = model.compute_logits(codes, given, cfg_dropout_prob=0.25).logits[:, 0, 0]
        without, full = (logits_of(model, codes, g).logits[:, 0, 0] for g in (nothing_said(given), given))
        lost = torch.tensor([torch.allclose(m, w, atol=1e-5) for m, w in zip(mixed, without, strict=True)])
        stayed = torch.tensor([torch.allclose(m, f, atol=1e-5) for m, f in zip(mixed, full, strict=True)])
        assert (lost ^ stayed).all()
        assert 6 <= lost.sum() <= 26

    def test_without_conditions_it_has_nothing_to_do(self):
        model = built(routed("none"))
        output = model.compute_logits(tokens(FRAMES), cfg_dropout_prob=0.5)
        torch.testing.assert_close(output.logits, logits_of(model, tokens(FRAMES)).logits, equal_nan=True)

    def test_a_learned_null_takes_the_place_of_zeros(self):
        condition = Condition(torch.ones(2, 3, 4), None, torch.ones(2, 4), torch.full((1, 4), 5.0))
        said = nothing_said({"a": condition, "b": condition._replace(null=None)})
        assert torch.equal(said["a"].pooled, torch.full((2, 4), 5.0)) and not said["b"].pooled.any() and not said["a"].tensor.any()


class TestLoss:
    """Cross-entropy of each codebook."""

    def logits(self):
        return torch.randn(2, 3, 5, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)

    def test_it_is_the_mean_over_codebooks_of_the_mean_over_tokens(self):
        logits, codes, mask = self.logits(), tokens(5), torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(1)) > 0.4
        expected = [torch.nn.functional.cross_entropy(logits[:, k][mask[:, k]], codes[:, k][mask[:, k]]) for k in range(3)]
        loss = codebook_cross_entropy(logits, codes, mask)
        torch.testing.assert_close(loss.loss, sum(expected) / 3)
        torch.testing.assert_close(loss.cross_entropy, torch.stack(expected).detach())
        torch.testing.assert_close(loss.perplexity, torch.stack(expected).detach().exp())

    def test_what_does_not_count_is_not_looked_at(self):
        logits, codes, mask = self.logits(), tokens(5), torch.ones(2, 3, 5, dtype=torch.bool)
        mask[:, 1, 3:] = False
        poisoned = logits.masked_fill(~mask[..., None], float("nan"))
        loss = codebook_cross_entropy(poisoned, codes.masked_fill(~mask, -1), mask).loss
        torch.testing.assert_close(loss, codebook_cross_entropy(logits, codes, mask).loss)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert gradient.isfinite().all() and not gradient[~mask].any() and gradient[mask].any()

    def test_a_codebook_without_tokens_is_left_out(self):
        # NaN in the peer.
        logits, codes, mask = self.logits(), tokens(5), torch.ones(2, 3, 5, dtype=torch.bool)
        mask[:, 2] = False
        loss = codebook_cross_entropy(logits, codes, mask)
        torch.testing.assert_close(loss.loss, codebook_cross_entropy(logits[:, :2], codes[:, :2], mask[:, :2]).loss)
        assert loss.cross_entropy[2] == 0

    def test_nothing_to_learn_from_is_a_loss_of_zero(self):
        loss = codebook_cross_entropy(self.logits(), tokens(5), torch.zeros(2, 3, 5, dtype=torch.bool)).loss
        assert loss == 0 and loss.requires_grad

    def test_it_goes_down_on_one_batch(self):
        model: AudioLanguageModel = create_model_from_config(routed("all")).train()
        optimizer = torch.optim.AdamW([*model.lm.parameters(), *model.conditioner.parameters()], lr=3e-3)
        codes, losses = tokens(FRAMES), []
        for _ in range(20):
            output = model.compute_logits(codes, conditions(model))
            loss = codebook_cross_entropy(output.logits, codes, output.mask).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("wrong", [torch.zeros(2, 4, 5, dtype=torch.int64), torch.zeros(3, 5, dtype=torch.int64), torch.zeros(2, 3, 5)])
def test_tokens_of_another_layout_are_refused(wrong):
    with pytest.raises(ValueError, match=r"expected \(batch, 3 codebooks, frames\) of int64"):
        built(lm_config()).compute_logits(wrong)


def test_a_missing_condition_is_named():
    with pytest.raises(ValueError, match="there is no condition 'prompt', which the model takes by cross_attention_cond_ids"):
        built(routed("cross")).compute_logits(tokens(FRAMES))


def test_inputs_of_a_negative_condition_are_named_so():
    model = built(routed("all"))
    inputs = model.get_conditioning_inputs(conditions(model), negative=True)
    assert inputs["negative_cross_attn_cond"].shape == (2, 8, 16) and inputs["negative_global_cond"].shape == (2, 16)
