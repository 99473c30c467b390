"""What every loss, score, source and augmentation promises, and that all of them are documented.

Members are found, not listed: a new one is under test as soon as it is written.
"""

import dataclasses
import functools
import importlib
import inspect
import pickle
import pkgutil
from functools import partial
from pathlib import Path
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import slow_losses
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from slow_losses import SHAPE, batch_of, masks

import segjax
import segjax.data
from segjax.data import augment, colour
from segjax.data.augment import Example
from segjax.data.folder import Folder
from segjax.errors import SegjaxError
from segjax.evaluation import metrics
from segjax.recipe import Loss
from segjax.training import losses, sharding


def own(module, kind):
    """The public functions or classes that a module itself defines."""
    return [
        value
        for name, value in inspect.getmembers(module)
        if kind(inspect.unwrap(value) if callable(value) else value)
        and getattr(value, "__module__", None) == module.__name__
        and not name.startswith("_")
    ]


def modules(package):
    """A package and all that is in it."""
    found = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    return [package, *(importlib.import_module(info.name) for info in found)]


def parameters(function):
    return list(inspect.signature(function).parameters.values())


def names(function):
    return [parameter.name for parameter in parameters(function)]


def each(name, values):
    assert values, f"nothing found to be {name}"
    return pytest.mark.parametrize(name, values, ids=lambda value: value.__name__)


# Losses: (logits, labels, *, ignore_label=255, …) -> scalar

LOSSES = [
    f
    for _, f in inspect.getmembers(losses, inspect.isfunction)
    if f.__module__.startswith(losses.__name__) and names(f)[0] == "logits"
]
each_loss = each("loss", LOSSES)
# Five classes, and the one channel of a sigmoid, whose labels are 0 and 1.
each_width = pytest.mark.parametrize("channels", [5, 1])


@functools.cache
def value_and_grad(loss):
    """(logits, labels, ignore_label=255) -> value and gradient; compiled once for all masks."""
    return jax.jit(jax.value_and_grad(lambda x, y, ignored=255: loss(x, y, ignore_label=ignored)))


@each_loss
def test_a_loss_takes_logits_and_labels_and_options_with_defaults(loss):
    logits, labels, *options = parameters(loss)
    assert (logits.name, labels.name) == ("logits", "labels")
    assert all(option.kind is option.KEYWORD_ONLY for option in options)
    assert all(option.default is not option.empty for option in options)
    assert inspect.signature(loss).parameters["ignore_label"].default == 255
    for shape in ("(B, H, W, N)", "(B, H, W)"):
        assert shape in loss.__doc__, f"the docstring does not say which argument is {shape}"


@each_loss
def test_a_loss_is_one_that_a_recipe_can_name(loss):
    assert loss.__name__ in get_args(Loss)


@each_width
@each_loss
def test_a_loss_is_its_slow_reference_on_every_kind_of_mask(loss, channels):
    reference = getattr(slow_losses, loss.__name__, None)
    assert reference, f"write {loss.__name__} once more in tests/slow_losses.py, in loops"
    logits, _ = batch_of(channels)
    for kind, labels in masks(channels).items():
        value, gradient = value_and_grad(loss)(logits, labels)
        expected = reference(logits, labels, 255)
        np.testing.assert_allclose(value, expected, rtol=2e-5, atol=1e-7, err_msg=kind)
        assert np.isfinite(gradient).all(), kind


@each_width
@each_loss
def test_a_loss_is_a_positive_float32_scalar_with_gradients(loss, channels):
    logits, labels = batch_of(channels)
    value, gradient = value_and_grad(loss)(logits, labels)
    assert (value.shape, value.dtype) == ((), jnp.float32)
    assert value > 0
    assert gradient.dtype == logits.dtype
    assert np.any(gradient)


@each_width
@each_loss
def test_a_loss_computes_narrow_logits_in_float32(loss, channels):
    logits, labels = batch_of(channels)
    narrow = jnp.asarray(logits, jnp.bfloat16)
    value, gradient = value_and_grad(loss)(narrow, labels)
    wide, wide_gradient = value_and_grad(loss)(narrow.astype(jnp.float32), labels)
    assert value.dtype == jnp.float32
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(value, wide, rtol=1e-6)
    np.testing.assert_array_equal(gradient, wide_gradient.astype(jnp.bfloat16))


@each_loss
def test_a_loss_is_compiled_what_it_is_eagerly(loss):
    batch = batch_of(5)
    np.testing.assert_allclose(value_and_grad(loss)(*batch)[0], loss(*batch), rtol=1e-5)


@each_width
@each_loss
def test_a_loss_on_eight_devices_is_that_on_one(loss, channels):
    """The first of which has nothing valid: a mean of their means would differ."""
    batch = batch_of(channels)
    value, gradient = value_and_grad(loss)(*batch)
    spread = sharding.put(batch, sharding.make_mesh(jax.devices()))
    assert len(spread[0].sharding.device_set) == 8
    got, got_gradient = value_and_grad(loss)(*spread)
    np.testing.assert_allclose(got, value, rtol=1e-6)
    np.testing.assert_allclose(got_gradient, gradient, rtol=1e-4, atol=1e-8)


@each_width
@each_loss
def test_a_gradient_is_the_finite_difference(loss, channels):
    logits, labels = batch_of(channels)
    _, gradient = value_and_grad(loss)(logits, labels)
    rng = np.random.default_rng(0)
    for _ in range(5):
        way = rng.normal(size=logits.shape).astype(np.float32)
        # Half of it along the gradient, for a difference that float32 tells from rounding; and
        # short, for OHEM jumps where a pixel becomes an easy one.
        way = 0.002 * (gradient / np.linalg.norm(gradient) + way / np.linalg.norm(way))
        ahead, behind = (value_and_grad(loss)(logits + sign * way, labels)[0] for sign in (1, -1))
        np.testing.assert_allclose((ahead - behind) / 2, np.vdot(gradient, way), rtol=0.02)


@each_width
@each_loss
def test_a_loss_of_nothing_valid_is_zero_with_zero_gradients(loss, channels):
    logits, labels = batch_of(channels)
    value, gradient = value_and_grad(loss)(logits, np.full_like(labels, 255))
    assert value == 0
    assert not np.any(gradient)


@each_width
@each_loss
@pytest.mark.parametrize("ignored", [255, 0])
def test_a_loss_does_not_see_ignored_pixels(loss, channels, ignored):
    logits, labels = batch_of(channels)
    labels = np.where(labels == 255, np.uint8(ignored), labels)
    value, gradient = value_and_grad(loss)(logits, labels, ignored)
    for bad in (1e4, np.nan, np.inf, -np.inf):
        other = logits.copy()
        other[labels == ignored, 0] = bad
        got, got_gradient = value_and_grad(loss)(other, labels, ignored)
        assert got == value
        np.testing.assert_array_equal(got_gradient, gradient)
    assert not np.any(gradient[labels == ignored])
    # Which takes them out: as if they were not there.
    expected = getattr(slow_losses, loss.__name__)(logits, labels, ignored)
    np.testing.assert_allclose(value, expected, rtol=2e-5)


@each_width
@each_loss
@pytest.mark.parametrize("wrong", [9, -1])
def test_a_loss_of_a_label_that_is_no_class_is_nan(loss, channels, wrong):
    logits, labels = batch_of(channels)
    logits, labels = logits.copy(), labels.astype(np.int32)
    labels[1, 0, 1] = wrong
    logits[1, 0, 1] = -9  # where it looks easy
    assert np.isnan(value_and_grad(loss)(logits, labels)[0])


@each_loss
def test_a_loss_refuses_labels_of_another_shape(loss):
    for shape in ((*SHAPE, 1), SHAPE[:-1], SHAPE[1:]):
        with pytest.raises(SegjaxError, match=r"expected labels \(B, H, W\)"):
            loss(batch_of(5)[0], np.zeros(shape, np.uint8))


# Scores: (N, N) confusion -> (N,), a number, or a dict of them

SCORES = [f for f in own(metrics, inspect.isfunction) if names(f) == ["confusion"]]
each_score = each("score", SCORES)
CONFUSION = np.array([[7, 2, 0, 1], [3, 4, 1, 0], [0, 0, 6, 2], [1, 0, 0, 9]], np.int64)


@each_score
def test_a_score_of_a_perfect_matrix_is_one(score):
    for values in jax.tree.leaves(score(np.diag([3, 1, 2**40]).astype(np.int64))):
        np.testing.assert_array_equal(values, np.ones_like(values))


@each_score
def test_a_score_of_no_hit_is_zero(score):
    for values in jax.tree.leaves(score(np.array([[0, 3], [4, 0]]))):
        np.testing.assert_array_equal(values, np.zeros_like(values))


@each_score
def test_a_score_lies_between_zero_and_one_and_follows_the_classes(score):
    order = np.array([2, 0, 3, 1])
    scores, permuted = score(CONFUSION), score(CONFUSION[np.ix_(order, order)])
    assert jax.tree.structure(scores) == jax.tree.structure(permuted)
    for a, b in zip(jax.tree.leaves(scores), jax.tree.leaves(permuted), strict=True):
        assert np.shape(a) in {(), (4,)}
        assert np.all(np.greater_equal(a, 0) & np.less_equal(a, 1))
        np.testing.assert_allclose(b, a[order] if np.ndim(a) else a)


@each_score
def test_a_score_of_nothing_is_nan_without_a_warning(score):
    for values in jax.tree.leaves(score(np.zeros((3, 3), np.int64))):
        assert np.isnan(values).all()


@each_score
def test_an_absent_class_changes_no_other_score(score):
    grown = np.pad(CONFUSION, (0, 1))
    for a, b in zip(*(jax.tree.leaves(score(m)) for m in (CONFUSION, grown)), strict=True):
        np.testing.assert_allclose(b[:4] if np.ndim(b) else b, a)
        assert np.ndim(b) == 0 or np.isnan(b[4])


# Sources: a sequence of {"image", "label", "id"} with classes and palette


def make_folder(cls, path):
    for name, shape in {"images": (4, 6, 3), "masks": (4, 6)}.items():
        (path / name).mkdir()
        for i in range(3):
            pixels = np.resize(np.array([i, 1, 0, 255], np.uint8), shape)
            Image.fromarray(pixels).save(path / name / f"{i}.png")
    return cls(path, classes=("a", "b", "c"), palette=((0, 0, 0), (1, 1, 1), (2, 2, 2)))


class Small(tfds.core.GeneratorBasedBuilder):
    """The files of a folder as a tfds data set."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            name: tfds.features.Image(shape=(None, None, channels), encoding_format="png")
            for name, channels in {"image": 3, "mask": 1}.items()
        }
        features = tfds.features.FeaturesDict(features)
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for pair in self.source.pairs:
            yield pair.id, {"image": pair.image.read_bytes(), "mask": pair.mask.read_bytes()}


def make_tfds(cls, path):
    builder = Small(data_dir=path)
    builder.source = source = make_folder(Folder, path)
    builder.download_and_prepare(file_format="array_record")
    return cls("small", "train", path, source.classes, source.palette)


# Class -> how to make a small one of at least two examples, given an empty folder.
MAKE_SOURCE = {
    "Shapes": lambda cls, path: cls(length=3, size=(32, 40)),
    "Folder": make_folder,
    "Weighted": lambda cls, path: cls(make_folder(Folder, path)),
    "TFDS": make_tfds,
    "Without": lambda cls, path: cls(make_folder(Folder, path), skipped=(1,)),
    "Pieces": lambda cls, path: cls(make_folder(Folder, path), size=(20, 30)),
}
SOURCES = [
    cls
    for module in modules(segjax.data)
    for cls in own(module, inspect.isclass)
    if dataclasses.is_dataclass(cls) and hasattr(cls, "__getitem__") and hasattr(cls, "__len__")
]
each_source = each("cls", SOURCES)


def make_source(cls, path: Path):
    assert cls.__name__ in MAKE_SOURCE, (
        f"{cls.__module__}.{cls.__name__} looks like a source, but MAKE_SOURCE does not say how "
        "to make a small one; add a row for it."
    )
    return MAKE_SOURCE[cls.__name__](cls, path)


def assert_same(got, want):
    assert got["id"] == want["id"]
    np.testing.assert_array_equal(got["image"], want["image"])
    np.testing.assert_array_equal(got["label"], want["label"])


@each_source
def test_a_source_is_a_frozen_value(cls, tmp_path):
    source = make_source(cls, tmp_path)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(source, dataclasses.fields(cls)[0].name, None)
    assert source == dataclasses.replace(source)
    assert hash(source) == hash(dataclasses.replace(source))


@each_source
def test_a_source_names_and_colours_its_classes(cls, tmp_path):
    source = make_source(cls, tmp_path)
    assert isinstance(source.classes, tuple)
    assert isinstance(source.palette, tuple)
    assert len(source.classes) == len(set(source.classes)) == len(source.palette)
    assert all(isinstance(name, str) for name in source.classes)
    assert np.shape(source.palette) == (len(source.classes), 3)
    assert 0 <= np.min(source.palette) <= np.max(source.palette) <= 255


@each_source
def test_a_source_holds_examples(cls, tmp_path):
    source = make_source(cls, tmp_path)
    assert len(source) >= 2, "make one of at least two examples"
    for i in range(len(source)):
        example = source[i]
        assert example.keys() - {"weight"} == {"image", "label", "id"}
        image, label = example["image"], example["label"]
        assert image.dtype == label.dtype == np.uint8
        assert image.ndim == 3
        assert image.shape[:2] == label.shape
        assert np.isin(label, [*range(len(source.classes)), 255]).all()
        assert isinstance(example["id"], str)
    assert len({source[i]["id"] for i in range(len(source))}) == len(source)


@each_source
def test_a_source_gives_the_same_example_every_time(cls, tmp_path):
    source = make_source(cls, tmp_path)
    copy = pickle.loads(pickle.dumps(source))
    assert copy == source
    for i in range(len(source)):
        first = source[i]
        first["image"][:] = 0  # to change it is the reader's right
        assert_same(source[i], copy[i])


@each_source
def test_a_source_is_indexed_like_a_list(cls, tmp_path):
    source = make_source(cls, tmp_path)
    assert_same(source[-1], source[len(source) - 1])
    assert_same(source[-len(source)], source[np.int64(0)])
    for outside in (len(source), -len(source) - 1):
        with pytest.raises(IndexError):
            source[outside]
    assert [example["id"] for example in source] == [source[i]["id"] for i in range(len(source))]


# Augmentations: (key, example, *, …) -> Example

FUNCTIONS = [f for module in (augment, colour) for f in own(module, inspect.isfunction)]
AUGMENTATIONS = [f for f in FUNCTIONS if names(f)[:2] == ["key", "example"]]
each_augmentation = each("augmentation", AUGMENTATIONS)
SIDE = 8
IMAGE = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
MASK = np.random.default_rng(1).choice([0, 1, 2, 255], (SIDE, SIDE)).astype(np.uint8)
WEIGHT = np.random.default_rng(2).uniform(0, 9, (SIDE, SIDE)).astype(np.float32)
EXAMPLE = Example(IMAGE, MASK, WEIGHT)
# Values for the options that have no default.
OPTIONS = {"size": (5, 6)}


@functools.cache
def ready(augmentation):
    """The augmentation with its options bound: (key, example) -> Example, compiled."""
    required = [p.name for p in parameters(augmentation)[2:] if p.default is p.empty]
    missing = [name for name in required if name not in OPTIONS]
    assert not missing, f"{augmentation.__name__}: say what to pass for {missing} in OPTIONS"
    return jax.jit(partial(augmentation, **{name: OPTIONS[name] for name in required}))


# What training compiles with, and tests do without.
OPTIMISED = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}


@functools.cache
def batched(augmentation, **options):
    return jax.jit(jax.vmap(ready(augmentation)), compiler_options=options)


def assert_close(got, want):
    """Equal but for images that are computed, not copied.

    How XLA fuses and so rounds depends on the shapes: a place of tens of pixels in float32 to some
    1e-5, between neighbours that may differ by 255.
    """
    atol = 0 if want.image.dtype == np.uint8 else 255 * 2e-5
    np.testing.assert_allclose(got.image, want.image, rtol=0, atol=atol)
    np.testing.assert_array_equal(got.label, want.label)
    np.testing.assert_array_equal(got.weight, want.weight)


def test_what_is_called_random_augments_and_the_other_way_round():
    assert [f for f in FUNCTIONS if f.__name__.startswith("random_")] == AUGMENTATIONS


@each_augmentation
def test_the_options_of_an_augmentation_are_keyword_only(augmentation):
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters(augmentation)[2:])


@each_augmentation
def test_an_augmentation_keeps_shapes_and_types(augmentation):
    f = ready(augmentation)
    got = f(jax.random.key(0), EXAMPLE)
    assert got.image.shape == (*got.label.shape, 3)
    assert got.weight.shape == got.label.shape
    assert (got.label.dtype, got.weight.dtype) == (np.uint8, np.float32)
    assert f(jax.random.key(0), EXAMPLE._replace(weight=None)).weight is None


@each_augmentation
@settings(max_examples=5, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**31 - 1))
def test_the_same_key_gives_the_same_however_it_is_run(augmentation, seed):
    """Alone, eagerly, in a batch, on eight devices, and optimised.

    Not derandomised, once in many runs a place would be rounded to either side of the middle
    between two labels.
    """
    f, rng = ready(augmentation), np.random.default_rng(seed)
    keys = jax.random.split(jax.random.key(seed), 16)
    batch = Example(
        rng.integers(0, 256, (16, SIDE, SIDE, 3), np.uint8),
        rng.choice(np.uint8([0, 1, 2, 255]), (16, SIDE, SIDE)),
        rng.uniform(0, 9, (16, SIDE, SIDE)).astype(np.float32),
    )
    examples = [jax.tree.map(lambda x, i=i: x[i], batch) for i in range(16)]
    alone = [f(key, example) for key, example in zip(keys, examples, strict=True)]
    assert_close(f.__wrapped__(keys[0], examples[0]), alone[0])
    want = jax.tree.map(lambda *x: np.stack(x), *alone)
    placed = sharding.put(batch, sharding.make_mesh())
    sharded = batched(augmentation)(keys, placed)
    assert len(sharded.label.sharding.device_set) == 8
    assert_close(sharded, want)
    assert_close(batched(augmentation)(keys, batch), want)
    assert_close(batched(augmentation, **OPTIMISED)(keys, batch), want)


@each_augmentation
def test_another_key_gives_another_picture(augmentation):
    keys = jax.random.split(jax.random.key(0), 16)
    images = {np.asarray(ready(augmentation)(key, EXAMPLE).image).tobytes() for key in keys}
    assert len(images) > 1


# Documentation


def documented(cls):
    """The public methods and properties that a class itself defines."""
    for name, value in vars(cls).items():
        function = getattr(value, "func", getattr(value, "fget", value))
        function = getattr(function, "__func__", function)
        if not name.startswith("_") and inspect.isfunction(inspect.unwrap(function)):
            yield name


@pytest.mark.parametrize("module", modules(segjax), ids=lambda module: module.__name__)
def test_everything_public_has_a_docstring(module):
    lacking = [] if module.__doc__ else ["the module"]
    for function in own(module, inspect.isfunction):
        if not function.__doc__:
            lacking.append(function.__name__)
    for cls in own(module, inspect.isclass):
        # a dataclass and a NamedTuple without one get their signature
        if not vars(cls).get("__doc__") or cls.__doc__.startswith(f"{cls.__name__}("):
            lacking.append(cls.__name__)
        if not getattr(cls, "_is_protocol", False):  # its docstring tells of all its members
            members = [name for name in documented(cls) if not inspect.getdoc(getattr(cls, name))]
            lacking += [f"{cls.__name__}.{name}" for name in members]
    assert not lacking, f"{module.__name__} says nothing about: {', '.join(lacking)}"
