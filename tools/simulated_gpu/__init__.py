"""A GPU of host memory and queues: CUDA programs of torch on a machine that has no GPU (docs/simulated_gpu.md)."""
