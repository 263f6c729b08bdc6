"""`run.json`, the part of a checkpoint that is readable without torch: what it is a checkpoint of, and its files.

The record is written last, so a checkpoint without it is not complete.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TypeAlias

from overlap_recompute.plan.errors import CheckpointError

JSON: TypeAlias = "None | bool | int | float | str | list[JSON] | Mapping[str, JSON]"

RECORD_NAME = "run.json"
FORMAT_VERSION = 1

_TABLES = ("progress", "identity", "layout", "files", "checksums")
_BLOCK_BYTES = 4 << 20
_SHOWN_DIFFERENCES = 5
_ABSENT = "nothing"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """What a checkpoint says about itself."""

    progress: Mapping[str, int]
    """Fields of `megatron.pretrain.training.state.Progress`."""

    identity: Mapping[str, JSON]
    """What makes the model this model: a checkpoint loads only where these agree."""

    config: Mapping[str, JSON]
    """Every option of the run that saved it; for people, never compared."""

    layout: Mapping[str, JSON]
    """Parallel sizes of the run that saved it; see `layout.ParallelLayout`."""

    optimizer: Mapping[str, JSON] | None
    """What kind of optimizer state it holds; None with --no-save-optim."""

    random_streams: Mapping[str, int] | None
    """Name and length of every random state a rank saved; None with --no-save-rng."""

    versions: Mapping[str, str]
    """Versions of Python, torch and megatron-core."""

    saved_at: str
    """Date and time (UTC, ISO 8601)."""

    files: Mapping[str, int] = field(default_factory=dict)
    """Size in bytes of every other file."""

    checksums: Mapping[str, int] = field(default_factory=dict)
    """CRC-32 of every other file (torch does not check those inside its archives)."""

    format_version: int = FORMAT_VERSION

    @property
    def iteration(self) -> int:
        """Iterations done when it was saved."""
        return self.progress["iteration"]

    def to_json(self) -> str:
        """The text of `run.json`."""
        return json.dumps(asdict(self), indent=1) + "\n"


def read_record(folder: Path) -> RunRecord:
    """Read `run.json`.

    Raises:
        CheckpointError: it is missing, damaged or of a later format.
    """
    path = folder / RECORD_NAME
    try:
        content = json.loads(path.read_text())
        record = RunRecord(**{item.name: content[item.name] for item in fields(RunRecord)})
        wrong = [
            name
            for name in ("progress", "identity", "layout", "files", "checksums")
            if not isinstance(content[name], dict)
        ]
        if wrong or not isinstance(record.progress["iteration"], int):
            raise TypeError(f"{wrong or 'iteration'} has another type")
    except OSError as error:
        raise CheckpointError(
            found=f"{path}: {error.strerror}",
            expected=f"a complete checkpoint with a {RECORD_NAME}, as this trainer writes",
            next_step="choose another one with --ckpt-step",
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            found=f"{path} with an unusable content ({type(error).__name__}: {error})",
            expected="the JSON record that this trainer writes",
            next_step="choose another checkpoint with --ckpt-step",
        ) from error
    if record.format_version != FORMAT_VERSION:
        raise CheckpointError(
            found=f"format {record.format_version} in {path}",
            expected=f"format {FORMAT_VERSION}",
            next_step="load it with the version of this trainer that wrote it",
        )
    return record


def list_files(folder: Path) -> dict[str, int]:
    """Size in bytes of every file of a checkpoint except its record, by name relative to `folder`."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != RECORD_NAME)
    return {str(path.relative_to(folder)): path.stat().st_size for path in files}


def checksum(path: Path) -> int:
    """CRC-32 of a file, at about 1 GB/s: it finds damage, not malice."""
    value = 0
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            value = zlib.crc32(block, value)
    return value


def check_sizes(folder: Path, record: RunRecord) -> None:
    """Check that every recorded file is there with the recorded size.

    Raises:
        CheckpointError: names the first file that is not.
    """
    for name, size in record.files.items():
        path = folder / name
        try:
            found = path.stat().st_size
        except OSError as error:
            raise _damaged(path, f"{path}: {error.strerror}", f"a file of {size} bytes") from error
        if found != size:
            raise _damaged(path, f"{path} with {found} bytes", f"{size} bytes")


def check_contents(folder: Path, record: RunRecord, names: Sequence[str]) -> None:
    """Check that the named files are as they were written.

    Raises:
        CheckpointError: names the first file that is not.
    """
    for name in names:
        if checksum(folder / name) != record.checksums.get(name):
            raise _damaged(folder / name, f"{folder / name} with a changed content", "the content that was saved")


def check_identity(record: RunRecord, expected: Mapping[str, JSON], folder: Path) -> None:
    """Check that a checkpoint is of the model that this run trains.

    Raises:
        CheckpointError: names the first fields that differ, with both values.
    """
    theirs, ours = _flatten(record.identity), _flatten(json.loads(json.dumps(expected)))
    names = [name for name in sorted({**theirs, **ours}) if theirs.get(name, _ABSENT) != ours.get(name, _ABSENT)]
    if not names:
        return
    shown = names[:_SHOWN_DIFFERENCES]
    rest = f" (and {len(names) - len(shown)} more fields)" if len(names) > len(shown) else ""
    raise CheckpointError(
        found=f"another model in {folder}: " + ", ".join(f"{n} {theirs.get(n, _ABSENT)}" for n in shown) + rest,
        expected=", ".join(f"{name} {ours.get(name, _ABSENT)}" for name in shown),
        next_step="set the model flags as they were when it was saved, or choose another folder with --load",
    )


def _flatten(value: JSON, prefix: str = "") -> dict[str, JSON]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    parts = (_flatten(item, f"{prefix}.{name}" if prefix else name) for name, item in value.items())
    return {name: item for part in parts for name, item in part.items()}


def _damaged(path: Path, found: str, expected: str) -> CheckpointError:
    return CheckpointError(
        found=found,
        expected=expected,
        next_step=f"restore it, or load another checkpoint than {path.parent.name} with --ckpt-step",
    )
