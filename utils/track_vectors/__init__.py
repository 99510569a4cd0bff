"""Vectors of tracks: the file format, the neighbours of a track, a picture, and word2vec.

Models that start from vectors do so in `utils.training.track_table`; nothing here knows a model.
"""
