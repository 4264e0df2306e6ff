"""Is a response in the language that it must be in? rater.py decides; spans, masks and word lists are its evidence."""

from xlift.rating.language.detection import identify
from xlift.rating.language.rater import rate_language, rate_text

__all__ = ["identify", "rate_language", "rate_text"]
