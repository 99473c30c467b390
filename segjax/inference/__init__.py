"""Inference: from uint8 pictures of any size to logits and labels.

Here belongs what applies trained variables: prediction, and what wraps a predict function, tiles
and views. Not here: scores of what was predicted (`segjax.evaluation`), and reading and writing of
files (`segjax.data.pictures`, `segjax.commands`).
"""

from segjax.inference import tiles as tiles
from segjax.inference import views as views
from segjax.inference.predict import labels_of as labels_of
from segjax.inference.predict import make_predict as make_predict
from segjax.inference.predict import make_tiled_predict as make_tiled_predict
from segjax.inference.predict import predict_label as predict_label
from segjax.inference.predict import probabilities_of as probabilities_of
