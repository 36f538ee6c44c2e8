"""Every tolerance of the suite, relative to the largest value compared. No bound is what one machine gave.

One function computed two ways is compared in float64, at 1e-10. What is about float32 or half precision is compared
with float64, or with what another program computed in float32, and its bound follows from the dtype, the depth and the
width of the model (`rounding`). The few that follow from nothing, of whole trainings, stand here with the largest error
that was measured under every instruction set and number of threads that `make portable` tries.
"""

from __future__ import annotations

import math

from vit_core.config import ViTConfig, pair

UNIT_ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
UNIT_ROUNDOFF["tf32"] = 2.0**-11  # of what goes into a card's products, which are summed in float32
IN_A_LAYER, AT_THE_ENDS = 40, 15  # operations beside sums, unfused: 8 of a norm, 4 of a softmax, 5 of a GELU ...

DEVIATIONS = 3  # the standard ones, that a bound allows

SAME_FUNCTION_FLOAT64 = 1e-10  # one function computed two ways: 8.4e-16 measured
POSITION_TF = 2e-7  # recorded numbers: TensorFlow computed its kernel in float32, 9.3e-8 from float64
SAME_TRAINING_FLOAT64 = {"losses": 1e-9, "weights": 1e-8}  # 50 steps: 1.0e-13, and 6.3e-11 at keys' biases measured
SAME_TRAINING_FLOAT32 = {"losses": 1e-3, "weights": 1e-3}  # 4.3e-5 and 2.9e-5; keys' biases, left out, 2.0e-2
SAME_LOSS = 1e-5  # of each of 20 steps, on two devices or in two frameworks, in float32: 1.4e-6 measured


def roundings(config: ViTConfig, dtype: str) -> int:
    """How often a number is rounded on the longest way through a model, each operation rounding for itself.

    A sum of n products rounds n times: a layer's norms, queries, scores, contexts and three other products stand one
    behind the other. In half precision every library sums in float32 and rounds the sum once.
    """
    width, mlp, tokens = config.hidden_size, config.intermediate_size, config.num_patches + 1
    ends, layer = AT_THE_ENDS, IN_A_LAYER
    if dtype in ("float32", "float64"):
        patch = math.prod(pair(config.patch_size)) * config.num_channels
        ends, layer = ends + patch + 2 * width, layer + 6 * width + mlp + 2 * tokens
    return ends + config.num_hidden_layers * layer


def rounding(config: ViTConfig, dtype: str = "float32", gradient: bool = False) -> float:
    """How far what a model computes in a dtype may be from the exact result, relative to its largest value.

    n roundings, each anywhere within u and none knowing of another, add up like a random walk, in whatever order and
    however fused a machine does them (the model of Higham and Mary 2019, A New Approach to Probabilistic Rounding Error
    Analysis): their sum has a standard deviation of u sqrt(n / 3), and the bound is three of those. A gradient goes the
    way back too, through twice as many operations.
    """
    count = roundings(config, dtype) * (3 if gradient else 1)
    return DEVIATIONS * UNIT_ROUNDOFF[dtype] * math.sqrt(count / 3)


def both_rounded(config: ViTConfig, dtype: str = "float32", gradient: bool = False) -> float:
    """The same for two results of which neither is exact, as recorded float32 data."""
    return 2 * rounding(config, dtype, gradient)


def cosine(width: int) -> float:
    """How far the cosine of a float32 vector of this width with itself may be from 1: three sums of width products."""
    return DEVIATIONS * UNIT_ROUNDOFF["float32"] * math.sqrt(width)


def probabilities(config: ViTConfig, largest: float, dtype: str = "float32") -> float:
    """The same for two softmaxes of numbers up to `largest`, each relative to itself.

    An input that is e away changes what the softmax gives by a factor within exp(2 e).
    """
    return 2 * largest * both_rounded(config, dtype)
