"""How the pages look, in light and dark, on a laptop, a phone and paper; and the script that shows a chart's values."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #586172; --line: #dfe3ea; --card: #fff; --page: #f5f6f8;
  --good: #1b7f4b; --bad: #b3401f; --bar: #4c78a8; --heat: 30, 80, 135; --hot: #fff;
  --tone-0: #3a6ea5; --tone-1: #d1441c; --tone-2: #2d8659; --tone-3: #8450a8; --tone-4: #a86f00; --tone-5: #0f8a94;
  --tone-6: #bd3c78; --tone-7: #666e7a; --tone-8: #5c7a1f; --tone-9: #7d5a45; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #9fa9ba; --line: #333b48; --card: #1d232d;
  --page: #14181f; --good: #5fc48f; --bad: #ef8a68; --bar: #6d9bd0; --heat: 109, 155, 208; --hot: #14181f;
  --tone-0: #76a7dd; --tone-1: #f4845f; --tone-2: #62c793; --tone-3: #c295e4; --tone-4: #deb04d; --tone-5: #58c6d0;
  --tone-6: #ee85b1; --tone-7: #a3abb8; --tone-8: #a9cb68; --tone-9: #c9a48d; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1060px; padding: 28px 20px 60px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { margin: 0; font-size: 26px; line-height: 1.25; overflow-wrap: anywhere; }
h2 { margin: 0 0 10px; font-size: 17px; }
h3 { margin: 18px 0 6px; font-size: 14px; }
p { margin: 4px 0; overflow-wrap: anywhere; }
a { color: var(--tone-0); }
section { margin-top: 18px; padding: 18px 20px; border: 1px solid var(--line); border-radius: 10px;
  background: var(--card); }
.scroll { max-width: 100%; overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; color: var(--soft); font-weight: 600; font-size: 13px; }
th, td { padding: 4px 14px 4px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td { overflow-wrap: break-word; min-width: 3em; max-width: 32em; }
tr:last-child td, tr:last-child th { border-bottom: 0; }
.settings td { overflow-wrap: anywhere; min-width: 5.5em; } .settings code { white-space: nowrap; }
.mapping td { overflow-wrap: anywhere; max-width: none; } .attempts td { white-space: nowrap; }
.attempts td:nth-child(5) { white-space: normal; min-width: 12em; }
.number { text-align: right; white-space: nowrap; }
.soft { color: var(--soft); }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 180px), 1fr)); gap: 12px;
  margin-top: 18px; }
.fact { padding: 12px 16px; border: 1px solid var(--line); border-radius: 10px; background: var(--card); }
.fact b { display: block; font-size: 23px; line-height: 1.3; }
.fact span { color: var(--soft); font-size: 13px; }
.state { display: inline-block; margin-left: 8px; padding: 1px 10px; border-radius: 20px; background: var(--soft);
  color: var(--card); font-size: 13px; vertical-align: middle; }
.state.finished { background: var(--good); } .state.failed { background: var(--bad); }
.state.running { background: var(--tone-0); }
.good { color: var(--good); } .bad { color: var(--bad); }
.bars td:last-child { width: 32%; min-width: 90px; }
.bar { display: block; height: 10px; margin-top: 6px; border-radius: 3px; background: var(--bar); }
.label { width: 190px; color: var(--soft); font-weight: 400; font-size: inherit; }
img { display: block; max-width: 100%; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(132px, 1fr)); gap: 14px 12px; }
.pictures figure { margin: 0; font-size: 13px; line-height: 1.35; overflow-wrap: anywhere; }
.pictures img { width: 128px; max-width: 100%; aspect-ratio: 1; margin-bottom: 4px; border-radius: 6px;
  object-fit: contain; background: var(--page); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 18px 26px; }
.chart { position: relative; margin: 0; min-width: 0; max-width: 640px; }
.chart figcaption { font-weight: 600; font-size: 14px; }
.chart svg { display: block; width: 100%; height: auto; overflow: visible; touch-action: pan-y; cursor: crosshair; }
.chart text { fill: var(--soft); font-size: 12px; }
.chart path { fill: none; stroke: var(--line); vector-effect: non-scaling-stroke; }
.chart .axis { stroke: var(--soft); }
.chart .line, .spark .line { fill: none; stroke-width: 1.8; stroke-linejoin: round;
  stroke-linecap: round; }
.chart .faint { stroke-width: 1; opacity: .35; }
.chart .dashed { stroke-linecap: butt; stroke-dasharray: 5 4; stroke-width: 1.3; }
.chart .mark { stroke: var(--soft); stroke-width: 1.2; } .chart .turn { stroke-dasharray: 2 4; }
.chart .restart { stroke: var(--bad); stroke-dasharray: 6 3; } .chart .save { fill: var(--soft); stroke: none; }
.chart .cross { stroke: var(--ink); stroke-width: 1; }
.legend { display: flex; flex-wrap: wrap; gap: 0 14px; font-size: 13px; color: var(--soft); }
.legend span { overflow-wrap: anywhere; }
.legend i { display: inline-block; width: 14px; height: 3px; margin: 0 6px 3px 0; border-radius: 2px; }
.spent { display: flex; height: 22px; margin-bottom: 8px; border-radius: 4px; overflow: hidden; }
.spent i { flex: 0 1 0; min-width: 1px; } .spent ~ .legend i { width: 10px; height: 10px; margin-bottom: 0; }
.tip { position: absolute; z-index: 2; max-width: min(300px, 94%); padding: 6px 10px; border: 1px solid var(--line);
  border-radius: 6px; background: var(--card); box-shadow: 0 2px 8px rgba(0, 0, 0, .18); font-size: 13px;
  line-height: 1.4; pointer-events: none; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.tip i { display: inline-block; width: 9px; height: 9px; margin-right: 6px; border-radius: 50%; }
.spark { display: block; width: 120px; height: 28px; }
.heat { width: auto; font-size: 12px; border-collapse: separate; border-spacing: 1px; }
.heat th, .heat td { padding: 0 5px; border: 0; min-width: 26px; height: 24px; text-align: center;
  vertical-align: middle; line-height: 1.2; }
.heat th[scope=row] { position: sticky; left: 0; max-width: 150px; background: var(--card); text-align: right;
  overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.heat thead th { vertical-align: bottom; font-weight: 400; }
.heat thead th span { writing-mode: vertical-rl; transform: rotate(180deg); max-height: 150px; overflow: hidden;
  text-overflow: ellipsis; white-space: nowrap; text-align: left; }
.heat td { background: rgba(var(--heat), var(--share)); border-radius: 2px; }
.heat td.hot { color: var(--hot); }
pre { margin: 4px 0 10px; padding: 10px 12px; border-radius: 6px; background: var(--page); white-space: pre-wrap;
  overflow-wrap: anywhere; font-size: 13px; }
code { overflow-wrap: anywhere; }
@media screen and (max-width: 600px) {
  body { padding: 16px 10px 40px; } section { padding: 14px 12px; } h1 { font-size: 21px; }
  .facts { grid-template-columns: 1fr 1fr; gap: 8px; } .fact { padding: 9px 11px; } .fact b { font-size: 19px; }
  th, td { padding-right: 10px; } .label { width: 38%; } .chart text { font-size: 15px; }
  .pairs th:last-child, .pairs td:last-child { display: none; }
  .pictures { grid-template-columns: repeat(3, 1fr); gap: 10px; }
}
@media print {
  :root { color-scheme: light; --ink: #000; --soft: #444; --line: #bbb; --card: #fff; --page: #fff; --good: #1b7f4b;
    --bad: #b3401f; --bar: #4c78a8; --heat: 30, 80, 135; --hot: #fff; --tone-0: #3a6ea5; --tone-1: #d1441c;
    --tone-2: #2d8659; --tone-3: #8450a8; --tone-4: #a86f00; --tone-5: #0f8a94; --tone-6: #bd3c78; --tone-7: #666e7a;
    --tone-8: #5c7a1f; --tone-9: #7d5a45; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  body { max-width: none; padding: 0; font-size: 11px; } section { padding: 10px 0; border: 0; } h2 { font-size: 15px; }
  th, pre, .legend, .fact span, .pictures figure { font-size: 11px; } .chart figcaption { font-size: 12px; }
  .charts { grid-template-columns: 1fr 1fr; }
  .facts { grid-template-columns: repeat(auto-fit, minmax(120px, 1fr)); gap: 8px; } .fact { padding: 8px 10px; }
  .fact b { font-size: 18px; } .state { padding: 0 8px; font-size: 11px; }
  .pictures { grid-template-columns: repeat(8, 1fr); gap: 10px 8px; } .bar { height: 7px; margin-top: 4px; }
  .chart, .fact, .pictures figure, .heat, tr, pre { break-inside: avoid; } .tip { display: none; }
  h2, h3, section > .soft:not(:last-child) { break-after: avoid; }
  .scroll { overflow: visible; }
}
"""

SCRIPT = """
for (const chart of document.querySelectorAll('.chart')) {
  const data = JSON.parse(chart.querySelector('script').textContent), svg = chart.querySelector('svg');
  const at = svg.querySelector('.at'), tip = document.createElement('div'), box = svg.viewBox.baseVal;
  tip.className = 'tip'; tip.hidden = true; chart.append(tip);
  const scale = ([low, high, start, end], value, log) => {
    if (log) [low, high, value] = [low, high, value].map(Math.log10);
    return start + (end - start) * (value - low) / (high - low);
  };
  const show = value => value === null ? 'none' : Math.abs(value) >= 1e4 ? Math.round(value).toLocaleString('en')
    : String(+value.toPrecision(4));
  const row = (text, tone) => {
    const line = tip.appendChild(document.createElement('div'));
    if (tone !== undefined) line.appendChild(document.createElement('i')).style.background = `var(--tone-${tone})`;
    line.append(text);
  };
  const draw = (tag, attributes) => {
    const made = at.appendChild(document.createElementNS('http://www.w3.org/2000/svg', tag));
    for (const name in attributes) made.setAttribute(name, attributes[name]);
  };
  const nearest = (line, x) => {
    let low = 0, high = line.points.length - 1;
    while (high - low > 1) {
      const middle = low + high >> 1;
      if (line.points[middle][0] <= x) low = middle; else high = middle;
    }
    return !line.step && Math.abs(line.points[high][0] - x) < Math.abs(line.points[low][0] - x)
      || line.points[high][0] <= x ? high : low;
  };
  const move = event => {
    const place = svg.getBoundingClientRect(), [low, high, left, right] = data.x;
    const pixel = Math.min(right, Math.max(left, (event.clientX - place.left) * box.width / place.width));
    let x = low + (high - low) * (pixel - left) / (right - left);
    const main = data.lines.reduce((a, b) => b.points.length > a.points.length && !b.step || a.step ? b : a);
    if (!main.step) x = main.points[nearest(main, x)][0];
    at.replaceChildren(); tip.replaceChildren(); tip.hidden = false;
    draw('path', {class: 'cross', d: `M${scale(data.x, x)} ${data.y[2]}V${data.y[3]}`});
    row(`${data.label} ${show(x)}`);
    for (const line of data.lines) {
      const index = nearest(line, x), [where, value] = line.points[index];
      const off = line.step || Math.abs(where - x) * (right - left) / (high - low) < 4 ? '' : `(at ${show(where)})`;
      const mean = line.means && line.means[index] !== null ? `, mean ${show(line.means[index])}` : '';
      const shown = [line.name, show(value) + mean, value === null ? '' : data.unit, off];
      row(shown.filter(part => part).join(' '), line.tone);
      if (value !== null) draw('circle', {cx: scale(data.x, line.step ? x : where), r: 3.5,
        cy: scale(data.y, value, data.log), style: `fill:var(--tone-${line.tone})`});
    }
    for (const [where, name] of data.marks)
      if (Math.abs(scale(data.x, where) - scale(data.x, x)) < 5) row(`${name} (${show(where)})`);
    const inside = chart.getBoundingClientRect(), across = event.clientX - inside.left;
    tip.style.left = Math.max(0, Math.min(across + 14, inside.width - tip.offsetWidth)) + 'px';
    if (across + 14 + tip.offsetWidth > inside.width && across - 14 - tip.offsetWidth >= 0)
      tip.style.left = across - 14 - tip.offsetWidth + 'px';
    tip.style.top = place.top - inside.top + 8 + 'px';
  };
  const leave = () => { tip.hidden = true; at.replaceChildren(); };
  for (const name of ['pointermove', 'pointerdown']) svg.addEventListener(name, move);
  svg.addEventListener('pointerleave', event => { if (event.pointerType === 'mouse') leave(); });
  document.addEventListener('pointerdown', event => { if (!svg.contains(event.target)) leave(); });
}
// On paper nothing can be opened.
addEventListener('beforeprint', () => { for (const part of document.querySelectorAll('details')) part.open = true; });
"""
