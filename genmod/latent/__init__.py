"""Tools for the latents of any model: walk among them, compare them, map them, find them, and say what each one does.

They take codes as tensors `[N, D]`, and models by the interface of `genmod.models`: `latents`, `decode`, `prior`.
Whether the latents are disentangled is measured in `genmod.latent.metrics`.
"""

from genmod.latent import metrics
from genmod.latent.attributes import analogy, attribute_vector, without
from genmod.latent.codes import decode, encode, posteriors
from genmod.latent.components import PrincipalComponents, principal_components
from genmod.latent.interpolation import interpolate, lerp, slerp
from genmod.latent.inversion import Inversion, invert
from genmod.latent.maps import methods, project
from genmod.latent.neighbours import Neighbours, nearest
from genmod.latent.orthogonal import jacobian_columns, orthogonality_penalty
from genmod.latent.sampling import GaussianMixture, fit_mixture, from_aggregate_posterior, from_prior
from genmod.latent.traversal import by_information, traverse

__all__ = [
    "GaussianMixture",
    "Inversion",
    "Neighbours",
    "PrincipalComponents",
    "analogy",
    "attribute_vector",
    "by_information",
    "decode",
    "encode",
    "fit_mixture",
    "from_aggregate_posterior",
    "from_prior",
    "interpolate",
    "invert",
    "jacobian_columns",
    "lerp",
    "methods",
    "metrics",
    "nearest",
    "orthogonality_penalty",
    "posteriors",
    "principal_components",
    "project",
    "slerp",
    "traverse",
    "without",
]
