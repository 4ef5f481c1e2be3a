"""LoRA adapters as checkpoints: Δ = s·BA of each module, never formed whole.

opening → trajectory: config, tensors → pairs    planning, run: what the engine is elsewhere
          settings: adapter_config.json                  gram, movement → stacks: the arithmetic
"""
