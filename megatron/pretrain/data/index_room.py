"""How much memory Megatron-Core takes for the index of a split, and how much there is on this machine.

NOTE [ what an index takes ]
GPTDataset keeps three arrays for a split that is read `epochs` times: the documents in their order (4 bytes for each
document and epoch), where each sample begins (two numbers of 4 bytes, or of 8 above 2^31 documents), and the order of
the samples (4 bytes, 8 from 2^32 samples on). While the first one is made it takes 24 bytes for each document and
epoch: two grids of 8-byte numbers and a copy (tracemalloc, numpy 2.4).
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

DOCUMENT_BYTES, GRID_BYTES = 4, 24
MOST_INT32, MOST_UINT32 = 2**31 - 1, 2**32 - 1
_AVAILABLE = re.compile(r"^MemAvailable:\s*(\d+) kB", re.MULTILINE)
_CACHED = re.compile(r"^(?:in)?active_file (\d+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexSize:
    """Of one split."""

    epochs: int
    """Times that its documents are read, the last time not to the end."""
    documents: int
    """In one epoch."""
    samples: int
    """In all epochs."""

    @property
    def kept_bytes(self) -> int:
        """Of the three arrays."""
        places = self.epochs * self.documents
        place_bytes = 4 if places <= MOST_INT32 else 8
        order_bytes = 4 if self.samples < MOST_UINT32 - 1 else 8
        # Where each sample begins, and where the last one ends.
        return DOCUMENT_BYTES * places + 2 * place_bytes * (self.samples + 1) + order_bytes * self.samples

    @property
    def peak_bytes(self) -> int:
        """Most memory that is taken on the way."""
        return max(GRID_BYTES * self.epochs * self.documents, self.kept_bytes)

    def of_builders_bytes(self, builders: int) -> int:
        """Most that processes of one machine take: the first builds, and when it is done the others do, all at once."""
        return max(self.peak_bytes, self.kept_bytes + (builders - 1) * self.peak_bytes)


def size_of(samples: int | None, sequence_length: int, *, tokens: int, documents: int) -> IndexSize:
    """The size of an index.

    Args:
        samples: sequences that are asked for; None: those of one epoch.
        sequence_length: tokens of one; each sample reads one token more, the first of the next.
        tokens: of all documents, more than 0.
        documents: how many.
    """
    epochs = 1 if samples is None else max(1, math.ceil((samples * sequence_length + 1) / tokens))
    return IndexSize(epochs=epochs, documents=documents, samples=(epochs * tokens - 1) // sequence_length)


def available_bytes(root: Path = Path("/")) -> int | None:
    """Memory that a process may still take: of the machine, and of its control groups (version 2) if they have a limit.

    Args:
        root: under which /proc and /sys are.

    Returns:
        None where the system does not say.
    """
    meminfo = _text(root / "proc/meminfo")
    found = _AVAILABLE.search(meminfo)
    rooms = [int(found[1]) * 1024] if found else []
    return min((*rooms, *_rooms_of_groups(root)), default=None)


def _rooms_of_groups(root: Path) -> Iterator[int]:
    group = re.search(r"^0::/(.*)$", _text(root / "proc/self/cgroup"), re.MULTILINE)
    folder = None if group is None else Path(group[1])
    while folder is not None:
        here = root / "sys/fs/cgroup" / folder
        limit, used = _text(here / "memory.max").strip(), _text(here / "memory.current").strip()
        if limit.isdecimal() and used.isdecimal():
            # Pages of files count as used, and are given back when memory is short.
            cached = sum(map(int, _CACHED.findall(_text(here / "memory.stat"))))
            yield max(0, int(limit) - int(used) + cached)
        folder = folder.parent if folder.parent != folder else None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
