"""How disentangled codes are: MIG, DCI, SAP and total correlation, as their papers define them."""

from genmod.latent.metrics.correlation import gaussian_total_correlation, posterior_total_correlation
from genmod.latent.metrics.dci import DCI, dci
from genmod.latent.metrics.mig import MIG, mig, mig_of_posterior
from genmod.latent.metrics.sap import SAP, sap

__all__ = [
    "DCI",
    "MIG",
    "SAP",
    "dci",
    "gaussian_total_correlation",
    "mig",
    "mig_of_posterior",
    "posterior_total_correlation",
    "sap",
]
