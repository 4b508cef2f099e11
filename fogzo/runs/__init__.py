"""The record of a run: the one format that training writes and evidence reads."""
