"""Recipes: what may run, what it must give, and what is said where it does not."""

import sys

import pytest
import small_recipes
import torch

from sprat_server.training.recipes import RecipeBroken, RecipeRefused, build
from sprat_shared.errors import InvalidInput

HERE = ("small_recipes",)


def test_a_recipe_gives_its_module_with_cross_entropy_and_accuracy() -> None:
    made = build("small_recipes:build", {"hidden": 5}, HERE)
    assert isinstance(made.module, small_recipes.Small)
    assert made.module.think.out_features == 5
    assert made.classifies
    outputs, labels = torch.eye(4), torch.tensor([0, 1, 2, 0])
    assert made.metric(outputs, labels).tolist() == [1, 1, 1, 0]


def test_a_recipe_may_bring_its_own_loss_and_metric() -> None:
    made = build("small_recipes:build_own_loss", {}, HERE)
    assert not made.classifies
    assert made.loss(torch.zeros(2, 4), torch.tensor([0, 2])).item() == 2


def test_a_package_that_is_not_named_in_the_settings_is_not_even_imported() -> None:
    sys.modules.pop("this", None)
    with pytest.raises(
        RecipeRefused, match=r"package this may not run here; SPRAT_RECIPE_PACKAGES names small_recipes"
    ):
        build("this:build", {}, HERE)
    assert "this" not in sys.modules


@pytest.mark.parametrize("factory", ["small_recipes", "small_recipes:", "small recipes:build", "../x:build", "a.b.:c"])
def test_a_factory_of_another_form_is_refused(factory: str) -> None:
    with pytest.raises(InvalidInput, match=r"not of the form package\.module:function"):
        build(factory, {}, HERE)


def test_an_error_in_the_users_code_is_told_with_its_cause() -> None:
    with pytest.raises(RecipeBroken, match="KeyError: 'width'"):
        build("small_recipes:build_error", {}, HERE)
    with pytest.raises(RecipeBroken, match="returned str; return a torch"):
        build("small_recipes:build_nothing", {}, HERE)
    with pytest.raises(RecipeBroken, match="no attribute 'nowhere'"):
        build("small_recipes:nowhere", {}, HERE)


def test_building_gives_the_same_weights_each_time_and_leaves_the_generator_alone() -> None:
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    first, second = (build("small_recipes:build", {}, HERE).module.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(before, torch.random.get_rng_state())
