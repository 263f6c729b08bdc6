"""Recompute ahead of need on a plain residual CNN: no Transformer, no Megatron, one process.

Run: `python examples/recompute_residual_cnn.py`; about ten seconds of one core.

Three arms train the same network on the same pictures of shapes. In every arm each forward pass is followed by a
communication of fixed length, emulated by a timer: a transfer would leave the processor idle in the same way.

    none        keeps every activation, waits for the communication
    on demand   drops what the policy says, waits for the communication, recomputes when backward asks
    overlapped  drops the same, recomputes while the communication is in flight
"""

import statistics
import threading
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from overlap_recompute.runtime import Policy, Runtime, StepReport

STEPS = 8
WARM_UP_STEPS = 1
MICROBATCHES = 2
COMMUNICATION_S = 0.1
SIZE, CHANNELS, BLOCKS, BATCH = 32, 24, 4, 24
UNITS = ("norm1", "act1", "conv1", "norm2", "act2")


class Block(nn.Module):
    """Two convolutions, each behind a group normalization, and a way around them."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.act1, self.conv1 = nn.GroupNorm(4, CHANNELS), nn.SiLU(), nn.Conv2d(CHANNELS, CHANNELS, 3, 1, 1)
        self.norm2, self.act2, self.conv2 = nn.GroupNorm(4, CHANNELS), nn.SiLU(), nn.Conv2d(CHANNELS, CHANNELS, 3, 1, 1)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(self.act1(self.norm1(x)))
        return x + self.drop(self.conv2(self.act2(self.norm2(h))))


class ShapeNet(nn.Module):
    """Tells circles, squares and crosses apart."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, CHANNELS, 3, padding=1)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.head = nn.Linear(CHANNELS, 3)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        x = self.stem(images)
        for block in self.blocks:
            x = block(x)
        return functional.cross_entropy(self.head(x.mean((2, 3))), labels)


def shapes(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noisy pictures [batch, 1, size, size] of one shape each, and which shape it is."""
    labels = torch.randint(3, (BATCH,), generator=generator)
    center = torch.rand(BATCH, 2, 1, 1, generator=generator) * 8 + SIZE / 2 - 4
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    dy, dx = (y - center[:, 0]).abs(), (x - center[:, 1]).abs()
    drawn = torch.stack([dy**2 + dx**2 < 64, torch.maximum(dy, dx) < 7, torch.minimum(dy, dx) < 2])
    images = drawn[labels, torch.arange(BATCH)].float()
    return (images + 0.3 * torch.randn(images.shape, generator=generator)).unsqueeze(1), labels


def communicate(while_in_flight: Callable[[Callable[[], bool]], object] | None) -> None:
    """A transfer of `COMMUNICATION_S` seconds that needs no processor; the caller may work until it is complete."""
    complete = threading.Event()
    timer = threading.Timer(COMMUNICATION_S, complete.set)
    timer.start()
    if while_in_flight is not None:
        while_in_flight(complete.is_set)
    complete.wait()
    timer.join()


class Arm:
    """One way of training the network, always from the same start and on the same pictures."""

    def __init__(self, policy: Policy, overlap: bool) -> None:
        torch.manual_seed(0)
        self.model, self.pictures = ShapeNet(), torch.Generator().manual_seed(1)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        self.random_state = torch.get_rng_state()
        self.overlap = overlap
        self.runtime = Runtime(policy)
        self.runtime.attach(self.model, [f"blocks.*.{unit}" for unit in UNITS])
        self.losses: list[float] = []
        self.times_ms: list[float] = []
        self.report: StepReport | None = None

    def step(self) -> None:
        """Two microbatches forward, a communication after each, two backward, one update."""
        torch.set_rng_state(self.random_state)
        begin_ns = time.perf_counter_ns()
        losses = []
        for microbatch in range(MICROBATCHES):
            images, labels = shapes(self.pictures)
            with self.runtime.microbatch(microbatch):
                losses.append(self.model(images, labels) / MICROBATCHES)
            communicate(self.runtime.queue.fill if self.overlap else None)
        for loss in losses:
            loss.backward()
        self.report = self.runtime.step_end()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.times_ms.append((time.perf_counter_ns() - begin_ns) / 1e6)
        self.losses.append(sum(loss.item() for loss in losses))
        self.random_state = torch.get_rng_state()

    def row(self, name: str, reference: "Arm") -> str:
        """What it kept, how long it took, and whether it computed the same bits as `reference`."""
        assert self.report is not None, "an arm is shown after its last step"
        pairs = zip(self.model.parameters(), reference.model.parameters(), strict=True)
        same = self.losses == reference.losses and all(torch.equal(a, b) for a, b in pairs)
        report = self.report
        return (
            f"{name:11} {report.kept_peak_bytes / 2**20:9.1f} {statistics.median(self.times_ms[WARM_UP_STEPS:]):8.0f} "
            f"{report.hidden_replays:7} {report.exposed_replays:8} {report.hidden_us / 1000:10.0f} "
            f"{report.exposed_us / 1000:11.0f} {self.losses[-1]:10.6f}  {'yes' if same else 'NO'}"
        )


def main() -> None:
    """Run the arms in turn, one step each, and print a table."""
    torch.set_num_threads(1)
    arms = {
        "none": Arm(Policy.save_all(), overlap=False),
        "on demand": Arm(Policy.recompute(*UNITS), overlap=False),
        "overlapped": Arm(Policy.recompute(*UNITS), overlap=True),
    }
    for _ in range(STEPS):
        for arm in arms.values():
            arm.step()
    losses = arms["none"].losses
    print(
        f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in {STEPS} steps; {MICROBATCHES} microbatches a step, and after each"
    )
    print(f"a communication of {COMMUNICATION_S * 1000:.0f} ms, emulated by a timer; the arms take turns")
    titles = ("arm", "kept MiB", "ms/step", "hidden", "exposed", "hidden ms", "exposed ms", "last loss")
    print("{:11} {:>9} {:>8} {:>7} {:>8} {:>10} {:>11} {:>10}  same bits".format(*titles))
    for name, arm in arms.items():
        print(arm.row(name, arms["none"]))
        arm.runtime.detach()


if __name__ == "__main__":
    main()
