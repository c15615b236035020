"""Labels of taggers, and the table that lists them."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_studio.dataset.tagging.labels import caption_tag, read_labels
from lora_studio.errors import InputError


def test_kaomoji_keep_their_underscores() -> None:
    assert [caption_tag(name) for name in ("long_hair", "^_^", "||_||", "hat_(x)", "o_o", "._.")] == [
        "long hair",
        "^_^",
        "||_||",
        "hat (x)",
        "o_o",
        "._.",
    ]


@pytest.mark.parametrize(
    "text", ["no,such\n1,2\n", "tag_id,name,category,count\n1,a,general,3\n", "tag_id,name\n1,a\n"]
)
def test_refuses_a_broken_table_of_tags(tmp_path: Path, text: str) -> None:
    (tmp_path / "selected_tags.csv").write_text(text)
    with pytest.raises(InputError, match=r"selected_tags\.csv") as caught:
        read_labels(tmp_path / "selected_tags.csv")
    assert caught.value.code == "tagger_broken"
