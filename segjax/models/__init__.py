"""The networks: `model.init(key, images)` gives variables, `model.apply(…)` an `Output`."""

from segjax.models.fcn import FCN as FCN
from segjax.models.layers import Geometry as Geometry
from segjax.models.layers import Output as Output
from segjax.models.unet import UNet as UNet
from segjax.models.vgg import VGG16 as VGG16
