"""What holds for every layout alike."""

from functools import cache

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from segjax.models import FCN, SETRMLA, SETRPUP, FCNAlexNet, FCNGoogLeNet, UNet, UNetPlusPlus, ViT
from segjax.weights import fill, pytorch_fcn, setr, torchvision, unet, unetplusplus, vit

SMALL = {"depth": 2, "width": 4, "heads": 2, "patch": 4}
VIT, PUP = ViT((1,), **SMALL), SETRPUP(3, **SMALL, channels=2, auxiliary_taps=())
MLA = SETRMLA(3, **SMALL, channels=2, taps=(0, 1))
ALEXNET, GOOGLENET = FCNAlexNet(3, variant="torchvision"), FCNGoogLeNet(3, variant="torchvision")
NESTED, KERAS = UNetPlusPlus(3, widths=(2, 3)), UNetPlusPlus(3, widths=(2, 3), norm="none")
# The network, its table, whether the file's kernels are OIHW (else HWIO) and for BGR pictures.
LAYOUTS = {
    "vgg16": (FCN(3), torchvision.vgg16(FCN(3)), True, False),
    "vgg16 bgr": (FCN(3), torchvision.vgg16(FCN(3), order="bgr"), True, True),
    "alexnet": (ALEXNET, torchvision.alexnet(ALEXNET), True, False),
    "googlenet": (GOOGLENET, torchvision.googlenet(GOOGLENET), True, False),
    "pytorch-fcn": (FCN(3), pytorch_fcn.fcn(FCN(3), {}), True, True),
    "milesial": (UNet(3), unet.milesial(UNet(3)), True, False),
    "nested-unet": (NESTED, unetplusplus.nested_unet(NESTED), True, False),
    "keras": (KERAS, unetplusplus.keras(KERAS), False, False),
    "timm": (VIT, vit.timm(VIT), True, False),
    "hugging face": (VIT, vit.hugging_face(VIT), True, False),
    "vision_transformer": (VIT, vit.vision_transformer(VIT), False, False),
    "big_vision": (VIT, vit.big_vision(VIT), False, False),
    "setr pup": (PUP, setr.authors(PUP), True, False),
    "setr mla": (MLA, setr.authors(MLA), True, False),
    "mmsegmentation pup": (PUP, setr.mmsegmentation(PUP), True, False),
    "mmsegmentation mla": (MLA, setr.mmsegmentation(MLA), True, False),
}


@cache
def shapes(model, channels):
    images = jax.ShapeDtypeStruct((1, 32, 32, channels), np.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    return {path: leaf.shape for path, leaf in flatten_dict(variables, sep="/").items()}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_stem_takes_any_number_of_channels(name):
    """It is the one leaf whose shape depends on them: one grey gets the colours' sum, a fourth
    channel their mean."""
    model, table, torch, bgr = LAYOUTS[name]
    (path,) = (path for path, entry in table.entries.items() if entry.stem)
    grey, four = shapes(model, 1), shapes(model, 4)
    assert {leaf for leaf in grey if grey[leaf] != four[leaf]} == {path}
    height, width, _, features = four[path]
    kernel = np.random.default_rng(0).normal(size=(height, width, 3, features)).astype(np.float32)
    theirs = kernel[:, :, ::-1] if bgr else kernel
    tensors = {table.entries[path].names[0]: theirs.transpose(3, 2, 0, 1) if torch else theirs}

    def filled(shape):
        variables = unflatten_dict({path: np.zeros(shape, np.float32)}, sep="/")
        return flatten_dict(fill(variables, tensors, table), sep="/")[path]

    np.testing.assert_allclose(filled(grey[path])[:, :, 0], kernel.sum(axis=2), atol=1e-6)
    np.testing.assert_array_equal(filled(four[path])[:, :, :3], kernel)
    np.testing.assert_allclose(filled(four[path])[:, :, 3], kernel.mean(axis=2), atol=1e-6)


@pytest.mark.parametrize("name", LAYOUTS)
def test_no_layout_drops_what_was_learned(name):
    assert set(LAYOUTS[name][1].unused) <= {"*.num_batches_tracked", "mask_values"}


@pytest.mark.parametrize("layout", [torchvision, pytorch_fcn, unet, unetplusplus, vit, setr])
def test_every_layout_says_what_pictures_it_takes(layout):
    assert len(layout.MEAN) == len(layout.DEVIATION) == 3
    assert min(layout.DEVIATION) > 0
