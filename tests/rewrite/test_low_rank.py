import keras
import numpy as np
import pytest
from keras import layers as L

import tfcompress as tfc
from tests.nets import samples_for
from tfcompress.graph.cost import macs
from tfcompress.rewrite.rank import noise_free_rank


def of_rank(shape, rank, seed=0):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(shape[0], rank)) @ generator.normal(size=(rank, shape[1]))


def sequential(shape, layer, dtype="float32"):
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input(shape, dtype=dtype), layer, L.Flatten()])


def dense(rank):
    model = sequential((40,), L.Dense(30, activation="tanh", name="x"))
    model.layers[0].kernel.assign(of_rank((40, 30), rank))
    return model


def einsum(rank):
    layer = L.EinsumDense("abc,cd->abd", (6, 30), bias_axes="d", activation="relu", name="x")
    model = sequential((6, 40), layer)
    layer.kernel.assign(of_rank((40, 30), rank))
    return model


def embedding(rank):
    model = sequential((5,), L.Embedding(50, 24, name="x"), "int32")
    model.layers[0].embeddings.assign(of_rank((50, 24), rank))
    return model


def one_by_one(rank):
    layer = L.Conv2D(30, 1, strides=2, activation="relu", name="x")
    model = sequential((6, 6, 40), layer)
    layer.kernel.assign(of_rank((40, 30), rank).reshape(1, 1, 40, 30))
    return model


def spatial(rank):
    layer = L.Conv2D(20, (3, 5), strides=(2, 1), padding="same", name="x")
    model = sequential((9, 9, 16), layer)
    matrix = of_rank((3 * 16, 5 * 20), rank)
    layer.kernel.assign(matrix.reshape(3, 16, 5, 20).transpose(0, 2, 1, 3))
    return model


def tucker(rank, kind=L.Conv2D, size=(3, 3), image=(9, 9)):
    layer = kind(24, size, padding="same", dilation_rate=2, activation="relu", name="x")
    model = sequential((*image, 20), layer)
    generator = np.random.default_rng(0)
    core = generator.normal(size=(*size, rank, rank))
    into, out = generator.normal(size=(20, rank)), generator.normal(size=(24, rank))
    layer.kernel.assign(np.einsum("...ij,ai,bj->...ab", core, into, out))
    return model


def tucker_1d(rank):
    return tucker(rank, L.Conv1D, (5,), (12,))


CASES = {
    "dense": (dense, {}),
    "einsum": (einsum, {}),
    "embedding": (embedding, {}),
    "1x1": (one_by_one, {}),
    "spatial": (spatial, {"convolutions": "spatial"}),
    "tucker": (tucker, {}),
    "tucker 1-D": (tucker_1d, {}),
}


@pytest.mark.parametrize("rank", [4, 0.999999999, "vbmf"])
@pytest.mark.parametrize("name", CASES)
def test_a_kernel_of_low_rank_is_found_again(name, rank):
    make, options = CASES[name]
    model = make(4)
    small = tfc.factorize(model, rank, **options)
    assert small.count_params() < model.count_params()
    names = [layer.name for layer in small.layers]
    assert names[0] == "x_factor" and "x" in names
    assert type(small) is keras.Sequential
    x = samples_for(model, 8)
    wanted = model.predict(x, verbose=0)
    np.testing.assert_allclose(
        small.predict(x, verbose=0), wanted, atol=1e-4 * np.abs(wanted).max()
    )


@pytest.mark.parametrize("name", CASES)
def test_a_rank_that_is_no_cheaper_leaves_the_layer_alone(name):
    make, options = CASES[name]
    model = make(4)
    with pytest.warns(tfc.CompressionWarning, match="none gets cheaper"):
        same = tfc.factorize(model, 24 if name != "spatial" else 40, **options)
    assert [layer.name for layer in same.layers] == [layer.name for layer in model.layers]
    np.testing.assert_array_equal(same.get_weights()[0], model.get_weights()[0])


def test_svd_is_the_best_of_its_rank():
    """Eckart and Young: the error is what the other singular values hold."""
    model = sequential((40,), L.Dense(30, use_bias=False, name="x"))
    kernel = np.array(model.layers[0].kernel)
    small = tfc.factorize(model, 7)
    product = np.array(small.layers[0].kernel) @ np.array(small.layers[1].kernel)
    values = np.linalg.svd(kernel, compute_uv=False)
    error = np.linalg.norm(product - kernel)
    assert error == pytest.approx(np.sqrt(np.sum(values[7:] ** 2)), rel=1e-4)
    half = tfc.factorize(model, 0.5)
    kept = half.layers[0].units
    energy = np.cumsum(values**2) / np.sum(values**2)
    assert energy[kept - 1] >= 0.5 > energy[kept - 2]


@pytest.mark.parametrize(("shape", "rank"), [((60, 80), 5), ((80, 60), 12), ((200, 50), 3)])
def test_vbmf_tells_signal_from_noise(shape, rank):
    generator = np.random.default_rng(1)
    matrix = 2 * of_rank(shape, rank) + generator.normal(size=shape)
    assert noise_free_rank(np.linalg.svd(matrix, compute_uv=False), shape) == rank
    noise = generator.normal(size=shape)
    assert noise_free_rank(np.linalg.svd(noise, compute_uv=False), shape) <= 1


def conv_net():
    keras.utils.set_random_seed(0)
    shared = L.Conv2D(24, 3, padding="same", activation="relu", name="shared")
    inputs = keras.Input((12, 12, 24))
    x = shared(shared(inputs))
    x = L.Conv2D(32, 3, strides=2, name="strided", kernel_regularizer="l2")(x)
    return keras.Model(inputs, L.Dense(10, name="head")(L.GlobalAveragePooling2D()(x)))


def test_a_budget_is_met_closely():
    model = conv_net()
    target = 0.4 * macs(model)
    small = tfc.factorize(model, target_macs=target, layers=["shared", "strided"])
    assert 0.7 * target < macs(small) <= target
    with pytest.raises(ValueError, match="cannot be met"):
        tfc.factorize(model, target_macs=10)


def test_shared_layers_stay_shared_and_the_model_trains(tmp_path):
    model = conv_net()
    small = tfc.factorize(model, {"shared": 6, "str*": 0.5})
    assert sum(layer.name == "shared_core" for layer in small.layers) == 1
    assert {"strided", "strided_core", "strided_factor", "head"} <= {la.name for la in small.layers}
    assert "head_factor" not in {layer.name for layer in small.layers}
    x = np.random.default_rng(0).normal(size=(32, 12, 12, 24)).astype("float32")
    small.compile("sgd", "mse")
    small.fit(x, np.zeros((32, 10)), verbose=0)
    result = tfc.export_tflite(small, tmp_path / "m.tflite", representative_dataset=x)
    assert result.float_tensors == []


BAD = {
    "zero": (dict(rank=0), "rank must be a positive integer.*rank=0"),
    "share": (dict(rank=1.5), "rank=1.5"),
    "name": (dict(rank="vmbf"), "'vbmf'"),
    "too large": (
        dict(rank={"head": 11}),
        "rank=11 is more than layer 'head' can have, which is 10",
    ),
    "no such layer": (dict(rank={"tail": 3}), "Nearest names"),
    "method": (dict(convolutions="tucker"), "Did you mean 'tucker2'"),
}


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD)
def test_bad_arguments(options, message):
    model = conv_net()
    before = model.get_weights()
    with pytest.raises(ValueError, match=message):
        tfc.factorize(model, **options)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_wrapped_models_are_refused():
    with pytest.raises(ValueError, match="strip"):
        tfc.factorize(tfc.quantize(conv_net()))


def test_a_model_may_be_factorized_again():
    model = sequential((64,), L.Dense(64, name="wide"))
    again = tfc.factorize(tfc.factorize(model, 16), 4)
    assert [layer.name for layer in again.layers][:-1] == [
        "wide_factor_factor",
        "wide_factor",
        "wide_factor_2",
        "wide",
    ]


def test_initial_values_given_as_arrays():
    values = keras.initializers.Constant(np.ones((50, 24)))
    model = sequential((5,), L.Embedding(50, 24, embeddings_initializer=values), "int32")
    assert tfc.factorize(model, 2).count_params() == 50 * 2 + 2 * 24
