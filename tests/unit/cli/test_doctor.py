"""`overlap-recompute doctor` on this machine and on machines where things are broken."""

import importlib
import json
import os
from importlib import metadata
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from overlap_recompute.cli import doctor_probes
from overlap_recompute.cli.doctor_probes import Finding, examine
from overlap_recompute.cli.main import main


def found(name: str) -> Finding:
    return next(finding for finding in examine() if finding.name == name)


def install(monkeypatch: pytest.MonkeyPatch, **modules: Any) -> None:
    """Let the doctor import these instead of the real ones; an exception is raised."""

    def import_module(name: str) -> Any:
        module = modules.get(name.replace(".", "_"), SimpleNamespace(__version__="0"))
        if isinstance(module, BaseException):
            raise module
        return module

    monkeypatch.setattr(doctor_probes, "importlib", SimpleNamespace(import_module=import_module))


def test_what_runs_these_tests_is_found() -> None:
    findings = {finding.name: finding for finding in examine()}
    assert findings["python"].present
    assert findings["torch"].value == importlib.import_module("torch").__version__
    assert findings["megatron-core"].value == metadata.version("megatron-core")
    expected = {"cuda", "extension", "transformer-engine", "apex", "scipy", "nvcc", "srun", "ip", "tc", "root"}
    assert expected <= set(findings)
    assert all(finding.needed_for for finding in findings.values())


def test_the_report_has_one_line_each_and_says_what_the_missing_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["doctor"])
    lines = capsys.readouterr().out.splitlines()
    findings = examine()
    assert len(lines) == len(findings) + 2
    for line, finding in zip(lines, findings, strict=False):
        assert finding.name in line
        assert (f"needed for {finding.needed_for}" in line) is not finding.present
        assert line[0] == (" " if finding.present else "!" if finding.required else "-")
    assert (lines[-1] == "training can start.") is (status == 0)


def test_json_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["doctor", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "doctor/1"
    assert document["ready"] is (status == 0)
    assert [each["name"] for each in document["findings"]] == [finding.name for finding in examine()]


def test_without_torch_training_cannot_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, torch=ImportError("libfoo.so:\n not there"), overlap_recompute_ops=ImportError("no torch"))
    assert main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert "! torch               absent (ImportError: libfoo.so: not there); needed for training" in text
    assert "- cuda                absent (no torch)" in text
    assert "- extension           absent (ImportError: no torch)" in text
    assert text.endswith("training cannot start without torch.\n")


def test_another_megatron_core_is_not_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        doctor_probes, "metadata", SimpleNamespace(version=lambda name: "0.9", PackageNotFoundError=KeyError)
    )
    finding = found("megatron-core")
    assert not finding.present
    assert finding.required
    assert finding.value == "0.9, which is not supported"
    assert "0.16.1" in finding.needed_for


def torch_with(**cuda: Any) -> ModuleType:
    module: Any = ModuleType("torch")
    module.__version__, module.version, module.cuda = "2.9", SimpleNamespace(cuda="13.0"), SimpleNamespace(**cuda)
    return module


def test_cuda_devices_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    devices = {"is_available": lambda: True, "device_count": lambda: 2, "get_device_name": lambda number: "H100"}
    install(monkeypatch, torch=torch_with(**devices))
    finding = found("cuda")
    assert finding.present
    assert finding.value == "13.0, 2 device(s): H100; CUDA_DEVICE_MAX_CONNECTIONS 1"


def test_a_driver_that_fails_is_part_of_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> bool:
        raise RuntimeError("driver too old")

    install(monkeypatch, torch=torch_with(is_available=fail))
    assert found("cuda").value == "absent (RuntimeError: driver too old)"
    install(monkeypatch, torch=torch_with(is_available=lambda: False))
    assert found("cuda").value == "absent (torch is built for CUDA 13.0 and sees no device)"


def test_an_extension_of_another_version_does_not_end_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, overlap_recompute_ops=ModuleType("ops"))
    finding = found("extension")
    assert not finding.present
    assert "AttributeError" in finding.value
    lines = ("extension = present (c++)", "extension CUDA part = absent, because there is no nvcc")
    ops = SimpleNamespace(build_info=lambda: SimpleNamespace(lines=lambda: lines))
    install(monkeypatch, overlap_recompute_ops=ops)
    assert found("extension").present
    assert found("extension CUDA part").value == "absent, because there is no nvcc"


def test_programs_are_looked_for_on_the_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    program = tmp_path / "srun"
    program.write_text("")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert found("srun").value == str(program)
    os.unlink(program)
    assert not found("srun").present
