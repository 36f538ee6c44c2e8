"""A pre-training step of MAE with ViT-B/16 at 224 pixels, float32, on two threads: forward, loss, backward and AdamW.

Its encoder sees a quarter of the patches. In PyTorch against transformers, weights and noise equal, against itself with
every patch in the encoder, and against a step of the classifier; time, and the peak memory of a process of its own that
takes three steps. In TensorFlow against transformers' TF MAE: forward, loss and backward in a tf.function.

python benchmarks/mae.py [--json] [--rounds N] [--seconds S]     in the environment of `make oracle`
"""

from __future__ import annotations

import sys
from collections.abc import Callable
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


def tf_steps(folder: str) -> dict[str, Callable[[], Any]]:
    """The same step in TensorFlow, without an optimizer, of our model and of transformers'."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(2)
    import transformers

    import vit_tf

    x = tf.random.stateless_normal((BATCH, 3, 224, 224), (0, 0))
    noise = tf.random.stateless_uniform((BATCH, 196), (0, 0))
    ours, h5 = vit_tf.TFViTMAEForPreTraining.from_pretrained(folder), f"{folder}/tf"
    ours.save_pretrained(h5, safe_serialization=False)  # as transformers reads it

    def of(model: Any) -> Callable[[], Any]:
        variables = model.trainable_variables

        @tf.function
        def gradients() -> Any:
            with tf.GradientTape() as tape:
                loss = model(pixel_values=x, noise=noise, training=True).loss
            return tf.reshape(loss, ()), tape.gradient(loss, variables)

        return lambda: float(gradients()[0])

    return {OURS: of(ours), THEIRS: of(transformers.TFViTMAEForPreTraining.from_pretrained(h5))}


def check(steps: dict[str, Callable[[], Any]]) -> None:
    """Raises ArithmeticError where the two libraries' first losses differ."""
    first, theirs = (float(steps[name]()) for name in (OURS, THEIRS))
    if abs(first - theirs) > 1e-4 * theirs:
        raise ArithmeticError(f"The losses differ: {first} and {theirs}.")


def save(folder: str) -> None:
    """Write the model that all begin with."""
    from vit_torch import ViTMAEConfig, ViTMAEForPreTraining

    ViTMAEForPreTraining(ViTMAEConfig(), seed=0).save_pretrained(folder)


def in_a_process(code: str, folder: str) -> tuple[float, float]:
    """Seconds and peak memory in MiB of a process that runs a line of this module's code."""
    program = f"import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}]; import mae; {code}"
    return time_and_peak([sys.executable, "-W", "ignore", "-c", program, folder], {"USE_TF": "0", "USE_FLAX": "0"})


def main() -> None:
    given = arguments(__doc__, rounds=8, seconds=15.0)
    with TemporaryDirectory() as folder:
        in_a_process("mae.save(sys.argv[1])", folder)
        three = "step = mae.step_of({!r}, sys.argv[1]); [step() for _ in range(3)]"
        processes = {name: partial(in_a_process, three.format(name), folder) for name in (OURS, *AGAINST)}
        found = interleaved(processes, min_rounds=3, min_seconds=0, warm_up=0, measure=lambda call: call())
        peaks = {name: values[:, 1] for name, values in found.items()}
        steps = {name: step_of(name, folder) for name in processes}
        check(steps)
        times = interleaved(steps, min_rounds=given.rounds, min_seconds=given.seconds)
        steps = tf_steps(folder)
        check(steps)
        tf_times = interleaved(steps, min_rounds=given.rounds, min_seconds=given.seconds)
    results = {
        f"{TITLE}{what}{against}": ratio(values[OURS], values[name])
        for what, values in (("", times), (", peak memory", peaks))
        for name, against in AGAINST.items()
    }
    results[f"tf, {TITLE}"] = ratio(tf_times[OURS], tf_times[THEIRS])
    report("This package as a fraction of transformers'", results, given.json)


if __name__ == "__main__":
    main()
