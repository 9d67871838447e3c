import itertools
import pickle

import pytest
import torch

from stable_audio_tools.models.codebook_patterns import PATTERNS, PatternOptions, option_problems, pattern_table

SPECIAL = -1
CASES = [
    ("delay", {}),
    ("delay", {"delays": [0, 0, 2]}),
    ("delay", {"delays": [1, 2, 4], "empty_initial": 2}),
    ("delay", {"flatten_first": 2}),
    ("parallel", {}),
    ("parallel", {"empty_initial": 3}),
    ("unroll", {}),
    ("unroll", {"flattening": [0, 1, 1]}),
    ("unroll", {"flattening": [0, 2, 2], "delays": [0, 3, 3]}),
    ("unroll", {"flattening": [0, 0, 0]}),
    ("musiclm", {}),
    ("musiclm", {"group_by": 1}),
    ("musiclm", {"group_by": 5}),
    ("coarse_first", {}),
    ("coarse_first", {"delays": [0, 1]}),
    ("coarse_first", {"delays": [2, 3]}),
]


def table(name, options, frames, codebooks=3):
    return pattern_table(name, PatternOptions.model_validate(options), codebooks, frames)


def codes(frames, codebooks=3):
    return torch.randint(0, 50, (2, codebooks, frames), generator=torch.Generator().manual_seed(frames))


def columns(sequence):
    """A sequence (1, K, S) as one string a step, '.' for nothing."""
    return ["".join("." if token == SPECIAL else str(token) for token in step) for step in sequence[0].T.tolist()]


@pytest.mark.parametrize("frames", [1, 2, 3, 7])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_reverting_gives_the_tokens_back(name, options, frames):
    pattern, given = table(name, options, frames), codes(frames)
    sequence, holds = pattern.build(given, SPECIAL)
    back, there = pattern.revert(sequence, SPECIAL)
    assert torch.equal(back, given) and there.all()
    assert sequence.shape == (2, 3, pattern.num_steps)
    assert torch.equal(sequence != SPECIAL, holds.expand(2, -1, -1))
    assert holds.sum() == given[0].numel()  # each token once


@pytest.mark.parametrize("frames", [1, 2, 7])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_training_sees_the_beginning_of_the_same_sequence(name, options, frames):
    pattern, given = table(name, options, frames), codes(frames)
    whole, _ = pattern.build(given, SPECIAL)
    cut, _ = pattern.build(given, SPECIAL, trained=True)
    assert torch.equal(cut, whole[..., : pattern.trained_steps])
    back, there = pattern.revert(cut, SPECIAL)
    assert torch.equal(back, torch.where(there, given, SPECIAL))


@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_codebook_is_predicted_in_the_order_of_its_frames_after_the_start(name, options):
    steps = torch.tensor(table(name, options, 7).step_of)
    assert (steps.diff(dim=1) > 0).all()
    assert steps.min() > 0


@pytest.mark.parametrize(("name", "options"), CASES)
def test_logits_of_a_token_come_from_the_step_before_it(name, options):
    pattern = table(name, options, 5)
    # Each step says its own number, so a token is given the number of the step that predicts it.
    said = torch.arange(float(pattern.trained_steps)).expand(2, 3, -1)[..., None]
    logits, there = pattern.revert_logits(said)
    expected = torch.tensor(pattern.step_of) - 1.0
    assert torch.equal(there, expected < pattern.trained_steps - 1)
    assert torch.equal(logits[0, ..., 0][there], expected[there])
    assert logits[..., 0].isnan().equal(~there.expand(2, -1, -1))


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("delay", {}, ["...", "1..", "21.", "321", ".32", "..3"]),
        ("delay", {"delays": [0, 2, 2]}, ["...", "1..", "2..", "311", ".22", ".33"]),
        ("delay", {"flatten_first": 1}, ["...", "1..", ".1.", "..1", "2..", "32.", ".32", "..3"]),
        ("delay", {"empty_initial": 1}, ["...", "...", "1..", "21.", "321", ".32", "..3"]),
        ("parallel", {}, ["...", "111", "222", "333"]),
        ("unroll", {}, ["...", "1..", ".1.", "..1", "2..", ".2.", "..2", "3..", ".3.", "..3"]),
        ("unroll", {"flattening": [0, 1, 1]}, ["...", "1..", ".11", "2..", ".22", "3..", ".33"]),
        # Steps of frames behind the last are empty; a delayed place goes before one that is not.
        ("unroll", {"flattening": [0, 1, 1], "delays": [0, 1, 1]}, ["...", "1..", ".11", "2..", ".22", "3..", ".33", "..."]),
        ("musiclm", {}, ["...", "1..", ".1.", "2..", ".2.", "3..", ".3.", "..1", "..2", "..3"]),
        ("coarse_first", {}, ["...", "1..", "2..", "3..", ".11", ".22", ".33"]),
        ("coarse_first", {"delays": [0, 1]}, ["...", "1..", "2..", "3..", ".1.", ".21", ".32", "..3"]),
    ],
)
def test_layouts(name, options, expected):
    sequence, _ = table(name, options, 3).build(torch.tensor([[[1, 2, 3]] * 3]), SPECIAL)
    assert columns(sequence) == expected


def test_frames_fewer_than_the_flattened_ones_are_all_trained():
    # The layout elsewhere drops a step of real tokens here.
    pattern = table("delay", {"flatten_first": 5}, 3)
    assert pattern.trained_steps == pattern.num_steps == 1 + 3 * 3


@pytest.mark.parametrize("codebooks", [1, 2, 3, 5])
@pytest.mark.parametrize("name", PATTERNS)
def test_every_pattern_takes_any_number_of_codebooks(name, codebooks):
    # An odd number ends in a KeyError in the peer's musiclm, one codebook in a ValueError in its coarse-first.
    given = codes(4, codebooks)
    pattern = table(name, {}, 4, codebooks)
    assert torch.equal(pattern.revert(pattern.build(given, SPECIAL)[0], SPECIAL)[0], given)


def test_tokens_that_are_not_contiguous():
    given = codes(6).mT.contiguous().mT
    pattern = table("delay", {}, 6)
    assert torch.equal(pattern.build(given, SPECIAL)[0], pattern.build(given.contiguous(), SPECIAL)[0])


def test_the_first_step_of_a_frame():
    delay = table("delay", {}, 5)
    assert [delay.first_step(t) for t in range(5)] == [1, 2, 3, 4, 5]
    assert table("musiclm", {}, 5).first_step(2) == 5


def test_what_inference_mode_computed_serves_training():
    name, options = "delay", {"delays": [0, 1, 5]}
    with torch.inference_mode():
        table(name, options, 9).build(codes(9), SPECIAL)
    pattern = table(name, options, 9)
    logits = torch.randn(2, 3, pattern.trained_steps, 4, requires_grad=True)
    pattern.revert_logits(logits)[0].nan_to_num().sum().backward()
    assert logits.grad is not None


def test_tables_are_shared_and_pickle():
    first, second = table("delay", {}, 6), table("delay", {}, 6)
    assert first is second
    assert (pickle.loads(pickle.dumps(first)).step_of == first.step_of).all()


def test_a_pattern_needs_a_frame():
    with pytest.raises(ValueError, match="at least one frame, got 0"):
        table("delay", {}, 0)


@pytest.mark.parametrize(
    ("name", "options", "path", "text", "fix"),
    [
        ("delay", {"group_by": 3}, ("group_by",), "no effect on the delay pattern, which takes delays", "remove it"),
        ("parallel", {"delays": [0, 0, 0]}, ("delays",), "no effect on the parallel pattern", "remove it"),
        ("delay", {"delays": [0, 1]}, ("delays",), "2 numbers, but they are for the 3 codebooks", "give 3"),
        ("delay", {"delays": [0, 2, 1]}, ("delays",), "[0, 2, 1] is not in ascending order", "sorted: [0, 1, 2]"),
        ("coarse_first", {"delays": [0, 1, 2]}, ("delays",), "for all but the first of the 3 codebooks", "give 2"),
        ("unroll", {"flattening": [0, 1]}, ("flattening",), "2 numbers", "give 3"),
        ("unroll", {"flattening": [0, 1, 1], "delays": [0, 1, 2]}, ("delays",), "must share a delay", "give them one delay"),
    ],
)
def test_options_that_do_not_fit(name, options, path, text, fix):
    problems = [*option_problems(name, PatternOptions.model_validate(options), 3)]
    assert [problem.path for problem in problems] == [path]
    assert text in problems[0].message and problems[0].fix == fix


def test_all_listed_options_are_known_and_fit():
    for name, pattern in PATTERNS.items():
        assert set(pattern.options) <= set(PatternOptions.model_fields)
        assert not [*option_problems(name, PatternOptions(), 3)]
    assert set(itertools.chain(*(pattern.options for pattern in PATTERNS.values()))) == set(PatternOptions.model_fields)
