"""Six small nets, exported under four schemes, with the check that each file passed."""

import warnings

import keras
import numpy as np
from keras import layers as L

import tfcompress as tfc
from tfcompress.export import export_tflite as export
from tfcompress.graph.read import input_specs, output_names
from tfcompress.graph.run import outputs_of, packed


def subjects():
    """Returns six small nets with random weights, by name, and a maker of samples for each."""

    def classifier():
        layers = [L.Conv2D(6, 3, use_bias=False), L.BatchNormalization(), L.ReLU(6.0)]
        layers += [L.DepthwiseConv2D(3, padding="same"), L.ReLU(), L.AveragePooling2D(2)]
        layers += [L.Flatten(), L.Dense(5, activation="softmax")]
        return keras.Sequential([keras.Input((12, 12, 1), name="x"), *layers])

    def detector():
        inputs = keras.Input((16, 16, 1), name="x")
        x = L.Conv2D(8, 3, strides=2, padding="same", activation="relu")(inputs)
        y = L.Conv2D(8, 3, strides=2, padding="same", activation="relu")(x)
        boxes = [L.Reshape((-1, 4))(L.Conv2D(4, 1)(t)) for t in (x, y)]
        scores = [L.Reshape((-1, 2))(L.Conv2D(2, 1)(t)) for t in (x, y)]
        boxes = L.Concatenate(axis=1)(boxes) * 100.0
        scores = L.Activation("sigmoid")(L.Concatenate(axis=1)(scores))
        return keras.Model(inputs, {"boxes": boxes, "scores": scores})

    def residual():
        inputs = keras.Input((8, 8, 3), name="x")
        x = L.Conv2D(8, 3, padding="same", activation="relu")(inputs)
        y = L.Conv2D(8, 3, padding="same")(L.MaxPooling2D(2)(x))
        z = L.Conv2D(8, 1, strides=2)(x)
        x = L.LeakyReLU()(L.Add()([y, z]))
        x = L.Conv2D(8, 1, activation="swish")(x)
        return keras.Model(inputs, L.Dense(6)(L.GlobalAveragePooling2D()(x)))

    def recurrent():
        return keras.Sequential([keras.Input((6, 4), name="x"), L.GRU(8), L.Dense(3)])

    def text():
        inputs = keras.Input((10,), dtype="int32", name="x")
        x = L.Embedding(40, 8)(inputs)
        x = L.LayerNormalization()(x + L.MultiHeadAttention(2, 4)(x, x))
        return keras.Model(inputs, L.Dense(4)(L.GlobalAveragePooling1D()(x)))

    def tabular():
        a, b = keras.Input((5,), name="x"), keras.Input((5,), name="y")
        x = L.Concatenate()([a - b, a * b, L.Dense(6, activation="tanh")(a)])
        x = L.Dense(12, activation="relu")(x)
        return keras.Model([a, b], [L.Dense(3, name="p")(x), L.Dense(1, name="q")(x)])

    return (classifier, detector, residual, recurrent, text, tabular)


def built(make, seed=0):
    """Returns a net with weights that are all random."""
    keras.utils.set_random_seed(seed)
    model = make()
    generator = np.random.default_rng(seed)
    for weight in model.weights:
        if weight.path.endswith(("bias", "beta", "moving_mean")):
            weight.assign(0.2 * generator.normal(size=weight.shape))
        elif weight.path.endswith(("gamma", "moving_variance")):
            weight.assign(generator.uniform(0.5, 2.0, weight.shape))
    return model


def samples(model, count, seed):
    """Returns samples for a net, by input name: smooth, with tails."""
    generator = np.random.default_rng(seed)
    made = {}
    for spec in input_specs(model):
        shape = (count, *spec.shape)
        if spec.dtype == "int32":
            made[spec.name] = generator.integers(0, 40, shape).astype("int32")
        else:
            strength = generator.gamma(4.0, 0.25, (count, *(1 for _ in spec.shape)))
            made[spec.name] = (strength * generator.normal(size=shape)).astype("float32")
    return made


SCHEMES = ("float32", "int8", "qat", "int16x8")


class Subject:
    """A net exported under a scheme, the check that its file passed, and that check again."""

    def __init__(self, make, scheme, folder, seed=0):
        self.name = f"{make.__name__}-{scheme}"
        model = built(make, seed)
        data = samples(model, 300, seed + 1)
        if scheme == "qat":
            model = tfc.quantize(model)
            model.compile("sgd", "mse")
            model.optimizer.learning_rate = 1e-4
            targets = [np.zeros((300, *t.shape[1:]), "float32") for t in model.outputs]
            names = getattr(model, "_outputs_struct", None)
            if isinstance(names, dict):
                targets = dict(zip(names, targets, strict=True))
            y = targets if len(model.outputs) > 1 else targets[0]
            model.fit(packed(model, data), y, verbose=0, batch_size=32)
        self.model = model
        checks = []

        class Kept(export.Check):
            def judge(self, content):
                checks.append((self, content))
                return super().judge(content)

        original, export.Check = export.Check, Kept
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tfc.export_tflite(
                    model,
                    f"{folder}/{self.name}.tflite",
                    scheme=None if scheme == "qat" else scheme,
                    representative_dataset=data if scheme in ("int8", "int16x8") else None,
                )
        finally:
            export.Check = original
        self.check, self.content = checks[0]
        self._fresh = samples(model, 1000, seed + 2)
        self._expected = None
        self.own_error = self.error(self.content)

    def error(self, content):
        """Returns the worst RMSE of a channel over its deviation, on inputs the check never saw."""
        if self._expected is None:
            self._expected = outputs_of(self.model, self._fresh)
        found = tfc.TFLiteModel(content).predict(self._fresh)
        names = output_names(self.model)
        got = [found[n] for n in names] if isinstance(found, dict) else [found]
        worst = 0.0
        for a, b in zip(self._expected, got, strict=True):
            if a.shape != b.shape or not np.isfinite(b).all():
                return np.inf
            axes = tuple(range(a.ndim - 1))
            rmse = np.sqrt(np.mean((a - b) ** 2, axes, dtype=np.float64))
            spread = np.maximum(a.std(axes), 0.01 * np.abs(a).max(axes))
            worst = max(worst, float((rmse / np.maximum(spread, 1e-9)).max()))
        return worst

    def refuses(self, content):
        """Returns whether the check refuses a file."""
        try:
            self.check.judge(content)
        except (tfc.ExportError, ValueError):
            return True
        return False

    def slips(self, content):
        """Returns the error of a file that should have been refused and was not; else None."""
        if self.refuses(content):
            return None
        error = self.error(content)
        return error if error > max(0.05, 2 * self.own_error) else None
