"""Row types and circles against the dense Gram matrix of a convolution applied to unit images."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from thalweg.regularize.axes import axis_shapes, pixels_read, shortened
from thalweg.regularize.circles import circles, taps_of_kernel
from thalweg.regularize.frame import frame_penalty
from thalweg.regularize.row_types import axis_rows, make_plan

A, B = 0.5, 2.0
TOLERANCE = 1e-12  # relative, float64: sums of at most some thousand products of order one


def dense(K, size, *, stride, padding, dilation, groups, circular=False):
    """W: (m, n), column by column: torch's own convolution of unit images."""
    axes = len(size)
    n = K.shape[1] * groups * math.prod(size)
    x = torch.eye(n, dtype=K.dtype, device=K.device).reshape(n, -1, *size)
    if circular:
        x = nn.functional.pad(x, [p for p in reversed(padding) for _ in range(2)], mode="circular")
        padding = (0,) * axes
    conv = (nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d)[axes - 1]
    return conv(x, K, stride=stride, padding=padding, dilation=dilation, groups=groups).reshape(n, -1).T


def seed_formula(W, side, lower=A, upper=B):
    """Slide 10 with j ≠ i, word for word."""
    V = W.T @ W if side == "col" else W @ W.T
    v, off = V.diagonal(), V.abs().sum(1) - V.diagonal().abs()
    return ((v - off - lower).clamp(max=0) ** 2 + (upper - v - off).clamp(max=0) ** 2).mean()


def assert_value_and_gradient(K, size, side, options):
    W = dense(K, size, **options)
    R = seed_formula(W, side)
    (expected,) = torch.autograd.grad(R, K)
    value = frame_penalty(K, (K.shape[1] * options["groups"], *size), lower=A, upper=B, side=side, **options)
    (gradient,) = torch.autograd.grad(value, K)
    torch.testing.assert_close(value, R, rtol=TOLERANCE, atol=1e-14)  # atol: R = 0 up to rounding
    error = (gradient - expected).norm() / expected.norm().clamp(min=1e-2)
    assert error < TOLERANCE


@st.composite
def convolutions(draw):
    axes = draw(st.sampled_from([1, 2, 2, 2, 3]))
    taps = draw(st.lists(st.integers(1, 5 if axes < 3 else 2), min_size=axes, max_size=axes))
    stride, padding, dilation = (
        tuple(draw(st.lists(st.integers(low, high), min_size=axes, max_size=axes)))
        for low, high in ((1, 3), (0, 3), (1, 2))
    )
    circular = draw(st.booleans())
    smallest = [max(1, d * (k - 1) + 1 - 2 * p) for k, d, p in zip(taps, dilation, padding, strict=True)]
    size = [h + draw(st.integers(0, 4)) for h in smallest]  # down to maps that hold the kernel once
    if circular:  # torch wraps around once at most
        size = [max(h, p) for h, p in zip(size, padding, strict=True)]
    groups = draw(st.integers(1, 2))
    out, channels = groups * draw(st.integers(1, 3)), draw(st.integers(1, 3))
    K = torch.randn(
        out, channels, *taps, dtype=torch.float64, generator=torch.Generator().manual_seed(draw(st.integers(0, 99)))
    )
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "circular": circular}
    return K.mul_(0.5).requires_grad_(), tuple(size), options


@settings(max_examples=80, deadline=None)
@given(convolutions(), st.sampled_from(["col", "row"]))
def test_value_and_gradient_are_those_of_the_dense_definition(convolution, side):
    assert_value_and_gradient(*convolution[:2], side, convolution[2])


@pytest.mark.parametrize("side", ["col", "row"])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("taps", [(3, 3), (5, 5), (1, 1), (2, 3)])
def test_the_usual_convolutions_on_a_small_map(taps, padding, stride, side):
    K = torch.randn(3, 2, *taps, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    options = {"stride": (stride,) * 2, "padding": (padding,) * 2, "dilation": (1, 1), "groups": 1}
    assert_value_and_gradient(K, (6, 7), side, options)


def test_same_padding_of_an_even_kernel():
    K = torch.randn(2, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    x = torch.eye(12, dtype=K.dtype).reshape(12, 2, 6)
    W = nn.functional.conv1d(nn.functional.pad(x, (1, 2)), K).reshape(12, -1).T  # torch puts the odd zero on the right
    value = frame_penalty(K, (2, 6), lower=A, upper=B, padding="same", side="col")
    torch.testing.assert_close(value, seed_formula(W, "col"), rtol=TOLERANCE, atol=0)


@pytest.mark.parametrize("side", ["col", "row"])
def test_single_channels_average_to_the_whole(side):
    K = torch.randn(8, 6, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    options = {"lower": A, "upper": B, "stride": 2, "padding": 1, "groups": 2, "side": side}
    whole = frame_penalty(K, (12, 5, 6), **options)
    channels = 6 if side == "col" else 4
    singles = [frame_penalty(K, (12, 5, 6), rows=torch.tensor([c]), **options) for c in range(channels)]
    mean = torch.stack(singles).mean()
    torch.testing.assert_close(mean, whole, rtol=TOLERANCE, atol=0)
    gradients = [torch.autograd.grad(value, K)[0] for value in (mean, whole)]
    assert (gradients[0] - gradients[1]).norm() < TOLERANCE * gradients[1].norm()


@pytest.mark.parametrize("stride", [1, 2])
def test_interior_is_the_circular_layer(stride):
    """Far from borders and on a torus longer than two kernels the same taps meet."""
    K = torch.randn(4, 3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    options = {"lower": A, "upper": B, "stride": stride, "side": "col"}
    interior = frame_penalty(K, boundary="interior", **options)
    torus = frame_penalty(K, (3, 8, 8), padding=1, circular=True, **options)
    torch.testing.assert_close(interior, torus, rtol=TOLERANCE, atol=0)


def test_the_number_of_row_types_does_not_depend_on_the_map():
    for options in ({"padding": 1}, {"padding": 2, "stride": 2}, {"padding": 1, "circular": True}):
        plans = [make_plan(axis_shapes((3, 3), (h, h), **options), "col") for h in (16, 32, 64)]
        sizes = [(len(plan.share), [block.kinds for block in plan.half]) for plan in plans]
        assert sizes[0] == sizes[1] == sizes[2]
    counts = [axis_rows(axis_shapes((3,), (h,), padding=1)[0], "col").counts for h in (8, 64)]
    assert counts == [[1, 1, 4, 1, 1], [1, 1, 60, 1, 1]]


@pytest.mark.parametrize(("side", "phases"), [("col", 4), ("row", 1)])
def test_the_middle_of_a_layer_on_raw_audio_is_found_once(side, phases):
    (shape,) = axis_shapes((32,), (16_000,), stride=4)
    assert shortened(shape)[0].size <= 2 * (31 + 4) + 4 * 8  # 8 outputs end beyond what a row at the border sees
    plan = make_plan((shape,), side)
    repeated = plan.share[plan.share > 0.01]
    assert len(repeated) == phases  # those of the stride; of every row type at the ends there is one position
    rows = 16_000 if side == "col" else shape.outputs
    assert repeated.sum().item() == pytest.approx(1 - (len(plan.share) - phases) / rows, rel=1e-12)


@settings(max_examples=50, deadline=None)
@given(
    taps=st.integers(1, 4),
    stride=st.integers(1, 3),
    padding=st.integers(0, 3),
    dilation=st.integers(1, 2),
    spare=st.integers(20, 60),
    circular=st.booleans(),
    side=st.sampled_from(["col", "row"]),
)
def test_a_long_map_is_its_ends_and_a_repeated_middle(taps, stride, padding, dilation, spare, circular, side):
    K = torch.randn(2, 2, taps, dtype=torch.float64, generator=torch.Generator().manual_seed(10)).requires_grad_()
    options = {"stride": (stride,), "padding": (padding,), "dilation": (dilation,), "groups": 1, "circular": circular}
    size = (dilation * (taps - 1) + 1 + spare,)
    shape = axis_shapes((taps,), size, **{name: value for name, value in options.items() if name != "groups"})[0]
    assert shortened(shape)[1] > 0 or spare < 2 * (dilation * (taps - 1) + padding + stride)
    assert_value_and_gradient(K, size, side, options)
    assert pixels_read(shape) == int(dense(torch.ones(1, 1, taps), size, **options).any(0).sum())


def test_half_of_the_blocks_are_enough_for_a_3_x_3_kernel():
    plan = make_plan(axis_shapes((3, 3), (32, 32), padding=1), "col")
    products = sum(len(pairs) for block in plan.half for pairs in block.atoms)
    assert products == 45  # of 81 pairs of taps
    assert sum(len(pairs) for block in plan.blocks for pairs in block.atoms) == 81


def test_circles_hold_the_spectrum():
    K = torch.randn(4, 3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    S, v, _ = circles(taps_of_kernel(K[None], "col"), make_plan(axis_shapes((3, 3), (5, 5), padding=1), "col"))
    W = dense(K, (5, 5), stride=1, padding=(1, 1), dilation=1, groups=1)
    eigenvalues = torch.linalg.eigvalsh(W.T @ W)
    assert (2 * v - S).min() <= eigenvalues[0]
    assert eigenvalues[-1] <= S.max()


def test_zeros_and_exact_zeros_have_the_subgradient_of_abs():
    """sign(0) = 0: a pruned kernel moves only where the definition by autograd moves it."""
    K = torch.randn(3, 3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    K = (K * (K > 0.7)).requires_grad_()
    options = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}
    assert_value_and_gradient(K, (5, 5), "col", options)
    zero = torch.zeros(2, 2, 3, 3, requires_grad=True)
    value = frame_penalty(zero, (2, 4, 4), lower=A, upper=B, padding=1)
    value.backward()
    assert value.item() == A**2
    assert not zero.grad.any()  # the stationary point that weights collapse to


def test_nan_is_not_hidden():
    K = torch.full((2, 2, 3, 3), float("nan"), requires_grad=True)
    value = frame_penalty(K, (2, 4, 4), lower=A, upper=B, padding=1)
    value.backward()
    assert value.isnan()
    assert K.grad.isnan().all()


def test_compiled_and_eager_agree():
    K = torch.randn(4, 3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(6)).requires_grad_()

    def penalty(K):
        return frame_penalty(K, (3, 6, 6), lower=A, upper=B, padding=1)

    compiled = torch.compile(penalty, backend="aot_eager", fullgraph=True)(K)
    torch.testing.assert_close(compiled, penalty(K), rtol=0, atol=0)
    gradients = [torch.autograd.grad(value, K)[0] for value in (compiled, penalty(K))]
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


def test_a_second_derivative_is_refused():
    W = torch.randn(3, 2, generator=torch.Generator().manual_seed(7)).requires_grad_()
    (gradient,) = torch.autograd.grad(frame_penalty(W, lower=A, upper=B), W, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        gradient.square().sum().backward()


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # torch's own
def test_a_forward_derivative_is_refused_where_torch_would_say_zero():
    W = torch.randn(3, 2, generator=torch.Generator().manual_seed(7))
    with pytest.raises(RuntimeError, match="differentiable backward only"):
        torch.func.jvp(lambda W: frame_penalty(W, lower=A, upper=B), (W,), (torch.ones(3, 2),))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs an accelerator")
def test_on_an_accelerator():
    device = torch.accelerator.current_accelerator()
    K = torch.randn(6, 4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    results = []
    for where in ("cpu", device):
        weight = K.to(where).requires_grad_()
        value = frame_penalty(weight, (4, 6, 6), lower=A, upper=B, padding=1, stride=2)
        value.backward()
        results.append((value.cpu(), weight.grad.cpu()))
    torch.testing.assert_close(*results, rtol=TOLERANCE, atol=1e-13)


@settings(max_examples=50, deadline=None)
@given(convolutions())
def test_pixels_that_no_output_reads_are_the_zero_rows(convolution):
    """One row of V for each input; unread inputs have zero columns in W whatever the weight."""
    K, size, options = convolution
    shapes = axis_shapes(K.shape[2:], size, **{name: value for name, value in options.items() if name != "groups"})
    W = dense(torch.ones_like(K), size, **options)
    read = math.prod(map(pixels_read, shapes)) * K.shape[1] * options["groups"]
    assert read == int(W.any(0).sum())
    assert read == 0 or make_plan(shapes, "read").share.sum().item() == pytest.approx(1.0)


def test_on_the_pixels_that_are_read():
    K = torch.randn(8, 4, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    W = dense(K, (6, 6), stride=2, padding=0, dilation=1, groups=1)
    value = frame_penalty(K, (4, 6, 6), lower=A, upper=B, stride=2)
    torch.testing.assert_close(value, seed_formula(W[:, W.any(0)], "col"), rtol=TOLERANCE, atol=0)
