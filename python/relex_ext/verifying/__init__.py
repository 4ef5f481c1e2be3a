"""Outputs checked: record → shards, samples → run."""
