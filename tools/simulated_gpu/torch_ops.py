"""What kernels would have done: aten's operators on cuda tensors, computed by the CPU when their stream gets to them.

An operator's result is allocated at once, by torch's own caching allocator on the current stream. Its job goes into the
queue of that stream with the addresses of its tensors and without the tensors: memory that is given away too early is
overwritten, as on a device.
"""

import ctypes
import itertools
import math
import os
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CPU, META = torch.device("cpu"), torch.device("meta")
STREAMS_OFFSET_STEP = 4
"""Philox offsets are multiples of it."""
NATIVE = frozenset(
    "empty empty_like empty_strided new_empty new_empty_strided detach record_stream resize_ set_ _local_scalar_dense "
    "_pin_memory pin_memory is_pinned lift_fresh alias _reshape_alias _unsafe_view is_same_size resize_as_".split()
)
"""They launch no kernel: torch's own code runs, on memory and streams that are simulated below it."""
SIZED_BY_VALUES = frozenset(
    "nonzero equal masked_select _unique2 unique_consecutive unique_dim bincount is_nonzero repeat_interleave".split()
)
"""The host waits for their results."""
INDEXING = frozenset(("index", "_unsafe_index"))
FP32_INSIDE = frozenset(("native_layer_norm", "native_layer_norm_backward"))
"""Their statistics are fp32 on a device, which the CPU's kernels do not take beside bf16."""

library = ctypes.CDLL(None)
Run = ctypes.CFUNCTYPE(None, ctypes.c_long)
library.simulated_gpu_enqueue.argtypes = [ctypes.c_void_p, Run, ctypes.c_long]
library.simulated_gpu_drain.argtypes = [ctypes.c_void_p]


class Place:
    """Where a cuda tensor lies."""

    __slots__ = ("address", "nbytes", "dtype", "size", "stride", "offset")

    def __init__(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self.address, self.nbytes, self.dtype = storage.data_ptr(), storage.nbytes(), tensor.dtype
        self.size, self.stride, self.offset = tensor.size(), tensor.stride(), tensor.storage_offset()

    def tensor(self) -> Tensor:
        """The same memory as a CPU tensor."""
        if not self.nbytes:
            return torch.empty(self.size, dtype=self.dtype)
        memory = (ctypes.c_char * self.nbytes).from_address(self.address)
        flat = torch.frombuffer(memory, dtype=self.dtype, count=self.nbytes // self.dtype.itemsize)
        return flat.as_strided(self.size, self.stride, self.offset)

    def spoil(self) -> None:
        """Fresh memory holds anything."""
        ctypes.memset(self.address, 0xFF, self.nbytes)


class Queue:
    """Jobs on their way through the streams."""

    def __init__(self) -> None:
        self._jobs: dict[int, Callable[[], object]] = {}
        self._numbers = itertools.count(1)
        self._run = Run(self._call)

    def put(self, job: Callable[[], object]) -> None:
        """To the end of the current stream."""
        number = next(self._numbers)
        self._jobs[number] = job
        library.simulated_gpu_enqueue(torch.cuda.current_stream().cuda_stream, self._run, number)

    def wait(self) -> None:
        """Until the current stream has done all."""
        library.simulated_gpu_drain(torch.cuda.current_stream().cuda_stream)

    def _call(self, number: int) -> None:
        try:
            self._jobs.pop(number)()
        except BaseException:  # nobody above could hear it
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(77)


class SimulatedOps(TorchDispatchMode):
    """Takes all operators on cuda tensors, in every thread that torch hands its state to (those of autograd too)."""

    def __init__(self) -> None:
        super().__init__()
        self._queue = Queue()
        self._drawing = threading.Lock()

    @classmethod
    def install(cls) -> None:
        """For the rest of the process; attention takes its composite form, the one of operators that the CPU has."""
        for enable in (torch.backends.cuda.enable_cudnn_sdp, torch.backends.cuda.enable_flash_sdp,
                       torch.backends.cuda.enable_mem_efficient_sdp):  # fmt: skip
            enable(False)
        torch.set_num_threads(1)
        cls().__enter__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called below autograd."""
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        touches = any(_is_cuda(leaf) or (isinstance(leaf, torch.device) and leaf.type == "cuda") for leaf in leaves)
        name = func._schema.name.partition("::")[2]
        if func.namespace != "aten" or not touches or name in NATIVE or func.is_view:
            return func(*args, **kwargs)
        if name == "copy_":
            return self._copy_into(args[0], args[1])
        if name == "_to_copy":
            return self._copied(func, args[0], kwargs)
        by_mask = name in INDEXING and any(_is_mask(index) for index in args[1])
        if name in SIZED_BY_VALUES or by_mask:
            self._queue.wait()
            found = func(*tree_map(_on_host, args), **tree_map(_on_host, kwargs))
            return tree_map(lambda leaf: self._uploaded(leaf) if isinstance(leaf, Tensor) else leaf, found)
        return self._launched(func, name, args, kwargs)

    def _launched(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        if func._schema.is_mutable:
            returned, made = _mutated(func, args, kwargs), []
        else:
            shapes = func(*tree_map(_without_values, args), **tree_map(_without_values, kwargs))
            returned = tree_map(lambda leaf: _allocated(leaf) if isinstance(leaf, Tensor) else leaf, shapes)
            made = [Place(leaf) if isinstance(leaf, Tensor) else None for leaf in _row(returned)]
        seed = None
        if torch.Tag.nondeterministic_seeded in func.tags:
            sizes = [leaf.numel() for leaf in tree_leaves(returned) if isinstance(leaf, Tensor)]
            seed = _draw(_generator_in(args, kwargs), max(sizes, default=1))
        places = tree_map(lambda leaf: Place(leaf) if _is_cuda(leaf) else leaf, (args, kwargs))

        def job() -> None:
            words, named = tree_map(_of_host, places)
            for place in made:
                if place is not None:
                    place.spoil()
            with torch.no_grad():
                for place, found in zip(made, _row(self._computed(func, name, words, named, seed)), strict=False):
                    if place is not None and place.nbytes:
                        place.tensor().copy_(found.reshape(place.size))

        self._queue.put(job)
        return returned

    def _computed(self, func: Any, name: str, args: Any, kwargs: Any, seed: int | None) -> Any:
        if name in FP32_INSIDE:
            args, kwargs = tree_map(_as_fp32, (args, kwargs))
        if name in OWN:
            return OWN[name](*args, **kwargs)
        if seed is None:
            return func(*args, **kwargs)
        with self._drawing:
            before = torch.default_generator.get_state()
            torch.default_generator.manual_seed(seed)
            try:
                return func(*args, **kwargs)
            finally:
                torch.default_generator.set_state(before)

    def _copy_into(self, target: Tensor, source: Tensor) -> Tensor:
        if not target.is_cuda:
            self._queue.wait()
            target.copy_(Place(source).tensor())
        else:
            self._put_copy(Place(target), source)
        return target

    def _copied(self, func: Any, source: Tensor, kwargs: dict[str, Any]) -> Tensor:
        kept = {name: value for name, value in kwargs.items() if name not in ("pin_memory", "non_blocking", "device")}
        device = kwargs.get("device") or source.device
        if torch.device(device).type != "cuda":
            self._queue.wait()
            copied: Tensor = func(Place(source).tensor(), device=CPU, **kept).clone()
            return copied
        target = _allocated(func(_without_values(source), device=META, **kept))
        self._put_copy(Place(target), source)
        return target

    def _uploaded(self, value: Tensor) -> Tensor:
        target = _allocated(value)
        self._put_copy(Place(target), value)
        return target

    def _put_copy(self, target: Place, source: Tensor) -> None:
        if not target.nbytes:
            return
        if source.is_cuda:
            place = Place(source)
            self._queue.put(lambda: target.tensor().copy_(place.tensor()))
        else:
            # Pinned memory is read when the stream gets there; other memory before the call returns.
            kept = source if source.is_pinned() else source.clone()
            self._queue.put(lambda: target.tensor().copy_(kept))


def _is_cuda(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_cuda


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


def _row(found: Any) -> Any:
    return found if isinstance(found, tuple | list) else [found]


def _on_host(leaf: Any) -> Any:
    return _of_host(Place(leaf) if _is_cuda(leaf) else leaf)


def _of_host(leaf: Any) -> Any:
    if isinstance(leaf, Place):
        return leaf.tensor()
    if isinstance(leaf, torch.Generator):
        return None
    return CPU if isinstance(leaf, torch.device) and leaf.type == "cuda" else leaf


def _without_values(leaf: Any) -> Any:
    if isinstance(leaf, Tensor) and (leaf.is_cuda or leaf.dim()):
        return torch.empty_strided(leaf.size(), leaf.stride(), dtype=leaf.dtype, device=META)
    if isinstance(leaf, torch.Generator):
        return None
    return META if isinstance(leaf, torch.device) else leaf


def _allocated(like: Tensor) -> Tensor:
    return torch.empty_strided(like.size(), like.stride(), dtype=like.dtype, device="cuda")


def _as_fp32(leaf: Any) -> Any:
    return leaf.float() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def _mutated(func: Any, args: Any, kwargs: Any) -> Any:
    """What an operator returns that changes its arguments: these."""
    found = []
    for returned in func._schema.returns:
        names = set(returned.alias_info.before_set) if returned.alias_info else set()
        for number, argument in enumerate(func._schema.arguments):
            if argument.alias_info and names & set(argument.alias_info.before_set):
                found.append(args[number] if number < len(args) else kwargs.get(argument.name))
    return tuple(found) if len(found) > 1 else found[0] if found else None


def _generator_in(args: Any, kwargs: Any) -> torch.Generator:
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Generator)]
    torch.cuda.init()
    return given[0] if given else torch.cuda.default_generators[torch.cuda.current_device()]


def _draw(generator: torch.Generator, count: int) -> int:
    """A seed from a device generator's seed and offset, which goes on as kernels would move it."""
    state = generator.get_state()
    seed, offset = state.view(torch.int64).tolist()
    after = state.clone()
    after.view(torch.int64)[1] = offset + STREAMS_OFFSET_STEP * max(1, math.ceil(count / 256))
    generator.set_state(after)
    return int((seed * 1_000_003 + offset * 7_919) % (2**63 - 1))


def _rms_norm(x: Tensor, shape: Any, weight: Tensor | None, eps: float | None) -> tuple[Tensor, Tensor]:
    wide = x.float()
    rstd = torch.rsqrt(wide.square().mean(-1, keepdim=True) + (torch.finfo(x.dtype).eps if eps is None else eps))
    return wide * rstd if weight is None else wide * rstd * weight.float(), rstd


def _rms_norm_backward(
    gradient: Tensor, x: Tensor, shape: Any, rstd: Tensor, weight: Tensor | None, mask: Any
) -> tuple[Tensor, Tensor]:
    gradient, wide = gradient.float(), x.float()
    scaled = gradient if weight is None else gradient * weight.float()
    mean = (scaled * wide).sum(-1, keepdim=True) / wide.shape[-1]
    return rstd * scaled - wide * rstd.pow(3) * mean, (gradient * wide * rstd).flatten(0, -2).sum(0)


OWN: dict[str, Callable[..., Any]] = {"_fused_rms_norm": _rms_norm, "_fused_rms_norm_backward": _rms_norm_backward}
"""Operators that the CPU does not have."""
