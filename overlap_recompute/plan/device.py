"""How much of a device's memory a plan may use when nobody says."""

DEVICE_SHARE = 0.9
"""Of the memory that programs see. The memory expression has a margin for the blocks of an allocator; the rest is for
what it does not count: workspaces that libraries take late, memory in pieces after many iterations, other programs."""


def planned_bytes(device_bytes: int) -> int:
    """What a plan may use of a device with so much memory."""
    return int(device_bytes * DEVICE_SHARE)
