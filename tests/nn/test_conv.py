import copy

import pytest
import torch

from stable_audio_tools.nn.antialias import AntialiasedActivation, kaiser_sinc
from stable_audio_tools.nn.conv import ResidualUnit, Snake, SnakeBeta, WNConv1d, WNConvTranspose1d, activation, downsampler, upsampler

X = torch.randn(2, 4, 40, generator=torch.Generator().manual_seed(1))
LAYERS = [lambda: WNConv1d(4, 6, 5, stride=2, padding=2), lambda: WNConvTranspose1d(4, 6, 4, stride=2, padding=1)]


@pytest.fixture(params=LAYERS, ids=["conv", "transposed"])
def layer(request):
    layer = request.param()
    torch.nn.init.uniform_(layer.weight_g, 0.5, 2.0)
    return layer


def test_weight_norm_agrees_with_torch(layer):
    kinds = {WNConv1d: torch.nn.Conv1d, WNConvTranspose1d: torch.nn.ConvTranspose1d}
    plain = kinds[type(layer)](4, 6, layer.kernel_size, stride=2, padding=layer.padding)
    theirs = torch.nn.utils.parametrizations.weight_norm(plain)
    with torch.no_grad():
        theirs.parametrizations.weight.original0.copy_(layer.weight_g)
        theirs.parametrizations.weight.original1.copy_(layer.weight_v)
        theirs.bias.copy_(layer.bias)
    torch.testing.assert_close(layer(X), theirs(X))


def test_a_fresh_layer_computes_what_the_plain_one_would():
    torch.manual_seed(3)
    plain = torch.nn.Conv1d(4, 6, 5)
    torch.manual_seed(3)
    torch.testing.assert_close(WNConv1d(4, 6, 5)(X), plain(X))


def test_a_copy_is_equal_and_independent(layer):
    twin = copy.deepcopy(layer)
    assert torch.equal(twin(X), layer(X))
    before = layer(X)
    torch.nn.init.zeros_(twin.weight_g)
    assert torch.equal(layer(X), before)


def test_keys_are_those_of_torchs_weight_norm(layer):
    assert set(layer.state_dict()) == {"weight_g", "weight_v", "bias"}


def test_removing_weight_norm_changes_the_keys_and_not_the_output(layer):
    before = layer(X)
    layer.weight_v.requires_grad_(False)
    layer.remove_weight_norm()
    layer.remove_weight_norm()
    assert set(layer.state_dict()) == {"weight", "bias"}
    assert not layer.weight.requires_grad and layer.bias.requires_grad
    assert torch.equal(layer(X), before)


def test_restoring_weight_norm_is_the_way_back(layer):
    before, keys = layer(X), set(layer.state_dict())
    layer.remove_weight_norm()
    layer.weight.requires_grad_(False)
    layer.restore_weight_norm()
    layer.restore_weight_norm()
    assert set(layer.state_dict()) == keys
    assert not layer.weight_g.requires_grad and not layer.weight_v.requires_grad
    torch.testing.assert_close(layer(X), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_either_spelling_loads_into_either_form(layer, dtype):
    owned = {key: value.to(dtype, copy=True) for key, value in layer.state_dict().items()}
    layer.load_state_dict(owned)
    want = layer(X)
    folded, fresh = copy.deepcopy(layer), copy.deepcopy(layer)
    folded.remove_weight_norm()
    plain = {key: value.to(dtype, copy=True) for key, value in folded.state_dict().items()}
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-2}[dtype]
    for source, target in ((owned, folded), (plain, fresh), (plain, folded), (owned, fresh)):
        torch.nn.init.zeros_(target.bias)
        target.load_state_dict(source)
        torch.testing.assert_close(target(X), want, atol=tolerance, rtol=tolerance)


def test_an_incomplete_file_is_an_error_not_a_guess(layer):
    state = layer.state_dict()
    del state["weight_g"]
    folded = copy.deepcopy(layer)
    folded.remove_weight_norm()
    for target in (layer, folded):
        with pytest.raises(RuntimeError, match="weight"):
            target.load_state_dict(state)


def test_snake_is_its_formula_and_identity_plus_square_at_first():
    snake = SnakeBeta(4)
    torch.testing.assert_close(snake(X), X + torch.sin(X) ** 2)
    torch.nn.init.normal_(snake.alpha)
    torch.nn.init.normal_(snake.beta)
    alpha, beta = snake.alpha.exp()[:, None], snake.beta.exp()[:, None]
    torch.testing.assert_close(snake(X), X + torch.sin(alpha * X) ** 2 / (beta + 1e-9))


def test_snake_gradients_first_and_second_are_exact():
    snake = SnakeBeta(2).double()
    torch.nn.init.normal_(snake.alpha)
    torch.nn.init.normal_(snake.beta)
    x = torch.randn(2, 2, 3, dtype=torch.float64, requires_grad=True)

    def function(x, alpha, beta):
        return torch.func.functional_call(snake, {"alpha": alpha, "beta": beta}, x)

    torch.autograd.gradcheck(function, (x, snake.alpha, snake.beta))
    torch.autograd.gradgradcheck(function, (x, snake.alpha, snake.beta))


def test_snake_of_one_factor_is_its_formula_with_its_gradients():
    snake = Snake(2).double()
    snake.alpha.data.uniform_(0.5, 2)
    x = torch.randn(3, 2, 5, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(snake(x), x + torch.sin(snake.alpha * x) ** 2 / (snake.alpha + 1e-9))
    assert snake.alpha.shape == (1, 2, 1)

    def of(x, alpha):
        return torch.func.functional_call(snake, {"alpha": alpha}, (x,))

    assert torch.autograd.gradcheck(of, (x, snake.alpha))


def test_snake_keeps_only_its_input_for_the_backward_pass():
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        SnakeBeta(4)(X.clone().requires_grad_())
    assert sum(t.numel() >= X.numel() for t in saved) == 1


@pytest.mark.slow  # starting the compiler takes seconds
def test_compiled_snake_has_the_same_gradients():
    snake, weight = SnakeBeta(4), torch.randn_like(X)
    torch.nn.init.normal_(snake.alpha)
    torch.nn.init.normal_(snake.beta)
    results = []
    for function in (snake, torch.compile(snake, backend="aot_eager", fullgraph=True)):
        x = X.clone().requires_grad_()
        y = function(x)
        results.append((y, *torch.autograd.grad((y * weight).sum(), (x, snake.alpha, snake.beta))))
    for got, want in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(got, want)


def test_snake_in_half_precision_is_computed_in_full():
    half = X.bfloat16()
    assert SnakeBeta(4)(half).dtype == torch.bfloat16
    torch.testing.assert_close(SnakeBeta(4).bfloat16()(half), SnakeBeta(4)(half.float()).bfloat16())
    gradients = []
    for x in (half.clone().requires_grad_(), half.float().requires_grad_()):
        gradients += torch.autograd.grad(SnakeBeta(4)(x).float().square().sum(), x)
    assert gradients[0].dtype == torch.bfloat16
    torch.testing.assert_close(gradients[0].float(), gradients[1], atol=0.05, rtol=0.05)


@pytest.mark.parametrize("snake", [True, False])
def test_checkpointing_changes_memory_only(snake):
    unit = ResidualUnit(4, dilation=3, snake=snake)
    other = ResidualUnit(4, dilation=3, snake=snake, checkpointing=True)
    other.load_state_dict(unit.state_dict())
    results = []
    for module in (unit, other):
        x, saved = X.clone().requires_grad_(), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t) or t, lambda t: t):
            y = module(x)
        y.square().sum().backward()
        results.append((y, x.grad, module.layers[1].weight_v.grad, len(saved)))
    for got, want in zip(results[1][:3], results[0][:3], strict=True):
        assert torch.equal(got, want)
    assert results[1][3] < results[0][3]
    assert not ResidualUnit(4, dilation=1, snake=snake).checkpointing


@pytest.mark.parametrize("stride", [2, 3, 4, 5])
def test_resamplers_change_the_length_by_their_stride(stride):
    x = torch.randn(1, 2, 12 * stride)
    assert downsampler(2, 3, stride)(x).shape == (1, 3, 12)
    assert upsampler(2, 3, stride)(x[..., :12]).shape == (1, 3, 12 * stride - stride % 2)
    assert upsampler(2, 3, stride, nearest=True)(x[..., :12]).shape == (1, 3, 12 * stride)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_the_nearest_upsampler_is_repetition_under_a_same_convolution():
    up, x = upsampler(4, 3, 2, nearest=True), torch.randn(1, 4, 9)
    want = torch.nn.functional.conv1d(x.repeat_interleave(2, -1), up[1].effective_weight(), padding="same")
    torch.testing.assert_close(up(x), want)
    assert set(up.state_dict()) == {"1.weight_g", "1.weight_v"}


def test_antialiasing_filter_passes_low_and_stops_high_frequencies():
    taps = kaiser_sinc(0.25, 0.3, 12)
    gain = torch.fft.rfft(taps.flatten(), n=1000).abs()
    assert gain[0] == pytest.approx(1)
    assert gain[:50].min() > 0.98  # cycles per 1000 samples
    assert gain[450:].max() < 0.1
    torch.testing.assert_close(taps, taps.flip(-1))


def test_antialiased_activation_keeps_slow_signals_and_makes_fewer_aliases():
    time = torch.arange(400.0)
    slow = torch.sin(2 * torch.pi * 0.01 * time).view(1, 1, -1)
    torch.testing.assert_close(AntialiasedActivation(torch.nn.Identity())(slow)[..., 20:-20], slow[..., 20:-20], atol=5e-3, rtol=0)
    fast = torch.sin(2 * torch.pi * 0.37 * time).view(1, 1, -1)  # squared by Snake: 0.74, which folds back to 0.26
    alias = [
        torch.fft.rfft(act(fast).flatten()[100:300]).abs()[52]
        for act in (activation(1, snake=True), activation(1, snake=True, antialias=True))
    ]
    assert alias[1] < 0.4 * alias[0]


def test_antialiased_keys_are_the_published_layers():
    assert set(activation(3, snake=True, antialias=True).state_dict()) == {
        "act.alpha",
        "act.beta",
        "upsample.filter",
        "downsample.lowpass.filter",
    }
