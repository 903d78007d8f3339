"""Published measurements against plans: entries, their translation, the comparison, the scores."""
