"""What would go wrong later is said before training starts."""

from __future__ import annotations

from ssrseg.config import Settings
from ssrseg.data.checks.problems import notes, refuse
from ssrseg.data.checks.survey import survey

LOOKED_AT = 50
"""Files of each data set that are decoded; of the others only the header and the last bytes are read."""


def refuse_bad_data(settings: Settings) -> list[str]:
    """Look at all headers and some files of a run; `ssrseg check-data` (`survey_data`) decodes every one.

    Returns:
        What the user should know, but which does not prevent training.

    Raises:
        UserError: everything that was found that does.
    """
    problems = survey(settings, some=LOOKED_AT).problems
    refuse(problems)
    return notes(problems)
