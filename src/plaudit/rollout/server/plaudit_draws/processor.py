"""A logits processor for vLLM: every token is drawn by the uniform number that came with the request.

A request brings in `vllm_xargs` the draws of its positions (`plaudit_draws`: base64 of little-endian float32) and its
temperature (`plaudit_temperature`), and asks vLLM itself for temperature 0. Of a row's logits only the drawn token is
left, and in its place stands its log-probability under the law; so greedy sampling takes it, and a server with
`--logprobs-mode processed_logits` tells that number. Rows of other requests stay as they are.
"""

import base64
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import LogitsProcessor

from .inverse_cdf import sample

DRAWS, TEMPERATURE = "plaudit_draws", "plaudit_temperature"


class Draws(LogitsProcessor):  # type: ignore[misc]
    """Of each row of the batch that has draws: those, the temperature, and the list of its tokens so far, which vLLM
    itself makes longer."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool):
        self.device = device
        self.rows: dict[int, tuple[np.ndarray, float, list[int]]] = {}

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        given = sampling_params.extra_args or {}
        if DRAWS in given and len(_read(given[DRAWS])) < sampling_params.max_tokens:
            raise ValueError(f"{DRAWS}: {len(_read(given[DRAWS]))} draws for max_tokens={sampling_params.max_tokens}")

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: Any) -> None:
        """Follow the rows: those that went, those that came, and those that moved or changed places, in this order."""
        if batch_update is None:
            return
        for row in batch_update.removed:
            self.rows.pop(row, None)
        for row, params, _, output_ids in batch_update.added:
            given = params.extra_args or {}
            self.rows.pop(row, None)
            if DRAWS in given:
                self.rows[row] = _read(given[DRAWS]), float(given.get(TEMPERATURE, 1.0)), output_ids
        for source, target, way in batch_update.moved:
            here, there = self.rows.pop(source, None), self.rows.pop(target, None)
            if here is not None:
                self.rows[target] = here
            if there is not None and way.name == "SWAP":
                self.rows[source] = there

    def apply(self, logits: Tensor) -> Tensor:
        if not self.rows:
            return logits
        rows = sorted(self.rows)
        # A row whose prompt is being read in parts has no place yet, and what is drawn for it is thrown away.
        draws = [self.rows[row][0][min(len(self.rows[row][2]), len(self.rows[row][0]) - 1)] for row in rows]
        place_R = torch.tensor(rows, device=logits.device)
        uniforms_R = torch.tensor(draws, dtype=torch.float32, device=logits.device)
        temperatures_R = torch.tensor([self.rows[row][1] for row in rows], device=logits.device)
        chosen_R, logprobs_R = sample(logits[place_R].float() / temperatures_R[:, None], uniforms_R, 1.0)
        logits[place_R] = -torch.inf
        logits[place_R, chosen_R] = logprobs_R.to(logits.dtype)
        return logits


def _read(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype="<f4")
