"""Every tolerance of the oracle suite, relative to the largest value compared, with the error measured beside it."""

OUTPUT_FLOAT32 = 2e-6  # eager against eager: 6.6e-7 measured
OUTPUT_FLOAT64 = 1e-10  # fused against fused and against eager: 2.7e-15 measured
INTERPOLATED_FLOAT32 = 5e-6  # their kernel's weights are float32, ours float64: 1.5e-6 measured
LOSS = 1e-5  # relative to the loss, which may be small beside the logits: 2.0e-6 measured
GRADIENT = 1e-5  # relative to the largest gradient of the model: 1.6e-6 measured
HALF = {"bfloat16": 3e-2, "float16": 4e-3}  # 1.6e-2, which is one step of two, and 1.3e-3 measured
SAMPLE = 2.7  # two samples of one distribution exceed this Kolmogorov-Smirnov distance once in a million
