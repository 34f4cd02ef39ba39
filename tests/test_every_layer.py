"""Every layer that Keras has, whatever release it is: copied, compressed, saved, nested, exported.

The layers are collected from keras.layers. A layer that a new Keras adds is included automatically,
with the usual arguments and inputs; if these do not fit, the test fails until this file says how to
create the layer, or why it is left out.
"""

import inspect
import warnings

import keras
import numpy as np
import pytest
from keras import layers as L

import tfcompress as tfc

IMAGE, SERIES, VECTOR, VOLUME, CLIPS = (8, 8, 3), (6, 5), (7,), (4, 4, 4, 2), (3, 8, 8, 2)
X = np.random.default_rng(0).normal(size=(64, 400)).astype("float32")

LEFT_OUT = {
    "Layer": "the base class",
    "Wrapper": "a base class",
    "RNN": "needs a cell; its subclasses are here",
    "InputLayer": "makes the inputs",
    "AbstractRNNCell": "a base class",
    "StackedRNNCells": "a cell, not a layer of its own",
    "GRUCell": "a cell",
    "LSTMCell": "a cell",
    "SimpleRNNCell": "a cell",
    "TFSMLayer": "needs a SavedModel",
    "TorchModuleWrapper": "needs PyTorch",
    "JaxLayer": "needs a function of JAX",
    "FlaxLayer": "needs a module of Flax",
    "StringLookup": "strings: see graph/test_preprocessing.py",
    "IntegerLookup": "a table: see graph/test_preprocessing.py",
    "TextVectorization": "strings: see graph/test_preprocessing.py",
    "Hashing": "a table: see graph/test_preprocessing.py",
    "HashedCrossing": "a table: see graph/test_preprocessing.py",
    "MelSpectrogram": "a Fourier transform, for which TFLite has no operation",
    "STFTSpectrogram": "a Fourier transform, for which TFLite has no operation",
    "MaxNumBoundingBoxes": "takes boxes, not images",
    "SpectralNormalization": "changes its weights in every call in training",
}
MEANS = ("Average", "Max")
ARGUMENTS = {
    "Activation": {"activation": "relu"},
    **{f"AveragePooling{n}D": {"pool_size": 2} for n in (1, 2, 3)},
    **{f"Adaptive{how}Pooling{n}D": {"output_size": 2} for how in MEANS for n in (1, 2, 3)},
    "Bidirectional": {"layer": lambda: L.GRU(4)},
    "CategoryEncoding": {"num_tokens": 4, "output_mode": "multi_hot"},
    "CenterCrop": {"height": 6, "width": 6},
    "Cropping2D": {"cropping": 1},
    "Cropping3D": {"cropping": 1},
    "Dense": {"units": 6},
    "Discretization": {"bin_boundaries": [-1.0, 0.5], "output_mode": "one_hot"},
    "Dropout": {"rate": 0.3},
    "EinsumDense": {"equation": "abc,cd->abd", "output_shape": (6, 4)},
    "Embedding": {"input_dim": 9, "output_dim": 4},
    "GroupNormalization": {"groups": 1},
    "GroupQueryAttention": {"head_dim": 4, "num_query_heads": 2, "num_key_value_heads": 1},
    "Lambda": {"function": lambda: lambda x: x * 2.0},
    "MultiHeadAttention": {"num_heads": 2, "key_dim": 4},
    "Permute": {"dims": (2, 1)},
    "Pipeline": {"layers": lambda: [L.RandomFlip(), L.RandomRotation(0.1)]},
    "RandomCrop": {"height": 8, "width": 8},
    "RepeatVector": {"n": 3},
    "Reshape": {"target_shape": (5, 6)},
    "Resizing": {"height": 12, "width": 12},
    "ReversibleEmbedding": {"input_dim": 9, "output_dim": 4},
    "TimeDistributed": {"layer": lambda: L.Dense(4)},
    **{f"Random{n}": {"factor": 0.2} for n in ("Brightness Contrast Rotation Hue".split())},
    **{f"Random{n}": {"factor": 0.2} for n in ("ColorDegeneration Saturation Sharpness".split())},
    "RandomPosterization": {"factor": 4},
    "RandomTranslation": {"height_factor": 0.1, "width_factor": 0.1},
    "RandomZoom": {"height_factor": 0.1},
    "RandomShear": {"x_factor": 0.1, "y_factor": 0.1},
    "Rescaling": {"scale": 0.5},
    "Solarization": {},
    **{f"{n}Dropout": {"rate": 0.2} for n in ("Alpha", "Gaussian")},
    **{f"SpatialDropout{n}D": {"rate": 0.2} for n in (1, 2, 3)},
    "GaussianNoise": {"stddev": 0.1},
    **{f"Conv{n}D": {"filters": 4, "kernel_size": 2} for n in (1, 2, 3)},
    **{f"Conv{n}DTranspose": {"filters": 4, "kernel_size": 2} for n in (1, 2, 3)},
    **{f"DepthwiseConv{n}D": {"kernel_size": 2} for n in (1, 2)},
    **{f"SeparableConv{n}D": {"filters": 4, "kernel_size": 2} for n in (1, 2)},
    **{f"ConvLSTM{n}D": {"filters": 2, "kernel_size": 2} for n in (1, 2, 3)},
    **{name: {"units": 4} for name in ("GRU", "LSTM", "SimpleRNN")},
}
NOT_IN_FILES = {
    "AdaptiveAveragePooling3D": "the runtime pools over two axes at most",
    "AdaptiveMaxPooling3D": "the runtime pools over two axes at most",
}
PAIR, SEQUENCES, NUMBERS = [VECTOR, VECTOR], [SERIES, SERIES], [(5,)]
INPUTS = {
    **{name: PAIR for name in "Add Average Concatenate Maximum Minimum".split()},
    **{name: PAIR for name in ("Multiply", "Subtract", "Dot")},
    **{name: SEQUENCES for name in ("Attention", "AdditiveAttention")},
    **{name: SEQUENCES for name in ("MultiHeadAttention", "GroupQueryAttention")},
    **{name: NUMBERS for name in ("Embedding", "ReversibleEmbedding", "CategoryEncoding")},
    **{f"Adaptive{how}Pooling1D": [SERIES] for how in MEANS},
    **{f"Adaptive{how}Pooling3D": [VOLUME] for how in MEANS},
    "RepeatVector": [VECTOR],
    "ConvLSTM1D": [(3, 8, 2)],
    "ConvLSTM3D": [(2, 4, 4, 4, 1)],
}
OPTIONS = {"Dot": {"axes": 1}}
IDS = ("Embedding", "ReversibleEmbedding", "CategoryEncoding")
NAMES = sorted(
    name
    for name, kind in vars(L).items()
    if inspect.isclass(kind)
    and issubclass(kind, L.Layer)
    and kind.__name__ == name  # others are second names
    and name not in LEFT_OUT
)


def layer_of(name):
    """Returns a layer of that class."""
    arguments = {**ARGUMENTS.get(name, {}), **OPTIONS.get(name, {})}
    arguments = {k: v() if callable(v) else v for k, v in arguments.items()}
    return getattr(L, name)(**arguments)


def fed(name):
    """Returns the shapes of inputs that the layer takes."""
    if name in INPUTS:
        return INPUTS[name]
    for shape in (IMAGE, SERIES, VECTOR, VOLUME, CLIPS):
        try:
            layer_of(name)(keras.Input(shape))
        except Exception:
            continue
        return [shape]
    raise AssertionError(f"{name}: say in this file how to create and call it, or why not.")


def model_of(name):
    """Returns a trained or adapted layer between others, and samples."""
    keras.utils.set_random_seed(0)
    shapes = fed(name)
    dtype = "int32" if name in IDS else "float32"
    inputs = [keras.Input(shape, dtype=dtype) for shape in shapes]
    x = [samples(shape, name, seed) for seed, shape in enumerate(shapes)]
    layer = layer_of(name)
    if hasattr(layer, "adapt") and name != "Discretization":  # its bins are arguments
        layer.adapt(x[0])
    outputs = (
        layer(*inputs)
        if name.endswith("QueryAttention") or "MultiHead" in name
        else layer(inputs if len(inputs) > 1 else inputs[0])
    )
    outputs = outputs if len(outputs.shape) == 2 else L.Flatten()(outputs)
    model = keras.Model(inputs, L.Dense(3)(L.Dense(8, activation="relu")(outputs)))
    generator = np.random.default_rng(1)
    for weight in model.trainable_variables:  # no weight keeps its initial value
        weight.assign_add(0.1 * generator.normal(size=weight.shape).astype("float32"))
    return model, x if len(x) > 1 else x[0]


def samples(shape, name, seed=0):
    if name in IDS:
        return np.random.default_rng(seed).integers(0, 4, (32, *shape)).astype("int32")
    return np.random.default_rng(seed).normal(size=(32, *shape)).astype("float32")


def predicted(model, x):
    return model.predict(x, verbose=0)


def trained(model, x, wanted):
    model.compile(keras.optimizers.SGD(1e-4), "mse")
    model.fit(x, wanted, verbose=0)
    return model


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_is_the_model(name, quiet):
    model, x = model_of(name)
    wanted = predicted(model, x)
    close = 1e-5 * max(1.0, np.abs(wanted).max())
    for copy in (tfc.strip(tfc.prune(model, 0.0)), tfc.strip(tfc.quantize(model))):
        kinds = ([(w.path.split("/")[-1], w.shape) for w in m.weights] for m in (copy, model))
        assert len({str(kind) for kind in kinds}) == 1
        np.testing.assert_allclose(predicted(copy, x), wanted, atol=close)
    np.testing.assert_array_equal(predicted(model, x), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_all_that_is_done_to_models(name, tmp_path, quiet):
    model, x = model_of(name)
    wanted = predicted(model, x)
    aware = trained(tfc.quantize(model), x, wanted)
    path = tmp_path / "m.keras"
    if name not in ("Lambda", "RandomShear"):  # which Keras does not load
        aware.save(path)
        again = keras.models.load_model(path)
        np.testing.assert_allclose(predicted(again, x), predicted(aware, x), atol=1e-5)
    assert predicted(tfc.strip(aware), x).shape == wanted.shape
    near = predicted(tfc.factorize(model, 0.9999), x)
    assert np.sqrt(np.mean((near - wanted) ** 2)) <= 0.1 * wanted.std()
    assert predicted(tfc.prune_channels(model, 0.3), x).shape == wanted.shape
    inputs = [keras.Input(t.shape[1:], dtype=t.dtype) for t in model.inputs]
    nested = keras.Model(inputs, model(inputs if len(inputs) > 1 else inputs[0]))
    again = [keras.Input(t.shape[1:], dtype=t.dtype) for t in model.inputs]
    twice = keras.Model(again, nested(again if len(again) > 1 else again[0]) * 2.0)
    if name in NOT_IN_FILES:
        with pytest.raises(tfc.ExportError):
            tfc.export_tflite(model, tmp_path / "m.tflite")
        return
    for scheme in ("float32", "float16", "int8"):
        data = x if scheme == "int8" else None
        for deep in (model, twice):
            tfc.export_tflite(
                deep, tmp_path / "m.tflite", scheme=scheme, representative_dataset=data
            )
    tfc.export_tflite(aware, tmp_path / "aware.tflite")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_at_each_step(name, tmp_path, quiet):
    """In a TimeDistributed layer, where Keras takes it there."""
    shapes = fed(name)
    if len(shapes) > 1 or name in ("TimeDistributed", "Bidirectional", "Lambda"):
        pytest.skip("not made for it")
    keras.utils.set_random_seed(0)
    inputs = keras.Input((2, *shapes[0]), dtype="int32" if name in IDS else "float32")
    x = samples((2, *shapes[0]), name)
    layer = layer_of(name)
    if hasattr(layer, "adapt") and name != "Discretization":
        layer.adapt(x[:, 0])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outputs = L.Dense(3)(L.Flatten()(L.TimeDistributed(layer)(inputs)))
            model = keras.Model(inputs, outputs)
            wanted = predicted(model, x)
    except Exception as error:
        pytest.skip(f"Keras does not: {str(error)[:80]}")
    np.testing.assert_allclose(predicted(tfc.strip(tfc.quantize(model)), x), wanted, atol=1e-4)
    if name not in NOT_IN_FILES and name != "ConvLSTM3D":  # of which the runtime has too few axes
        tfc.export_tflite(model, tmp_path / "m.tflite", representative_dataset=x)
