"""What the memory plan says: state bytes against arithmetic by hand, a whole step against a real one's allocations."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_leaves

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


def still(config: RunConfig) -> int:
    """Bytes of the buffers of a run's modules."""
    with torch.device("meta"):
        modules = factory.build(config, CLASSES)
    return sum(buffer.nbytes for module in modules.values() for buffer in module.buffers())


def whole(config: RunConfig) -> int:
    return sum(math.prod(shape) for shape in shapes(config))


def rows(config: RunConfig, ranks: int) -> int:
    """Elements of a rank's rows, padded to equal parts."""
    return sum(math.ceil(shape[0] / ranks) * math.prod(shape[1:]) for shape in shapes(config))


def with_ema(config: RunConfig) -> RunConfig:
    return replace(config, optim=replace(config.optim, ema=0.99))


def test_ddp_keeps_everything_whole():
    config = mae()
    found, size = plan(config, CLASSES, 2, "ddp"), whole(config)
    assert found.parameters == 4 * size + still(config)
    assert found.gradients == 4 * size
    assert found.optimizer == 8 * size
    assert (found.buffers, found.host) == (0, 0)
    assert found.peak == found.parameters + found.gradients + found.optimizer + found.activations
    assert plan(with_ema(config), CLASSES, 2, "ddp").optimizer == 12 * size


def test_one_process_makes_its_gradients_anew_in_every_step():
    found = plan(mae(), CLASSES, 1, "ddp")
    assert found.gradients == 4 * whole(mae())
    assert found.peak < found.parameters + found.gradients + found.optimizer + found.activations


@pytest.mark.parametrize("ranks", [2, 4])
def test_zero_1_and_2_cut_masters_and_moments(ranks):
    config = mae(batch_size=4 * ranks)
    size, part = whole(config), math.ceil(whole(config) / ranks)
    largest = max(math.prod(shape) for shape in shapes(config))
    found = plans(config, CLASSES, ranks, ["zero1", "zero2"])
    for each in found.values():
        assert each.parameters == 4 * size + still(config)
        assert each.optimizer == 12 * part
    assert found["zero1"].gradients == 4 * size
    assert found["zero2"].gradients == 4 * (part + largest)
    assert plan(with_ema(config), CLASSES, ranks, "zero1").optimizer == 16 * part


def test_bf16_parameters_halve_zeros_weights_and_gradients_and_leave_the_masters():
    config = mae(precision="bf16_params")
    size = whole(config)
    for each in plans(config, CLASSES, 2, ["zero1", "zero2"]).values():
        assert each.parameters == 2 * size + still(config)
        assert each.optimizer == 12 * math.ceil(size / 2)
        assert each.gradients <= 2 * size


def test_zero_3_cuts_weights_and_keeps_small_ones_whole():
    config = replace(mae(), model=replace(parity.MODEL, width=256))  # an MLP's matrices exceed 100,000 elements
    sizes = [math.prod(shape) for shape in shapes(config)]
    part, small = sum(math.ceil(size / 4) for size in sizes), sum(size for size in sizes if size <= 100_000)
    assert 0 < small < sum(sizes)
    found = plan(config, CLASSES, 4, "zero3")
    assert found.parameters == 4 * (part + small) + still(config)
    assert found.gradients == 4 * part
    assert found.optimizer == 12 * part


def test_fsdp2_cuts_everything_by_rows():
    config = mae()
    found = plan(config, CLASSES, 4, "fsdp2")
    assert found.parameters == 4 * rows(config, 4) + still(config)
    assert found.optimizer == 8 * rows(config, 4)
    assert (
        4 * rows(config, 4) < found.gradients < 4 * whole(config) < plan(config, CLASSES, 1, "fsdp2").parameters * 1.1
    )
    halves = replace(config, engine=EngineConfig(precision="bf16_params"))
    assert plan(halves, CLASSES, 4, "fsdp2").optimizer == found.optimizer
    assert plan(halves, CLASSES, 4, "fsdp2").buffers < found.buffers


def test_shard_ranks_cut_within_their_group_only():
    config = mae(fsdp_shard_size=2)
    within, alone = plan(config, CLASSES, 4, "fsdp2"), plan(mae(batch_size=8), CLASSES, 2, "fsdp2")
    assert (within.parameters, within.optimizer) == (alone.parameters, alone.optimizer)
    with pytest.raises(ConfigError, match="fsdp_shard_size must divide the number of processes"):
        plan(mae(batch_size=12, fsdp_shard_size=2), CLASSES, 3, "fsdp2")


@pytest.mark.parametrize("backend", ["zero1", "zero2", "zero3"])
def test_offloading_moves_masters_and_moments_to_the_host(backend):
    here = plan(mae(), CLASSES, 2, backend)
    there = plan(mae(offload_optimizer=True), CLASSES, 2, backend)
    assert here.host == 0
    assert there.host > here.optimizer > there.optimizer == 0
    assert there.peak < here.peak


def test_pf_mag_has_two_engines_and_phi():
    config = parity.tiny_config("pf_mag", EngineConfig(device="cpu"))
    found = plan(config, CLASSES, 2, "ddp")
    assert found.parameters == 4 * whole(config) + still(config)
    with torch.device("meta"):
        phi = torch.nn.Conv2d(3, 5, 3).requires_grad_(False)
    judged = plan(replace(config, pf_mag=replace(config.pf_mag, identity_net="facenet")), CLASSES, 2, "ddp", phi)
    assert judged.parameters == found.parameters + 4 * (5 * 27 + 5)
    assert judged.activations > found.activations


def test_activations_are_linear_in_the_micro_batch():
    sizes = [plan(mae(batch_size=2 * images), CLASSES, 2, "ddp").activations for images in (2, 4, 16)]
    assert (sizes[2] - sizes[1]) == 6 * (sizes[1] - sizes[0])
    run = FakeStep(mae(), CLASSES, 16, None)
    assert max(moment.highest for moment in trace_step(mae(), CLASSES, 16)) == max(run.live)


def test_accumulating_halves_the_activations_and_more_parts_hold_little_more():
    config = parity.tiny_config("pf_mag", EngineConfig(device="cpu"), batch_size=48)

    def activations(parts: int) -> int:
        engine = EngineConfig(device="cpu", grad_accumulation_steps=parts)
        return plan(replace(config, engine=engine), CLASSES, 1, "ddp").activations

    assert 0.4 * activations(1) < activations(2) < 0.6 * activations(1)
    assert activations(8) < activations(2)
    run = FakeStep(replace(config, engine=EngineConfig(grad_accumulation_steps=3)), CLASSES, 2, None)
    six = max(
        moment.highest
        for moment in trace_step(replace(config, engine=EngineConfig(grad_accumulation_steps=6)), CLASSES, 2)
    )
    assert six == max(run.live) + 3 * run.left_behind


def test_gradients_of_local_passes_lie_beside_ddps_buckets():
    assert plan(mae(grad_accumulation_steps=2), CLASSES, 2, "ddp").gradients == 8 * whole(mae())


@pytest.mark.parametrize("objective", ["mae", "pf_mag"])
def test_recomputing_and_autocast_lower_the_activations(objective):
    plain = parity.tiny_config(objective, EngineConfig(device="cpu"), batch_size=32)
    again = replace(plain, engine=EngineConfig(device="cpu", activation_checkpointing=True))
    for backend in ("ddp", "zero3"):
        assert plan(again, CLASSES, 2, backend).activations < 0.8 * plan(plain, CLASSES, 2, backend).activations
    assert _half(plain).activations < plan(plain, CLASSES, 2, "ddp").activations


def _half(config: RunConfig) -> MemoryPlan:
    return plan(replace(config, engine=EngineConfig(device="cpu", precision="bf16")), CLASSES, 2, "ddp")


def test_a_penalty_on_gradients_holds_the_attention_matrix():
    config = parity.tiny_config("pf_mag", EngineConfig(device="cpu"), r1=1.0)
    without = replace(config, pf_mag=replace(config.pf_mag, r1=0.0))
    assert plan(config, CLASSES, 2, "fsdp2").activations > plan(without, CLASSES, 2, "fsdp2").activations


def test_512_processes_of_a_net_larger_than_this_machine():
    giant = ModelConfig(patch=16, width=16384, depth=24, heads=128, decoder_width=512, decoder_depth=1)
    config = replace(presets.recipe("vit-b")["mae"], model=giant, batch_size=4096)
    found = plans(config, 8, 512, ["ddp", "fsdp2"])
    assert found["ddp"].parameters > 250 * 2**30
    assert found["fsdp2"].parameters < found["ddp"].parameters / 500
    assert found["fsdp2"].peak < found["ddp"].peak / 8


def test_the_peak_is_no_more_than_the_sum_and_no_less_than_what_stays():
    for found in plans(mae(), CLASSES, 2, BACKENDS).values():
        lasting = found.parameters + found.optimizer
        assert lasting < found.peak <= lasting + found.gradients + found.activations + found.buffers


def test_batches_that_cannot_be_shared_out_are_refused_with_ones_that_can():
    assert micro_batch_size(mae(batch_size=32, grad_accumulation_steps=2), 4) == 4
    with pytest.raises(ConfigError, match=r"= 8, got 36; 32 or 40 would do"):
        micro_batch_size(mae(batch_size=36, grad_accumulation_steps=2), 4)
    with pytest.raises(ConfigError, match=r"got 4; 8 would do"):
        micro_batch_size(mae(batch_size=4), 8)


def test_a_backend_that_does_not_know_an_option_is_refused():
    with pytest.raises(ConfigError, match="fsdp_shard_size"):
        with_backend(mae(fsdp_shard_size=2), "ddp")


@pytest.mark.parametrize("objective", ["mae", "finetune", "pf_mag", "stabilised pf_mag"])
def test_the_plan_of_one_process_is_what_a_real_step_allocates(objective):
    name, stabilised = objective.split()[-1], objective.startswith("stabilised")
    config = parity.tiny_config(name, EngineConfig(device="cpu"), batch_size=32, stabilised=stabilised)
    game = replace(
        config.pf_mag, warmup_steps=0, discriminator_pretrain_steps=0, adv_ramp_steps=0, loss_balancing="fixed"
    )
    config = replace(config, pf_mag=game)
    planned = plan(config, CLASSES, 1, "ddp")
    alone = World(0, 1, torch.device("cpu"))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        engines = build_engines(config, "ddp", factory.build(config, CLASSES), alone)
        objective_ = build_objective(config, engines, parity.CLASS_NAMES, alone)
        for step in range(3):
            (batch,) = empty_batches(config, 32, 1)
            batch.images.uniform_(-1, 1)
            batch.labels.zero_()
            for drawn in tree_leaves(batch.discriminator_augments):
                if drawn is not None:
                    drawn.zero_()
            if batch.order is not None:
                batch.order.copy_(torch.arange(batch.order.shape[1]))
            objective_.step([batch], step)
    events = sorted(watched.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    now = most = 0
    for event in events:
        now += event.nbytes() if event.name() == "[memory]" else 0
        most = max(most, now)
    assert planned.peak == pytest.approx(most, rel=0.1)
