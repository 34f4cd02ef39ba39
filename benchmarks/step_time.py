"""Training step of pruned and quantization-aware models, as a ratio to the float model.

Step time differs from process to process by far more than the overheads, so each round measures
float, pruned, QAT and both in one process, in turns, and the table gives the median ratio over the
processes. Run by hand: python benchmarks/step_time.py [processes] [--xla]
"""

import json
import subprocess
import sys
import time

BATCH, TURNS, STEPS = 64, 8, 10


def mobilenet_like():
    import keras
    from keras import layers as L

    stack = [keras.Input((28, 28, 1)), L.Conv2D(16, 3, padding="same", use_bias=False)]
    stack += [L.BatchNormalization(), L.ReLU(6.0)]
    for filters, strides in ((32, 2), (64, 1), (64, 2), (128, 1)):
        stack += [L.DepthwiseConv2D(3, strides, padding="same", use_bias=False)]
        stack += [L.BatchNormalization(), L.ReLU(6.0), L.Conv2D(filters, 1, use_bias=False)]
        stack += [L.BatchNormalization(), L.ReLU(6.0)]
    return keras.Sequential([*stack, L.GlobalAveragePooling2D(), L.Dense(10)])


def measure(jit):
    import keras
    import numpy as np

    import tfcompress as tfc
    from tfcompress.demo.models import resnet

    generator = np.random.default_rng(0)
    x = generator.random((BATCH * STEPS, 28, 28, 1), dtype="float32")
    y = generator.integers(0, 10, BATCH * STEPS)
    schedule = tfc.PolynomialDecay(0.0, 0.8, 0, 1000, frequency=100)
    found = {}
    for net, make in (("ResNet, 78,426", resnet), ("MobileNet-like", mobilenet_like)):
        models = {
            "float": make(),
            "pruned": tfc.prune(make(), schedule),
            "QAT": tfc.quantize(make()),
            "pruned + QAT": tfc.quantize(tfc.prune(make(), schedule)),
        }
        times = {name: [] for name in models}
        for model in models.values():
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            model.compile("adam", loss, jit_compile=jit)
            model.fit(x, y, batch_size=BATCH, verbose=0)
        for _ in range(TURNS):
            for name, model in models.items():
                start = time.perf_counter()
                model.fit(x, y, batch_size=BATCH, verbose=0)
                times[name].append((time.perf_counter() - start) / STEPS * 1000)
        found[net] = {name: float(np.min(values)) for name, values in times.items()}
    return found


def main():
    import numpy as np
    from rich.console import Console

    from tfcompress.tables import table

    numbers = [int(argument) for argument in sys.argv[1:] if argument.isdigit()]
    processes = numbers[0] if numbers else 5
    jit = "--xla" in sys.argv
    command = [sys.executable, __file__, "--measure", str(int(jit))]
    rounds = []
    for _ in range(processes):
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        rounds.append(json.loads(out.strip().splitlines()[-1]))
    rows = []
    for net in rounds[0]:
        for name in rounds[0][net]:
            ratios = [r[net][name] / r[net]["float"] for r in rounds]
            step = np.median([r[net][name] for r in rounds])
            spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
            rows.append((net, name, f"{step:.0f}", f"{np.median(ratios):.2f}x", spread))
    title = f"XLA {'on' if jit else 'off'}, batch {BATCH}, {processes} processes"
    Console(width=100).print(table(title, ("network", "", "ms", "ratio", "spread"), rows))


if __name__ == "__main__":
    if "--measure" in sys.argv:
        print(json.dumps(measure(bool(int(sys.argv[-1])))))
    else:
        main()
