"""How the page looks: one column, light and dark, wide pictures scroll in their own box."""

CSS = """
:root { color-scheme: light dark;
  --page: #fcfcfb; --ink: #1d2126; --soft: #5c6670; --line: #d9dde1; --card: #f3f4f5;
  --forward: #4c78a8; --backward: #3f8f6b; --hidden: #e0a526; --exposed: #c8453b; --wait: #e4e7ea;
  --tp: #8a6fb0; --pp: #6b8794; --bar: #4c78a8; --budget: #c8453b; }
@media (prefers-color-scheme: dark) { :root {
  --page: #15181b; --ink: #e6e8ea; --soft: #9aa4ad; --line: #343a40; --card: #1d2125;
  --forward: #6c9bcf; --backward: #59b58b; --hidden: #e8b84a; --exposed: #e2675d; --wait: #2a2f34;
  --tp: #a78fce; --pp: #8aa7b4; --bar: #6c9bcf; --budget: #e2675d; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 72rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.15rem; margin: 2.25rem 0 .5rem; padding-top: .75rem; border-top: 1px solid var(--line); }
p, ul { max-width: 46rem; margin: .5rem 0; } li { margin: .2rem 0; }
.soft, figcaption, .caption { color: var(--soft); }
.badge { display: inline-block; padding: .1rem .5rem; border: 1px solid var(--exposed); border-radius: .3rem;
  color: var(--exposed); font-size: .85rem; font-weight: 600; }
.badge.measured { border-color: var(--backward); color: var(--backward); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .75rem; margin: 1rem 0; }
.tile { background: var(--card); border-radius: .4rem; padding: .6rem .8rem; }
.tile b { display: block; font-size: 1.3rem; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .85rem; }
.scroll { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
.caption { font-size: .85rem; margin: 1rem 0 .3rem; } .caption + .scroll { margin-top: 0; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child { text-align: left; font-weight: 500; position: sticky; left: 0; background: var(--page); }
.words td, .words th { text-align: left; } .words td { white-space: normal; min-width: 12rem; vertical-align: top; }
thead th { color: var(--soft); font-weight: 500; }
figure { margin: 1rem 0; } figcaption { font-size: .85rem; max-width: 46rem; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--ink); font: 12px system-ui, sans-serif; } svg text.soft { fill: var(--soft); }
svg text.inside { fill: var(--page); pointer-events: none; }
.bars { display: grid; grid-template-columns: max-content 1fr max-content; gap: .3rem .6rem; align-items: center;
  font-size: .9rem; font-variant-numeric: tabular-nums; }
.bars .name { text-align: right; } .bars .figure { color: var(--soft); text-align: right; }
.bars .track i { display: block; height: 1.1rem; border-radius: .15rem; }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1rem; font-size: .85rem; color: var(--soft); }
.legend i { display: inline-block; width: .8rem; height: .8rem; border-radius: .15rem; margin-right: .35rem;
  vertical-align: -1px; }
.forward { fill: var(--forward); background: var(--forward); }
.backward { fill: var(--backward); background: var(--backward); }
.hidden { fill: var(--hidden); background: var(--hidden); }
.exposed { fill: var(--exposed); background: var(--exposed); }
.wait { fill: var(--wait); background: var(--wait); }
.tp { fill: var(--tp); background: var(--tp); }
.pp { fill: var(--pp); background: var(--pp); }
.bar { background: var(--bar); }
.grid { stroke: var(--line); stroke-width: 1; }
.budget { stroke: var(--budget); stroke-width: 1.2; stroke-dasharray: 5 4; }
.curve { fill: none; stroke-width: 1.6; }
code, pre { font: .85rem/1.45 ui-monospace, monospace; }
pre { background: var(--card); border-radius: .4rem; padding: .7rem .9rem;
  overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; }
@media (max-width: 480px) { body { font-size: 15px; } h1 { font-size: 1.25rem; } main { padding: 1rem .75rem 3rem; } }
"""

STAGE_COLOURS = ("#4c78a8", "#e07b39", "#3f8f6b", "#c8453b", "#8a6fb0", "#a0785a", "#d37295", "#7f7f7f")
"""Of curves by stage; they repeat."""
