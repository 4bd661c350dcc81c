"""Rules and the machinery that applies them: patterns, matcher, journal, driver, explanations."""
