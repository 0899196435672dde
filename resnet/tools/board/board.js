{
  const data = pageData(),
    runs = data.runs,
    view = makeView(),
    ticked = [];
  const body = element("tbody"),
    count = document.getElementById("count"),
    box = document.getElementById("filter");
  const tone = (state) => ({ finished: "good", failed: "bad", damaged: "bad" })[state] || "";
  let sorted = { column: null, down: true };

  function ago(seconds) {
    if (seconds === null) return "";
    const past = Math.max(0, Date.now() / 1000 - seconds);
    for (const [size, name] of [
      [86400, "d"],
      [3600, "h"],
      [60, "min"],
    ])
      if (past >= size) return `${Math.floor(past / size)} ${name}`;
    return "now";
  }

  function spark(run) {
    const { x, y, title } = run.curve;
    if (y.length < 2 || x.includes(null)) return "";
    const across = scale(...extent(x), 2, 118),
      up = scale(...extent(y), 26, 2);
    const path = element("path", {
      class: "line",
      d: outline(x.map((one, index) => [across(one), up(y[index])])),
      style: `stroke:var(--tone-${run.state === "failed" ? 1 : 0})`,
    });
    const told = `${title} ${figure(y[0])} to ${figure(y[y.length - 1])}`;
    return element("svg", { class: "spark", viewBox: "0 0 120 28", role: "img", "aria-label": told }, path);
  }

  // Heading, its value for sorting, what a cell shows, and how it is set.
  const columns = [
    ["run", (run) => run.name, name, "name"],
    [
      "state",
      (run) => data.states.indexOf(run.state),
      (run) => element("span", { class: `state ${run.state}` }, run.state),
      "of-state",
    ],
    ["best top-1", (run) => run.top1, (run) => (run.top1 === null ? "" : `${run.top1.toFixed(2)}%`), "number top1"],
    ["", null, spark, "curve"],
    [
      "epoch",
      (run) => run.epoch,
      (run) => (run.epoch === null ? "" : `${figure(run.epoch)}${run.epochs ? `/${figure(run.epochs)}` : ""}`),
      "number epoch",
    ],
    [
      "images/s",
      (run) => run.speed,
      (run) => (run.speed === null ? "" : written(Math.round(run.speed))),
      "number speed",
    ],
    ["age", (run) => (run.updated === null ? null : -run.updated), (run) => ago(run.updated), "number age"],
    ["recipe and what differs", (run) => run.recipe, told, "recipe"],
  ];

  function name(run) {
    const shown = run.report ? element("a", { href: run.report }, run.name) : element("span", {}, run.name);
    const tick = element("input", { type: "checkbox", "aria-label": `compare ${run.name}` });
    tick.addEventListener("change", () => choose(runs.indexOf(run), tick.checked));
    return element("label", {}, tick, " ", shown);
  }

  function told(run) {
    const shown = element("span", {}, run.recipe);
    if (run.why) shown.append(element("span", { class: `why ${tone(run.state)}` }, run.why));
    return shown;
  }

  const rows = runs.map((run) =>
    element("tr", {}, ...columns.map(([, , cell, kind]) => element("td", { class: kind }, cell(run)))),
  );
  const texts = runs.map((run) => `${run.name} ${run.recipe} ${run.state} ${run.why}`.toLowerCase());

  // Words that all have to be found; KEY=VALUE, KEY>NUMBER and KEY<NUMBER are of a column or a key that differs.
  function matches(index, words) {
    return words.every((word) => {
      const found = /^([\w./-]+)(=|<|>)(.+)$/.exec(word);
      if (!found) return texts[index].includes(word.toLowerCase());
      const [, key, sign, value] = found,
        run = runs[index];
      const own = key in run.differs ? run.differs[key] : run[key];
      if (own === undefined || own === null) return false;
      if (sign !== "=") return sign === "<" ? Number(own) < Number(value) : Number(own) > Number(value);
      return String(own).toLowerCase() === value.toLowerCase() || (own !== "" && Number(own) === Number(value));
    });
  }

  function filter() {
    const words = box.value.split(/\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach((row, index) => {
      row.hidden = !((showTrials || !runs[index].sweep) && matches(index, words));
      shown += !row.hidden;
    });
    count.textContent = `${shown} of ${runs.length}`;
  }

  function sort(column) {
    const value = columns[column][1];
    sorted = {
      column,
      down: sorted.column === column ? !sorted.down : ["best top-1", "epoch", "images/s"].includes(columns[column][0]),
    };
    const order = runs
      .map((_, index) => index)
      .sort((a, b) => {
        const [one, other] = [value(runs[a]), value(runs[b])];
        if (one === null || other === null) return (one === null) - (other === null);
        const less = typeof one === "string" ? one.localeCompare(other, "en", { numeric: true }) : one - other;
        return (sorted.down ? -less : less) || a - b;
      });
    body.append(...order.map((index) => rows[index]));
    headings.forEach((heading, index) =>
      heading.setAttribute("aria-sort", index !== column ? "none" : sorted.down ? "descending" : "ascending"),
    );
  }

  const headings = columns.map(([title, value, , kind], index) => {
    if (!value) return element("th", { scope: "col", class: kind }, "");
    const button = element("button", { type: "button" }, title);
    button.addEventListener("click", () => sort(index));
    return element("th", { scope: "col", class: kind, "aria-sort": "none" }, button);
  });
  body.append(...rows);
  document.getElementById("runs").append(element("thead", {}, element("tr", {}, ...headings)), body);

  const states = document.getElementById("states"),
    hasTrials = runs.some((run) => run.sweep);
  let showTrials = !runs.some((run) => !run.sweep);
  for (const state of new Set(runs.map((run) => run.state))) {
    const button = element(
      "button",
      { type: "button" },
      `${state} ${runs.filter((run) => run.state === state).length}`,
    );
    button.addEventListener("click", () => {
      const without = box.value.split(/\s+/).filter((word) => word && !word.startsWith("state="));
      box.value = (box.value.includes(`state=${state}`) ? without : [...without, `state=${state}`]).join(" ");
      filter();
    });
    states.append(button);
  }
  if (hasTrials)
    states.append(
      toggle("trials of sweeps", showTrials, (on) => {
        showTrials = on;
        filter();
      }),
    );
  box.addEventListener("input", filter);
  columns.forEach(([title], index) => {
    if (title === "age") sort(index);
  });
  filter();

  // The runs that are ticked, in one drawing, with the command that compares them in full.
  const chosen = document.getElementById("chosen"),
    overlay = { title: "", unit: "", can_log: true, lines: [] };
  const place = (run) => ticked.indexOf(run);
  let drawn = false;

  function choose(run, on) {
    if (on) ticked.push(run);
    else ticked.splice(place(run), 1);
    const title = ticked.length ? runs[ticked[0]].curve.title : "";
    overlay.title = title || "no curve";
    overlay.lines = ticked
      .filter((one) => runs[one].curve.title === title)
      .map((one) => ({ run: one, x: [runs[one].curve.x], y: runs[one].curve.y }));
    chosen.hidden = !ticked.length;
    document.getElementById("command").textContent = `resnet report ${ticked.map((one) => runs[one].word).join(" ")}`;
    if (!drawn)
      lineChart(document.getElementById("overlay"), overlay, ["epoch"], view, (one) => ({
        name: runs[one].name,
        ...toneOf(place(one)),
      }));
    drawn = true;
    view.redraw();
    rows.forEach((row, index) => {
      row.style.boxShadow = place(index) < 0 ? "" : `inset 3px 0 ${toneOf(place(index)).color}`;
    });
  }
  rows.forEach((row, run) => {
    row.addEventListener("pointerenter", () => view.light(run));
    row.addEventListener("pointerleave", () => view.light(null));
  });
}
