"""torchvision's VGG16, AlexNet and GoogLeNet, rewritten with its names, against our trunks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.errors import SegjaxError
from segjax.models import FCN, AlexNet, FCNAlexNet, FCNGoogLeNet, GoogLeNet
from segjax.weights import fill, torchvision

jit = partial(
    jax.jit,
    compiler_options={"xla_backend_optimization_level": 0},
)
CLASSES, WIDTH = 1000, 7
VGG16_WIDTHS, ALEXNET_WIDTHS, STEM = (2, 3, 4, 5, 6), (4, 6, 8, 5, 6), (4, 3, 5)
INCEPTIONS = ((4, 3, 5, 3, 4, 3), (5, 3, 4, 4, 3, 4), *((4, 3, 2, 3, 2, 3),) * 7)
SmallFCN = partial(FCN, widths=VGG16_WIDTHS, classifier_width=WIDTH, stride=32)


@pytest.fixture
def torch():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    return torch


def normal(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def assert_close(got, want):
    want = np.asarray(want)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.abs(want).max())
    assert np.ptp(want) > 0


def shapes(model):
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)


def zeros(model):
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes(model))


def tensors_of(net):
    return {name: tensor.numpy() for name, tensor in net.state_dict().items()}


def torch_vgg16(torch):
    nn, layers, channels = torch.nn, [], 3
    for width, depth in zip(VGG16_WIDTHS, (2, 2, 3, 3, 3), strict=True):
        for _ in range(depth):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2, 2))
    net = nn.Module()
    net.features = nn.Sequential(*layers)
    # Dropout is nothing in evaluation, but its places are counted in the names.
    net.classifier = nn.Sequential(
        *(nn.Linear(channels * 49, WIDTH), nn.ReLU(), nn.Dropout()),
        *(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Dropout()),
        nn.Linear(WIDTH, CLASSES),
    )
    return spread(torch, net)


def torch_alexnet(torch):
    nn, (a, b, c, d, e) = torch.nn, ALEXNET_WIDTHS
    net = nn.Module()
    net.features = nn.Sequential(
        *(nn.Conv2d(3, a, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(a, b, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(b, c, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(c, d, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(d, e, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2)),
    )
    net.classifier = nn.Sequential(
        *(nn.Dropout(), nn.Linear(e * 36, WIDTH), nn.ReLU()),
        *(nn.Dropout(), nn.Linear(WIDTH, WIDTH), nn.ReLU()),
        nn.Linear(WIDTH, CLASSES),
    )
    return spread(torch, net)


def torch_googlenet(torch):
    nn = torch.nn

    class BasicConv2d(nn.Module):
        def __init__(self, channels, width, kernel, **arguments):
            super().__init__()
            self.conv = nn.Conv2d(channels, width, kernel, bias=False, **arguments)
            self.bn = nn.BatchNorm2d(width, eps=0.001)

        def forward(self, x):
            return torch.relu(self.bn(self.conv(x)))

    class Block(nn.Module):
        def __init__(self, channels, one, reduce3, three, reduce5, five, pool):
            super().__init__()
            self.branch1 = BasicConv2d(channels, one, 1)
            self.branch2 = nn.Sequential(
                BasicConv2d(channels, reduce3, 1), BasicConv2d(reduce3, three, 3, padding=1)
            )
            self.branch3 = nn.Sequential(
                BasicConv2d(channels, reduce5, 1), BasicConv2d(reduce5, five, 3, padding=1)
            )
            self.branch4 = nn.Sequential(
                nn.MaxPool2d(3, 1, padding=1, ceil_mode=True), BasicConv2d(channels, pool, 1)
            )

        def forward(self, x):
            branches = (self.branch1, self.branch2, self.branch3, self.branch4)
            return torch.cat([branch(x) for branch in branches], 1)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = BasicConv2d(3, STEM[0], 7, stride=2, padding=3)
            self.conv2 = BasicConv2d(STEM[0], STEM[1], 1)
            self.conv3 = BasicConv2d(STEM[1], STEM[2], 3, padding=1)
            channels = STEM[2]
            names = ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")
            for name, widths in zip(names, INCEPTIONS, strict=True):
                setattr(self, f"inception{name}", Block(channels, *widths))
                channels = sum(widths[i] for i in (0, 2, 4, 5))
            self.aux1 = nn.Module()
            self.aux1.fc1 = nn.Linear(3, 2)
            self.fc = nn.Linear(channels, CLASSES)

        def forward(self, x):
            pool = partial(torch.nn.functional.max_pool2d, ceil_mode=True)
            # transform_input, on pictures normalised by MEAN and DEVIATION.
            mean, std = (
                torch.tensor(v)[:, None, None]
                for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
            )
            x = x * (std / 0.5) + (mean - 0.5) / 0.5
            x = pool(self.conv1(x), 3, 2)
            x = pool(self.conv3(self.conv2(x)), 3, 2)
            x = pool(self.inception3b(self.inception3a(x)), 3, 2)
            x = self.inception4c(self.inception4b(self.inception4a(x)))
            x = pool(self.inception4e(self.inception4d(x)), 2, 2)
            return self.inception5b(self.inception5a(x))

    return spread(torch, Net())


def spread(torch, net):
    """Weights of He's size and batch statistics as of a trained network; evaluation."""
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            torch.nn.init.kaiming_normal_(module.weight)
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.3)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.3)
    return net.eval().requires_grad_(False)


def to_torch(torch, images):
    return torch.tensor(images).permute(0, 3, 1, 2)


def slide(torch, net, features, side):
    """The dense layers, as they are, on every side × side window: (B, h, w, CLASSES)."""
    windows = features.unfold(2, side, 1).unfold(3, side, 1).permute(0, 2, 3, 1, 4, 5)
    return net.classifier(windows.flatten(3))


def score_map(model, variables, images):
    def score(variables, images):
        kept = model.apply(
            variables, images, capture_intermediates=lambda m, _: m.name == "score_fr"
        )
        return kept[1]["intermediates"]["score_fr"]["__call__"][0]

    return jit(score)(variables, images)


@pytest.mark.parametrize("height, width", [(224, 224), (256, 288)])
def test_vgg16_slid_over_a_picture_is_fcn(torch, height, width):
    net, model = torch_vgg16(torch), SmallFCN(CLASSES, padding="same")
    variables = fill(zeros(model), tensors_of(net), torchvision.vgg16(model))
    images = normal(1, height, width, 3)
    features = net.features(to_torch(torch, images))
    got = score_map(model, variables, images)[:, 3:-3, 3:-3]
    assert got.shape[1:3] == (height // 32 - 6, width // 32 - 6)
    assert_close(got, slide(torch, net, features, 7))


@pytest.mark.parametrize("height, width", [(33, 64), (51, 38)])
def test_vgg16_in_the_authors_geometry(torch, height, width):
    net, model = torch_vgg16(torch), SmallFCN(CLASSES)
    variables = fill(zeros(model), tensors_of(net), torchvision.vgg16(model))
    net.features[0].padding = (100, 100)
    for layer in net.features:
        layer.ceil_mode = True
    images = normal(2, height, width, 3)
    features = net.features(to_torch(torch, images))
    assert_close(score_map(model, variables, images), slide(torch, net, features, 7))


def test_vgg16_for_other_classes_and_orders(torch):
    tensors, expected = tensors_of(torch_vgg16(torch)), ["params/score_*", "classifier.6.*"]
    model = SmallFCN(3, padding="same", stride=8)
    table = torchvision.vgg16(model)
    text = r"(?s)params/score_fr/kernel: the layout has nothing.*left over: classifier\.6\.weight"
    with pytest.raises(SegjaxError, match=text):
        fill(zeros(model), tensors, table)
    params = fill(zeros(model), tensors, table, expected=expected)["params"]
    assert not params["score_fr"]["kernel"].any() and params["fc7"]["kernel"].any()
    turned = torchvision.vgg16(model, order="bgr")
    turned = fill(zeros(model), tensors, turned, expected=expected)["params"]["vgg16"]["conv1_1"]
    np.testing.assert_array_equal(
        turned["kernel"][:, :, ::-1], params["vgg16"]["conv1_1"]["kernel"]
    )
    bare = FCN(3, widths=VGG16_WIDTHS, classifier_width=None)
    expected = ["params/score_*", "classifier.*"]
    filled = fill(zeros(bare), tensors, torchvision.vgg16(bare), expected=expected)
    np.testing.assert_array_equal(
        filled["params"]["vgg16"]["conv1_1"]["kernel"], params["vgg16"]["conv1_1"]["kernel"]
    )


def test_alexnet(torch):
    net = torch_alexnet(torch)
    model = FCNAlexNet(
        CLASSES, widths=ALEXNET_WIDTHS, variant="torchvision", classifier_width=WIDTH
    )
    variables = fill(zeros(model), tensors_of(net), torchvision.alexnet(model))
    trunk = AlexNet(ALEXNET_WIDTHS, "torchvision", pad=2)
    # The sizes at which torchvision's pooling drops nothing.
    for height, width in ((63, 66), (95, 95)):
        images = normal(2, height, width, 3)
        got = jit(trunk.apply)({"params": variables["params"]["alexnet"]}, images)
        assert_close(got, net.features(to_torch(torch, images)).permute(0, 2, 3, 1))
    net.features[0].padding = (100, 100)
    for layer in net.features:
        layer.ceil_mode = True
    images = normal(2, 70, 37, 3)
    features = net.features(to_torch(torch, images))
    assert_close(score_map(model, variables, images), slide(torch, net, features, 6))


@pytest.mark.parametrize("height, width", [(64, 97), (160, 160)])
def test_googlenet(torch, height, width):
    net = torch_googlenet(torch)
    model = FCNGoogLeNet(CLASSES, stem=STEM, widths=INCEPTIONS, variant="torchvision")
    table = torchvision.googlenet(model)
    variables = fill(zeros(model), tensors_of(net), table, expected=["aux1.*"])
    picture = np.random.default_rng(0).integers(0, 256, (2, height, width, 3)).astype(np.float32)
    theirs = (picture - torchvision.MEAN) / torchvision.DEVIATION
    ours = (picture - torchvision.GOOGLENET_MEAN) / torchvision.GOOGLENET_DEVIATION
    trunk = GoogLeNet(STEM, INCEPTIONS, "torchvision")
    mine = {kind: leaves["googlenet"] for kind, leaves in variables.items()}
    got = np.asarray(jit(trunk.apply)(mine, ours.astype(np.float32)))
    want = net(to_torch(torch, theirs.astype(np.float32))).permute(0, 2, 3, 1)
    assert_close(got, want)
    last = variables["params"]["score_fr"]
    assert_close(got @ last["kernel"][0, 0] + last["bias"], net.fc(want))


def test_other_classes_leave_the_last_dense_layer_over(torch):
    for net, model, layout, rest in (
        (
            torch_alexnet(torch),
            FCNAlexNet(3, widths=ALEXNET_WIDTHS, variant="torchvision", classifier_width=WIDTH),
            torchvision.alexnet,
            ["classifier.6.*"],
        ),
        (
            torch_googlenet(torch),
            FCNGoogLeNet(3, stem=STEM, widths=INCEPTIONS, variant="torchvision"),
            torchvision.googlenet,
            ["fc.*", "aux1.*"],
        ),
    ):
        tensors, expected = tensors_of(net), ["params/score_fr/*", *rest]
        filled = fill(zeros(model), tensors, layout(model), expected=expected)
        assert not filled["params"]["score_fr"]["kernel"].any()
        with pytest.raises(SegjaxError, match=rf"left over: {rest[0]}"):
            fill(zeros(model), tensors, layout(model), expected=expected[:1])


@pytest.mark.parametrize(
    "model, layout, names",
    [
        (FCN(1000, stride=32), torchvision.vgg16, 32),
        (
            FCNAlexNet(1000, widths=(64, 192, 384, 256, 256), variant="torchvision"),
            torchvision.alexnet,
            16,
        ),
        (FCNGoogLeNet(1000, variant="torchvision"), torchvision.googlenet, 57 * 5 + 2),
    ],
)
def test_every_leaf_of_the_full_network_has_an_entry(model, layout, names):
    leaves = jax.tree_util.tree_leaves_with_path(shapes(model))
    assert {"/".join(k.key for k in path) for path, _ in leaves} == set(layout(model).entries)
    assert len(leaves) == names
