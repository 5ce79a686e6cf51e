"""All situations, kind by kind."""

from wild import derivatives, state
from wild.situation import SITUATIONS

__all__ = ["SITUATIONS", "derivatives", "state"]
