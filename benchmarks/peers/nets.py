"""The networks, in whichever Keras a peer needs: the same layers with the same names."""


def resnet(keras):
    """A ResNet of 78,426 parameters for 28x28 images."""
    inputs = keras.Input((28, 28, 1), name="image")
    x = _convolution(keras, inputs, 16, 3, 1, "stem")
    x = keras.layers.ReLU(name="stem_relu")(x)
    for stage, width in enumerate((16, 32, 64)):
        strides, name = 1 if stage == 0 else 2, f"stage{stage + 1}"
        y = _convolution(keras, x, width, 3, strides, f"{name}_a")
        y = keras.layers.ReLU(name=f"{name}_a_relu")(y)
        y = _convolution(keras, y, width, 3, 1, f"{name}_b")
        if strides > 1:
            x = _convolution(keras, x, width, 1, strides, f"{name}_shortcut")
        x = keras.layers.Add(name=f"{name}_add")([x, y])
        x = keras.layers.ReLU(name=f"{name}_relu")(x)
    return _classified(keras, inputs, x, "resnet")


def mobilenet(keras):
    """Depthwise separable convolutions with ReLU6, for 28x28 images."""
    inputs = keras.Input((28, 28, 1), name="image")
    x = _convolution(keras, inputs, 16, 3, 1, "stem")
    x = keras.layers.ReLU(6.0, name="stem_relu")(x)
    for index, (width, strides) in enumerate(((32, 2), (64, 1), (64, 2), (128, 1))):
        x = _separable(keras, x, width, strides, 6.0, f"block{index + 1}")
    return _classified(keras, inputs, x, "mobilenet")


def ds_cnn(keras):
    """DS-CNN (Zhang et al. 2017), for 32 time steps of 13 MFCCs."""
    inputs = keras.Input((32, 13, 1), name="sound")
    x = _convolution(keras, inputs, 64, (10, 4), 2, "stem")
    x = keras.layers.ReLU(name="stem_relu")(x)
    for index in range(4):
        x = _separable(keras, x, 64, 1, None, f"block{index + 1}")
    return _classified(keras, inputs, x, "ds_cnn")


def _classified(keras, inputs, x, name):
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, keras.layers.Dense(10, name="logits")(x), name=name)


def _separable(keras, x, width, strides, top, name):
    x = keras.layers.DepthwiseConv2D(
        3, strides, padding="same", use_bias=False, name=f"{name}_depthwise"
    )(x)
    x = keras.layers.BatchNormalization(momentum=0.9, name=f"{name}_depthwise_bn")(x)
    x = keras.layers.ReLU(top, name=f"{name}_depthwise_relu")(x)
    x = _convolution(keras, x, width, 1, 1, name)
    return keras.layers.ReLU(top, name=f"{name}_relu")(x)


def _convolution(keras, x, filters, size, strides, name):
    x = keras.layers.Conv2D(
        filters,
        size,
        strides,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        name=f"{name}_conv",
    )(x)
    return keras.layers.BatchNormalization(momentum=0.9, name=f"{name}_bn")(x)


NETS = {"resnet": resnet, "mobilenet": mobilenet, "ds_cnn": ds_cnn}
