"""From run folders to what a person reads: leaderboards, paired comparisons, charts, the report page.

Nothing here trains, predicts or scores; all numbers come from `result.json` and the saved predictions.
"""
