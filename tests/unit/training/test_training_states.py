"""Between modules and tensor tables: exact bits, named differences, tied tensors."""

import numpy as np
import pytest
import torch
from small_recipes import Small, Tied

from sprat_server.training.states import (
    WeightsMismatch,
    WeightsNotFinite,
    check_finite,
    load_weights,
    module_tensors,
    tied_names,
    to_source,
    to_torch,
    with_tied_once,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_state_goes_to_a_tensor_source_and_back_bit_for_bit(dtype: torch.dtype) -> None:
    module = Small().to(dtype)
    tensors = module_tensors(module)
    back = to_torch(to_source(tensors))
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)


def test_loading_weights_names_what_is_missing_extra_or_of_another_shape() -> None:
    module = Small()
    tensors = module_tensors(Small(hidden=6))
    del tensors["see.weight"]
    tensors["stray"] = torch.zeros(2)
    with pytest.raises(WeightsMismatch) as told:
        load_weights(module, to_source(tensors))
    message = str(told.value)
    assert "see.weight is missing" in message
    assert "stray is not in the module" in message
    assert "think.weight is F32[6, 128] where the module has F32[24, 128]" in message


def test_nan_and_infinity_are_refused_by_name_in_every_float_dtype() -> None:
    for dtype, bad in ((torch.float32, float("nan")), (torch.float16, float("inf")), (torch.bfloat16, float("-inf"))):
        tensors = {"fine": torch.ones(3), "broken": torch.tensor([1, bad, 2], dtype=dtype)}
        with pytest.raises(WeightsNotFinite, match="NaN or Inf in broken;"):
            check_finite(to_source(tensors))
    check_finite(to_source({"largest": torch.tensor([3e38], dtype=torch.bfloat16), "count": torch.tensor(3)}))


def test_tied_tensors_stand_once_whatever_name_the_file_uses() -> None:
    module = Tied()
    tied = tied_names(module)
    assert tied == {"out.weight": "embed.weight"}
    values = torch.randn(6, 8)
    for names in (["embed.weight"], ["out.weight"], ["embed.weight", "out.weight"]):
        source = with_tied_once(to_source(dict.fromkeys(names, values)), tied)
        assert [spec.name for spec in source.table] == ["embed.weight"]
        assert source.table.aliases == tied
        load_weights(module, source)
        assert torch.equal(module.out.weight, values)
        assert module.out.weight is module.embed.weight


def test_tied_names_with_different_values_are_refused() -> None:
    source = to_source({"embed.weight": torch.zeros(6, 8), "out.weight": torch.ones(6, 8)})
    with pytest.raises(WeightsMismatch, match=r"out\.weight and embed\.weight are tied"):
        with_tied_once(source, tied_names(Tied()))


def test_a_source_is_row_major_whatever_the_strides_were() -> None:
    turned = torch.arange(6.0).reshape(2, 3).T
    array = to_source({"turned": turned}).read(0)
    assert array.flags["C_CONTIGUOUS"]
    assert np.array_equal(array, [[0, 3], [1, 4], [2, 5]])
