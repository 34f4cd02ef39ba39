"""Training step of a distiller, against the student alone and against Keras' distiller.

The ResNet of 78,426 parameters teaches one of 14,658; where layers are matched, one that is as wide
as the teacher there, because Keras' distiller has no projector. Milliseconds of a step, in turns
within a process, medians over processes of the ratio. The goals: cached teacher <= 1.08x the
student alone; live teacher <= 1.05x (student step + teacher forward); faster than
keras.distillation.Distiller with logits and with two layers; evaluate 2x faster.
Run by hand: python benchmarks/distill_step_time.py [processes]
"""

import json
import subprocess
import sys
import tempfile
import time

BATCH, TURNS, STEPS = 64, 5, 32
HINTS = [("stage2_relu", "stage1_relu"), ("stage3_relu", "stage2_relu")]


def measure():
    import keras
    import numpy as np
    import tensorflow as tf

    import tfcompress as tfc
    from tfcompress.demo.models import resnet

    generator = np.random.default_rng(0)
    count = BATCH * STEPS
    x = generator.random((count, 28, 28, 1), dtype="float32")
    y = generator.integers(0, 10, count)
    plain = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(count).batch(BATCH).prefetch(2)
    teacher = resnet(name="teacher")
    kd = keras.distillation

    def student(widths=(8, 16, 24)):
        return resnet(widths, stem_strides=2, name="student")

    def wide():
        return student((32, 64, 64))

    def cached(losses=None):
        return tfc.cache_teacher(
            teacher, (x, y), tempfile.mkdtemp() + "/cache", losses, verbose=False
        )

    def matching():
        return [tfc.FeatureMatching(*pair, name=f"hint{i}") for i, pair in enumerate(HINTS)]

    def keras_matching():
        return [
            kd.FeatureDistillation(teacher_layer_name=t, student_layer_name=s) for t, s in HINTS
        ]

    soft = kd.LogitsDistillation(loss=keras.losses.KLDivergence())
    logits, hints = cached(), cached(matching())
    models = {
        "student": (student(), plain),
        "cached, logits": (tfc.Distiller(logits, student()), logits.dataset(BATCH)),
        "live, logits": (tfc.Distiller(teacher, student()), plain),
        "Keras, logits": (kd.Distiller(teacher, student(), soft), plain),
        "wide student": (wide(), plain),
        "cached, two layers": (tfc.Distiller(hints, wide(), matching()), hints.dataset(BATCH)),
        "live, two layers": (tfc.Distiller(teacher, wide(), matching()), plain),
        "Keras, two layers": (kd.Distiller(teacher, wide(), keras_matching()), plain),
    }
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    for model, data in models.values():
        model.compile("adam", loss=loss, jit_compile=False)
        model.fit(data, verbose=0)
        model.evaluate(plain, verbose=0)

    @tf.function
    def forward():
        total = 0.0  # unused results would not be computed
        for images, _ in plain:
            total += tf.reduce_sum(teacher(images, training=False))
        return total

    forward()
    acts = {name: (lambda m=m, d=d: m.fit(d, verbose=0)) for name, (m, d) in models.items()}
    acts["teacher forward"] = forward
    for name in ("live, logits", "Keras, logits"):
        acts[f"evaluate: {name}"] = lambda m=models[name][0]: m.evaluate(plain, verbose=0)
    times = {name: [] for name in acts}
    for _ in range(TURNS):
        for name, act in acts.items():
            started = time.perf_counter()
            act()
            times[name].append((time.perf_counter() - started) / STEPS * 1000)
    return {name: float(np.min(values)) for name, values in times.items()}


def main():
    import numpy as np
    from rich.console import Console

    from tfcompress.tables import table

    processes = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    rounds = []
    for _ in range(processes):
        command = [sys.executable, __file__, "--measure"]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        rounds.append(json.loads(out.strip().splitlines()[-1]))
    lines = [(name, f"{np.median([r[name] for r in rounds]):.1f}") for name in rounds[0]]
    alone = {"logits": "student", "two layers": "wide student"}
    pairs = {
        "cached, logits / alone": ("cached, logits", "student"),
        "cached, two layers / alone": ("cached, two layers", "wide student"),
        "live, logits / Keras": ("live, logits", "Keras, logits"),
        "live, two layers / Keras": ("live, two layers", "Keras, two layers"),
        "evaluate / Keras": ("evaluate: live, logits", "evaluate: Keras, logits"),
    }
    ratios = {name: [r[a] / r[b] for r in rounds] for name, (a, b) in pairs.items()}
    for kind, name in alone.items():
        ratios[f"live, {kind} / (alone + teacher)"] = [
            r[f"live, {kind}"] / (r[name] + r["teacher forward"]) for r in rounds
        ]
    console = Console(width=100)
    console.print(table(f"Batch {BATCH}, {processes} processes", ("", "ms"), lines))
    spread = [
        (name, f"{np.median(v):.2f}x", f"{min(v):.2f}-{max(v):.2f}") for name, v in ratios.items()
    ]
    console.print(table("Ratios", ("", "median", "spread"), spread))


if __name__ == "__main__":
    if "--measure" in sys.argv:
        print(json.dumps(measure()))
    else:
        main()
