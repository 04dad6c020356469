"""The modules against F.convNd(x, weight * Phi), in every setting, and as modules of PyTorch."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional

from finslerconv.nn.weighted import (
    SeparableDensity,
    TensorDensity,
    WeightedConv1d,
    WeightedConv2d,
    WeightedConv3d,
    fold,
    weight_convolution,
)

WEIGHTED = {1: WeightedConv1d, 2: WeightedConv2d, 3: WeightedConv3d}
PLAIN = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
KERNEL = {1: (3,), 2: (3, 5), 3: (3, 1, 5)}
SIZE = {1: (19,), 2: (13, 17), 3: (9, 7, 11)}


def random_density(kernel_size, dtype=torch.float64, trainable=False):
    profiles = [(torch.rand(k, dtype=torch.float64) + 0.1).tolist() for k in kernel_size]
    return SeparableDensity(kernel_size, profiles, dtype=dtype, trainable=trainable)


def pair(n, **settings):
    """A weighted convolution, and the plain one that holds weight * Phi."""
    torch.manual_seed(0)
    settings = {"dtype": torch.float64, **settings}
    conv = WEIGHTED[n](4, 6, KERNEL[n], density=random_density(KERNEL[n]), **settings)
    plain = PLAIN[n](4, 6, KERNEL[n], **settings)
    with torch.no_grad():
        plain.weight.copy_(conv.weight * conv.density())
        if plain.bias is not None:
            plain.bias.copy_(conv.bias)
    return conv, plain


SETTINGS = [
    {},
    {"bias": False},
    {"stride": 2, "padding": 1},
    {"dilation": 2, "padding": 2},
    {"groups": 2, "padding": 1, "stride": 3},
    {"padding": "same"},
    {"padding": "valid"},
    {"padding": "same", "dilation": 2},
    *({"padding": 1, "padding_mode": mode} for mode in ("reflect", "replicate", "circular")),
    {"padding": "same", "padding_mode": "reflect"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_output_and_gradients_are_those_of_the_product(n, settings):
    conv, plain = pair(n, **settings)
    x = torch.randn(2, 4, *SIZE[n], dtype=torch.float64)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = conv(ours), plain(theirs)
    torch.testing.assert_close(y, expected)
    upstream = torch.randn_like(y)
    y.backward(upstream)
    expected.backward(upstream)
    torch.testing.assert_close(ours.grad, theirs.grad)
    torch.testing.assert_close(conv.weight.grad, plain.weight.grad * conv.density())
    if conv.bias is not None:
        torch.testing.assert_close(conv.bias.grad, plain.bias.grad)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_every_dtype_is_that_of_the_definition(n, dtype):
    density = random_density(KERNEL[n], dtype=dtype)
    conv = WEIGHTED[n](4, 6, KERNEL[n], dtype=dtype, density=density)
    x = torch.randn(2, 4, *SIZE[n], dtype=dtype)
    y = conv(x)
    assert y.dtype == dtype
    expected = CONV[n](x, conv.weight * density(), conv.bias)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-6)


def test_a_density_of_another_precision_is_cast_to_the_layers():
    conv = WeightedConv2d(1, 1, 3, dtype=torch.float64, density=SeparableDensity((3, 3), [0.5]))
    x = torch.randn(1, 1, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(
        conv(x), functional.conv2d(x, conv.weight * conv.density().double(), conv.bias)
    )


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("kernel", [(2, 4), (4, 4), (2, 3)])
def test_even_kernels_with_padding_same(kernel):
    density = random_density(kernel)
    conv = WeightedConv2d(2, 3, kernel, padding="same", dtype=torch.float64, density=density)
    x = torch.randn(2, 2, 8, 9, dtype=torch.float64)
    plain = nn.Conv2d(2, 3, kernel, padding="same", dtype=torch.float64)
    plain.load_state_dict(fold(conv).state_dict())
    torch.testing.assert_close(conv(x), plain(x))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_unbatched_and_empty_inputs(n):
    conv, plain = pair(n)
    x = torch.randn(4, *SIZE[n], dtype=torch.float64)
    torch.testing.assert_close(conv(x), plain(x))
    assert conv(x[None][:0]).shape == plain(x[None][:0]).shape


def test_channels_last_is_kept():
    conv, plain = pair(2)
    conv, plain = (m.to(memory_format=torch.channels_last) for m in (conv, plain))
    x = torch.randn(2, 4, 13, 17, dtype=torch.float64).to(memory_format=torch.channels_last)
    y = conv(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, plain(x))
    y.sum().backward()
    plain(x).sum().backward()
    torch.testing.assert_close(conv.weight.grad, plain.weight.grad * conv.density())


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("trainable", [False, True])
def test_gradcheck_to_second_order(n, trainable):
    torch.manual_seed(1)
    kernel = (3, 2, 1)[:n]
    density = random_density(kernel, trainable=trainable)
    conv = WEIGHTED[n](2, 2, kernel, groups=2, padding=1, dtype=torch.float64, density=density)
    names, values = zip(*conv.named_parameters(), strict=True)
    x = torch.randn(1, 2, 3, *(2,) * (n - 1), dtype=torch.float64, requires_grad=True)

    def call(x, *parameters):
        return torch.func.functional_call(conv, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x, *values))
    assert torch.autograd.gradgradcheck(call, (x, *values), fast_mode=True)


def test_frozen_parts_get_no_gradient():
    conv = WeightedConv2d(2, 2, 3, density=SeparableDensity((3, 3), [0.7], trainable=True))
    conv.weight.requires_grad_(False)
    x = torch.randn(1, 2, 5, 5)
    conv(x).sum().backward()
    assert conv.weight.grad is None
    assert conv.density.profile_0.grad is not None
    conv.density.requires_grad_(False)
    conv.weight.requires_grad_(True)
    conv.density.profile_0.grad = None
    conv(x).sum().backward()
    assert conv.weight.grad is not None
    assert conv.density.profile_0.grad is None


def test_several_passes_before_the_backward_pass():
    conv, plain = pair(2)
    first, second = torch.randn(2, 1, 4, 13, 17, dtype=torch.float64)
    (conv(first).square() + conv(second).square()).sum().backward()
    (plain(first).square() + plain(second).square()).sum().backward()
    torch.testing.assert_close(conv.weight.grad, plain.weight.grad * conv.density())


def test_the_backward_pass_twice():
    conv, plain = pair(2)
    x = torch.randn(1, 4, 13, 17, dtype=torch.float64)
    y, expected = conv(x).sum(), plain(x).sum()
    for _ in range(2):
        y.backward(retain_graph=True)
        expected.backward(retain_graph=True)
    torch.testing.assert_close(conv.weight.grad, plain.weight.grad * conv.density())


def test_training_steps_follow_the_definition():
    conv, _ = pair(2, padding=1)
    definition = copy.deepcopy(conv)
    optimisers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (conv, definition)]
    x = torch.randn(2, 4, 9, 11, dtype=torch.float64)
    for _ in range(4):
        for optimiser in optimisers:
            optimiser.zero_grad()
        conv(x).square().mean().backward()
        effective = definition.weight * definition.density()
        functional.conv2d(x, effective, definition.bias, padding=1).square().mean().backward()
        for optimiser in optimisers:
            optimiser.step()
    torch.testing.assert_close(conv.weight, definition.weight)


def test_a_weight_changed_between_the_passes_is_noticed():
    conv = WeightedConv2d(2, 2, 3, density=SeparableDensity((3, 3), [0.7], trainable=True))
    y = conv(torch.randn(1, 2, 5, 5)).sum()
    with torch.no_grad():
        conv.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_inference_mode_before_and_after_training():
    conv, plain = pair(2)
    x = torch.randn(1, 4, 13, 17, dtype=torch.float64)
    for _ in range(2):
        with torch.inference_mode():
            torch.testing.assert_close(conv(x), plain(x))
        with torch.no_grad():
            torch.testing.assert_close(conv(x), plain(x))
        conv(x).sum().backward()


def test_autocast_runs_in_low_precision():
    conv = WeightedConv2d(4, 6, 3, density=[0.7])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = conv(torch.randn(1, 4, 8, 8))
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert conv.weight.grad.dtype == torch.float32


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_functional_transforms_and_forward_mode():
    conv, plain = pair(2)
    x = torch.randn(3, 4, 13, 17, dtype=torch.float64)
    tangent = torch.randn_like(x)
    torch.testing.assert_close(
        torch.func.jvp(conv, (x,), (tangent,))[1],
        functional.conv2d(tangent, plain.weight.detach()),
    )
    torch.testing.assert_close(torch.func.vmap(conv)(x[:, None])[:, 0], plain(x))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, tangent)
        torch.testing.assert_close(
            torch.autograd.forward_ad.unpack_dual(conv(dual)).tangent,
            functional.conv2d(tangent, plain.weight),
        )


def test_checkpointed_activations():
    conv, plain = pair(2)
    x = torch.randn(1, 4, 13, 17, dtype=torch.float64, requires_grad=True)
    torch.utils.checkpoint.checkpoint(conv, x, use_reentrant=False).sum().backward()
    plain(x.detach()).sum().backward()
    torch.testing.assert_close(conv.weight.grad, plain.weight.grad * conv.density())


# --- as modules -------------------------------------------------------------------------------


@pytest.mark.unchecked
@pytest.mark.parametrize("cls", [WeightedConv1d, WeightedConv2d, WeightedConv3d])
def test_arguments_that_it_does_not_take(cls):
    name = cls.__name__
    with pytest.raises(
        TypeError, match=f"^{name}: .* 'densities'; it takes in_channels, .*density$"
    ):
        cls(1, 1, 3, density=[0.7], densities=[0.7])
    with pytest.raises(TypeError, match=f"^{name}: missing a required argument: 'density'"):
        cls(1, 1, 3)


def test_state_dict_keys_are_stable():
    fixed = WeightedConv2d(1, 1, 3, density=[0.7])
    assert list(fixed.state_dict()) == ["weight", "bias", "density.phi"]
    trained = WeightedConv2d(
        1, 1, 3, bias=False, density=SeparableDensity((3, 3), [0.7], trainable=True)
    )
    assert list(trained.state_dict()) == ["weight", "density.profile_0"]


def test_as_many_parameters_as_the_plain_convolution():
    count = [
        sum(p.numel() for p in m.parameters())
        for m in (nn.Conv2d(3, 8, 5), WeightedConv2d(3, 8, 5, density=[0.2, 0.8]))
    ]
    assert count[0] == count[1]


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_copies_and_pickles_compute_the_same(n, trainable):
    density = random_density(KERNEL[n], dtype=torch.float32, trainable=trainable)
    conv = WEIGHTED[n](4, 6, KERNEL[n], density=density)
    x = torch.randn(1, 4, *SIZE[n])
    conv(x).sum().backward()
    for other in (copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
        torch.testing.assert_close(other(x), conv(x), rtol=0, atol=0)
        assert other.density is not conv.density


def test_a_shared_density_stays_shared():
    shared = SeparableDensity((3, 3), [0.7], trainable=True)
    model = nn.Sequential(
        WeightedConv2d(2, 2, 3, density=shared),
        WeightedConv2d(2, 2, 3, density=shared),
        weight_convolution(nn.ConvTranspose2d(2, 2, 3), shared),
    )
    x = torch.randn(1, 2, 9, 9)
    for other in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        densities = [
            other[0].density, other[1].density, other[2].parametrizations.weight[0].density
        ]  # fmt: skip
        assert densities[0] is densities[1] is densities[2]
        assert sum(p.shape == (1,) for p in other.parameters()) == 1
    torch.testing.assert_close(fold(model)(x), model(x))
    # One parameter collects the gradients of all three layers.
    model(x).sum().backward()
    collected = shared.profile_0.grad.clone()
    separate = copy.deepcopy(model)
    parts = []
    for index in range(3):
        shared.profile_0.grad = None
        others = [copy.deepcopy(shared).requires_grad_(False) for _ in range(3)]
        others[index] = shared
        separate[0].density, separate[1].density = others[:2]
        separate[2].parametrizations.weight[0].density = others[2]
        separate(x).sum().backward()
        parts.append(shared.profile_0.grad.clone())
    torch.testing.assert_close(collected, sum(parts))


@pytest.mark.slow
@pytest.mark.unchecked
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("trainable", [False, True])
def test_compile_in_one_graph(trainable):
    torch._dynamo.reset()
    density = random_density((3, 3), dtype=torch.float32, trainable=trainable)
    conv = WeightedConv2d(4, 6, 3, density=density)
    compiled = torch.compile(conv, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 4, 9, 9)
    torch.testing.assert_close(compiled(x), conv(x))
    compiled(x).square().sum().backward()
    gradients = [p.grad.clone() for p in conv.parameters()]
    conv.zero_grad()
    conv(x).square().sum().backward()
    for compiled_gradient, parameter in zip(gradients, conv.parameters(), strict=True):
        torch.testing.assert_close(compiled_gradient, parameter.grad)


@pytest.mark.unchecked
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_export_and_fold_then_export():
    model = nn.Sequential(
        WeightedConv2d(4, 6, 3, density=SeparableDensity((3, 3), [0.7], trainable=True)),
        weight_convolution(nn.ConvTranspose2d(6, 2, 3), [0.6]),
    )
    x = torch.randn(2, 4, 9, 9)
    expected = model(x)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected)
    folded = torch.export.export(fold(model), (x,))
    torch.testing.assert_close(folded.module()(x), expected, rtol=1e-5, atol=1e-6)
    assert not any("mul" in str(node.target) for node in folded.graph.nodes)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_distributed_data_parallel(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        density = SeparableDensity((3, 3), [0.7], trainable=True)
        model = nn.Sequential(
            WeightedConv2d(2, 2, 3, density=density),
            weight_convolution(nn.Conv2d(2, 2, 3), density),
        )
        alone = copy.deepcopy(model)
        parallel = nn.parallel.DistributedDataParallel(model)
        x = torch.randn(2, 2, 9, 9)
        parallel(x).square().sum().backward()
        alone(x).square().sum().backward()
        for ours, theirs in zip(model.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad)
    finally:
        torch.distributed.destroy_process_group()


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("error", "density", "message"),
    [
        (ValueError, [0.7, 0.8], "must have 1 value.*kernel_size 3; got 2"),
        (
            ValueError,
            SeparableDensity((5, 5), [0.2, 0.8]),
            r"is for kernel_size \(5, 5\).*\(3, 3\)",
        ),
        (ValueError, SeparableDensity((3,), [0.7]), r"is for kernel_size \(3,\)"),
        (ValueError, TensorDensity(torch.ones(3, 5)), r"\(3, 5\).*\(3, 3\)"),
        (ValueError, torch.ones(1, 3), r"\(1, 3\).*\(3, 3\)"),
        (TypeError, 0.7, "must be a Density, a tensor.*or a profile.*got float"),
        (TypeError, "0.7", "got str"),
    ],
)
def test_a_density_that_does_not_fit_is_refused(error, density, message):
    with pytest.raises(error, match=message):
        WeightedConv2d(1, 1, 3, density=density)


def test_wrong_inputs_get_pytorchs_message():
    conv = WeightedConv2d(4, 6, 3, density=[0.7])
    with pytest.raises(RuntimeError, match=r"expected input.* to have 4 channels, but got 3"):
        conv(torch.randn(1, 3, 9, 9))
