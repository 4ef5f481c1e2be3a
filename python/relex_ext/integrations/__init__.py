"""Forecasts while training: a watch over a run's folder, and callbacks for trainers.

    from relex_ext.integrations.watch import Watch            # no framework
    from relex_ext.integrations.trl import RelexCallback      # TRL, transformers
    from relex_ext.integrations.verl import watch_verl        # verl

docs/training.md describes them.
"""
