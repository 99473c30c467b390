"""Stitched logits are the whole picture's; windows of a network that sees everything are not."""

from functools import cache, partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segjax.errors import SegjaxError
from segjax.inference import tiles
from segjax.models import FCN, FCNAlexNet, FCNGoogLeNet, Geometry, UNet, UNetPlusPlus

CLASSES = 2
SMALL_FCN = partial(FCN, CLASSES, widths=(2, 2, 2, 2, 2), classifier_width=2)
NETWORKS = {
    "U-Net": UNet(CLASSES, widths=(2, 3, 4)),
    "U-Net of valid convolutions": UNet(CLASSES, widths=(2, 2, 3, 3), padding="valid", norm="none"),
    "U-Net of full convolutions": UNet(CLASSES, widths=(2, 3, 4), padding="full", up="bilinear"),
    "U-Net++": UNetPlusPlus(CLASSES, widths=(2, 3, 4)),
    "FCN-8s": SMALL_FCN(),
    "FCN-16s, same": SMALL_FCN(stride=16, padding="same"),
}
each_network = pytest.mark.parametrize("name", NETWORKS)


def draw_from(network, **fields):
    """Networks, each field one of those named."""
    return st.builds(
        partial(network, CLASSES), **{k: st.sampled_from(v) for k, v in fields.items()}
    )


LEVELS = [(2, 3), (2, 3, 2), (2, 2, 3, 3)]
UPS = ["upconv", "transposed", "bilinear", "nearest"]
draw_u_net = partial(draw_from, UNet, widths=LEVELS, up=[*UPS, "released"])
draw_fcn = partial(
    draw_from,
    FCN,
    widths=[(2, 2, 2, 2, 2)],
    stride=[32, 16, 8],
    classifier_width=[2, None],
    upsampling=["fixed", "learned", "bilinear", "nearest"],
    fusion=["sum", "concat"],
)
U_NETS = {
    "U-Net": draw_u_net(),
    "U-Net of valid convolutions": draw_u_net(padding=["valid"], norm=["none"]),
    "U-Net of full convolutions": draw_u_net(padding=["full"], norm=["none"]),
    "U-Net++": draw_from(UNetPlusPlus, widths=LEVELS, up=UPS),
}


@cache
def variables(model, *, signed):
    """Random all through, about as large behind a layer as before it.

    Where nothing is negative no ReLU shuts, and what lies far away counts.
    """
    images = jnp.zeros((1, *[model.geometry.minimum] * 2, 1))
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        spread = np.sqrt(2 / np.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 0.3
        values = (spread * rng.normal(size=leaf.shape)).astype(np.float32)
        return values if signed and path[-1].key not in ("scale", "var") else np.abs(values)

    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    return jax.tree_util.tree_map_with_path(draw, shapes)


@partial(jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0})
def logits(model, variables, images):
    return model.apply(variables, images).logits


def forward(model, *, signed=False):
    return partial(logits, model, variables(model, signed=signed))


def whole(network, forward, images):
    """The logits of the mirrored picture, cropped."""
    geometry = network.geometry
    margin, ahead = max(geometry.margin, 0), max(-geometry.margin, 0)
    _, height, width, _ = images.shape
    pads = [(margin, geometry.fit(side) - side - margin) for side in (height, width)]
    padded = np.pad(images, ((0, 0), *pads, (0, 0)), mode="reflect")
    return np.asarray(forward(padded))[:, ahead : ahead + height, ahead : ahead + width]


def pictures(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def smallest_tile(model, side):
    """The least tile that `plan` takes for a side, as its error names it."""
    with pytest.raises(SegjaxError, match=r"Take \d+ or more") as error:
        tiles.plan(model, (side, side), 1)
    return int(str(error.value).split("Take ")[1].split()[0])


def assert_stitched_is_whole(model, size, tile, *, signed, batch_size):
    images, compute = pictures(1, *size, 1), forward(model, signed=signed)
    plan = tiles.plan(model, size, tile)
    assert plan.exact and "those of the whole picture" in str(plan)
    assert len(plan.rows.starts) >= 3  # one is cut off on both sides
    got = tiles.stitch(compute, images, plan, batch_size=batch_size)
    want = whole(model, compute, images)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.ptp(want))


def check_any(data, family):
    """Networks, weights, sizes, tiles and batches; at least three tiles along one axis."""
    model = data.draw(family)
    stride, reach = model.geometry.stride, sum(model.geometry.context)
    rows = reach + data.draw(st.integers(6 * stride, 8 * stride))
    columns = data.draw(st.integers(1, 2 * stride) | st.just(reach + 4 * stride + 1))
    tile = smallest_tile(model, rows) + data.draw(st.sampled_from([0, stride // 2, stride]))
    if columns > tile:
        tile = max(tile, smallest_tile(model, columns))
    signed, batch_size = data.draw(st.booleans()), data.draw(st.sampled_from([1, 3]))
    assert_stitched_is_whole(model, (rows, columns), tile, signed=signed, batch_size=batch_size)


@pytest.mark.parametrize("family", U_NETS.values(), ids=U_NETS)
@settings(max_examples=7, deadline=None, derandomize=True)
@given(data=st.data())
def test_stitched_is_whole(family, data):
    check_any(data, family)


@pytest.mark.parametrize("padding", ["authors", "same"])
@settings(max_examples=4, deadline=None, derandomize=True)
@given(data=st.data())
def test_stitched_is_whole_of_fcn(padding, data):
    check_any(data, draw_fcn(padding=[padding]))


@pytest.mark.parametrize(
    "model, rows",
    [
        (FCNAlexNet(CLASSES, widths=(2,) * 5, classifier_width=2), 560),
        (FCNGoogLeNet(CLASSES, stem=(2, 2, 2), widths=((2,) * 6,) * 9), 930),
        (UNet(CLASSES, widths=(2,) * 5, padding="valid", norm="none"), 300),
    ],
    ids=["AlexNet", "GoogLeNet", "U-Net"],
)
@pytest.mark.parametrize("signed", [False, True])
def test_stitched_is_whole_of_deep_networks(model, rows, signed):
    tile = smallest_tile(model, rows)
    assert_stitched_is_whole(model, (rows, 33), tile, signed=signed, batch_size=2)


@pytest.mark.parametrize(
    "name, tile, wrong",
    [
        ("U-Net", 56, {"context": (14, 14)}),
        ("U-Net of valid convolutions", 108, {"stride": 1, "context": (44, 44)}),
    ],
)
def test_a_smaller_context_or_an_unaligned_tile_is_not_exact(name, tile, wrong):
    geometry, images = NETWORKS[name].geometry, pictures(1, 130, 130, 1)
    compute = forward(NETWORKS[name])
    want = whole(NETWORKS[name], compute, images)

    def error(geometry):
        plan = tiles.plan(SimpleNamespace(geometry=geometry), (130, 130), tile)
        got = tiles.stitch(compute, images, plan, batch_size=4)
        return np.abs(got - want).max() / np.ptp(want)

    assert error(geometry) < 1e-5
    assert error(geometry._replace(**wrong)) > 1e-3


def test_u_nets_own_tiles_are_corrected_to_multiples_of_the_stride():
    """572 -> 388 pixels, which U-Net's authors lay side by side; exact are 384."""
    network = UNet(2, padding="valid", norm="none")
    plan = tiles.plan(network, (1024, 388), 572)
    assert plan.rows.tile == 572 and plan.rows.starts == (0, 384, 640)
    assert plan.rows.kept == ((0, 384), (384, 768), (768, 1024))
    assert plan.columns.starts == (0,) and plan.columns.pad == (92, 92)
    assert str(plan) == (
        "3 tiles of 572×572 pixels, moved by 384 and -: the logits are those of the whole picture. "
        "Of the 388×388 pixels that a tile gives 384×388 are used, those that depend on nothing "
        "beyond it, in whole strides: tiles lie at multiples of 16"
    )


def test_a_plan_that_computes_most_of_it_again_says_so():
    said = str(tiles.plan(FCN(2), (1024, 2048), 512))
    assert said.startswith("225 tiles of 512×512 pixels") and " gives 64×64 are used" in said
    assert said.endswith(". Each pixel is computed 28 times: a larger tile would cost less")
    assert "times" not in str(tiles.plan(UNet(2), (1024, 2048), 512))
    one = str(tiles.plan(UNet(2), (512, 300), 512))
    assert one == "1 tile of 512×304 pixels: the logits are those of the whole picture"


@pytest.mark.parametrize("tile, side", [(512, 508), (571, 556), (572, 572), (573, 572)])
def test_the_next_smaller_good_side_is_taken(tile, side):
    plan = tiles.plan(UNet(2, padding="valid", norm="none"), (2000, 3000), tile)
    assert plan.rows.tile == plan.columns.tile == side


@each_network
@pytest.mark.parametrize("size", [(700, 900), (1000, 513)])
def test_every_pixel_is_kept_once_and_tiles_are_aligned(name, size):
    model = NETWORKS[name]
    plan = tiles.plan(model, size, 512)
    for axis, side in ((plan.rows, size[0]), (plan.columns, size[1])):
        assert [row for a, z in axis.kept for row in range(a, z)] == list(range(side))
        assert all(start % model.geometry.stride == 0 for start in axis.starts)
        assert axis.starts[-1] + axis.tile <= side + sum(axis.pad)


@each_network
def test_a_picture_no_larger_than_the_tile_is_one(name):
    plan = tiles.plan(NETWORKS[name], (100, 60), 512)
    assert (plan.rows.starts, plan.columns.starts) == ((0,), (0,))


def test_too_small_a_tile_is_refused_with_one_that_serves():
    network = UNet(2)
    with pytest.raises(SegjaxError, match=r"^A tile of 192 pixels is too small: .*94.* Take 208 "):
        tiles.plan(network, (1024, 1024), 192)
    tiles.plan(network, (1024, 1024), 208)


SEES_ALL = SimpleNamespace(geometry=Geometry(16, 16, 16, None, None))


def test_windows_of_a_network_that_sees_everything():
    """SETR's 768-pixel windows on Cityscapes move by 512."""
    plan = tiles.plan(SEES_ALL, (1024, 2048), 768)
    assert plan.rows.starts == (0, 256)
    assert plan.columns.starts == (0, 512, 1024, 1280)
    assert not plan.exact and "not what it would give" in str(plan)
    with pytest.raises(SegjaxError, match="too small for the network: take 16 or more"):
        tiles.plan(SEES_ALL, (100, 100), 15)


@pytest.mark.parametrize("gaussian", [False, True])
def test_windows_are_averaged_by_weight(gaussian):
    """Against a slow sum over windows; each window's logits are its number."""
    plan = tiles.plan(SEES_ALL, (70, 48), 32)
    assert plan.rows.pad == (0, 10)
    numbers = iter(range(100))

    def count(batch):
        given = np.array([next(numbers) for _ in batch], np.float32)
        return np.broadcast_to(given[:, None, None, None], (*batch.shape[:3], 1))

    got = tiles.stitch(count, pictures(1, 70, 48, 3), plan, batch_size=1, gaussian=gaussian)
    total, weight = np.zeros((2, 80, 48))
    line = np.exp(-0.5 * ((np.arange(32) - 15.5) / 4) ** 2) if gaussian else np.ones(32)
    places = [(r, c) for r in plan.rows.starts for c in plan.columns.starts]
    for number, (r, c) in enumerate(places):
        total[r : r + 32, c : c + 32] += number * np.outer(line, line)
        weight[r : r + 32, c : c + 32] += np.outer(line, line)
    np.testing.assert_allclose(got[0, :, :, 0], (total / weight)[:70], rtol=1e-5)


def test_one_shape_and_the_right_rows_for_any_number_of_tiles():
    """A last short batch is filled up; pictures of a batch do not mix."""
    network = UNet(CLASSES, widths=(2, 3))
    plan = tiles.plan(network, (70, 61), 32)
    seen = set()

    def identity(batch):
        seen.add(batch.shape)
        return batch

    images = pictures(3, 70, 61, 2)
    np.testing.assert_array_equal(tiles.stitch(identity, images, plan, batch_size=5), images)
    assert seen == {(5, 32, 32, 2)}
    with pytest.raises(SegjaxError, match="The plan is for pictures of 70×61, got 70×62"):
        tiles.stitch(identity, pictures(1, 70, 62, 2), plan, batch_size=1)
