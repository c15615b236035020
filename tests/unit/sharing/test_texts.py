"""Model card, sidecar and Civitai's text say what other programs and people need."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_studio.models.catalogue import BASES, find_base
from lora_studio.sharing.facts import read_facts
from lora_studio.sharing.options import License, ReleaseOptions, license_of
from lora_studio.sharing.texts import Release, civitai_text, model_card, sidecar
from lora_studio.workspace.job_folder import JobFolder
from tests.support.jobs import LORA

FOREIGN = read_facts(LORA)  # a file without a run
PICTURE = (PurePosixPath("images/1.png"), "inkstamp_hc, face")


def released(run: JobFolder, **options: Any) -> Release:
    facts = read_facts(run.path / "ink.safetensors")
    return Release("ink", facts, ReleaseOptions.parse(options), 0.8, gallery=[PICTURE])


def front_matter(card: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return found


def test_the_card_has_what_the_hub_needs_for_a_lora(run: JobFolder) -> None:
    card = model_card(released(run, description="Ink stamps.", adult=True))
    data = front_matter(card)
    assert data["base_model"] == "stabilityai/stable-diffusion-xl-base-1.0"
    assert data["instance_prompt"] == "inkstamp_hc"
    assert data["license"] == "openrail++"
    assert {"lora", "template:sd-lora", "text-to-image", "not-for-all-audiences"} <= set(data["tags"])
    assert data["widget"] == [{"text": "inkstamp_hc, face", "output": {"url": "images/1.png"}}]
    body = card.split("---\n", 2)[2]
    for text in ("<Gallery />", "Ink stamps.", "<lora:ink:0.8>", "set_adapters('lora', 0.8)", "-33.0%"):
        assert text in body


def test_a_local_base_is_named_without_its_folders_and_not_as_a_repository(run: JobFolder) -> None:
    release = released(run)
    base = "/home/ann/models/my mix.safetensors"
    card = model_card(replace(release, facts=replace(release.facts, base=base, known_base=None)))
    assert "base_model" not in front_matter(card)
    assert "license" not in front_matter(card)
    assert "my mix.safetensors" in card
    assert "/home/ann" not in card


@settings(max_examples=40)
@given(prompt=st.text(max_size=60), description=st.text(max_size=60))
def test_any_prompt_survives_in_the_cards_metadata(prompt: str, description: str) -> None:
    options = ReleaseOptions(description=description)
    card = model_card(Release("ink", FOREIGN, options, gallery=[(PurePosixPath("images/1.png"), prompt)]))
    assert card.startswith("---\n")
    data = yaml.safe_load(card[4 : card.index("\n---\n", 4)])
    assert data["widget"][0]["text"] == prompt


@pytest.mark.parametrize("name", BASES)
def test_each_known_base_gives_a_licence(name: str) -> None:
    identifier, text, link = license_of(find_base(name))
    assert identifier is not None
    assert text
    if identifier is License.OTHER:
        assert link.startswith("https://")


def test_another_licence_has_name_and_link(run: JobFolder) -> None:
    release = released(run)
    pony = replace(release, facts=replace(release.facts, base="x", known_base=find_base("Pony Diffusion V6 XL")))
    data = front_matter(model_card(pony))
    assert data["license"] == "other"
    assert data["license_link"].startswith("https://")
    chosen = front_matter(model_card(released(run, license="cc-by-4.0")))
    assert chosen["license"] == "cc-by-4.0"
    assert "license_link" not in chosen


def test_the_sidecar_fills_in_a1111s_fields(run: JobFolder) -> None:
    values = json.loads(sidecar(released(run, description="Ink stamps.")))
    assert values["activation text"] == "inkstamp_hc"
    assert values["preferred weight"] == 0.8
    assert values["sd version"] == "SDXL"
    assert values["description"] == "Ink stamps."
    assert values["negative text"] == BASES["SDXL 1.0"].negative_prompt


@pytest.mark.parametrize(
    ("base", "family"),
    [("SDXL 1.0", "SDXL 1.0"), ("Pony Diffusion V6 XL", "Pony"), ("Illustrious XL", "Illustrious")],
)
def test_civitai_gets_its_own_name_of_the_base(run: JobFolder, base: str, family: str) -> None:
    release = released(run)
    facts = replace(release.facts, base=base, known_base=find_base(base))
    lines = civitai_text(replace(release, facts=facts)).splitlines()
    assert f"Base model: {family}" in lines
    assert "Trigger words: inkstamp_hc" in lines
    assert "Recommended weight: 0.8" in lines


def test_a_foreign_file_without_a_run_gets_a_short_card() -> None:
    card = model_card(Release("foreign", FOREIGN, ReleaseOptions()))
    assert "## How it was trained" not in card
    assert "base_model" not in front_matter(card)
