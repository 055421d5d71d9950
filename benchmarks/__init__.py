"""The benchmark runner: `python -m benchmarks` times every op's workloads against eager PyTorch and torch.compile."""
