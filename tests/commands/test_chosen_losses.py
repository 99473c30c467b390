"""The losses that a recipe names: their sum, weights of pixels, and networks of one channel."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from recipes import recipe_of
from tiny import Tiny, TinyRecipe, make_data

import segjax
from segjax.data.augment import Example
from segjax.data.weight_map import Weighted
from segjax.errors import SegjaxError
from segjax.evaluation.report import read_metrics
from segjax.models import Output
from segjax.recipe import main
from segjax.training import losses

RECIPE = TinyRecipe(data=Path("data"))
RNG = np.random.default_rng(0)
OUTPUT = Output(jnp.asarray(RNG.normal(size=(2, 4, 5, 2)), jnp.float32))
LABELS = RNG.choice([0, 1, 255], (2, 4, 5)).astype(np.uint8)
PLAIN = Example(np.zeros((2, 4, 5, 3), np.uint8), LABELS)
WEIGHTED = PLAIN._replace(weight=RNG.uniform(1, 9, LABELS.shape).astype(np.float32))


def test_the_losses_named_are_added_up():
    for example in (PLAIN, WEIGHTED):
        first = losses.cross_entropy(OUTPUT.logits, LABELS, pixel_weights=example.weight)
        assert RECIPE.loss(OUTPUT, example) == first
        both = replace(RECIPE, losses=("cross_entropy", "dice")).loss(OUTPUT, example)
        np.testing.assert_allclose(both, first + losses.dice(OUTPUT.logits, LABELS), rtol=1e-6)


def test_weights_that_no_loss_takes_are_refused():
    areas = replace(RECIPE, losses=("dice", "lovasz"))
    assert np.isfinite(areas.loss(OUTPUT, PLAIN))
    with pytest.raises(SegjaxError, match="dice, lovasz takes none: add one of cross_entropy, bin"):
        areas.loss(OUTPUT, WEIGHTED)


@pytest.mark.parametrize("wrong", [(), ("dise",), "dice", ("dice", "class_weights")])
def test_losses_that_there_are_not_are_refused(wrong):
    with pytest.raises(SegjaxError, match="expected a tuple of at least one of cross_entropy, bin"):
        replace(RECIPE, losses=wrong)


def test_the_command_line_names_what_there_is(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(TinyRecipe, ["train", "--data", "x", "--losses", "cross_entropy", "dise"])
    assert stopped.value.code == 2
    told = capsys.readouterr().err
    assert "dise" in told and "lovasz" in told


@dataclass(frozen=True, kw_only=True)
class WeightedTiny(TinyRecipe):
    """The same, with U-Net's weight map."""

    batch_size: int = 8

    def source(self, split):
        return Weighted(super().source(split))


def test_a_training_with_weights_that_no_loss_takes_ends_in_words(tmp_path, capsys):
    data = ("--data", str(make_data(tmp_path)), "--run", str(tmp_path / "run"))
    with pytest.raises(SystemExit) as stopped:
        main(WeightedTiny, ["train", *data, "--losses", "dice"])
    assert stopped.value.code == 2
    assert "weights of pixels, of which dice takes none" in capsys.readouterr().err


@dataclass(frozen=True, kw_only=True)
class OneChannel(TinyRecipe):
    """The same two classes, told apart by one channel: nothing else is said."""

    steps: int = 30
    batch_size: int = 8
    evaluate_every: int = 30
    learning_rate: float = 0.3

    def model(self):
        return Tiny(1)


@pytest.mark.parametrize("chosen", [(), ("--losses", "dice", "lovasz")], ids=["default", "areas"])
def test_a_network_of_one_channel_learns_without_a_word(tmp_path, chosen):
    home = make_data(tmp_path)
    main(OneChannel, ["train", "--data", str(home), "--run", str(home / "run"), *chosen])
    scores = json.loads((home / "run/report/scores.json").read_text())
    assert np.shape(scores["confusion"]) == (2, 2)
    assert scores["mean_iou"] > 0.9
    named = json.loads((home / "run/recipe.json").read_text())["fields"]["losses"]
    assert named == list(chosen[1:] or ["cross_entropy"])

    # The held-out loss is the cross-entropy of the sigmoid, whatever was minimised.
    segmenter, source = segjax.load(home / "run"), replace(RECIPE, data=home).source("val")
    logits = segmenter.logits(np.stack([example["image"] for example in source]))
    labels = np.stack([example["label"] for example in source])
    expected = losses.binary_cross_entropy(jnp.asarray(logits), labels)
    (held_out,) = [r["loss"] for r in read_metrics(home / "run/metrics.jsonl") if "mean_iou" in r]
    np.testing.assert_allclose(held_out, expected, rtol=1e-5)
    assert 0 < held_out < np.log(2)


def heads_of(channels, heads):
    logits = RNG.normal(size=(heads, 2, 4, 5, channels)).astype(np.float32)
    return Output(jnp.asarray(logits[0]), tuple(jnp.asarray(logits)))


def test_unetplusplus_adds_its_own_loss_up_over_its_heads():
    output = heads_of(1, 4)
    recipe = recipe_of("unetplusplus_dsb2018")(data=Path("data"))
    assert recipe.model().num_classes == 1
    by_head = [losses.bce_dice(logits, LABELS) for logits in output.auxiliary]
    np.testing.assert_allclose(recipe.loss(output, PLAIN), sum(by_head), rtol=1e-6)
    by_head = [losses.cross_entropy(logits, LABELS) for logits in output.auxiliary]
    plain = replace(recipe, losses=("cross_entropy",))
    np.testing.assert_allclose(plain.loss(output, PLAIN), sum(by_head), rtol=1e-6)


def test_setr_weighs_the_losses_of_its_auxiliary_heads():
    output = heads_of(11, 3)
    recipe = recipe_of("setr_pup_camvid")(data=Path("data"), losses=("focal",))
    main_head, *auxiliary = (
        losses.focal(logits, LABELS) for logits in (output.logits, *output.auxiliary)
    )
    expected = main_head + 0.4 * sum(auxiliary)
    np.testing.assert_allclose(recipe.loss(output, PLAIN), expected, rtol=1e-6)
