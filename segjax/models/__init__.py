"""Models: the networks. `model.init(key, images)` gives variables, `model.apply(…)` an `Output`.

Here belongs the mathematics of a network: layers, backbones, decoders, and what it sees of a
picture (`geometry`). Not here: losses (`segjax.training`), prediction of pictures of any size
(`segjax.inference`), and files of weights (`segjax.weights`).

Computed with dtype=jnp.bfloat16 the logits of each stay within 3 % of the largest one of float32;
parameters, batch statistics and logits are float32 always.
"""

from segjax.models.alexnet import AlexNet as AlexNet
from segjax.models.fcn import FCN as FCN
from segjax.models.fcn import FCNAlexNet as FCNAlexNet
from segjax.models.fcn import FCNGoogLeNet as FCNGoogLeNet
from segjax.models.geometry import Geometry as Geometry
from segjax.models.googlenet import GoogLeNet as GoogLeNet
from segjax.models.layers import Output as Output
from segjax.models.setr import SETRMLA as SETRMLA
from segjax.models.setr import SETRPUP as SETRPUP
from segjax.models.setr import SETRNaive as SETRNaive
from segjax.models.unet import UNet as UNet
from segjax.models.unetplusplus import UNetPlusPlus as UNetPlusPlus
from segjax.models.vgg import VGG16 as VGG16
from segjax.models.vit import ViT as ViT
