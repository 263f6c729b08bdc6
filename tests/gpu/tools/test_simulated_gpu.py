"""tools/simulated_gpu: in the order that brings it out a missing wait shows; a right program computes what it should.

Wants a CUDA build of torch and the toolkit's headers; a GPU it does not want.
"""

import os
import pathlib
import subprocess
import sys

import pytest
import torch

ROOT = pathlib.Path(__file__).resolve().parents[3]
CUDA_HOME = pathlib.Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        torch.version.cuda is None or not (CUDA_HOME / "include" / "cuda_runtime_api.h").exists(),
        reason="needs a CUDA build of torch, and the toolkit's headers",
    ),
]
PROGRAM = """
import sys
import torch

x = torch.randn(64, 32, device="cuda", requires_grad=True)
w = torch.randn(32, 16, device="cuda", requires_grad=True)
y = torch.nn.functional.dropout(torch.nn.functional.gelu(x @ w), 0.5)
y.sum().backward()
keep = (y.detach() != 0).cpu()
a, b = x.detach().cpu().requires_grad_(), w.detach().cpu().requires_grad_()
(torch.nn.functional.gelu(a @ b) * keep * 2).sum().backward()
assert torch.allclose(w.grad.cpu(), b.grad, atol=1e-4) and 0.3 < keep.float().mean() < 0.7
side, compute = torch.cuda.Stream(), torch.cuda.current_stream()
source = torch.ones(1000, device="cuda") * 2
if "input" in sys.argv:
    side.wait_stream(compute)
with torch.cuda.stream(side):
    made = source * 3
if "result" in sys.argv:
    compute.wait_stream(side)
print((made + 1)[0].item())
"""


@pytest.mark.parametrize(
    ("order", "waits", "right"),
    [
        ("eager", "", True),
        ("lazy", "input result", True),
        ("lane", "input result", True),
        ("random", "input result", True),
        ("lazy", "input", False),
        ("lane", "result", False),
    ],
)
def test_a_missing_wait_shows(tmp_path: pathlib.Path, order: str, waits: str, right: bool) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, "-m", "tools.simulated_gpu", "--order", order, "--cuda-home", str(CUDA_HOME), "--"]
    done = subprocess.run(
        [*command, str(program), *waits.split()], cwd=ROOT, capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (done.stdout.split()[-1] == "7.0") is right, done.stdout
