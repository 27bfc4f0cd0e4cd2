"""Graphs without weights: names survive, tensors are files, and what differs is named."""

from pathlib import Path

import onnx
import pytest
import small_recipes
import torch
from small_recipes import MATCH, Match, Small, Tied, Unused

from sprat_server.training import graphs
from sprat_server.training.export import Example, compare, export, run, verify, verify_runs
from sprat_server.training.graphs import Graph, GraphRefused
from sprat_server.training.states import module_tensors, tied_names, to_source
from sprat_shared.errors import InvalidInput
from sprat_shared.wire.tensors import ArrayTensors

IMAGES = Example.single((1, 8, 8), "float32")


def source_of(module: torch.nn.Module) -> ArrayTensors:
    return to_source(module_tensors(module), tied_names(module))


@pytest.fixture(scope="module")
def small() -> tuple[Small, ArrayTensors, Graph, Graph]:
    module = small_recipes.trained()
    exported = export(module, source_of(module), IMAGES)
    return module, source_of(module), exported.graph, exported.probe


def test_every_float_tensor_of_the_table_is_a_file_of_the_graph(small) -> None:
    _, source, graph, _ = small
    names = {spec.name for spec in source.table}
    assert set(graph.bound.values()) == names - {"norm.num_batches_tracked"}
    for initialiser in onnx.load_model_from_string(graph.data).graph.initializer:
        if initialiser.name in names:
            index = source.table.index_of(initialiser.name)
            told = {entry.key: entry.value for entry in initialiser.external_data}
            assert told == {"location": f"t/{index}", "offset": "0", "length": str(source.table.specs[index].nbytes)}
            assert not initialiser.raw_data


def test_the_graph_says_nothing_about_the_machine_that_made_it(small) -> None:
    module, source, graph, _ = small
    assert b".py" not in graph.data
    assert export(module, source, IMAGES).graph.data == graph.data


def test_graph_and_module_agree_on_any_batch_and_follow_every_tensor(small) -> None:
    module, source, graph, _ = small
    verify(module, source, graph, IMAGES)
    assert run(source, graph, IMAGES.inputs(7))[0][0].shape == (7, 4)
    assert graphs.stored(graph.data) == graph


def test_the_probe_graph_also_gives_the_activations_of_each_layer(small) -> None:
    module, source, _, probe = small
    model = onnx.load_model_from_string(probe.data)
    names = [value.name for value in model.graph.output]
    assert names[1:] == ["probe:see", "probe:norm", "probe:think", "probe:tell"]
    outputs = dict(zip(names, run(source, probe, IMAGES.inputs(2))[0], strict=True))
    with torch.no_grad():
        wanted = module.norm(module.see(*IMAGES.tensors(2)))
    assert torch.allclose(torch.from_numpy(outputs["probe:norm"]), wanted, atol=1e-4)


def test_tied_weights_are_one_file() -> None:
    module = Tied().eval()
    tokens = Example.single((4,), "int64")
    graph = export(module, source_of(module), tokens).graph
    assert set(graph.bound) == {0}
    verify(module, source_of(module), graph, tokens)


def test_bfloat16_tensors_are_read_as_float32() -> None:
    module = small_recipes.build_half({}).eval()
    source = source_of(module)
    graph = export(module, source, IMAGES).graph
    kinds = {i.data_type for i in onnx.load_model_from_string(graph.data).graph.initializer if i.external_data}
    assert kinds == {onnx.TensorProto.FLOAT}
    verify(module, source, graph, IMAGES)


def test_a_tensor_that_no_output_depends_on_may_be_missing_from_the_graph() -> None:
    module, values = Unused().eval(), Example.single((4,), "float32")
    graph = export(module, source_of(module), values).graph
    assert set(graph.bound.values()) == {"kept.weight", "kept.bias"}
    verify(module, source_of(module), graph, values)


def test_a_graph_that_does_not_follow_a_tensor_is_refused_by_that_tensors_name(small) -> None:
    module, source, graph, _ = small
    model = onnx.load_model_from_string(graph.data)
    for initialiser in model.graph.initializer:
        if initialiser.name == "tell.bias":  # what an exporter does that folds a weight into a constant
            values = source.read(source.table.index_of("tell.bias"))
            initialiser.CopyFrom(onnx.numpy_helper.from_array(values, "tell.bias"))
    folded = Graph(model.SerializeToString(), {i: n for i, n in graph.bound.items() if n != "tell.bias"})
    compare(module, source, folded, IMAGES, "the stored weights")
    whole = Graph(folded.data, graph.bound)
    with pytest.raises(GraphRefused, match=r"with changed weights.*the graph does not follow tell\.bias$"):
        verify(module, source, whole, IMAGES)


def test_a_graph_from_elsewhere_is_stripped_of_its_weights_and_runs(small) -> None:
    module, source, _, _ = small
    own = torch.onnx.export
    program = quietly(
        lambda: own(
            module,
            (torch.zeros(2, 1, 8, 8),),
            dynamo=True,
            optimize=False,
            verbose=False,
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
        )
    )
    model = graphs.parse(program.model_proto.SerializeToString())
    assert list(graphs.input_examples(model).values()) == [((1, 8, 8), "float32")]
    graph = graphs.bind(model, source.table)
    verify_runs(source, graph, IMAGES)
    assert len(graph.data) < 10_000


def quietly(call):
    import warnings  # noqa: PLC0415 - the exporter warns of its own future

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call()


def test_a_graph_that_does_not_match_the_weights_names_every_difference(small) -> None:
    module, _, graph, _ = small
    tensors = module_tensors(module)
    tensors["tell.weight"] = tensors["tell.weight"][:2]
    tensors["extra"] = torch.ones(3)
    del tensors["think.weight"]
    model = graphs.parse(graph.data)
    with pytest.raises(GraphRefused) as told:
        graphs.bind(model, to_source(tensors).table)
    message = str(told.value)
    assert "tell.weight is FLOAT[4, 24] in the graph, F32[2, 24] in the weights" in message
    assert "initialiser think.weight has its data in another file and is not in the weights" in message
    assert "extra is in the weights, but the graph has no initialiser of that name" in message


@pytest.mark.parametrize("data", [b"", b"not onnx at all", b"\x08\x0a" * 40])
def test_bytes_that_are_no_graph_are_refused(data: bytes) -> None:
    with pytest.raises(GraphRefused, match="not an ONNX model"):
        graphs.parse(data)


def test_a_fixed_batch_is_refused_with_what_to_do(small) -> None:
    model = graphs.parse(small[2].data)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    with pytest.raises(GraphRefused, match="fixed batch of 1; export it with a dynamic first axis"):
        graphs.input_examples(model)


def test_an_example_has_a_batch_axis_and_a_known_dtype() -> None:
    assert Example.of({"shape": [1, 1, 28, 28], "dtype": "F32"}) == Example.single((1, 28, 28), "float32")
    for wrong in (
        None,
        {},
        {"shape": [], "dtype": "F32"},
        {"shape": [1, 0], "dtype": "F32"},
        {"shape": [1], "dtype": "X"},
        {"inputs": []},
        {"inputs": [{"name": "image", "shape": [1]}]},
    ):
        with pytest.raises(InvalidInput, match="does not describe an input"):
            Example.of(wrong)
    with pytest.raises(InvalidInput, match="two inputs have one name: image, image"):
        Example.of({"inputs": [{"name": "image", "shape": [1, 2], "dtype": "F32"}] * 2})


def test_a_graph_that_onnxruntime_cannot_load_or_crashes_over_is_an_error_of_the_graph(
    small, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, source, graph, _ = small
    model = onnx.load_model_from_string(graph.data)
    model.graph.node[-1].op_type = "NoSuchOperator"
    with pytest.raises(GraphRefused, match=r"onnxruntime cannot run the graph: .*NoSuchOperator"):
        verify_runs(source, Graph(model.SerializeToString(), graph.bound), IMAGES)
    crash = tmp_path / "python"
    crash.write_text("#!/bin/sh\nkill -SEGV $$\n")
    crash.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(crash))
    with pytest.raises(GraphRefused, match=r"onnxruntime crashes over this graph \(SIGSEGV\)"):
        verify_runs(source, graph, IMAGES)


def test_a_module_of_several_inputs_keeps_their_names_and_those_of_its_outputs() -> None:
    module = Match().eval()
    source = to_source(module_tensors(module))
    example = Example.of(MATCH)
    graph = export(module, source, example).graph
    verify(module, source, graph, example)
    model = graphs.parse(graph.data)
    assert graphs.input_examples(model) == {"image": ((6,), "float32"), "ids": ((3,), "int64")}
    assert [value.name for value in model.graph.output] == ["score", "embedding"]
    with pytest.raises(InvalidInput, match="the model takes image, ids: datasets hold one input") as bad:
        _ = example.only
    assert bad.value.code == "model.several-inputs"


def test_an_output_with_the_name_of_an_input_is_refused() -> None:
    class Same(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"image": image + 1}

    example = Example.of({"inputs": [{"name": "image", "shape": [1, 6], "dtype": "F32"}]})
    with pytest.raises(GraphRefused, match="image names an output of the module, and an input or a tensor"):
        export(Same().eval(), to_source({}), example)


def test_an_example_that_the_module_does_not_take_is_said_with_the_modules_reason(small) -> None:
    module, source, _, _ = small
    with pytest.raises(InvalidInput, match=r"shape \[1, 3, 8, 8\].*expected input.*to have 1 channels") as bad:
        export(module, source, Example.single((3, 8, 8), "float32"))
    assert bad.value.code == "recipe.fails-on-example"
