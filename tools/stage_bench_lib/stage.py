"""The model of one rank of a large layout in this process, and the passes that its stage runs in an iteration.

A stage runs the forward and backward passes of its own row of 1F1B one after the other, with as many microbatches in
flight as in the pipeline, and waits for no neighbour: what it would receive lies ready.

    stage 0 of 4: | F0 F1 F2 F3 B0 | F4 B1 | F5 B2 | B3 B4 B5 |
                                     `----- steady -----'
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.pipeline_parallel.schedules import custom_backward, deallocate_output_tensor
from megatron.core.utils import get_attr_wrapped_model
from torch import Tensor, nn

from megatron.overlap.counting.ranks import one_of_many
from megatron.overlap.measuring.clocks import Clock
from megatron.pretrain.config import PretrainConfig, parse_command_line, validate
from megatron.pretrain.data.tokenizers import build_tokenizer, padded_vocab_size
from megatron.pretrain.model import build_model, build_transformer_config
from overlap_recompute.plan.actions import Actions, Kind
from overlap_recompute.schedules import pipeline_schedule
from tools.stage_bench_lib.options import Options

STEADY_PAIRS = 3
"""Pairs of a forward and a backward pass in the steady state of a step."""
LOSS = Callable[[Tensor], tuple[Tensor, dict[str, Tensor]]]
ForwardStep = Callable[[Any, nn.Module], tuple[Tensor, LOSS]]


def config_of(options: Options, *, layers: int, stages: int, stage: int) -> PretrainConfig:
    """The trainer's configuration on the first rank of a stage.

    Raises:
        ConfigError: what the trainer would refuse.
    """
    each = options.tensor_parallel * options.data_parallel
    environment = {
        "RANK": str(stage * each), "WORLD_SIZE": str(stages * each), "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1",
    }  # fmt: skip
    config = parse_command_line(options.trainer_flags(layers=layers, stages=stages), environment)
    validate(config)
    return config


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimes:
    """Of one step."""

    forward_us: tuple[float, ...]
    """Of each pass, in order."""
    backward_us: tuple[float, ...]
    step_us: float
    steady_us: tuple[float, ...]
    """Of each pair of a forward and a backward pass in the steady state."""


class Stage:
    """A stage of a model in a fake process group; see `build_stage`."""

    def __init__(
        self, config: PretrainConfig, transformer_config: Any, model: Any, device: torch.device, stage: int
    ) -> None:
        self.config, self.transformer_config, self.model, self.device = config, transformer_config, model, device
        self.stage = stage
        self.stages = config.parallel.pipeline_model_parallel_size
        self.is_first, self.is_last = stage == 0, stage == self.stages - 1
        self._set_input = get_attr_wrapped_model(model, "set_input_tensor")
        generator = torch.Generator().manual_seed(config.training.seed)
        batch, sequence = config.training.micro_batch_size, config.model.seq_length
        tokens = torch.randint(0, config.data.vocab_size or 1, (batch, sequence + 1), generator=generator).to(device)
        self._tokens, self._labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        self._positions = torch.arange(sequence, device=device).expand(batch, -1).contiguous()
        shared = config.parallel.tensor_model_parallel_size if config.parallel.sequence_parallel else 1
        shape = (sequence // shared, batch, config.model.hidden_size)
        dtype = transformer_config.params_dtype
        self._received = torch.randn(shape, generator=generator).to(device, dtype)
        self._gradient = torch.randn(shape, generator=generator).to(device, dtype) / self._received.numel()

    @property
    def in_flight(self) -> int:
        """Most microbatches between their forward and their backward pass."""
        return self.stages - self.stage

    def row(self, microbatches: int) -> Actions:
        """The stage's passes in 1F1B."""
        row = pipeline_schedule(self.stages, 1, microbatches)[self.stage]
        return tuple(action for action in row if action.kind in (Kind.F, Kind.B))

    @property
    def microbatches(self) -> int:
        """Of a step: enough for the flight of 1F1B and a steady state behind it."""
        return self.in_flight - 1 + STEADY_PAIRS

    def forward_step(self, iterator: Any, model: nn.Module) -> tuple[Tensor, LOSS]:
        """One forward pass; called as Megatron-Core's schedules call it."""
        tokens = self._tokens if self.is_first else None
        positions = self._positions if self.is_first else None
        output = model(tokens, positions, None, labels=self._labels if self.is_last else None)
        return output, lambda losses: (losses.float().mean(), {})

    def step(self, forward_step: ForwardStep, clock: Clock, microbatches: int | None = None) -> StepTimes:
        """Run a step; `microbatches`: other than what belongs to a step."""
        row = self.row(microbatches or self.microbatches)
        self.model.zero_grad_buffer()
        waiting: deque[Tensor] = deque()
        stamps = [clock.stamp()]
        for action in row:
            if action.kind is Kind.F:
                waiting.append(self.forward(forward_step, len(row) // 2))
            else:
                self.backward(waiting.popleft())
            stamps.append(clock.stamp())
        return _times(row, clock.times_us(stamps))

    def forward(self, forward_step: ForwardStep, microbatches: int = 1) -> Tensor:
        """A forward pass: what its backward pass starts from."""
        if not self.is_first:
            self._set_input(self._received.clone().requires_grad_())  # a message of its own for each microbatch
        output, loss = forward_step(None, self.model)
        if self.is_last:
            return loss(output)[0] / microbatches
        deallocate_output_tensor(output, self.transformer_config.deallocate_pipeline_outputs)
        return output

    def backward(self, output: Tensor) -> None:
        """The backward pass."""
        if self.is_last:
            output.backward()
        elif self.transformer_config.deallocate_pipeline_outputs:
            custom_backward(output, self._gradient)
        else:
            output.backward(self._gradient)

    @property
    def static_bytes(self) -> int:
        """Weights and gradient buffers; there is no optimizer."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.static_tensors())

    def static_tensors(self) -> list[Tensor]:
        """Weights and gradients."""
        return [tensor for parameter in self.model.parameters() for tensor in (parameter, parameter.main_grad)]

    def gradient_digest(self) -> str:
        """Of all gradients of the last step: a hash of the sums of every row's bits."""
        digest = hashlib.sha256()
        for name, parameter in self.model.named_parameters():
            gradient = parameter.main_grad
            bits = gradient.contiguous().view(torch.int32 if gradient.element_size() == 4 else torch.int16)
            sums = bits.to(torch.int64) if bits.dim() < 2 else bits.sum(dim=-1, dtype=torch.int64)
            digest.update(name.encode())
            digest.update(sums.cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def gradients(self) -> dict[str, Tensor]:
        """Copies, by name of the parameter."""
        return {name: parameter.main_grad.clone() for name, parameter in self.model.named_parameters()}


def _times(row: Actions, at_us: Sequence[float]) -> StepTimes:
    lengths = [end - begin for begin, end in zip(at_us, at_us[1:], strict=False)]
    kinds = [action.kind for action in row]
    # F before B, behind the first backward pass or, on the last stage, at once: all but the fill and the drain.
    pairs = [n for n in range(len(row) - 1) if (kinds[n], kinds[n + 1]) == (Kind.F, Kind.B)]
    return StepTimes(
        forward_us=tuple(us for us, kind in zip(lengths, kinds, strict=True) if kind is Kind.F),
        backward_us=tuple(us for us, kind in zip(lengths, kinds, strict=True) if kind is Kind.B),
        step_us=at_us[-1] - at_us[0],
        steady_us=tuple(lengths[n] + lengths[n + 1] for n in pairs),
    )


@contextmanager
def build_stage(config: PretrainConfig, device: torch.device, stage: int) -> Iterator[Stage]:
    """Process groups and model of one rank of a layout, for as long as the context lasts; nothing is ever sent.

    Args:
        config: of the rank (`config_of`).
        device: where the model goes.
        stage: its pipeline stage.
    """
    vocabulary = padded_vocab_size(config, build_tokenizer(config))
    transformer_config = build_transformer_config(config)
    with one_of_many(config):
        chunk = build_model(config, transformer_config, vocabulary, device)[0]
        chunk.train()
        yield Stage(config, transformer_config, chunk, device, stage)
