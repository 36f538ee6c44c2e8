"""Every tolerance of the oracle suite, relative to the largest value compared, with the error measured beside it.

The suite runs forty random models a test; ORACLE_PROFILE=search draws a thousand fresh ones.
"""

OUTPUT_FLOAT32 = 2e-6  # eager against eager: 6.6e-7 measured
OUTPUT_FLOAT64 = 1e-10  # fused against fused and against eager: 2.7e-15 measured
INTERPOLATED_FLOAT32 = 1e-5  # their kernel's weights are float32, ours float64: 5.2e-6 measured
LOSS = 2e-6  # relative to the loss, or to 1 if it is smaller: 4.5e-7 measured
GRADIENT = 1e-5  # relative to the largest gradient of the model: 1.6e-6 measured
HALF = {"bfloat16": 5e-2, "float16": 4e-3}  # 3.1e-2, which is a few steps of the last bit, and 1.3e-3 measured
FLAX_FLOAT32 = 5e-6  # their LayerNorm takes the variance in one pass, ours in two: 1.0e-6 measured
FLAX_GRADIENT = 5e-6  # relative to the largest gradient of the model: 5.7e-7 measured
TF_FLOAT32 = 1.5e-5  # 7.2e-6 measured with models that amplify, where either is 7e-6 from float64; 1.5e-6 in the suite
TF_GRADIENT = 1e-5  # relative to the largest gradient of the model: 4.7e-6 measured
TF_FIT = 1e-5  # relative to the largest change of a weight in three steps: 3.0e-6 measured
SAMPLE = 2.7  # two samples of one distribution exceed this Kolmogorov-Smirnov distance once in a million
ONNX_FLOAT32 = 1.5e-5  # onnxruntime against PyTorch, three layers of large weights: 6.2e-6 measured
FORMATS = 5e-6  # ours against the libraries of other formats, and converted files: 1.3e-6 measured
PICTURES = 1e-6  # against keras-hub, which scales in float32, 1.9e-7 measured; none against timm
