"""Everything around the models, in rooms. A room imports only from the rooms above it; none imports a script:

core           errors, the command line, files, processes
data           track ids, column names, the dataset folder, batches
preprocessing  raw logs and tables of plays become dataset folders
track_vectors  vectors of tracks: file, neighbours, word2vec
evaluation     predictions, metrics, scores
training       losses, the loop, run folders, checkpoints, sweeps
simulator      listening sessions whose optimum is known
agents         what the DDPG scripts share, and off-policy evaluation
reporting      leaderboards, comparisons, the report page
"""
