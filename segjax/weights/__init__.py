"""Weights: files that exist, as variables of our networks. `read` a file, `fill` by a layout.

Here belongs how others store the arrays of a network, a module per family, and nothing of what is
computed with them; checkpoints of our own runs are of `segjax.training`.

    tensors = weights.read("vgg16-397923af.pth")
    expected = ("params/*score*", "classifier.6.*")  # the new classifier, ImageNet's
    variables = weights.fill(variables, tensors, torchvision.vgg16(model), expected=expected)

A layout is a function of a network in `torchvision`, `pytorch_fcn`, `unet`, `unetplusplus`, `vit`
or `setr`, whose MEAN and DEVIATION say what pictures its weights take. The kernel of the first
convolution is brought to the network's input channels by `models.layers.adapt_stem`. `save` and
`own` are for our own files.
"""

from segjax.weights.files import own as own
from segjax.weights.files import read as read
from segjax.weights.files import save as save
from segjax.weights.table import Entry as Entry
from segjax.weights.table import Table as Table
from segjax.weights.table import fill as fill
