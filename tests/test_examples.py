"""The parts of the examples that can go wrong silently."""

import importlib.util
import math
import pathlib

import keras
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def text():
    """Returns examples/distil_text.py as a module."""
    spec = importlib.util.spec_from_file_location("distil_text", ROOT / "examples/distil_text.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def checkpoint(settings, seed=0):
    """Returns random tensors under the names and in the shapes of a BERT checkpoint."""
    generator = np.random.default_rng(seed)
    width, inner = settings["hidden_size"], settings["intermediate_size"]
    shapes = {
        "embeddings.word_embeddings.weight": (settings["vocab_size"], width),
        "embeddings.position_embeddings.weight": (20, width),
        "embeddings.token_type_embeddings.weight": (2, width),
        "embeddings.LayerNorm.weight": (width,),
        "embeddings.LayerNorm.bias": (width,),
    }
    for i in range(settings["num_hidden_layers"]):
        for name, (outputs, inputs) in {
            "attention.self.query": (width, width),
            "attention.self.key": (width, width),
            "attention.self.value": (width, width),
            "attention.output.dense": (width, width),
            "intermediate.dense": (inner, width),
            "output.dense": (width, inner),
        }.items():
            shapes[f"encoder.layer.{i}.{name}.weight"] = (outputs, inputs)
            shapes[f"encoder.layer.{i}.{name}.bias"] = (outputs,)
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes[f"encoder.layer.{i}.{name}.weight"] = (width,)
            shapes[f"encoder.layer.{i}.{name}.bias"] = (width,)
    return {name: generator.normal(0, 0.3, shape) for name, shape in shapes.items()}


def bert(tensors, settings, ids):
    """Returns the last hidden states of BERT (Devlin et al. 2018), in plain numpy."""

    def normalized(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        return x * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]

    def dense(x, name):
        return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]

    erf = np.vectorize(math.erf)
    heads = settings["num_attention_heads"]
    x = tensors["embeddings.word_embeddings.weight"][ids]
    x = x + tensors["embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = normalized(
        x + tensors["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm"
    )
    for i in range(settings["num_hidden_layers"]):
        name = f"encoder.layer.{i}"
        q, k, v = (
            np.stack(np.split(dense(x, f"{name}.attention.self.{part}"), heads, -1), 1)
            for part in ("query", "key", "value")
        )
        scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
        scores = np.where((ids != 0)[:, None, None], scores, -np.inf)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        y = scores / scores.sum(-1, keepdims=True) @ v
        y = np.concatenate(np.moveaxis(y, 1, 0), -1)
        x = normalized(
            x + dense(y, f"{name}.attention.output.dense"), f"{name}.attention.output.LayerNorm"
        )
        y = dense(x, f"{name}.intermediate.dense")
        y = y * 0.5 * (1 + erf(y / np.sqrt(2)))
        x = normalized(x + dense(y, f"{name}.output.dense"), f"{name}.output.LayerNorm")
    return x


@pytest.mark.parametrize("padded", [False, True])
def test_a_loaded_encoder_is_bert(text, padded):
    depth = text.TINY["num_hidden_layers"]
    model = text.classifier(text.TINY, depth, 9, 3, padded)
    tensors = checkpoint(text.TINY)
    text.load_bert(model, tensors, depth)
    ids = np.random.default_rng(1).integers(1, 64, (5, 9))
    if padded:
        ids[:3, 6:] = 0
    hidden = keras.Model(model.inputs, model.get_layer(f"hidden{depth - 1}").output)
    real = ids != 0
    expected = bert(tensors, text.TINY, ids)
    np.testing.assert_allclose(np.asarray(hidden([ids]))[real], expected[real], atol=2e-4)


def test_a_student_starts_as_every_other_layer(text):
    teacher = text.classifier(text.TINY, 4, 8, 3)
    student = text.classifier(text.TINY, 2, 8, 3)
    text.every_other_layer(teacher, student, (4, 2))
    pairs = {"up0": "up0", "up1": "up2", "attention1": "attention2", "hidden1": "hidden2"}
    for mine, theirs in {**pairs, "tokens": "tokens", "logits": "logits"}.items():
        for a, b in zip(
            student.get_layer(mine).get_weights(),
            teacher.get_layer(theirs).get_weights(),
            strict=True,
        ):
            np.testing.assert_array_equal(a, b)


def test_texts_longer_than_the_positions_are_refused(text):
    model = text.classifier(text.TINY, 1, 30, 3)
    with pytest.raises(ValueError, match="at most 20.*length=30"):
        text.load_bert(model, checkpoint(text.TINY), 1)
