"""Hardware by name and from files: every fault is one sentence with file and field."""

import dataclasses
from pathlib import Path

import pytest

from overlap_recompute.simulator.hardware import Hardware, HardwareError
from overlap_recompute.simulator.hardware_file import hardware_from, read_hardware
from overlap_recompute.simulator.hardware_table import A100_40GB_PCIE, HARDWARE, SOURCES, hardware_named

ROOT = Path(__file__).resolve().parents[3]
FIELDS = [field.name for field in dataclasses.fields(Hardware)]


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


def whole(**changes: object) -> str:
    """A file with every field, changed in some; None takes a field away."""
    values = dataclasses.asdict(A100_40GB_PCIE) | changes
    return "".join(f"{name}: {value}\n" for name, value in values.items() if value is not None)


def test_every_figure_has_a_source() -> None:
    assert [name for name, _ in SOURCES] == [name for name in FIELDS if name != "name"]
    assert "assumption" in dict(SOURCES)["usd_per_gpu_hour"]


def test_the_page_has_every_figure() -> None:
    page = (ROOT / "docs" / "hardware.md").read_text()
    for name, source in SOURCES:
        row = " | ".join([f"| `{name}`", *(f"{getattr(hardware, name):g}" for hardware in HARDWARE)])
        assert f"{row} |" in page, row
        assert f"| `{name}` | {source} |" in page, name


def test_the_table_is_sane() -> None:
    assert len({hardware.name for hardware in HARDWARE}) == len(HARDWARE)
    for hardware in HARDWARE:
        assert 0.5 < hardware.gemm_efficiency < 0.9
        assert hardware.network_bytes_per_us <= hardware.node_bytes_per_us
        assert hardware.memory_gib * 2**30 < {"40gb": 43e9, "80gb": 86e9}.get(hardware.name.split("-")[1], 152e9)


def test_a_network_after_the_name() -> None:
    per_gpu, per_node = hardware_named("h100-sxm/200gbit-gpu"), hardware_named("h100-sxm/100gbit-node")
    assert per_gpu.network_gbit_per_s_per_node == 1600
    assert per_node.network_gbit_per_s_per_node == 100
    assert per_node.network_bytes_per_us == pytest.approx(100e9 / 8 / 8 * 0.85 / 1e6)
    assert per_gpu.name == "h100-sxm/200gbit-gpu"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("h100", "write h100-sxm or h100-pcie if that was meant"),
        ("h100-smx", "write h100-sxm if that was meant"),
        ("A100-80GB-NVLINK", "write a100-80gb-nvlink"),
        ("tpu", "describe yours"),
        ("h100-sxm/fast", "<number>gbit-gpu"),
        ("h100-sxm/0gbit-gpu", "<number>gbit-gpu"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(text: str, expected: str) -> None:
    with pytest.raises(HardwareError, match="found --hardware") as error:
        hardware_named(text)
    assert expected in str(error.value)


def test_the_example_is_read() -> None:
    found = hardware_from(str(ROOT / "examples" / "hardware.yaml"))
    assert (found.name, found.gpus_per_node, found.network_gbit_per_s_per_node) == ("my-pcie-cluster", 4, 100.0)
    assert found.peak_tflops == A100_40GB_PCIE.peak_tflops
    assert isinstance(found.power_w, float) and isinstance(found.gpus_per_node, int)


def test_a_file_with_every_field_stands_alone(tmp_path: Path) -> None:
    assert read_hardware(written(tmp_path, whole())) == A100_40GB_PCIE


def test_the_network_may_be_given_per_gpu(tmp_path: Path) -> None:
    text = whole(network_gbit_per_s_per_node=None) + "network_gbit_per_s_per_gpu: 50\n"
    assert read_hardware(written(tmp_path, text)).network_gbit_per_s_per_node == 400.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (whole(memory_gib=None) + "memory_gb: 40\n", "the unknown field memory_gb; .*write memory_gib"),
        (whole(power_w=None) + "power_kw: 0.3\n", "the unknown field power_kw; .*write power_w if that was meant"),
        (whole() + "colour: red\n", "the unknown field colour"),
        (whole(power_w=None), "mine.yaml without power_w; expected each of them"),
        (whole(power_w=-1), "whose power_w is -1; expected a number above 0"),
        (whole(power_w=0), "whose power_w is 0; "),
        (whole(power_w="lots"), "whose power_w is 'lots'"),
        (whole(power_w=True), "whose power_w is True"),
        (whole(power_w=".inf"), "whose power_w is inf"),
        (whole(power_w="[1]"), r"whose power_w is \[1\]"),
        (whole(memory_gib=42949672960), "whose memory_gib is 42949672960; expected 0.25 to 100000; convert the value"),
        (whole(peak_tflops=312e12), "whose peak_tflops is 312000000000000.0; expected 0.01 to 100000; convert"),
        (whole(power_w=0.3), "whose power_w is 0.3; expected 5 to 20000; convert"),
        (whole(network_gbit_per_s_per_node=1e11), "whose network_gbit_per_s_per_node is 100000000000.0; expected"),
        (whole(gemm_efficiency=1.2), "whose gemm_efficiency is 1.2; expected a number above 0 and at most 1"),
        (whole(gpus_per_node=7.5), "whose gpus_per_node is 7.5; expected a whole number above 0"),
        (whole(name=3), "whose name is 3; expected text"),
        (whole() + "power_w: 2\n", "with power_w twice"),
        (whole() + "network_gbit_per_s_per_gpu: 50\n", "with both network_gbit_per_s_per_gpu and"),
        ("based_on: h200\nname: x\n", "whose based_on is 'h200', .*write h200-sxm if that was meant"),
        ("based_on: h200-sxm\npower_w: 600\n", "without name"),
        ("- a\n- b\n", "which is no list of fields"),
        ("", "which is no list of fields"),
        ("a: [1", "which is no YAML"),
        ("a: !!python/object:os.system x\n", "which is no YAML"),
        ("name: \x00\n", "which is no YAML"),
        ("# " + "x" * 70000, "of more than 65536 bytes"),
    ],
)
def test_a_faulty_file_is_one_sentence(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(HardwareError, match=expected) as error:
        read_hardware(written(tmp_path, text))
    assert "mine.yaml" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(HardwareError, match=r"none\.yaml, which cannot be read"):
        hardware_from(str(tmp_path / "none.yaml"))
    with pytest.raises(HardwareError, match="cannot be read"):
        read_hardware(tmp_path)


def test_without_pyyaml_the_way_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overlap_recompute.simulator.hardware_file.yaml", None)
    with pytest.raises(HardwareError, match=r"pip install 'overlap-recompute\[planner\]'"):
        read_hardware(written(tmp_path, whole()))
    assert hardware_from("h200-sxm").name == "h200-sxm"
