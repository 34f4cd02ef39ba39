"""Train one student on many machines: distilled from a cached teacher, pruned, quantization-aware.

Keras trains on several processes on JAX. A try on this machine, with two processes:

    python examples/many_machines.py --processes 2

On a cluster, on each machine, with its own number:

    python examples/many_machines.py --processes 8 --process 3 --coordinator FIRST:1234 --folder F

where FIRST is the name of the first machine, and F a folder that all of them share.

A run that was stopped goes on when all are started again. When training has ended, the first
process exports with Keras on TensorFlow. `--fast` takes 1,024 images.
"""

import argparse
import os
import pathlib
import socket
import subprocess
import sys

parser = argparse.ArgumentParser()
parser.add_argument("--processes", type=int, default=2)
parser.add_argument("--process", type=int)
parser.add_argument("--coordinator")
parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("many_machines"))
parser.add_argument("--epochs", type=int, default=4)
parser.add_argument("--fast", action="store_true")
parser.add_argument("--export", action="store_true")
options = parser.parse_args()
BATCH = 64  # of all processes together


def launch():
    """Starts all processes on this machine, and then the export."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, *sys.argv, "--coordinator", address]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    workers = [
        subprocess.Popen([*command, "--process", str(rank)], env=environment)
        for rank in range(options.processes)
    ]
    if any([worker.wait() for worker in workers]):
        sys.exit("A process has failed.")


def train():
    """Is one process of the training; each gets its part of every batch."""
    os.environ["KERAS_BACKEND"] = "jax"
    import jax

    if options.processes > 1:
        if jax.config.jax_platforms == "cpu":
            jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(options.coordinator, options.processes, options.process)
    import keras

    import tfcompress as tfc
    from tfcompress.demo.data import load
    from tfcompress.demo.models import resnet

    keras.utils.set_random_seed(0)
    data = load()
    count = 1024 if options.fast else 10_000
    x, y = data.x_train[:count], data.y_train[:count]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    # The teacher is trained by the first process, and runs over the data once; the others wait for
    # it, and read what it said.
    teacher_file = options.folder / "teacher.keras"
    if options.process == 0 and not teacher_file.exists():
        teacher = resnet((16, 32), stem_strides=2)
        teacher.compile(keras.optimizers.Adam(3e-3), loss)
        teacher.fit(x, y, batch_size=BATCH, epochs=options.epochs, verbose=0)
        teacher.save(teacher_file)
    if options.processes > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices("teacher")
    teacher = keras.saving.load_model(teacher_file)
    cache = tfc.cache_teacher(teacher, (x, y), options.folder / "cache", verbose=False)

    # From here on the processes compute together, on variables that are the same in all.
    keras.utils.set_random_seed(0)
    keras.distribution.set_distribution(
        keras.distribution.DataParallel(devices=jax.devices(), auto_shard_dataset=False)
    )
    steps = options.epochs * (count // BATCH)
    schedule = tfc.PolynomialDecay(0.0, 0.8, 0, int(0.6 * steps), frequency=4)
    student = tfc.quantize(tfc.prune(resnet((8, 16), stem_strides=2), schedule))
    distiller = tfc.Distiller(cache, student, alpha=0.5)
    distiller.compile(keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"])
    part = (options.process, options.processes)
    history = distiller.fit(
        cache.dataset(BATCH, seed=0, process=part, drop_remainder=True),
        epochs=options.epochs,
        verbose=0,
        callbacks=[tfc.BackupAndRestore(options.folder / "backup")],
    )
    print(f"process {part[0]} of {part[1]}: {history.history['accuracy'][-1]:.2%}", flush=True)
    if options.process == 0:
        student.save(options.folder / "student.keras")


def export():
    """Writes and measures the file, on TensorFlow."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import keras

    import tfcompress as tfc
    from tfcompress.demo.data import load

    data = load()
    student = keras.saving.load_model(options.folder / "student.keras")
    print(tfc.export_tflite(student, options.folder / "student.tflite"))
    named = {
        "teacher": options.folder / "teacher.keras",
        "student": options.folder / "student.tflite",
    }
    print(tfc.compare(named, data.x_test, data.y_test))


options.folder.mkdir(parents=True, exist_ok=True)
if options.export:
    export()
elif options.process is not None:
    train()
else:
    launch()
    subprocess.run([sys.executable, *sys.argv, "--export"], check=True)
