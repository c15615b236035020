"""The download of a base as a job: its events, its stop, and the base that it leaves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_studio import api, hub_files
from lora_studio.errors import StudioError
from lora_studio.events import DownloadEvent, Event
from lora_studio.models import download
from lora_studio.models.found import catalogue_models, find_models
from lora_studio.workspace.job_folder import JobState
from lora_studio.workspace.project import Home
from tests.support.hub_server import HubServer


@pytest.fixture
def hub(base: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A Hub with the tiny base as someone's, and as DreamShaper XL."""
    monkeypatch.setattr(hub_files, "BLOCK", 1 << 12)
    monkeypatch.setattr(download, "REPORT_SECONDS", 0.0)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    with HubServer.of_folders(someone__tiny=base).running() as server:
        server.repos["Lykon/dreamshaper-xl-1-0"] = server.repos["someone/tiny"]
        server.use_here(monkeypatch, tmp_path / "cache")
        yield server


def test_a_downloaded_base_is_on_this_machine(hub: HubServer, home: Home) -> None:
    events: list[Event] = []
    result = api.download_model("DreamShaper XL", home=home, on_event=events.append)
    assert result.path is not None
    assert (result.path / "unet" / "config.json").is_file()
    parts = [event for event in events if isinstance(event, DownloadEvent)]
    assert parts[-1].done == parts[-1].total > 0
    assert [part.done for part in parts] == sorted(part.done for part in parts)
    assert home.download_of("DreamShaper XL").status().state is JobState.DONE
    here = [model.name for model in catalogue_models(home) if model.place]
    assert here == ["DreamShaper XL", "embedded"]

    requests = len(hub.ranges)
    api.download_model("someone/tiny", home=home)
    assert len(hub.ranges) == 2 * requests
    assert [model.name for model in find_models(home) if not model.problem] == ["someone/tiny"]


def test_a_stopped_download_is_continued(hub: HubServer, home: Home) -> None:
    folder = home.download_of("someone/tiny")

    def stop(event: Event) -> None:
        if isinstance(event, DownloadEvent) and 0 < event.done < event.total:
            folder.request_stop()

    assert api.download_model("someone/tiny", home=home, on_event=stop).stopped
    assert folder.status().state is JobState.STOPPED
    hub.ranges.clear()
    assert api.download_model("someone/tiny", home=home).path is not None
    assert folder.status().state is JobState.DONE
    assert any(hub.ranges)


def test_a_gated_base_is_refused(hub: HubServer, home: Home) -> None:
    hub.gated.add("someone/tiny")
    with pytest.raises(StudioError) as caught:
        api.download_model("someone/tiny", home=home)
    assert caught.value.code == "hub_gated"
    assert home.download_of("someone/tiny").status().state is JobState.FAILED


def test_another_architecture_is_refused_before_its_weights(hub: HubServer, home: Home) -> None:
    hub.repos["someone/flux"] = {"model_index.json": b'{"_class_name": "FluxPipeline"}', "unet/a.safetensors": b"x"}
    with pytest.raises(StudioError) as caught:
        api.download_model("someone/flux", home=home)
    assert caught.value.code == "base_kind"
    assert hub.ranges == []
