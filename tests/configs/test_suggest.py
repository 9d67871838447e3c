"""Near-misses of names."""

from __future__ import annotations

import pytest

from stable_audio_tools.configs.suggest import closest, did_you_mean, listed

KEYS = ["learning_rate", "embed_dim", "depth", "num_heads", "cond_token_dim", "global_cond_dim", "use_ema", "demo_every"]


@pytest.mark.parametrize(
    ("slip", "meant"),
    [
        ("learningrate", "learning_rate"),
        ("lr", "learning_rate"),
        ("LEARNING-RATE", "learning_rate"),
        ("embed_dm", "embed_dim"),
        ("embedding_dim", "embed_dim"),
        ("n_heads", "num_heads"),
        ("detph", "depth"),
        ("ema", "use_ema"),
        ("patch_size", None),
        ("x", None),
    ],
)
def test_slips_find_the_name_and_other_words_do_not(slip, meant):
    assert closest(slip, KEYS) == meant


def test_the_fix_lists_what_is_known():
    assert did_you_mean("ditt", ["dit", "unet"]) == 'did you mean "dit"? known: dit, unet'
    assert did_you_mean("zzz", ["dit", "unet"]) == "known: dit, unet"
    assert did_you_mean("ditt", ["dit"]) == 'did you mean "dit"?'
    assert did_you_mean(5, ["dit"]) == "known: dit"
    assert did_you_mean("zzz", []) == ""


def test_long_lists_are_cut():
    assert listed("ab") == "a, b"
    assert listed(map(str, range(20))) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15 and 4 more"
