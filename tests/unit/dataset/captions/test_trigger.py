"""The trigger word is inferred from captions and set folders; plain tags are never taken for it."""

from __future__ import annotations

import pytest

from lora_studio.dataset.captions.trigger import common_first_tag, infer_trigger

BOORU = "1girl, solo, long hair", "1girl, solo, hat", "1girl, smile, tree", "1girl, sitting"


@pytest.mark.parametrize(
    ("captions", "sets", "trigger"),
    [
        (["saria_zelda, 1girl, hat", "Saria_Zelda, tree", "saria_zelda, 1girl"], ["10_saria"], "saria_zelda"),
        (["saria_zelda, long hair", "saria_zelda, tree", "saria_zelda, hat"], ["10_my photos"], "saria_zelda"),
        (["ohwx woman, hat", "ohwx woman, tree", "ohwx woman, smile"], ["5_ohwx woman", "10_ohwx"], "ohwx woman"),
        (["ohwx woman, hat", "ohwx man, tree", "ohwx, smile"], ["5_ohwx woman"], "ohwx"),
        (["saria_zelda in a hat.", "saria_zelda by a tree.", "saria_zelda, sitting"], [], "saria_zelda"),
        ([*["saria, hat"] * 9, "a hat"], ["10_saria"], "saria"),
        ([*["saria, hat"] * 4, "a hat"], ["10_saria"], ""),
        (["saria, hat", "Saria, tree", "saria"], ["10_photos"], "saria"),
        (["saria in a hat", "saria by a tree", "saria sits"], [], "saria"),
        ([*["saria, hat"] * 9, "a hat"], ["10_photos"], ""),
        (["monochrome, hat", "monochrome, tree", "monochrome"], ["10_photos"], ""),
        (["absurdres, hat", "absurdres, tree", "absurdres"], [], ""),
        (BOORU, ["10_saria"], ""),
        (BOORU, ["10_1girl"], ""),
        (["long_hair, solo, red_hat", "long_hair, blue_eyes", "long_hair, grey_sky"], ["10_saria"], ""),
        (["a girl in a hat", "a girl by a tree", "a girl sits"], ["10_saria"], ""),
        (["saria_zelda, hat"], ["10_photos"], ""),
        (["", ""], ["10_saria"], "saria"),
        ([], ["10_saria woman"], "saria"),
        ([], ["10_saria", "5_saria"], "saria"),
        ([], ["10_saria", "5_hats"], ""),
        ([], ["10_photos"], ""),
        ([], ["10_photos of my summer"], ""),
        ([], [], ""),
    ],
)
def test_infers_the_trigger_word(captions: list[str], sets: list[str], trigger: str) -> None:
    assert infer_trigger(captions, sets) == trigger


@pytest.mark.parametrize(
    ("captions", "tag"),
    [
        (["zelda, hat", "Zelda, tree", "zelda", ""], "zelda"),
        (["zelda, hat", "link, tree", "zelda"], ""),
        (["zelda, hat", "zelda, tree"], ""),
        (BOORU, ""),
        ([], ""),
    ],
)
def test_common_first_tag_is_on_all_captions(captions: list[str], tag: str) -> None:
    assert common_first_tag(captions) == tag
