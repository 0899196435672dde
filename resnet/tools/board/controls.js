// What is pressed: runs to be shown, one of several choices, and the colours that go with them.

// Buttons that hide and show runs, and light them where the pointer is.
function legend(host, runs, view, look) {
  const buttons = runs.map((name, run) => {
    const one = look(run);
    const line = element(
      "svg",
      { viewBox: "0 0 22 8", class: "swatch" },
      element("path", { d: "M1 4H21", style: stroke(one) }),
    );
    const button = element("button", { type: "button", "aria-pressed": "true" }, line, name);
    button.addEventListener("click", () => {
      if (view.hidden.has(run)) view.hidden.delete(run);
      else view.hidden.add(run);
      tell();
    });
    button.addEventListener("pointerenter", () => view.light(run));
    button.addEventListener("pointerleave", () => view.light(null));
    return button;
  });
  const all = element("button", { type: "button", class: "plain" }, "all"),
    none = element("button", { type: "button", class: "plain" }, "none");
  all.addEventListener("click", () => {
    view.hidden.clear();
    tell();
  });
  none.addEventListener("click", () => {
    runs.forEach((_, run) => view.hidden.add(run));
    tell();
  });
  function tell() {
    buttons.forEach((button, run) => button.setAttribute("aria-pressed", String(!view.hidden.has(run))));
    view.redraw();
  }
  view.watch(null, () => buttons.forEach((button, run) => button.classList.toggle("lit", run === view.lit)));
  host.replaceChildren(...buttons, ...(runs.length > 2 ? [all, none] : []));
}

// A row of buttons of which one is on.
function choice(names, chosen, set) {
  const buttons = names.map((name, index) => {
    const button = element("button", { type: "button", "aria-pressed": String(index === chosen) }, name);
    button.addEventListener("click", () => {
      buttons.forEach((other, number) => other.setAttribute("aria-pressed", String(number === index)));
      set(index);
    });
    return button;
  });
  return element("div", { class: "choice", role: "group" }, ...buttons);
}

function toggle(name, on, set) {
  const button = element("button", { type: "button", "aria-pressed": String(on) }, name);
  button.addEventListener("click", () => {
    on = !on;
    button.setAttribute("aria-pressed", String(on));
    set(on);
  });
  return element("div", { class: "choice" }, button);
}

const DASHES = ["", "6 3", "2 3", "8 3 2 3"];
const toneOf = (run) => ({ color: `var(--tone-${run % 10})`, dash: DASHES[Math.floor(run / 10) % DASHES.length] });
const pageData = () => JSON.parse(document.getElementById("data").textContent);
