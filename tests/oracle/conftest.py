"""How the oracle suite runs: the same random examples every time, without a clock."""

from __future__ import annotations

import os

import torch
import transformers
from hypothesis import settings

settings.register_profile("oracle", derandomize=True, deadline=None, max_examples=40)
settings.register_profile("search", deadline=None, max_examples=1000)  # others every time: to hunt for differences
settings.load_profile(os.environ.get("ORACLE_PROFILE", "oracle"))
torch.set_num_threads(1)  # the models are small
transformers.logging.set_verbosity_error()  # it logs what it initialises anew: the tests compare that as data
