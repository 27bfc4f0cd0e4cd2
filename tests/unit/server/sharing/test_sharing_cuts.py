"""Where graphs can be cut, and what lies before and after."""

import onnx
import pytest
from small_graphs import Builder, images, plain, residual

from sprat_server.sharing.activations import Runner, shapes_of
from sprat_server.sharing.cuts import find_cuts, to_put_at, to_take_from
from sprat_server.sharing.releases import NotShareable, Release


def test_a_graph_in_a_row_can_be_cut_at_every_tensor() -> None:
    cuts = find_cuts(plain())
    assert [cut.tensor for cut in cuts] == ["c1", "n1", "r1", "p1", "c2", "n2", "r2", "pool", "flat"]
    assert cuts[0].before == {"c1.w", "c1.b"}
    assert cuts[-1].after == {"head.w", "head.b"}


def test_beside_a_short_cut_there_is_no_cut() -> None:
    assert [cut.tensor for cut in find_cuts(residual())] == ["c1", "r1", "sum", "r2", "pool", "flat"]


def test_before_and_after_make_the_whole_model() -> None:
    release = plain()
    for cut in find_cuts(release):
        assert cut.before | cut.after == set(release.bound)
        assert cut.bytes_before + release.bytes_of(cut.after) == release.nbytes


def test_a_tensor_that_is_read_on_both_sides_is_not_saved() -> None:
    one = Builder(0).conv("c1", 1, 1).relu("r1")
    one.node("Conv", "c1.w", "c1.b", name="again", kernel_shape=[3, 3], pads=[1] * 4)
    cuts = {cut.tensor: cut for cut in find_cuts(one.head(1, 2).release("tied", 1, 8, 8))}
    assert cuts["r1"].before == set()
    assert cuts["again"].before == {"c1.w", "c1.b"}


def test_asking_for_the_number_of_samples_is_no_way_through_the_graph() -> None:
    release = plain()
    shape = onnx.helper.make_node("Shape", ["input"], ["count"], start=0, end=1)
    rows = onnx.helper.make_node("Concat", ["count", "width"], ["rows"], axis=0)
    width = onnx.helper.make_node("Constant", [], ["width"], value_ints=[8])
    flat = next(node for node in release.model.graph.node if node.name == "flat")
    flat.op_type = "Reshape"
    flat.input.append("rows")
    nodes = [shape, width, rows, *release.model.graph.node]
    del release.model.graph.node[:]
    release.model.graph.node.extend(nodes)
    assert [cut.tensor for cut in find_cuts(release)] == [cut.tensor for cut in find_cuts(plain())]


def test_few_cuts_are_worth_looking_at() -> None:
    release = plain()
    cuts = find_cuts(release)
    shapes = shapes_of(release, cuts, images(1))
    assert shapes["p1"] == (4, 4, 4)
    assert [cut.tensor for cut in to_take_from(cuts, shapes)] == ["c1", "r1", "p1", "c2", "r2", "flat"]
    assert [cut.tensor for cut in to_put_at(cuts, shapes, 100 * release.nbytes)] == ["n1", "p1", "n2", "flat"]


def test_named_activations_come_batch_by_batch() -> None:
    release, inputs = plain(), images(10)
    runner = Runner(release.filled(), ["r1", "logits"])
    batches = list(runner.stream(inputs, 4))
    assert [len(batch["r1"]) for batch in batches] == [4, 4, 2]
    assert Runner(release.filled()).answers(inputs).shape == (10, 3)


def test_what_is_no_model_with_one_input_cannot_share() -> None:
    with pytest.raises(NotShareable):
        Release("noise", b"\xffnoise", plain().tensors)
    model = plain().model
    model.graph.input.append(onnx.helper.make_tensor_value_info("second", onnx.TensorProto.FLOAT, [1]))
    with pytest.raises(NotShareable, match="second"):
        Release("two", model.SerializeToString(), plain().tensors)
