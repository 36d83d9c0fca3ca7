"""Decode a video a few frames at a time, layer by layer, where layers see neighbouring frames.

A layer over time, such as a convolution of three frames, needs frames before and perhaps after those it
computes. Every layer here computes each of its frames once, from the first to the last, and as late as a
later layer needs it; frames that the next chunk needs again are the cache. So nothing is padded at a chunk's
border, and the values are those of the whole clip. A decoder that looks ahead computes more frames in its
first, cheap layers than in its last ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vader_ray.models.core.decoders import StreamedDecoder
from vader_ray.types import Latents

TIME = 2
"""Dimension of the frames in ``batch channels frames height width``."""
Cache: TypeAlias = list[tuple[int, Tensor | None, Tensor | None]]
"""For every layer, the index of the first frame that is kept, these frames, and the layer's own state."""


class Layer:
    """One layer's output for the whole clip, of which the frames from ``start`` on are in memory.

    Args:
        num_frames: frames of the whole clip at this layer.
        needed: range of input frames that the computation of a range of output frames takes; it may exceed
            the clip.
        compute: the layer; takes the range of output frames, the layer's state and the frames of each input
            (None if there are none), and returns the output frames and the new state.
        inputs: layers of equal numbers of frames.
        cached: its entry of the cache; None for the first chunk.
    """

    def __init__(
        self,
        num_frames: int,
        needed: Callable[[int, int], tuple[int, int]],
        compute: Callable[..., tuple[Tensor, Tensor | None]],
        inputs: Sequence[Layer],
        cached: tuple[int, Tensor | None, Tensor | None] | None,
    ) -> None:
        self.num_frames = num_frames
        self.start, self.kept, self.state = cached or (0, None, None)
        self.goal = self.stop
        """Number of frames that this chunk computes up to."""
        self.inputs = inputs
        self._needed, self._compute = needed, compute

    @property
    def stop(self) -> int:
        """Number of frames computed so far."""
        return self.start + (0 if self.kept is None else self.kept.shape[TIME])

    def plan(self) -> None:
        """Raise the goals of the inputs to what this layer's goal needs."""
        if self.goal > self.stop:
            _, last = self._needed(self.stop, self.goal)
            for layer in self.inputs:
                layer.goal = max(layer.goal, min(last, layer.num_frames))

    def advance(self) -> None:
        """Compute the frames up to the goal."""
        if self.goal > self.stop:
            first, last = self._needed(self.stop, self.goal)
            given = (layer.frames(max(first, 0), min(last, layer.num_frames)) for layer in self.inputs)
            new, self.state = self._compute(self.stop, self.goal, self.state, *given)
            self.kept = new if self.kept is None else torch.cat((self.kept, new), TIME)

    def frames(self, start: int, stop: int) -> Tensor | None:
        """Return computed frames, None for an empty range."""
        if start >= stop:
            return None
        assert self.kept is not None
        assert self.start <= start < stop <= self.stop
        return self.kept[:, :, start - self.start : stop - self.start]

    def drop(self, first: int) -> None:
        """Drop the frames before ``first``."""
        if first > self.start:
            first = min(first, self.stop)
            rest = self.frames(first, self.stop)
            self.start, self.kept = first, None if rest is None else rest.clone()  # no view of all frames

    def next_input(self) -> int:
        """Return the first input frame that the next output frame needs."""
        if self.stop < self.num_frames:
            return self._needed(self.stop, self.stop + 1)[0]
        return self.inputs[0].num_frames


class Layers:
    """The layers of a decoder in the order of their computation, built anew for every chunk.

    Args:
        latents: latents of the whole clip.
        cache: result of `cache` after the chunk before; None for the first chunk.
    """

    def __init__(self, latents: Latents, cache: Cache | None) -> None:
        self._layers = list[Layer]()
        self._readers = dict[Layer, list[Layer]]()  # kept here, since cycles of layers would not be freed
        self._cache = cache
        num_frames = latents.shape[TIME]
        self.latents = self.add(
            num_frames,
            lambda start, stop: (start, stop),
            lambda start, stop, _: (latents[:, :, start:stop], None),
        )
        """The decoder's input."""

    def __len__(self) -> int:
        return len(self._layers)

    def add(
        self,
        num_frames: int,
        needed: Callable[[int, int], tuple[int, int]],
        compute: Callable[..., tuple[Tensor, Tensor | None]],
        *inputs: Layer,
    ) -> Layer:
        """Add a layer; see `Layer`."""
        cached = None if self._cache is None else self._cache[len(self._layers)]
        layer = Layer(num_frames, needed, compute, inputs, cached)
        self._layers.append(layer)
        for each in inputs:
            self._readers.setdefault(each, []).append(layer)
        return layer

    def framewise(self, layer: Callable[..., Tensor], *inputs: Layer) -> Layer:
        """Add a layer that computes each frame from the same frame of its inputs."""

        def compute(_start: int, _stop: int, _state: None, *frames: Tensor) -> tuple[Tensor, None]:
            return layer(*frames), None

        return self.add(inputs[0].num_frames, lambda start, stop: (start, stop), compute, *inputs)

    def convolution(
        self,
        layer: Callable[[Tensor], Tensor],
        source: Layer,
        *,
        before: int,
        after: int = 0,
        activation: Callable[[Tensor], Tensor] = nn.Identity(),
    ) -> Layer:
        """Add a convolution over time, whose input is continued by its first and its last frame.

        Its state are the last frames of its input. The backward pass computes the layer again: only its input
        stays in memory.

        Args:
            layer: the convolution without padding in time.
            source: input of the activation.
            before: number of earlier frames that a frame sees.
            after: number of later frames that a frame sees.
            activation: layers of single frames before the convolution, computed once for each frame.
        """
        num_frames = source.num_frames  # a reference to the source would keep its frames in memory

        def needed(start: int, stop: int) -> tuple[int, int]:
            return start + after if start > 0 else 0, stop + after

        def run(
            start: int, stop: int, state: Tensor | None, frames: Tensor | None
        ) -> tuple[Tensor, Tensor | None]:
            parts = [
                part for part in (state, None if frames is None else activation(frames)) if part is not None
            ]
            first = parts[0][:, :, :1].expand(-1, -1, before if start == 0 else 0, -1, -1)
            last = parts[-1][:, :, -1:].expand(-1, -1, max(0, stop + after - num_frames), -1, -1)
            window = torch.cat((first, *parts, last), TIME)
            return layer(window), window[:, :, stop - start :].clone() if before + after else None

        def compute(start: int, stop: int, *tensors: Tensor | None) -> tuple[Tensor, Tensor | None]:
            result: tuple[Tensor, Tensor | None] = checkpoint(
                run, start, stop, *tensors, use_reentrant=False, preserve_rng_state=False
            )
            return result

        return self.add(num_frames, needed, compute, source)

    def expansion(self, layer: Callable[..., Tensor], *inputs: Layer, factor: int, dropped: int = 0) -> Layer:
        """Add a layer that makes ``factor`` frames of each, without the clip's first ``dropped`` ones."""

        def needed(start: int, stop: int) -> tuple[int, int]:
            return (start + dropped) // factor, -(-(stop + dropped) // factor)

        def compute(start: int, stop: int, _state: None, *frames: Tensor) -> tuple[Tensor, None]:
            offset = needed(start, stop)[0] * factor - dropped
            return layer(*frames)[:, :, start - offset : stop - offset], None

        return self.add(inputs[0].num_frames * factor - dropped, needed, compute, *inputs)

    def compute(self, start: int, stop: int) -> Tensor:
        """Compute the frames of a chunk, of the layer that was added last."""
        self._layers[-1].goal = stop
        for layer in reversed(self._layers):
            layer.plan()
        for layer in self._layers:
            layer.advance()
            for source in layer.inputs:
                source.drop(min(reader.next_input() for reader in self._readers[source]))
        result = self._layers[-1].frames(start, stop)
        assert result is not None
        return result

    def cache(self) -> Cache:
        """Return what the next chunk needs; the last layer's frames are the result and not kept."""
        last = self._layers[-1]
        return [
            *((layer.start, layer.kept, layer.state) for layer in self._layers[:-1]),
            (last.stop, None, last.state),
        ]


def unfold_channels(frames: Tensor, time: int, height: int, width: int) -> Tensor:
    """Move channels, counted in the order channels, time, height, width, to frames and pixels."""
    parts: Tensor = frames.unflatten(1, (-1, time, height, width)).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return parts.flatten(6, 7).flatten(4, 5).flatten(2, 3)


class LayerStream(StreamedDecoder):
    """A decoder whose layers see a bounded number of frames before and after each frame.

    A subclass defines `build`, which adds the decoder's layers; the last one has the frames of the video.

    Args:
        vae: the autoencoder.
        frames_per_latent: frames of every latent frame but the first, which is one frame.
        chunk_size: frames of a chunk, rounded up to whole latent frames.
        offload_cache: see `StreamedDecoder`.
    """

    def __init__(
        self, vae: Any, frames_per_latent: int, chunk_size: int, *, offload_cache: bool = False
    ) -> None:
        super().__init__(vae, offload_cache=offload_cache)
        self._frames_per_latent = frames_per_latent
        self._latents_per_chunk = -(-chunk_size // frames_per_latent)

    def build(self, layers: Layers, latents: Latents) -> None:
        """Add the layers of the decoder after ``layers.latents``."""
        raise NotImplementedError

    def recompute_blocks(self) -> None:
        """Do nothing: the backward pass computes every convolution again."""

    def chunk_sizes(self, num_latent_frames: int) -> list[int]:
        size, ratio = self._latents_per_chunk, self._frames_per_latent
        latents = [min(size, num_latent_frames - first) for first in range(0, num_latent_frames, size)]
        return [count * ratio - (ratio - 1) * (index == 0) for index, count in enumerate(latents)]

    def decode_frames(
        self, latents: Latents, chunk: tuple[int, ...], cache: Cache | None
    ) -> tuple[Tensor, Cache]:
        # the library pads the first convolution's input, which makes it contiguous; sums depend on the layout
        layers = Layers(latents.contiguous(), cache)
        self.build(layers, latents)
        frames = layers.compute(chunk[0], chunk[-1] + 1)
        return frames, layers.cache()
