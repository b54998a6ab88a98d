"""DeepSpeed ZeRO, stages 1 to 3: moments, then also gradients, then also parameters are sharded over the ranks
(Rajbhandari et al. 2020).

deepspeed is imported where it is used. Its settings are built in code for each engine. Its state is read and written
through the fragment mappings of its universal checkpoints.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from pfcluster.checkpoint.tensor_shards import TensorShard, TensorShards, gather
from pfcluster.config import EngineConfig, OptimConfig
from pfcluster.distributed.process_group import World
from pfcluster.engine.base import EngineError, NonFiniteError, StateDict, adam_slots
from pfcluster.engine.optimizer import build_optimizer, set_rates
from pfcluster.engine.torch_engine import ConfiguredEngine

BUCKET = 50_000_000
"""Largest number of elements reduced or gathered at once; DeepSpeed's default 5e8 reserves 2 GB of fp32."""


class ZeroEngine(ConfiguredEngine):
    """A module and its optimizer inside a DeepSpeedEngine."""

    stage: int

    def _build(self, optim: OptimConfig, engine: EngineConfig) -> None:
        if self.double_backward and self.stage == 3:
            raise EngineError("ZeRO-3 cannot differentiate twice (R1): use zero2, fsdp2 or ddp")
        module = self.module
        rounds = engine.precision == "bf16_params"
        self.buffers = {name: buffer.clone() for name, buffer in super()._saved_buffers().items() if rounds}
        if self.precision != "fp32":
            module.forward = _in_context(
                self.autocast, module.forward
            )  # DeepSpeed's forward disables an outer autocast
        exact: dict[str, Tensor] = {}
        if engine.precision == "bf16_params":
            exact = {name: parameter.detach().flatten().clone() for name, parameter in module.named_parameters()}
            for unit in module.shard_units():  # type: ignore[operator]  # all networks in models/ have it
                unit.register_forward_pre_hook(_to_bf16)  # as FSDP2's mixed precision does
        optimizer = build_optimizer(module, optim)
        self.inner = _initialize(module, optimizer, deepspeed_settings(optim, engine, self.stage, module), self.world)
        self.zero = self.inner.optimizer
        self.names = {parameter: name for name, parameter in module.named_parameters()}
        if exact:  # DeepSpeed initialises its fp32 weights from the rounded ones
            for name, shard in self._weights().items():
                shard.values.copy_(exact[name][shard.offset : shard.offset + len(shard.values)])
            self.sync_after_load()

    def _forward(self, inputs: tuple[Any, ...], named: dict[str, Any], *, sync: bool) -> Any:
        self.inner.set_gradient_accumulation_boundary(sync)
        with self.autocast():
            if self.double_backward:  # DeepSpeed's engine would treat the inner gradient as its backward
                return self.module(*inputs, **named)
            return self.inner(*inputs, **named)  # the raw module is wrong under ZeRO-3 with accumulation

    def _backward(self, loss: Tensor) -> None:
        self.inner.backward(loss)

    def _step(self) -> Tensor:
        self.inner.step()
        if self.zero.overflow:  # DeepSpeed skips the update without an error
            raise NonFiniteError("the gradients' norm is not finite")
        return torch.as_tensor(self.inner.get_global_grad_norm(), device=self.world.device)

    def set_lr(self, lr: float) -> None:
        set_rates(self.zero.param_groups, lr)

    def _weights(self) -> TensorShards:
        return {
            name: TensorShard(flat.narrow(0, start, size).detach(), offset, self.shapes[name])
            for name, flat, start, size, offset in self._fragments()
        }

    def _optimizer_state(self) -> TensorShards:
        shards: TensorShards = {}
        for name, flat, start, size, offset in self._fragments():
            for slot, value in adam_slots(self.zero.optimizer, flat).items():
                if value.ndim == 0:
                    shards[f"{name}/{slot}"] = TensorShard(value.view(1), 0, ())
                else:
                    shards[f"{name}/{slot}"] = TensorShard(value.narrow(0, start, size), offset, self.shapes[name])
        return shards

    def _fragments(self) -> Iterator[tuple[str, Tensor, int, int, int]]:
        """Tuples of name, flat fp32 master tensor, start and size of this rank's shard in it, and offset of the shard
        in the flattened parameter.
        """
        parameter: Any  # DeepSpeed adds attributes to parameters
        for parameter, name in self.names.items():
            if self.stage == 3:
                group, start, size = self.zero.grad_position[self.zero.get_param_id(parameter)]
                offset = self.world.rank * size
                size = max(0, min(size, parameter.ds_numel - offset))  # the last ranks have padding
                yield name, self.zero.fp32_partitioned_groups_flat[group], start, size, offset
            elif parameter._hp_mapping is not None:
                mapping = parameter._hp_mapping
                flat = self.zero.single_partition_of_fp32_groups[mapping.param_group_index]
                master, parameter_range = mapping.hp_fragment_address, mapping.lp_fragment_address
                yield name, flat, master.start, master.numel, parameter_range.start

    def _whole(self, *, averaged: bool) -> StateDict:
        tensor_shards = self._weights()
        if averaged:
            average = self._averaged()
            tensor_shards = {
                name: TensorShard(average[name], shard.offset, shard.shape) for name, shard in tensor_shards.items()
            }
        return gather(tensor_shards, self.shapes, self.world.device, None)

    def _saved_buffers(self) -> dict[str, Tensor]:
        """The fp32 buffers: with bf16 parameters the module's are rounded. (Only batch norms change buffers.)"""
        current = super()._saved_buffers()
        rounded = any(current[name].dtype != buffer.dtype for name, buffer in self.buffers.items())
        return self.buffers if rounded else current

    @torch.no_grad()
    def sync_after_load(self) -> None:
        for name, buffer in super()._saved_buffers().items():
            buffer.copy_(self._saved_buffers()[name])
        if self.stage < 3:
            self.zero.update_lp_params()
            return
        self.zero._partition_all_parameters()
        for group in range(len(self.zero.fp16_groups)):
            self.zero._reassign_or_swap_out_partitioned_parameters(group)
        if self.zero.persistent_parameters:
            self.zero.persistent_parameters[0].all_gather(self.zero.persistent_parameters)


class Zero1Engine(ZeroEngine):
    """Shards the optimizer's moments and fp32 weights."""

    stage, backend = 1, "zero1"


class Zero2Engine(ZeroEngine):
    """Shards the gradients as well."""

    stage, backend = 2, "zero2"


class Zero3Engine(ZeroEngine):
    """Shards the parameters as well."""

    stage, backend = 3, "zero3"


def _in_context(context: Callable[[], AbstractContextManager[Any]], forward: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function so that each call runs in a new context."""

    @functools.wraps(forward)
    def inside(*inputs: Any, **named: Any) -> Any:
        with context():
            return forward(*inputs, **named)

    return inside


def _to_bf16(_unit: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Forward pre-hook: cast a unit's positional floating-point inputs to bf16."""
    return tuple(each.bfloat16() if isinstance(each, Tensor) and each.is_floating_point() else each for each in inputs)


def deepspeed_settings(optim: OptimConfig, engine: EngineConfig, stage: int, module: nn.Module) -> dict[str, Any]:
    """DeepSpeed's configuration: values that differ from its defaults, or that must not depend on them."""
    size = sum(parameter.numel() for parameter in module.parameters())
    bucket = min(BUCKET, size + size % 2)  # it must be even
    zero: dict[str, Any] = {
        "stage": stage,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
        "memory_efficient_linear": False,  # it would replace functional.linear in the whole process
        "stage3_prefetch_bucket_size": bucket,
    }
    if engine.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    half = engine.precision == "bf16_params"
    values: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,  # unused: DeepSpeed does not load the data
        "gradient_accumulation_steps": 1,  # Engine marks the last pass of a step
        "gradient_clipping": optim.clip_norm,  # default 1.0
        "zero_allow_untested_optimizer": True,  # torch's Adam
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
        "bf16": {"enabled": half, "check_grad_overflow": True} if half else {"enabled": False},
        "steps_per_print": 2**31,
    }
    if half:
        values["communication_data_type"] = "fp32"
    return values


def _initialize(module: nn.Module, optimizer: torch.optim.Optimizer, values: dict[str, Any], world: World) -> Any:
    """Build a DeepSpeedEngine in the existing process group."""
    if world.device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read on the first import of deepspeed
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # warns that CUDA is missing
    os.environ.setdefault("LOCAL_RANK", str(world.device.index or 0))  # required even for a single process
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    if world.device.type == "cpu":  # a reduction for inference, which DeepSpeed would compile for minutes on first use
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(
        "nccl" if world.device.type == "cuda" else "gloo", auto_mpi_discovery=False, verbose=False
    )
    return deepspeed.initialize(model=module, optimizer=optimizer, config=values, dist_init_required=False)[0]
