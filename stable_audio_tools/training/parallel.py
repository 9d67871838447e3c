"""Weights shared out among processes: `--strategy fsdp`, which is FSDP2 (torch's `fully_shard`) under Lightning.

Transformer blocks, which hold nearly all the weights of a large model, are sharded: each process keeps 1/N of a block, of its
gradient, its average and its optimizer state, and has the whole block only while it computes with it. All other weights stay
whole on every process, so that code may use them outside of a forward pass; their gradients are averaged before a step.
Checkpoints and exports hold whole tensors, the same as after any other training.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor.experimental import implicit_replication
from torch.optim import Optimizer

from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.nn import adp
from stable_audio_tools.nn.transformer import TransformerBlock

if TYPE_CHECKING:
    from ema_pytorch import EMA

BLOCKS = (TransformerBlock, adp.TransformerBlock)
KERNEL = ("fused", "foreach")  # what an optimizer computes with, which depends on its weights and not on the file


class FullyShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all processes, on any device, with the same checkpoint files as everywhere.

    Lightning's own strategy shards over nothing by default, numbers optimizer states by all parameters of the module instead of
    those that the optimizer has, does not restore extra states, and reads checkpoints past the `CheckpointIO`; that is what is
    overridden here.
    """

    def __init__(self) -> None:
        super().__init__(save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    # weights

    def shard(self, model: nn.Module, averages: Iterable[EMA]) -> None:
        """Share out the trained transformer blocks of `model`, and those of its averages.

        Raises:
            ConfigError: there are none.
        """
        mesh, policy = self.device_mesh["data_parallel"], _policy(self.precision_plugin.precision)
        copies = [(average, _trained_blocks(average.model)) for average in averages]
        names = _trained_blocks(model)
        if not names:
            what = "it shares out transformer blocks, and this model trains none"
            raise ConfigError([Problem((), what, "--strategy ddp trains it")], source="--strategy fsdp")
        for average, blocks in copies:
            average.use_foreach = False  # sharded and whole weights do not go into one call
            _shard_blocks(average.ema_model, blocks, mesh, policy)
        _shard_blocks(model, names, mesh, policy)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Average over the processes the gradients of weights that are not sharded; the others are averages already.

        A weight without a gradient here may have one elsewhere, such as a codebook that only some batches use. It then counts as
        zeros; without one anywhere it has none afterwards, as in one process.
        """
        whole = [parameter for parameter in parameters if not isinstance(parameter, DTensor)]
        if not whole:
            return
        given = torch.tensor([parameter.grad is not None for parameter in whole], dtype=whole[0].dtype)
        gradients = [torch.zeros_like(parameter) if parameter.grad is None else parameter.grad for parameter in whole]
        flat = torch.cat([given.to(whole[0].device), *(gradient.flatten() for gradient in gradients)])
        distributed.all_reduce(flat)
        givers, *sums = flat.split([len(whole), *(gradient.numel() for gradient in gradients)])
        used = [True] * len(whole) if given.all() else (givers > 0).tolist()  # or it waits for the device
        for parameter, gradient, total, any_gave in zip(whole, gradients, sums, used, strict=True):
            parameter.grad = gradient.copy_(total.view_as(gradient) / self.world_size) if any_gave else None

    def optimizer_step(self, *args: Any, **kwargs: Any) -> Any:
        with implicit_replication():  # sharded and whole weights go into one call
            return super().optimizer_step(*args, **kwargs)

    # checkpoints

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The whole weights, on the CPU of the first process; nothing elsewhere. Every process must make the call."""
        assert self.lightning_module is not None
        return whole_state(self.lightning_module)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        shared = {name: _like(value, own.get(name)) for name, value in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(shared, strict=strict)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """As `lightning_module_state_dict`, of an optimizer."""
        state = getattr(optimizer, "_optimizer", optimizer).state_dict()
        return {**state, "state": {index: _whole(values) for index, values in state["state"].items()}}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            state = {
                index: {name: _like(value, parameters[index]) for name, value in values.items()} for index, values in saved["state"].items()
            }
            kernels = [{name: group[name] for name in KERNEL if name in group} for group in optimizer.param_groups]
            groups = [{**group, **kernel} for group, kernel in zip(saved["param_groups"], kernels, strict=True)]
            optimizer.load_state_dict({"state": state, "param_groups": groups})

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)


def _policy(precision: str) -> MixedPrecisionPolicy:
    """Blocks travel in the precision they compute in; gradients are summed in float32. Inputs are left as they are: a bfloat16
    timestep or position would be too coarse."""
    if precision == "bf16-mixed":
        return MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    return MixedPrecisionPolicy(cast_forward_inputs=False)


def _trained_blocks(model: nn.Module) -> list[str]:
    """The names of the transformer blocks of which something trains."""
    blocks = [(name, module) for name, module in model.named_modules() if isinstance(module, BLOCKS)]
    return [name for name, block in blocks if any(parameter.requires_grad for parameter in block.parameters())]


def _shard_blocks(model: nn.Module, names: Sequence[str], mesh: DeviceMesh, policy: MixedPrecisionPolicy) -> None:
    """Shard each block by itself, and tie those of one transformer together, so that the next one travels while one computes."""
    blocks = {name: model.get_submodule(name) for name in names}
    within = {parameter for block in blocks.values() for parameter in block.parameters()}
    others = set(model.parameters()) - within
    for block in blocks.values():
        fully_shard(block, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
    for owner in dict.fromkeys(_owner(model, name) for name in names):
        fully_shard(model.get_submodule(owner), mesh=mesh, reshard_after_forward=True, mp_policy=policy, ignored_params=others)


def _owner(model: nn.Module, name: str) -> str:
    """The name of the module whose forward pass runs the block `name`."""
    owner = name.rpartition(".")[0]
    return owner.rpartition(".")[0] if isinstance(model.get_submodule(owner), nn.ModuleList) else owner


# whole and sharded tensors


def local_part(tensor: Tensor) -> Tensor:
    """What this process has of a tensor; all of it where it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def with_part(part: Tensor, place: Tensor) -> Tensor:
    """What `local_part` gave, again as a tensor like `place`."""
    part = part.to(local_part(place))
    if not isinstance(place, DTensor):
        return part
    return DTensor.from_local(part, place.device_mesh, place.placements, run_check=False, shape=place.shape, stride=place.stride())


def whole_state(module: nn.Module) -> dict[str, Any]:
    """The state_dict of a module with whole tensors, on the first process; nothing on others. Every process must make the call."""
    return _whole(module.state_dict())


def _whole(state: Mapping[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    first = not distributed.is_initialized() or distributed.get_rank() == 0
    for name, value in state.items():
        value = value.full_tensor().cpu() if isinstance(value, DTensor) else value  # every process takes part
        kept |= {name: value} if first else {}
    return kept


def _like(value: Any, place: Any) -> Any:
    """A whole tensor sharded as the one in whose place it comes; anything else as it is. Every process has all of it."""
    if not isinstance(place, DTensor) or not isinstance(value, Tensor) or value.shape != place.shape:
        return value
    return distribute_tensor(value.to(place.device), place.device_mesh, place.placements, src_data_rank=None)


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The 2-norm (scalar) of all gradients together, the same on every process."""
    norms = [nn.utils.get_total_norm(part, foreach=True) for part in _apart(gradients) if part]
    norms = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms) if norms else torch.zeros(1))


def clip_gradients(parameters: Sequence[nn.Parameter], limit: float, norm: Tensor) -> None:
    """Scale the gradients, whose norm together is `norm`, down to `limit`."""
    for part in _apart(parameters):
        nn.utils.clip_grads_with_norm_(part, limit, norm, foreach=True)


def _apart(tensors: Iterable[Tensor]) -> Iterator[list[Any]]:
    """Sharded ones, then whole ones: torch takes no list of both."""
    listed = list(tensors)
    for sharded in (True, False):
        yield [tensor for tensor in listed if isinstance(tensor, DTensor) is sharded]
