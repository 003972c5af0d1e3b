"""How many steps fit into the time that a run may take: chosen before it, corrected while it runs."""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field

TOLERANCE = 0.03  # of the budget, by which the end may be off before the steps are chosen anew
FIRST_LOOK = 16  # steps at most, for the learning rate still rises then
SHARE_BETWEEN_LOOKS = 8  # a look at the clock each time that this part of the steps left is done
REMEMBERED = 0.05  # of the budget: what was measured longer ago hardly counts
CLOSING_SECONDS = 1.0  # from the report to the end of the process


@dataclass
class TimeBudget:
    """What the parts of a run take, and when it has to end.

    A step counts with the wait for its images, the end of an epoch with validation and saving. Every figure is measured
    before the run, and again while it runs: images may come slower than at first, and the machine may get busy. The
    first steps of a run may be quicker, of small images or of the head alone: ``first_steps`` tells how many of so many
    there are, and ``first_cost`` what such a step takes, as a part of another.
    """

    ends: float  # as ``clock`` shows it
    seconds: float
    steps_per_epoch: int
    step_seconds: float
    epoch_end_seconds: float
    report_seconds: float
    report_share: float  # images of the report for each that validation sees, 0 without validation
    clock: Callable[[], float]
    first_steps: Callable[[int], int] = lambda steps: 0
    first_cost: float = 1.0
    next_look: int = 0
    _since: float = field(init=False, default=0.0)
    _steps_before: int = field(init=False, default=0)

    def begin(self, steps: int) -> None:
        """Training begins."""
        self._since = self.clock()
        self.next_look = max(1, min(steps // SHARE_BETWEEN_LOOKS, FIRST_LOOK))

    def steps_that_fit(self, step: int) -> int:
        """The most steps in all, ``step`` of them done, that the time left allows: at least one, and those done."""
        left, fewest = self.ends - self.clock(), max(1, step)
        most = fewest + max(0, int(left / (self.step_seconds * min(1.0, self.first_cost))))
        return fewest - 1 + max(1, bisect_right(range(fewest, most + 1), left, key=lambda n: self._seconds(step, n)))

    def look(self, step: int, steps: int) -> int:
        """The steps of the run, ``step`` of ``steps`` done: as before, unless it would end too early or too late."""
        now = self.clock()
        window, done = now - self._since, self._work(self._steps_before, steps) - self._work(step, steps)
        weight = window / (window + REMEMBERED * self.seconds)
        self.step_seconds += weight * (window / done - self.step_seconds)
        self._since, self._steps_before = now, step
        if abs(self._seconds(step, steps) - (self.ends - now)) > TOLERANCE * self.seconds:
            steps = self.steps_that_fit(step)
        return steps

    def look_again(self, step: int, steps: int) -> None:
        """When the next look is due."""
        self.next_look = step + max(1, (steps - step) // SHARE_BETWEEN_LOOKS)

    def epoch_ended(self, seconds: float, validation_seconds: float) -> None:
        """Validation and saving took so long, of which validation alone."""
        self.epoch_end_seconds = seconds
        if self.report_share:
            self.report_seconds = self.report_share * validation_seconds
        self._since += seconds

    def _seconds(self, step: int, steps: int) -> float:
        """From here, after ``step``, to the end of a run of ``steps``; an epoch that is cut short has an end too."""
        epochs_ended = max(0, step - 1) // self.steps_per_epoch
        epoch_ends = -(-steps // self.steps_per_epoch) - epochs_ended
        training = self._work(step, steps) * self.step_seconds + epoch_ends * self.epoch_end_seconds
        return training + self.report_seconds + CLOSING_SECONDS

    def _work(self, step: int, steps: int) -> float:
        """The steps that are left after ``step``, each of the first as a part of one."""
        first = max(0, min(self.first_steps(steps), steps) - step)
        return steps - step - (1 - self.first_cost) * first
