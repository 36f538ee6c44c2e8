"""What maps are of, against their papers' formulas written out; the drawings' colours, sizes and edge cases."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from members import MODELS, config_for
from PIL import Image, ImageChops

from vit_core.app import canvas
from vit_core.app.attention_drawing import Map, View, colours, cut_out, draw, ends, overlay, sheet
from vit_core.app.attention_maps import (
    foreground,
    grad_cam,
    heaviest,
    principal_components,
    relevance,
    rollout,
    rows_of,
    to_patches,
)
from vit_core.app.canvas import Canvas, lettered, scaled


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
    weights = np.arange(2 * 9 * 9.0).reshape(2, 9, 9)  # a CLS token and two registers before the patches
    np.testing.assert_array_equal(to_patches(weights, slice(0, 1), (2, 3))[0], [[3, 4, 5], [6, 7, 8]])
    np.testing.assert_array_equal(to_patches(weights, slice(2, 3), (2, 3))[0], [[21, 22, 23], [24, 25, 26]])
    assert to_patches(weights, slice(0, 1), (3, 2)).shape == (2, 3, 2)
    mean = to_patches(weights, slice(3, None), (2, 3))[1]
    np.testing.assert_array_equal(mean.ravel(), [weights[1, 3:, 3 + n].mean() for n in range(6)])


@pytest.mark.parametrize("cls", MODELS)
def test_which_tokens_a_map_is_of(cls: str) -> None:
    config = config_for(cls)
    prefix, registers = config.num_prefix_tokens, config.num_register_tokens
    assert rows_of(config, "mean") == [slice(prefix, None)]
    assert rows_of(config) == ([slice(0, 1)] if config.tokens else [slice(0, None)])
    if registers:
        assert rows_of(config, "registers") == [slice(1 + i, 2 + i) for i in range(4)]
    for tokens, there in (("cls", bool(config.tokens)), ("registers", bool(registers))):
        if not there:
            with pytest.raises(ValueError, match=rf"tokens must be one of .*mean for a {type(config).__name__}, got"):
                rows_of(config, tokens)


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.floats(0.01, 1))
def test_the_patches_that_hold_a_share_of_the_mass(seed: int, share: float) -> None:
    """DINO's visualize_attention: from the least on, patches are left out as long as they hold 1 - share together."""
    maps = np.random.default_rng(seed).exponential(size=(3, 4, 5)) ** 3
    for weights, found in zip(maps, heaviest(maps, share), strict=True):
        left_out, total = 0.0, weights.sum()
        for i in weights.ravel().argsort():
            left_out += weights.ravel()[i] / total
            assert abs(left_out - (1 - share)) < 1e-12 or found.ravel()[i] == (left_out > 1 - share)
    assert heaviest(np.ones((2, 2)), 0.5).sum() == 2
    assert not heaviest(np.zeros((2, 2)), 0.5).any()


def test_principal_components_are_common_to_all_pictures() -> None:
    """By the eigenvectors of the covariance of all patches."""
    random = np.random.default_rng(0)
    mixing = random.normal(size=(7, 7)) * np.arange(1, 8)
    pictures = [random.normal(size=(n, 7)) @ mixing for n in (12, 20)]
    found, shares = principal_components(pictures)
    joined = np.concatenate(pictures)
    values, vectors = np.linalg.eigh(np.cov(joined.T))
    np.testing.assert_allclose(shares, values[::-1][:3] / values.sum(), rtol=1e-10)
    assert [each.shape for each in found] == [(12, 3), (20, 3)]
    for i in range(3):
        vector = vectors[:, -1 - i]
        scores = joined @ (vector * np.sign(vector[np.abs(vector).argmax()]))
        expected = (scores - scores.min()) / (scores.max() - scores.min())
        np.testing.assert_allclose(np.concatenate(found)[:, i], expected, rtol=0, atol=1e-10)


def test_principal_components_of_few_patches() -> None:
    found, shares = principal_components([np.array([[1.0, 2], [3, 5]])])
    np.testing.assert_allclose(found[0], [[0, 0, 0], [1, 0, 0]], atol=1e-12)
    np.testing.assert_allclose(shares, [1, 0, 0], atol=1e-12)
    same, none = principal_components([np.ones((4, 5))])
    assert not same[0].any() and not none.any()


def test_relevance_is_the_papers_formula() -> None:
    """Equations 5 and 6: A = E_h((gradient * attention)+), R = R + A R, from the identity on."""
    attended = attentions(1, 3, 2, 4)
    gradients = list(np.random.default_rng(2).normal(size=(3, 2, 4, 4)))
    expected = np.eye(4)
    for attention, gradient in zip(attended, gradients, strict=True):
        before = expected.copy()
        for i in range(4):
            for j in range(4):
                for k in range(4):
                    mean = sum(max(gradient[h, i, k] * attention[h, i, k], 0) for h in range(2)) / 2
                    expected[i, j] += mean * before[k, j]
    np.testing.assert_allclose(relevance(attended, gradients), expected, rtol=1e-12)


def test_grad_cam_is_the_papers_formula() -> None:
    """Equations 1 and 2, over the patches, which come last."""
    random = np.random.default_rng(3)
    states, gradients = random.normal(size=(2, 8, 5))
    expected = []
    for n in range(2, 8):
        channels = (sum(gradients[m, d] for m in range(2, 8)) / 6 * states[n, d] for d in range(5))
        expected.append(max(sum(channels), 0))
    assert 0 < np.count_nonzero(expected) < 6
    np.testing.assert_allclose(grad_cam(states, gradients, (2, 3)), np.reshape(expected, (2, 3)), rtol=1e-12)


def test_a_foreground_is_where_the_map_is_heavy() -> None:
    weights = np.full((6, 6), 0.01)
    weights[1:3, 2:5] = 1
    mask = foreground(weights, 0.6, (60, 120))
    assert mask.shape == (120, 60)
    assert mask[30:50, 25:45].all() and not mask[70:].any() and not mask[:, :15].any()
    cut = cut_out(Image.new("RGB", (60, 120), "red"), mask)
    assert cut.mode == "RGBA"
    np.testing.assert_array_equal(np.asarray(cut)[..., 3] == 255, mask)
    assert set(np.unique(np.asarray(cut)[..., 3])) == {0, 255}


def test_the_ends_of_the_colour_bar_can_be_told_apart() -> None:
    assert ends(0.017, 0.049) == ("1.7 %", "4.9 %")
    assert ends(0.00501, 0.00504) == ("0.501 %", "0.504 %")
    assert ends(0.25, 0.25) == ("25.0 %", "25.0 %")


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


def test_what_is_kept_is_lit_and_components_are_colours() -> None:
    kept = np.zeros((4, 6), bool)
    kept[3, 1] = True
    light = np.asarray(overlay(Image.new("RGB", (12, 8), "gray"), kept, (120, 80)).convert("L"))
    assert light[60:, 20:40].min() > 2 * light[:60].max()
    unit = np.random.default_rng(0).random((2, 3, 3))
    shown = np.asarray(overlay(Image.new("RGB", (3, 2)), unit, (30, 20)))
    np.testing.assert_array_equal(shown[5::10, 5::10], (255 * unit).round())


def test_small_pictures_stay_crisp() -> None:
    picture = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8))
    assert set(np.unique(np.asarray(scaled(picture, (100, 100))))) == {0, 255}


@pytest.mark.parametrize(
    ("size", "heads", "expected"),
    [((8, 8), 1, 1122), ((8, 8), 4, 1119), ((640, 427), 12, None), ((3, 61), 16, None), ((500, 2), 3, None)],
)
def test_drawings_of_every_shape(size: tuple[int, int], heads: int, expected: int | None) -> None:
    rng = np.random.default_rng(0)
    view = View(
        "a.png",
        Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)),
        Map(rng.random((3, 5)), "A map", "of something"),
        [Map(rng.random((3, 5)), f"head {i}", "3.0 %") for i in range(heads)],
        [("a label that is far too long to fit into the column", 0.7), ("b", 1.7), ("c", -1)],
    )
    drawing = draw(view, title="A title " * 40, subtitle="", heading="Heads")
    assert drawing.width == 1416
    assert expected in (None, drawing.height)
    white = Image.new("RGB", drawing.size, "white")
    left, top, right, bottom = ImageChops.difference(drawing, white).getbbox() or (0, 0, 0, 0)
    assert min(left, top, drawing.width - right) >= 40
    assert drawing.height - bottom >= 20


def test_a_label_of_any_length() -> None:
    """It is cut where the next letter would not fit, without a measurement of every length."""
    view = View("a.png", Image.new("RGB", (8, 8)), Map(np.ones((2, 2)), "A map"), [Map(np.ones((2, 2)), "head 0")])
    pictures = [draw(view, title="w" * length, subtitle="", heading="") for length in (300, 10**6)]
    assert ImageChops.difference(*pictures).getbbox() is None


def test_a_sheet_has_a_row_for_each_picture() -> None:
    maps = [Map(np.eye(3) > 0, f"head {i}") for i in range(3)]
    there = View("a.png", Image.new("RGB", (30, 20), "white"), Map(np.eye(3), "A map"), maps, [("cat", 0.5)])
    assert there.title == "cat (50.0 %)"
    alone, both, three = (
        sheet(views, title="A folder", subtitle="") for views in ([there], [View("b.png"), there], [there] * 3)
    )
    assert both.height - alone.height == three.height - both.height == 210
    assert alone.width == both.width == 996
    second = [three.crop((0, 190 + 210 * i, 996, 190 + 210 * (i + 1) - 1)) for i in range(2)]
    assert ImageChops.difference(*second).getbbox() is None
    row = both.crop((0, 190 + 210, 996, 190 + 420 - 1))
    assert ImageChops.difference(row, second[0]).getbbox() is None


def test_letters_that_pillows_font_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")  # whose font is taken where the system has none
    assert lettered("plain", 20)[1].getname()[0] == "Aileron"
    text, font = lettered("Su\u0308d\u00a0Жизнь", 20)
    assert (text, font.getname()[0]) == ("Süd Жизнь", "DejaVu Sans")
    with pytest.warns(UserWarning, match="in the place of letters that no font here has"):
        assert lettered("Éclair 猫 a\nb", 20)[0] == "Éclair ? a?b"
    monkeypatch.setattr(canvas, "_dejavu", lambda size: iter(()))
    assert lettered("Süd", 20)[0] == "Sud"
    with pytest.warns(UserWarning, match="DejaVu Sans, which comes with matplotlib"):
        Canvas((99, 40)).text((0, 0), "Жизнь", 20, (0, 0, 0), 99)
