"""The theme: gradio's base theme with a violet accent, and the path of the style sheet."""

from __future__ import annotations

import gradio as gr

from lora_studio.ui.widgets.html import STATIC

SYSTEM_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
CODE_FONTS = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
CSS_FILE = STATIC / "studio.css"


def studio_theme() -> gr.themes.Base:
    """Return the theme: violet on slate, system fonts (nothing is downloaded), medium radius, 12 px gaps."""
    theme = gr.themes.Base(
        primary_hue=gr.themes.colors.violet,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_md,
        font=SYSTEM_FONTS,
        font_mono=CODE_FONTS,
    )
    return theme.set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color="*neutral_900",
        body_text_color_dark="*neutral_100",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        background_fill_primary="white",
        background_fill_primary_dark="*neutral_900",
        layout_gap="12px",
        form_gap_width="0px",
        block_padding="12px 14px",
        block_background_fill="white",
        block_background_fill_dark="*neutral_900",
        block_border_color="*neutral_200",
        block_border_color_dark="*neutral_700",
        block_border_width="1px",
        block_shadow="none",
        block_title_text_color="*neutral_900",
        block_title_text_color_dark="*neutral_100",
        block_title_text_weight="600",
        block_title_text_size="*text_sm",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        block_info_text_size="*text_xs",
        input_background_fill="*neutral_50",
        input_background_fill_dark="*neutral_800",
        input_border_color="*neutral_300",
        input_border_color_dark="*neutral_600",
        input_border_width="1px",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_700",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
        button_secondary_background_fill="white",
        button_secondary_background_fill_hover="*neutral_100",
        button_secondary_background_fill_dark="*neutral_800",
        button_secondary_background_fill_hover_dark="*neutral_700",
        button_secondary_border_color="*neutral_300",
        button_secondary_border_color_dark="*neutral_600",
        button_border_width="1px",
        checkbox_label_background_fill="white",
        checkbox_label_background_fill_dark="*neutral_800",
        checkbox_label_border_color="*neutral_300",
        checkbox_label_border_color_dark="*neutral_600",
        checkbox_label_border_width="1px",
        checkbox_label_background_fill_selected="*primary_50",
        checkbox_label_background_fill_selected_dark="*primary_900",
        checkbox_label_border_color_selected="*primary_500",
        checkbox_label_padding="6px 12px",
        checkbox_border_color="*neutral_500",
        link_text_color="*primary_700",
        link_text_color_dark="*primary_300",
        link_text_color_hover="*primary_800",
        link_text_color_hover_dark="*primary_200",
    )
