"""What every fused op computes, in plain PyTorch: the documentation, the fallback and the oracle.

One module per family. A function here has the name and the arguments of a dispatcher op, runs on any device and dtype,
and is differentiable by autograd to any order.
"""
