"""The hardware that is known by name: one table of constants; `SOURCES` says where each figure comes from."""

import dataclasses

from overlap_recompute.simulator.hardware import Hardware, pick_hardware

SOURCES: tuple[tuple[str, str], ...] = (
    ("peak_tflops", "NVIDIA A100, H100 and H200 data sheets: bf16 tensor cores without sparsity"),
    (
        "gemm_efficiency",
        "A100 NVLink: fitted to a layer of a 22B model on 8 GPUs, 7.7 ms forward and 11.9 ms backward (table 4 of "
        "arXiv 2205.05198); PCIe cards: the same less what their power limit takes, an assumption; H100 and H200: "
        "assumption",
    ),
    (
        "attention_forward_efficiency",
        "assumption after the FlashAttention-2 paper (arXiv 2307.08691), A100 and H100, heads of 128 channels, causal",
    ),
    ("attention_backward_efficiency", "as the forward one"),
    ("streaming_multiprocessors", "NVIDIA Ampere and Hopper architecture white papers"),
    ("memory_gib", "torch.cuda.get_device_properties().total_memory, rounded down"),
    ("memory_gbyte_per_s", "NVIDIA A100, H100 and H200 data sheets"),
    ("memory_efficiency", "assumption: streaming kernels with ECC"),
    ("kernel_launch_us", "assumption: empty kernels back to back from PyTorch"),
    ("gpus_per_node", "NVIDIA DGX and HGX data sheets; PCIe servers of eight cards"),
    (
        "node_link_gbyte_per_s",
        "busbw of all_reduce_perf: about 230 GB/s on 8 A100 with NVSwitch, 370 GB/s for rings on 8 H100 (comment of an "
        "NCCL author, github.com/NVIDIA/nccl-tests/issues/212), 20 GB/s on A100 PCIe cards without a bridge "
        "(nccl-tests issue 178); H100 PCIe: assumption, twice the A100's for PCIe 5",
    ),
    ("node_hop_us", "assumption: all_reduce_perf of 8 bytes takes about 10 us on 2 and 20 us on 8 A100 with NVLink"),
    ("collective_launch_us", "assumption, from the same figures"),
    (
        "network_gbit_per_s_per_node",
        "NVIDIA DGX A100 (8 x 200) and DGX H100 / H200 (8 x 400) data sheets; PCIe servers: assumption",
    ),
    ("network_efficiency", "assumption: what RDMA leaves of the line rate for collectives"),
    ("network_hop_us", "assumption: a step over InfiniBand with GPUDirect"),
    ("context_gib", "assumption: CUDA context, cuBLAS workspaces and PyTorch's kernels"),
    ("communicator_mib", "assumption: NCCL's default buffers of 4 MiB, about 24 channels, both directions"),
    ("power_w", "NVIDIA data sheets: limit of the card or module"),
    ("usd_per_gpu_hour", "assumption: in the range of on-demand offers; put in your own"),
)
"""(field, where its figures come from)."""

A100_80GB_NVLINK = Hardware(
    name="a100-80gb-nvlink",
    peak_tflops=312.0,
    gemm_efficiency=0.72,
    attention_forward_efficiency=0.66,
    attention_backward_efficiency=0.56,
    streaming_multiprocessors=108,
    memory_gib=79.1,
    memory_gbyte_per_s=2039.0,
    memory_efficiency=0.85,
    kernel_launch_us=4.0,
    gpus_per_node=8,
    node_link_gbyte_per_s=230.0,
    node_hop_us=1.0,
    collective_launch_us=8.0,
    network_gbit_per_s_per_node=1600.0,
    network_efficiency=0.85,
    network_hop_us=5.0,
    context_gib=0.9,
    communicator_mib=192.0,
    power_w=400.0,
    usd_per_gpu_hour=1.80,
)
A100_40GB_NVLINK = dataclasses.replace(
    A100_80GB_NVLINK, name="a100-40gb-nvlink", memory_gib=39.3, memory_gbyte_per_s=1555.0, usd_per_gpu_hour=1.30
)
A100_80GB_PCIE = dataclasses.replace(
    A100_80GB_NVLINK,
    name="a100-80gb-pcie",
    gemm_efficiency=0.65,  # 300 W in place of 400: the clock falls under load
    memory_gbyte_per_s=1935.0,
    node_link_gbyte_per_s=20.0,
    node_hop_us=2.5,
    network_gbit_per_s_per_node=200.0,
    communicator_mib=96.0,
    power_w=300.0,
    usd_per_gpu_hour=1.50,
)
A100_40GB_PCIE = dataclasses.replace(
    A100_80GB_PCIE,
    name="a100-40gb-pcie",
    gemm_efficiency=0.61,  # 250 W
    memory_gib=39.3,
    memory_gbyte_per_s=1555.0,
    power_w=250.0,
    usd_per_gpu_hour=1.10,
)
H100_SXM = dataclasses.replace(
    A100_80GB_NVLINK,
    name="h100-sxm",
    peak_tflops=989.0,
    gemm_efficiency=0.68,
    attention_forward_efficiency=0.36,  # FlashAttention-2, which PyTorch runs, does not use Hopper's instructions
    attention_backward_efficiency=0.30,
    streaming_multiprocessors=132,
    memory_gbyte_per_s=3350.0,
    kernel_launch_us=3.0,
    node_link_gbyte_per_s=370.0,
    network_gbit_per_s_per_node=3200.0,
    network_hop_us=4.0,
    power_w=700.0,
    usd_per_gpu_hour=3.00,
)
H100_PCIE = dataclasses.replace(
    H100_SXM,
    name="h100-pcie",
    peak_tflops=756.0,
    gemm_efficiency=0.58,  # 350 W
    streaming_multiprocessors=114,
    memory_gbyte_per_s=2000.0,
    node_link_gbyte_per_s=40.0,
    node_hop_us=2.5,
    network_gbit_per_s_per_node=400.0,
    communicator_mib=96.0,
    power_w=350.0,
    usd_per_gpu_hour=2.40,
)
H200_SXM = dataclasses.replace(
    H100_SXM,
    name="h200-sxm",
    gemm_efficiency=0.70,
    memory_gib=139.8,
    memory_gbyte_per_s=4800.0,
    usd_per_gpu_hour=3.80,
)

HARDWARE: tuple[Hardware, ...] = (
    A100_40GB_NVLINK,
    A100_80GB_NVLINK,
    A100_40GB_PCIE,
    A100_80GB_PCIE,
    H100_SXM,
    H100_PCIE,
    H200_SXM,
)


def hardware_named(text: str, *, flag: str = "--hardware") -> Hardware:
    """Hardware by name, such as `a100-80gb-pcie` or `h100-sxm/200gbit-node`.

    Raises:
        HardwareError: there is none of this name, or the network is of no known form.
    """
    return pick_hardware(HARDWARE, text, flag=flag)
