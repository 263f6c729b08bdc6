"""Handles of torch's streams, without a device: which of torch's objects a handle becomes."""

import pytest
import torch

from overlap_recompute.ops import native
from overlap_recompute.ops.backend import make_backend
from overlap_recompute.ops.streams import CudaStreams

DEVICE = torch.device("cuda", 1)


class Recorded:
    """An event that keeps the streams it was recorded on."""

    def __init__(self) -> None:
        self.streams: list[object] = []

    def record(self, stream: object) -> None:
        self.streams.append(stream)


def test_handle_0_is_the_default_stream_and_another_one_is_wrapped_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch takes an external stream of handle 0 for none, and gives a stream of its pool, which orders nothing."""
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: ("default", device))
    monkeypatch.setattr(torch.cuda, "ExternalStream", lambda handle, device: ["external", handle, device])
    streams, event = CudaStreams(DEVICE), Recorded()
    for handle in (0, 7, 7):
        streams.record(event, handle)  # type: ignore[arg-type]
    assert event.streams == [("default", DEVICE), ["external", 7, DEVICE], ["external", 7, DEVICE]]
    assert event.streams[1] is event.streams[2]


@pytest.mark.skipif(not native.has_cuda, reason="the extension was built without CUDA")
def test_a_device_without_a_number_is_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 99)
    with pytest.raises(ValueError, match="found CUDA device 99"):
        make_backend(torch.device("cuda"))
