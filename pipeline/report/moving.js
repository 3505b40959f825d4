"use strict";
// Moves through rows and through the passes of one: list, buttons, keys, replay, address.
// `#row=ID&pass=N` in the address opens a row there. Both viewers have one.
//
// view.rows: all rows; view.chosen(): those that the list has, in its order; view.label(row): what
// the list says of one; view.listed: the words behind "N of M"; view.filters: inputs that change
// the list; view.open(row): show what does not depend on the pass; view.passes(row): how many there
// are; view.show(row, pass): show a pass.
const Moving = (root, view) => {
  const REPLAY_SECONDS = 6;
  const { element } = Canvas;
  const part = (name) => root.querySelector(`[data-part=${name}]`);
  const slider = part("slider");
  let row = null;
  let pass = 0;
  let timer = 0;
  let waiting = 0;

  function list() {
    const found = view.chosen();
    part("found").textContent = `${found.length} of ${view.rows.length} ${view.listed}`;
    part("list").replaceChildren(
      ...found.map((r) => {
        const button = element("button", "row");
        button.type = "button";
        button.dataset.id = r.id;
        button.append(element("span", "id", r.id), ...view.label(r));
        button.append(element("span", "excerpt", (Canvas.plain(r.prompt) || "no prompt").slice(0, 90)));
        button.setAttribute("aria-current", String(r === row));
        button.addEventListener("click", () => show(r));
        return button;
      }),
    );
  }

  const passes = () => view.passes(row);

  function open(next, at) {
    row = next;
    stopPlaying();
    for (const button of part("list").children) {
      button.setAttribute("aria-current", String(button.dataset.id === row.id));
    }
    part("title").textContent = `Row ${row.id}`;
    Canvas.prompt(part("prompt"), row.prompt);
    slider.max = passes();
    view.open(row);
    seek(at);
  }

  function seek(to) {
    pass = Math.max(0, Math.min(to, passes()));
    slider.value = pass;
    view.show(row, pass);
  }

  function show(next) {
    open(next, Infinity);
    address();
  }

  function stopPlaying() {
    clearInterval(timer);
    timer = 0;
    part("play").textContent = "▶ Play";
  }

  function play() {
    if (timer) return stopPlaying();
    if (pass >= passes()) seek(0);
    const wait = Math.min(400, Math.max(30, (REPLAY_SECONDS * 1000) / Math.max(1, passes())));
    part("play").textContent = "❚❚ Pause";
    timer = setInterval(() => {
      seek(pass + 1);
      if (pass >= passes()) {
        stopPlaying();
        address();
      }
    }, wait);
  }

  function step(to) {
    stopPlaying();
    seek(to);
    address();
  }

  function neighbour(by) {
    const found = view.chosen();
    const next = found[found.indexOf(row) + by];
    if (next) show(next);
    const button = part("list").querySelector("[aria-current=true]");
    if (button) button.scrollIntoView({ block: "nearest" });
  }

  root.addEventListener("keydown", (event) => {
    if (!row || event.target.matches("input[type=search], select")) return;
    const keys = {
      ArrowLeft: () => step(pass - 1),
      ArrowRight: () => step(pass + 1),
      Home: () => step(0),
      End: () => step(passes()),
      ArrowUp: () => neighbour(-1),
      ArrowDown: () => neighbour(1),
    };
    if (event.key === " " && !event.target.matches("button, summary")) keys[" "] = play;
    if (keys[event.key] && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      keys[event.key]();
    }
  });
  slider.addEventListener("input", () => step(Number(slider.value)));
  part("play").addEventListener("click", play);
  part("back").addEventListener("click", () => step(pass - 1));
  part("on").addEventListener("click", () => step(pass + 1));
  for (const name of view.filters) part(name).addEventListener("input", list);

  function address() {
    // Browsers limit how often an address may change: the last one of a burst is kept.
    clearTimeout(waiting);
    const to = `#row=${encodeURIComponent(row.id)}&pass=${pass}`;
    waiting = setTimeout(() => history.replaceState(null, "", to), 250);
  }

  function fromAddress() {
    const asked = new URLSearchParams(location.hash.slice(1));
    const found = view.rows.find((r) => r.id === asked.get("row"));
    if (!found) return false;
    const at = asked.get("pass");
    open(found, at === null ? Infinity : Number(at) || 0);
    return true;
  }

  // The row of the address, else this one.
  function begin(first) {
    window.addEventListener("hashchange", fromAddress);
    list();
    if (!fromAddress()) open(first, Infinity);
  }

  return { begin, step };
};
