"""Bars of what each runtime takes, a group for each piece of work."""
from xml.sax.saxutils import escape

BAR, GAP, LEFT, WIDTH = 16, 26, 190, 420
COLOURS = {"kiln": "#c2410c", "other": "#94a3b8"}


def svg(figures):
    """Lengths are relative to the slowest of each piece of work; kiln's bars have another colour."""
    parts, y = [], 10
    for work in dict.fromkeys(row["work"] for row in figures["rows"]):
        rows = sorted((row for row in figures["rows"] if row["work"] == work), key=lambda row: row["seconds"])
        slowest = rows[-1]["seconds"]
        parts.append(f'<text x="0" y="{y + 14}" font-weight="bold">{escape(work)}</text>')
        y += GAP
        for row in rows:
            colour = COLOURS["kiln" if row["runtime"] in ("kiln-f32", "kiln-bf16", "kiln-int8") else "other"]
            length = max(WIDTH * row["seconds"] / slowest, 1)
            parts.append(f'<text x="0" y="{y + 12}">{escape(row["runtime"])}</text>'
                         f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR - 2}" fill="{colour}"/>'
                         f'<text x="{LEFT + length + 6:.1f}" y="{y + 12}">{row["seconds"]:.2f} s</text>')
            y += BAR + 2
        y += 10
    style = 'font-family="system-ui, sans-serif" font-size="12" fill="#0f172a"'
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 80}" height="{y + 10}" {style}>'
            f'<rect width="100%" height="100%" fill="#ffffff"/>{"".join(parts)}</svg>\n')
