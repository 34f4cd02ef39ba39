import keras
import pytest

from tests import nets
from tfcompress.graph.keras_internals import producing_operation
from tfcompress.graph.read import check_built, is_graph, load_keras, read_graph, walk_layers


def test_calls_come_in_order_and_know_their_readers():
    model = nets.small_residual()
    graph = read_graph(model)
    names = [call.operation.name for call in graph.calls]
    for call in graph.calls:
        for tensor in call.inputs:
            name = producing_operation(tensor).name
            assert name == "image" or names.index(name) < names.index(call.operation.name)
    relu = next(c for c in graph.calls if c.operation.name == "r0")
    assert len(graph.consumers[id(relu.outputs[0])]) == 2
    assert id(graph.calls[-1].outputs[0]) in graph.outputs


def test_paths_name_nested_models():
    assert [path for path, _ in walk_layers(nets.nested())] == ["block/inner", "head/out"]


def test_a_shared_layer_has_one_path_and_two_calls():
    model = nets.shared()
    assert [path for path, _ in walk_layers(model)] == ["twice"]
    assert sum(c.path == "twice" for c in read_graph(model).calls) == 2


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(2)

    def call(self, x):
        return self.dense(x)


def test_what_is_no_model_or_unbuilt_is_refused():
    with pytest.raises(TypeError, match="must be a Keras 3 model. Received: 3"):
        check_built(3)
    with pytest.raises(ValueError, match=r"unbuilt model 'plain'"):
        check_built(keras.Sequential([keras.layers.Dense(2)], name="plain"))
    model = Subclassed()
    model(keras.ops.ones((1, 3)))
    assert not is_graph(model)


def test_keras_files_that_run_code_or_are_broken_are_refused(tmp_path):
    path = tmp_path / "model.keras"
    with pytest.raises(FileNotFoundError, match="No such file"):
        load_keras(path)
    path.write_bytes(b"not a zip")
    with pytest.raises(ValueError, match="not a .keras file"):
        load_keras(path)
    keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: x + 1)]).save(path)
    with pytest.raises(ValueError, match="holds Python code"):
        load_keras(path)
