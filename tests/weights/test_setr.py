"""Layouts of SETR: equality with the authors' and mmsegmentation's networks in plain PyTorch."""

from functools import partial

import jax
import numpy as np
import pytest

from segjax.errors import SegjaxError
from segjax.models import SETRMLA, SETRPUP, SETRNaive
from segjax.models.vit import resize_positions
from segjax.weights.setr import authors, mmsegmentation
from segjax.weights.table import fill
from segjax.weights.vit import timm

# These small programs take longer to compile than to run.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
DEPTH, WIDTH, HEADS, PATCH, GRID, CHANNELS, CLASSES = 4, 12, 2, 16, (2, 3), 8, 3
SMALL = {"depth": DEPTH, "width": WIDTH, "heads": HEADS, "grid": GRID, "channels": CHANNELS}
AUTHORS = {
    "naive": SETRNaive(CLASSES, **SMALL, auxiliary_taps=(0, 2)),
    "pup": SETRPUP(CLASSES, **SMALL, auxiliary_taps=(1, 3)),
    "mla": SETRMLA(CLASSES, **SMALL, taps=(0, 1, 2, 3)),
}
MMSEGMENTATION = {
    "naive": SETRNaive(CLASSES, **SMALL, auxiliary_taps=(0, 2), scales=(4,), auxiliary_scales=(4,)),
    "pup": SETRPUP(CLASSES, **SMALL, auxiliary_taps=(0, 1, 2), auxiliary_scales=(4, 4)),
    "mla": SETRMLA(CLASSES, **SMALL, taps=(0, 1, 2, 3), classifier_kernel=1, align_corners=False),
}

# What their files hold and ours has no use for.
LEFT_OVER = {
    authors: ("*_head.*conv_seg.*", "backbone.cls_token"),
    mmsegmentation: ("backbone.cls_token",),
}


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def timm_vit(torch, *, class_token):
    """timm's encoder as the authors have it: no final norm, position embeddings resized."""
    nn = torch.nn

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, x):
            qkv = self.qkv(x).unflatten(-1, (3, HEADS, WIDTH // HEADS)).permute(2, 0, 3, 1, 4)
            scores = qkv[0] @ qkv[1].transpose(-2, -1) * (WIDTH // HEADS) ** -0.5
            return self.proj((scores.softmax(-1) @ qkv[2]).transpose(1, 2).flatten(2))

    class MLP(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

        def forward(self, x):
            return self.fc2(nn.functional.gelu(self.fc1(x)))

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(WIDTH, eps=1e-6), nn.LayerNorm(WIDTH, eps=1e-6)
            self.attn, self.mlp = Attention(), MLP()

        def forward(self, x):
            x = x + self.attn(self.norm1(x))
            return x + self.mlp(self.norm2(x))

    net = nn.Module()
    net.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, WIDTH, PATCH, PATCH)})
    net.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
    return with_tokens(torch, net, net.patch_embed["proj"], net.blocks, class_token)


def mmseg_vit(torch, *, class_token):
    """mmsegmentation's encoder, with attention by PyTorch's own module."""
    nn = torch.nn

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.ln1, self.ln2 = nn.LayerNorm(WIDTH, eps=1e-6), nn.LayerNorm(WIDTH, eps=1e-6)
            attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
            self.attn = nn.ModuleDict({"attn": attention})
            first = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU())
            layers = nn.Sequential(first, nn.Linear(4 * WIDTH, WIDTH))
            self.ffn = nn.ModuleDict({"layers": layers})

        def forward(self, x):
            y = self.ln1(x)
            x = x + self.attn["attn"](y, y, y, need_weights=False)[0]
            return x + self.ffn["layers"](self.ln2(x))

    net = nn.Module()
    net.patch_embed = nn.ModuleDict({"projection": nn.Conv2d(3, WIDTH, PATCH, PATCH)})
    net.layers = nn.ModuleList(Layer() for _ in range(DEPTH))
    return with_tokens(torch, net, net.patch_embed["projection"], net.layers, class_token)


def with_tokens(torch, net, project, blocks, class_token):
    """The encoder with `cls_token` and `pos_embed`, and its maps of all blocks, NCHW."""
    net.cls_token = torch.nn.Parameter(torch.zeros(1, 1, WIDTH))
    net.pos_embed = torch.nn.Parameter(torch.zeros(1, 1 + GRID[0] * GRID[1], WIDTH))

    def forward(images):
        x = project(images)
        size = x.shape[2:]
        grid = net.pos_embed[:, 1:].unflatten(1, GRID).permute(0, 3, 1, 2)
        grid = torch.nn.functional.interpolate(grid, size, mode="bilinear", align_corners=False)
        x = torch.cat([net.cls_token.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], dim=1)
        x = x + torch.cat([net.pos_embed[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)
        x = x if class_token else x[:, 1:]
        maps = []
        for block in blocks:
            x = block(x)
            maps.append(x[:, int(class_token) :].transpose(1, 2).unflatten(2, size))
        return maps

    net.forward = forward
    return net


def conv_norm(torch, inputs, outputs, kernel, *, bias=False):
    """Convolution, batch norm and ReLU under the names 0, 1 and 2."""
    conv = torch.nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias)
    return torch.nn.Sequential(conv, torch.nn.BatchNorm2d(outputs), torch.nn.ReLU())


def conv_module(torch, inputs, outputs, kernel):
    """The same as mmcv names it."""
    conv, norm, _ = conv_norm(torch, inputs, outputs, kernel)
    module = torch.nn.ModuleDict({"conv": conv, "bn": norm})
    module.forward = lambda x: norm(conv(x)).relu()
    return module


def over_channels(norm, x):
    return norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def bilinear(torch, x, size, *, align_corners=False):
    return torch.nn.functional.interpolate(
        x, size=size, mode="bilinear", align_corners=align_corners
    )


def grow(torch, x, scale, *, align_corners=False):
    size = [scale * side for side in x.shape[2:]]
    return bilinear(torch, x, size, align_corners=align_corners)


def authors_net(torch, model):
    """Their network; calling it gives the logits, then each auxiliary head's, NCHW."""
    nn = torch.nn
    net = nn.Module()
    if isinstance(model, SETRMLA):
        mla, half = nn.Module(), CHANNELS // 2
        net.backbone = timm_vit(torch, class_token=False)
        heads = nn.Module()
        for i in range(4):
            setattr(net.backbone, f"norm_{i}", nn.LayerNorm(WIDTH, eps=1e-6))
            setattr(mla, f"mla_p{i + 2}_1x1", conv_norm(torch, WIDTH, CHANNELS, 1))
            setattr(mla, f"mla_p{i + 2}", conv_norm(torch, CHANNELS, CHANNELS, 3))
            first, second = conv_norm(torch, CHANNELS, half, 3), conv_norm(torch, half, half, 3)
            setattr(heads, f"head{i + 2}", nn.Sequential(*first, *second))
        net.backbone.mla = mla
        cls, unused = nn.Conv2d(4 * half, CLASSES, 3, padding=1), nn.Conv2d(5, CLASSES, 1)
        net.decode_head = nn.ModuleDict({"mlahead": heads, "cls": cls, "conv_seg": unused})
        net.auxiliary_head = nn.ModuleList(
            nn.ModuleDict(
                {
                    "aux": nn.Conv2d(CHANNELS, CLASSES, 1, bias=False),
                    "conv_seg": nn.Conv2d(5, CLASSES, 1),
                }
            )
            for _ in range(4)
        )

        def forward(images):
            maps = net.backbone(images)
            c6, c12, c18, c24 = (
                getattr(mla, f"mla_p{i + 2}_1x1")(
                    over_channels(getattr(net.backbone, f"norm_{i}"), x)
                )
                for i, x in enumerate(maps)
            )
            m18 = c18 + c24
            m12 = c12 + m18
            m6 = c6 + m12
            fused = mla.mla_p2(m6), mla.mla_p3(m12), mla.mla_p4(m18), mla.mla_p5(c24)
            streams = [
                grow(torch, getattr(heads, f"head{i + 2}")(p), 4, align_corners=True)
                for i, p in enumerate(fused)
            ]
            auxiliary = [head["aux"](p) for head, p in zip(net.auxiliary_head, fused, strict=True)]
            maps = [cls(torch.cat(streams, dim=1)), *auxiliary]
            return [bilinear(torch, x, images.shape[2:]) for x in maps]

    else:
        net.backbone = timm_vit(torch, class_token=True)
        pup = isinstance(model, SETRPUP)

        def up_head(depth):
            head = nn.Module()
            head.norm = nn.LayerNorm(WIDTH, eps=1e-6)
            for i in range(depth):
                inputs = CHANNELS if i else WIDTH
                conv, norm, _ = conv_norm(torch, inputs, CHANNELS, 3 if pup else 1, bias=True)
                setattr(head, f"conv_{i}", conv)
                setattr(head, f"syncbn_fc_{i}", norm)
            setattr(head, f"conv_{depth}", nn.Conv2d(CHANNELS, CLASSES, 1))
            head.conv_seg = nn.Conv2d(5, CLASSES, 1)

            def forward(x):
                x = over_channels(head.norm, x)
                for i in range(depth):
                    x = getattr(head, f"syncbn_fc_{i}")(getattr(head, f"conv_{i}")(x)).relu()
                    if depth == 4 and i < 3:
                        x = grow(torch, x, 2)
                if pup and depth == 1:
                    x = grow(torch, x, 4)
                return getattr(head, f"conv_{depth}")(x)

            head.forward = forward
            return head

        net.decode_head = up_head(4 if pup else 1)
        net.auxiliary_head = nn.ModuleList(up_head(1) for _ in model.auxiliary_taps)

        def forward(images):
            maps = net.backbone(images)
            auxiliary = [
                head(maps[tap])
                for head, tap in zip(net.auxiliary_head, model.auxiliary_taps, strict=True)
            ]
            return [
                bilinear(torch, x, images.shape[2:])
                for x in (net.decode_head(maps[-1]), *auxiliary)
            ]

    net.forward = forward
    return net


def mmseg_net(torch, model):
    """mmsegmentation's network; calling it gives the logits, then each auxiliary head's, NCHW."""
    nn = torch.nn
    net = nn.Module()
    module = partial(conv_module, torch)
    if isinstance(model, SETRMLA):
        half = CHANNELS // 2
        net.backbone = mmseg_vit(torch, class_token=False)
        norms = nn.ModuleList(nn.LayerNorm(WIDTH, eps=1e-6) for _ in range(4))
        project = nn.ModuleList(module(WIDTH, CHANNELS, 1) for _ in range(4))
        extract = nn.ModuleList(module(CHANNELS, CHANNELS, 3) for _ in range(4))
        mla = nn.ModuleDict({"channel_proj": project, "feat_extract": extract})
        net.neck = nn.ModuleDict({"norm": norms, "mla": mla})
        ups = nn.ModuleList(
            nn.Sequential(module(CHANNELS, half, 3), module(half, half, 3)) for _ in range(4)
        )
        classify = nn.Conv2d(4 * half, CLASSES, 1)
        net.decode_head = nn.ModuleDict({"up_convs": ups, "conv_seg": classify})
        net.auxiliary_head = nn.ModuleList(
            nn.ModuleDict({"conv_seg": nn.Conv2d(CHANNELS, CLASSES, 1)}) for _ in range(4)
        )

        def forward(images):
            maps = [
                conv(over_channels(norm, x))
                for x, norm, conv in zip(net.backbone(images), norms, project, strict=True)
            ]
            total, fused = 0, []
            for x, conv in zip(reversed(maps), extract, strict=True):
                total = total + x
                fused.append(conv(total))
            streams = [grow(torch, up(x), 4) for up, x in zip(ups, fused, strict=True)]
            auxiliary = [
                head["conv_seg"](x) for head, x in zip(net.auxiliary_head, fused, strict=True)
            ]
            # Ours are in the order of the taps.
            outputs = [classify(torch.cat(streams, dim=1)), *reversed(auxiliary)]
            return [bilinear(torch, x, images.shape[2:]) for x in outputs]

    else:
        net.backbone = mmseg_vit(torch, class_token=True)
        kernel = 3 if isinstance(model, SETRPUP) else 1

        def up_head(depth, scale):
            head = nn.Module()
            head.norm = nn.LayerNorm(WIDTH, eps=1e-6)
            head.up_convs = nn.ModuleList(
                nn.Sequential(
                    module(CHANNELS if i else WIDTH, CHANNELS, kernel),
                    nn.Upsample(scale_factor=scale, mode="bilinear", align_corners=False),
                )
                for i in range(depth)
            )
            head.conv_seg = nn.Conv2d(CHANNELS, CLASSES, 1)

            def forward(x):
                return head.conv_seg(nn.Sequential(*head.up_convs)(over_channels(head.norm, x)))

            head.forward = forward
            return head

        net.decode_head = up_head(4, 2) if kernel == 3 else up_head(1, 4)
        depth = len(model.auxiliary_scales)
        net.auxiliary_head = nn.ModuleList(up_head(depth, 4) for _ in model.auxiliary_taps)

        def forward(images):
            maps = net.backbone(images)
            auxiliary = [
                head(maps[tap])
                for head, tap in zip(net.auxiliary_head, model.auxiliary_taps, strict=True)
            ]
            outputs = net.decode_head(maps[-1]), *auxiliary
            return [bilinear(torch, x, images.shape[2:]) for x in outputs]

    net.forward = forward
    return net


def randomise(torch, net):
    """Every tensor away from its start: norms near one, kernels that keep the size."""
    rng = np.random.default_rng(0)
    for name, tensor in net.state_dict().items():
        if not tensor.is_floating_point():
            continue
        shape = tuple(tensor.shape)
        if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
            drawn = rng.uniform(0.5, 1.5, shape)
        else:
            fan_in = np.prod(shape[1:]) if tensor.ndim > 1 else 10
            drawn = rng.normal(size=shape) * (2 / fan_in) ** 0.5
        tensor.copy_(torch.tensor(drawn, dtype=torch.float32))
    return net.eval()


def tensors_of(net):
    return {name: tensor.numpy() for name, tensor in net.state_dict().items()}


def initial(model):
    images = jax.ShapeDtypeStruct((1, 2 * PATCH, 3 * PATCH, 3), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    return jax.tree.map(lambda leaf: np.full(leaf.shape, np.nan, leaf.dtype), shapes)


def normal(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


CASES = [
    pytest.param(model, net, layout, id=f"{layout.__name__}-{name}")
    for models, net, layout in (
        (AUTHORS, authors_net, authors),
        (MMSEGMENTATION, mmseg_net, mmsegmentation),
    )
    for name, model in models.items()
]


@pytest.mark.parametrize("model, build, layout", CASES)
def test_equals_pytorch(torch, model, build, layout):
    net = randomise(torch, build(torch, model))
    expected = LEFT_OVER[layout]
    variables = fill(initial(model), tensors_of(net), layout(model), expected=expected)
    apply = jit(model.apply)
    for height, width in ((2 * PATCH, 3 * PATCH), (3 * PATCH, 3 * PATCH)):
        images = normal(2, height, width, 3)
        with torch.no_grad():
            want = net(torch.tensor(images).permute(0, 3, 1, 2))
        got = jax.tree.leaves(apply(variables, images))
        assert len(got) == len(want)
        for ours, theirs in zip(got, want, strict=True):
            theirs = theirs.permute(0, 2, 3, 1).numpy()
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.ptp(theirs))


def test_gradients_in_training_are_pytorchs(torch):
    """Of all heads together, by batch statistics, brought to our names by the same table."""
    model = AUTHORS["mla"]
    net = randomise(torch, authors_net(torch, model)).train()
    start, table = initial(model), authors(model)
    variables = fill(start, tensors_of(net), table, expected=LEFT_OVER[authors])
    images = normal(2, 2 * PATCH, 3 * PATCH, 3)

    @jit
    def ours(params, images):
        def scalar(params, images):
            variables_ = {**variables, "params": params}
            output, _ = model.apply(variables_, images, train=True, mutable=["batch_stats"])
            return sum((x**2).mean() for x in jax.tree.leaves(output))

        return jax.grad(scalar, (0, 1))(params, images)

    pictures = torch.tensor(images, requires_grad=True)
    sum((x**2).mean() for x in net(pictures.permute(0, 3, 1, 2))).backward()
    theirs = tensors_of(net)
    for key, leaf in net.named_parameters():
        theirs[key] = np.zeros(leaf.shape) if leaf.grad is None else leaf.grad.numpy()
    gradients, gradient = ours(variables["params"], images)

    def assert_close(got, want):
        # The floor: before a 1×1 convolution and batch norm a layer norm's bias has gradient 0.
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * max(np.abs(want).max(), 0.01))

    assert_close(gradient, pictures.grad.numpy())
    wanted = fill(start, theirs, table, expected=LEFT_OVER[authors])["params"]
    for i in range(4):  # theirs have no bias there
        wanted[f"auxiliary_{i}"]["bias"] = gradients[f"auxiliary_{i}"]["bias"]
    jax.tree.map(assert_close, gradients, wanted)


def test_timm_fills_the_encoder_and_its_positions_move_to_another_grid(torch):
    model = AUTHORS["naive"]
    backbone = timm_vit(torch, class_token=True)
    backbone.norm, backbone.head = torch.nn.LayerNorm(WIDTH), torch.nn.Linear(WIDTH, 5)
    variables = initial(model.encoder)
    randomise(torch, backbone)
    expected = ("norm.*", "head.*")
    variables = fill(variables, tensors_of(backbone), timm(model.encoder), expected=expected)
    apply = jit(type(model.encoder).apply, static_argnums=0)
    for rows, columns in ((3, 3), (1, 4)):
        images = normal(1, rows * PATCH, columns * PATCH, 3)
        maps = apply(model.encoder, variables, images)
        with torch.no_grad():
            want = backbone(torch.tensor(images).permute(0, 3, 1, 2))[-1].permute(0, 2, 3, 1)
        np.testing.assert_allclose(maps[-1], want, rtol=0, atol=1e-4 * np.ptp(want.numpy()))

    # At the pictures' own grid nothing is resized, and the maps are the same.
    moved = resize_positions(variables["params"]["positions"], (1, 4))
    variables["params"]["positions"] = moved
    again = apply(model.encoder.clone(grid=(1, 4)), variables, images)
    np.testing.assert_allclose(again[-1], maps[-1], rtol=0, atol=1e-5 * np.ptp(want.numpy()))


def test_mmsegmentations_patches_without_a_bias_are_expected_by_name(torch):
    model = MMSEGMENTATION["naive"]
    tensors = tensors_of(randomise(torch, mmseg_net(torch, model)))
    del tensors["backbone.patch_embed.projection.bias"]
    with pytest.raises(SegjaxError, match="missing: params/vit/patch/bias"):
        fill(initial(model), tensors, mmsegmentation(model))
    bias = "params/vit/patch/bias"
    fill(initial(model), tensors, mmsegmentation(model), expected=(bias,))
