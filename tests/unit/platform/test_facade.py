"""The torch that megatron.core modules see on the CPU."""

import threading

import pytest
import torch

from megatron.pretrain.platform.facade import FACTORIES, CpuEvent, build_cpu_torch

FACADE = build_cpu_torch()
no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="torch can really make CUDA tensors here")
ARGUMENTS = {
    "arange": (3,), "as_tensor": ([1.0],), "full": ((2,), 7.0), "randint": (5, (2,)), "tensor": ([1.0],),
    **dict.fromkeys(("empty", "ones", "rand", "randn", "zeros"), ((2,),)),
    **{name: (torch.zeros(2),) for name in ("empty_like", "ones_like", "rand_like", "randn_like", "zeros_like")},
    "full_like": (torch.zeros(2), 7.0),
}  # fmt: skip


@pytest.mark.parametrize("name", FACTORIES)
@pytest.mark.parametrize("device", ["cuda", "cuda:0", torch.device("cuda", 0), "cpu", None])
def test_factories_make_cpu_tensors(name: str, device: object) -> None:
    assert getattr(FACADE, name)(*ARGUMENTS[name], device=device).device.type == "cpu"


@no_cuda
def test_the_real_torch_is_untouched() -> None:
    with pytest.raises((AssertionError, RuntimeError)):
        torch.zeros(2, device="cuda")
    assert FACADE.cuda is not torch.cuda
    assert torch.cuda.synchronize.__module__ == "torch.cuda"


def test_pinned_memory_is_ordinary_memory() -> None:
    assert not FACADE.tensor([1.0], pin_memory=True).is_pinned()


def test_cuda_is_the_cpu() -> None:
    cuda = FACADE.cuda
    assert cuda.current_device() == torch.device("cpu")
    assert not cuda.is_available()
    assert cuda.device_count() == 1
    cuda.synchronize()
    stream = cuda.Stream(priority=-1)
    with cuda.stream(stream):
        event = stream.record_event()
    assert isinstance(event, CpuEvent)
    assert event.query()
    cuda.current_stream().wait_stream(stream)
    cuda.current_stream().wait_event(cuda.Event(enable_timing=True))
    cuda.nvtx.range_push("name")


def test_one_generator_serves_both() -> None:
    FACADE.cuda.manual_seed(5)
    state = FACADE.cuda.get_rng_state()
    first = torch.rand(3)
    FACADE.cuda.random.set_rng_state(state)
    assert torch.equal(torch.rand(3), first)


def test_other_names_are_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert FACADE.nn is torch.nn
    assert FACADE.distributed is torch.distributed
    assert FACADE.cuda.OutOfMemoryError is torch.cuda.OutOfMemoryError
    monkeypatch.setattr(torch, "a_name_of_tomorrow", 1, raising=False)
    assert FACADE.a_name_of_tomorrow == 1
    with pytest.raises(AttributeError):
        _ = FACADE.no_such_name


def test_megatron_core_sees_it_inside_a_backward_pass_and_in_threads() -> None:
    """A function mode would be gone there: the causal mask is made with device="cuda"."""
    from megatron.core.transformer.utils import get_default_causal_mask

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
            return x * x

        @staticmethod
        def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
            masks.append(get_default_causal_mask(5))
            return gradient

    masks: list[torch.Tensor] = []
    thread = threading.Thread(target=lambda: Square.apply(torch.ones(2, requires_grad=True)).sum().backward())
    thread.start()
    thread.join()
    assert masks[0].device.type == "cpu"
    assert torch.equal(masks[0], torch.ones(5, 5, dtype=torch.bool).triu(1))
