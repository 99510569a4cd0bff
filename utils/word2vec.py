"""`python -m utils.track_vectors.word2vec` under its old name, `utils.word2vec`, which the next version drops."""

import sys

from utils.core.cli import cli
from utils.track_vectors import word2vec as command

if __name__ == "__main__":
    print("utils.word2vec has moved: python -m utils.track_vectors.word2vec", file=sys.stderr)
    cli(command.main, command.Config, description=command.__doc__)
