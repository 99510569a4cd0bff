"""What the DDPG scripts share: environment, replay, learner, calibration; and off-policy evaluation.

The loops themselves stand in the scripts. Nothing here serves a supervised model.
"""
