"""Listening sessions in MSSD's files whose Bayes optimum is known: `python -m utils.simulator`.

The world, its listeners, their files, both optima, and the calibration on MSSD's published figures. No model is trained
here.
"""
