"""Models that are read in several threads at once are tied as they are in one."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from transformers import PreTrainedModel

from plaudit.models.load import CPU, load_model


def test_threads_that_read_models_leave_their_weights_tied(tiny_model: Callable[..., Path]) -> None:
    folder, tie = str(tiny_model()), PreTrainedModel.tie_weights
    with ThreadPoolExecutor(8) as threads:
        models = list(threads.map(lambda _: load_model(folder, torch.float32, CPU), range(24)))
    assert PreTrainedModel.tie_weights is tie
    for model in models:
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
