"""Draw docs/pictures/method-*.svg, one figure per method: images -> views -> student -> terms.

python tools/method_figures.py
"""

from __future__ import annotations

from html import escape
from pathlib import Path

OUT = Path(__file__).parents[1] / "docs" / "pictures"
COLUMNS, ROW, BOX = (10, 190, 370, 550), 62, (150, 42)
FILL = {"data": "#e8f0fe", "view": "#fff4e0", "student": "#e3f5e8", "term": "#fde8ec", "frozen": "#ececec"}

Node = tuple[str, str, int, float]
"""(text of one or two lines, kind, column, row)."""


def figure(nodes: dict[str, Node], edges: list[tuple[str, str, str]]) -> str:
    """Draw boxes on a grid, and arrows from box to box with a word beside them; dashed ones carry no gradient."""
    height = max(row for *_, row in nodes.values()) * ROW + BOX[1] + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {COLUMNS[-1] + BOX[0] + 10} {height:g}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="13">',
        '<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z" fill="#555"/></marker></defs>',
        '<rect width="100%" height="100%" rx="8" fill="#fff"/>',
    ]
    for start, end, word in edges:
        (x1, y1), (x2, y2) = (place(nodes[name]) for name in (start, end))
        dashed = ' stroke-dasharray="5 4"' if "frozen" in (nodes[start][1], nodes[end][1]) else ""
        if nodes[start][2] == nodes[end][2]:  # in one column: from below or above
            x1 = x2 = x1 + BOX[0] / 2
            y1, y2 = (y1 + BOX[1], y2) if y1 < y2 else (y1, y2 + BOX[1])
        else:
            forward = x1 < x2
            x1, x2 = (x1 + BOX[0], x2) if forward else (x1, x2 + BOX[0])
            y1, y2 = y1 + BOX[1] / 2, y2 + BOX[1] / 2
        parts.append(
            f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="#555"{dashed} marker-end="url(#a)"/>'
        )
        if word:
            side = 6 if x1 == x2 else 0
            parts.append(
                f'<text x="{(x1 + x2) / 2 + side:g}" y="{(y1 + y2) / 2 - (0 if side else 5):g}" fill="#555" '
                f'font-size="11" text-anchor="{"start" if side else "middle"}">{escape(word)}</text>'
            )
    for node in nodes.values():
        x, y = place(node)
        parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{BOX[0]}" height="{BOX[1]}" rx="6" '
            f'fill="{FILL[node[1]]}" stroke="#777"/>'
        )
        lines = node[0].split("\n")
        for index, line in enumerate(lines):
            down = y + BOX[1] / 2 + 5 + 15 * (index - (len(lines) - 1) / 2)
            parts.append(f'<text x="{x + BOX[0] / 2:g}" y="{down:g}" text-anchor="middle">{escape(line)}</text>')
    return "\n".join([*parts, "</svg>\n"])


def place(node: Node) -> tuple[float, float]:
    """Upper left corner of a box."""
    return COLUMNS[node[2]], 10 + node[3] * ROW


SOURCE: dict[str, Node] = {
    "source": ("source image\nand label", "data", 0, 0),
    "source view": ("source view", "view", 1, 0),
    "student": ("student", "student", 2, 0),
    "segmentation": ("segmentation:\ncross entropy", "term", 3, 0),
}
LEARN = [("source", "source view", ""), ("source view", "student", ""), ("student", "segmentation", "")]
MIXED: dict[str, Node] = {
    **SOURCE,
    "target": ("target image", "data", 0, 2),
    "mixed": ("mixed view: classes\npasted on target", "view", 1, 1),
    "teacher": ("teacher: average\nof the student", "frozen", 2, 2),
}
MIX = [
    *LEARN,
    ("source", "mixed", ""),
    ("target", "mixed", ""),
    ("mixed", "student", ""),
    ("target", "teacher", ""),
    ("teacher", "mixed", "labels"),
    ("student", "teacher", "EMA"),
]
FIGURES: dict[str, tuple[dict[str, Node], list[tuple[str, str, str]]]] = {
    "source-only": (SOURCE, LEARN),
    "dacs": (MIXED, MIX),
    "daformer": (
        {
            **MIXED,
            "imagenet": ("frozen ImageNet\nbackbone", "frozen", 3, 2),
            "distance": ("feature distance\non thing classes", "term", 3, 1),
        },
        [*MIX, ("student", "distance", ""), ("imagenet", "distance", "")],
    ),
    "mic": (
        {**MIXED, "masked": ("masked view:\ntarget in patches", "view", 1, 3)},
        [*MIX, ("target", "masked", ""), ("masked", "student", ""), ("teacher", "masked", "labels")],
    ),
    "ssr": (
        {
            "view": ("source or mixed\nview", "view", 0, 0),
            "backbone": ("student's backbone", "student", 1, 0),
            "head": ("student's head", "student", 2, 0),
            "segmentation": ("segmentation\n(shadow branch)", "term", 3, 0),
            "encoder": ("foundation encoder\n(SAM), frozen", "frozen", 0, 1.5),
            "attention": ("cross-attention:\nfeatures ask SAM's", "view", 1, 1.5),
            "same": ("the same head", "student", 2, 1.5),
            "regularizer": ("regularizer: same\nlabels, same loss", "term", 3, 1.5),
        },
        [
            ("view", "backbone", ""),
            ("backbone", "head", ""),
            ("head", "segmentation", ""),
            ("view", "encoder", ""),
            ("encoder", "attention", ""),
            ("backbone", "attention", "4 stages"),
            ("attention", "same", ""),
            ("same", "regularizer", ""),
        ],
    ),
    "undoing": (
        {
            "target": ("target image", "data", 0, 0),
            "source": ("source image\nand label", "data", 0, 1),
            "student": ("student", "student", 1, 0),
            "discriminator": ("discriminator:\nwhich domain, class", "student", 2, 0),
            "align": ("alignment: pass as\nthe other domain", "term", 3, 0),
            "head": ("segmentation", "term", 2, 1),
            "priors": ("class priors of\nboth domains", "data", 1, 2),
            "adjust": ("logits corrected for\nthe shift of priors", "view", 2, 2),
        },
        [
            ("target", "student", ""),
            ("source", "student", ""),
            ("student", "discriminator", ""),
            ("discriminator", "align", ""),
            ("student", "head", ""),
            ("student", "priors", "counts"),
            ("priors", "adjust", ""),
        ],
    ),
}


def main() -> None:
    """Write all figures."""
    for name, (nodes, edges) in FIGURES.items():
        (OUT / f"method-{name}.svg").write_text(figure(nodes, edges), encoding="utf-8")


if __name__ == "__main__":
    main()
