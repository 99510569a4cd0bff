"""The models with the sizes of their Configs where a test names no others: constructors have no defaults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

from model import bert, bert_augmented, ddpg, gru, lstm, recurrent, transformer
from utils.agents.options import AgentConfig
from utils.data.options import DataConfig
from utils.training import model_configs

HISTORY_SIZE, TARGET_SIZE = DataConfig.history_size, DataConfig.target_size


def sized(model: Callable[..., Any], config: Any = None, *, without: tuple[str, ...] = (), **more: Any) -> Any:
    """The constructor, with the fields of a Config and `more` for what a call leaves out."""
    sizes = {} if config is None else asdict(config)
    sizes = {name: value for name, value in sizes.items() if name not in without} | more
    return partial(_call, model, sizes)


def _call(model: Callable[..., Any], sizes: dict[str, Any], *args: Any, **options: Any) -> Any:
    return model(*args, **(sizes | options))


Recurrent = sized(recurrent.Recurrent, n_layers=1, bidirectional=False, dropout=0.0)
S, T = {"history_size": HISTORY_SIZE}, {"target_size": TARGET_SIZE}
SkipTransformer = sized(transformer.SkipTransformer, model_configs.SkipTransformerConfig(), **S, **T)
SeqTransformer = sized(transformer.SeqTransformer, model_configs.SeqTransformerConfig(), **S, **T)
LSTMForSkips = sized(lstm.LSTMForSkips, model_configs.SkipLSTMConfig(), **S)
LSTMForContinuation = sized(lstm.LSTMForContinuation, model_configs.SeqLSTMConfig(), **S)
NextTrackGRU = sized(gru.NextTrackGRU, model_configs.NextTrackGRUConfig())
BertTransformer = sized(
    bert.BertTransformer,
    model_configs.BertConfig(),
    without=("use_features",),
    use_ids=True,
    max_length=HISTORY_SIZE + TARGET_SIZE,
)
BertForMaskedTracks = sized(bert.BertForMaskedTracks, tie_weights=True)
BertForContinuation = sized(bert.BertForContinuation, tie_weights=True, **T)
BertForSkips = sized(bert.BertForSkips, use_log=True)
BertAugmentedSeqTransformer = sized(bert_augmented.BertAugmentedSeqTransformer, finetune_bert=False)
BertAugmentedSkipTransformer = sized(bert_augmented.BertAugmentedSkipTransformer, finetune_bert=False)
ActorCritic = sized(ddpg.ActorCritic, AgentConfig(), without=("vectors", "use_features"), **S)
DDPGForSkips = sized(ddpg.DDPGForSkips, score="actor", advance=False, **T)
