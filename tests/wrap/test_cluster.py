"""Clustered models: trained, combined, saved, stripped and exported."""

import keras
import numpy as np
import pytest
from keras import layers as L

import tfcompress as tfc
from tfcompress.tflite.inspect import weights
from tfcompress.transforms import Clusters


def small():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((10, 10, 3))
    x = L.Conv2D(8, 3, activation="relu", name="first")(inputs)
    x = L.DepthwiseConv2D(3, name="depthwise")(x)
    x = L.Conv2D(16, 3, activation="relu", name="second")(x)
    return keras.Model(inputs, L.Dense(4, name="head")(L.GlobalAveragePooling2D()(x)))


def data(count=128):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(count, 10, 10, 3)) + 2 * generator.normal(size=(count, 1, 1, 3))
    x = x.astype("float32")
    return x, (x.mean((1, 2)).argmax(-1)).astype("int32")


def fitted(model, epochs=3):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss)
    model.fit(*data(), epochs=epochs, verbose=0)
    return model


def distinct(model):
    return {
        layer.name: len(np.unique(layer.kernel))
        for layer in tfc.strip(model).layers
        if hasattr(layer, "kernel")
    }


def test_weights_share_values_before_and_after_training():
    model = tfc.cluster(small(), 8)
    assert {name for name, count in distinct(model).items() if count > 8} == {"depthwise"}
    before = [v.numpy() for v in model.trainable_variables if "centroids" in v.path]
    fitted(model)
    assert {name for name, count in distinct(model).items() if count > 8} == {"depthwise"}
    after = [v.numpy() for v in model.trainable_variables if "centroids" in v.path]
    assert len(before) == 3
    assert all(np.abs(old - new).max() > 1e-4 for old, new in zip(before, after, strict=True))


@pytest.mark.parametrize("per_channel", [False, True])
def test_pruned_clustered_and_quantized_in_one_training(per_channel, tmp_path):
    """The file has as many values in each kernel (or channel of it), is exact, and half zeros."""
    granularity = "channel" if per_channel else "tensor"
    scheme = tfc.QuantizationScheme(weight_granularity=granularity)
    layers = ["first", "second", "head"]
    model = tfc.cluster(tfc.prune(small(), 0.5, layers=layers), 6, per_channel=per_channel)
    model = fitted(tfc.quantize(model, scheme))
    result = tfc.export_tflite(model, tmp_path / "m.tflite")
    assert result.agreement.max_lsb < 0.01 and result.float_tensors == []
    kernels = [values for values, _ in weights(tfc.TFLiteModel(result.path)).values()]
    clustered = [k for k in kernels if k.shape[0] != 1]  # the depthwise one is not
    assert len(clustered) == 3
    for kernel in clustered:
        parts = kernel if per_channel else [kernel]
        assert all(len(np.unique(part)) <= 6 for part in parts)
        assert np.mean(kernel == 0) >= 0.49


def test_quantizing_keeps_the_centroids_that_were_learned():
    model = fitted(tfc.cluster(small(), 8))
    learned = [v.numpy() for v in model.variables if "centroids" in v.path]
    aware = tfc.quantize(model)
    kept = [v.numpy() for v in aware.variables if "centroids" in v.path]
    assert len(kept) == 3
    for old, new in zip(learned, kept, strict=True):
        np.testing.assert_array_equal(old, new)


def test_it_is_saved_and_goes_on(tmp_path):
    model = fitted(tfc.quantize(tfc.cluster(small(), 8, per_channel=True)))
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    x, _ = data(8)
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
    before = [v.numpy() for v in loaded.variables if "centroids" in v.path]
    fitted(loaded, 1)
    after = [v.numpy() for v in loaded.variables if "centroids" in v.path]
    assert len(after) == 3 and not any(map(np.array_equal, before, after))


def test_one_layer_and_chosen_layers():
    layer = L.Dense(5)
    layer.build((None, 40))
    wrapped = tfc.cluster(layer, 4)
    (_, (transform,)), *_ = wrapped.pipelines()
    assert isinstance(transform, Clusters) and np.abs(transform.centroids).max() > 0
    chosen = distinct(tfc.cluster(small(), 4, layers="head"))
    assert chosen["head"] <= 4 < chosen["second"]
    named = tfc.cluster(small(), 4, layers=["depthwise"])
    assert any("centroids" in v.path for v in named.variables)


def test_files_are_smaller_after_gzip(tmp_path):
    x, _ = data()
    sizes = []
    for model in (small(), tfc.strip(tfc.cluster(small(), 4, layers=["second"]))):
        scheme = tfc.QuantizationScheme(weight_granularity="tensor")
        path = tmp_path / "m.tflite"
        result = tfc.export_tflite(model, path, scheme=scheme, representative_dataset=x)
        sizes.append(result.report.gzip_bytes)
    assert sizes[1] < sizes[0] - 300  # 1,152 weights of 2 bits in place of nearly 8


def test_bad_input():
    with pytest.raises(TypeError, match="must be a Keras 3 model or layer"):
        tfc.cluster("model")
    with pytest.raises(ValueError, match="two transforms of the same kind"):
        tfc.cluster(tfc.cluster(small()))
    with pytest.raises(ValueError, match="layers"):
        tfc.cluster(small(), layers="nothing*")
    with pytest.raises(ValueError, match="from 2 to 128"):
        tfc.cluster(small(), 500)
