"""Attention rollout against the formula written out, and the drawing's colours, sizes and edge cases."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops

from vit_core.app.attention_maps import cls_to_patches, colours, draw, overlay, rollout
from vit_core.app.canvas import printable, scaled


def attentions(seed: int, layers: int, heads: int, tokens: int) -> list[np.ndarray]:
    scores = np.random.default_rng(seed).normal(size=(layers, heads, tokens, tokens)) * 3
    powers = np.exp(scores)
    return list(powers / powers.sum(-1, keepdims=True))


def written_out(layers: list[np.ndarray]) -> np.ndarray:
    """Section 3 of the paper, element by element: A = 0.5 W + 0.5 I, rollout(l) = A(l) rollout(l - 1)."""
    tokens = layers[0].shape[-1]
    result = [[float(i == j) for j in range(tokens)] for i in range(tokens)]
    for layer in layers:
        mean = [[sum(head[i, j] for head in layer) / len(layer) for j in range(tokens)] for i in range(tokens)]
        mixed = [[0.5 * mean[i][j] + 0.5 * (i == j) for j in range(tokens)] for i in range(tokens)]
        result = [
            [sum(mixed[i][k] * result[k][j] for k in range(tokens)) for j in range(tokens)] for i in range(tokens)
        ]
    return np.array(result)


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 4), st.integers(1, 7))
def test_rollout_is_the_papers_formula(seed: int, layers: int, heads: int, tokens: int) -> None:
    given_ = attentions(seed, layers, heads, tokens)
    result = rollout(given_)
    np.testing.assert_allclose(result, written_out(given_), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(result.sum(-1), 1, rtol=1e-12)
    batch = rollout([np.stack([layer, layer[::-1]]) for layer in given_])  # the order of heads does not matter
    np.testing.assert_allclose(batch, np.stack([result, result]), rtol=1e-12)


def test_rollout_of_attention_to_oneself_is_the_identity() -> None:
    np.testing.assert_array_equal(rollout([np.broadcast_to(np.eye(5), (3, 5, 5))] * 4), np.eye(5))
    with pytest.raises(ValueError, match="output_attentions=True"):
        rollout([])


def test_patches_are_laid_out_row_by_row() -> None:
    weights = np.arange(2 * 7 * 7.0).reshape(2, 7, 7)
    np.testing.assert_array_equal(cls_to_patches(weights, (2, 3))[0], [[1, 2, 3], [4, 5, 6]])
    assert cls_to_patches(weights, (3, 2)).shape == (2, 3, 2)


def test_colours_run_from_dark_to_light() -> None:
    ramp = colours(np.linspace(0, 1, 256)) @ [0.2126, 0.7152, 0.0722]
    assert ramp[0] < 5
    assert ramp[-1] > 240
    assert (np.diff(ramp) > -0.6).all()  # rounding to whole numbers aside


def test_the_overlay_is_brightest_where_the_weight_is() -> None:
    weights = np.zeros((4, 6))
    weights[3, 1] = 1
    light = np.asarray(overlay(Image.new("RGB", (12, 8), "gray"), weights, (120, 80)).convert("L"))
    row, column = np.unravel_index(light.argmax(), light.shape)
    assert (row // 20, column // 20) == (3, 1)
    flat = np.asarray(overlay(Image.new("RGB", (12, 8)), np.full((4, 6), 0.1), (120, 80)))
    assert flat.max() < 10


def test_small_pictures_stay_crisp() -> None:
    picture = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8))
    assert set(np.unique(np.asarray(scaled(picture, (100, 100))))) == {0, 255}


@pytest.mark.parametrize(
    ("size", "heads", "expected"),
    [((8, 8), 1, 1122), ((8, 8), 4, 1119), ((640, 427), 12, None), ((3, 61), 16, None), ((500, 2), 3, None)],
)
def test_drawings_of_every_shape(size: tuple[int, int], heads: int, expected: int | None) -> None:
    rng = np.random.default_rng(0)
    drawing = draw(
        Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)),
        rng.random((3, 5)),
        rng.random((heads, 3, 5)),
        layer=2,
        title="A title " * 40,
        subtitle="",
        predictions=[("a label that is far too long to fit into the column", 0.7), ("b", 1.7), ("c", -1)],
    )
    assert drawing.width == 1416
    assert expected in (None, drawing.height)
    white = Image.new("RGB", drawing.size, "white")
    left, top, right, bottom = ImageChops.difference(drawing, white).getbbox() or (0, 0, 0, 0)
    assert min(left, top, drawing.width - right) >= 40
    assert drawing.height - bottom >= 20


def test_a_label_of_any_length() -> None:
    """It is cut where the next letter would not fit, without a measurement of every length."""
    pictures = [
        draw(Image.new("RGB", (8, 8)), np.ones((2, 2)), np.ones((1, 2, 2)), layer=0, title="w" * length, subtitle="")
        for length in (300, 10**6)
    ]
    assert ImageChops.difference(*pictures).getbbox() is None


def test_text_that_the_font_lacks() -> None:
    assert printable("Éclair 猫 a\nb") == "Eclair ? a?b"
