"""Group norm in CUDA C++, as torch.ops.genmod_cuda has it: the family's other ops, its own gradient among them, have no
such kernel, so that the battery, which forces a backend forward and backward, does not reach it."""

from __future__ import annotations

import functools
import inspect

import pytest
import torch

from genmod import backends
from genmod.reference import norm_act as reference
from genmod.specs import specs
from genmod.testing import battery

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not backends.has_kernel("cuda", "group_norm_act"), reason="built without CUDA C++"),
]

CUDA, SPEC = torch.device("cuda"), specs()["group_norm_act"]
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LAYOUTS = (torch.contiguous_format, torch.channels_last)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
every_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])


def options(sample):
    """A sample of the public function, as the options of the dispatcher op."""
    bound = inspect.signature(SPEC.public).bind(*sample.args, **sample.kwargs)
    bound.apply_defaults()
    return bound.arguments


def run(given, cluster=0, together=0):
    """(y, total, mean, rstd)."""
    names = ("x", "residual", "weight", "bias", "scale", "shift", "num_groups", "eps", "activation", "negative_slope")
    return torch.ops.genmod_cuda.group_norm_act_cut(*(given[name] for name in names), cluster, together)


def exact(given):
    """The same in float64, from a sum with the residual that is rounded as it is returned."""
    given = dict(given)
    total = given["x"] if given["residual"] is None else given["x"] + given["residual"]
    given |= {"x": total, "residual": None}
    doubled = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in given.items()}
    y, _, mean, rstd = reference.group_norm_act(**doubled)
    return y, total, mean, rstd


def close(found, given, where):
    """Rounding of the result, and of sums and elementary functions in float32 (float64) before it; the mean's, and that
    of its differences from numbers which are far from zero, are relative to those numbers."""
    y, total, mean, rstd = found
    expected = exact(given)
    if given["residual"] is None:
        assert total.numel() == 0, where
    else:
        assert torch.equal(total.nan_to_num(), expected[1].nan_to_num()), where
    wide = torch.finfo(mean.dtype).eps
    finite = expected[1].double()
    largest = finite[finite.isfinite()].abs().max().item() if finite.isfinite().any() else 0.0
    spread = expected[3][expected[3].isfinite()].max().item() if expected[3].isfinite().any() else 0.0
    ratio = 1 + largest * spread  # the mean in deviations, at most
    for name, f, e, rtol, atol in (
        ("y", y, expected[0], 2 * torch.finfo(y.dtype).eps + 32 * wide, 32 * wide * ratio),
        ("mean", mean, expected[2], 8 * wide, 8 * wide * (1e-3 + largest)),
        ("rstd", rstd, expected[3], 32 * wide * ratio, 0.0),
    ):
        message = functools.partial("{}, {}: {}".format, where, name)
        torch.testing.assert_close(f.double(), e, rtol=rtol, atol=atol, equal_nan=True, msg=message)


@every_dtype
def test_samples(dtype):
    """As cut for this GPU; in pieces; and, where it has them, in a cluster."""
    for sample in battery.samples(SPEC, CUDA, dtype):
        given = options(sample)
        for cluster in (0, -1, 1, 4):
            found = run(given, cluster)
            where = f"{sample.name}, cluster {cluster}"
            assert found[0].shape == given["x"].shape and found[0].dtype == dtype, where
            close(found, given, where)


SHAPES = (  # as of decoders: a group in one block, in a cluster, in pieces; odd channels, odd rows, wide groups
    ((2, 64, 32, 32), 32),
    ((1, 128, 128, 128), 32),
    ((1, 64, 512, 512), 32),
    ((3, 30, 33, 17), 6),
    ((2, 40, 65, 63), 4),
    ((1, 4000, 9, 7), 1),
    ((1, 96, 61, 67), 96),
)


def drawn(shape, groups, dtype, layout, mean=0.0):
    def draw(*sizes, center=0.0):
        return torch.randn(*sizes, generator=generator, device=CUDA).add_(center).to(dtype)

    generator = torch.Generator(CUDA).manual_seed(sum(shape))
    scale, shift = draw(shape[0], 2 * shape[1]).mul_(0.5).chunk(2, 1)
    return {
        "x": draw(*shape, center=mean).contiguous(memory_format=layout),
        "residual": draw(*shape).contiguous(memory_format=layout),
        "weight": draw(shape[1], center=1.0),
        "bias": draw(shape[1]),
        "scale": scale,
        "shift": shift,
        "num_groups": groups,
        "eps": 1e-5,
        "activation": "silu",
        "negative_slope": 0.0,
    }


@every_layout
@every_dtype
@pytest.mark.parametrize(("shape", "groups"), SHAPES, ids=["x".join(map(str, shape)) for shape, _ in SHAPES])
def test_shapes(shape, groups, dtype, layout):
    """With all options and with few, the same bits each time, in the memory format of x."""
    given = drawn(shape, groups, dtype, layout)
    for some in (given, given | {"residual": None, "scale": None, "shift": None}):
        first, again = run(some), run(some)
        assert all(torch.equal(a, b) for a, b in zip(first, again))
        assert first[0].is_contiguous(memory_format=layout)
        close(first, some, f"{shape}, {groups} groups")


@every_layout
def test_every_cut(layout):
    """However it is cut, the result is right; a size that this GPU does not have is replaced by one that it has."""
    given = drawn((2, 128, 64, 48), 32, torch.bfloat16, layout)
    for cluster in (-1, 0, 1, 2, 4, 8, 16):
        for together in (0, 1, 2, 4, 8, 16, 32):
            close(run(given, cluster, together), given, f"cluster {cluster}, together {together}")


@every_layout
def test_far_from_zero(layout):
    """A mean of a thousand deviations costs no more than in torch."""
    given = drawn((2, 32, 96, 80), 8, torch.float32, layout, mean=1000.0) | {"activation": "identity"}
    given |= {"residual": None, "scale": None, "shift": None}
    expected = exact(given)[0]
    stock = torch.group_norm(given["x"], 8, given["weight"], given["bias"], 1e-5)
    theirs = (stock - expected).abs().max()
    for cluster in (-1, 0, 1, 8):
        assert (run(given, cluster)[0] - expected).abs().max() <= 2 * theirs + 1e-6


@every_layout
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite(value, layout):
    """Not a number in all of the group, and the same bits as before in the others."""
    given = drawn((2, 32, 40, 40), 8, torch.float32, layout) | {"residual": None}
    for cluster in (-1, 0, 1, 4):
        before = run(given, cluster)[0]
        x = given["x"].clone()
        x[1, 9, 30, 2] = value
        after = run(given | {"x": x}, cluster)[0]
        assert after[1, 8:12].isnan().all()
        before[1, 8:12] = after[1, 8:12] = 0
        assert torch.equal(before, after)


def test_in_a_graph():
    """Nothing waits or allocates by itself, also in clusters and pieces."""
    given = drawn((1, 64, 64, 64), 32, torch.bfloat16, torch.channels_last)
    for cluster in (-1, 0, 8):
        run(given, cluster)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            run(given, cluster)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = run(given, cluster)
        given["x"].add_(1)
        graph.replay()
        for a, b in zip(captured, run(given, cluster)):
            assert torch.equal(a, b)


def test_what_cannot_be_is_refused():
    given = drawn((1, 8, 4, 4), 2, torch.float32, torch.contiguous_format)
    for wrong in ({"weight": given["weight"][:3]}, {"scale": given["scale"][0]}, {"x": given["x"].cpu()}):
        with pytest.raises(RuntimeError, match="genmod: "):
            run(given | wrong)
    with pytest.raises(RuntimeError, match="a cluster is"):
        run(given, 3)
