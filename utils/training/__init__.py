"""From options to a trained run: losses, optimizers, the loop, checkpoints, run folders, sweeps.

The loop knows no task. Nothing here compares runs.
"""
