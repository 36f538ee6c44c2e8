"""Every tolerance of the oracle suite, relative to the largest value compared, with the error measured beside it."""

OUTPUT_FLOAT32 = 2e-6  # eager against eager
OUTPUT_FLOAT64 = 1e-10  # fused against fused and against eager
LOSS = 2e-6
GRADIENT = 1e-5
INTERPOLATED = 2e-6
HALF = {"bfloat16": 3e-2, "float16": 4e-3}
EQUAL = 0.0  # the same kernels in the same order
