"""Initialisation: the same from a seed for everyone, and distributed as transformers draws it without one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vit_core.config import ViTConfig
from vit_core.family import VIT, ViTMAEConfig
from vit_core.initialization import BOUND, draw
from vit_core.params import specs

CONFIG = ViTConfig(hidden_size=96, num_hidden_layers=2, num_attention_heads=4, intermediate_size=192, image_size=64)


def check_distribution(arrays: dict[str, np.ndarray], config: ViTConfig) -> None:
    for name, spec in specs(config, VIT.all_parts).items():
        if name not in arrays:
            continue
        values = arrays[name].astype(np.float64)
        if spec.init == "normal" and spec.leaf != "bias":
            n, std = values.size, config.initializer_range
            assert abs(values.mean()) < 5 * std / np.sqrt(n), name
            assert abs(values.std() - std) < 5 * std / np.sqrt(2 * n), name
            assert np.abs(values).max() > 2.1 * std or n < 1000, f"{name} is cut at two deviations"
        else:
            assert (values == (1.0 if (spec.init, spec.leaf) == ("norm", "weight") else 0.0)).all(), name


def test_seeded_draw() -> None:
    table = specs(CONFIG, VIT.all_parts)
    arrays = {name: draw(spec, CONFIG, seed=3) for name, spec in table.items()}
    check_distribution(arrays, CONFIG)
    assert all(a.dtype == np.float32 and a.shape == table[n].shape for n, a in arrays.items())
    for name, spec in table.items():
        np.testing.assert_array_equal(draw(spec, CONFIG, seed=3), arrays[name])
    weights = [
        a.ravel()[:50].tobytes() for n, a in arrays.items() if table[n].init == "normal" and table[n].leaf != "bias"
    ]
    assert len(set(weights)) == len(weights)
    assert not np.array_equal(draw(table["embeddings.cls_token"], CONFIG, seed=4), arrays["embeddings.cls_token"])


def test_values_are_cut_at_two() -> None:
    config = CONFIG.copy(initializer_range=3.0)
    values = draw(specs(config, ())["embeddings.position_embeddings"], config, seed=0)
    assert np.abs(values).max() <= BOUND
    assert np.abs(values).max() > 1.9


@pytest.mark.parametrize("cls", ["ViTModel", "ViTForImageClassification", "ViTForMaskedImageModeling"])
def test_models_start_as_drawn(backend: Any, cls: str) -> None:
    arrays = backend.parameters(backend.build(cls, CONFIG, seed=7))
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, draw(specs(CONFIG, VIT.all_parts)[name], CONFIG, seed=7), err_msg=name)


@pytest.mark.parametrize("scale", [0.02, 1.0, 0.0])
def test_models_without_a_seed_have_the_distribution(backend: Any, scale: float) -> None:
    config = CONFIG.copy(initializer_range=scale)
    first, second = (backend.parameters(backend.build("ViTForImageClassification", config)) for _ in range(2))
    assert np.abs(np.concatenate([a.ravel() for a in first.values()])).max() <= BOUND
    if scale == 0.02:
        check_distribution(first, config)
        assert not np.array_equal(first["embeddings.cls_token"], second["embeddings.cls_token"])


@pytest.mark.parametrize("seed", [{}, {"seed": 7}], ids=["drawn", "seeded"])
def test_patches_of_an_mae_start_uniform_by_the_sizes_of_their_matrix(backend: Any, seed: dict[str, int]) -> None:
    config = ViTMAEConfig(
        hidden_size=96, num_hidden_layers=1, num_attention_heads=4, intermediate_size=192, image_size=64
    )
    arrays = backend.parameters(backend.build("ViTMAEModel", config, **seed))
    values, bound = arrays["embeddings.patch_embeddings.projection.weight"], np.sqrt(6 / (96 + 3 * 16 * 16))
    assert 0.999 * bound < np.abs(values).max() <= bound * (1 + 1e-6)
    assert abs(values.std() - bound / np.sqrt(3)) < 0.01 * bound
    assert abs(arrays["encoder.layer.0.output.dense.weight"].std() - 0.02) < 0.001
