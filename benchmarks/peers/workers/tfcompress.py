"""tfcompress."""

import pathlib

from benchmarks.peers.workers import common

import keras  # isort: skip

import tfcompress as tfc  # isort: skip


def float_file(task):
    return exported(task, task.float_model(keras))


def ptq(task):
    return exported(task, task.float_model(keras), representative_dataset=task.calibration())


def qat(task):
    return trained(task, tfc.quantize(task.float_model(keras)))


def prune_qat(task):
    return trained(task, tfc.quantize(pruned(task)))


def prune_cluster_qat(task):
    return trained(task, tfc.quantize(tfc.cluster(pruned(task), 16)))


def cluster_qat(task):
    return trained(task, tfc.quantize(tfc.cluster(task.float_model(keras), 16)))


def pruned(task):
    """Returns the network with a schedule that ends after the share of the settings."""
    steps = task.steps(task.job["epochs"])
    schedule = tfc.PolynomialDecay(
        0.0,
        task.job["sparsity"],
        0,
        int(task.job["settings"]["share"] * steps),
        frequency=common.FREQUENCY,
    )
    return tfc.prune(task.float_model(keras), schedule, ranking="global")


def trained(task, model):
    """Returns the file after one fit, with the float network as the teacher if the job has one."""
    epochs = task.job["epochs"]
    if task.job.get("teacher"):
        distiller = tfc.Distiller(task.float_model(keras), model, alpha=0.5, temperature=3.0)
        task.fit(keras, distiller, epochs)
    else:
        task.fit(keras, model, epochs)
    return exported(task, model)


def exported(task, model, **options):
    """Returns the bytes of the exported, checked file."""
    result = tfc.export_tflite(model, task.job["file"], verbose=False, **options)
    task.told["export_seconds"] = result.seconds
    return pathlib.Path(result.path).read_bytes()


def steps(task):
    schedule = tfc.PolynomialDecay(0.0, 0.8, 0, 1000, frequency=100)
    models = {
        "float": task.float_model(keras),
        "QAT": tfc.quantize(task.float_model(keras)),
        "pruned": tfc.prune(task.float_model(keras), schedule),
        "pruned + QAT": tfc.quantize(tfc.prune(task.float_model(keras), schedule)),
    }
    common.step_times(keras, task, models)


RECIPES = {
    "float": float_file,
    "PTQ": ptq,
    "QAT": qat,
    "prune + QAT": prune_qat,
    "prune + cluster + QAT": prune_cluster_qat,
    "cluster + QAT": cluster_qat,
    "steps": steps,
}

if __name__ == "__main__":
    common.run(keras, RECIPES)
