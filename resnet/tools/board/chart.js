// Curves of several runs in one drawing. Names of runs are texts of nodes, never HTML.

const SVG = "http://www.w3.org/2000/svg";
const DRAWN = new Set(["svg", "g", "path", "text", "circle", "rect"]);

function element(name, attributes = {}, ...children) {
  const made = DRAWN.has(name) ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// What all drawings of a page share: which runs are hidden, and which one is pointed at.
function makeView() {
  const watchers = [];
  const view = {
    hidden: new Set(),
    lit: null,
    axis: 0,
    log: false,
    smooth: true,
    printing: false,
    watch: (redraw, light) => watchers.push({ redraw, light }),
    redraw: () => watchers.forEach((one) => one.redraw && one.redraw()),
    light: (run) => {
      if (run === view.lit) return;
      view.lit = run;
      watchers.forEach((one) => one.light && one.light());
    },
  };
  for (const printing of [true, false])
    addEventListener(printing ? "beforeprint" : "afterprint", () => {
      view.printing = printing;
      view.redraw();
    });
  return view;
}

// Pixels across a page of paper, for which drawings are made anew: scaled down from a screen, letters would be too small.
const PAPER = 700;

function figure(value) {
  if (value === null || value === undefined) return "";
  const size = Math.abs(value);
  if (size >= 1e5 || (size > 0 && size < 1e-3)) return value.toExponential(3).replace("e+", "e");
  return String(Number(value.toPrecision(5)));
}

// whole: at whole numbers, as of epochs, where there are two of them.
function roundTicks(low, high, about, whole = false) {
  const raw = (high - low) / about;
  const unit = 10 ** Math.floor(Math.log10(raw));
  const round = [1, 2, 5, 10].map((factor) => factor * unit).find((one) => one >= raw * 0.999);
  const step = whole && round < 1 && Math.floor(high) - Math.ceil(low) >= 1 ? 1 : round;
  const ticks = [];
  for (let index = Math.ceil(low / step - 1e-9); index * step <= high * (1 + 1e-12) + 1e-12; index++)
    ticks.push(index * step);
  return ticks;
}

function powers(low, high) {
  const first = Math.floor(Math.log10(low)),
    last = Math.ceil(Math.log10(high));
  const factors = last - first <= 2 ? [1, 2, 5] : [1];
  const ticks = [];
  for (let power = first; power <= last; power++) for (const factor of factors) ticks.push(factor * 10 ** power);
  return ticks.filter((one) => one >= low && one <= high);
}

function written(value) {
  const size = Math.abs(value);
  if (size >= 1e13) return value.toExponential().replace("e+", "e");
  for (const [scale, suffix] of [
    [1e9, "G"],
    [1e6, "M"],
    [1e4, "k"],
  ]) {
    if (size >= scale) return `${Number((value / (scale === 1e4 ? 1e3 : scale)).toPrecision(4))}${suffix}`;
  }
  return String(Number(value.toPrecision(4)));
}

function scale(low, high, start, end, log) {
  const of = log ? Math.log10 : (value) => value;
  return (value) => start + ((end - start) * (of(value) - of(low))) / (of(high) - of(low) || 1);
}

// chart: {title, unit, lines: [{run, x: [by epoch, by step ...], y}]}; look: run -> {name, color, dash}.
function lineChart(host, chart, axes, view, look) {
  const tip = element("div", { class: "tip" });
  const caption = chart.unit ? `${chart.title}, ${chart.unit}` : chart.title;
  let svg = null,
    drawn = [];

  function redraw() {
    const paper = PAPER / (host.closest(".charts") ? 2 : 1),
      width = view.printing ? paper : Math.max(260, host.clientWidth),
      height = Math.round(Math.min(view.printing ? 230 : 300, Math.max(200, width * 0.52)));
    const area = { left: 52, right: width - 10, top: 10, bottom: height - 40 };
    const log = view.log && chart.can_log;
    const lines = chart.lines
      .filter((line) => !view.hidden.has(line.run))
      .map((line) => ({
        run: line.run,
        points: (chart.noisy && view.smooth ? movingMean(line.y) : line.y)
          .map((y, i) => [line.x[view.axis][i], y])
          .filter(([x, y]) => x !== null && (!log || y > 0)),
      }))
      .filter((line) => line.points.length);
    drawn = [];
    svg = element("svg", {
      viewBox: `0 0 ${width} ${height}`,
      role: "img",
      "aria-label": `${caption} by ${axes[view.axis]}`,
    });
    const body = element("g");
    svg.append(body);
    if (lines.length) {
      const xs = lines.flatMap((line) => line.points.map((point) => point[0]));
      const ys = lines.flatMap((line) => line.points.map((point) => point[1]));
      let [left, right] = extent(xs),
        [low, high] = extent(ys);
      if (log) [low, high] = [low / 1.1, high * 1.1];
      else
        [low, high] = chart.from_zero
          ? [Math.min(0, low), high * 1.05]
          : [low - 0.04 * (high - low), high + 0.04 * (high - low)];
      const across = scale(left, right, area.left, area.right),
        up = scale(low, high, area.bottom, area.top, log);
      grid(
        body,
        area,
        across,
        up,
        log ? powers(low, high) : roundTicks(low, high, 5),
        roundTicks(left, right, Math.min(7, width / 70), view.axis < 2),
      );
      const paths = element("g", { class: "lines" });
      for (const line of lines) {
        const places = line.points.map(([x, y]) => [across(x), up(y)]);
        const path = element("path", {
          class: `line ${look(line.run).kind || ""}`,
          d: outline(places),
          style: stroke(look(line.run)),
        });
        paths.append(path);
        if (places.length === 1)
          paths.append(
            element("circle", {
              class: "dot",
              cx: places[0][0],
              cy: places[0][1],
              r: 3,
              style: `fill:${look(line.run).color}`,
            }),
          );
        drawn.push({ ...line, places, path });
      }
      body.append(paths, element("g", { class: "at" }));
    } else {
      body.append(element("text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, "no values"));
    }
    body.append(
      element("text", { x: (area.left + area.right) / 2, y: height - 5, "text-anchor": "middle" }, axes[view.axis]),
    );
    host.replaceChildren(element("figcaption", {}, caption), svg, tip);
    tip.hidden = true;
    light();
  }

  function light() {
    if (!svg) return;
    svg.classList.toggle(
      "pointed",
      drawn.some((line) => line.run === view.lit),
    );
    for (const line of drawn) {
      const lit = line.run === view.lit;
      if (line.path.classList.contains("lit") === lit) continue;
      line.path.classList.toggle("lit", lit);
      if (lit) line.path.parentNode.append(line.path);
    }
    if (!drawn.some((line) => line.run === view.lit)) mark(null);
  }

  function mark(line, index) {
    const at = svg.querySelector(".at");
    if (!at) return;
    tip.hidden = !line;
    if (!line) return at.replaceChildren();
    const [x, y] = line.places[index],
      one = look(line.run);
    at.replaceChildren(element("circle", { cx: x, cy: y, r: 4, style: `fill:${one.color}` }));
    tip.replaceChildren(
      element("b", {}, one.name),
      element("br"),
      `${figure(line.points[index][1])}${chart.unit ? ` ${chart.unit}` : ""} at ${axes[view.axis]} ${figure(line.points[index][0])}`,
    );
    const box = svg.getBoundingClientRect(),
      ratio = box.width / svg.viewBox.baseVal.width;
    tip.style.left = `${Math.max(0, Math.min(x * ratio + 12, host.clientWidth - tip.offsetWidth - 2))}px`;
    const above = y * ratio - tip.offsetHeight - 10;
    tip.style.top = `${box.top - host.getBoundingClientRect().top + (above < 0 ? y * ratio + 14 : above)}px`;
  }

  function point(event) {
    const box = svg.getBoundingClientRect(),
      ratio = svg.viewBox.baseVal.width / box.width;
    const x = (event.clientX - box.left) * ratio,
      y = (event.clientY - box.top) * ratio;
    let best = null,
      least = 90;
    for (const line of drawn) {
      const index = nearest(line.places, x);
      const distance = Math.hypot(
        heightAt(line.places, index, x) - y,
        Math.max(0, line.places[0][0] - x, x - line.places[line.places.length - 1][0]),
      );
      if (distance < least) [best, least] = [{ line, index }, distance];
    }
    view.light(best ? best.line.run : null);
    mark(best && best.line, best && best.index);
  }

  host.addEventListener("pointermove", point);
  host.addEventListener("pointerdown", point);
  host.addEventListener("pointerleave", () => {
    view.light(null);
    mark(null);
  });
  view.watch(redraw, light);
  onWidth(host, redraw);
}

// Draws at first, and whenever the width of a place has changed. In the next frame: drawing may change sizes itself.
function onWidth(place, redraw) {
  let before = 0;
  const look = () => {
    if (place.clientWidth === before) return;
    before = place.clientWidth;
    requestAnimationFrame(redraw);
  };
  new ResizeObserver(look).observe(place);
}

// Centred, over about a thirtieth of the values, fewer at the ends.
function movingMean(values) {
  if (values.length < 60) return values;
  const reach = Math.floor(values.length / 60) + 2,
    sums = [0];
  for (const value of values) sums.push(sums[sums.length - 1] + value);
  return values.map((_, index) => {
    const low = Math.max(0, index - reach),
      high = Math.min(values.length, index + reach + 1);
    return (sums[high] - sums[low]) / (high - low);
  });
}

function extent(values) {
  let low = Infinity,
    high = -Infinity;
  for (const value of values) {
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  const room = low === high ? Math.abs(low) / 2 || 0.5 : 0;
  return [low - room, high + room];
}

function stroke(look) {
  return `stroke:${look.color}${look.dash ? `;stroke-dasharray:${look.dash}` : ""}`;
}

function outline(places) {
  return places.map(([x, y], index) => `${index ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
}

function grid(body, area, across, up, heights, widths) {
  for (const value of heights) {
    const y = up(value).toFixed(1);
    body.append(
      element("path", { class: "grid", d: `M${area.left} ${y}H${area.right}` }),
      element("text", { x: area.left - 6, y, dy: 4, "text-anchor": "end" }, written(value)),
    );
  }
  body.append(element("path", { class: "axis", d: `M${area.left} ${area.bottom}H${area.right}` }));
  for (const value of widths) {
    const x = across(value).toFixed(1);
    body.append(
      element("path", { class: "axis", d: `M${x} ${area.bottom}v4` }),
      element("text", { x, y: area.bottom + 17, "text-anchor": "middle" }, written(value)),
    );
  }
}

// Index of the place nearest to x, of places in the order of x.
function nearest(places, x) {
  let low = 0,
    high = places.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (places[middle][0] < x) low = middle + 1;
    else high = middle;
  }
  return low > 0 && x - places[low - 1][0] < places[low][0] - x ? low - 1 : low;
}

function heightAt(places, index, x) {
  const [x0, y0] = places[index],
    other = places[x < x0 ? index - 1 : index + 1];
  return other && other[0] !== x0 ? y0 + ((other[1] - y0) * (x - x0)) / (other[0] - x0) : y0;
}
