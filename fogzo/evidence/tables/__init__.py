"""Every table, once, from the evidence of experiments."""
