"""Names of the choices that models offer. Nothing here imports torch, so that options can name them."""

from __future__ import annotations

from typing import Literal

SkipEncoding = Literal["none", "token", "embedding"]
Cell = Literal["lstm", "gru"]
Order = Literal["parallel", "confident", "left_to_right"]
