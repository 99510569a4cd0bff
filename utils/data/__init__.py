"""What a session is: track ids, column names, the dataset folder, batches.

Nothing here makes datasets, and nothing knows a model, a loss or a metric. Models import ids, names and batches from
here, and nothing else of `utils`.
"""
