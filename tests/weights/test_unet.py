"""milesial's U-Net with random weights, in PyTorch with its own names, against ours."""

from functools import partial

import jax
import numpy as np
import pytest

from segjax.errors import SegjaxError
from segjax.models import UNet
from segjax.weights.table import fill
from segjax.weights.unet import milesial

# These small programs take longer to compile than to run.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def reference(torch, widths, classes, *, bilinear):
    """Pytorch-UNet's modules, of any widths."""
    nn = torch.nn

    class DoubleConv(nn.Module):
        def __init__(self, before, middle, after):
            super().__init__()
            layers = []
            for first, last in ((before, middle), (middle, after)):
                conv = nn.Conv2d(first, last, 3, padding=1, bias=False)
                layers += [conv, nn.BatchNorm2d(last), nn.ReLU()]
            self.double_conv = nn.Sequential(*layers)

        def forward(self, x):
            return self.double_conv(x)

    class Down(nn.Module):
        def __init__(self, before, after):
            super().__init__()
            self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), DoubleConv(before, after, after))

        def forward(self, x):
            return self.maxpool_conv(x)

    class Up(nn.Module):
        def __init__(self, below, skip, after):
            super().__init__()
            if bilinear:
                self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
            else:
                self.up = nn.ConvTranspose2d(below, skip, 2, stride=2)
            self.conv = DoubleConv(2 * skip, skip, after)

        def forward(self, x, skip):
            return self.conv(torch.cat([skip, self.up(x)], dim=1))

    class Out(nn.Module):
        def __init__(self, before):
            super().__init__()
            self.conv = nn.Conv2d(before, classes, 1)

        def forward(self, x):
            return self.conv(x)

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            *upper, lowest = widths
            downs = [*upper, upper[-1] if bilinear else lowest]
            handed = [upper[0], *upper[:-1]] if bilinear else upper
            self.levels = len(upper)
            self.inc = DoubleConv(3, widths[0], widths[0])
            for n in range(1, len(widths)):
                setattr(self, f"down{n}", Down(downs[n - 1], downs[n]))
            below = downs[-1]
            for n, depth in enumerate(reversed(range(len(upper))), 1):
                setattr(self, f"up{n}", Up(below, upper[depth], handed[depth]))
                below = handed[depth]
            self.outc = Out(below)

        def forward(self, x):
            maps = [self.inc(x)]
            for n in range(1, self.levels + 1):
                maps.append(getattr(self, f"down{n}")(maps[-1]))
            x = maps.pop()
            for n in range(1, self.levels + 1):
                x = getattr(self, f"up{n}")(x, maps.pop())
            return self.outc(x)

    return Whole().eval()


def random_reference(torch, *args, **kwargs):
    """With random weights and batch statistics."""
    torch.manual_seed(0)
    network = reference(torch, *args, **kwargs)
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                tensor.data.uniform_(0.5, 1.5, generator=generator)
            for tensor in (module.bias, module.running_mean):
                tensor.data.normal_(0, 0.3, generator=generator)
    return network


def normal(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def tensors_of(network):
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}


def filled(model, tensors):
    side = model.geometry.minimum
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, side, side, 3), np.float32))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    return fill(zeros, tensors, milesial(model))


def assert_close(got, want):
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.abs(want).max())
    assert np.abs(want).max() > 0


FLAVOURS = pytest.mark.parametrize("up", ["upconv", "bilinear_corners"])


@FLAVOURS
@pytest.mark.parametrize("widths, height, width", [((2, 4, 8), 12, 20), ((3, 4, 6, 7, 5), 48, 48)])
def test_equals_milesials(torch, up, widths, height, width):
    theirs = random_reference(torch, widths, 4, bilinear=up != "upconv")
    model = UNet(4, widths=widths, up=up)
    variables = filled(model, {**tensors_of(theirs), "mask_values": np.array([0, 1])})
    images = normal(2, height, width, 3)
    with torch.no_grad():
        want = theirs(torch.tensor(images).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    assert_close(jit(model.apply)(variables, images).logits, want)


@FLAVOURS
def test_gradients_equal_milesials(torch, up):
    theirs = random_reference(torch, (3, 4, 5), 2, bilinear=up != "upconv")
    model = UNet(2, widths=(3, 4, 5), up=up)
    variables, images, noise = filled(model, tensors_of(theirs)), normal(1, 8, 12, 3), normal(24, 8)

    @jit
    @partial(jax.grad, argnums=(0, 1))
    def gradients(params, images):
        logits = model.apply({**variables, "params": params}, images).logits
        return (logits.reshape(24, 8) * noise).sum()

    ours, ours_of_images = gradients(variables["params"], images)
    their_images = torch.tensor(images, requires_grad=True)
    logits = theirs(their_images.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    (logits.reshape(24, 8) * torch.tensor(noise)).sum().backward()
    assert_close(ours_of_images, their_images.grad.numpy())
    # A gradient has its parameter's layout: the table brings it over too.
    their_gradients = {name: p.grad.numpy() for name, p in theirs.named_parameters()}
    want = fill(variables, tensors_of(theirs) | their_gradients, milesial(model))["params"]
    jax.tree.map(assert_close, ours, want)


@pytest.mark.parametrize("bilinear, count", [(False, 31_037_698), (True, 17_263_042)])
def test_the_reference_has_the_originals_count(torch, bilinear, count):
    with torch.device("meta"):
        theirs = reference(torch, (64, 128, 256, 512, 1024), 2, bilinear=bilinear)
    assert sum(p.numel() for p in theirs.parameters()) == count


def test_the_other_flavours_checkpoint_is_refused(torch):
    tensors = tensors_of(reference(torch, (3, 4, 5), 2, bilinear=True))
    with pytest.raises(SegjaxError, match=r"missing: params/upconv_0/kernel .* no up2\.up\.weight"):
        filled(UNet(2, widths=(3, 4, 5)), tensors)
