"""A model goes all the way: trained, saved, loaded, trained on, exported, measured."""

import keras
import numpy as np

import tfcompress as tfc


def goes_all_the_way(model, x, folder, floats=0, off=0.0):
    """Checks that files equal their quantized models to the bit, also after loading.

    Args:
        model: The float model.
        x: Samples.
        folder: Where to write.
        floats: How many float tensors each file may hold.
        off: The share of values that may differ.
    """
    wanted = model.predict(x, verbose=0)
    aware = trained(tfc.quantize(model), x, wanted)
    equals_its_file(aware, x, folder, floats, off)
    aware.save(folder / "aware.keras")
    again = keras.models.load_model(folder / "aware.keras")
    np.testing.assert_allclose(again.predict(x, verbose=0), aware.predict(x, verbose=0), atol=1e-6)
    equals_its_file(trained(again, x, wanted), x, folder, floats, off)
    result = tfc.export_tflite(model, folder / "ptq.tflite", representative_dataset=x)
    assert len(result.float_tensors) <= floats and result.agreement.rmse < 0.1


def equal_when_trained(model, x, folder, floats=0):
    """Checks that the file of a trained quantized model is bit-exact."""
    aware = trained(tfc.quantize(model), x, model.predict(x, verbose=0))
    return equals_its_file(aware, x, folder, floats)


def trained(model, x, wanted):
    model.compile(keras.optimizers.SGD(1e-3), "mse")
    model.fit(x, wanted, verbose=0)
    return model


def equals_its_file(aware, x, folder, floats=0, off=0.0):
    result = tfc.export_tflite(aware, folder / "aware.tflite")
    outputs = tfc.TFLiteModel(result.path).predict(x)
    outputs = [outputs] if isinstance(outputs, np.ndarray) else [*outputs.values()]
    for actual, wanted in zip(
        outputs, keras.tree.flatten(aware.predict(x, verbose=0)), strict=True
    ):
        tolerance = 1e-5 * max(1.0, float(np.abs(wanted).max()))
        if np.mean(np.abs(actual - wanted) > tolerance) > off:
            np.testing.assert_allclose(actual, wanted, atol=tolerance)
    assert len(result.float_tensors) <= floats
    return result
