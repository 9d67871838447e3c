"""What one training step costs, found by running it on fake tensors: they have shapes and no memory, so any size runs on a laptop.

The step is the real one, of the host and strategy that train. Counted is what torch computes and allocates as tensors, and the
second copy of its result that a convolution makes; other scratch space of kernels and what the allocator leaves unused are not.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from stable_audio_tools.diffusion.timesteps import parse_timestep_sampler
from stable_audio_tools.models.conditioners import Conditioner
from stable_audio_tools.models.config import BaseModelConfig
from stable_audio_tools.nn.quantize import Codebook
from stable_audio_tools.training.module import TrainingModule
from stable_audio_tools.training.noising import Noising
from stable_audio_tools.training.strategies.arc import NoiseLevels

AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
WHOLE = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}
PRECISIONS = ("32-true", *AUTOCAST, *WHOLE)
BLOCK = 16  # channels that CPU kernels of convolutions treat as one
CONVOLUTIONS = (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default)
PAST_WARM_UP = 2**30  # a train step that no warm-up lasts to

Shape = Sequence[int]


@dataclass(frozen=True)
class Turn:
    """What one optimizer step costs, in bytes and operations.

    player: whose weights it moves.
    flops: of forward and backward pass, recomputation included; a multiplication with an addition counts 2.
    activations: most bytes alive at once that are neither weights nor gradients nor optimizer states.
    peak: the same, with the gradients that exist by then.
    gradients, optimizer: of the player's gradients and its optimizer's states.
    """

    player: str
    flops: int
    activations: int
    peak: int
    gradients: int
    optimizer: int


def measure_turns(module: TrainingModule, config: BaseModelConfig, batch_size: int, precision: str = "32-true") -> list[Turn]:
    """The turns of a host that was made on the meta device, on batches of `batch_size` clips, once warm-up is over.

    Players that alternate have a turn each. `module` holds fake weights afterwards.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        _fake_weights(module, WHOLE.get(precision))
        for part in module.modules():
            if isinstance(part, Conditioner):
                part.stand_in()
        _fake_timesteps(module)
        _start_codebooks(module)
        module.train()
        batch = example_batch(module, config, batch_size, WHOLE.get(precision, torch.float32))
        players = module.strategy.players(module.model)
        found: dict[str, Turn] = {}
        for step in range(PAST_WARM_UP, PAST_WARM_UP + len(players)):
            for turn in _turns(module, players, batch, step, AUTOCAST.get(precision)):
                found.setdefault(turn.player, turn)
        return list(found.values())


def size_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of some tensors; those that share memory count once."""
    return sum({id(t.untyped_storage()): t.untyped_storage().nbytes() for t in tensors}.values())


def _turns(
    module: TrainingModule, players: Mapping[str, list[nn.Parameter]], batch: Any, step: int, autocast: torch.dtype | None
) -> Iterator[Turn]:
    """The turns of one train step: several where all players move on each batch."""
    with torch.autocast("cpu", autocast, enabled=autocast is not None):
        # A pass of its own, since the counter of operations holds on to what recomputation would let go.
        operations = _operations(module, batch, step)
        optimizers = {player: _states(module, player, parameters) for player, parameters in players.items()}
        _forget_gradients(module)
        memory = LiveMemory()
        with memory, memory.telling_gradients(module):
            for update, flops in zip(module.strategy.updates(module.model, module.prepare(batch), step), operations, strict=True):
                player = update.player
                update.output.loss.backward()
                gradients = size_of(p.grad for p in players[player] if p.grad is not None)
                yield Turn(player, flops, memory.peak, memory.peak_with_gradients, gradients, optimizers[player])
                _forget_gradients(module)


def _operations(module: TrainingModule, batch: Any, step: int) -> list[int]:
    """Of each turn of one train step; leaves the gradients."""
    counts: list[int] = []
    with _flop_counter() as flops:
        for update in module.strategy.updates(module.model, module.prepare(batch), step):
            update.output.loss.backward()
            counts.append(flops.get_total_flops() - sum(counts))
    return counts


def _forget_gradients(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.grad = None


def _states(module: TrainingModule, player: str, parameters: list[nn.Parameter]) -> int:
    """Bytes of the optimizer's states, which exist after its first step."""
    optimizer, _ = module.optimizer_groups[player].build(parameters)
    optimizer.step()
    states = [state for states in optimizer.state.values() for state in states.values()]
    return sum(state.nbytes for state in states if isinstance(state, Tensor))


def _fake_weights(module: nn.Module, dtype: torch.dtype | None) -> None:
    """Replace the weights on the meta device by fake ones on the CPU, of another precision if asked for; shared ones stay shared."""
    made: dict[int, Any] = {}

    def fake(tensor: Tensor) -> Any:
        if id(tensor) not in made:
            wanted = dtype if tensor.is_floating_point() else None
            empty = torch.empty_like(tensor, device="cpu", dtype=wanted)
            made[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
        return made[id(tensor)]

    for part in module.modules():
        for slots in (part._parameters, part._buffers):
            slots.update({name: fake(tensor) for name, tensor in slots.items() if tensor is not None})


def _fake_timesteps(module: nn.Module) -> None:
    """Which noise levels are drawn costs nothing, and a Sobol sequence cannot be drawn from fake tensors."""
    for part in module.modules():
        if isinstance(part, Noising | NoiseLevels):
            part.sampler = parse_timestep_sampler("logit_normal")


def _start_codebooks(module: nn.Module) -> None:
    """Only the first batch of a run is clustered, and whether it is the first cannot be read from fake tensors."""
    for part in module.modules():
        if isinstance(part, Codebook):
            part.checked = True


def example_batch(module: TrainingModule, config: BaseModelConfig, batch_size: int, dtype: torch.dtype) -> Any:
    """What a data loader would give: clips as long as the config says, with metadata that every conditioner accepts."""
    audio = torch.zeros(batch_size, config.audio_channels, config.sample_size, dtype=dtype)
    if getattr(module, "pre_encoded", False):
        body: Any = config.model
        tokens = config.model_type == "lm"
        channels = body.pretransform.num_quantizers if tokens else body.io_channels
        frames = config.sample_size // config.samples_per_frame
        audio = torch.zeros(batch_size, channels, frames, dtype=torch.int64 if tokens else dtype)
    conditioning = getattr(config.model, "conditioning", None)
    metadata = conditioning.example(config.sample_rate, getattr(config.model, "pretransform", None)) if conditioning else {}
    told = getattr(getattr(config, "training", None), "token_conditions", ())
    metadata = metadata | {each.reads: each.example(audio[0]) for each in told if each.reads is not None}
    return audio, (metadata,) * batch_size


class LiveMemory(TorchDispatchMode):
    """Bytes of the tensors that were made while it is active and are still alive, and the most there were at once.

    Tensors that share memory count once. `peak` leaves gradients out, `peak_with_gradients` does not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.gradients = self.peak = self.peak_with_gradients = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Callable, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        given = {_memory_of(value) for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)}
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor) and _memory_of(value) not in given:  # a view of what was there already is nothing new
                self._add(value)
        if func in CONVOLUTIONS:
            self._hold(sum(_blocked(value) for value in tree_leaves(out) if isinstance(value, Tensor)))
        return out

    @contextmanager
    def telling_gradients(self, module: nn.Module) -> Iterator[None]:
        """Inside, the gradients of the weights of `module` are told from other tensors."""
        hooks = [p.register_post_accumulate_grad_hook(self._tell) for p in module.parameters() if p.requires_grad]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _add(self, tensor: Tensor) -> None:
        storage, key = tensor.untyped_storage(), _memory_of(tensor)
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        weakref.finalize(storage, self._drop, key)
        self.live += self._sizes[key]
        self._hold(0)

    def _hold(self, scratch: int) -> None:
        """Note how much is alive while a kernel has so much beside it."""
        self.peak = max(self.peak, self.live - self.gradients + scratch)
        self.peak_with_gradients = max(self.peak_with_gradients, self.live + scratch)

    def _drop(self, key: int) -> None:
        self.live -= self._sizes.pop(key)

    def _tell(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        self.gradients += parameter.grad.untyped_storage().nbytes()


def _blocked(tensor: Tensor) -> int:
    """Bytes of a convolution's result in the layout that its kernel writes before it is brought to torch's."""
    channels = tensor.shape[1] if tensor.ndim > 1 else 1
    return tensor.nbytes // channels * (-(-channels // BLOCK) * BLOCK)


def _memory_of(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _flop_counter() -> FlopCounterMode:
    """torch's counter, which does not know the CPU's fused attention."""
    aten = torch.ops.aten
    attention = {
        aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
    }
    return FlopCounterMode(display=False, custom_mapping=attention)


def _attention_flops(query: Shape, key: Shape, value: Shape, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(query, _shared(key, query), _shared(value, query))


def _attention_backward_flops(grad: Shape, query: Shape, key: Shape, value: Shape, *args: Any, **kwargs: Any) -> int:
    return sdpa_backward_flop_count(grad, query, _shared(key, query), _shared(value, query))


def _shared(keys: Shape, query: Shape) -> Shape:
    """The shape of keys or values once each is repeated for the query heads that share it."""
    return (keys[0], query[1], *keys[2:])
