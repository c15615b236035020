"""Settings of other programs in a project: what an import changes in it, and the files of an export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_studio.interop.arguments import LeftOut
from lora_studio.interop.files import ImportedSettings
from lora_studio.interop.write import ExportedSettings, export_settings
from lora_studio.planning.project_plan import NextRun
from lora_studio.settings.subsets import Subset
from lora_studio.workspace.project import ImageSet, Project, image_sets

IN_PLAN = "The project has its own: change it in Plan."


@dataclass(frozen=True)
class ProjectImport:
    """What an import sets in a project: settings of the recipe, the LoRA to start from, and the subsets.

    `left_out` lists what was not carried over.
    """

    source: str
    recipe: Mapping[str, Any]
    network_weights: Path | None
    subsets: Sequence[Subset]
    left_out: Sequence[LeftOut]

    @classmethod
    def of(cls, imported: ImportedSettings, project: Project) -> ProjectImport:
        """Return what imported settings mean for a project: base, trigger word and images stay its own.

        Subsets are those of the project's sets with the same folder name.
        """
        job, info, recipe = imported.job, project.info(), dict(imported.recipe)
        left_out = list(imported.left_out)
        for name, own in (("base", info.base), ("trigger_word", info.trigger_word)):
            if (value := job.get(name)) and value != own:
                left_out.append(LeftOut(name, value, IN_PLAN))
        given = [Subset.parse(subset) for subset in job.get("subsets", [])]
        if not given and "dataset" in job:
            left_out.append(LeftOut("dataset", job["dataset"], "The project's images are used.", matters=False))
        subsets = _matching(given, image_sets(project.dataset_dir), recipe, left_out)
        weights = job.get("network_weights")
        return cls(imported.source.value, recipe, Path(weights) if weights else None, subsets, left_out)


def _matching(
    given: Sequence[Subset], sets: Sequence[ImageSet], recipe: dict[str, Any], left_out: list[LeftOut]
) -> list[Subset]:
    """Return the subsets of which the project has a set, under that set's name, and list the others.

    The repeats of the only subset become those of the recipe.
    """
    own = [subset for subset in given if not subset.is_reg]
    if len(own) == 1 and not own[0].settings:
        recipe["repeats"] = own[0].num_repeats
        own = []
    by_name = {name: item.path.name for item in sets for name in (item.concept, item.path.name)}
    found = []
    for subset in own:
        if name := by_name.get(subset.image_dir.name):
            found.append(subset.model_copy(update={"image_dir": Path(name)}))
        else:
            why = "The project has no set with this name: import its images in Dataset first."
            left_out.append(LeftOut("image_dir", subset.image_dir.name, why))
    for subset in given:
        if subset.is_reg:
            why = "Give its folder under Other files, as regularisation images."
            left_out.append(LeftOut("image_dir", subset.image_dir.name, why))
    return found


def export_run(project: Project, name: str, run: NextRun, regularization: Path | None) -> ExportedSettings:
    """Write the run that would be started now as files for sd-scripts, in a new folder of the project."""
    assert run.recipe is not None
    info, figures = run.planned.info, run.figures
    return export_settings(
        run.recipe,
        project.new_export_dir() / f"{name}.toml",
        base=info.base,
        dataset=project.dataset_dir,
        name=name,
        trigger_word=info.trigger_word,
        regularization=regularization,
        prediction_type=figures.prediction_type if figures else "",
        total_steps=figures.steps.total_steps if figures else None,
        subsets=project.subsets(info),
    )
