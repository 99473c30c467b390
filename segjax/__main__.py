"""The verbs on a run folder, wherever its recipe is: python -m segjax predict RUN IMAGE…"""

from segjax.command import command
from segjax.verbs import evaluate, predict

if __name__ == "__main__":
    verbs = {"evaluate": evaluate, "predict": predict}
    command(verbs, description=__doc__, prog="python -m segjax")
