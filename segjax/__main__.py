"""What needs no recipe: the verbs on a run folder, as python -m segjax predict RUN IMAGE…, and a
table of the networks, python -m segjax models.
"""

from segjax.command import command
from segjax.verbs import evaluate, models, predict

if __name__ == "__main__":
    verbs = {"evaluate": evaluate, "predict": predict, "models": models}
    command(verbs, description=__doc__, prog="python -m segjax")
