"""Every tolerance of the suite, relative to the largest value compared, with the error measured beside it."""

GOLDEN_FLOAT32 = 2e-6  # eager attention against transformers' eager attention: 9.0e-7 measured
GOLDEN_FLOAT32_FUSED = 5e-6  # fused kernels add in another order: 2.9e-6 measured, on the model of 12 layers
GOLDEN_GRADIENT = 1e-5  # 7.9e-7 measured in torch, 1.0e-6 in Flax
SAME_FUNCTION_FLOAT64 = 1e-10  # one function computed two ways: 8.4e-16 measured
POSITION_TF = 2e-7  # TensorFlow computes its kernel in float32: 9.3e-8 measured
OTHER_FAMILIES = 2e-6  # against timm, torchvision, keras-hub, Flax Linen: 1.1e-6 in PyTorch, on 12 layers
HALF = {"bfloat16": 2e-2, "float16": 2e-3}  # against float32 on the golden model: 8.7e-3 and 8.2e-4 at worst
TF_POLICY_BFLOAT16 = 3e-2  # the same in Keras's policies: 2.2e-2 measured on a CPU without AVX-512
AUTOCAST_BFLOAT16 = 0.12  # on a tiny model of large random weights: 6.0e-2 measured, 4.0e-2 for bfloat16 throughout
SAME_SCORES = 1e-5  # probabilities of the digits model in two backends: logits differ by 1.9e-6 at worst
SAME_TRAINING_FLOAT64 = {"losses": 1e-9, "weights": 1e-8}  # 50 steps: 1.0e-13, and 6.3e-11 at keys' biases measured
SAME_TRAINING_FLOAT32 = {"losses": 1e-3, "weights": 1e-3}  # 4.3e-5 and 2.9e-5; keys' biases, left out, 2.0e-2
FULL_SIZE = {"float32": 1e-5, "bfloat16": 4e-2, "float16": 5e-3}  # ViT-B/16: 1.7e-6, 2.1e-2 and 2.3e-3 at worst
