{
  const data = pageData(),
    view = makeView(),
    trials = data.trials;
  const failed = (trial) => ["failed", "damaged"].includes(trial.state);
  // The better, the stronger the colour; the winner has one of its own.
  const color = (trial) => {
    if (trial.best) return "var(--tone-1)";
    if (trial.share === null || failed(trial)) return "var(--soft)";
    return `color-mix(in oklab, var(--tone-0) ${Math.round(25 + 75 * trial.share ** 2)}%, var(--line))`;
  };
  const look = (run) => {
    const trial = trials[run];
    return {
      name: `${trial.told || trial.name} (${trial.state})`,
      color: color(trial),
      dash: failed(trial) ? "3 3" : "",
      kind: trial.best ? "best" : "",
    };
  };

  // Parallel coordinates: an axis for each swept key, a line for each trial. Dragging along an axis keeps a range of it.
  function parallel(host, axes) {
    const tip = element("div", { class: "tip" }),
      ranges = new Map();
    let svg = null,
      lines = [],
      across = [],
      area = null,
      dragged = null;

    function redraw() {
      const width = view.printing ? PAPER : Math.max(host.parentElement.clientWidth, 96 * axes.length),
        height = 330;
      area = { top: 38, bottom: height - 24 };
      across = axes.map((_, index) => (axes.length < 2 ? width / 2 : 40 + ((width - 110) * index) / (axes.length - 1)));
      host.style.width = view.printing ? "" : `${width}px`;
      svg = element("svg", {
        viewBox: `0 0 ${width} ${height}`,
        role: "img",
        "aria-label": "each trial's values and its result",
      });
      const body = element("g", { class: "lines" }),
        spread = axes.map(apart);
      lines = trials.flatMap((trial, run) => {
        const places = axes.flatMap((axis, index) =>
          axis.at[run] === null ? [] : [[across[index], up(axis.at[run]) + spread[index][run]]],
        );
        if (places.length < 2 || trial.state === "not sent") return [];
        const one = look(run);
        const path = element("path", { class: "line", d: outline(places), style: stroke(one) });
        return [{ run, places, path, share: trial.share === null ? -1 : trial.share }];
      });
      // The best on top.
      lines
        .sort((a, b) => a.share - b.share)
        .forEach((line) => {
          if (trials[line.run].best) line.path.classList.add("best");
          body.append(line.path);
        });
      svg.append(body);
      axes.forEach((axis, index) => {
        const x = across[index];
        svg.append(element("path", { class: "axis", d: `M${x} ${area.top}V${area.bottom}` }));
        svg.append(element("text", { class: "name", x, y: 13, "text-anchor": "middle" }, axis.name));
        for (const [share, text] of axis.ticks)
          svg.append(element("text", { x: x + 6, y: up(share), dy: 4, class: "tick" }, text));
        const range = ranges.get(index);
        if (range)
          svg.append(
            element("rect", {
              class: "range",
              x: x - 7,
              width: 14,
              y: up(range[1]),
              height: Math.max(2, up(range[0]) - up(range[1])),
            }),
          );
      });
      host.replaceChildren(svg, tip);
      tip.hidden = true;
      fade();
      light();
    }
    // Pixels between the trials of one value, so that they do not hide one another.
    function apart(axis) {
      const of = new Map();
      trials.forEach((trial, run) => {
        if (axis.at[run] !== null) of.set(axis.at[run], [...(of.get(axis.at[run]) || []), run]);
      });
      const shift = trials.map(() => 0);
      for (const runs of of.values()) {
        const step = Math.min(2.5, 26 / runs.length);
        runs.sort((a, b) => (trials[a].value || 0) - (trials[b].value || 0));
        runs.forEach((run, index) => {
          shift[run] = step * ((runs.length - 1) / 2 - index);
        });
      }
      return shift;
    }
    const up = (share) => area.bottom - (area.bottom - area.top) * share;

    function fade() {
      for (const line of lines) line.path.classList.toggle("faded", view.hidden.has(line.run));
    }

    function light() {
      if (!svg) return;
      svg.classList.toggle("pointed", view.lit !== null);
      for (const line of lines) {
        const lit = line.run === view.lit;
        if (line.path.classList.contains("lit") === lit) continue;
        line.path.classList.toggle("lit", lit);
        if (lit) line.path.parentNode.append(line.path);
      }
    }

    function position(event) {
      const box = svg.getBoundingClientRect(),
        ratio = svg.viewBox.baseVal.width / box.width;
      return [(event.clientX - box.left) * ratio, (event.clientY - box.top) * ratio];
    }

    function point(event) {
      const [x, y] = position(event);
      if (dragged) return drag(y);
      let best = null,
        least = 22;
      for (const line of lines) {
        if (view.hidden.has(line.run)) continue;
        const distance = Math.abs(heightAt(line.places, nearest(line.places, x), x) - y);
        if (distance < least) [best, least] = [line, distance];
      }
      view.light(best && best.run);
      tip.hidden = !best;
      if (!best) return;
      const trial = trials[best.run];
      tip.replaceChildren(
        element("b", {}, trial.value === null ? trial.state : `${figure(trial.value)} (${trial.state})`),
        element("br"),
        trial.told || trial.name,
      );
      tip.style.left = `${Math.max(0, Math.min(x + 14, host.clientWidth - tip.offsetWidth - 2))}px`;
      tip.style.top = `${Math.max(0, y - tip.offsetHeight - 10)}px`;
    }

    function drag(y) {
      if (Math.abs(y - dragged.from) > 3) dragged.moved = true;
      if (!dragged.moved) return;
      const shares = [dragged.from, y].map((one) =>
        Math.min(1, Math.max(0, (area.bottom - one) / (area.bottom - area.top))),
      );
      ranges.set(dragged.axis, [Math.min(...shares), Math.max(...shares)]);
      choose();
    }

    // Hides the trials that are out of a range.
    function choose() {
      view.hidden = new Set(
        trials.flatMap((_, run) =>
          [...ranges].some(([index, [low, high]]) => {
            const at = axes[index].at[run];
            return at === null || at < low || at > high;
          })
            ? [run]
            : [],
        ),
      );
      view.redraw();
    }

    host.addEventListener("pointerdown", (event) => {
      const [x, y] = position(event),
        axis = across.findIndex((place) => Math.abs(place - x) < 9);
      if (axis >= 0 && event.pointerType === "mouse") {
        dragged = { axis, from: y, moved: false };
        tip.hidden = true;
        view.light(null);
        event.preventDefault();
      } else point(event);
    });
    host.addEventListener("pointermove", point);
    window.addEventListener("pointerup", () => {
      if (!dragged) return;
      if (!dragged.moved && ranges.delete(dragged.axis)) choose();
      dragged = null;
    });
    host.addEventListener("pointerleave", () => {
      if (!dragged) {
        view.light(null);
        tip.hidden = true;
      }
    });
    view.watch(redraw, light);
    onWidth(host.parentElement, redraw);
  }

  const place = document.getElementById("parallel");
  if (data.axes.length > 1) parallel(place, data.axes);
  else place.closest("section").remove();

  const tools = document.getElementById("tools");
  if (tools) {
    const shown = { ...data.charts[0] };
    if (data.charts.length > 1)
      tools.append(
        choice(
          data.charts.map((chart) => chart.title),
          0,
          (index) => {
            Object.assign(shown, data.charts[index]);
            view.redraw();
          },
        ),
      );
    tools.append(
      toggle("log loss", false, (on) => {
        view.log = on;
        view.redraw();
      }),
    );
    lineChart(document.getElementById("curves"), shown, ["epoch"], view, look);
  }
  const rows = [...document.querySelectorAll("[data-run]")].map((mark) => [
    Number(mark.dataset.run),
    mark.closest("tr"),
  ]);
  for (const [run, row] of rows) {
    row.addEventListener("pointerenter", () => view.light(run));
    row.addEventListener("pointerleave", () => view.light(null));
  }
  view.watch(
    () =>
      rows.forEach(([run, row]) => {
        row.hidden = view.hidden.has(run);
      }),
    () => rows.forEach(([run, row]) => row.classList.toggle("lit", run === view.lit)),
  );
}
