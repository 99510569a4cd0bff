"""What the DDPG scripts share: environment, replay, learner, calibration; and off-policy evaluation.

The scripts hold the loops themselves. Nothing here trains a supervised model.
"""
