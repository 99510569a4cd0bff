"""The oracle on a dataset: its runs, the logs that it reads back, and what it refuses."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from simulated_views import view_of

from utils import datapreprocessing
from utils.core.errors import UserError
from utils.data.options import DataConfig
from utils.preprocessing.options import Config as PreprocessingConfig
from utils.simulator import __main__ as simulator
from utils.simulator import log_files
from utils.simulator.behaviour import Behaviour
from utils.simulator.oracle import Config, main
from utils.simulator.oracle_logs import first_half, read_logs
from utils.simulator.sessions import draw_sessions
from utils.simulator.world import build_world
from utils.training.options import RunConfig


@pytest.fixture(scope="module")
def world():
    return build_world(seed=0, n_tracks=5000)


@pytest.fixture(scope="module")
def sessions(world):
    return draw_sessions(world, world.lists(4), Behaviour(), np.random.default_rng(11), 6000)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("oracle")
    simulator.main(
        simulator.Config(out=str(root / "raw"), sessions=1500, test_sessions=0, tracks=1000, days=5, processes=1)
    )
    datapreprocessing.main(PreprocessingConfig(raw=root / "raw", out=root / "data"))
    return root


@pytest.fixture(scope="module")
def results(folders):
    config = Config(
        raw=str(folders / "raw"),
        data=DataConfig(folder=str(folders / "data"), scored=["valid", "test"]),
        run=RunConfig(folder=str(folders / "runs")),
    )
    return main(config)


def test_run_folders_hold_the_contract(folders, results):
    for task, result in zip(("skip", "seq"), results, strict=True):
        (path,) = (folders / "runs" / f"oracle_{task}").glob("*/result.json")
        assert json.loads(path.read_text()) == result
        assert (result["kind"], result["task"], set(result["scores"])) == ("oracle", task, {"valid", "test"})
        label = {"skip": "the simulator's optimum", "seq": "best track at each position"}[task]
        assert (result["experiment"], result["label"]) == (f"oracle_{task}", f"Oracle ({label})")
        assert result["scores"]["test"]["n_sessions"] == 300
    skip, seq = (result["scores"]["test"]["metrics"] for result in results)
    assert 0.6 < skip["maa"]["mean"] < 0.76
    assert skip["auc"]["mean"] > 0.8
    assert 0.4 < seq["first_accuracy"]["mean"] < 0.75
    assert seq["hr@20"]["mean"] > seq["hr@1"]["mean"] > 0.4


def test_logs_are_read_back_as_they_were_drawn(folders):
    world = build_world(seed=0, n_tracks=1000)
    job = log_files.Job(day=2, split=0, n_sessions=300)
    ((drawn, table),) = log_files.job_chunks(world, Behaviour(), job, seed=0)
    ids = table["session_id"].to_pandas().unique()
    order = np.random.default_rng(0).permutation(300)
    logs = read_logs(folders / "raw", world, pd.DataFrame({"session_id": ids[order], "day": "20180717"}))
    assert (logs.length == drawn.length[order]).all()
    played = np.arange(20) < logs.length[:, None]
    past = np.arange(20) < (logs.length // 2)[:, None]
    assert (logs.tracks == drawn.tracks[order])[played].all()
    assert (logs.level == drawn.level[order])[past].all()
    assert (logs.context == drawn.context[order])[past].all()
    assert (logs.shuffle == drawn.shuffle[order])[past].all()
    assert (logs.situation.hour == drawn.start_second[order] // 3600).all()
    assert (logs.situation.premium == drawn.premium[order]).all()
    assert (logs.day == 2).all()
    for row in range(100):
        mine, theirs = first_half(logs, row), view_of(drawn, order[row])
        assert (mine.steps == theirs.steps).all()
        assert mine.after == theirs.after
    # Nothing of the second half but its tracks.
    for values in (logs.level, logs.steps, logs.after, logs.context, logs.shuffle):
        assert not values[~past].any()


def test_second_half_logs_cannot_matter(folders, tmp_path):
    shutil.copytree(folders / "raw", tmp_path / "raw")
    for path in (tmp_path / "raw").glob("training_set_0/*.csv"):
        frame = pd.read_csv(path)
        late = frame["session_position"] > frame["session_length"] // 2
        flags = ["skip_1", "skip_2", "skip_3", "not_skipped", "hist_user_behavior_is_shuffle", "premium"]
        frame.loc[late, flags] = ~frame.loc[late, flags]
        frame.loc[late, ["hist_user_behavior_reason_start", "hist_user_behavior_reason_end"]] = "backbtn"
        frame.loc[late, "context_switch"] = 1
        frame.loc[late, "hour_of_day"] = 3
        frame.loc[late, "context_type"] = "charts"
        frame.to_csv(path, index=False)
    world = build_world(seed=0, n_tracks=1000)
    sessions = pd.read_parquet(folders / "data" / "test" / "sessions.parquet")
    for mine, theirs in zip(*(read_logs(root / "raw", world, sessions) for root in (folders, tmp_path)), strict=True):
        assert np.array_equal(np.asarray(mine), np.asarray(theirs))


def test_bad_input_is_a_user_error(folders, tmp_path):
    world = build_world(seed=0, n_tracks=1000)
    with pytest.raises(UserError, match="1 sessions of the dataset are not in"):
        read_logs(folders / "raw", world, pd.DataFrame({"session_id": ["0_x"], "day": ["20180715"]}))
    with pytest.raises(UserError, match=r"no training_set_\*/log_\*_20300101"):
        read_logs(folders / "raw", world, pd.DataFrame({"session_id": ["0_x"], "day": ["20300101"]}))
    ids = pd.read_parquet(folders / "data" / "test" / "sessions.parquet")[:3]
    with pytest.raises(UserError, match="is not of this world"):
        read_logs(folders / "raw", build_world(seed=1, n_tracks=1000), ids)
    with pytest.raises(UserError, match=r"world\.json does not exist"):
        main(Config(raw=str(tmp_path), data=DataConfig(folder=str(folders / "data"))))
    with pytest.raises(UserError, match="whole halves"):
        Config(data=DataConfig(history_size=5))
