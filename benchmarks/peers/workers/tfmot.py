"""tensorflow-model-optimization 0.8.1 on tf_keras."""

import os

os.environ["TF_USE_LEGACY_KERAS"] = "1"
from benchmarks.peers.workers import common

import tensorflow as tf  # isort: skip
import tensorflow_model_optimization as tfmot  # isort: skip

keras = tf.keras
sparsity, clustering = tfmot.sparsity.keras, tfmot.clustering.keras
quantization = tfmot.quantization.keras


def float_file(task):
    return tf.lite.TFLiteConverter.from_keras_model(task.float_model(keras)).convert()


def ptq(task):
    return common.int8_file(tf, task.float_model(keras), task)


def qat(task):
    model = quantization.quantize_model(task.float_model(keras))
    return common.int8_file(tf, task.fit(keras, model, task.job["epochs"]))


def prune_ptq(task):
    model = pruned(task, task.job["epochs"], task.job["settings"]["share"])
    return common.int8_file(tf, model, task)


def pqat(task):
    first, second = task.stages(2)
    scheme = tfmot.experimental.combine.Default8BitPrunePreserveQuantizeScheme()
    return trained(task, pruned(task, first, held=1.0), scheme, second)


def pcqat(task):
    first, second, third = task.stages(3)
    model = clustered(task, pruned(task, first, held=1.0), second, preserve_sparsity=True)
    scheme = tfmot.experimental.combine.Default8BitClusterPreserveQuantizeScheme(
        preserve_sparsity=True
    )
    return trained(task, model, scheme, third)


def cqat(task):
    first, second = task.stages(2)
    scheme = tfmot.experimental.combine.Default8BitClusterPreserveQuantizeScheme(
        preserve_sparsity=False
    )
    return trained(task, clustered(task, task.float_model(keras), first), scheme, second)


def pruned(task, epochs, share=0.75, held=None):
    """Returns the pruned network; the masks change during this share of the epochs."""
    schedule = sparsity.PolynomialDecay(
        0.0, task.job["sparsity"], 0, int(share * task.steps(epochs)), frequency=common.FREQUENCY
    )
    model = sparsity.prune_low_magnitude(task.float_model(keras), pruning_schedule=schedule)
    task.fit(keras, model, epochs, [sparsity.UpdatePruningStep()], held=held)
    return sparsity.strip_pruning(model)


def clustered(task, model, epochs, **options):
    """Returns the clustered network."""
    from tensorflow_model_optimization.python.core.clustering.keras.experimental import cluster

    model = cluster.cluster_weights(
        model,
        number_of_clusters=16,
        # K-means++ fails where a layer has fewer values than clusters after pruning.
        cluster_centroids_init=clustering.CentroidInitialization.LINEAR,
        **options,
    )
    return clustering.strip_clustering(task.fit(keras, model, epochs, held=0.0))


def trained(task, model, scheme, epochs):
    """Returns the file after quantization-aware training that keeps what is there."""
    annotated = quantization.quantize_annotate_model(model)
    aware = quantization.quantize_apply(annotated, scheme)
    return common.int8_file(tf, task.fit(keras, aware, epochs, held=0.0))


def steps(task):
    scheme = tfmot.experimental.combine.Default8BitPrunePreserveQuantizeScheme()
    schedule = sparsity.PolynomialDecay(0.0, 0.8, 0, 1000, frequency=100)
    pruning = sparsity.prune_low_magnitude(task.float_model(keras), pruning_schedule=schedule)
    models = {
        "float": task.float_model(keras),
        "QAT": quantization.quantize_model(task.float_model(keras)),
        "pruned": Pruning(pruning),
        "pruned + QAT": quantization.quantize_apply(
            quantization.quantize_annotate_model(task.float_model(keras)), scheme
        ),
    }
    common.step_times(keras, task, models)


class Pruning:
    """A pruned model whose `fit` passes the callback that it cannot do without."""

    def __init__(self, model):
        self.model, self.compile = model, model.compile

    def fit(self, *arrays, **options):
        """Trains."""
        self.model.fit(*arrays, callbacks=[sparsity.UpdatePruningStep()], **options)


RECIPES = {
    "float": float_file,
    "PTQ": ptq,
    "QAT": qat,
    "prune, PTQ": prune_ptq,
    "PQAT": pqat,
    "PCQAT": pcqat,
    "CQAT": cqat,
    "steps": steps,
}

if __name__ == "__main__":
    common.run(keras, RECIPES)
