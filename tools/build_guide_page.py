"""Build docs/guide.md from the sections in lora_studio/guide_sections.py: `python tools/build_guide_page.py`."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "guide.md"

sys.path.insert(0, str(ROOT))

from lora_studio.guide import DISCLAIMER, SOURCE  # noqa: E402
from lora_studio.guide_sections import SECTIONS, GuideSection  # noqa: E402

INTRODUCTION = f"""# The guide, in short

What the studio recommends, section by section, in our words. The opinions are DuskFall's:
[Opinionated Guide to All LoRA Training (2025 Update)]({SOURCE}).
{DISCLAIMER}

This page is generated from `lora_studio/guide_sections.py` by `tools/build_guide_page.py`.
"""


def main() -> None:
    PAGE.write_text(guide_page(), "utf-8")


def guide_page() -> str:
    contents = "\n".join(f"- [{section.title}](#{section.anchor})" for section in SECTIONS)
    return "\n".join([INTRODUCTION, contents, "", *(section_text(section) for section in SECTIONS)])


def section_text(section: GuideSection) -> str:
    lines = [f'<a id="{section.anchor}"></a>', "", f"## {section.title}", ""]
    for paragraph in section.text:
        lines += [paragraph, ""]
    if section.points:
        lines += [*(f"- {point}" for point in section.points), ""]
    if section.settings:
        lines += [f"Settings: {', '.join(f'`{setting}`' for setting in section.settings)}.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
