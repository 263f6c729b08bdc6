"""Stock recomputation."""

from megatron.pretrain.config.checks.common import Check, require
from megatron.pretrain.config.pretrain_config import PretrainConfig
from megatron.pretrain.config.stages import layers_per_chunk


def granularity_takes_its_options(config: PretrainConfig) -> None:
    """Full recomputation needs method and layers; selective needs modules; each refuses the other's."""
    options = config.recompute
    granularity = options.recompute_granularity
    given = {
        "--recompute-method": options.recompute_method is not None,
        "--recompute-num-layers": options.recompute_num_layers is not None,
        "--recompute-modules": options.recompute_modules is not None,
    }
    full = ("--recompute-method", "--recompute-num-layers")
    expected = {"full": full, "selective": ("--recompute-modules",), None: ()}[granularity]
    stray = [flag for flag, is_given in given.items() if is_given and flag not in expected]
    missing = [flag for flag in expected if not given[flag]]
    name = f"--recompute-granularity {granularity}" if granularity else "no --recompute-granularity"
    require(
        not stray,
        f"{name} with {' and '.join(stray)}",
        f"{' and '.join(expected) or 'no other --recompute flag'}",
        f"remove {' and '.join(stray)}, or choose the other granularity",
    )
    require(
        not missing,
        f"{name} without {' and '.join(missing)}",
        " and ".join(expected),
        f"add {' and '.join(missing)}",
    )


def layers_are_there(config: PretrainConfig) -> None:
    """No more layers are recomputed than the largest model chunk has."""
    layers = config.recompute.recompute_num_layers
    most = max(count for rank in layers_per_chunk(config) for count in rank)
    require(
        layers is None or layers <= most,
        f"--recompute-num-layers {layers}",
        f"at most the {most} layers of the largest model chunk",
        f"choose {most} or fewer",
    )


def groups_are_whole(config: PretrainConfig) -> None:
    """Megatron-Core's uniform groups would run past the end of a model chunk."""
    options = config.recompute
    layers = options.recompute_num_layers
    if options.recompute_method != "uniform" or layers is None:
        return
    uneven = [count for rank in layers_per_chunk(config) for count in rank if count % layers]
    require(
        not uneven,
        f"--recompute-method uniform in groups of {layers} layers, and a model chunk of {max(uneven, default=0)}",
        "a whole number of groups in every model chunk",
        "choose a --recompute-num-layers that divides it, or --recompute-method block",
    )


def modules_exist(config: PretrainConfig) -> None:
    """What is recomputed is part of the model."""
    modules = config.recompute.recompute_modules or ()
    moe = config.moe
    has_experts = moe.num_experts is not None
    needs = {
        "moe": (has_experts, "--num-experts"),
        "moe_act": (has_experts and moe.moe_grouped_gemm, "--num-experts and --moe-grouped-gemm"),
        "shared_experts": (
            has_experts and moe.moe_shared_expert_intermediate_size is not None and not moe.moe_shared_expert_overlap,
            "--moe-shared-expert-intermediate-size without --moe-shared-expert-overlap",
        ),
        "mlp": (not all(config.moe_layer_pattern), "a layer without experts (experts are recomputed by moe)"),
    }
    for module, (holds, condition) in needs.items():
        require(
            module not in modules or holds, f"--recompute-modules {module}", condition, "remove it from the modules"
        )


def saved_inputs_can_be_split(config: PretrainConfig) -> None:
    """Layer inputs are whole on every tensor-parallel rank only without sequence parallelism."""
    options, parallel = config.recompute, config.parallel
    require(
        not options.distribute_saved_activations
        or (
            options.recompute_granularity == "full"
            and parallel.tensor_model_parallel_size > 1
            and not parallel.sequence_parallel
        ),
        "--distribute-saved-activations",
        "--recompute-granularity full, tensor parallelism, and no --sequence-parallel (which splits them already)",
        "remove --distribute-saved-activations",
    )


CHECKS: tuple[Check, ...] = (
    granularity_takes_its_options,
    layers_are_there,
    groups_are_whole,
    modules_exist,
    saved_inputs_can_be_split,
)
