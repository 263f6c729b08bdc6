"""A Megatron-LM-style GPT trainer on stock Megatron-Core, for GPU clusters and for CPU laptops."""
