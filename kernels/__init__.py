"""Triton kernels, one module per family, with the functions of the dispatcher's ops. Installed as `genmod.kernels`.

Importing them needs triton but touches no GPU. They use names of `triton.language` only, so that they also run on CPU
tensors under Triton's interpreter (import `genmod.testing.interpreter` first).
"""
