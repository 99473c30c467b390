"""Weights that exist, as variables of our networks: `read` a file, `fill` by a layout's table.

    tensors = weights.read("vgg16-397923af.pth")
    variables = weights.fill(variables, tensors, torchvision.vgg16(model), expected=("*score*",))

A layout is a function of a network in `torchvision`, `pytorch_fcn`, `unet`, `unetplusplus`, `vit`
or `setr`; `save` and `own` are for our own files.
"""

from segjax.weights.files import own as own
from segjax.weights.files import read as read
from segjax.weights.files import save as save
from segjax.weights.table import Entry as Entry
from segjax.weights.table import Table as Table
from segjax.weights.table import fill as fill
