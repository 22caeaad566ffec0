"""The doctor on models that nobody here wrote: blocks of present image models, Hugging Face, torchvision."""

from __future__ import annotations

import pytest
import torch
from doctor_models import MODELS
from doctor_page import page, read_rows, survey, table_row

from fwdgrad import check_model

BLOCKS = [name for name in MODELS if name.startswith("blocks/")]
TEXT = [name for name in MODELS if name.startswith("transformers/")]
VISION = ["classification/resnet18", "classification/shufflenet_v2_x0_5", "detection/ssdlite320_mobilenet_v3_large"]


def assert_healthy(name: str) -> None:
    model, closure = MODELS[name]()
    report = check_model(model.train(), closure, methods={})
    assert report.ok, str(report)
    assert report.operations > 5 and report.modules > 3


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_as_its_users_write_it_is_healthy(name: str) -> None:
    assert_healthy(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", VISION)
def test_a_model_of_torchvision_is_healthy(name: str) -> None:
    assert_healthy(name)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TEXT)
def test_a_model_of_hugging_face_is_healthy(name: str) -> None:
    pytest.importorskip("transformers")
    assert_healthy(name)


def test_a_survey_says_what_is_well_what_is_not_and_what_could_not_be_built() -> None:
    def ill() -> object:
        model = torch.nn.Linear(3, 2)
        return model, lambda m: (m(torch.ones(4, 3)) * m.weight.sum().item()).square().sum(1)

    def absent() -> object:
        raise ImportError("No module named 'nowhere'")

    makers = {"well": MODELS[BLOCKS[0]], "ill": ill, "absent": absent}
    rows = {name: table_row(survey(name, make)) for name, make in makers.items()}
    text = page(rows, [*makers, "later"], "the command")
    assert "**1 of 3 healthy.**" in text and "Made by `the command`" in text and torch.__version__.split("+")[0] in text
    assert "Not checked: `later`." in text and read_rows(text) == rows
    assert "| healthy | yes | yes | yes | yes |" in rows["well"]
    assert "problem, derivative cut: Tensor.item" in rows["ill"] and "| problem |" in rows["ill"]
    assert "not built" in rows["absent"] and "ImportError: No module named 'nowhere'" in rows["absent"]
