"use strict";
// Moves about what the page was given: every number was written before, and every text is set as text.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const rows = [...document.querySelectorAll(".heat tbody tr")].map((row) => [...row.querySelectorAll("td")]);
  const names = { layer: "Layer output", attention: "Attention", mlp: "MLP", lens: "Direct reading" };
  const at = (id) => document.getElementById(id);
  let view = "layer";
  let cell = { column: 0, layer: 0 };
  let neuron = null;

  function made(tag, settings = {}, ...children) {
    const { share, ...rest } = settings;
    const element = Object.assign(document.createElement(tag), rest);
    if (share !== undefined && share !== null) element.style.setProperty("--v", Math.abs(share));
    element.append(...children);
    return element;
  }

  function paint() {
    const { shares, run, texts, largest } = data.views[view];
    rows.forEach((cells, column) => cells.forEach((td, layer) => {
      const share = shares[layer][column];
      td.className = share === null ? "none" : share > 0 ? "for" : share < 0 ? "against" : "";
      if (share !== null && !run[layer][column]) td.classList.add("estimate");
      td.style.setProperty("--v", Math.abs(share ?? 0));
      td.title = texts[layer][column] ?? "";
    }));
    at("legend-low").textContent = largest === "0" ? "" : "−" + largest;
    at("legend-high").textContent = largest === "0" ? "" : largest;
    document.querySelectorAll(".views button").forEach((button) => {
      button.setAttribute("aria-pressed", button.dataset.view === view);
    });
  }

  function bar(share) {
    const track = made("span", { className: "track" });
    if (share) {
      const part = made("i", { className: share > 0 ? "plus" : "minus" });
      part.style.width = 50 * Math.abs(share) + "%";
      track.append(part);
    }
    return track;
  }

  function rowButton(label, share, text, pressed, act) {
    const button = made("button", { type: "button", className: "rowbutton" },
      made("span", { textContent: label }), bar(share), made("span", { textContent: text }));
    button.setAttribute("aria-pressed", pressed);
    button.addEventListener("click", act);
    return button;
  }

  function chips(texts, shares, values) {
    const list = made("ul", { className: "chips" });
    texts.forEach((text, place) => {
      const share = shares[place];
      list.append(made("li", { className: "token " + (share > 0 ? "up" : share < 0 ? "down" : ""), share,
        textContent: text, title: values[place] }));
    });
    return list;
  }

  function strongestTokens(texts, shares, values) {
    const order = shares.map((share, place) => place).sort((a, b) => Math.abs(shares[b]) - Math.abs(shares[a]));
    return order.slice(0, 3).map((place) => texts[place] + " " + values[place]).join(", ");
  }

  function written(title, tokens) {
    const table = made("table", {}, made("caption", { textContent: title }));
    for (const [text, logit] of tokens) {
      table.append(made("tr", {}, made("td", { className: "token", textContent: text }),
        made("td", { textContent: logit })));
    }
    return table;
  }

  function showNeuron() {
    const place = at("neuron");
    place.replaceChildren();
    const found = neuron === null ? undefined : data.neurons[cell.layer].find((each) => each.neuron === neuron);
    if (!found) return;
    const bare = data.columns.slice(0, found.activations.length).map((name) => name.slice(name.indexOf(" ") + 1));
    const role = { gate: " It is in the gate.", set: " It is set.", found: "" }[found.role];
    place.append(
      made("h3", { textContent: "Neuron " + found.name }),
      made("p", { className: "note", textContent: found.said + "." + role }),
      made("h4", { textContent: "Excited by" }),
      chips(bare, found.shares, found.activations),
      made("p", { className: "note", textContent: "Most: " + strongestTokens(bare, found.shares, found.activations) }),
    );
    if (found.other) {
      place.append(made("h4", { textContent: "On the other prompt" }),
        chips(data.other, found.otherShares, found.other),
        made("p", { className: "note", textContent: "Most: " +
          strongestTokens(data.other, found.otherShares, found.other) }));
    }
    place.append(made("h4", { textContent: "Writes, at its peak" }), made("div", { className: "written" },
      written("promotes", found.promoted), written("demotes", found.demoted)));
  }

  function showCell() {
    const { column, layer } = cell;
    at("cell-title").textContent = "Layer " + layer + ", token " + data.columns[column];
    const modules = Object.keys(names).map((name) => {
      const shown = data.views[name];
      const text = shown.texts[layer][column];
      const label = text === null ? "not aligned" : text + (shown.run[layer][column] ? "" : " est.");
      return rowButton(names[name], shown.shares[layer][column], text === null && name === "lens" ? "not read" : label,
        name === view, () => { view = name; paint(); showCell(); });
    });
    at("cell-modules").replaceChildren(...modules);
    at("cell-neurons-title").textContent = "Neurons of layer " + layer + " at this token alone";
    const order = [...data.neurons[layer]].sort((a, b) => Math.abs(b.size[column] ?? 0) - Math.abs(a.size[column] ?? 0));
    at("cell-neurons").replaceChildren(...order.map((each) => rowButton(
      each.name, each.size[column], each.here[column] === null ? "not aligned" : each.here[column] + (each.run ? "" : " est."),
      each.neuron === neuron,
      () => { neuron = each.neuron; showCell(); at("neuron").scrollIntoView({ block: "nearest" }); },
    )));
    showNeuron();
  }

  function show(td) {
    const sheet = document.querySelector(".sheet");
    const [frame, box] = [sheet.getBoundingClientRect(), td.getBoundingClientRect()];
    sheet.scrollTop += box.top - frame.top - frame.height / 2;
    sheet.scrollLeft += box.left - frame.left - frame.width / 2;
  }

  function choose(column, layer, focus) {
    const before = rows[cell.column][cell.layer];
    before.tabIndex = -1;
    before.removeAttribute("aria-selected");
    cell = { column, layer };
    const td = rows[column][layer];
    const text = data.views[view].texts[layer][column];
    td.tabIndex = 0;
    td.setAttribute("aria-selected", "true");
    td.setAttribute("aria-label", "layer " + layer + ", token " + data.columns[column] + ": " +
      (text === null ? "no value" : text + " nats"));
    if (focus) td.focus();
    else show(td);
    showCell();
  }

  document.querySelector(".heat tbody").addEventListener("click", (event) => {
    const td = event.target.closest("td");
    if (!td) return;
    const column = rows.findIndex((cells) => cells.includes(td));
    choose(column, rows[column].indexOf(td), true);
  });

  document.querySelector(".heat").addEventListener("keydown", (event) => {
    const last = { column: rows.length - 1, layer: rows[0].length - 1 };
    const { column, layer } = cell;
    const to = {
      ArrowUp: [column - 1, layer], ArrowDown: [column + 1, layer], ArrowLeft: [column, layer - 1],
      ArrowRight: [column, layer + 1], Home: [column, 0], End: [column, last.layer],
      PageUp: [column - 10, layer], PageDown: [column + 10, layer],
    }[event.key];
    if (!to) return;
    event.preventDefault();
    choose(Math.min(Math.max(to[0], 0), last.column), Math.min(Math.max(to[1], 0), last.layer), true);
  });

  document.querySelectorAll(".views button").forEach((button) => {
    button.addEventListener("click", () => { view = button.dataset.view; paint(); showCell(); });
  });

  function goTo(layer, wanted) {
    neuron = wanted;
    const sizes = data.neurons[layer].find((each) => each.neuron === wanted).size.map((size) => Math.abs(size ?? 0));
    choose(sizes.indexOf(Math.max(...sizes)), layer, false);
  }

  const links = [...document.querySelectorAll("button.link")];
  links.forEach((button) => {
    button.addEventListener("click", () => {
      goTo(Number(button.dataset.layer), Number(button.dataset.neuron));
      at("map").scrollIntoView();
      rows[cell.column][cell.layer].focus({ preventScroll: true });
    });
  });

  paint();
  goTo(Number(links[0].dataset.layer), Number(links[0].dataset.neuron));
})();
