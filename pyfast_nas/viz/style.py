"""The style sheet of the report page: light, dark, narrow and printed."""

from pyfast_nas.viz.heat import LEVELS

__all__ = ["style_sheet"]

_LIGHT = {
    "page": "#fafaf9", "card": "#ffffff", "ink": "#181b20", "soft": "#575e68", "edge": "#dcdee2",
    "good": "#1f7a33", "note": "#1d5fa8", "warn": "#b04a00",
    "line-0": "#1d5fa8", "line-1": "#b85a00", "line-2": "#2a7a30", "line-3": "#6b3fa0",
}  # fmt: skip
_DARK = {
    "page": "#121417", "card": "#1c1f24", "ink": "#e6e8eb", "soft": "#a3abb5", "edge": "#343a43",
    "good": "#82cf88", "note": "#7db4f0", "warn": "#f5a860",
    "line-0": "#7db4f0", "line-1": "#f0ab5f", "line-2": "#82cf88", "line-3": "#c5a5ef",
}  # fmt: skip
# Neutral shade, and the ends of the scale below and above it: told apart by any eye.
_HEAT_LIGHT = ("#efefec", "#9a5200", "#0b4f9e")
_HEAT_DARK = ("#2b2f36", "#e8963c", "#5ea3f2")

_RULES = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--ink);line-height:1.5;
 font:16px/1.5 system-ui,-apple-system,"Segoe UI","DejaVu Sans",Arial,sans-serif}
main{max-width:1040px;margin:0 auto;padding:28px 20px 48px}
h1{font-size:1.65rem;line-height:1.25;margin:0 0 .3rem;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:0 0 .7rem}
h3{font-size:.95rem;margin:1.1rem 0 .5rem}
p{margin:.4rem 0;max-width:75ch}
a{color:var(--note)}
code{font:.88em ui-monospace,"SF Mono","DejaVu Sans Mono",Menlo,Consolas,monospace;
 overflow-wrap:anywhere}
.soft{color:var(--soft)}
.small{font-size:.86rem}
.verdict{font-size:1.08rem;border-left:5px solid var(--note);padding:.35rem 0 .35rem .9rem;
 margin:1rem 0;max-width:none}
.verdict.better{border-color:var(--good)}
.verdict.worse{border-color:var(--warn)}
section{background:var(--card);border:1px solid var(--edge);border-radius:10px;
 padding:18px 20px;margin:18px 0}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:10px;margin:18px 0}
.tile{background:var(--card);border:1px solid var(--edge);border-radius:10px;padding:10px 14px}
.tile b{display:block;font-size:1.25rem;line-height:1.3;font-variant-numeric:tabular-nums}
.tile span{color:var(--soft);font-size:.82rem;display:block;line-height:1.35}
.checks{list-style:none;margin:0;padding:0}
.checks li{display:flex;gap:.7rem;padding:.22rem 0}
.mark{flex:none;width:5.4rem;white-space:nowrap;font-size:.8rem;font-weight:600;line-height:1.75}
.good .mark{color:var(--good)}.note .mark{color:var(--note)}.warn .mark{color:var(--warn)}
.wide{overflow-x:auto;margin:.4rem 0}
.wide svg{display:block}
.pfn-cell{max-width:100%;height:auto}
.charts{display:grid;gap:14px 24px;
 grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr))}
figure{margin:0}
figcaption{font-weight:600;font-size:.92rem;margin-bottom:.2rem}
.chart{width:100%;height:auto;display:block}
.chart text{font-size:12px;fill:var(--soft)}

.chart .value{fill:var(--ink);paint-order:stroke;stroke:var(--card);stroke-width:4px}
.grid{stroke:var(--edge);fill:none}
.line{fill:none;stroke-width:1.8}
.spread{stroke-width:9;opacity:.25}
.mean{stroke-width:2}
.dot{stroke:var(--card);stroke-width:1.2}
.fixed{width:auto;max-width:100%}
.chart .cell{font-size:11.5px;text-anchor:middle;fill:var(--ink);font-variant-numeric:tabular-nums}
.chart .lead{font-weight:700}
.chart .kept{fill:var(--ink);font-weight:600}
.chart .strong{fill:var(--card)}
.chosen{fill:none;stroke:var(--ink);stroke-width:2}
.strips{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:10px 14px}
.strip{display:block;width:100%;height:76px;background:var(--h0)}
.strips figcaption{font-size:.8rem;font-weight:400;color:var(--soft);margin:0 0 3px;
 display:flex;justify-content:space-between;gap:.4rem;white-space:nowrap}
.strips .kept figcaption{color:var(--ink);font-weight:600}
.strips .kept .strip{outline:2px solid var(--ink);outline-offset:1px}
.scale{max-width:none;display:flex;align-items:center;gap:.6rem;font-size:.82rem;color:var(--soft);flex-wrap:wrap}
.scale svg{width:220px;height:14px;display:block}
table{border-collapse:collapse;font-size:.88rem;width:100%}
th,td{text-align:left;padding:.22rem .9rem .22rem 0;vertical-align:top;
 border-bottom:1px solid var(--edge);font-variant-numeric:tabular-nums}
th{font-weight:600}
tbody th{width:40%;font-weight:400;color:var(--soft);white-space:nowrap}
td{overflow-wrap:anywhere}
.columns{display:grid;gap:6px 32px;
 grid-template-columns:repeat(auto-fit,minmax(min(100%,280px),1fr))}
@media (max-width:520px){main{padding:18px 12px 32px}section{padding:14px 12px}
 .tiles{grid-template-columns:repeat(2,1fr)}.mark{width:4.9rem;font-size:.76rem}}
@media print{html{font-size:11px}body{background:#fff;font-size:11px}main{max-width:none;padding:0}
 h2,h3,p{break-after:avoid}.charts{grid-template-columns:1fr 1fr}section{padding:10px;margin:10px 0}
 .strips{grid-template-columns:repeat(5,1fr)}.strip{height:48px}
 section,.tile{border-color:#bbb;break-inside:avoid-page}section.long{break-inside:auto}
 figure,tr{break-inside:avoid}.wide{overflow:visible}.fixed{min-width:0!important}
 .pfn-cell{min-width:0!important}*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
"""


def style_sheet() -> str:
    """Return the whole style sheet; it names no file and no address.

    Example:
        >>> "url(" in style_sheet() or "@import" in style_sheet()
        False
    """
    dark = _variables(_DARK, _HEAT_DARK)
    return (
        f":root{{color-scheme:light dark;{_variables(_LIGHT, _HEAT_LIGHT)}}}"
        f"@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}"
        f"{_RULES}{_shades()}"
    )


def _variables(colours: dict[str, str], heat: tuple[str, str, str]) -> str:
    neutral, down, up = heat
    shades = {"h0": neutral}
    for step in range(1, LEVELS + 1):
        shades[f"d{step}"] = _mix(neutral, down, step / LEVELS)
        shades[f"u{step}"] = _mix(neutral, up, step / LEVELS)
    return "".join(f"--{name}:{colour};" for name, colour in (colours | shades).items())


def _shades() -> str:
    names = ["h0"] + [f"{side}{step}" for side in "du" for step in range(1, LEVELS + 1)]
    return "".join(f".{name}{{fill:var(--{name})}}" for name in names)


def _mix(start: str, end: str, share: float) -> str:
    parts = [(int(start[i : i + 2], 16), int(end[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in parts)
