"""From a model to its scores: decoding, predictions, metrics, intervals, tables of predictions.

One judge for everything that predicts. Nothing here trains or compares runs.
"""
