"""Numbers for people."""

from collections.abc import Sequence


def ranges_text(numbers: Sequence[int]) -> str:
    """Ascending numbers as ranges: `0-3, 8`."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
