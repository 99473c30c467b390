"""Fifty steps of each paper's recipe are PyTorch's, on the same batches, in float64.

The recipe gives augmentation, loss, optimiser and rates; the networks are those of the benchmarks,
small, and without dropout, whose draws no two libraries share.
"""

import itertools
import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from recipes import recipe_of

from segjax.commands.step import make_prepare
from segjax.data import Shapes, train_batches
from segjax.data.augment import Example
from segjax.data.weight_map import Weighted
from segjax.models import UNet
from segjax.training import sharding
from segjax.training.train import State, make_train_step
from segjax.weights import fill, pytorch_fcn, setr, unet, unetplusplus
from segjax.weights.table import torch_conv

torch = pytest.importorskip("torch")
torch_networks = import_module("torch_networks")  # which imports it
F = torch.nn.functional

STEPS, CLASSES, SIDE = 50, 7, 32
FIELDS = {"data": Path("nowhere"), "steps": STEPS, "canvas": (SIDE, SIDE), "crop": (SIDE, SIDE)}


class Twins(NamedTuple):
    """A recipe with its network and table, and the same training in PyTorch."""

    recipe: Any
    ours: Any
    theirs: Any
    table: Callable[[Any], Any]
    loss: Callable[..., Any]  # logits of all heads, labels, weights -> scalar
    optimiser: Any
    rates: Callable[[int], list[float]] | None = None  # step -> rate of each group
    classes: int = CLASSES


def of_pixels(logits, labels, weights=1.0, *, mean=True):
    """Cross-entropy over the pixels that are not ignored."""
    total = (weights * F.cross_entropy(logits, labels, ignore_index=255, reduction="none")).sum()
    return total / (labels != 255).sum() if mean else total


def groups(net, of_name):
    """The parameters in groups of one value: options by name -> PyTorch's groups."""
    found: dict[Any, list[Any]] = {}
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            found.setdefault(of_name(name), []).append(parameter)
    return found.items()


def fcn():
    """The heavy solver: a sum over pixels, biases twice as fast and undecayed, fixed upsampling."""
    rate, widths = 1e-6, (1, 2, 3, 4, 5)
    recipe = recipe_of("papers/fcn_voc")(
        **FIELDS, learning_rate=rate, widths=widths, classifier_width=7, at_once=False
    )
    net = torch_networks.FCN8s(CLASSES, widths, 7, dropout=0.0)
    optimiser = torch.optim.SGD(
        [
            {"params": p, "lr": rate * (1 + bias), "weight_decay": 0 if bias else 5e-4}
            for bias, p in groups(net, lambda name: name.endswith("bias"))
        ],
        momentum=0.99,
    )
    model = recipe.model().clone(num_classes=CLASSES, dropout=0.0)

    def table(tensors):
        table = pytorch_fcn.fcn(model, tensors)
        # Theirs takes BGR pictures elsewhere; here both take the same.
        return table._replace(entries={**table.entries, **torch_conv("vgg16/conv1_1", "conv1_1")})

    def loss(heads, labels, _):
        return of_pixels(heads[0], labels, mean=False)

    return Twins(recipe, model, net, table, loss, optimiser)


def u_net():
    """Momentum 0.99 and the weight map; with batch norm, so that its statistics are compared."""
    recipe = recipe_of("papers/unet_isbi")(**FIELDS, batch_size=4, learning_rate=1e-4)
    net, model = torch_networks.UNet(CLASSES, (2, 3, 4)), UNet(CLASSES, (2, 3, 4))
    optimiser = torch.optim.SGD(net.parameters(), lr=1.0, momentum=0.99)

    def loss(heads, labels, weights):
        return of_pixels(heads[0], labels, weights)

    def poly(step):
        return [1e-4 * (1 - step / STEPS) ** 0.9]

    return Twins(recipe, model, net, lambda _: unet.milesial(model), loss, optimiser, poly)


def u_net_plus_plus():
    """½ BCE - Dice for each head, by Adam; convolutions decay as in Keras, by their gradient."""
    recipe = recipe_of("papers/unetplusplus_nuclei")(
        **FIELDS, batch_size=2, widths=(2, 3, 4), dropout=0.0
    )
    model = recipe.model().clone(norm="batch", up="bilinear_corners")
    net = torch_networks.NestedUNet(1, model.widths, deep_supervision=True)
    optimiser = torch.optim.Adam(
        {"params": p, "lr": 3e-4, "weight_decay": 2e-4 if conv else 0}
        for conv, p in groups(net, lambda name: name.endswith("weight") and "bn" not in name)
    )

    def loss(heads, labels, _):
        def of_head(logits):
            score, truth = logits[:, 0], labels.double()
            share = torch.sigmoid(score)
            dice = (2 * (share * truth).sum() + 1) / (share.sum() + truth.sum() + 1)
            return 0.5 * F.binary_cross_entropy_with_logits(score, truth) + 1 - dice

        return sum(map(of_head, heads))

    def table(_):
        return unetplusplus.nested_unet(model)

    return Twins(recipe, model, net, table, loss, optimiser, classes=1)


def setr_pup():
    """Heads ten times as fast, all rates down to 1e-4, auxiliary losses of 0.4."""
    small = {"depth": 2, "width": 8, "heads": 2}
    recipe = recipe_of("papers/setr_cityscapes")(
        **FIELDS, **small, batch_size=4, decoder_channels=4, taps=(0, 1)
    )
    net = torch_networks.SETRPUP(19, **small, grid=(2, 2), channels=4, taps=(0, 1))
    model = recipe.model()
    each = groups(net, lambda name: 10 if "head" in name else 1)
    rates = [0.01 * factor for factor, _ in each]
    optimiser = torch.optim.SGD([{"params": p} for _, p in each], lr=1.0, momentum=0.9)

    def loss(heads, labels, _):
        main, *auxiliary = (of_pixels(logits, labels) for logits in heads)
        return main + 0.4 * sum(auxiliary)

    def poly(step):
        return [(rate - 1e-4) * (1 - step / STEPS) ** 0.9 + 1e-4 for rate in rates]

    return Twins(recipe, model, net, lambda _: setr.authors(model), loss, optimiser, poly, 19)


def batches_of(twins):
    """Fifty batches of the pipeline, augmented by the recipe: pictures and their truth, float64."""
    source = Weighted(Shapes(12, size=(SIDE, SIDE)))
    read = train_batches(source, batch_size=twins.recipe.batch_size, canvas=(SIDE, SIDE), seed=0)
    prepare = jax.jit(make_prepare(twins.recipe))
    for batch in itertools.islice(read, STEPS):
        images, truth = prepare(jax.random.key(0), batch)
        label, weight = np.asarray(truth.label), np.asarray(truth.weight, np.float64)
        if twins.classes == 1:
            label = (label > 0).astype(np.uint8)
        if not isinstance(twins.ours, UNet):
            weight = None
        yield {"image": np.asarray(images, np.float64), "label": label, "weight": weight}


def train_theirs(twins, batches):
    """The losses of PyTorch's steps."""
    losses = []
    for step, batch in enumerate(batches):
        if twins.rates:
            for group, rate in zip(twins.optimiser.param_groups, twins.rates(step), strict=True):
                group["lr"] = rate
        images = torch.tensor(batch["image"]).permute(0, 3, 1, 2)
        weight = None if batch["weight"] is None else torch.tensor(batch["weight"])
        twins.optimiser.zero_grad()
        loss = twins.loss(twins.theirs(images), torch.tensor(batch["label"]).long(), weight)
        loss.backward()
        twins.optimiser.step()
        losses.append(loss.item())
    return losses


def train_ours(twins, variables, batches, mesh):
    """The losses of our steps, and the variables after them."""
    optimizer = twins.recipe.optimizer()
    step = make_train_step(
        twins.ours,
        optimizer,
        twins.recipe.loss,
        schedule=twins.recipe.schedule(),
        prepare=lambda key, batch: (batch["image"], Example(*map(batch.get, Example._fields))),
        key=jax.random.key(0),
    )
    params, stats = variables["params"], variables.get("batch_stats", {})
    state = State(np.int32(0), params, stats, optimizer.init(params))
    state = jax.device_put(state, sharding.replicated(mesh))
    losses = []
    for batch in batches:
        batch = {name: value for name, value in batch.items() if value is not None}
        state, scalars = step(state, sharding.put(batch, mesh))
        losses.append(float(scalars["loss"]))
    return losses, jax.device_get(state.variables)


def variables_of(twins):
    """PyTorch's parameters and statistics as ours, float64."""
    tensors = {name: tensor.numpy().copy() for name, tensor in twins.theirs.state_dict().items()}
    table = twins.table(tensors)
    # The layouts take biases before a batch norm off its mean; these networks have none.
    names = {name for entry in table.entries.values() for name in entry.names}
    tensors |= {n: np.float64(0) for n in names - tensors.keys() if n.endswith(".bias")}
    images = jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), np.float64)
    shapes = jax.eval_shape(twins.ours.init, jax.random.key(0), images)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape), shapes)
    return fill(zeros, tensors, table)


@pytest.mark.parametrize(
    "make, devices",
    [(fcn, 1), (u_net, 4), (u_net_plus_plus, 1), (setr_pup, 4)],
    ids=["FCN", "U-Net on 4 devices", "U-Net++", "SETR on 4 devices"],
)
def test_fifty_steps(make, devices):
    torch.manual_seed(0)
    torch.set_num_threads(1)  # of such small networks the others wait only, at full load
    torch.set_default_dtype(torch.float64)
    try:
        twins = make()
        twins = twins._replace(ours=twins.ours.clone(dtype="float64"))
    finally:
        torch.set_default_dtype(torch.float32)
    batches = list(batches_of(twins))
    with jax.enable_x64(True):
        begun = variables_of(twins)
        mesh = sharding.make_mesh(jax.devices()[:devices])
        losses, variables = train_ours(twins, begun, batches, mesh)
        want = train_theirs(twins, batches)
        np.testing.assert_allclose(losses, want, rtol=1e-9)
        assert losses[-1] != pytest.approx(losses[0], rel=1e-3)  # it has learned something
        ended = variables_of(twins)
        # PyTorch's running variance is that of a sample: n / (n - 1) of the batch's own.
        leaves = jax.tree_util.tree_leaves_with_path
        for (path, got), (_, want) in zip(leaves(variables), leaves(ended), strict=True):
            if path[-1].key == "var":
                n = pixels_of(path, twins)
                kept = 0.9**STEPS
                want = kept + (want - kept) * (n - 1) / n
            tolerance = 1e-9 * np.abs(want).max()
            np.testing.assert_allclose(got, want, rtol=0, atol=tolerance, err_msg=str(path))


def pixels_of(path, twins):
    """Pixels of a batch over which a batch norm took its variance."""
    names = "/".join(str(key.key) for key in path)
    if isinstance(twins.ours, UNet):
        side = SIDE >> int(re.search(r"(?:down|up)_(\d)", names)[1])
    elif "x_" in names:
        side = SIDE >> int(re.search(r"x_(\d)_", names)[1])
    else:  # SETR's tokens, enlarged by two after each convolution of the head
        side = 2 << int(re.search(r"conv_(\d)", names)[1])
    return twins.recipe.batch_size * side**2
