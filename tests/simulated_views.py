"""Simulated sessions as their logs tell them."""

from utils.simulator.sessions import BACK, JUMP, RESTART, SWITCH
from utils.simulator.track_oracle import FirstHalf


def view_of(sessions, row):
    """What the log tells of the first half of a session that was drawn."""
    cut = sessions.length[row] // 2
    steps = sessions.transition[row, :cut].copy()
    steps[steps == RESTART] = BACK  # the log does not tell them apart
    after = {RESTART: BACK, SWITCH: JUMP}.get(int(sessions.after[row, cut - 1]), int(sessions.after[row, cut - 1]))
    return FirstHalf(sessions.tracks[row, :cut], steps, sessions.context[row, :cut], sessions.shuffle[row, :cut], after)
