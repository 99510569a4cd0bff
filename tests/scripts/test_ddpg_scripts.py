"""The DDPG scripts from end to end on tiny data: what they leave behind, resume, repeat, learn and refuse."""

import json

import numpy as np
import pytest
import torch
from conftest import N_IDS, make_dataset
from script_checks import FILES, lines, refused, result, train

import evaluate
import evaluate_policy
import train_ddpg_seq
import train_ddpg_skip
from utils.data.dataset import Dataset
from utils.datapreprocessing import main as preprocess
from utils.preprocessing.options import Config as PreprocessingConfig
from utils.simulator import __main__ as simulator
from utils.track_vectors.files import save_vectors
from utils.training.seeds import each_seed

SCRIPTS = {"skip": train_ddpg_skip, "seq": train_ddpg_seq}
TINY = [
    *("--agent.d_model", "8", "--agent.d_hidden", "16", "--train.sessions", "32", "--train.batch_size", "32"),
    *("--train.epochs", "2", "--train.lr", "0.01", "--train.device", "cpu"),
]


def options(dataset_folder, tmp_path, *more):
    return ["--data.folder", str(dataset_folder), "--run.folder", str(tmp_path / "runs"), *TINY, *more]


@pytest.mark.parametrize("task", SCRIPTS)
def test_a_run_leaves_exactly_this(task, dataset_folder, tmp_path, capsys):
    (folder,) = train(SCRIPTS[task], options(dataset_folder, tmp_path, "--run.label", "Tiny", "--run.seed", "5"))
    names = {path.name for path in folder.iterdir()}
    (events,) = names - FILES
    assert events.startswith("events.out.tfevents")
    assert names > FILES
    content, logged = result(folder), lines(folder)
    assert {key: content[key] for key in ("experiment", "label", "task", "kind", "seed", "device")} == {
        "experiment": f"ddpg_{task}",
        "label": "Tiny",
        "task": task,
        "kind": "model",
        "seed": 5,
        "device": "cpu",
    }
    # A step of the environment for each target of each session, twice.
    lengths = Dataset.open(dataset_folder).train.lengths
    steps = int((lengths - lengths // 2).sum())
    assert [(line["step"], line["epoch"], line["split"]) for line in logged] == [
        *((steps, 1, "train"), (steps, 1, "valid"), (2 * steps, 2, "train"), (2 * steps, 2, "valid"))
    ]
    assert content["environment_steps"] == 2 * steps
    # Two batches of sessions an epoch, ten steps of each; updates begin when 32 transitions are there.
    assert content["updates"] == 4 * 10
    metric = "maa" if task == "skip" else "mrr@20"
    valid = {line["step"]: line[metric] for line in logged if line["split"] == "valid"}
    assert content["best_value"] == max(valid.values()) == valid[content["best_step"]]
    if task == "skip":
        assert content["scores"]["valid"]["metrics"]["maa"]["mean"] == pytest.approx(content["best_value"])
        assert "one_of_hundred" not in content
    else:
        assert content["scores"]["valid"]["metrics"]["mrr@20"]["mean"] == pytest.approx(content["best_value"])
        assert set(content["one_of_hundred"]) == {"split", "hr@1", "hr@10", "mrr", "n_sessions"}
        assert content["one_of_hundred"]["split"] == "test"
        assert "flatters every model" in capsys.readouterr().out
    best = torch.load(folder / "best.pt", weights_only=True)["model"]
    weights = {name: value for name, value in best.items() if name.startswith("agent.") and "features" not in name}
    storages = {value.untyped_storage().data_ptr(): value.numel() for value in weights.values()}
    assert content["n_parameters"] == content["n_trained_parameters"] == sum(storages.values())


@pytest.mark.parametrize("task", SCRIPTS)
def test_its_config_repeats_a_run(task, dataset_folder, tmp_path):
    (first,) = train(SCRIPTS[task], options(dataset_folder, tmp_path, "--run.seed", "3"))
    first, second = train(SCRIPTS[task], ["--config", str(first / "config.yml")])
    assert lines(first) == lines(second)
    assert result(first)["scores"] == result(second)["scores"]
    other = train(SCRIPTS[task], ["--config", str(first / "config.yml"), "--run.seed", "4"])[-1]
    assert lines(other) != lines(first)


@pytest.mark.parametrize("task", SCRIPTS)
def test_resume_is_as_if_nothing_had_happened(task, dataset_folder, tmp_path):
    """Replay buffer, priorities, target networks, noise and negatives go on as they would have."""
    more = ["--train.capacity", "300", "--train.evaluate_every", "1"]
    (whole,) = train(SCRIPTS[task], options(dataset_folder, tmp_path / "whole", *more, "--train.epochs", "3"))
    (part,) = train(SCRIPTS[task], options(dataset_folder, tmp_path / "part", *more, "--train.epochs", "1"))
    arguments = ["--config", str(part / "config.yml"), "--run.resume", str(part), "--train.epochs", "3"]
    assert train(SCRIPTS[task], arguments) == [part]
    assert len(lines(part)) == 12
    assert lines(part) == lines(whole)
    assert result(part)["scores"] == result(whole)["scores"]
    weights = [torch.load(folder / "last.pt", weights_only=True) for folder in (part, whole)]
    for name, value in weights[0]["learner"]["target"].items():
        assert torch.equal(value, weights[1]["learner"]["target"][name]), name
    assert torch.equal(*(state["replay"]["priorities"] for state in weights))


def test_resume_in_the_middle_of_an_epoch(dataset_folder, tmp_path):
    """As if it had been killed after a validation: what was logged later is forgotten."""
    more = ["--train.evaluate_every", "2", "--train.epochs", "1"]
    (whole,) = train(train_ddpg_skip, options(dataset_folder, tmp_path / "whole", *more))
    (part,) = train(
        train_ddpg_skip, options(dataset_folder, tmp_path / "part", *more, "--train.max_seconds", "0.000001")
    )
    assert len(lines(part)) == 2, "stopped after its first episode"
    again = ["--config", str(part / "config.yml"), "--run.resume", str(part), "--train.max_seconds", "0"]
    train(train_ddpg_skip, again)
    # A validation more than the whole run, which has none after the first episode; the weights are the same.
    assert lines(part)[-1] == lines(whole)[-1]


@pytest.mark.parametrize(
    ("task", "more"),
    [
        ("skip", ["--score", "critic", "--advance", "true", "--environment.skip_reward", "-0.5"]),
        ("skip", ["--agent.state", "recent", "--agent.memory", "3", "--train.critic_on", "proto"]),
        ("skip", ["--noise.schedule", "none", "--train.alpha", "0", "--train.updates", "2", "--train.clip", "1"]),
        ("seq", ["--environment.position_matched", "true", "--noise.schedule", "constant", "--noise.rate", "0.2"]),
        ("seq", ["--data.train_cut", "random", "--data.every_prefix", "true", "--environment.negatives", "3"]),
        ("seq", ["--monitor", "perplexity", "--decoding.method", "beam", "--agent.normalise", "false"]),
    ],
)
def test_variants(task, more, dataset_folder, tmp_path):
    (folder,) = train(SCRIPTS[task], options(dataset_folder, tmp_path, *more, "--train.epochs", "1"))
    content = result(folder)
    assert ("test_prefixes" in content["scores"]) == ("--data.every_prefix" in more)
    assert content["updates"] == 20 * (2 if "--train.updates" in more else 1)


LEARN = [
    *("--train.epochs", "25", "--train.sessions", "64", "--train.batch_size", "64", "--train.updates", "2"),
    *("--train.gamma", "0.5", "--train.tau", "0.02", "--noise.schedule", "none", "--agent.use_log", "false"),
]


def test_the_agent_learns_the_rule(dataset_folder, tmp_path):
    """Odd tracks are skipped, nine times in ten: it earns far more than the logged plays did, which is about nothing,
    and what it likes tells what is skipped."""
    (folder,) = train(train_ddpg_skip, options(dataset_folder, tmp_path, *LEARN))
    behaviour = 1 - 2 * (Dataset.open(dataset_folder).train.skips >= 3).mean()
    rewards = [line["reward"] for line in lines(folder) if line["split"] == "train"]
    assert abs(behaviour) < 0.1
    assert rewards[0] < 0.1
    assert rewards[-1] > behaviour + 0.2, "half of the tracks are skipped: 0.4 is the most"
    assert result(folder)["scores"]["test"]["metrics"]["accuracy"]["mean"] > 0.75


def test_seq_tells_own_tracks_from_strangers(dataset_folder, tmp_path):
    """The next tracks are the next ids."""
    (folder,) = train(train_ddpg_seq, options(dataset_folder, tmp_path, *LEARN))
    rewards = [line["reward"] for line in lines(folder) if line["split"] == "train"]
    assert rewards[0] < 0.65
    assert rewards[-1] > 0.85, "who plays blindly gets a half"
    assert result(folder)["scores"]["test"]["metrics"]["hr@10"]["mean"] > 0.5, "by chance 0.25"


def test_seq_works_without_skips(tmp_path):
    folder = make_dataset(tmp_path / "data", n_sessions=32, has_skips=False, min_length=2)
    (run,) = train(train_ddpg_seq, options(folder, tmp_path))
    assert set(result(run)["scores"]["test"]["slices"]) == {"length", "continuation", "shuffle", "premium"}


def test_items_start_from_vectors(dataset_folder, tmp_path):
    dataset = Dataset.open(dataset_folder)
    vectors = torch.randn(N_IDS, 8, generator=torch.manual_seed(3))
    (tmp_path / "vectors").mkdir()
    save_vectors(tmp_path / "vectors", vectors, dataset)
    file = str(tmp_path / "vectors" / "track_embeddings.safetensors")
    more = ["--agent.vectors", file, "--train.updates", "0", "--train.epochs", "1"]
    (folder,) = train(train_ddpg_skip, options(dataset_folder, tmp_path, *more))
    table = torch.load(folder / "best.pt", weights_only=True)["model"]["agent.encoder.tracks.table.weight"]
    assert torch.equal(table[5:], vectors[5:])
    assert not table[0].any()


def test_evaluate_scores_a_run_again(dataset_folder, tmp_path):
    for task, script in SCRIPTS.items():
        (folder,) = train(script, options(dataset_folder, tmp_path, "--train.epochs", "1"))
        summary = evaluate.main(evaluate.Config(run=str(folder), device="cpu"))
        metrics = result(folder)["scores"]["test"]["metrics"]
        for name in ("maa", "log_loss") if task == "skip" else ("maa", "mrr@20", "perplexity"):
            assert summary["metrics"][name]["mean"] == pytest.approx(metrics[name]["mean"])


@pytest.mark.parametrize("task", SCRIPTS)
@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--agent.width", "8"], "width"),
        (["--train.lr", "0"], "train.lr is 0"),
        (["--train.gamma", "1.5"], "train.gamma is 1.5"),
        (["--train.capacity", "20"], "train.capacity is 20; it must hold train.sessions 32 and train.batch_size 32"),
        (["--noise.rate", "2"], "noise.rate is 2"),
        (["--noise.schedule", "none", "--noise.rate", "0.1"], "noise.rate has no meaning for noise.schedule none"),
        (["--agent.memory", "3"], "agent.memory has no meaning for agent.state gru"),
        (["--environment.negatives", "-1"], "environment.negatives is -1"),
        (["--agent.vectors", "nowhere.safetensors"], "nowhere.safetensors does not exist"),
        (["--data.folder", "nowhere"], "error: nowhere is no dataset folder"),
        (["--train.device", "toaster"], "error: device 'toaster' cannot be used here"),
        (["--run.resume", "nowhere"], "error: nowhere has no last.pt to resume from"),
        (["--run.seed", "-1"], "run.seed is -1"),
        (["--train.actor_lr", ".nan"], "train.actor_lr is nan"),
    ],
)
def test_bad_input(task, more, named, dataset_folder, tmp_path, capsys):
    script = SCRIPTS[task]
    assert named in refused(each_seed(script.main), script.Config, options(dataset_folder, tmp_path, *more), capsys)
    assert not (tmp_path / "runs").exists(), "nothing is left behind"


@pytest.mark.parametrize("task", SCRIPTS)
@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--train.lr", "1e30", "--train.clip", "0"], "the critic's loss became"),
        (["--train.batch_size", "5000"], "nothing was learnt: 996 transitions are fewer than train.batch_size 5000"),
    ],
)
def test_training_that_comes_to_nothing(task, more, named, dataset_folder, tmp_path, capsys):
    arguments = options(dataset_folder, tmp_path, *more, "--train.epochs", "2")
    assert named in refused(SCRIPTS[task].main, SCRIPTS[task].Config, arguments, capsys)


def test_sessions_too_short_to_be_scored_are_found_before_training(dataset_folder, tmp_path, capsys):
    arguments = options(dataset_folder, tmp_path, "--data.min_length", "100")
    for script in SCRIPTS.values():
        assert "has no session of at least 100 plays" in refused(script.main, script.Config, arguments, capsys)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("skips", [1, 4, 255])
def test_skips_of_one_kind_teach_nothing(skips, tmp_path, capsys):
    folder = make_dataset(tmp_path / "data", n_sessions=32)
    np.save(folder / "train" / "skips.npy", np.full_like(np.load(folder / "train" / "skips.npy"), skips))
    said = refused(train_ddpg_skip.main, train_ddpg_skip.Config, options(folder, tmp_path), capsys)
    assert "has no skipped tracks, or no others" in said


def test_a_monitor_that_is_none(dataset_folder, tmp_path, capsys):
    arguments = options(dataset_folder, tmp_path, "--monitor", "mma")
    said = refused(train_ddpg_seq.main, train_ddpg_seq.Config, arguments, capsys)
    assert "monitor is mma, which is no metric of this task" in said
    assert not (tmp_path / "runs").exists()


SIMULATION = {"sessions": 9000, "test_sessions": 0, "days": 3, "processes": 1}
UNTRAINED = ["--train.epochs", "1", "--train.updates", "0", "--train.sessions", "1024"]


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """A small simulation, and the dataset that is made of it."""
    folder = tmp_path_factory.mktemp("simulated")
    raw, data = folder / "raw", folder / "data"
    simulator.main(simulator.Config(out=str(raw), tracks=1000, seed=4, **SIMULATION))
    preprocess(PreprocessingConfig(raw=raw, out=data))
    return raw, data


def test_a_policy_is_evaluated_against_the_truth(simulated, tmp_path, capsys):
    raw, data = simulated
    (run,) = train(train_ddpg_skip, options(data, tmp_path, *UNTRAINED))
    out = tmp_path / "policy.json"
    config = evaluate_policy.Config(run=str(run), raw=str(raw), candidates=3, out=str(out), device="cpu")
    content = evaluate_policy.main(config)
    assert json.loads(out.read_text()) == json.loads(json.dumps(content))
    assert content["n_choices"] > 100
    values = content["policies"]
    assert list(values) == ["uniform shuffle", "reward model", "DDPG", "best possible"]
    assert values["uniform shuffle"]["snips"]["value"] == pytest.approx(content["logged_reward"])
    for value in values.values():
        for name in ("snips", "dr"):
            width = value[name]["high"] - value[name]["low"]
            assert abs(value[name]["value"] - value["truth"]) < width
        assert value["truth"] <= values["best possible"]["truth"]
    assert values["uniform shuffle"]["truth"] + 0.1 < values["best possible"]["truth"]
    assert "choices among 3 tracks" in capsys.readouterr().out


def test_a_policy_needs_its_own_simulation(simulated, dataset_folder, tmp_path, capsys):
    raw, data = simulated
    (run,) = train(train_ddpg_seq, options(data, tmp_path, *UNTRAINED, "--data.scored", "[valid]"))
    assert evaluate_policy.main(evaluate_policy.Config(run=str(run), raw=str(raw), device="cpu"))["n_choices"] > 50
    for name, seed, tracks in (("seed", 5, 1000), ("tracks", 4, 1200)):
        simulator.main(simulator.Config(out=str(tmp_path / name), tracks=tracks, seed=seed, **SIMULATION))
    for folder, named in (
        (tmp_path / "seed", "sessions of the dataset are not simulated by"),
        (tmp_path / "tracks", "does not simulate the sessions of"),
        (tmp_path / "nothing", "does not exist"),
    ):
        arguments = ["--run", str(run), "--raw", str(folder)]
        assert named in refused(evaluate_policy.main, evaluate_policy.Config, arguments, capsys)
    (run / "best.pt").unlink()  # as in a blend
    said = refused(evaluate_policy.main, evaluate_policy.Config, ["--run", str(run), "--raw", str(raw)], capsys)
    assert "is no run of a skip or seq model that keeps weights" in said
