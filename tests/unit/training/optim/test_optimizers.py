"""Optimizers: parameter groups, arguments, learning rates and errors."""

from __future__ import annotations

import sys
import warnings
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn

from lora_studio.errors import ConfigError, InputError
from lora_studio.guide import OPTIMIZERS, OptimizerAdvice
from lora_studio.lora.inject import Adapters, add_adapters, layer_tensors
from lora_studio.lora.layers import block_names, block_of
from lora_studio.settings.choices import Optimizer, Scheduler
from lora_studio.settings.recipe import Recipe
from lora_studio.training.optim.flat_params import FlatParameters, ParameterLayout
from lora_studio.training.optim.optimizers import (
    check_optimizer,
    learning_rates,
    make_optimizer,
    optimizer_name,
    parameter_groups,
    parameter_layout,
)
from tests.support.tiny_sdxl import make_pipeline


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_pipeline(tmp_path_factory.mktemp("tokenizers"))


def adapt(parts: Any, recipe: Recipe) -> Adapters:
    return add_adapters(
        deepcopy(parts.unet),
        [deepcopy(parts.text_encoder), deepcopy(parts.text_encoder_2)],
        recipe.model_copy(update={"network_dim": 2, "network_alpha": 1, "seed": 0}),
    )


def test_unet_and_text_encoders_have_their_own_learning_rates(parts: Any) -> None:
    recipe = Recipe(unet_lr=5e-4, text_encoder_lr=1e-4)
    adapters = adapt(parts, recipe)
    groups = parameter_groups(adapters, recipe)
    assert [(group["name"], group["lr"]) for group in groups] == [("unet", 5e-4), ("text_encoder", 1e-4)]
    counts = {prefix: len(adapters.parameters(prefix)) for prefix in ("unet", "te1", "te2")}
    assert counts["te1"] == counts["te2"] == 3 * 6 * 2  # layers x linear layers x (A, B)
    unused = counts["te1"] // 3  # clip_skip 2 leaves the first encoder's last layer unused
    assert [len(group["params"]) for group in groups] == [counts["unet"], counts["te1"] - unused + counts["te2"]]
    optimizer = make_optimizer(recipe, groups)
    assert learning_rates(optimizer) == {"unet": 5e-4, "text_encoder": 1e-4}


@pytest.mark.parametrize(("rates", "models"), [((5e-4, 0), {"unet"}), ((0, 1e-4), {"te1", "te2"})])
def test_a_learning_rate_of_zero_freezes_a_model(parts: Any, rates: tuple[float, float], models: set[str]) -> None:
    recipe = Recipe(unet_lr=rates[0], text_encoder_lr=rates[1])
    adapters = adapt(parts, recipe)
    assert set(adapters.models) == models
    assert len(parameter_groups(adapters, recipe)) == 1


RATIOS = {"mid_lr_weight": "0.5,2,0", "down_lr_weight": "in=0.5", "loraplus_lr_ratio": 4.0}


def test_blocks_and_up_matrices_have_rates_of_their_own(parts: Any) -> None:
    recipe = Recipe(
        unet_lr=1e-3, text_encoder_lr=1e-4, train_layers="all", loraplus_text_encoder_lr_ratio=8.0, **RATIOS
    )
    adapters = adapt(parts, recipe)
    groups = parameter_groups(adapters, recipe)
    rates = {id(weight): group["lr"] for group in groups for weight in group["params"]}
    blocks = block_names(parts.unet)
    trained = set()
    for model, path, layer in adapters.layers:
        block = block_of(path, blocks) if model == "unet" else model
        factor = {"mid0": 0.5, "mid1": 2}.get(block, 0.5 if block.startswith("in") else 1)
        rate, ratio = (1e-3 * factor, 4) if model == "unet" else (1e-4, 8)
        down, up = (rates.get(id(weight)) for weight in layer_tensors(layer).values())
        if down is not None:  # None in the unused layer of the first text encoder
            assert (down, up) == (pytest.approx(rate), pytest.approx(rate * ratio)), path
            trained.add(block)
    assert {"in1", "mid0", "mid1", "out0", "te1", "te2"} < trained
    assert "mid2" not in trained
    assert sum(len(group["params"]) for group in groups) == len(rates)
    # what is logged is the models' rate, whatever the order of the groups
    found = learning_rates(make_optimizer(recipe, groups))
    assert found == {"unet": pytest.approx(1e-3), "text_encoder": pytest.approx(1e-4)}


def test_a_dora_has_its_magnitudes_at_the_models_rate(parts: Any) -> None:
    recipe = Recipe(network_type="DoRA", unet_lr=1e-3, text_encoder_lr=0, loraplus_lr_ratio=16.0)
    adapters = adapt(parts, recipe)
    low, high = parameter_groups(adapters, recipe)
    assert (low["lr"], high["lr"]) == (1e-3, 16e-3)
    assert 2 * len(high["params"]) == len(low["params"]) == 2 * len(adapters.layers)


@pytest.mark.parametrize(
    ("rates", "groups"),
    [
        ((1e-4, 1e-5), [("unet", 5e-4), ("text_encoder", 1e-4), ("text_encoder_2", 1e-5)]),
        ((1e-4, 0.0), [("unet", 5e-4), ("text_encoder", 1e-4)]),
        ((0.0, 1e-5), [("unet", 5e-4), ("text_encoder_2", 1e-5)]),
    ],
)
def test_each_text_encoder_has_its_own_rate_or_none(parts: Any, rates: tuple[float, float], groups: Any) -> None:
    recipe = Recipe(unet_lr=5e-4, text_encoder_lr=rates[0], text_encoder_lr2=rates[1])
    adapters = adapt(parts, recipe)
    assert [(group["name"], group["lr"]) for group in parameter_groups(adapters, recipe)] == groups
    assert adapters.models.keys() == {"unet"} | {f"te{number}" for number, rate in enumerate(rates, 1) if rate}
    first, *_ = adapters.models["unet"].parameters()
    assert not first.requires_grad


@pytest.mark.parametrize("layout", list(ParameterLayout))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_with_many_rates_moves_each_weight_by_its_own(
    parts: Any, layout: ParameterLayout, dtype: torch.dtype
) -> None:
    recipe = Recipe(optimizer="AdamW", unet_lr=1e-2, text_encoder_lr=0, weight_decay=0, **RATIOS)
    unet = deepcopy(parts.unet).to(dtype)
    adapters = add_adapters(unet, [], recipe.model_copy(update={"network_dim": 2, "network_alpha": 1}))
    groups = parameter_groups(adapters, recipe)
    weights = FlatParameters(groups, layout, adapters, dtype)
    before = {weight: (weight.detach().clone(), group["lr"]) for group in groups for weight in group["params"]}
    optimizer = make_optimizer(recipe, weights.groups)
    for gradient in weights.gradients:
        gradient.fill_(1)
    with weights.update():
        optimizer.step()
    assert {rate for _, rate in before.values()} == {0.005, 0.01, 0.02, 0.04, 0.08}
    for weight, (old, rate) in before.items():
        assert torch.allclose(old - weight, torch.full_like(old, rate), rtol=1e-3), rate  # Adam's first step


def test_new_adapters_are_fp32_and_change_nothing(parts: Any) -> None:
    recipe = Recipe(unet_lr=1e-3, text_encoder_lr=1e-3)
    adapters = adapt(parts, recipe)
    ids = torch.tensor([[1, 2, 3]])
    before, after = (encoder(ids)[0] for encoder in (parts.text_encoder, adapters.models["te1"]))
    assert torch.equal(before, after)
    assert {parameter.dtype for parameter in adapters.parameters("unet", "te1", "te2")} == {torch.float32}
    trained = {id(parameter) for parameter in adapters.parameters("unet", "te1", "te2")}
    for model in adapters.models.values():
        for parameter in model.parameters():
            assert parameter.requires_grad == (id(parameter) in trained)


@pytest.mark.parametrize(
    "name", ["AdamW", "AdamW8bit", "Adafactor", "Prodigy", "Lion8bit", "PagedAdamW8bit", "DAdaptAdam", "Lion"]
)
@pytest.mark.filterwarnings("ignore:Paged optimizers")
def test_each_optimizer_minimises_at_its_groups_learning_rates(name: str) -> None:
    rates = (1.0, 1.0) if OPTIMIZERS[name].learning_rate_free else (0.02, 0.002)
    recipe = Recipe(optimizer=name, unet_lr=rates[0], text_encoder_lr=rates[1], weight_decay=0)
    fast, slow = (nn.Parameter(torch.ones(64, 64)) for _ in range(2))
    groups = [
        {"name": "unet", "params": [fast], "lr": recipe.unet_lr},
        {"name": "text_encoder", "params": [slow], "lr": recipe.text_encoder_lr},
    ]
    optimizer = make_optimizer(recipe, groups)
    for _ in range(40):
        optimizer.zero_grad()
        ((fast**2).sum() + (slow**2).sum()).backward()
        optimizer.step()
    fast, slow = fast.detach(), slow.detach()
    if OPTIMIZERS[name].learning_rate_free:
        assert float(fast.mean()) < 0.999
        assert learning_rates(optimizer)["unet"] > 1e-6
    else:
        assert 1 - float(fast.mean()) == pytest.approx(0.02 * 40, rel=0.35)
        assert 1 - float(slow.mean()) == pytest.approx(0.002 * 40, rel=0.35)


def test_8_bit_optimizers_keep_8_bit_states() -> None:
    weight = nn.Parameter(torch.ones(64, 64))
    weight.grad = torch.ones_like(weight)
    optimizer = make_optimizer(Recipe(optimizer="AdamW8bit"), [{"params": [weight], "lr": 1e-3}])
    optimizer.step()
    assert optimizer.state[weight]["state1"].dtype == torch.uint8


def test_a_missing_library_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("bitsandbytes.optim.adamw", "pytorch_optimizer.optimizer.came"):
        monkeypatch.setitem(sys.modules, module, None)
    for name, package in (("AdamW8bit", "bitsandbytes"), ("CAME", "pytorch-optimizer")):
        with pytest.raises(InputError, match=f"{name}.*{package}") as caught:
            check_optimizer(Recipe(optimizer=name), torch.device("cpu"))
        assert caught.value.code == "optimizer"
        assert f"pip install {package}" in caught.value.remedy


def test_an_optimizer_that_fails_on_the_device_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **rest: Any) -> None:
        raise RuntimeError("CUDA Setup failed\nmore")

    monkeypatch.setattr("bitsandbytes.optim.AdamW8bit.step", broken)
    with pytest.raises(InputError, match=r"AdamW8bit.*CUDA Setup failed") as caught:
        check_optimizer(Recipe(optimizer="AdamW8bit"), torch.device("cpu"))
    assert caught.value.code == "optimizer"


@pytest.mark.parametrize(
    "error",
    [
        AssertionError("Torch not compiled with CUDA enabled"),
        RuntimeError("CUDA driver initialization failed, you might not have a CUDA gpu."),
        torch.AcceleratorError("CUDA error: no kernel image is available for execution on the device\nCUDA kernel"),
    ],
    ids=["no CUDA", "driver", "kernels"],
)
def test_a_gpu_that_torch_cannot_use_is_an_error_with_a_remedy(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*shape: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(torch, "zeros", broken)
    with pytest.raises(InputError) as caught:
        check_optimizer(Recipe(), torch.device("cuda"))
    assert caught.value.code == "gpu"
    assert str(error).splitlines()[0].rstrip(".") in caught.value.message
    assert caught.value.remedy


@pytest.mark.filterwarnings("ignore:Paged optimizers")
def test_the_states_of_the_trial_weight_are_paged(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_managed_memory(self: Any, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        if weight.numel() >= 1e5:  # bitsandbytes pages no smaller ones
            raise RuntimeError("cget_managed_ptr failed")
        return torch.zeros_like(weight, dtype=dtype)

    monkeypatch.setattr("bitsandbytes.optim.optimizer.Optimizer8bit.get_state_buffer", without_managed_memory)
    with pytest.raises(InputError, match="PagedAdamW8bit") as caught:
        check_optimizer(Recipe(optimizer="PagedAdamW8bit"), torch.device("cpu"))
    assert caught.value.code == "optimizer"


@pytest.mark.filterwarnings("ignore:Paged optimizers")
@pytest.mark.parametrize("optimizer", list(Optimizer))
def test_every_optimizer_works_on_a_cpu(optimizer: Optimizer) -> None:
    check_optimizer(Recipe(optimizer=optimizer), torch.device("cpu"))


@pytest.mark.parametrize(
    ("optimizer", "given", "words"),
    [
        ("AdamW", "beta=0.9", "AdamW has no argument beta.*amsgrad, betas"),
        ("CAME", "foo=1", "CAME has no argument foo.*ams_bound, betas"),
        ("Prodigy", "lr=2", "lr.*unet_lr and text_encoder_lr"),
        ("AdamW", "lr=5e-4", "lr.*unet_lr and text_encoder_lr"),  # the text encoders have another rate
        ("Adafactor", "relative_step=True", r"relative_step.*lr_scheduler \(adafactor\)"),
        ("AdamW", "betas=big", "betas=big"),
        ("AdamW8bit", "betas=5,6", "AdamW8bit.*Invalid beta"),
        ("AdamW", "foreach=True", "AdamW.*`fused` and `foreach`"),
        ("CAME", "betas=0.9,0.99", "CAME.*not enough values"),
    ],
)
def test_invalid_optimizer_args_are_an_error_that_names_them(optimizer: str, given: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_optimizer(Recipe.parse({"optimizer": optimizer, "optimizer_args": given}), torch.device("cpu"))


def test_optimizer_args_override_the_defaults() -> None:
    recipe = Recipe.parse(
        {"optimizer": "Prodigy", "optimizer_args": "d_coef=2 weight_decay=0.5 use_bias_correction=false slice_p=11"}
    )
    optimizer = make_optimizer(recipe, [{"name": "unet", "params": [nn.Parameter(torch.ones(64, 64))], "lr": 1.0}])
    [group] = optimizer.param_groups
    assert (group["d_coef"], group["weight_decay"], group["slice_p"]) == (2, 0.5, 11)
    assert (group["use_bias_correction"], group["decouple"], group["safeguard_warmup"]) == (False, True, False)
    assert optimizer_name(recipe) == (
        "prodigyopt.prodigy.Prodigy(weight_decay=0.5,decouple=True,use_bias_correction=False,safeguard_warmup=False,"
        "d_coef=2,slice_p=11)"
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"optimizer_args": "scale_parameter=False relative_step=False warmup_init=False"}, (False, False)),
        ({"optimizer_args": "relative_step=True scale_parameter=True", "lr_scheduler": "adafactor"}, (True, True)),
        ({"optimizer_args": "lr=2e-4", "unet_lr": 2e-4, "text_encoder_lr": 0}, (False, False)),
    ],
)
def test_optimizer_args_may_repeat_what_the_settings_say(given: dict[str, Any], expected: tuple[bool, bool]) -> None:
    recipe = Recipe.parse(given)
    check_optimizer(recipe, torch.device("cpu"))
    weight = nn.Parameter(torch.ones(4, 4))
    [group] = make_optimizer(recipe, [{"name": "unet", "params": [weight], "lr": recipe.unet_lr}]).param_groups
    assert (group["relative_step"], group["scale_parameter"]) == expected


@pytest.mark.parametrize("advice", [advice for advice in OPTIMIZERS.items() if advice[1].arguments])
def test_every_optimizer_accepts_the_guides_arguments(advice: tuple[str, OptimizerAdvice]) -> None:
    name, known = advice
    recipe = Recipe.parse({"optimizer": name, "optimizer_args": [text for text, _ in known.arguments]})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_optimizer(recipe, torch.device("cpu"))


def test_prodigy_has_safeguard_warmup_with_a_warm_up() -> None:
    recipe = Recipe.parse({"optimizer": "Prodigy", "lr_warmup_steps": 0.1})
    [group] = make_optimizer(recipe, [{"params": [nn.Parameter(torch.ones(2))], "lr": 1.0}]).param_groups
    assert group["safeguard_warmup"]


def test_parameter_layouts() -> None:
    assert parameter_layout(Recipe(optimizer=Optimizer.ADAMW)) is ParameterLayout.FLAT
    assert parameter_layout(Recipe(optimizer=Optimizer.ADAFACTOR)) is ParameterLayout.STACKED
    for by_weight in ({"lr_scheduler": Scheduler.ADAFACTOR}, {"optimizer_args": ["scale_parameter=True"]}):
        recipe = Recipe.parse({"optimizer": Optimizer.ADAFACTOR, **by_weight})
        assert parameter_layout(recipe) is ParameterLayout.SEPARATE


def test_adafactor_scales_the_step_of_each_weight_by_its_rms(parts: Any) -> None:
    recipe = Recipe.parse({"optimizer": "Adafactor", "optimizer_args": "scale_parameter=True", "weight_decay": 0})
    check_optimizer(recipe, torch.device("cpu"))
    adapters = adapt(parts, recipe)
    weights = FlatParameters(parameter_groups(adapters, recipe), parameter_layout(recipe), adapters, torch.float32)
    optimizer = make_optimizer(recipe, weights.groups)
    for flat in weights.flat:
        flat.grad.normal_(generator=torch.Generator().manual_seed(1))
    started = [
        (weight, weight.detach().clone(), group["lr"])
        for group in weights.groups
        for weight in group["params"]
        if weight.any()
    ]
    optimizer.step()
    # the update has an RMS of about 1 before it is multiplied by the rate and by the weight's own RMS
    scaled = [float((weight.detach() - old).norm() / old.norm()) / rate for weight, old, rate in started]
    assert len(scaled) > 20
    assert scaled == pytest.approx([1.0] * len(scaled), rel=0.2)


def test_dadaptadam_takes_the_arguments_that_sd_scripts_users_give_it() -> None:
    given = '"decouple=True" "weight_decay=0.2" "betas=0.9,0.99" "growth_rate=1.02" "use_bias_correction=True"'
    recipe = Recipe.parse({"optimizer": "DAdaptAdam", "unet_lr": 1, "text_encoder_lr": 0, "optimizer_args": given})
    check_optimizer(recipe, torch.device("cpu"))
    optimizer = make_optimizer(recipe, [{"name": "unet", "params": [nn.Parameter(torch.ones(4, 4))], "lr": 1.0}])
    (group,) = optimizer.param_groups
    assert (group["weight_decouple"], group["weight_decay"], group["betas"]) == (True, 0.2, (0.9, 0.99))
    assert (group["growth_rate"], group["bias_correction"]) == (1.02, True)


@pytest.mark.parametrize("path", ["torch.optim.RAdam", "torch.optim.SGD", "pytorch_optimizer.AdEMAMix"])
def test_a_class_by_its_name_minimises_with_its_arguments(path: str) -> None:
    recipe = Recipe.parse({"optimizer_type": path, "optimizer_args": "weight_decay=0.1", "unet_lr": 0.02})
    check_optimizer(recipe, torch.device("cpu"))
    assert parameter_layout(recipe) is ParameterLayout.SEPARATE
    weight = nn.Parameter(torch.ones(4, 4))
    optimizer = make_optimizer(recipe, [{"name": "unet", "params": [weight], "lr": 0.02}])
    assert type(optimizer).__name__ == path.rpartition(".")[2]
    assert (optimizer.param_groups[0]["weight_decay"], learning_rates(optimizer)) == (0.1, {"unet": 0.02})
    for _ in range(20):
        optimizer.zero_grad()
        (weight**2).sum().backward()
        optimizer.step()
    assert float(weight.detach().mean()) < 0.99
    assert optimizer_name(recipe) == f"{path}(weight_decay=0.1)"


@pytest.mark.parametrize(
    ("path", "given", "words"),
    [
        ("os.path.join", "", "os.path.join, which is not an optimizer"),
        ("torch.optim.NoSuch", "", "torch.optim.NoSuch, which is not an optimizer"),
        ("torch.optim.RAdam", "speed=2", "RAdam has no argument speed"),
        ("torch.optim.RAdam", "lr=2", "unet_lr and text_encoder_lr"),
        ("torch.optim.RAdam", "betas=5,6", "RAdam.*Invalid beta"),
    ],
)
def test_what_is_wrong_in_a_class_by_its_name_is_named(path: str, given: str, words: str) -> None:
    recipe = Recipe.parse({"optimizer_type": path, "optimizer_args": given})
    with pytest.raises(ConfigError, match=words):
        check_optimizer(recipe, torch.device("cpu"))


@pytest.mark.parametrize(
    ("path", "words"),
    [("no_such_library.Fast", "no_such_library is not installed"), ("torch.optim.LBFGS", "torch.optim.LBFGS, but")],
)
def test_a_class_that_cannot_take_a_step_is_an_error(path: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        check_optimizer(Recipe.parse({"optimizer_type": path}), torch.device("cpu"))
    assert caught.value.code == "optimizer"


def test_a_class_that_takes_one_rate_only_is_refused_with_several() -> None:
    check_optimizer(Recipe(optimizer_type="prodigyopt.Prodigy", unet_lr=1.0, text_encoder_lr=0), torch.device("cpu"))
    recipe = Recipe(optimizer_type="prodigyopt.Prodigy", unet_lr=1.0, text_encoder_lr=0, loraplus_lr_ratio=4.0)
    with pytest.raises(InputError) as caught:
        check_optimizer(recipe, torch.device("cpu"))
    assert caught.value.code == "optimizer"
