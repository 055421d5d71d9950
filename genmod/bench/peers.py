"""Other packages' versions of our ops: found if installed, checked to compute the same, and only then raced.

A peer is a function with the op's public signature around the other package's own code. Its values and gradients are
compared with genmod's on the very tensors of the race: one that computes something else is listed, with by how much it
differs, and not timed. Peers for GPUs (Liger, apex) take part where there is one and they are installed.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genmod.registry import OpSpec, Sample
from genmod.testing import battery

#: Largest difference, relative to the largest number, at which two results count as the same function.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}


class NotForThis(Exception):
    """The peer does not serve this call: no race, and nothing to report."""


def _same(outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return outputs


@dataclass(frozen=True)
class Peer:
    """One function of another package.

    Attributes:
        op: which op it is a peer of.
        module: what has to be importable.
        distribution: whose version is reported.
        what: the class or function.
        make: `(sample) -> function` with the op's signature; raises NotForThis for a call that it cannot serve.
        comparable: what of the op's outputs it returns.
        devices: where it runs.
    """

    op: str
    module: str
    distribution: str
    what: str
    make: Callable[[Sample], Callable[..., Any]]
    comparable: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]] = _same
    devices: tuple[str, ...] = ("cpu", "cuda")

    @property
    def name(self) -> str:
        """As a contender."""
        return f"peer:{self.distribution}"


def contenders(spec: OpSpec, sample: Sample) -> tuple[dict[str, Callable[..., Any]], list[dict[str, str]]]:
    """The peers that compute what `spec` does, by contender name, and those that do not, with what they do instead."""
    raced: dict[str, Callable[..., Any]] = {}
    not_raced: list[dict[str, str]] = []
    tensors = sample.tensors()
    for peer in (p for p in PEERS if p.op == spec.name and tensors[0].device.type in p.devices):
        if importlib.util.find_spec(peer.module.partition(".")[0]) is None:
            continue
        try:
            function = peer.make(sample)
            why = _difference(spec, peer, function, sample)
        except NotForThis:
            continue
        except Exception as error:  # of a package that is not ours: its fault is no reason to stop a benchmark
            why = f"could not run: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        if why:
            not_raced.append({"peer": peer.distribution, "what": peer.what, "why": why})
        else:
            raced[peer.name] = function
    return raced, not_raced


def versions() -> dict[str, str]:
    """Of the packages that have a peer and are installed."""
    found = {}
    for name in sorted({p.distribution for p in PEERS}):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _difference(spec: OpSpec, peer: Peer, function: Callable[..., Any], sample: Sample) -> str:
    """How the peer's values and gradients differ from the op's; empty if they do not."""
    ours = _results(spec, lambda *a, **k: peer.comparable(battery.as_tuple(spec.public(*a, **k))), sample)
    theirs = _results(spec, function, sample)
    for i, (o, t) in enumerate(zip(ours, theirs, strict=True)):
        if o.shape != t.shape:
            return f"computes something else: result {i} has shape {tuple(t.shape)}, genmod's {tuple(o.shape)}"
        error = (o.double() - t.double()).abs().max().item() / max(o.double().abs().max().item(), 1e-30)
        if not error <= _TOLERANCE[sample.tensors()[0].dtype]:
            kind = "value" if i < len(theirs) - len(battery.given(spec, sample)) else "gradient"
            return f"computes something else: a {kind} is off by {error:.2g} of the largest"
    return ""


def _results(spec: OpSpec, function: Callable[..., Any], sample: Sample) -> list[Tensor]:
    call, leaves = battery.with_grad(spec, sample)
    outputs = battery.as_tuple(function(*call.args, **call.kwargs))
    grads = torch.autograd.grad(outputs, leaves, [torch.ones_like(o) if not o.dim() else c for o, c in zip(
        outputs, battery.cotangents(outputs))])  # fmt: skip
    return [t.detach() for t in (*outputs, *grads)]


# The peers.


def _torch_kl(sample: Sample) -> Callable[..., Any]:
    from torch.distributions import Normal, kl_divergence

    def call(mean: Tensor, logvar: Tensor, other_mean: Tensor | None = None, other_logvar: Tensor | None = None) -> Any:
        if other_mean is None or other_logvar is None:
            other = Normal(torch.zeros((), device=mean.device), torch.ones((), device=mean.device), validate_args=False)
        else:
            other = Normal(other_mean, (0.5 * other_logvar).exp(), validate_args=False)
        posterior = Normal(mean, (0.5 * logvar).exp(), validate_args=False)
        return kl_divergence(posterior, other).sum() / mean.shape[0]

    return call


def _diffusers_kl(sample: Sample) -> Callable[..., Any]:
    if sample.args[0].dim() != 4:
        raise NotForThis  # it sums over dimensions 1, 2 and 3
    distribution = importlib.import_module("diffusers.models.autoencoders.vae").DiagonalGaussianDistribution

    def call(mean: Tensor, logvar: Tensor, *other: Tensor) -> Any:
        posterior = distribution(torch.cat((mean, logvar), 1))
        return posterior.kl(distribution(torch.cat(other, 1)) if other else None).mean()

    return call


def _pythae(module: str, name: str, **settings: Any) -> Any:
    """A model of pythae's without its networks: `loss_function` uses nothing but the settings."""
    model = getattr(importlib.import_module(f"pythae.models.{module}"), name)
    config = SimpleNamespace(reconstruction_loss="mse", **settings)
    bare = model.__new__(model)
    torch.nn.Module.__init__(bare)
    bare.model_config = config
    for key, value in settings.items():
        setattr(bare, key, value)
    return bare


def _pixel(x: Tensor) -> Tensor:
    """One pixel per sample, reconstructed without fault, for losses that will not do without images."""
    return x.new_zeros(x.shape[0], 1)


def _pythae_kl(sample: Sample) -> Callable[..., Any]:
    if sample.args[0].dim() != 2 or len(sample.args) > 2:
        raise NotForThis
    model = _pythae("vae", "VAE")
    return lambda mean, logvar: model.loss_function(_pixel(mean), _pixel(mean), mean, logvar, None)[2]


def _pythae_bernoulli(sample: Sample) -> Callable[..., Any]:
    model = _pythae("vae", "VAE")
    model.model_config.reconstruction_loss = "bce"

    def call(output: Tensor, target: Tensor) -> Any:
        nothing = _pixel(output.flatten(1))
        return model.loss_function(torch.sigmoid(output), target, nothing, nothing, None)[1]

    return call


def _pythae_total_correlation(sample: Sample) -> Callable[..., Any]:
    mss = sample.kwargs.get("estimator", "mss") == "mss"
    model = _pythae("beta_tc_vae", "BetaTCVAE", alpha=1.0, beta=1.0, gamma=1.0, use_mss=mss)
    # With all factors one the parts cancel; 6 is the factor of the paper's figures.
    model.beta = 6.0

    def call(z: Tensor, mean: Tensor, logvar: Tensor, *, dataset_size: int, estimator: str = "mss") -> Any:
        return model.loss_function(_pixel(z), _pixel(z), mean, logvar, z, dataset_size)[2]

    return call


def _pythae_mmd(sample: Sample) -> Callable[..., Any]:
    kernel = sample.kwargs.get("kernel", "imq")
    settings = {"latent_dim": sample.args[0].shape[1], "kernel_bandwidth": 1.0, "reg_weight": 1.0}
    scales = [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0]
    model = _pythae("wae_mmd", "WAE_MMD", kernel_choice=kernel, scales=scales, **settings)
    model.reconstruction_loss_scale = 0.5
    return lambda x, y, **options: model.loss_function(_pixel(x), _pixel(x), x, y)[2]


def _diffusers_upsample(sample: Sample) -> Callable[..., Any]:
    if sample.kwargs:
        raise NotForThis  # groups or an activation
    x, weight, bias = sample.args
    block = importlib.import_module("diffusers.models.upsampling").Upsample2D(
        x.shape[1], use_conv=True, out_channels=weight.shape[0], bias=bias is not None
    )
    convolution = block.conv

    def call(x: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
        # In place of its own parameters, so that the gradients asked for are those of the tensors of the race.
        convolution._parameters["weight"], convolution._parameters["bias"] = weight, bias
        return block(x)

    return call


def _liger_group_norm(sample: Sample) -> Callable[..., Any]:
    if sample.kwargs:
        raise NotForThis  # a residual, or scale and shift
    function = importlib.import_module("liger_kernel.ops.group_norm").LigerGroupNormFunction

    def call(x: Tensor, groups: int, weight: Tensor, bias: Tensor) -> Any:
        return F.silu(function.apply(x, weight, bias, x.shape[1], groups, 1e-5))

    return call


def _apex_group_norm(sample: Sample) -> Callable[..., Any]:
    x = sample.args[0]
    if sample.kwargs or not x.is_contiguous(memory_format=torch.channels_last):
        raise NotForThis
    module = importlib.import_module("apex.contrib.group_norm").GroupNorm

    def call(x: Tensor, groups: int, weight: Tensor, bias: Tensor) -> Any:
        layer = module(groups, x.shape[1], eps=1e-5, act="silu", device="meta")
        layer._parameters["weight"], layer._parameters["bias"] = weight, bias
        return layer(x)

    return call


def _weighted(outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The loss of β-TCVAE with β = 6, from its three terms."""
    mutual_information, correlation, dimension_kl = outputs
    return (mutual_information + 6.0 * correlation + dimension_kl,)


PEERS = (
    Peer("gaussian_kl", "torch", "torch", "torch.distributions.kl_divergence", _torch_kl),
    Peer("gaussian_kl", "diffusers", "diffusers", "DiagonalGaussianDistribution.kl", _diffusers_kl),
    Peer("gaussian_kl", "pythae", "pythae", "VAE.loss_function", _pythae_kl),
    Peer("bernoulli_nll", "pythae", "pythae", "VAE.loss_function behind a sigmoid", _pythae_bernoulli),
    Peer(
        "total_correlation", "pythae", "pythae", "BetaTCVAE.loss_function", _pythae_total_correlation, _weighted
    ),
    Peer("mmd", "pythae", "pythae", "WAE_MMD.loss_function", _pythae_mmd),
    Peer("upsample_conv2d", "diffusers", "diffusers", "Upsample2D", _diffusers_upsample),
    Peer(
        "group_norm_act", "liger_kernel", "liger-kernel", "LigerGroupNormFunction and silu", _liger_group_norm,
        devices=("cuda",),
    ),
    Peer("group_norm_act", "apex", "apex", "contrib.group_norm.GroupNorm", _apex_group_norm, devices=("cuda",)),
)  # fmt: skip
