"""Report on machines of ``vader-ray check --devices``: settings that fit, memory, seconds and traffic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vader_ray.config import ExperimentConfig
from vader_ray.preflight.devices import GIB, nearest_device, split_machine
from vader_ray.preflight.machines import Machine, Plan, StepCounter, find_plan, machine
from vader_ray.preflight.traffic import Traffic

COUNTED = (
    "machines: memory and bytes are counted on the meta device, seconds are estimated from data sheets; "
    "nothing is measured"
)


def machine_parts(
    config: ExperimentConfig, names: Sequence[str], count: StepCounter, refusals: list[str]
) -> Iterator[str]:
    """Yield the parts of the report as they are computed.

    Args:
        config: the recipe.
        names: of machines, such as ``8xrtx4090``.
        count: counts of one worker's step.
        refusals: gets one sentence for each machine that is too small.
    """
    yield COUNTED
    for each in map(machine, names):
        plan = find_plan(config, each, count)
        yield describe(each, plan)
        if not plan.fits:
            refusals.append(_refusal(each, plan))


def describe(machine: Machine, plan: Plan) -> str:
    """Return the settings of a plan, the peak by its parts, seconds and traffic."""
    workers, card = plan.config.runtime.num_workers, split_machine(machine.name)[1]
    note = f", {machine.num_gpus - workers} GPUs without a worker" if workers < machine.num_gpus else ""
    if nearest := nearest_device(card):
        note += f", with the speed of {nearest}"
    verdict = "fits" if plan.fits else "does NOT fit, even"
    return (
        f"{machine.name}{note}: {verdict} with {' '.join(plan.settings)}\n"
        f"  peak    {peak(machine, plan)}\n"
        f"  a step  {plan.config.videos_per_step} videos, {plan.estimate.flops / 1e12:.4g} TFLOP per GPU: "
        f"{plan.computing_seconds:.3g} s of computing, {plan.traffic_seconds:.3g} s of traffic, "
        "which overlap in part\n"
        f"  traffic of one GPU in a step, GB: {traffic(plan.estimate.traffic)}"
    )


def peak(machine: Machine, plan: Plan) -> str:
    """Return the peak of one GPU by its parts."""
    found = plan.estimate
    running = max(found.step_bytes, found.evaluation_bytes)
    parts = {
        "weights": found.weights_bytes,
        "gathered or copied weights": found.gathered_bytes,
        "conditioning, gradients and optimizer": found.state_bytes,
        "a step" if running == found.step_bytes else "an evaluation": running - found.gathered_bytes,
    }
    listed = ", ".join(f"{name} {num_bytes / GIB:.2f}" for name, num_bytes in parts.items())
    is_loading = found.load_bytes == found.peak_bytes
    when = "while loading; afterwards: " if is_loading else ""
    return (
        f"{found.peak_bytes / GIB:.1f} of {machine.device.memory_gib:.1f} GiB per GPU {when}({listed}); "
        f"host memory {found.host_bytes / GIB:.1f} per worker"
    )


def traffic(found: Traffic) -> str:
    """Return the traffic of one GPU by its kinds, in GB."""
    parts = {
        "weights received": found.weights,
        "activations received": found.activations,
        "gradients of the adapter sent and received": found.adapter,
        "frames and gradients of rewards in actors": found.frames,
        "to and from host memory": found.host,
    }
    return ", ".join(f"{name} {num_bytes / 1e9:.3g}" for name, num_bytes in parts.items())


def _refusal(machine: Machine, plan: Plan) -> str:
    lowest = plan.estimate.peak_bytes / GIB
    return (
        f"{machine.name}: no combination of settings fits; the smallest needs {lowest:.1f} of "
        f"{machine.device.memory_gib:.1f} GiB per GPU, with 5 % and 1 GiB to spare; use fewer "
        "frames or pixels, or a larger card"
    )
