"""What the oracles may see of simulated sessions, read from the raw logs in the order of a loader."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from utils.core.errors import UserError
from utils.core.files import only
from utils.data.dataset import Dataset
from utils.data.schema import CONTEXT_TYPES, MAX_LENGTH, half
from utils.data.vocab import UNK
from utils.simulator.behaviour import Situation
from utils.simulator.log_files import day_index
from utils.simulator.sessions import BACK, JUMP, NEXT, START, SWITCH
from utils.simulator.track_oracle import FirstHalf
from utils.simulator.world import World


class Logs(NamedTuple):
    """The raw rows of N sessions of 10 to 20 plays, padded. Of the second half only the tracks are filled."""

    length: NDArray[np.int64]  # (N,)
    tracks: NDArray[np.int64]  # (N, 20) in the world's numbering
    level: NDArray[np.int64]  # (N, 20)
    steps: NDArray[np.int64]  # (N, 20) START, NEXT, BACK (or restart), JUMP or SWITCH
    after: NDArray[np.int64]  # (N, 20) NEXT, BACK or JUMP (or switch)
    context: NDArray[np.int64]  # (N, 20)
    shuffle: NDArray[np.bool_]  # (N, 20)
    situation: Situation  # (N,)
    day: NDArray[np.int64]  # (N,)


LOG_QUERY = """
    SELECT row, session_position - 1 AS position, session_length AS length, track_id_clean AS track,
        CASE WHEN half THEN CASE WHEN skip_1 THEN 4 WHEN skip_2 THEN 3 WHEN skip_3 THEN 2 WHEN not_skipped THEN 1
            ELSE 0 END END AS level,
        CASE WHEN half THEN CASE WHEN session_position = 1 THEN {start} WHEN context_switch = 1 THEN {switch}
            WHEN hist_user_behavior_reason_start = 'backbtn' THEN {back}
            WHEN hist_user_behavior_reason_start IN ('clickrow', 'clickside', 'popup', 'uriopen') THEN {jump}
            ELSE {next} END END AS step,
        CASE WHEN half THEN CASE hist_user_behavior_reason_end WHEN 'backbtn' THEN {back} WHEN 'endplay' THEN {jump}
            ELSE {next} END END AS after,
        CASE WHEN half THEN context_type END AS context,
        CASE WHEN half THEN hist_user_behavior_is_shuffle END AS shuffle,
        CASE WHEN half THEN premium END AS premium,
        CASE WHEN half THEN hour_of_day END AS hour
    FROM (SELECT *, session_position <= session_length // 2 AS half
        FROM read_csv($files, header = true, hive_partitioning = false))
    JOIN wanted USING (session_id)
""".format  # the query drops the log of the second half


def read_logs(raw: Path, world: World, sessions: pd.DataFrame) -> Logs:
    """Read the rows of the given sessions (columns session_id and day) from the raw files of their days.

    Raises:
        UserError: no day has a file, sessions are not in the files, or a track is not of this world.
    """
    days = sorted(sessions["day"].unique())
    files = [only(path) for day in days for path in sorted(raw.glob(f"training_set_*/log_*_{day}_*.csv*"))]
    if not files:
        raise UserError(
            f"{raw} has no training_set_*/log_*_{days[0]}_*.csv; give the folder that the dataset was made of"
        )
    wanted = pd.DataFrame({"session_id": sessions["session_id"].to_numpy(), "row": np.arange(len(sessions))})
    query = LOG_QUERY(start=START, switch=SWITCH, back=BACK, jump=JUMP, next=NEXT)
    with duckdb.connect() as connection:
        connection.register("wanted", wanted)
        rows = connection.execute(query, {"files": files}).df()
    missing = np.setdiff1d(wanted["row"], rows["row"])
    if len(missing):
        first = wanted["session_id"][missing[0]]
        raise UserError(f"{len(missing)} sessions of the dataset are not in {raw} (the first is {first})")

    cells = rows["row"].to_numpy(), rows["position"].to_numpy().astype(np.int64)

    def table(values: Any, dtype: type = np.int64) -> NDArray:
        padded: NDArray = np.zeros((len(sessions), MAX_LENGTH), dtype=dtype)
        padded[cells] = values
        return padded

    order = np.argsort(world.track_ids)
    names = rows["track"].to_numpy().astype("S38")
    place = np.minimum(np.searchsorted(world.track_ids[order], names), world.n_tracks - 1)
    strangers = world.track_ids[order[place]] != names
    if strangers.any():
        raise UserError(f"track {names[strangers][0].decode()} is not of this world; is {raw} simulated, and whole?")
    context = table(pd.Categorical(rows["context"], categories=CONTEXT_TYPES).codes.clip(0))
    premium = table(rows["premium"].fillna(False), bool)
    hour = table(rows["hour"].fillna(0))
    return Logs(
        length=table(rows["length"])[:, 0],
        tracks=table(order[place]),
        level=table(rows["level"].fillna(0)),
        steps=table(rows["step"].fillna(0)),
        after=table(rows["after"].fillna(0)),
        context=context,
        shuffle=table(rows["shuffle"].fillna(False), bool),
        situation=Situation(premium[:, 0], hour[:, 0], context[:, 0]),
        day=np.array([day_index(day) for day in sessions["day"]]),
    )


def first_half(logs: Logs, row: int) -> FirstHalf:
    """What the log tells of the first half of session `row`."""
    cut = half(int(logs.length[row]))
    tracks, steps, context, shuffle = (
        values[row, :cut] for values in (logs.tracks, logs.steps, logs.context, logs.shuffle)
    )
    return FirstHalf(tracks, steps, context, shuffle, int(logs.after[row, cut - 1]))


def dataset_ids(world: World, dataset: Dataset) -> NDArray[np.int64]:
    """(N,) id in the dataset of each track of the world, UNK where the track has none."""
    table = pd.read_parquet(dataset.folder / "tracks.parquet", columns=["index", "track_id"])
    known = pd.Series(table["index"].to_numpy(), index=table["track_id"].astype(str))
    known = known[known.index.str.startswith("t_")]
    return known.reindex(world.track_ids.astype(str)).fillna(UNK).to_numpy().astype(np.int64)
