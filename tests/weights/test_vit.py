"""Layouts of Vision Transformers: equality with references that have the original names.

Those of timm and mmsegmentation are tested within SETR.
"""

import math
from functools import partial

import jax
import numpy as np
import pytest

from segjax.errors import SegjaxError
from segjax.models import SETRNaive, ViT
from segjax.weights.table import fill
from segjax.weights.vit import big_vision, hugging_face, timm, vision_transformer

DEPTH, WIDTH, HEADS, PATCH, GRID = 3, 12, 2, 4, (3, 3)
Small = partial(
    ViT, (0, 2), depth=DEPTH, width=WIDTH, heads=HEADS, patch=PATCH, grid=GRID, mlp_ratio=2
)
# What the files have behind the part that is ours.
FLAX_REST = ("*Transformer/encoder_norm/*", "*head/*")
HUGGING_FACE_REST = ("vit.layernorm.*", "classifier.*")


def normal(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def drawn(shapes):
    """Tensors for names and shapes: norms near one, kernels that keep the size."""
    rng = np.random.default_rng(0)

    def draw(name, shape):
        if name.endswith(("scale", "norm_before.weight", "norm_after.weight")):
            return rng.uniform(0.5, 1.5, shape)
        return rng.normal(size=shape) * (0.3 if name.endswith("bias") else WIDTH**-0.5)

    return {name: draw(name, shape).astype(np.float32) for name, shape in shapes.items()}


def initial(model, sides=(12, 12)):
    return jax.jit(model.init)(jax.random.key(0), np.zeros((1, *sides, 3), np.float32))


def assert_equal(maps, references):
    assert len(maps) == len(references)
    for got, want in zip(maps, references, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.ptp(want))


def attend(q, k, v):
    """Softmax attention, each (B, T, heads, d)."""
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.einsum("bhqk,bkhd->bqhd", scores / scores.sum(axis=-1, keepdims=True), v)


def lines(size, new):
    """The matrix (new, size) of linear interpolation, corners not aligned."""
    places = np.clip((np.arange(new) + 0.5) * size / new - 0.5, 0, size - 1)
    return np.maximum(1 - np.abs(places[:, None] - np.arange(size)), 0)


def vit_of(embed, block, images, positions, token):
    """The maps of blocks 0 and 2 by functions of the layout: `embed`, `block` (x, number)."""
    b, height, width, _ = images.shape
    h, w = height // PATCH, width // PATCH
    positions = positions.reshape(*GRID, WIDTH)
    positions = np.einsum("hi,wj,ijc->hwc", lines(GRID[0], h), lines(GRID[1], w), positions)
    positions = positions.reshape(h * w, WIDTH)
    x = embed(images.reshape(b, h, PATCH, w, PATCH, 3).swapaxes(2, 3)).reshape(b, h * w, WIDTH)
    x = np.concatenate([np.broadcast_to(token, (b, 1, WIDTH)), x + positions], axis=1)
    maps = []
    for i in range(DEPTH):
        x = block(x, i)
        maps.append(x[:, 1:].reshape(b, h, w, WIDTH))
    return maps[0], maps[2]


def norm(x, scale, bias, epsilon):
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = np.mean(centred**2, axis=-1, keepdims=True)
    return centred / np.sqrt(variance + epsilon) * scale + bias


def gelu(x):
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def flax_shapes(attention, second, mlp):
    """Names and shapes of one block and of the rest."""
    attend = f"MultiHeadDotProductAttention_{attention}"
    side, hidden = WIDTH // HEADS, 2 * WIDTH
    block = {
        f"{attend}/{part}/{leaf}": shape
        for part in ("query", "key", "value")
        for leaf, shape in (("kernel", (WIDTH, HEADS, side)), ("bias", (HEADS, side)))
    } | {
        f"{attend}/out/kernel": (HEADS, side, WIDTH),
        f"{attend}/out/bias": (WIDTH,),
        f"MlpBlock_{mlp}/Dense_0/kernel": (WIDTH, hidden),
        f"MlpBlock_{mlp}/Dense_0/bias": (hidden,),
        f"MlpBlock_{mlp}/Dense_1/kernel": (hidden, WIDTH),
        f"MlpBlock_{mlp}/Dense_1/bias": (WIDTH,),
    }
    for name in ("LayerNorm_0", f"LayerNorm_{second}"):
        block |= {f"{name}/scale": (WIDTH,), f"{name}/bias": (WIDTH,)}
    rest = {
        "embedding/kernel": (PATCH, PATCH, 3, WIDTH),
        "embedding/bias": (WIDTH,),
        "cls": (1, 1, WIDTH),
        "Transformer/encoder_norm/scale": (WIDTH,),
        "Transformer/encoder_norm/bias": (WIDTH,),
        "head/kernel": (WIDTH, 5),
        "head/bias": (5,),
    }
    return block, rest


def flax_vit(tensors, images, positions, token, *, attention, second, mlp):
    """The network of both `.npz` layouts, its blocks' tensors stacked under "block/".

    The originals approximate GELU by tanh, and are off by 5e-4 for that.
    """

    def embed(patches):
        return np.tensordot(patches, tensors["embedding/kernel"], 3) + tensors["embedding/bias"]

    def block(x, i):
        t = {
            name.removeprefix("block/"): tensor[i]
            for name, tensor in tensors.items()
            if name.startswith("block/")
        }
        a, m = f"MultiHeadDotProductAttention_{attention}", f"MlpBlock_{mlp}"
        y = norm(x, t["LayerNorm_0/scale"], t["LayerNorm_0/bias"], 1e-6)
        y = attend(
            *(
                np.einsum("btc,chd->bthd", y, t[f"{a}/{part}/kernel"]) + t[f"{a}/{part}/bias"]
                for part in ("query", "key", "value")
            )
        )
        x = x + np.einsum("bthd,hdc->btc", y, t[f"{a}/out/kernel"]) + t[f"{a}/out/bias"]
        y = norm(x, t[f"LayerNorm_{second}/scale"], t[f"LayerNorm_{second}/bias"], 1e-6)
        y = gelu(y @ t[f"{m}/Dense_0/kernel"] + t[f"{m}/Dense_0/bias"])
        return x + y @ t[f"{m}/Dense_1/kernel"] + t[f"{m}/Dense_1/bias"]

    return vit_of(embed, block, images, positions, token)


apply_small = jax.jit(Small().apply)


@pytest.mark.parametrize("layout", ["vision_transformer", "big_vision", "big_vision scan"])
def test_npz(layout):
    older = layout == "vision_transformer"
    numbers = (
        {"attention": 1, "second": 2, "mlp": 3}
        if older
        else {"attention": 0, "second": 1, "mlp": 0}
    )
    block, rest = flax_shapes(**numbers)
    shapes = rest | {f"block/{name}": (DEPTH, *shape) for name, shape in block.items()}
    file_positions = (1, 10, WIDTH) if older else (1, 9, WIDTH)
    tensors = drawn(shapes | {"positions": file_positions})
    positions, token = tensors["positions"][:, -9:], tensors["cls"]
    if older:
        token = token + tensors["positions"][:, :1]

    where = "Transformer/posembed_input/pos_embedding" if older else "pos_embedding"
    prefix = "" if older else "params/"
    file = {f"{prefix}{name}": tensors[name] for name in rest}
    file[prefix + where] = tensors["positions"]
    for name in block:
        stack = tensors[f"block/{name}"]
        if layout == "big_vision scan":
            file[f"{prefix}Transformer/encoderblock/{name}"] = stack
        else:
            for i in range(DEPTH):
                file[f"{prefix}Transformer/encoderblock_{i}/{name}"] = stack[i]

    model = Small()
    table = vision_transformer(model) if older else big_vision(model, scan="scan" in layout)
    variables = fill(initial(model), file, table, expected=FLAX_REST)
    for height, width in ((12, 12), (20, 8), (16, 16)):
        images = normal(2, height, width, 3)
        references = flax_vit(tensors, images, positions, token, **numbers)
        assert_equal(apply_small(variables, images), references)


@pytest.fixture
def hugging_face_vit():
    """A `ViTForImageClassification` of PyTorch's own modules, and its forward pass."""
    torch = pytest.importorskip("torch")
    nn = torch.nn

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            inner = nn.ModuleDict(
                {part: nn.Linear(WIDTH, WIDTH) for part in ("query", "key", "value")}
            )
            output = nn.ModuleDict({"dense": nn.Linear(WIDTH, WIDTH)})
            self.attention = nn.ModuleDict({"attention": inner, "output": output})
            self.intermediate = nn.ModuleDict({"dense": nn.Linear(WIDTH, 2 * WIDTH)})
            self.output = nn.ModuleDict({"dense": nn.Linear(2 * WIDTH, WIDTH)})
            self.layernorm_before = nn.LayerNorm(WIDTH, eps=1e-12)
            self.layernorm_after = nn.LayerNorm(WIDTH, eps=1e-12)

        def forward(self, x):
            y = self.layernorm_before(x)
            inner = self.attention["attention"]
            q, k, v = (
                inner[part](y).unflatten(-1, (HEADS, -1)).transpose(1, 2)
                for part in ("query", "key", "value")
            )
            y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            x = x + self.attention["output"]["dense"](y)
            hidden = self.intermediate["dense"](self.layernorm_after(x))
            return x + self.output["dense"](nn.functional.gelu(hidden))

    class Embeddings(nn.Module):
        def __init__(self):
            super().__init__()
            self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
            self.position_embeddings = nn.Parameter(torch.zeros(1, 10, WIDTH))
            self.patch_embeddings = nn.ModuleDict({"projection": nn.Conv2d(3, WIDTH, PATCH, PATCH)})

        def forward(self, images):
            x = self.patch_embeddings["projection"](images)
            size = x.shape[2:]
            grid = self.position_embeddings[:, 1:].unflatten(1, GRID).permute(0, 3, 1, 2)
            grid = nn.functional.interpolate(grid, size, mode="bilinear")
            token = self.cls_token + self.position_embeddings[:, :1]
            x = (x + grid).flatten(2).transpose(1, 2)
            return torch.cat([token.expand(len(x), -1, -1), x], dim=1), size

    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            layers = nn.ModuleList(Layer() for _ in range(DEPTH))
            self.vit = nn.ModuleDict(
                {
                    "embeddings": Embeddings(),
                    "encoder": nn.ModuleDict({"layer": layers}),
                    "layernorm": nn.LayerNorm(WIDTH, eps=1e-12),
                }
            )
            self.classifier = nn.Linear(WIDTH, 5)

        def forward(self, images):
            x, size = self.vit["embeddings"](images.permute(0, 3, 1, 2))
            maps = []
            for layer in self.vit["encoder"]["layer"]:
                x = layer(x)
                maps.append(x[:, 1:].unflatten(1, size))
            return maps[0], maps[2]

    net = Classifier()
    shapes = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    net.load_state_dict({name: torch.tensor(t) for name, t in drawn(shapes).items()})
    return net


def tensors_of(net):
    return {name: tensor.numpy() for name, tensor in net.state_dict().items()}


@pytest.mark.parametrize("height, width", [(12, 12), (4, 28)])
def test_hugging_face(hugging_face_vit, height, width):
    torch, model = pytest.importorskip("torch"), Small(epsilon=1e-12)
    images = normal(2, height, width, 3)
    tensors, table = tensors_of(hugging_face_vit), hugging_face(model)
    variables = fill(initial(model), tensors, table, expected=HUGGING_FACE_REST)
    with torch.no_grad():
        references = [reference.numpy() for reference in hugging_face_vit(torch.tensor(images))]
    assert_equal(jax.jit(model.apply)(variables, images), references)


def test_gradients_are_pytorchs(hugging_face_vit):
    """Of the pictures and of every parameter, brought to our names by the same table."""
    torch, model = pytest.importorskip("torch"), Small(epsilon=1e-12)
    images, table = normal(2, 8, 20, 3), hugging_face(model)
    start = initial(model)
    tensors = tensors_of(hugging_face_vit)
    variables = fill(start, tensors, table, expected=HUGGING_FACE_REST)
    noise = normal(2, 2, 5, WIDTH, seed=2), normal(2, 2, 5, WIDTH, seed=3)

    @jax.jit
    def ours(variables, images):
        return jax.vjp(model.apply, variables, images)[1](noise)

    pictures = torch.tensor(images, requires_grad=True)
    torch.autograd.backward(hugging_face_vit(pictures), [torch.tensor(n) for n in noise])
    theirs = {
        name: np.zeros_like(leaf.detach()) if leaf.grad is None else leaf.grad.numpy()
        for name, leaf in hugging_face_vit.named_parameters()
    }
    gradients, gradient = ours(variables, images)

    def assert_close(got, want):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.abs(want).max())
        assert np.abs(want).max() > 0

    assert_close(gradient, pictures.grad.numpy())
    wanted = fill(start, theirs, table, expected=HUGGING_FACE_REST)
    jax.tree.map(assert_close, gradients, wanted)


def test_the_encoder_of_a_setr_is_filled_and_the_heads_stay(hugging_face_vit):
    torch, net = pytest.importorskip("torch"), hugging_face_vit
    small = {"depth": DEPTH, "width": WIDTH, "heads": HEADS, "patch": PATCH, "grid": GRID}
    model = SETRNaive(3, **small, auxiliary_taps=(0,), channels=4, epsilon=1e-12)
    with torch.no_grad():  # tokens so small that 1e-6 would not do
        for tensor in net.vit["embeddings"].parameters():
            tensor *= 1e-4
        images = normal(2, 12, 8, 3)
        references = [reference.numpy() for reference in net(torch.tensor(images))]
    tensors = tensors_of(net)
    for name in [n for n in tensors if "layer." in n]:  # SETR's MLP has the ratio 4
        if "intermediate" in name:
            tensors[name] = np.concatenate([tensors[name]] * 2)
        elif "output.dense.weight" in name and "attention" not in name:
            tensors[name] = np.concatenate([tensors[name] / 2] * 2, axis=1)
    variables, table = initial(model), hugging_face(model.encoder, path="params/vit")
    heads = ("params/head/*", "params/auxiliary_*", "batch_stats/*")
    filled = fill(variables, tensors, table, expected=(*heads, *HUGGING_FACE_REST))
    assert np.array_equal(
        filled["params"]["head"]["logits"]["kernel"],
        variables["params"]["head"]["logits"]["kernel"],
    )

    @jax.jit
    def maps(variables, images):
        kept = model.apply(variables, images, capture_intermediates=lambda m, _: m.name == "vit")
        return kept[1]["intermediates"]["vit"]["__call__"][0]

    assert_equal(maps(filled, images), references)
    with pytest.raises(SegjaxError, match=r"(?s)missing: params/head/log.*left over: classifier"):
        fill(variables, tensors, table)


def test_a_file_of_another_square_grid_is_told_what_to_do():
    model = Small(grid=(2, 8))
    variables = {"params": {"positions": np.zeros((2, 8, WIDTH), np.float32)}}
    tensors = {"pos_embed": normal(1, 17, WIDTH)}
    text = r"other shape: params/positions \(2, 8, 12\): pos_embed \(1, 17, 12\), a 4×4 grid: .*"
    with pytest.raises(SegjaxError, match=text + r"grid=\(4, 4\)"):
        fill(variables, tensors, timm(model))
    tensors = {"pos_embed": normal(1, 16, WIDTH)}  # no square of the 15: none to propose
    with pytest.raises(SegjaxError, match=r"pos_embed \(1, 16, 12\)\n"):
        fill(variables, tensors, timm(model))


def test_without_a_class_token_the_files_is_left_over():
    block, rest = flax_shapes(attention=1, second=2, mlp=3)
    model = Small(class_token=False)
    shapes = rest | {"Transformer/posembed_input/pos_embedding": (1, 10, WIDTH)}
    for i in range(DEPTH):
        shapes |= {f"Transformer/encoderblock_{i}/{name}": shape for name, shape in block.items()}
    tensors, table = drawn(shapes), vision_transformer(model)
    with pytest.raises(SegjaxError, match=r"left over: cls \(1, 1, 12\)"):
        fill(initial(model), tensors, table)
    variables = fill(initial(model), tensors, table, expected=("cls", *FLAX_REST))
    want = tensors["Transformer/posembed_input/pos_embedding"][0, 1:].reshape(3, 3, WIDTH)
    np.testing.assert_array_equal(variables["params"]["positions"], want)
