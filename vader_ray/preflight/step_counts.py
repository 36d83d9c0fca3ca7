"""Memory, work and traffic of a worker's step: as counted with whole weights, and for a division of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vader_ray.config import RuntimeConfig
from vader_ray.preflight.divided_weights import divide
from vader_ray.preflight.trackers import OpRecord
from vader_ray.preflight.traffic import Traffic, step_traffic
from vader_ray.types import DividedNetwork, GatheredPart


@dataclass(frozen=True, slots=True)
class StepEstimate:
    """Memory and work of one worker. Bytes are bytes of its device unless stated otherwise."""

    load_bytes: int
    """Peak while loading: the whole model with text encoders, and the encoding of prompts."""
    weights_bytes: int
    """Weights of the model and the trained rewards."""
    state_bytes: int
    """Conditioning of every prompt, gradients and optimizer state of the adapter."""
    step_bytes: int
    """Peak of a training step, without weights and state."""
    evaluation_bytes: int
    """Peak of an evaluation with the weights that only it uses, without other weights and state."""
    gathered_bytes: int
    """Weights that are gathered or copied for a call, a part of the peaks above."""
    host_bytes: int
    """Peak of tensors in host memory: a decoder's cache, weights that wait there, and a whole model that is
    loaded to be divided."""
    traffic: Traffic
    """Bytes that the worker moves in one step."""
    operations: Mapping[OpRecord, int]
    """Number of calls of each kernel in one step, over all videos of this worker."""
    denoiser_calls: int
    """Forward passes of the denoiser in one step, per video and guidance branch, without recomputations."""

    @property
    def peak_bytes(self) -> int:
        """Peak of the device's memory over the whole run."""
        return max(
            self.load_bytes,
            self.weights_bytes + self.state_bytes + max(self.step_bytes, self.evaluation_bytes),
        )

    @property
    def flops(self) -> int:
        """Floating-point operations of one step, recomputations included."""
        return sum(operation.flops * times for operation, times in self.operations.items())


@dataclass(frozen=True, slots=True)
class StepCount:
    """Counts of a worker's step, in bytes, with whole weights on its device: those of any division follow."""

    loaded: Sequence[DividedNetwork]
    """Networks that can be divided, while loading."""
    networks: Sequence[DividedNetwork]
    """Those of them that are in memory during training."""
    gathers: Mapping[GatheredPart, int]
    """Times that each part of them would be gathered in a step. Not included are the outer layers in calls of
    denoising steps that `sample_with_grad` skips, about 2 % of a transformer's traffic."""
    whole_bytes: int
    """The model with its text encoders."""
    encoding_bytes: int
    """Peak of the encoding of prompts, without weights."""
    weights_bytes: int
    """Weights of the model and the trained rewards."""
    state_bytes: int
    """`StepEstimate.state_bytes`."""
    step_bytes: int
    """Peak of a training step, without weights and state."""
    evaluation_bytes: int
    """Peak of an evaluation with the weights that only it uses, without other weights and state."""
    host_bytes: int
    """Peak of tensors that were moved to host memory."""
    cache_traffic: int
    """Bytes of a step that are moved to host memory or back."""
    activation_traffic: int
    """Bytes of a step that the worker receives from the other workers of its videos."""
    frames_traffic: int
    """Bytes of a step's frames and gradients that are exchanged with rewards in other processes."""
    num_adapter_parameters: int
    """Numbers in the adapter."""
    operations: Mapping[OpRecord, int]
    """`StepEstimate.operations`."""
    denoiser_calls: int
    """`StepEstimate.denoiser_calls`."""

    def estimate(self, runtime: RuntimeConfig) -> StepEstimate:
        """Return the estimate for a division of the weights: ``shard`` and ``offload_weights``."""
        loading, divided = divide(runtime, self.loaded), divide(runtime, self.networks)
        return StepEstimate(
            load_bytes=self.whole_bytes - loading.saved + loading.gathered + self.encoding_bytes,
            weights_bytes=self.weights_bytes - divided.saved,
            state_bytes=self.state_bytes,
            step_bytes=self.step_bytes + divided.gathered,
            evaluation_bytes=self.evaluation_bytes + divided.gathered,
            gathered_bytes=divided.gathered,
            host_bytes=max(self.host_bytes + divided.host, self.whole_bytes if loading.saved else 0),
            traffic=step_traffic(
                runtime,
                self.gathers,
                activations=self.activation_traffic,
                num_adapter_parameters=self.num_adapter_parameters,
                frames=self.frames_traffic,
                cache=self.cache_traffic,
            ),
            operations=self.operations,
            denoiser_calls=self.denoiser_calls,
        )
