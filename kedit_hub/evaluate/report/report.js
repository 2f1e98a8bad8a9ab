// The list of edits. Every text is set as text, never as markup; without this script the page has a shorter list of its own.
"use strict";
(() => {
  const source = document.getElementById("edits-data");
  if (!source) return;
  const { texts, questions, cells } = JSON.parse(source.textContent);
  const STEP = 50;
  const by = (id) => document.getElementById(id);
  const text = (at) => (at < 0 ? "–" : texts[at]);
  const make = (tag, name, ...inner) => {
    const made = document.createElement(tag);
    if (name) made.className = name;
    made.append(...inner);
    return made;
  };
  const words = (at) => make("bdi", "", text(at));
  const score = (value) => (value === null ? "–" : String(Math.round(value * 1000) / 1000));
  const role = (asked) => text(questions[asked[0]][0]);
  const reasons = (asked) => asked[4] || [];
  const counts = (asked, at) => asked[3][at] !== null && !(reasons(asked)[at] >= 0);

  const place = (cell, name) => cell.protocols.indexOf(name);
  const own = (cell, edit, name) => (place(cell, name) < 0 ? null : edit[1][0][3][place(cell, name)]);
  const some = (edit, cell, wanted, good) =>
    edit[1].some((asked) => role(asked) === wanted && cell.protocols.some((_, at) => counts(asked, at) && good(asked[3][at])));
  const FILTERS = [
    ["all edits", () => true],
    ["target not generated", (cell, edit) => own(cell, edit, "generate") === 0],
    ["right under teacher forcing, not generated", (cell, edit) => own(cell, edit, "tf-token") === 1 && own(cell, edit, "generate") === 0],
    ["some rephrasing missed", (cell, edit) => some(edit, cell, "generalization", (value) => value < 1)],
    ["something else changed (locality)", (cell, edit) => some(edit, cell, "locality", (value) => value < 1)],
    ["some probe left out", (cell, edit) => edit[1].some((asked) => reasons(asked).some((at) => at >= 0))],
  ];

  const search = (edit) =>
    edit[1].flatMap((asked) => [text(asked[1]), ...questions[asked[0]].slice(1, 5).map(text)]).join("\n").toLowerCase();

  const chip = (name, value, out) =>
    make("span", "chip " + (out ? "out" : value >= 1 ? "hit" : "miss"), `${name} ${score(value)}`);

  const table = (cell, edit) => {
    const body = make("tbody", "");
    for (const asked of edit[1]) {
      const [, kind, prompt, target, before, scoresBefore] = questions[asked[0]];
      const head = make("th", "", kind < 0 ? role(asked) : `${role(asked)}, ${text(kind)}`);
      head.scope = "row";
      const told = make("td", "");
      cell.protocols.forEach((name, at) => {
        const why = reasons(asked)[at] >= 0 ? text(reasons(asked)[at]) : "";
        if (asked[3][at] === null && !why) return;
        const line = make("div", "", `${name} ${score(asked[3][at])}`);
        if (scoresBefore[at] !== null) line.append(` (base ${score(scoresBefore[at])})`);
        if (why) line.append(make("small", "out", ` left out: ${why}`));
        told.append(line);
      });
      if (asked[2] === 1) told.append(make("small", "out", "the answer contains the target"));
      body.append(make("tr", "", head, ...[prompt, target, before, asked[1]].map((at) => make("td", "", words(at))), told));
    }
    const heads = ["question", "prompt", "expected", "base said", "edited said", "scores"].map((name) => {
      const head = make("th", "", name);
      head.scope = "col";
      return head;
    });
    const whole = make("table", "", make("thead", "", make("tr", "", ...heads)), body);
    const scroll = make("div", "scroll", whole);
    scroll.tabIndex = 0;
    scroll.setAttribute("role", "region");
    scroll.setAttribute("aria-label", "questions of this edit");
    return scroll;
  };

  const item = (cell, edit) => {
    const first = edit[1][0];
    const [, , prompt, target] = questions[first[0]];
    const summary = make("summary", "", words(prompt), " → ", words(target));
    cell.protocols.forEach((name, at) => {
      if (first[3][at] !== null) summary.append(" ", chip(name, first[3][at], !counts(first, at)));
    });
    const made = make("details", "edit", summary);
    made.addEventListener("toggle", () => made.open && !made.querySelector("table") && made.append(table(cell, edit)));
    return made;
  };

  const list = by("edit-list");
  let rest = [];
  const more = () => {
    const cell = cells[by("cell").value];
    list.append(...rest.splice(0, STEP).map((edit) => item(cell, edit)));
    by("more").hidden = rest.length === 0;
  };
  const show = () => {
    const cell = cells[by("cell").value];
    const wanted = by("search").value.trim().toLowerCase();
    const [, good] = FILTERS[by("filter").value];
    rest = cell.edits.filter((edit) => good(cell, edit) && (!wanted || search(edit).includes(wanted)));
    const cut = cell.of > cell.edits.length ? `; this page has the first ${cell.edits.length} of ${cell.of}, report.json has all` : "";
    by("found").textContent = `${rest.length} of ${cell.edits.length} edits${cut}`;
    list.replaceChildren();
    more();
  };
  const options = (select, names) => select.append(...names.map((name, at) => new Option(name, at)));
  options(by("cell"), cells.map((cell) => cell.name));
  options(by("filter"), FILTERS.map(([name]) => name));
  let waiting = 0;
  by("search").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(show, 150); });
  for (const id of ["cell", "filter"]) by(id).addEventListener("change", show);
  by("more").addEventListener("click", more);
  by("edit-controls").hidden = false;
  show();

  addEventListener("beforeprint", () => { for (const one of document.querySelectorAll("details.place, details.print")) one.open = true; });
})();
