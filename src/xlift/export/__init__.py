"""Runs and studies for other tools: weights, GGUF files, model cards, data sets, the hub."""
