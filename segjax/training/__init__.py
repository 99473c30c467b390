"""Training: the step and the loop, losses, optimisers, the mesh, checkpoints, what a run tells.

Here belongs what turns batches into weights. Not here: what a batch is made of (`segjax.data`), how
good the weights are (`segjax.evaluation`), and which of all this a recipe puts together
(`segjax.recipe`). Nothing here knows a network or a data set.
"""

from segjax.training import losses as losses
from segjax.training import optimizers as optimizers
from segjax.training import processes as processes
from segjax.training import sharding as sharding
from segjax.training.checkpoint import Checkpoints as Checkpoints
from segjax.training.observers import Observer as Observer
from segjax.training.progress import RunLog as RunLog
from segjax.training.train import Every as Every
from segjax.training.train import State as State
from segjax.training.train import fit as fit
from segjax.training.train import make_state as make_state
from segjax.training.train import make_train_step as make_train_step
