"""Every backend gives what the definition gives, or says what to change: masks, windows and causality are never dropped."""

import itertools

import pytest
import torch

from stable_audio_tools.nn.attention import Attention
from stable_audio_tools.nn.attention_backends import attend
from stable_audio_tools.nn.transformer import ContinuousTransformer
from stable_audio_tools.nn.visibility import Visibility

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
BACKENDS = ("auto", "sdpa", "flash", "flex")


def definition(q, k, v, allowed):
    """Softmax of the allowed scores, zeros where there is none."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~allowed, -torch.inf)
    return scores.softmax(-1).nan_to_num(0) @ v


def allowed_by(queries, keys, *, causal=False, window=None, real=None, offset=0):
    """The rule said pair by pair."""
    mask = torch.ones(2, 1, queries, keys, dtype=torch.bool)
    for i, j in itertools.product(range(queries), range(keys)):
        left, right = window or (-1, -1)
        position = offset + i
        too_far = (left >= 0 and j < position - left) or (right >= 0 and j > position + right)
        if too_far or (causal and j > position):
            mask[:, :, i, j] = False
    return mask if real is None else mask & real[:, None, None, :]


def heads(queries, keys, group=1, dtype=torch.float64, requires_grad=False):
    shapes = [(2, 4, queries, 8), (2, 4 // group, keys, 8), (2, 4 // group, keys, 8)]
    return [torch.randn(shape, dtype=dtype, requires_grad=requires_grad) for shape in shapes]


def flash_refuses(queries, keys, causal, window, masked):
    bounded = window is not None or causal
    plainly_causal = causal and window in (None, (-1, 2)) and queries == keys
    return masked or (bounded and not plainly_causal)


LENGTHS = {"self": (9, 1), "grouped": (9, 2), "longer context": (13, 2), "shorter context": (5, 1)}
# Masks of flex take a while to make on a CPU, so it has one case of each kind.
CASES = {
    f"{backend} {name}": (backend, *lengths)
    for backend, (name, lengths) in itertools.product(BACKENDS, LENGTHS.items())
    if backend != "flex" or name in ("grouped", "shorter context")
}


@pytest.mark.parametrize(("backend", "keys", "group"), CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("masked", [False, True], ids=["", "padding"])
@pytest.mark.parametrize("window", [None, (2, 1), (-1, 2), (3, -1)], ids=str)
@pytest.mark.parametrize("causal", [False, True], ids=["", "causal"])
@torch.no_grad()
@pytest.mark.slow
def test_backends_agree_with_the_definition(backend, keys, group, causal, window, masked):
    real = torch.rand(2, keys) > 0.3 if masked else None
    q, k, v = heads(9, keys, group)
    rule = Visibility(9, keys, real=real, causal=causal, window=window)
    if backend == "flash" and flash_refuses(9, keys, causal, window, masked):
        with pytest.raises(ValueError, match=r"attention backend 'flash': .*set \"backend\" to \"auto\", \"sdpa\" or \"flex\""):
            attend(q, k, v, rule, backend=backend)
        return
    allowed = allowed_by(9, keys, causal=causal, window=window, real=real)
    torch.testing.assert_close(attend(q, k, v, rule, backend=backend), definition(q, k, v, allowed))


@pytest.mark.parametrize("backend", ["auto", "sdpa", "flex"])
@pytest.mark.parametrize("window", [None, (3, 0)], ids=str)
@torch.no_grad()
@pytest.mark.slow
def test_queries_behind_a_cache_count_from_their_position(window, backend):
    q, k, v = heads(3, 9)
    rule = Visibility(3, 9, causal=True, window=window, offset=6)
    torch.testing.assert_close(
        attend(q, k, v, rule, backend=backend), definition(q, k, v, allowed_by(3, 9, causal=True, window=window, offset=6))
    )


@pytest.mark.parametrize("backend", ["sdpa", "flex"])
@pytest.mark.parametrize("shape", [(9, 7), (1, 9, 7), (2, 1, 1, 7), (2, 4, 9, 7)], ids=str)
@torch.no_grad()
@pytest.mark.slow
def test_any_further_mask_is_honoured(shape, backend):
    q, k, v = heads(9, 7)
    mask = torch.rand(shape) > 0.4
    real = torch.rand(2, 7) > 0.2
    rule = Visibility(9, 7, allowed=mask, real=real, causal=True)
    want = definition(q, k, v, allowed_by(9, 7, real=real, causal=True) & mask)
    torch.testing.assert_close(attend(q, k, v, rule, backend=backend), want)


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("masked", [False, True], ids=["", "padding"])
@pytest.mark.parametrize("window", [(3, 2), (70, 10), (5, 0), (0, 0)], ids=str)
@pytest.mark.parametrize("length", [256, 330])
def test_bands_equal_the_dense_mask_and_so_do_their_gradients(length, window, masked, group):
    real = torch.rand(2, length) > 0.3 if masked else None
    rule = Visibility(length, length, real=real, window=window)
    q, k, v = heads(length, length, group, requires_grad=True)
    if window == (70, 10) and length == 256:
        assert rule.band_size == 0
    else:
        assert rule.band_size > 0
    dense = Visibility(length, length, allowed=rule.dense())
    results = []
    for each in (rule, dense):
        out = attend(q, k, v, each, backend="sdpa")
        results.append((out, *torch.autograd.grad(out.square().sum(), (q, k, v))))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


def test_a_window_makes_no_mask_of_all_pairs():
    length, window = 4096, (63, 64)
    rule = Visibility(length, length, window=window)
    q, k, v = heads(length, length, dtype=torch.float32)
    attend(q, k, v, rule)
    assert rule._dense is None
    assert rule.bands(2).numel() < 2 * length * 4 * sum(window)


@pytest.mark.parametrize("options", [{}, {"real": torch.ones(1, 256, dtype=torch.bool)}], ids=["", "padding"])
def test_what_a_rule_computes_is_computed_once(options):
    rule = Visibility(256, 256, window=(2, 1), **options)
    for make in (rule.dense, rule.block_mask, lambda: rule.bands(1)):
        assert make() is make()


def test_bounds_that_bind_nobody_are_dropped():
    assert not Visibility(5, 5, window=(4, 4)).bounded
    assert Visibility(5, 5, window=(3, 4)).bounded
    assert not Visibility(1, 8, causal=True, offset=7).bounded
    assert Visibility(2, 8, causal=True, offset=6).bounded
    assert Visibility(5, 5, causal=True).only_causal


@pytest.mark.parametrize("backend", ["sdpa", "flash", "flex"])
@torch.no_grad()
@pytest.mark.slow
def test_a_whole_transformer_is_the_same_on_each_backend(backend):
    def build(backend):
        torch.manual_seed(0)
        attn_kwargs = {"backend": backend, "qk_norm": "ln", "differential": True}
        options = {"cross_attend": True, "cond_token_dim": 8, "zero_init_branch_outputs": False, "causal_cross_attention": False}
        return ContinuousTransformer(16, 2, dim_heads=8, causal=True, attn_kwargs=attn_kwargs, **options)

    x, context = torch.randn(2, 9, 16), torch.randn(2, 4, 8)
    torch.testing.assert_close(build(backend)(x, context=context), build("auto")(x, context=context))


def test_flex_says_where_it_has_gradients():
    with pytest.raises(ValueError, match=r"'flex' has no gradient on a CPU; train there with \"backend\": \"auto\" or \"sdpa\""):
        Attention(16, dim_heads=8, backend="flex")(torch.randn(1, 3, 16))


@pytest.mark.parametrize("backend", ["sdpa", "flash", "flex"])
@torch.no_grad()
def test_inputs_keep_their_precision(backend):
    """A float32 model computes in float32: half precision would be off by 1e-3."""
    q, k, v = heads(9, 9, dtype=torch.float32)
    out = attend(q, k, v, Visibility(9, 9), backend=backend)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.double(), definition(q.double(), k.double(), v.double(), allowed_by(9, 9)), rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("window", [None, (63, 64)], ids=str)
def test_backends_agree_on_a_gpu(window, backend):
    if backend == "flash" and window:
        pytest.importorskip("flash_attn")
    q, k, v = (x.to("cuda", torch.bfloat16).requires_grad_() for x in (torch.randn(2, 4, 512, 64) for _ in range(3)))
    rule = Visibility(512, 512, window=window, device=torch.device("cuda"))
    results = []
    for each in (backend, "sdpa"):
        out = attend(q, k, v, rule, backend=each)
        results.append((out, *torch.autograd.grad(out.float().square().sum(), (q, k, v))))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=2e-2, atol=2e-2)
