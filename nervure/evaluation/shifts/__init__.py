"""Shifts as values: pictures whose labels move along, text, sound, tables, in batches of any form."""

from nervure.evaluation.shifts.audio import AUDIO_SHIFTS, audio_shifts
from nervure.evaluation.shifts.columns import TABLE_SHIFTS, table_shifts
from nervure.evaluation.shifts.letters import TEXT_SHIFTS
from nervure.evaluation.shifts.one_shift import Shift
from nervure.evaluation.shifts.pictures import picture_shifts
from nervure.evaluation.shifts.texts import text_shifts, token_shifts

__all__ = [
    "AUDIO_SHIFTS",
    "TABLE_SHIFTS",
    "TEXT_SHIFTS",
    "Shift",
    "audio_shifts",
    "picture_shifts",
    "table_shifts",
    "text_shifts",
    "token_shifts",
]
