"""Thin modules over `genmod.ops`."""

from genmod.nn.blocks import ConvTransposeBlock, UpsampleBlock
from genmod.nn.decoder import Decoder, DecoderConfig
from genmod.nn.gaussian import DiagonalGaussian, GaussianSampler
from genmod.nn.norm_act import BatchNormAct, BiasAct, GroupNormAct
from genmod.nn.residual import AttentionBlock, ResnetBlock
from genmod.nn.upsample_conv import UpsampleConv2d

__all__ = ["DiagonalGaussian", "GaussianSampler"]
__all__ += ["BatchNormAct", "BiasAct", "GroupNormAct"]
__all__ += ["ConvTransposeBlock", "UpsampleBlock", "UpsampleConv2d"]
__all__ += ["AttentionBlock", "Decoder", "DecoderConfig", "ResnetBlock"]
