"""What every network promises, on every network that the package holds.

Networks are found, not listed; a new one only needs a row in `VARIANTS`.
"""

import dataclasses
import importlib
import inspect
import pkgutil
from functools import partial
from typing import Literal, get_args, get_origin, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import segjax.models
from segjax.errors import SegjaxError
from segjax.models import (
    FCN,
    SETRMLA,
    SETRPUP,
    FCNAlexNet,
    FCNGoogLeNet,
    Geometry,
    Output,
    SETRNaive,
    UNet,
    UNetPlusPlus,
)

ENCODER = {"depth": 2, "width": 8, "heads": 2, "patch": 4, "grid": (2, 3), "channels": 4}
# Fields that make a network small enough for a test; several rows where geometries differ.
VARIANTS = {
    SETRMLA: ({**ENCODER, "taps": (0, 1)},),
    SETRNaive: ({**ENCODER, "auxiliary_taps": (0,)},),
    SETRPUP: ({**ENCODER, "auxiliary_taps": (0, 1)},),
    FCN: (
        {"widths": (2, 2, 3, 3, 3), "classifier_width": 4},
        {"widths": (2,) * 5, "classifier_width": None, "upsampling": "learned", "fusion": "concat"},
    ),
    FCNAlexNet: ({"widths": (2, 4, 4, 4, 4), "classifier_width": 4},),
    FCNGoogLeNet: ({"stem": (2, 2, 3), "widths": ((2,) * 6,) * 9, "variant": "torchvision"},),
    UNet: (
        {"widths": (2, 3), "dropout": 0.5},
        {"widths": (2, 3), "padding": "valid", "norm": "none"},
        {"widths": (2, 3), "padding": "full", "norm": "none", "up": "released"},
        {"widths": (2, 3), "up": "bilinear_corners"},
    ),
    UNetPlusPlus: (
        {"widths": (2, 3), "dropout": 0.5},
        {"widths": (2, 3), "norm": "none", "up": "bilinear", "deep_supervision": False},
    ),
}
NUM_CLASSES = 3


def find_modules() -> list[type[nn.Module]]:
    """Every public Flax module that a file of segjax.models defines."""
    files = [
        importlib.import_module(f"segjax.models.{info.name}")
        for info in pkgutil.iter_modules(segjax.models.__path__)
    ]
    return [
        value
        for file in files
        for name, value in inspect.getmembers(file, inspect.isclass)
        if issubclass(value, nn.Module)
        and value.__module__ == file.__name__
        and not name.startswith("_")
    ]


def own_fields(module: type[nn.Module]) -> list[dataclasses.Field]:
    return [field for field in dataclasses.fields(module) if field.name not in ("parent", "name")]


MODULES = find_modules()
NETWORKS = [m for m in MODULES if "num_classes" in (field.name for field in own_fields(m))]
CASES = [
    pytest.param(network, fields, id=f"{network.__name__}-{i}")
    for network in NETWORKS
    for i, fields in enumerate(VARIANTS.get(network, ()))
]
each_network = pytest.mark.parametrize("network", NETWORKS, ids=lambda n: n.__name__)
each_case = pytest.mark.parametrize("network, fields", CASES)


def sides(model: nn.Module) -> tuple[int, int]:
    """A small height and width that differ."""
    height = model.geometry.fit(9)
    return height, model.geometry.fit(height - 2 * model.geometry.margin + 1)


def random_variables(model: nn.Module, channels: int = 3):
    """No parameter at its first value: a network may start at zero."""
    images = jnp.zeros((1, *sides(model), channels))
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1].key in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        spread = np.sqrt(2 / np.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 0.3
        return (spread * rng.normal(size=leaf.shape)).astype(np.float32)

    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    return jax.tree_util.tree_map_with_path(draw, shapes)


def assert_output(output: Output, model: nn.Module, images) -> None:
    """Logits of N classes and of the promised size; auxiliary ones of any size."""
    assert isinstance(output, Output)
    batch, height, width, _ = images.shape
    margin = model.geometry.margin
    assert output.logits.shape == (batch, height - 2 * margin, width - 2 * margin, NUM_CLASSES)
    assert isinstance(output.auxiliary, tuple)
    for logits in (output.logits, *output.auxiliary):
        assert logits.dtype == jnp.float32
        assert (logits.shape[0], logits.shape[-1], logits.ndim) == (batch, NUM_CLASSES, 4)


WORDS = [  # of every field that takes one of some values
    pytest.param(module, name, get_args(hint), id=f"{module.__name__}.{name}")
    for module in MODULES
    for name, hint in get_type_hints(module).items()
    if get_origin(hint) is Literal
]


def test_networks_are_found():
    assert {FCN, UNet} <= set(NETWORKS)
    assert {"UNet.padding", "FCN.stride", "GoogLeNet.variant"} <= {word.id for word in WORDS}


@pytest.mark.parametrize("module, name, words", WORDS)
def test_a_word_that_a_field_does_not_know_is_refused_when_the_network_is_made(module, name, words):
    required = {"num_classes": NUM_CLASSES, "widths": (2, 2), "pad": 1, "train": False}
    lacking = [f for f in own_fields(module) if f.default is dataclasses.MISSING]
    fields = {f.name: required[f.name] for f in lacking if f.name != name}
    allowed = f"{', '.join(map(repr, words[:-1]))} or {words[-1]!r}."
    for word in words:
        model = module(**fields, **{name: word})
        assert getattr(model.clone(), name) == word
        wrong = f"{word}".upper() + "-"
        with pytest.raises(SegjaxError) as told:
            module(**fields, **{name: wrong})
        expected = f"{name} is {wrong!r}; expected {allowed} Did you mean {word!r}?"
        assert str(told.value) == f"{module.__name__}: {expected}"
        with pytest.raises(SegjaxError, match=rf"{name} is '\?'; expected .*\.$"):
            model.clone(**{name: "?"})


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
def test_a_docstring_tells_what_it_is(module):
    # Flax and dataclasses write one of their own, the signature, where there is none.
    assert module.__doc__ and not module.__doc__.startswith(f"{module.__name__}(")
    assert inspect.getmodule(module).__doc__


@each_network
def test_the_package_exports_it_and_this_test_has_a_row(network):
    assert getattr(segjax.models, network.__name__, None) is network
    assert VARIANTS.get(network), (
        f"{network.__name__} is a new network: give it a row in VARIANTS of {__file__} with "
        "fields that make it a few channels wide."
    )


@each_network
def test_num_classes_is_the_only_required_field(network):
    required = [
        field.name
        for field in own_fields(network)
        if field.default is field.default_factory is dataclasses.MISSING
    ]
    assert required == ["num_classes"]
    assert own_fields(network)[0].name == "num_classes"


@each_network
def test_fields_are_hashable(network):
    model = network(NUM_CLASSES)
    for field in own_fields(network):
        hash(getattr(model, field.name))
    assert hash(model) == hash(network(NUM_CLASSES)) and model == network(NUM_CLASSES)


@each_case
@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("train", [False, True])
def test_output_for_any_number_of_channels(network, fields, channels, train):
    model = network(NUM_CLASSES, **fields)
    images = jax.ShapeDtypeStruct((2, *sides(model), channels), jnp.float32)

    def forward(key, images):
        variables = model.init(key, images)
        return model.apply(
            variables, images, train=train, rngs={"dropout": key}, mutable=["batch_stats"]
        )

    output, statistics = jax.eval_shape(forward, jax.random.key(0), images)
    assert_output(output, model, images)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(statistics)} <= {"float32"}


@each_case
def test_bfloat16_gives_float32_logits(network, fields):
    model = network(NUM_CLASSES, dtype=jnp.bfloat16, **fields)
    images = jax.ShapeDtypeStruct((2, *sides(model), 3), jnp.bfloat16)
    output, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
    assert_output(output, model, images)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(variables)} == {"float32"}


@each_case
def test_sizes_that_fit_names_are_taken_and_others_refused(network, fields):
    model = network(NUM_CLASSES, **fields)
    geometry = model.geometry
    assert isinstance(geometry, Geometry)
    init = partial(jax.eval_shape, model.init, jax.random.key(0))
    for size in range(1, 2 * geometry.step + 2):
        height, width = geometry.fit(size), geometry.fit(size + geometry.step)
        init(jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32))
    if geometry.step > 1:
        with pytest.raises(SegjaxError, match=f"got {height}×{width + 1}\\. "):
            init(jax.ShapeDtypeStruct((1, height, width + 1, 3), jnp.float32))


@each_case
def test_evaluation_is_pure(network, fields):
    """The same by jit and eagerly, at every call, and for a picture alone or among others."""
    model = network(NUM_CLASSES, **fields)
    variables = random_variables(model)
    images = np.random.default_rng(1).normal(size=(3, *sides(model), 3)).astype(np.float32)
    apply = jax.jit(partial(model.apply, train=False))
    output = apply(variables, images)
    assert_output(output, model, images)
    assert all(np.ptp(logits) > 0 for logits in jax.tree.leaves(output))

    def assert_close(got, want):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())

    jax.tree.map(np.testing.assert_array_equal, apply(variables, images), output)
    jax.tree.map(assert_close, model.apply(variables, images), output)  # train is off by default
    others = images.copy()
    others[1:] = 7
    jax.tree.map(lambda a, b: assert_close(a[0], b[0]), apply(variables, others), output)


@pytest.mark.parametrize(
    "model",
    [
        FCN(9, widths=(16,) * 5, classifier_width=32, padding="same"),
        FCNAlexNet(9, widths=(16,) * 5, classifier_width=32),
        FCNGoogLeNet(9, stem=(16,) * 3, widths=((16,) * 6,) * 9),
        UNet(16, widths=(16, 32), norm="none"),
        UNetPlusPlus(16, widths=(16, 32), norm="none"),
    ],
    ids=lambda model: type(model).__name__,
)
def test_convolutions_start_as_he_and_scores_at_zero(model):
    """N(0, √(2 / fan in)); an output of a 2×2 up-convolution sees one pixel of its input."""
    init = jax.jit(model.init, compiler_options={"xla_backend_optimization_level": 0})
    key = jax.random.key(0, impl="rbg")  # compiles in a third of the time
    params = init(key, jnp.zeros((1, 32, 32, 3)))["params"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = [entry.key for entry in path]
        if names[-1] == "scale":
            continue
        want = 0.0
        if names[-1] == "kernel" and not names[0].startswith("score"):
            up = names[0].startswith("up") and len(names) == 2
            want = np.sqrt(2 / np.prod(leaf.shape[2 * up : -1]))
        assert np.std(leaf) == pytest.approx(want, rel=0.15), names
        assert abs(np.mean(leaf)) <= 0.2 * want, names


@pytest.mark.parametrize(
    "model",
    [
        UNet(2, widths=(4, 8), dropout=0.3),
        UNetPlusPlus(2, widths=(4, 8), dropout=0.3),
        FCN(2, widths=(4, 4, 4, 8, 8), classifier_width=None, padding="same"),
    ],
    ids=lambda model: type(model).__name__,
)
def test_remat_keeps_less_for_the_gradient_and_changes_nothing(model):
    """Of values, gradients and statistics, up to rounding, and of the parameters' names."""
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    variables = model.init(jax.random.key(0), images)

    def forward(model, params):
        output, changed = model.apply(
            {**variables, "params": params},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(1)},
        )
        return (output.logits + 1).sum() ** 2, changed

    @partial(jax.jit, static_argnums=0)
    def gradient(model):
        params = variables["params"]
        return jax.value_and_grad(partial(forward, model), has_aux=True)(params)

    def kept(model):
        _, pull, _ = jax.eval_shape(
            lambda params: jax.vjp(partial(forward, model), params, has_aux=True),
            variables["params"],
        )
        return sum(leaf.size for leaf in jax.tree.leaves(pull))

    less = model.clone(remat=True)
    assert jax.eval_shape(less.init, jax.random.key(0), images) == jax.eval_shape(
        model.init, jax.random.key(0), images
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max()),
        gradient(less),
        gradient(model),
    )
    assert kept(less) < 0.7 * kept(model)
