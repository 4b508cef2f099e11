"""A look inside one trained network: where the straight-through gradient is biased, and what the codes do."""
