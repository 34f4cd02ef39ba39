"""Wrapped models train in every way that Keras models do."""

import json

import keras
import numpy as np
import pytest

import tfcompress as tfc
from tests import nets

SCHEDULE = tfc.PolynomialDecay(0.1, 0.7, begin_step=2, end_step=10, frequency=3)


def wrapped(model=None):
    return tfc.quantize(tfc.prune(model or nets.small_residual(), SCHEDULE))


def images(count=48):
    generator = np.random.default_rng(0)
    return (
        generator.normal(size=(count, 8, 8, 2)).astype("float32"),
        generator.integers(0, 3, count),
    )


def check_state(model, steps):
    for layer in model.layers:
        if isinstance(layer, tfc.CompressionWrapper):
            for weight, (mask, _) in layer.pipelines():
                assert mask.report()["step"] == steps
                zeros = np.sum(keras.ops.convert_to_numpy(mask.mask) == 0)
                assert abs(zeros - 0.7 * np.prod(weight.shape)) <= 1
    for quantizer in (q for q in model.layers if hasattr(q, "fixed_range")):
        low, high = quantizer.range()
        assert int(keras.ops.convert_to_numpy(quantizer.step)) == steps
        assert low <= 0 <= high and high - low > 1e-3, quantizer.name


WAYS = {
    "graph": {"jit_compile": False},
    "XLA": {"jit_compile": True},
    "eager": {"run_eagerly": True},
    "several steps an execution": {"steps_per_execution": 4, "jit_compile": False},
}


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
def test_each_way_of_running_gives_the_same_training(options):
    x, y = images()

    def train(**options):
        keras.utils.set_random_seed(5)
        model = nets.compiled(wrapped(), **options)
        losses = model.fit(x, y, batch_size=16, epochs=4, shuffle=False, verbose=0).history
        return model, losses["loss"]

    model, losses = train(**options)
    check_state(model, steps=12)
    _, reference = train(jit_compile=False)
    # Quantization can turn the smallest difference into one LSB: near, not equal.
    np.testing.assert_allclose(losses, reference, rtol=0.1)


def test_mixed_float16():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = nets.compiled(wrapped())
        x, y = images()
        history = model.fit(x, y, batch_size=16, epochs=4, verbose=0).history["loss"]
        assert np.isfinite(history).all()
        check_state(model, steps=12)
        for layer in model.layers:
            if isinstance(layer, tfc.CompressionWrapper) and layer.transforms:
                assert layer.layer.compute_dtype == "float16"
                assert layer.weight_transforms[0].mask.dtype == "float32"
    finally:
        keras.config.set_dtype_policy("float32")


def test_a_mirrored_strategy_keeps_masks_and_ranges_equal(python):
    out = python("""
import json, numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from tests import nets
from tests.wrap.test_training import check_state, images, wrapped
import tfcompress as tfc
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
with strategy.scope():
    model = nets.compiled(wrapped(), jit_compile=False)
x, y = images()
model.fit(x, y, batch_size=16, epochs=4, verbose=0)
check_state(model, 12)
state = [v for layer in model.layers if "tfcompress" in type(layer).__module__
         for v in (layer.weight_transforms and [w for t in layer.weight_transforms
                   for w in t.variables] if isinstance(layer, tfc.CompressionWrapper)
                   else layer.variables)]
spread = 0.0
for variable in state:
    first, second = (v.numpy() for v in variable.value.values)
    spread = max(spread, float(np.abs(first.astype(float) - second.astype(float)).max()))
print(json.dumps({"replicas": strategy.num_replicas_in_sync, "variables": len(state),
                  "spread": spread}))
""")
    results = json.loads(out.strip().splitlines()[-1])
    assert results["replicas"] == 2 and results["variables"] > 10
    assert results["spread"] == 0.0


BATCHES = """
import keras, numpy as np
from tests import nets
from tests.wrap.test_training import images, wrapped
x, y = images(96)
def step(model, index):
    part = slice(16 * index, 16 * index + 16)
    model.reset_metrics()  # older Keras averages over all steps since the model was compiled
    return float(model.train_on_batch(x[part], y[part])[0])
"""


@pytest.mark.parametrize("jit", nets.some_slow([False, True], [False]))
def test_stop_save_load_in_a_new_process_and_go_on(python, tmp_path, jit):
    code = (
        BATCHES
        + f"""
keras.utils.set_random_seed(9)
model = nets.compiled(wrapped(), jit_compile={jit})
losses = [step(model, i) for i in range(3)]
model.save("half.keras")
print(losses + [step(model, i) for i in range(3, 6)])
"""
    )
    through = json.loads(python(code).strip().splitlines()[-1])
    # Nothing but `import tfcompress` is needed to load; the model itself is not built again.
    code = (
        "import keras, tfcompress\nmodel = keras.saving.load_model('half.keras')\n"
        + BATCHES
        + "print([step(model, i) for i in range(3, 6)])"
    )
    resumed = json.loads(python(code).strip().splitlines()[-1])
    assert resumed == through[3:]
