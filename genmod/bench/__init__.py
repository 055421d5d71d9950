"""`genmod bench`: every op and some whole training steps against eager PyTorch, torch.compile and installable peers.

The clock is `genmod.measure.interleaved`: contenders take turns. Nothing here is imported by the rest of genmod.
"""
