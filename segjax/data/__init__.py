"""Data: sources of examples, augmentation on the device, and the pipeline between them.

Here belongs everything from a file to a batch on the host, and what is wrong with a data set. A
source is a sequence of {"image", "label", "id"} with `classes` and `palette`. Not here: what puts
batches on devices (`segjax.training.sharding`) and what is learnt from them.
"""

from segjax.data import layouts as layouts
from segjax.data.augment import Example as Example
from segjax.data.augment import Normalise as Normalise
from segjax.data.augment import compose as compose
from segjax.data.folder import Folder as Folder
from segjax.data.pipeline import Source as Source
from segjax.data.pipeline import evaluation_batches as evaluation_batches
from segjax.data.pipeline import train_batches as train_batches
from segjax.data.shapes import Shapes as Shapes
from segjax.data.tfds_source import TFDS as TFDS
from segjax.data.weight_map import Weighted as Weighted
from segjax.data.wrapper import Pieces as Pieces
