"""What a teacher is worth: one student, trained alone and by every kind of distillation.

Fashion-MNIST, the demo's 10,000 training and 5,000 test images (`--full`: all 60,000 and 10,000).
The teacher is the ResNet of 78,426 parameters, trained on flipped and shifted images; the student a
ResNet of 14,658, for as many epochs in every row. Three parts: all labels; a tenth of the labels;
no labels. Rows are kept in FOLDER as they are done, so that it goes on where it stopped; take
another FOLDER after a change of the settings. Run by hand:
python -m benchmarks.distillation FOLDER [--seeds 3] [--full] [--rows GLOB]
"""

import argparse
import fnmatch
import json
import pathlib
import time

import keras
import numpy as np
from rich.console import Console

import tfcompress as tfc
from tfcompress.demo.data import load
from tfcompress.demo.models import resnet
from tfcompress.tables import table

BATCH = 128
TEACHER_EPOCHS, EPOCHS = 12, 10  # on all images; three and two times as many on the embedded ones
STUDENT = {"widths": (8, 16, 24), "stem_strides": 2, "name": "student"}
# Of the same height and width: the student halves the image one stage earlier.
HINTS = [("stage2_relu", "stage1_relu"), ("stage3_relu", "stage2_relu")]


def rows():
    """Returns for each row: kind, losses, weights and alpha."""
    soft = tfc.SoftTargets(4.0)
    hints = [tfc.FeatureMatching(*pair, name=f"hint{i}") for i, pair in enumerate(HINTS)]
    maps = [tfc.AttentionTransfer(*pair, name=f"map{i}") for i, pair in enumerate(HINTS)]
    pool = ("pool", "pool")
    similar = tfc.SimilarityPreserving("stage3_relu", "stage3_relu")
    return {
        "alone": ("", None, None, 0.0),
        "alone, on the teacher's images": ("", None, None, 0.0),
        "soft targets": ("response", [soft], None, 0.9),
        "DKD": ("response", [tfc.DecoupledTargets(4.0, other_weight=2.0)], None, 0.5),
        "FitNets": ("feature", hints, [0.3, 0.3], 0.5),
        "attention transfer": ("feature", maps, [50.0, 50.0], 0.5),
        "RKD": ("relation", [tfc.RKDDistance(*pool), tfc.RKDAngle(*pool)], [5.0, 10.0], 0.5),
        "similarity-preserving": ("relation", [similar], [3000.0], 0.5),
        "soft targets + similarity-preserving": ("both", [soft, similar], [1.0, 1000.0], 0.9),
    }


def compiled(model, steps):
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(3e-3, steps)),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=True,
    )
    return model


def fit(model, data, samples, epochs):
    """Trains on a `tf.data.Dataset` of full batches or on arrays."""
    steps = epochs * (samples // BATCH)
    started = time.perf_counter()
    compiled(model, steps).fit(data, epochs=epochs, verbose=0)
    return time.perf_counter() - started


def batches_of(x, y, seed, augment=False):
    """Returns shuffled full batches, of flipped and shifted images if asked for."""
    import tensorflow as tf

    data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x), seed=seed)
    data = data.batch(BATCH, drop_remainder=True)
    if augment:
        change = keras.Sequential(
            [
                keras.layers.RandomFlip("horizontal", seed=seed),
                keras.layers.RandomTranslation(0.08, 0.08, fill_mode="constant", seed=seed),
            ]
        )
        data = data.map(lambda images, labels: (change(images, training=True), labels))
    return data.prefetch(2)


def teacher_of(data, folder):
    path = folder / "teacher.keras"
    if not path.is_file():
        keras.utils.set_random_seed(0)
        teacher = resnet(name="teacher")
        batches = batches_of(data.x_train, data.y_train, 0, augment=True)
        fit(teacher, batches, len(data.x_train), TEACHER_EPOCHS * (3 if is_small(data) else 1))
        teacher.save(path)
    return keras.saving.load_model(path)


def keras_distiller(teacher, student):
    # Its default, the name "kl_divergence", skips the softmax (Keras 3.15) and does not learn.
    soft = keras.distillation.LogitsDistillation(temperature=4.0, loss=keras.losses.KLDivergence())
    return keras.distillation.Distiller(teacher, student, soft, student_loss_weight=0.1)


def is_small(data):
    return len(data.x_train) < 60_000


def parts(data):
    """Returns for each part its samples, labels, epochs and rows (None for all)."""
    epochs = EPOCHS * (2 if is_small(data) else 1)
    few = np.random.default_rng(0).permutation(len(data.x_train))[: len(data.x_train) // 10]
    return {
        "all labels": (data.x_train, data.y_train, epochs, None),
        "a tenth of the labels": (data.x_train[few], data.y_train[few], 3 * epochs, None),
        "no labels": (data.x_train, data.y_train, epochs, ["soft targets"]),
    }


def measure(data, folder, seeds, wanted, console):
    teacher = teacher_of(data, folder)
    test = data.x_test, data.y_test
    path = folder / "results.json"
    found = json.loads(path.read_text()) if path.is_file() else {}
    compiled(teacher, 1)
    found["teacher"] = teacher.evaluate(*test, verbose=0)[1]
    losses = [loss for row in rows().values() for loss in row[1] or []]
    for part, (x, y, epochs, only) in parts(data).items():
        cache = None
        for seed in range(seeds):
            for name in only or [*rows(), "keras.distillation"]:
                key = f"{part}|{name}|{seed}"
                if key in found or not fnmatch.fnmatch(f"{part}|{name}", wanted):
                    continue
                keras.utils.set_random_seed(seed + 10)
                student = resnet(**STUDENT)
                if name.startswith(("alone", "keras")):
                    model = keras_distiller(teacher, student) if "keras" in name else student
                    batches = batches_of(x, y, seed, augment="images" in name)
                else:
                    place = folder / part.replace(" ", "-")
                    if cache is None:
                        cache = tfc.cache_teacher(teacher, (x, y), place, losses)
                    _, chosen, weights, alpha = rows()[name]
                    alpha = 1.0 if part == "no labels" else alpha
                    model = tfc.Distiller(cache, student, chosen, weights, alpha=alpha)
                    batches = cache.dataset(BATCH, seed=seed, drop_remainder=True)
                seconds = fit(model, batches, len(x), epochs)
                accuracy = compiled(student, 1).evaluate(*test, verbose=0)[1]
                if path.is_file():  # rows may be shared out to several processes
                    found |= json.loads(path.read_text())
                found[key] = accuracy
                aside = path.with_suffix(f".{name.replace(' ', '-')}")
                aside.write_text(json.dumps(found, indent=1))
                aside.replace(path)
                console.print(f"{key}: {accuracy:.2%} in {seconds:.0f} s")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--rows", default="*", help='those that match, as "all labels|soft*"')
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    console = Console(width=100)
    data = load(full=asked.full)
    found = measure(data, asked.folder, asked.seeds, asked.rows, console)
    console.print(f"teacher {found.pop('teacher'):.2%}")
    groups = {}
    for key, accuracy in found.items():
        part, name, _ = key.split("|")
        groups.setdefault((part, name), []).append(accuracy)
    lines = []
    for (part, name), values in groups.items():
        alone = groups.get((part, "alone")) or groups.get(("all labels", "alone")) or values
        gain = np.mean(values) - np.mean(alone)
        error = np.sqrt(sum(np.var(v, ddof=1) / len(v) for v in (values, alone) if len(v) > 1))
        spread = f"{min(values):.2%}-{max(values):.2%}"
        lines.append((part, name, f"{np.mean(values):.2%}", spread, f"{gain:+.2%}", f"{error:.2%}"))
    columns = ("labels", "", "mean", "spread", "gain", "its standard error")
    console.print(table("Student of 14,658 parameters", columns, lines))


if __name__ == "__main__":
    main()
