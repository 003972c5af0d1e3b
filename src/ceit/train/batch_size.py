"""How many images a step takes where the options leave it open: few enough for many steps, enough for BatchNorm."""

from ceit.train.batch_norm import FEW_IMAGES
from ceit.train.config import USUAL_BATCH

STEPS_OF_AN_EPOCH = 20
STEPS_OF_A_RUN = 200  # of one with a time budget; a network learns by steps, and hardly anything in a few dozen


def batch_for_set(train_images: int, processes: int) -> int:
    """Images a step for a set: 256, or halved until an epoch has 20 steps, but at least 16 a process if there are."""
    unit = 2 * processes
    return min(_halved(train_images, STEPS_OF_AN_EPOCH, processes), max(unit, train_images // unit * unit))


def batch_for_run(shown_images: int, processes: int) -> int:
    """Images a step for a run that has the time to show so many: 256, or halved until it takes 200 steps, as above."""
    return _halved(shown_images, STEPS_OF_A_RUN, processes)


def _halved(images: int, steps: int, processes: int) -> int:
    """Each process gets an even share, which can be mixed."""
    batch, unit = USUAL_BATCH, 2 * processes
    while batch > FEW_IMAGES * processes and images < steps * batch:
        batch //= 2
    return max(FEW_IMAGES * processes, batch // unit * unit)
