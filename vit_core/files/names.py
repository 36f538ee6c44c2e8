"""Names of the files that stand in a folder of a model, each stated once."""

CONFIG_NAME, PREPROCESSOR_NAME = "config.json", "preprocessor_config.json"

# A preset of keras-hub: two files of weights, which are Keras's own, and the documents beside config.json.
KERAS_WEIGHTS = ".weights.h5"
PRESET_MODEL, PRESET_TASK_MODEL = f"model{KERAS_WEIGHTS}", f"task{KERAS_WEIGHTS}"
PRESET_METADATA, PRESET_TASK = "metadata.json", "task.json"
PRESET_PREPROCESSOR, PRESET_CONVERTER = "preprocessor.json", "image_converter.json"
PRESET_BESIDE = (PRESET_METADATA, PRESET_TASK, PRESET_TASK_MODEL, PRESET_PREPROCESSOR, PRESET_CONVERTER)
