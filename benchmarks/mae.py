"""A pre-training step of MAE with ViT-B/16 at 224 pixels, float32, on two threads: forward, loss, backward and AdamW.

Its encoder sees a quarter of the patches. In PyTorch against transformers, weights and noise equal, against itself with
every patch in the encoder, and against a step of the classifier. In TensorFlow against transformers' TF MAE, in a
tf.function each, with one optimizer. Time, and the peak memory of a process of its own that takes three steps.

python benchmarks/mae.py [--json] [--rounds N] [--seconds S]     in the environment of `make oracle`
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fresh_process import time_and_peak
from harness import OURS, THEIRS, arguments, interleaved, ratio, report

BATCH, EVERY, CLASSIFIER = 8, "every patch in the encoder", "a classifier"
AGAINST = {THEIRS: "", EVERY: f", against {EVERY}", CLASSIFIER: f", against {CLASSIFIER}"}
TITLE = f"MAE B/16, pre-training step, batch {BATCH}"


def model_of(name: str, folder: str) -> Any:
    """The model of a candidate."""
    if name == CLASSIFIER:
        from vit_torch import ViTConfig, ViTForImageClassification

        return ViTForImageClassification(ViTConfig.variant("B/16", num_labels=1000), seed=0)
    if name == THEIRS:
        from transformers import ViTMAEForPreTraining
    else:
        from vit_torch import ViTMAEForPreTraining
    return ViTMAEForPreTraining.from_pretrained(folder, mask_ratio=0.0 if name == EVERY else 0.75)


def step_of(name: str, folder: str) -> Callable[[], Any]:
    """A function that trains the model of a candidate for one step and returns the loss."""
    import torch

    torch.set_num_threads(2)
    model, drawn = model_of(name, folder).train(), torch.Generator().manual_seed(0)
    x = torch.randn((BATCH, 3, 224, 224), generator=drawn)
    noise = torch.rand((BATCH, 196), generator=drawn)
    other = {"labels": torch.arange(BATCH)} if name == CLASSIFIER else {"noise": noise}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)

    def step() -> torch.Tensor:
        loss: torch.Tensor = model(x, **other).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def tf_step_of(name: str, folder: str) -> Callable[[], Any]:
    """The same in TensorFlow, of our model or of transformers'."""
    import tensorflow as tf
    import tf_keras

    tf.config.threading.set_intra_op_parallelism_threads(2)
    if name == THEIRS:
        from transformers import TFViTMAEForPreTraining
    else:
        from vit_tf import TFViTMAEForPreTraining
    x = tf.random.stateless_normal((BATCH, 3, 224, 224), (0, 0))
    noise = tf.random.stateless_uniform((BATCH, 196), (0, 0))
    model = TFViTMAEForPreTraining.from_pretrained(f"{folder}/tf")
    trained = model.trainable_variables
    variables = trained if name == THEIRS else [variable.value for variable in trained]
    optimizer = tf_keras.optimizers.AdamW(1e-5, weight_decay=1e-2)
    optimizer.build(variables)

    @tf.function
    def step() -> Any:
        with tf.GradientTape() as tape:
            loss = model(pixel_values=x, noise=noise, training=True).loss
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return tf.reshape(loss, ())

    return lambda: float(step())


def check(steps: dict[str, Callable[[], Any]]) -> None:
    """Raises ArithmeticError where the two libraries' first losses differ."""
    first, theirs = (float(steps[name]()) for name in (OURS, THEIRS))
    if abs(first - theirs) > 1e-4 * theirs:
        raise ArithmeticError(f"The losses differ: {first} and {theirs}.")


def save(folder: str) -> None:
    """Write the model that all begin with, for TensorFlow as transformers reads it."""
    from vit_torch import ViTMAEConfig, ViTMAEForPreTraining

    model = ViTMAEForPreTraining(ViTMAEConfig(), seed=0)
    model.save_pretrained(folder)
    model.save_pretrained(f"{folder}/tf", save_format="tf", safe_serialization=False)


def in_a_process(code: str, folder: str, tf: str = "0") -> tuple[float, float]:
    """Seconds and peak memory in MiB of a process that runs a line of this module's code."""
    program = f"import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}]; import mae; {code}"
    return time_and_peak([sys.executable, "-W", "ignore", "-c", program, folder], {"USE_TF": tf, "USE_FLAX": "0"})


def peaks_of(names: Iterable[str], function: str, folder: str, tf: str) -> dict[str, Any]:
    """The peak memory of three steps of each candidate."""
    three = "step = mae.{}({!r}, sys.argv[1]); [step() for _ in range(3)]"
    processes = {name: partial(in_a_process, three.format(function, name), folder, tf) for name in names}
    found = interleaved(processes, min_rounds=3, min_seconds=0, warm_up=0, measure=lambda call: call())
    return {name: values[:, 1] for name, values in found.items()}


def main() -> None:
    given = arguments(__doc__, rounds=8, seconds=15.0)
    results = {}
    with TemporaryDirectory() as folder:
        in_a_process("mae.save(sys.argv[1])", folder)
        for title, function, against in ((TITLE, step_of, AGAINST), (f"tf, {TITLE}", tf_step_of, {THEIRS: ""})):
            names = (OURS, *against)
            peaks = peaks_of(names, function.__name__, folder, str(int(function is tf_step_of)))
            steps = {name: function(name, folder) for name in names}
            check(steps)
            times = interleaved(steps, min_rounds=given.rounds, min_seconds=given.seconds)
            results |= {
                f"{title}{what}{words}": ratio(values[OURS], values[name])
                for what, values in (("", times), (", peak memory", peaks))
                for name, words in against.items()
            }
    report("This package as a fraction of transformers'", results, given.json)


if __name__ == "__main__":
    main()
