"""The units of a transformer layer by name: what a policy can drop (docs/overlap.md)."""

LAYER_UNITS = (
    "input_layernorm",
    "linear_qkv",
    "rotary",
    "core_attention",
    "pre_mlp_layernorm",
    "linear_fc1",
    "activation",
)
"""In forward order. A model without rotary embedding has no `rotary`; with Transformer Engine the norms are part of
`linear_qkv` and `linear_fc1`."""

EXPERTS = "experts"
"""`experts.3.activation` is the unit `activation` of the fourth expert that this rank holds."""

SHARED_EXPERTS = "shared_experts"
"""`shared_experts.activation` is the one of the shared experts."""


def kind_of(unit: str) -> str:
    """The name of `LAYER_UNITS` that a unit goes by in policies: the same for all experts."""
    return unit.rpartition(".")[2]
