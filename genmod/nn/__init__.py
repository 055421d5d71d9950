"""Thin modules over `genmod.ops`."""

from genmod.nn.adversarial import CriticLoss, GeneratorLoss, LeCam
from genmod.nn.aggregate import DIP, MMD, BetaTCVAELoss, TotalCorrelation
from genmod.nn.blocks import ConvTransposeBlock, UpsampleBlock
from genmod.nn.conv3x3 import Conv3x3
from genmod.nn.conv4x4 import Conv4x4, ConvTranspose4x4
from genmod.nn.critic import BlurDownsample, CriticConv2d, CriticLeakyReLU, CriticLinear, CriticReLU, MinibatchStdDev
from genmod.nn.decoder import Decoder, DecoderConfig
from genmod.nn.elbo import ELBO, ELBOTerms, ImportanceWeightedELBO, ImportanceWeightedTerms
from genmod.nn.gaussian import DiagonalGaussian, GaussianSampler
from genmod.nn.logistic_mixture import LogisticMixture
from genmod.nn.norm_act import BatchNormAct, BiasAct, GroupNormAct
from genmod.nn.reconstruction import ReconstructionLoss
from genmod.nn.residual import AttentionBlock, ResnetBlock
from genmod.nn.schedules import CosineSchedule, CyclicalSchedule, LinearSchedule
from genmod.nn.upsample_conv import UpsampleConv2d

__all__ = [
    "DIP",
    "ELBO",
    "MMD",
    "AttentionBlock",
    "BatchNormAct",
    "BetaTCVAELoss",
    "BiasAct",
    "BlurDownsample",
    "Conv3x3",
    "Conv4x4",
    "ConvTranspose4x4",
    "ConvTransposeBlock",
    "CosineSchedule",
    "CriticConv2d",
    "CriticLeakyReLU",
    "CriticLinear",
    "CriticLoss",
    "CriticReLU",
    "CyclicalSchedule",
    "Decoder",
    "DecoderConfig",
    "DiagonalGaussian",
    "ELBOTerms",
    "GaussianSampler",
    "GeneratorLoss",
    "GroupNormAct",
    "ImportanceWeightedELBO",
    "ImportanceWeightedTerms",
    "LeCam",
    "LinearSchedule",
    "LogisticMixture",
    "MinibatchStdDev",
    "ReconstructionLoss",
    "ResnetBlock",
    "TotalCorrelation",
    "UpsampleBlock",
    "UpsampleConv2d",
]
