"""How a forecast of a large model would run on many nodes. See docs/scaling.md."""
