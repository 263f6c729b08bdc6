"""Profiles of a run that is otherwise: stock full recompute, and links or devices that are faster or slower."""

import dataclasses

from overlap_recompute.plan.profile import COMPUTE, EndCost, LayerKind, Pass, PassStep, Profile
from overlap_recompute.plan.storages import StorageRow, kept_bytes_of

_NOTHING: frozenset[str] = frozenset()


def with_stock_full_recompute(profile: Profile) -> Profile:
    """The profile of a run with Megatron-Core's full recomputation of every layer (uniform, one layer).

    Only a layer's input is kept. Before its backward pass the whole forward pass runs again, collectives included, and
    all that it keeps is there while the layer is in backward. Nothing is left to decide: plan it with `none`.
    """
    return dataclasses.replace(
        profile, kinds=tuple(_stock_full(kind, profile.boundary_bytes) for kind in profile.kinds)
    )


def _stock_full(kind: LayerKind, input_bytes: int) -> LayerKind:
    again_us = sum(step.duration_us for step in kind.forward)
    replay = PassStep(kind=COMPUTE, name="full replay", duration_us=again_us)
    backward = tuple(dataclasses.replace(step, needs=()) for step in kind.backward)
    return dataclasses.replace(
        kind,
        fingerprint=f"{kind.fingerprint} stock full",
        units=(),
        storages=(StorageRow(name="input of the layer", nbytes=input_bytes, maker=None, held=True),),
        backward=(replay, *backward),
        transient_bytes=kind.transient_bytes + kept_bytes_of(kind.storages, _NOTHING) - input_bytes,
        backward_memory=None,
    )


def varied(profile: Profile, *, bandwidth: float = 1.0, latency: float = 1.0, compute: float = 1.0) -> Profile:
    """The profile on links and devices that differ by factors.

    Args:
        profile: to start from.
        bandwidth: of all links; 2 halves the part of a transfer that grows with its size.
        latency: of all links; 2 doubles the part that does not.
        compute: speed of the device; 2 halves every computation.

    A collective is split into its latency and the rest by the fit of its kind; without a fit all of it counts as the
    rest. What compute hides of it shrinks as compute gets faster. Of the update, the waits for communication grow with
    the links, and the rest with the device.
    """
    links = {fit.name: fit for fit in profile.links}

    def step(old: PassStep) -> PassStep:
        if old.kind == COMPUTE:
            return dataclasses.replace(old, duration_us=old.duration_us / compute)
        total_us = old.duration_us + old.hidden_us
        alpha_us = min(total_us, links[old.name].alpha_us) if old.name in links else 0.0
        new_us = alpha_us * latency + (total_us - alpha_us) / bandwidth
        hidden_us = min(new_us, old.hidden_us / compute)
        return dataclasses.replace(old, duration_us=new_us - hidden_us, hidden_us=hidden_us)

    def steps(old: Pass) -> Pass:
        return tuple(map(step, old))

    def kind(old: LayerKind) -> LayerKind:
        units = tuple(dataclasses.replace(unit, forward_us=unit.forward_us / compute) for unit in old.units)
        return dataclasses.replace(old, units=units, forward=steps(old.forward), backward=steps(old.backward))

    def end(old: EndCost) -> EndCost:
        return dataclasses.replace(old, forward=steps(old.forward), backward=steps(old.backward))

    waits_us = profile.update_communication_us / bandwidth
    return dataclasses.replace(
        profile,
        kinds=tuple(map(kind, profile.kinds)),
        embedding=end(profile.embedding),
        head=end(profile.head),
        links=tuple(
            dataclasses.replace(
                fit, alpha_us=fit.alpha_us * latency, beta_us_per_byte=fit.beta_us_per_byte / bandwidth, points=()
            )
            for fit in profile.links
        ),
        update_us=(profile.update_us - profile.update_communication_us) / compute + waits_us,
        update_communication_us=waits_us,
    )
