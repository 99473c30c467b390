"""U-Net++ with random weights, in the originals' names and semantics, against ours."""

from functools import partial

import jax
import numpy as np
import pytest

from segjax.errors import SegjaxError
from segjax.models import UNetPlusPlus
from segjax.weights.table import fill
from segjax.weights.unetplusplus import keras, nested_unet

# These small programs take longer to compile than to run.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
CASES = pytest.mark.parametrize(
    "widths, height, width, deep_supervision",
    [((2, 3, 4), 12, 20, False), ((3, 4, 2, 5, 6), 32, 32, True)],
)


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def normal(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def filled(model, tensors, layout):
    side = model.geometry.minimum
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, side, side, 3), np.float32))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    return fill(zeros, tensors, layout(model))


def heads_of(model, variables, images):
    output = jit(model.apply)(variables, images)
    return output.auxiliary if model.deep_supervision else (output.logits,)


def assert_close(got, want):
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.abs(want).max())
    assert np.abs(want).max() > 0


def torch_reference(torch, widths, classes, *, deep_supervision):
    """NestedUNet's modules, of any depth and widths."""
    nn = torch.nn

    class VGGBlock(nn.Module):
        def __init__(self, before, after):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after)
            self.conv2, self.bn2 = nn.Conv2d(after, after, 3, padding=1), nn.BatchNorm2d(after)

        def forward(self, x):
            x = torch.relu(self.bn1(self.conv1(x)))
            return torch.relu(self.bn2(self.conv2(x)))

    class NestedUNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
            for i, width in enumerate(widths):
                block = VGGBlock(widths[i - 1] if i else 3, width)
                setattr(self, f"conv{i}_0", block)
                for j in range(1, len(widths) - i):
                    block = VGGBlock(j * width + widths[i + 1], width)
                    setattr(self, f"conv{i}_{j}", block)
            for j in range(1, len(widths)) if deep_supervision else [""]:
                setattr(self, f"final{j}", nn.Conv2d(widths[0], classes, 1))

        def forward(self, x):
            maps, levels = {}, len(widths)
            for i in range(levels):
                x = nn.functional.max_pool2d(x, 2) if i else x
                x = maps[i, 0] = getattr(self, f"conv{i}_0")(x)
            for j in range(1, levels):
                for i in range(levels - j):
                    skips = [maps[i, k] for k in range(j)]
                    inputs = torch.cat([*skips, self.up(maps[i + 1, j - 1])], 1)
                    maps[i, j] = getattr(self, f"conv{i}_{j}")(inputs)
            if deep_supervision:
                return [getattr(self, f"final{j}")(maps[0, j]) for j in range(1, levels)]
            return [self.final(maps[0, levels - 1])]

    return NestedUNet().eval()


def random_torch(torch, *args, **kwargs):
    """With random weights and batch statistics."""
    torch.manual_seed(0)
    network = torch_reference(torch, *args, **kwargs)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                tensor.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0.3, 0.3)  # so that no ReLU is shut for good
            module.running_mean.normal_(0, 0.3)
    return network


def tensors_of(network):
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}


@CASES
def test_equals_nested_unet(torch, widths, height, width, deep_supervision):
    theirs = random_torch(torch, widths, 2, deep_supervision=deep_supervision)
    model = UNetPlusPlus(2, widths=widths, up="bilinear_corners", deep_supervision=deep_supervision)
    variables, images = filled(model, tensors_of(theirs), nested_unet), normal(2, height, width, 3)
    with torch.no_grad():
        want = theirs(torch.tensor(images).permute(0, 3, 1, 2))
    for ours, head in zip(heads_of(model, variables, images), want, strict=True):
        assert_close(ours, head.permute(0, 2, 3, 1).numpy())


def test_gradients_equal_nested_unets(torch):
    theirs = random_torch(torch, (3, 4, 5), 2, deep_supervision=True)
    model = UNetPlusPlus(2, widths=(3, 4, 5), up="bilinear_corners")
    variables, images = filled(model, tensors_of(theirs), nested_unet), normal(1, 8, 12, 3)
    noises = [normal(1, 8, 12, 2, seed=j) for j in (2, 3)]

    @jit
    @partial(jax.grad, argnums=(0, 1))
    def gradients(params, images):
        heads = model.apply({**variables, "params": params}, images).auxiliary
        return sum((head * noise).sum() for head, noise in zip(heads, noises, strict=True))

    ours, ours_of_images = gradients(variables["params"], images)
    their_images = torch.tensor(images, requires_grad=True)
    heads = theirs(their_images.permute(0, 3, 1, 2))
    for head, noise in zip(heads, noises, strict=True):
        (head.permute(0, 2, 3, 1) * torch.tensor(noise)).sum().backward(retain_graph=True)
    assert_close(ours_of_images, their_images.grad.numpy())
    # A gradient has its parameter's layout: the table brings it over too.
    their_gradients = {name: p.grad.numpy() for name, p in theirs.named_parameters()}
    tensors = tensors_of(theirs) | their_gradients
    jax.tree.map(assert_close, ours, fill(variables, tensors, nested_unet(model))["params"])


@pytest.mark.parametrize("deep_supervision, count", [(False, 9_163_329), (True, 9_163_428)])
def test_the_reference_has_the_originals_count(torch, deep_supervision, count):
    with torch.device("meta"):
        widths = (32, 64, 128, 256, 512)
        theirs = torch_reference(torch, widths, 1, deep_supervision=deep_supervision)
    assert sum(p.numel() for p in theirs.parameters()) == count


def keras_tensors(widths, classes, heads):
    """What the authors' network holds, by its layers' names."""
    rng, tensors = np.random.default_rng(0), {}

    def layer(name, *shape, outputs):
        fan_in = np.prod(shape) / outputs
        tensors[f"{name}/kernel"] = rng.normal(0, np.sqrt(2 / fan_in), shape).astype(np.float32)
        tensors[f"{name}/bias"] = rng.normal(0, 0.3, outputs).astype(np.float32)

    levels = len(widths)
    for row in range(1, levels + 1):
        width = widths[row - 1]
        for column in range(1, levels + 2 - row):
            stage = f"{row}{column}"
            inputs = column * width if column > 1 else 3 if row == 1 else widths[row - 2]
            layer(f"conv{stage}_1", 3, 3, inputs, width, outputs=width)
            layer(f"conv{stage}_2", 3, 3, width, width, outputs=width)
            if column > 1:
                layer(f"up{stage}", 2, 2, width, widths[row], outputs=width)
    for head in heads:
        layer(f"output_{head}", 1, 1, widths[0], classes, outputs=classes)
    return tensors


def keras_heads(torch, tensors, images, *, levels, heads):
    """The authors' functional model, its kernels as Keras lays them out: HWIO, transposed HWOI."""
    functional = torch.nn.functional

    def weights(name):
        kernel, bias = (torch.tensor(tensors[f"{name}/{leaf}"]) for leaf in ("kernel", "bias"))
        return kernel.permute(3, 2, 0, 1), bias  # PyTorch's OIHW, transposed IOHW

    def standard_unit(x, stage):
        for n in (1, 2):
            x = torch.relu(functional.conv2d(x, *weights(f"conv{stage}_{n}"), padding="same"))
        return x

    maps, x = {}, torch.tensor(images).permute(0, 3, 1, 2)
    for row in range(1, levels + 1):
        x = maps[row, 1] = standard_unit(x, f"{row}1")
        x = functional.max_pool2d(x, 2)
    for column in range(2, levels + 1):
        for row in range(1, levels + 2 - column):
            below = maps[row + 1, column - 1]
            up = functional.conv_transpose2d(below, *weights(f"up{row}{column}"), stride=2)
            merged = torch.cat([up, *(maps[row, k] for k in range(1, column))], dim=1)
            maps[row, column] = standard_unit(merged, f"{row}{column}")
    logits = (functional.conv2d(maps[1, n + 1], *weights(f"output_{n}")) for n in heads)
    return [torch.sigmoid(x).permute(0, 2, 3, 1).numpy() for x in logits]


@CASES
def test_equals_the_authors_keras_network(torch, widths, height, width, deep_supervision):
    model = UNetPlusPlus(1, widths=widths, norm="none", deep_supervision=deep_supervision)
    heads, images = tuple(model.heads), normal(2, height, width, 3)
    tensors = keras_tensors(widths, 1, heads)
    variables = filled(model, tensors, keras)
    want = keras_heads(torch, tensors, images, levels=len(widths), heads=heads)
    for ours, head in zip(heads_of(model, variables, images), want, strict=True):
        assert_close(jax.nn.sigmoid(ours), head)
    # The accurate mode is the mean of what the original puts out.
    logits = jit(model.apply)(variables, images).logits
    assert_close(jax.nn.sigmoid(logits), np.mean(want, axis=0))


@pytest.mark.parametrize("heads, count", [((4,), 9_041_601), ((1, 2, 3, 4), 9_041_700)])
def test_the_keras_reference_has_the_authors_count(heads, count):
    tensors = keras_tensors((32, 64, 128, 256, 512), 1, heads)
    # The authors' count is for one channel.
    assert sum(tensor.size for tensor in tensors.values()) - 2 * 9 * 32 == count


def test_heads_that_are_left_over_are_told():
    tensors = keras_tensors((2, 3, 4), 1, (1, 2))
    model = UNetPlusPlus(1, widths=(2, 3, 4), norm="none", deep_supervision=False)
    with pytest.raises(SegjaxError, match="left over: output_1/kernel"):
        filled(model, tensors, keras)
