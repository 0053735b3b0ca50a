"""The one error that is meant for the person at the terminal, and the hint that goes with a misspelt name."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can put right: one line that says where, what is wrong and what to do.

    The command line prints the message after `error: ` and ends with exit code 2; nothing half-written is left.
    Write it as `file:line: key: what is wrong; what to do`, leaving out the parts that do not apply.
    """


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns the end of an error line about an unknown name: the nearest known one, or all of them if none is near.

    >>> did_you_mean("warmup_step", ["warmup_steps", "seed"])
    "did you mean 'warmup_steps'?"
    """
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f"did you mean '{near[0]}'?"
    return f"use one of {', '.join(known)}" if known else "nothing is known here"
