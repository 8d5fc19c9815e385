"""The frame of an HTML report: styles for light, dark and paper, and where its parts go.

It knows nothing of evaluations.
"""

from __future__ import annotations

from string import Template

__all__ = ["PAGE"]

# The plots take --ink, --muted, --grid and --paper from here, which is how they follow light and dark.
PAGE = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
:root { --paper: #ffffff; --ink: #20292e; --muted: #6b757b; --grid: #dde3e6; --accent: #2f6f8f; --note: #fff6dd; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14191c; --ink: #e4eaed; --muted: #94a1a8; --grid: #333d43; --accent: #7cc0de; --note: #33301f; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 58rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
.summary { font-size: 1.1rem; margin: 0 0 1.5rem; }
.note { background: var(--note); border-left: 4px solid var(--accent); padding: .5rem .75rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .9rem .35rem 0; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--grid); }
th:first-child { text-align: left; }
thead th { color: var(--muted); font-weight: 600; font-size: .875rem; }
tbody tr:last-child > * { border-bottom: 0; }
figure { margin: 1.5rem 0; overflow-x: auto; }
figure svg { display: block; width: 100%; min-width: 38rem; height: auto; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: 1rem 0 0; font-size: .875rem; }
dt { font-weight: 600; }
dd { margin: 0; color: var(--muted); }
.sweeps { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); column-gap: 2.5rem; }
footer { margin-top: 2.5rem; padding-top: 1rem; border-top: 1px solid var(--grid); color: var(--muted);
  font-size: .8125rem; overflow-wrap: anywhere; }
footer ul { margin: 0; padding-left: 1.1rem; }
@media print {
  :root { --paper: #ffffff; --ink: #000000; --muted: #444444; --grid: #cccccc; --accent: #2f6f8f; --note: #ffffff; }
  body { padding: 0; max-width: none; font-size: 11pt; }
  figure, section, table { break-inside: avoid; }
  figure svg { min-width: 0; }
}
</style>
</head>
<body>
<h1>$title</h1>
$summary
$notes
$table
$legend
$plots
<div class="sweeps">$sweeps</div>
<footer><ul>$details</ul></footer>
</body>
</html>
""")
