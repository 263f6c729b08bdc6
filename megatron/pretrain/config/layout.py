"""Text form of a pipeline layout, with the syntax of Megatron-Core's PipelineParallelLayerLayout.

Source of the syntax: megatron/core/transformer/pipeline_parallel_layer_layout.py, version 0.16.1.
"""

import re

from overlap_recompute.plan.errors import ConfigError

MAX_LAYERS = 100_000
"""Longest layout that is unrolled: a typing error such as t*999999999 must not fill the memory."""

_FLAG = "--pipeline-model-parallel-layout"
_REPEATED_GROUP = re.compile(r"\(([^()]+)\)\*(\d+)")
_REPEATED_ITEM = re.compile(r"(.)\*(\d+)")


def parse_layout(text: str) -> tuple[str, ...]:
    """The stages of a layout in layer order, each as a string of E (embedding), t (transformer layer), L (loss).

    "Et*3|(t|)*2tL" gives ("Ettt", "t", "t", "tL"). Commas only help the eye.

    Raises:
        ConfigError: an unknown letter, a stray "(", ")" or "*", or a repetition beyond MAX_LAYERS.
    """
    unrolled = text.replace(",", "")
    for pattern in (_REPEATED_GROUP, _REPEATED_ITEM):
        unrolled = pattern.sub(lambda match: _repeat(text, match), unrolled)
    strange = sorted(set(unrolled) - set("EtL|"))
    if strange:
        raise ConfigError(
            f"{' '.join(map(repr, strange))} in {_FLAG} {text!r}",
            'only E, t, L, "|", commas, and repetitions such as t*3 and (tt|)*2',
            "rewrite the layout",
        )
    return tuple(unrolled.split("|"))


def _repeat(text: str, match: re.Match[str]) -> str:
    # Nine digits are enough to exceed the limit, and Python refuses to read thousands of them.
    item, count = match.group(1), int((match.group(2).lstrip("0") or "0")[:9])
    if len(item) * count > MAX_LAYERS:
        raise ConfigError(
            f"{match.group(0)!r} in {_FLAG} {text!r}", f"at most {MAX_LAYERS} layers", "shorten the repetition"
        )
    return item * count
