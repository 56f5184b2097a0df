"""The only place that edits modules, and the check of what it did."""

from nervure.surgery.apply import apply, masks_after
from nervure.surgery.compact import compact
from nervure.surgery.verify import Verification, verify

__all__ = ["Verification", "apply", "compact", "masks_after", "verify"]
