"""The colours of figures, on white and on dark pages; opposite meanings differ for the colour-blind too."""

HURT, OTHER, RANDOM = "#b5402a", "#a3b8d0", "#6f7680"
INTERVAL = "#333333"  # as letters; a dark page changes both
DIVERGING = ("#2c5f91", "#86aed0", "#f7f7f5", "#e39c80", "#b5402a")  # helped, unchanged, hurt
CURVES = (
    "#3b7bb8", "#c98a1b", "#3c8d5a", "#c24e37", "#8a6cb5", "#3aa0a8", "#b0568d", "#7a8a40", "#9a6f4d", "#7d838c",
)  # fmt: skip
SEQUENTIAL = ("#f7f7f5", "#a9c5dc", "#5d93bf", "#2c5f91", "#173a5e")
EMPTY = "#d5d8dc"
