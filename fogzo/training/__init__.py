"""Training runs: it knows the method, the models, the data and the record, and never the evidence."""
