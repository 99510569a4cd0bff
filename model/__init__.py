"""The models, each with its layers in plain sight; shapes are written in the letters of `utils/data/batch.py`.

transformer, attention        SkipTransformer, SeqTransformer and their layers
bert, bert_augmented, dropnet BERT, its three heads, the Transformer beside it
lstm, recurrent, gru          recurrent encoder-decoders, the next-track GRU
ddpg                          actor and critic, and their answers to both tasks
baselines_skip, baselines_seq the baselines; next_track ranks and continues for those of the seq task
embeddings, dropout           from plays to vectors
catalogue, decoding, filling  from vectors to continuations

Models import ids, names and batches from `utils.data` (vocab, schema, batch), and nothing else of `utils`.
"""
