"""How long the steps of a run wait for their batches."""

from __future__ import annotations

from collections.abc import Callable

from kerasllm.terminal import say


class InputWait:
    """The share of the steps' time that is spent waiting; says so once if it is large.

    Args:
        window_steps: over which it is judged.
        limit: greatest share of which nothing is said.
        report: takes the line of text.
    """

    def __init__(self, window_steps: int = 100, limit: float = 0.2, report: Callable[[str], None] = say):
        self.window_steps, self.limit, self.report = window_steps, limit, report
        self._waited, self._seconds, self._steps, self._reported = 0.0, 0.0, 0, False

    def add(self, waited: float, seconds: float) -> float:
        """Takes note of a step.

        Args:
            waited: seconds of it that were spent waiting.
            seconds: of the whole step.

        Returns:
            Its share, 0 to 1.
        """
        self._waited, self._seconds, self._steps = self._waited + waited, self._seconds + seconds, self._steps + 1
        if self._steps == self.window_steps:
            share = self._waited / max(self._seconds, 1e-9)
            if share > self.limit and not self._reported:
                self._reported = True
                self.report(
                    f"waiting for data: {share:.0%} of the last {self.window_steps} steps' time; "
                    "batches are made more slowly than they are used"
                )
            self._waited, self._seconds, self._steps = 0.0, 0.0, 0
        return min(1.0, waited / max(seconds, 1e-9))
