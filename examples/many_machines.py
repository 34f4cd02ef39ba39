r"""Train one student on many machines: distilled from a cached teacher, pruned, quantization-aware.

Keras trains on several processes on JAX. A try on this machine, with two processes:

    python examples/many_machines.py --processes 2

On a cluster, with a folder F that all machines share, FIRST being the name of the first machine:

    python examples/many_machines.py --folder F --step prepare       # on one machine
    python examples/many_machines.py --folder F --step train --processes 8 --process 3 \
        --coordinator FIRST:1234                                     # on each, with its number
    python examples/many_machines.py --folder F --step export        # on one machine

A training that was stopped goes on when all processes are started again. `--fast` takes 1,024
images.
"""

import argparse
import os
import pathlib
import socket
import subprocess
import sys

parser = argparse.ArgumentParser()
parser.add_argument("--step", choices=("prepare", "train", "export"))
parser.add_argument("--processes", type=int, default=2)
parser.add_argument("--process", type=int, default=0)
parser.add_argument("--coordinator")
parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("many_machines"))
parser.add_argument("--epochs", type=int, default=4)
parser.add_argument("--fast", action="store_true")
options = parser.parse_args()
os.environ["KERAS_BACKEND"] = "tensorflow" if options.step == "export" else "jax"
TEACHER, STUDENT = options.folder / "teacher.keras", options.folder / "student.keras"
COUNT = 1024 if options.fast else 10_000
BATCH = 64  # of all processes together


def launch():
    """Does all steps on this machine."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, *sys.argv, "--coordinator", address, "--step"]
    cpu = {**os.environ, "JAX_PLATFORMS": "cpu"}
    subprocess.run([*command, "prepare"], env=cpu, check=True)
    ranks = map(str, range(options.processes))
    workers = [subprocess.Popen([*command, "train", "--process", r], env=cpu) for r in ranks]
    if any([worker.wait() for worker in workers]):
        sys.exit("A process has failed.")
    subprocess.run([*command, "export"], check=True)


def data():
    """Returns the images and their classes."""
    from tfcompress.demo.data import load

    images = load()
    return images.x_train[:COUNT], images.y_train[:COUNT]


def compiled(model):
    import keras

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"])
    return model


def cached():
    """Returns what the teacher says of the images: computed once, and read by every process."""
    import keras

    import tfcompress as tfc

    teacher = keras.saving.load_model(TEACHER)
    return tfc.cache_teacher(teacher, data(), options.folder / "cache", verbose=False)


def prepare():
    import keras

    from tfcompress.demo.models import resnet

    keras.utils.set_random_seed(0)
    if not TEACHER.exists():
        teacher = compiled(resnet((16, 32), stem_strides=2))
        teacher.fit(*data(), batch_size=BATCH, epochs=options.epochs, verbose=0)
        teacher.save(TEACHER)
    cached()


def train():
    """Is one process of the training, which gets its part of every batch."""
    import jax

    if options.processes > 1:
        if jax.config.jax_platforms == "cpu":
            jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(options.coordinator, options.processes, options.process)
    import keras

    import tfcompress as tfc
    from tfcompress.demo.models import resnet

    teacher = cached()  # before the processes compute together
    keras.distribution.set_distribution(
        keras.distribution.DataParallel(devices=jax.devices(), auto_shard_dataset=False)
    )
    keras.utils.set_random_seed(0)  # the same weights in every process
    steps = options.epochs * (COUNT // BATCH)
    schedule = tfc.PolynomialDecay(0.0, 0.8, 0, int(0.6 * steps), frequency=4)
    student = tfc.quantize(tfc.prune(resnet((8, 16), stem_strides=2), schedule))
    distiller = compiled(tfc.Distiller(teacher, student, alpha=0.5))
    part = (options.process, options.processes)
    history = distiller.fit(
        teacher.dataset(BATCH, seed=0, drop_remainder=True, process=part),
        epochs=options.epochs,
        verbose=0,
        callbacks=[tfc.BackupAndRestore(options.folder / "backup")],
    )
    print(f"process {part[0]} of {part[1]}: {history.history['accuracy'][-1]:.2%}", flush=True)
    if options.process == 0:
        student.save(STUDENT)


def export():
    """Writes and measures the file, on TensorFlow."""
    import keras

    import tfcompress as tfc
    from tfcompress.demo.data import load

    path = options.folder / "student.tflite"
    print(tfc.export_tflite(keras.saving.load_model(STUDENT), path))
    images = load()
    print(tfc.compare({"teacher": TEACHER, "student": path}, images.x_test, images.y_test))


options.folder.mkdir(parents=True, exist_ok=True)
{None: launch, "prepare": prepare, "train": train, "export": export}[options.step]()
