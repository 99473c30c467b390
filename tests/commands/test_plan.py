"""The planner's rules, on what three kinds of data sets look like, and on corner cases."""

from pathlib import Path

import numpy as np
import pytest

from segjax.commands.networks import NETWORKS, network
from segjax.commands.plan import Found, Where, make_plan
from segjax.data.folder import Folder
from segjax.data.survey import Survey
from segjax.errors import SegjaxError


def found(
    sizes, shares=(0.8, 0.2), *, scale=None, upright=False, held_out=None, channels=3, **folder
):
    """Of such a survey; `folder` are further fields of the `Folder`."""
    shares = np.array(shares)
    classes = tuple(f"class_{i}" for i in range(len(shares)))
    counts = np.tile((1e6 * shares).astype(np.int64), (4, 1))
    looked = Survey(
        sizes={"train": sizes, "val": held_out or sizes},
        mean=(100.0,) * channels,
        deviation=(60.0,) * channels,
        shares=shares,
        counts=counts,
        scale=scale,
        upright=upright,
        above=(0.3, 1),
    )
    fields = {"root": Path("cells"), "classes": classes, "palette": ((0, 0, 0),) * len(classes)}
    read = Folder(**fields | folder, channels=channels)
    return Found(read, Where("train"), Where("val"), "splits", "values", False, looked)


def plan(sizes, *, model="unet", platform="cpu", devices=1, steps=None, **of):
    return make_plan(
        found(sizes, **of), network(model), platform=platform, devices=devices, steps=steps
    )


def test_micrographs_get_half_of_their_side_and_are_turned():
    made = plan({(512, 512): 24}, scale=240.0)

    assert (made.crop, made.batch_size, made.canvas) == ((256, 256), 4, (512, 512))
    assert not made.upright and made.options["widths"] == (16, 32, 64, 128, 256)


def test_small_objects_get_a_crop_of_five():
    made = plan({(256, 256): 130, (256, 320): 54}, scale=20.3)

    assert (made.crop, made.batch_size, made.canvas) == ((96, 96), 16, (256, 320))
    assert made.options["widths"] == (16, 32, 64, 128)  # 96 / 2**4 would be 6 pixels


def test_scenes_are_mirrored_left_and_right_and_rare_classes_weigh_more():
    made = plan({(360, 480): 184}, shares=(0.6, 0.3, 0.095, 0.005), upright=True)

    assert (made.crop, made.batch_size) == ((192, 192), 8)
    assert made.upright and made.scale == (0.5, 1.5)
    # roots of median / share
    np.testing.assert_allclose(
        made.class_weights, np.sqrt(0.1975 / np.array([0.6, 0.3, 0.095, 0.005])), rtol=0.05
    )


def test_even_classes_have_no_weights():
    assert plan({(64, 64): 9}).class_weights == ()


def test_a_class_that_never_occurs_has_weight_one():
    assert plan({(64, 64): 9}, shares=(0.99, 0.01, 0)).class_weights[2] == 1


def test_small_pictures_are_trained_on_whole():
    assert plan({(50, 70): 9}).crop == (64, 64)


def test_the_batch_divides_among_the_devices():
    assert plan({(64, 64): 3}, devices=8).batch_size == 8
    assert plan({(64, 64): 3}, devices=1).batch_size == 4


@pytest.mark.parametrize("examples, steps", [(10, 200), (184, 1000), (40, 500)])
def test_steps_show_each_picture_a_hundred_times_within_limits(examples, steps):
    assert plan({(360, 480): examples}).steps == steps


def test_accelerators_get_the_papers_widths_in_bfloat16():
    made = plan({(512, 512): 24}, platform="gpu")

    assert made.options["widths"] == (64, 128, 256, 512, 1024) and made.compute == "bfloat16"
    assert made.crop == (512, 512) and made.learning_rate == 1e-3


def test_held_out_pictures_of_many_sizes_get_a_few_buckets():
    sizes = {(100 + 10 * i, 200 - 5 * i): 1 for i in range(20)}
    made = plan({(64, 64): 9}, held_out=sizes)

    assert len(made.buckets) <= 4
    assert all(any(h <= a and w <= b for a, b in made.buckets) for h, w in sizes)
    assert plan({(64, 64): 9}, held_out={(64, 64): 2}).buckets == ((64, 64),)


@pytest.mark.parametrize("model", NETWORKS)
def test_every_choice_has_a_reason(model):
    for line in plan({(96, 96): 9, (64, 80): 3}, model=model).lines():
        assert line.what and line.chosen and line.why


def test_pictures_much_larger_than_the_rest_are_cut():
    made = plan({(256, 256): 90, (1040, 1388): 10}, scale=20.0)

    assert made.canvas == (320, 320) and made.cut == (True, False)
    assert made.buckets == ((256, 256), (1040, 1388))
    assert "each picture 55 times" in made.why["steps"]  # 90 whole ones and 10 of 4×5 pieces


def test_large_pictures_are_cut_held_out_ones_too():
    made = plan({(5000, 7000): 4})

    assert made.canvas == (1024, 1024) and made.cut == (True, True)
    assert made.buckets == (made.canvas,) and made.crop == (256, 256)


def test_fewer_pictures_keep_all_else():
    made = plan({(512, 512): 24})
    fewer = made.smaller(2, "memory")

    assert (fewer.batch_size, fewer.why["batch_size"], fewer.crop) == (2, "memory", made.crop)


def test_an_unknown_network_is_told_with_all_that_there_are():
    with pytest.raises(SegjaxError, match=r"(?s)--model unett: no such.*\n  unet  .*\n  setr-mla"):
        network("unett")
