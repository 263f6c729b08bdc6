"""Hardware from a YAML file that the user writes (`examples/hardware.yaml`), read strictly."""

import dataclasses
import difflib
import math
from pathlib import Path
from typing import Any

from overlap_recompute.simulator.hardware import Hardware, HardwareError
from overlap_recompute.simulator.hardware_table import hardware_named

try:
    import yaml
except ModuleNotFoundError:  # the optional packages of the planner
    yaml = None

BASED_ON = "based_on"
PER_GPU = "network_gbit_per_s_per_gpu"
PER_NODE = "network_gbit_per_s_per_node"
SUFFIXES = (".yaml", ".yml")
_MAX_FILE_BYTES = 1 << 16
_FIELDS: dict[str, type] = {
    field.name: field.type for field in dataclasses.fields(Hardware) if isinstance(field.type, type)
}
_KNOWN = (*_FIELDS, PER_GPU, BASED_ON)
_BOUNDS: dict[str, tuple[float, float]] = {
    "peak_tflops": (0.01, 1e5),
    "streaming_multiprocessors": (1, 1e4),
    "memory_gib": (0.25, 1e5),
    "memory_gbyte_per_s": (1, 1e5),
    "kernel_launch_us": (0.01, 1e4),
    "gpus_per_node": (1, 1e4),
    "node_link_gbyte_per_s": (0.01, 1e4),
    "node_hop_us": (0.01, 1e5),
    "collective_launch_us": (0.01, 1e5),
    "network_gbit_per_s_per_node": (0.01, 1e6),
    PER_GPU: (0.01, 1e5),
    "network_hop_us": (0.01, 1e6),
    "context_gib": (1e-3, 100),
    "communicator_mib": (0.1, 1e4),
    "power_w": (5, 2e4),
    "usd_per_gpu_hour": (1e-3, 1e4),
}
"""What hardware has, with room on both sides; a figure outside of it is one in another unit."""


def read_hardware(path: Path) -> Hardware:
    """Read hardware from a file: all fields of `Hardware`, or `based_on` and those that differ.

    Raises:
        HardwareError: the file cannot be read, or a field is unknown, missing or out of range; one field at a time.
    """
    values = _read_mapping(path)
    for name, value in values.items():
        _check_field(path, name, value)
    base = {}
    if BASED_ON in values:
        base = dataclasses.asdict(hardware_named(values.pop(BASED_ON), flag=f"{path}, whose {BASED_ON} is"))
    if PER_GPU in values:
        values = _per_node(path, values, base)
    missing = [name for name in _FIELDS if name not in values and name not in base]
    if missing:
        raise HardwareError(
            f"{path} without {', '.join(missing)}",
            "each of them",
            f"add them, or {BASED_ON}: the name of known hardware",
        )
    if base and "name" not in values:
        raise HardwareError(f"{path} without name", "a name for what differs", "add name: my-cluster")
    whole = base | values
    return Hardware(**{name: _FIELDS[name](whole[name]) for name in _FIELDS})


def hardware_from(text: str, *, flag: str = "--hardware") -> Hardware:
    """Hardware by name, or from a file when the text ends in .yaml or .yml.

    Raises:
        HardwareError: there is none of this name, or the file is not right.
    """
    return read_hardware(Path(text)) if text.endswith(SUFFIXES) else hardware_named(text, flag=flag)


def _read_mapping(path: Path) -> dict[str, Any]:
    if yaml is None:
        raise HardwareError(
            f"{path}, a YAML file, and no PyYAML", "PyYAML to read it", "pip install 'overlap-recompute[planner]'"
        )
    try:
        with path.open("rb") as stream:
            text = stream.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise HardwareError(
            f"{path}, which cannot be read ({error.strerror})", "a YAML file", "correct the path"
        ) from None
    if len(text) > _MAX_FILE_BYTES:
        raise HardwareError(f"{path} of more than {_MAX_FILE_BYTES} bytes", "a short list of fields", "check the path")
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        _refuse_doubles(path, node)
        values = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        if isinstance(error, HardwareError):
            raise
        place = " ".join(str(error).split())
        raise HardwareError(f"{path}, which is no YAML ({place})", "lines of 'field: value'", "correct it") from None
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise HardwareError(
            f"{path}, which is no list of fields", "lines of 'field: value'", "see examples/hardware.yaml"
        )
    return values


def _refuse_doubles(path: Path, node: Any) -> None:
    names = [key.value for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
    for name in names:
        if names.count(name) > 1:
            raise HardwareError(f"{path} with {name} twice", "each field once", "remove one of them")


def _check_field(path: Path, name: str, value: Any) -> None:
    if name not in _KNOWN:
        raise HardwareError(f"{path} with the unknown field {name}", f"fields of {', '.join(_KNOWN)}", _hint(name))
    if name in ("name", BASED_ON):
        right, expected = isinstance(value, str) and value != "", "text"
    else:
        whole = _FIELDS.get(name) is int
        kinds = (int,) if whole else (int, float)
        number = isinstance(value, kinds) and not isinstance(value, bool)
        at_most_one = name.endswith("_efficiency")
        right = number and math.isfinite(value) and value > 0 and not (at_most_one and value > 1)
        expected = f"a {'whole ' if whole else ''}number above 0" + (" and at most 1" if at_most_one else "")
    if not right:
        raise HardwareError(f"{path}, whose {name} is {value!r}", expected, f"correct {name}")
    least, most = _BOUNDS.get(name, (0.0, math.inf))
    if name in _BOUNDS and not least <= value <= most:
        expected, next_step = f"{least:g} to {most:g}", "convert the value: the unit is part of the name"
        raise HardwareError(f"{path}, whose {name} is {value!r}", expected, next_step)


def _hint(name: str) -> str:
    """The field of the same quantity in its own unit if there is one, else the nearest name."""
    quantity = name.split("_")[0]
    same = [known for known in _KNOWN if known.startswith(quantity + "_")]
    near = difflib.get_close_matches(name, same or _KNOWN, n=1, cutoff=0.3) or difflib.get_close_matches(
        name, _KNOWN, n=1
    )
    if not near:
        return "remove it; docs/hardware.md explains the fields"
    return f"write {near[0]} if that was meant (the unit is part of the name: convert the value)"


def _per_node(path: Path, values: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    if PER_NODE in values:
        raise HardwareError(f"{path} with both {PER_GPU} and {PER_NODE}", "one of them", "remove one")
    gpus = values.get("gpus_per_node", base.get("gpus_per_node"))
    if gpus is None:
        raise HardwareError(f"{path} with {PER_GPU} and no gpus_per_node", "both", "add gpus_per_node")
    return {name: value for name, value in values.items() if name != PER_GPU} | {PER_NODE: values[PER_GPU] * gpus}
