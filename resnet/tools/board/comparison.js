{
  const data = pageData(),
    view = makeView();
  const look = (run) => ({ name: data.runs[run], ...toneOf(run) });
  legend(document.getElementById("legend"), data.runs, view, look);
  const tools = document.getElementById("tools");
  tools.append(
    choice(data.axes, 0, (index) => {
      view.axis = index;
      view.redraw();
    }),
  );
  if (data.charts.some((chart) => chart.can_log))
    tools.append(
      toggle("log loss", false, (on) => {
        view.log = on;
        view.redraw();
      }),
    );
  if (data.charts.some((chart) => chart.noisy))
    tools.append(
      toggle("smoothed", true, (on) => {
        view.smooth = on;
        view.redraw();
      }),
    );
  const host = document.getElementById("charts");
  for (const chart of data.charts) {
    const place = element("figure", { class: "several" });
    host.append(place);
    lineChart(place, chart, data.axes, view, look);
  }
  for (const row of document.querySelectorAll("[data-run]")) {
    row.addEventListener("pointerenter", () => view.light(Number(row.dataset.run)));
    row.addEventListener("pointerleave", () => view.light(null));
  }
}
