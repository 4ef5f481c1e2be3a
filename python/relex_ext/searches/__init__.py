"""A search among forecasts by the user's own evaluation: strategy → evaluation, folder → run."""
