"""Joules as the GPU counts them: NVML's total energy counter (Volta and later), or the reason why there are none.

The counter is the board's, so whatever else runs on the GPU is in it, and it moves in steps of some 20 to 100 ms: a
reading is worth something over seconds. Hosts, switches and cooling are not in it.
"""

import importlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

MODULE, PACKAGE = "pynvml", "nvidia-ml-py"
MJ_PER_J = 1e3
SHORT_S = 1.0
"""Below it the steps of the counter show."""


@dataclass(slots=True, kw_only=True)
class Energy:
    """What counted steps drew, summed over turns."""

    joules: float = 0.0
    duration_s: float = 0.0
    steps: int = 0

    @property
    def joules_per_step(self) -> float | None:
        """None where nothing was measured."""
        return self.joules / self.steps if self.steps else None

    @property
    def power_w(self) -> float | None:
        """The mean; None where nothing was measured."""
        return self.joules / self.duration_s if self.duration_s else None


class Meter:
    """Reads the counter of one GPU.

    Args:
        nvml: the module `pynvml`, initialized.
        handle: NVML's, of the GPU.
    """

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle

    def joules(self) -> float:
        """Since the driver was loaded."""
        return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / MJ_PER_J

    def close(self) -> None:
        """Leave NVML."""
        self._nvml.nvmlShutdown()


def open_meter(
    device: torch.device,
    load: Callable[[str], Any] = importlib.import_module,
    uuid_of: Callable[[torch.device], str] | None = None,
) -> tuple[Meter | None, str]:
    """A meter of a device, or None and the reason.

    Args:
        device: to measure.
        load: imports a module; pynvml is loaded only here, and only for a GPU.
        uuid_of: names a GPU for NVML, whose numbers are not those that `CUDA_VISIBLE_DEVICES` leaves.
    """
    if device.type != "cuda":
        return None, f"no GPU: a {device.type} has no counter that is read here"
    try:
        nvml = load(MODULE)
    except ImportError:
        return None, f"{MODULE} is not installed: pip install {PACKAGE}"
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return None, f"NVML does not start: {error}"
    try:
        meter = Meter(nvml, nvml.nvmlDeviceGetHandleByUUID((uuid_of or _uuid_of)(device)))
        meter.joules()
    except nvml.NVMLError as error:
        nvml.nvmlShutdown()
        return None, f"the GPU has no energy counter that NVML may read: {error}"
    return meter, ""


def _uuid_of(device: torch.device) -> str:
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"


@contextmanager
def metered(meter: Meter | None, device: torch.device, steps: int, into: Energy) -> Iterator[None]:
    """Add what the steps of a context draw; does nothing without a meter.

    Args:
        meter: of the device.
        device: is waited for at both ends, so that the work of the steps, all of it and nothing else, is in between.
        steps: that the context runs.
        into: what to add to.
    """
    if meter is None:
        yield
        return
    torch.cuda.synchronize(device)
    begin_j, begin_s = meter.joules(), time.perf_counter()
    yield
    torch.cuda.synchronize(device)
    into.joules += meter.joules() - begin_j
    into.duration_s += time.perf_counter() - begin_s
    into.steps += steps


def as_data(energy: Energy) -> dict[str, Any]:
    """Of one arm, for the record."""
    return {
        "joules_per_step": energy.joules_per_step,
        "power_w": energy.power_w,
        "metered_s": energy.duration_s,
    }
