"""The surface of the command line, frozen.

After a deliberate change write it anew: python -m tests.unit.config.test_surface && python tools/write_flag_docs.py
"""

import dataclasses
import difflib
import pathlib
import subprocess
import sys

import pytest

from megatron.pretrain.config import PretrainConfig
from megatron.pretrain.config.always_on import ALIASES, ALWAYS_ON
from megatron.pretrain.config.field_docs import field_docs
from megatron.pretrain.config.flag_page import flag_page
from megatron.pretrain.config.flags import all_flags
from megatron.pretrain.config.help_text import describe_argument, describe_default
from megatron.pretrain.config.pretrain_config import GROUPS
from megatron.pretrain.config.refused_flags import REFUSALS, REFUSED_VALUES, find_refusal

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[2]
SURFACE = HERE / "flag_surface.txt"
OWN_FLAGS = {
    "--metrics-file", "--model-preset", "--progress-bar", "--schedule-impl", "--liveness-timeout-s",
    "--gloo-thread-turns", "--emulate-link-gbps", "--emulate-link-latency-us",
    "--overlap-recompute", "--overlap-recompute-policy", "--overlap-recompute-windows",
    "--overlap-recompute-prefetch-mib", "--overlap-recompute-delay-wgrad", "--overlap-recompute-verify",
    "--overlap-recompute-serialize", "--overlap-recompute-trace",
    "--overlap-recompute-profile", "--overlap-recompute-profile-warmup", "--overlap-recompute-profile-iterations",
    "--overlap-recompute-plan", "--overlap-recompute-auto", "--overlap-recompute-memory-gib",
    "--overlap-recompute-replan-interval", "--overlap-recompute-auto-plan",
}  # fmt: skip


def megatron_lm_flags() -> list[str]:
    return [line for line in (HERE / "megatron_lm_flags.txt").read_text().split("\n") if line.startswith("--")]


def our_flags() -> set[str]:
    return {flag.name for _, options in GROUPS for flag in all_flags(options)}


def surface() -> str:
    lines = [
        f"{flag.name} {describe_argument(flag)}".rstrip() + f" [{describe_default(flag)}]"
        for _, options in GROUPS
        for flag in all_flags(options)
    ]
    return "\n".join(sorted(lines)) + "\n"


def test_the_surface_is_frozen() -> None:
    difference = list(difflib.unified_diff(SURFACE.read_text().splitlines(), surface().splitlines(), lineterm=""))
    assert not difference, "\n".join(["the command line changed; see the head of this file", *difference])


def test_the_flag_page_is_up_to_date() -> None:
    assert (ROOT / "docs" / "flags.md").read_text() == flag_page(), "run python tools/write_flag_docs.py"


def test_the_tool_sees_a_page_that_is_out_of_date(tmp_path: pathlib.Path) -> None:
    page = tmp_path / "flags.md"
    page.write_text(flag_page() + "x")
    command = [sys.executable, str(ROOT / "tools" / "write_flag_docs.py"), "--output", str(page)]
    check = subprocess.run([*command, "--check"], capture_output=True, text=True, timeout=200, cwd=tmp_path)
    assert check.returncode == 1
    assert "is out of date" in check.stderr
    assert subprocess.run(command, timeout=200, cwd=tmp_path).returncode == 0
    assert page.read_text() == flag_page()


def test_every_flag_of_megatron_lm_is_supported_noted_or_refused() -> None:
    known = our_flags() | set(ALIASES) | {entry.flag for entry in ALWAYS_ON} | {"--help"}
    unknown = [flag for flag in megatron_lm_flags() if flag not in known and find_refusal(flag) is None]
    assert len(megatron_lm_flags()) > 890
    assert not unknown


def test_every_flag_is_megatron_lms_or_declared_our_own() -> None:
    assert our_flags() - set(megatron_lm_flags()) == OWN_FLAGS
    declared = {
        flag.name
        for _, options in GROUPS
        for flag in all_flags(options)
        if "Own flag" in field_docs(options)[flag.field_name]
    }
    assert declared == OWN_FLAGS


def test_no_flag_is_both_supported_and_refused() -> None:
    supported = [*our_flags(), *ALIASES, *(entry.flag for entry in ALWAYS_ON)]
    assert not [flag for flag in supported if find_refusal(flag)]


def test_no_entry_of_the_refused_table_is_dead() -> None:
    flags = megatron_lm_flags()
    used = {entry.flags for flag in flags if (entry := find_refusal(flag))}
    assert [entry.flags for entry in REFUSALS if entry.flags not in used] == []
    names = {name for entry in REFUSALS for name in entry.flags if "*" not in name}
    assert not names - set(flags), "no flags of Megatron-LM"


def test_refused_values_belong_to_supported_flags() -> None:
    flags = {flag.name: flag for _, options in GROUPS for flag in all_flags(options)}
    for entry in REFUSED_VALUES:
        assert not set(entry.values) & set(flags[entry.flag].choices)


@pytest.mark.parametrize("options", [options for _, options in GROUPS])
def test_every_field_says_what_it_is(options: type) -> None:
    docs = field_docs(options)
    assert list(docs) == [field.name for field in dataclasses.fields(options)]
    for name, doc in docs.items():
        assert doc[-1] in ".)", f"{name}: {doc}"
        assert doc[0].isupper() or doc.split()[0].rstrip(",.") in ("nccl", "fp32"), f"{name}: {doc}"


def test_field_names_are_unique_over_groups() -> None:
    names = [flag.field_name for _, options in GROUPS for flag in all_flags(options)]
    assert len(names) == len(set(names))


def test_the_config_is_immutable() -> None:
    for options in (PretrainConfig, *(options for _, options in GROUPS)):
        assert vars(options)["__dataclass_params__"].frozen
        assert "__slots__" in vars(options)


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, megatron.pretrain.config as c\n"
        "heavy = {'torch', 'numpy', 'megatron.core', 'argparse'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr


if __name__ == "__main__":
    SURFACE.write_text(surface())
