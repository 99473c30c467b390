"""wkentaro/pytorch-fcn's networks, rewritten with their names, against ours."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.errors import SegjaxError
from segjax.models import FCN
from segjax.weights import fill, pytorch_fcn

jit = partial(
    jax.jit,
    compiler_options={"xla_backend_optimization_level": 0},
)
WIDTHS, WIDTH, CLASSES = (2, 3, 4, 5, 6), 7, 3
Small = partial(FCN, CLASSES, widths=WIDTHS, classifier_width=WIDTH)
# Name, stride, crop of the skip that is added before.
UPSCORES = {
    32: (("upscore", 32, 19),),
    16: (("upscore2", 2, 5), ("upscore16", 16, 27)),
    8: (("upscore2", 2, 5), ("upscore_pool4", 2, 9), ("upscore8", 8, 31)),
}


@pytest.fixture
def torch():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    return torch


def torch_fcn(torch, stride, at_once=False, learned=False):
    """In evaluation, without its dropout; it takes BGR pictures."""
    nn = torch.nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            channels = 3
            for block, (width, depth) in enumerate(zip(WIDTHS, (2, 2, 3, 3, 3), strict=True), 1):
                for i in range(1, depth + 1):
                    pad = 100 if block == i == 1 else 1
                    conv = nn.Conv2d(channels, width, 3, padding=pad)
                    setattr(self, f"conv{block}_{i}", conv)
                    channels = width
            self.fc6 = nn.Conv2d(channels, WIDTH, 7)
            self.fc7 = nn.Conv2d(WIDTH, WIDTH, 1)
            self.score_fr = nn.Conv2d(WIDTH, CLASSES, 1)
            if stride <= 16:
                self.score_pool4 = nn.Conv2d(WIDTHS[3], CLASSES, 1)
            if stride <= 8:
                self.score_pool3 = nn.Conv2d(WIDTHS[2], CLASSES, 1)
            for name, factor, _ in UPSCORES[stride]:
                up = nn.ConvTranspose2d(CLASSES, CLASSES, 2 * factor, stride=factor, bias=False)
                if not learned:
                    line = 1 - np.abs(np.arange(2 * factor) - factor + 0.5) / factor
                    kernel = np.eye(CLASSES)[:, :, None, None] * np.outer(line, line)
                    up.weight.data = torch.tensor(kernel.astype(np.float32))
                setattr(self, name, up)
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight)
            if at_once:  # a pool3 so large that its scale of 0.0001 tells; conv4_1 undoes it
                for tensor in self.conv3_3.parameters():
                    tensor.data *= 1e4
                self.conv4_1.weight.data /= 1e4

        def forward(self, x):
            _, _, height, width = x.shape
            pools = []
            for block, depth in enumerate((2, 2, 3, 3, 3), 1):
                for i in range(1, depth + 1):
                    x = torch.relu(getattr(self, f"conv{block}_{i}")(x))
                x = nn.functional.max_pool2d(x, 2, 2, ceil_mode=True)
                pools.append(x)
            x = self.score_fr(torch.relu(self.fc7(torch.relu(self.fc6(x)))))
            *ups, (last, _, end) = UPSCORES[stride]
            skips = (("score_pool4", pools[3], 0.01), ("score_pool3", pools[2], 0.0001))
            for (up, _, crop), (name, pool, scale) in zip(ups, skips, strict=False):
                x = getattr(self, up)(x)
                skip = getattr(self, name)(pool * scale if at_once else pool)
                x = x + skip[:, :, crop : crop + x.shape[2], crop : crop + x.shape[3]]
            return getattr(self, last)(x)[:, :, end : end + height, end : end + width]

    return Net().eval()


def tensors_of(net):
    return {name: tensor.detach().numpy() for name, tensor in net.state_dict().items()}


def zeros(model):
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


def normal(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def assert_close(got, want):
    want = np.asarray(want)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.abs(want).max())
    assert np.ptp(want) > 0


def bgr(torch, images):
    return torch.tensor(images[..., ::-1].copy()).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    "height, width, fields",
    [
        (37, 50, {"stride": 32}),
        (64, 33, {"stride": 16}),
        (41, 41, {"stride": 8}),
        (38, 32, {"stride": 8, "at_once": True}),
        (37, 64, {"stride": 32, "upsampling": "learned"}),
        (34, 51, {"stride": 8, "upsampling": "learned"}),
    ],
    ids=str,
)
def test_equals_the_original(torch, height, width, fields):
    model, at_once = Small(**fields), fields.get("at_once", False)
    net = torch_fcn(torch, model.stride, at_once, learned=model.upsampling == "learned")
    tensors = tensors_of(net)
    variables = fill(zeros(model), tensors, pytorch_fcn.fcn(model, tensors))
    images = normal(2, height, width, 3)
    logits = jit(model.apply)(variables, images).logits
    assert_close(logits, net(bgr(torch, images)).detach().permute(0, 2, 3, 1))


def test_gradients_equal_the_originals(torch):
    model, net = Small(upsampling="learned"), torch_fcn(torch, 8, learned=True)
    tensors = tensors_of(net)
    table = pytorch_fcn.fcn(model, tensors)
    variables = fill(zeros(model), tensors, table)
    images, noise = normal(1, 33, 40, 3), normal(1, 33, 40, 3, seed=2)
    theirs = bgr(torch, images).requires_grad_()
    (net(theirs).permute(0, 2, 3, 1) * torch.tensor(noise)).sum().backward()
    # The table turns their gradients into ours as it does their weights.
    gradients = {name: value.grad.numpy() for name, value in net.named_parameters()}
    want = fill(variables, gradients, table)

    @jit
    def ours(variables, images):
        return jax.grad(lambda v, x: (model.apply(v, x).logits * noise).sum(), argnums=(0, 1))(
            variables, images
        )

    got, gradient = ours(variables, images)
    jax.tree.map(assert_close, got, want)
    assert_close(gradient, theirs.grad.permute(0, 2, 3, 1).numpy()[..., ::-1])


def test_learned_kernels_need_the_learned_upsampling(torch):
    tensors = tensors_of(torch_fcn(torch, 16, learned=True))
    for upsampling in ("fixed", "bilinear", "nearest"):
        with pytest.raises(SegjaxError, match=r'upscore2\.weight is not .* upsampling="learned"'):
            pytorch_fcn.fcn(Small(stride=16, upsampling=upsampling), tensors)


def test_another_stride_is_told(torch):
    model, tensors = Small(stride=16), tensors_of(torch_fcn(torch, 8))
    with pytest.raises(SegjaxError, match=r"left over: score_pool3\.weight"):
        fill(zeros(model), tensors, pytorch_fcn.fcn(model, tensors))


@pytest.mark.parametrize("stride", [32, 16, 8])
def test_every_leaf_has_an_entry(stride):
    model = FCN(21, stride=stride)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    leaves = jax.tree_util.tree_leaves_with_path(
        jax.eval_shape(model.init, jax.random.key(0), images)
    )
    assert {"/".join(k.key for k in p) for p, _ in leaves} == set(
        pytorch_fcn.fcn(model, {}).entries
    )
