"""Training data made ready before any rank starts: rows to token files that every rank maps into memory.

`python -m llmcheck_trainer.dataprep` is what `llmcheck data` runs. It needs the `data` extra: tokenizers, numpy and jinja2.
"""
