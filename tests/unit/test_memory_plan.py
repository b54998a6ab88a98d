"""Memory plan: state bytes against hand-computed values, and the peak against the allocations of a real step."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from pfcluster.config import ConfigError, EngineConfig, ModelConfig, RunConfig, presets
from pfcluster.distributed.process_group import World
from pfcluster.models import factory
from pfcluster.profiling.flops import empty_batches
from pfcluster.profiling.memory_plan import BACKENDS, MemoryPlan, micro_batch_size, plan, plans, with_backend
from pfcluster.profiling.step_trace import FakeStep, trace_step
from pfcluster.training import parity
from pfcluster.training.factory import build_engines, build_objective

CLASSES = parity.CLASSES


def mae(*, batch_size: int = 16, **engine) -> RunConfig:
    return parity.tiny_config("mae", EngineConfig(device="cpu", **engine), batch_size=batch_size)


def shapes(config: RunConfig) -> list[tuple[int, ...]]:
    """Shapes of all parameters of a run."""
    with torch.device("meta"):
        modules = factory.build(config, CLASSES)
    return [tuple(parameter.shape) for module in modules.values() for parameter in module.parameters()]


def buffer_bytes(config: RunConfig) -> int:
    """Bytes of the buffers of a run's modules."""
    with torch.device("meta"):
        modules = factory.build(config, CLASSES)
    return sum(buffer.nbytes for module in modules.values() for buffer in module.buffers())


def total(config: RunConfig) -> int:
    return sum(math.prod(shape) for shape in shapes(config))


def sharded_rows(config: RunConfig, ranks: int) -> int:
    """Elements of a rank's shards along the first dimension, padded to equal sizes."""
    return sum(math.ceil(shape[0] / ranks) * math.prod(shape[1:]) for shape in shapes(config))


def with_ema(config: RunConfig) -> RunConfig:
    return replace(config, optim=replace(config.optim, ema=0.99))


def test_ddp_holds_full_weights_gradients_and_optimizer_state():
    config = mae()
    planned, size = plan(config, CLASSES, 2, "ddp"), total(config)
    assert planned.parameters == 4 * size + buffer_bytes(config)
    assert planned.gradients == 4 * size
    assert planned.optimizer == 8 * size
    assert (planned.buffers, planned.host) == (0, 0)
    assert planned.peak == planned.parameters + planned.gradients + planned.optimizer + planned.activations
    assert plan(with_ema(config), CLASSES, 2, "ddp").optimizer == 12 * size


def test_ddp_with_one_process_allocates_gradients_in_each_step():
    planned = plan(mae(), CLASSES, 1, "ddp")
    assert planned.gradients == 4 * total(mae())
    assert planned.peak < planned.parameters + planned.gradients + planned.optimizer + planned.activations


@pytest.mark.parametrize("ranks", [2, 4])
def test_zero_1_and_2_shard_master_weights_and_moments(ranks):
    config = mae(batch_size=4 * ranks)
    size, part = total(config), math.ceil(total(config) / ranks)
    largest = max(math.prod(shape) for shape in shapes(config))
    planned = plans(config, CLASSES, ranks, ["zero1", "zero2"])
    for each in planned.values():
        assert each.parameters == 4 * size + buffer_bytes(config)
        assert each.optimizer == 12 * part
    assert planned["zero1"].gradients == 4 * size
    assert planned["zero2"].gradients == 4 * (part + largest)
    assert plan(with_ema(config), CLASSES, ranks, "zero1").optimizer == 16 * part


def test_zero_with_bf16_params_halves_weights_and_gradients_but_not_master_weights():
    config = mae(precision="bf16_params")
    size = total(config)
    for each in plans(config, CLASSES, 2, ["zero1", "zero2"]).values():
        assert each.parameters == 2 * size + buffer_bytes(config)
        assert each.optimizer == 12 * math.ceil(size / 2)
        assert each.gradients <= 2 * size


def test_zero_3_shards_weights_except_small_parameters():
    config = replace(mae(), model=replace(parity.MODEL, width=256))  # an MLP's matrices exceed 100,000 elements
    sizes = [math.prod(shape) for shape in shapes(config)]
    part, small = sum(math.ceil(size / 4) for size in sizes), sum(size for size in sizes if size <= 100_000)
    assert 0 < small < sum(sizes)
    planned = plan(config, CLASSES, 4, "zero3")
    assert planned.parameters == 4 * (part + small) + buffer_bytes(config)
    assert planned.gradients == 4 * part
    assert planned.optimizer == 12 * part


def test_fsdp2_shards_everything_along_the_first_dimension():
    config = mae()
    planned = plan(config, CLASSES, 4, "fsdp2")
    assert planned.parameters == 4 * sharded_rows(config, 4) + buffer_bytes(config)
    assert planned.optimizer == 8 * sharded_rows(config, 4)
    assert (
        4 * sharded_rows(config, 4)
        < planned.gradients
        < 4 * total(config)
        < plan(config, CLASSES, 1, "fsdp2").parameters * 1.1
    )
    halves = replace(config, engine=EngineConfig(precision="bf16_params"))
    assert plan(halves, CLASSES, 4, "fsdp2").optimizer == planned.optimizer
    assert plan(halves, CLASSES, 4, "fsdp2").buffers < planned.buffers


def test_fsdp_shard_size_shards_within_groups():
    config = mae(fsdp_shard_size=2)
    four_ranks, two_ranks = plan(config, CLASSES, 4, "fsdp2"), plan(mae(batch_size=8), CLASSES, 2, "fsdp2")
    assert (four_ranks.parameters, four_ranks.optimizer) == (two_ranks.parameters, two_ranks.optimizer)
    with pytest.raises(ConfigError, match="fsdp_shard_size must divide the number of processes"):
        plan(mae(batch_size=12, fsdp_shard_size=2), CLASSES, 3, "fsdp2")


@pytest.mark.parametrize("backend", ["zero1", "zero2", "zero3"])
def test_offloading_moves_master_weights_and_moments_to_the_host(backend):
    on_device = plan(mae(), CLASSES, 2, backend)
    offloaded = plan(mae(offload_optimizer=True), CLASSES, 2, backend)
    assert on_device.host == 0
    assert offloaded.host > on_device.optimizer > offloaded.optimizer == 0
    assert offloaded.peak < on_device.peak


@pytest.mark.slow
def test_pf_mag_includes_both_engines_and_the_identity_net():
    config = parity.tiny_config("pf_mag", EngineConfig(device="cpu"))
    planned = plan(config, CLASSES, 2, "ddp")
    assert planned.parameters == 4 * total(config) + buffer_bytes(config)
    with torch.device("meta"):
        phi = torch.nn.Conv2d(3, 5, 3).requires_grad_(False)
    with_phi = plan(replace(config, pf_mag=replace(config.pf_mag, identity_net="facenet")), CLASSES, 2, "ddp", phi)
    assert with_phi.parameters == planned.parameters + 4 * (5 * 27 + 5)
    assert with_phi.activations > planned.activations


def test_activations_are_linear_in_the_micro_batch():
    sizes = [plan(mae(batch_size=2 * images), CLASSES, 2, "ddp").activations for images in (2, 4, 16)]
    assert (sizes[2] - sizes[1]) == 6 * (sizes[1] - sizes[0])
    step = FakeStep(mae(), CLASSES, 16, None)
    assert max(event.peak_bytes for event in trace_step(mae(), CLASSES, 16)) == max(step.live_bytes)


@pytest.mark.slow
def test_gradient_accumulation_halves_activations_and_retains_little_per_further_part():
    config = parity.tiny_config("pf_mag", EngineConfig(device="cpu"), batch_size=48)

    def activations(parts: int) -> int:
        engine = EngineConfig(device="cpu", grad_accumulation_steps=parts)
        return plan(replace(config, engine=engine), CLASSES, 1, "ddp").activations

    assert 0.4 * activations(1) < activations(2) < 0.6 * activations(1)
    assert activations(8) < activations(2)
    step = FakeStep(replace(config, engine=EngineConfig(grad_accumulation_steps=3)), CLASSES, 2, None)
    six = max(
        event.peak_bytes
        for event in trace_step(replace(config, engine=EngineConfig(grad_accumulation_steps=6)), CLASSES, 2)
    )
    assert six == max(step.live_bytes) + 3 * step.retained_bytes


def test_ddp_holds_gradients_of_local_passes_outside_its_buckets():
    assert plan(mae(grad_accumulation_steps=2), CLASSES, 2, "ddp").gradients == 8 * total(mae())


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["mae", "pf_mag"])
def test_activation_checkpointing_and_autocast_reduce_activations(objective):
    plain = parity.tiny_config(objective, EngineConfig(device="cpu"), batch_size=32)
    checkpointed = replace(plain, engine=EngineConfig(device="cpu", activation_checkpointing=True))
    for backend in ("ddp", "zero3"):
        assert plan(checkpointed, CLASSES, 2, backend).activations < 0.8 * plan(plain, CLASSES, 2, backend).activations
    assert _bf16(plain).activations < plan(plain, CLASSES, 2, "ddp").activations


def _bf16(config: RunConfig) -> MemoryPlan:
    return plan(replace(config, engine=EngineConfig(device="cpu", precision="bf16")), CLASSES, 2, "ddp")


@pytest.mark.slow
def test_swap_cycle_increases_activations():
    config = parity.tiny_config("pf_mag", EngineConfig(device="cpu"), stabilised=True)
    weights = replace(config.pf_mag.weights, swap=0.0)
    without = replace(config, pf_mag=replace(config.pf_mag, weights=weights))
    assert plan(config, CLASSES, 2, "fsdp2").activations > plan(without, CLASSES, 2, "fsdp2").activations


def test_r1_increases_activations():
    config = parity.tiny_config("pf_mag", EngineConfig(device="cpu"), r1=1.0)
    without = replace(config, pf_mag=replace(config.pf_mag, r1=0.0))
    assert plan(config, CLASSES, 2, "fsdp2").activations > plan(without, CLASSES, 2, "fsdp2").activations


@pytest.mark.slow
def test_plan_for_512_processes_of_a_net_larger_than_this_machine():
    giant = ModelConfig(patch=16, width=16384, depth=24, heads=128, decoder_width=512, decoder_depth=1)
    config = replace(presets.recipe("vit-b")["mae"], model=giant, batch_size=4096)
    planned = plans(config, 8, 512, ["ddp", "fsdp2"])
    assert planned["ddp"].parameters > 250 * 2**30
    assert planned["fsdp2"].parameters < planned["ddp"].parameters / 500
    assert planned["fsdp2"].peak < planned["ddp"].peak / 8


def test_peak_lies_between_the_persistent_bytes_and_the_sum_of_all():
    for planned in plans(mae(), CLASSES, 2, BACKENDS).values():
        persistent = planned.parameters + planned.optimizer
        assert persistent < planned.peak <= persistent + planned.gradients + planned.activations + planned.buffers


def test_indivisible_batch_size_is_rejected_with_the_nearest_valid_sizes():
    assert micro_batch_size(mae(batch_size=32, grad_accumulation_steps=2), 4) == 4
    with pytest.raises(ConfigError, match=r"= 8, got 36; 32 or 40 would do"):
        micro_batch_size(mae(batch_size=36, grad_accumulation_steps=2), 4)
    with pytest.raises(ConfigError, match=r"got 4; 8 would do"):
        micro_batch_size(mae(batch_size=4), 8)


def test_backend_without_an_option_is_rejected():
    with pytest.raises(ConfigError, match="fsdp_shard_size"):
        with_backend(mae(fsdp_shard_size=2), "ddp")


@pytest.mark.parametrize(
    "objective", ["mae", "finetune", "pf_mag", pytest.param("stabilised pf_mag", marks=pytest.mark.slow)]
)
def test_planned_peak_of_one_process_matches_the_allocations_of_a_real_step(objective):
    name, stabilised = objective.split()[-1], objective.startswith("stabilised")
    config = parity.tiny_config(name, EngineConfig(device="cpu"), batch_size=32, stabilised=stabilised)
    erasure_start = 0 if stabilised else None
    past_warmup = replace(config.pf_mag, warmup_steps=0, loss_balancing="fixed", erasure_start=erasure_start)
    config = replace(config, pf_mag=past_warmup)
    planned = plan(config, CLASSES, 1, "ddp")
    world = World(0, 1, torch.device("cpu"))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        engines = build_engines(config, "ddp", factory.build(config, CLASSES), world)
        run_objective = build_objective(config, engines, parity.CLASS_NAMES, world)
        for step in range(3):
            (batch,) = empty_batches(config, 32, 1)
            batch.images.uniform_(-1, 1)
            batch.labels.zero_()
            for params in batch.discriminator_augments:
                for values in (params.affine, params.colour, params.erased):
                    values.zero_()
            if batch.order is not None:
                batch.order.copy_(torch.arange(batch.order.shape[1]))
            run_objective.step([batch], step)
    events = sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    allocated = peak = 0
    for event in events:
        allocated += event.nbytes() if event.name() == "[memory]" else 0
        peak = max(peak, allocated)
    assert planned.peak == pytest.approx(peak, rel=0.1)
