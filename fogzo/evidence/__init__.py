"""From records to results: it knows the record alone."""
