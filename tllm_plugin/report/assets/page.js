"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const names = data.classes;
  const compared = data.methods.filter((method) => method.delta);
  const hasNull = (value) => value === null || value === undefined;

  // ---- small helpers -------------------------------------------------------------------------------------------
  const make = (tag, text, attributes = {}) => {
    const node = document.createElement(tag);
    if (!hasNull(text)) node.textContent = text;
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    return node;
  };
  const points = (value, digits = 1) => {
    if (hasNull(value)) return "";
    const text = (100 * value).toFixed(digits);
    return (value > 0 ? "+" : "") + text.replace("-", "\u2212");
  };
  const share = (value, digits = 0) => (hasNull(value) ? "" : (100 * value).toFixed(digits) + " %");
  const plain = (value) => (hasNull(value) ? "" : Number.isInteger(value) ? String(value) : value.toFixed(1));
  const pValue = (value) => (hasNull(value) ? "" : value < 0.001 ? "< 0.001" : "= " + value.toFixed(3));
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const seedsOf = (method, index) => method.flagged_runs ? " (" + method.flagged_runs[index] + " of " + method.runs + " runs)" : "";
  const isSure = (method, index) => !hasNull(method.q[index]) && method.q[index] <= 0.05;
  const PALETTE = {
    light: ["#0b62a8", "#b84300", "#007a5e", "#9b3f86", "#7a6400", "#2f8fb3", "#55606e", "#c2185b"],
    dark: ["#6cb6ff", "#ff9a5c", "#3fcf9f", "#e08bd0", "#e0c244", "#8fd4ee", "#aab4c0", "#ff7aa8"],
  };
  const color = (place) => {
    const colors = PALETTE[document.documentElement.dataset.theme];
    return colors[place % colors.length];
  };
  const translucent = (hex, alpha) =>
    "rgba(" + [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)).join(",") + "," + alpha + ")";

  // ---- theme ---------------------------------------------------------------------------------------------------
  const asked = new URLSearchParams(location.hash.slice(1)).get("theme");
  const preferred = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  document.documentElement.dataset.theme = asked === "dark" || asked === "light" ? asked : preferred;

  // ---- figures -------------------------------------------------------------------------------------------------
  const figures = new Map(); // id -> function that returns [traces, layout]
  const axis = (title, more = {}) => ({
    title: { text: title }, gridcolor: css("--grid"), zerolinecolor: css("--muted"), linecolor: css("--line"),
    automargin: true, ...more,
  });
  const narrow = () => innerWidth < 640;
  const draw = (id) => {
    const [traces, layout] = figures.get(id)();
    // Above a narrow figure, a legend of several lines would lie on the curves.
    const legend = narrow() ? { orientation: "h", y: -0.25, yanchor: "top", x: 0 } : { orientation: "h", y: 1.12, x: 0 };
    const base = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "closest",
      font: { color: css("--text"), family: "system-ui, sans-serif", size: 13 },
      margin: { l: 60, r: 20, t: 30, b: 50 }, legend,
      modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--line"), activecolor: css("--muted") },
      hoverlabel: { bgcolor: css("--bg"), bordercolor: css("--line"), font: { color: css("--text") } },
    };
    return Plotly.react(id, traces, { ...base, ...layout }, { responsive: true, displaylogo: false,
      modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]] });
  };
  const drawAll = () => { for (const id of figures.keys()) draw(id); };
  const hide = (id) => { byId(id).hidden = true; };

  // ---- header, summary -----------------------------------------------------------------------------------------
  byId("title").textContent = data.title;
  byId("subtitle").textContent = data.subtitle;
  byId("made").textContent = data.made;
  for (const [id, items] of [["findings", data.findings], ["next", data.next], ["how-list", data.how]])
    for (const text of items) byId(id).append(make("li", text));

  const methodsTable = byId("methods");
  const head = make("tr");
  const heading = ["network", "runs", "test accuracy", "classes with delta acc < 0 (null)", "classes significantly worse, FDR 5 % (null)",
    "classes < \u22125 points (null)", "classes flagged"];
  for (const text of heading) head.append(make("th", text, { scope: "col" }));
  methodsTable.append(make("thead"));
  methodsTable.tHead.append(head);
  const methodsBody = methodsTable.createTBody();
  const spread = (value, show) => show(value.mean) + (value.std ? " \u00b1 " + show(value.std).replace(" %", "") : "");
  const ofAll = (value) => spread(value, plain) + " of " + names.length;
  const withNull = (count) => count ? ofAll(count.found) + " (" + spread(count.null, plain) + ")" : "";
  for (const row of data.rows) {
    const line = methodsBody.insertRow();
    const accuracy = row.accuracy ? [row.accuracy.n, spread(row.accuracy, (value) => share(value, 1))] : ["", "not known"];
    const cells = [row.label, ...accuracy, withNull(row.hurt), withNull(row.sure), withNull(row.large),
      hasNull(row.flagged) ? "" : ofAll(row.flagged)];
    for (const text of cells) line.append(make("td", text));
  }
  byId("null-note").textContent = data.null_note;

  // ---- class table ---------------------------------------------------------------------------------------------
  const columns = [{ title: "class", value: (i) => names[i], text: true }];
  columns.push({ title: "#", value: (i) => i });
  for (const student of data.vanilla)
    columns.push({ title: student.label, value: (i) => student.accuracy[i], show: (v) => share(v, 1) });
  if (data.teacher) columns.push({ title: data.teacher.column, value: (i) => data.teacher.accuracy[i], show: (v) => share(v, 1) });
  for (const method of compared)
    columns.push({ title: method.label + " \u0394acc", value: (i) => method.delta[i], method });
  for (const method of data.methods)
    if (method.flagged.some((epoch) => !hasNull(epoch)))
      columns.push({ title: method.label + " flagged", value: (i) => method.flagged[i], show: (v, i) => hasNull(v) ? "" : "epoch " + v + seedsOf(method, i) });
  const table = byId("classes");
  const headRow = table.createTHead().insertRow();
  const rows = names.map((name, index) => {
    const row = make("tr");
    for (const column of columns) {
      const cell = row.insertCell();
      const value = column.value(index);
      if (column.text) {
        const button = make("button", name, { type: "button", title: "Show the teaching curves of " + name });
        button.addEventListener("click", () => choose(index, true));
        cell.append(button);
      } else if (column.method) {
        const method = column.method;
        cell.textContent = points(value) + (isSure(method, index) ? "*" : "");
        if (isSure(method, index)) cell.className = "sure";
        else if (value < 0) cell.className = "hurt";
        cell.append(make("span", "[" + points(method.low[index], 0) + ", " + points(method.high[index], 0) + "]", { class: "range" }));
      } else cell.textContent = column.show ? column.show(value, index) : value;
    }
    return row;
  });
  const body = table.createTBody();
  let order = names.map((_, index) => index);
  const collator = new Intl.Collator("en", { numeric: true });
  const sortBy = (place, ascending) => {
    const column = columns[place];
    order.sort((one, other) => {
      const [a, b] = [column.value(one), column.value(other)];
      if (hasNull(a) || hasNull(b)) return hasNull(a) - hasNull(b) || one - other; // Nothing comes last either way.
      const difference = column.text ? collator.compare(a, b) : a - b;
      return (ascending ? difference : -difference) || one - other;
    });
    [...headRow.children].forEach((cell, at) => cell.setAttribute("aria-sort", at !== place ? "none" : ascending ? "ascending" : "descending"));
    show();
  };
  columns.forEach((column, place) => {
    const cell = make("th", null, { scope: "col", "aria-sort": "none" });
    const button = make("button", column.title, { type: "button" });
    button.addEventListener("click", () => sortBy(place, cell.getAttribute("aria-sort") !== "ascending"));
    cell.append(button);
    headRow.append(cell);
  });
  const kept = {
    all: () => true,
    sure: (index) => compared.some((method) => isSure(method, index)),
    hurt: (index) => compared.some((method) => method.delta[index] < 0),
    flagged: (index) => data.methods.some((method) => !hasNull(method.flagged[index])),
  };
  const show = () => {
    const wanted = byId("search").value.trim().toLowerCase();
    const keep = kept[byId("only").value];
    const found = order.filter((index) => keep(index) && names[index].toLowerCase().includes(wanted));
    body.replaceChildren(...found.map((index) => rows[index]));
    byId("shown").textContent = found.length + " of " + names.length + " classes";
  };
  byId("search").addEventListener("input", show);
  byId("only").addEventListener("change", show);
  const first = columns.findIndex((column) => column.method);
  sortBy(Math.max(first, 0), true);

  // ---- delta acc per class -------------------------------------------------------------------------------------
  compared.forEach((method, place) => byId("delta-method").append(make("option", method.label, { value: place })));
  const deltaFigure = () => {
    const method = compared[byId("delta-method").value];
    const sorted = names.map((_, index) => index).filter((index) => !hasNull(method.delta[index]));
    if (byId("delta-order").value === "delta") sorted.sort((one, other) => method.delta[one] - method.delta[other]);
    const at = (values) => sorted.map((index) => 100 * values[index]);
    const text = sorted.map((index) => "<b>" + escape(names[index]) + "</b><br>delta acc " + points(method.delta[index]) +
      " [" + points(method.low[index]) + ", " + points(method.high[index]) + "]<br>q " + pValue(method.q[index]) + ", P(harm) " + method.harm[index].toFixed(2) +
      (hasNull(method.flagged[index]) ? "" : "<br>flagged after epoch " + method.flagged[index] + seedsOf(method, index)));
    const delta = at(method.delta), low = at(method.low), high = at(method.high);
    const few = names.length <= 60, many = names.length > 200;
    const trace = {
      type: "bar", x: sorted.map((_, place) => place), y: delta, hovertext: text, hoverinfo: "text",
      marker: { color: sorted.map((index) => isSure(method, index) ? css("--hurt") : method.delta[index] < 0
        ? translucent(css("--hurt"), 0.45) : translucent(css("--gain"), 0.55)), line: { width: 0 } },
      error_y: { type: "data", visible: !many, symmetric: false, array: high.map((end, i) => end - delta[i]),
        arrayminus: low.map((end, i) => delta[i] - end), color: translucent(css("--text"), few ? 0.75 : 0.3),
        thickness: few ? 1.4 : 1, width: few ? 3 : 0 },
      showlegend: false,
    };
    // So many bars of their own would hide the classes: the intervals become one band.
    const band = !many ? [] : [low, high].map((ends, upper) => ({
      type: "scatter", mode: "lines", x: trace.x, y: ends, hoverinfo: "skip", line: { width: 0, shape: "hvh" }, showlegend: upper === 1,
      name: "95 % intervals", fill: upper ? "tonexty" : "none", fillcolor: translucent(css("--text"), 0.13),
    }));
    const flagged = sorted.map((index, place) => [index, place]).filter(([index]) => !hasNull(method.flagged[index]));
    const marks = {
      type: "scatter", mode: "markers", name: "flagged by the detector", x: flagged.map(([, place]) => place), hoverinfo: "skip",
      y: flagged.map(([index]) => 100 * Math.max(method.high[index], 0) + 2), marker: { symbol: "triangle-down", size: 9, color: css("--text") },
      showlegend: flagged.length > 0,
    };
    const ticks = few ? { tickvals: sorted.map((_, place) => place), ticktext: sorted.map((index) => shorten(names[index])), tickangle: names.length > 12 ? -60 : 0 }
      : { showticklabels: false };
    return [[...band, trace, marks], { bargap: few ? 0.25 : 0, xaxis: axis(few ? "" : "classes, " + byId("delta-order").selectedOptions[0].textContent, { ...ticks, showgrid: false, zeroline: false }),
      yaxis: axis("delta acc (points)") }];
  };
  const escape = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const shorten = (text, most = 22) => (text.length > most ? text.slice(0, most - 1) + "\u2026" : text);
  if (compared.length) {
    figures.set("plot-delta", deltaFigure);
    for (const id of ["delta-method", "delta-order"]) byId(id).addEventListener("change", () => draw("plot-delta"));
  } else hide("delta");

  // ---- teaching curves -----------------------------------------------------------------------------------------
  const decode = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  for (const curve of data.curves) curve.values = decode(curve.data);
  let chosen = 0;
  const choose = (index, jump) => {
    chosen = index;
    byId("curve-class").value = names[index];
    if (data.curves.length) draw("plot-curves");
    if (jump) byId("curves").scrollIntoView();
  };
  const curveFigure = () => {
    const traces = [], shapes = [], annotations = [];
    const last = Math.max(...data.curves.map((curve) => curve.epochs[curve.epochs.length - 1]));
    data.curves.forEach((curve, place) => {
      const raw = curve.epochs.map((_, at) => curve.values[at * names.length + chosen] / 2.55);
      let state = raw[0];
      const smooth = raw.map((value) => (state = 0.6 * state + 0.4 * value));
      const shared = { type: "scatter", x: curve.epochs, legendgroup: curve.label };
      traces.push({ ...shared, y: raw, mode: "lines", line: { color: translucent(color(place), 0.35), width: 1 }, hoverinfo: "skip", showlegend: false });
      traces.push({ ...shared, y: smooth, mode: "lines", name: curve.label, line: { color: color(place), width: 2.5 },
        hovertemplate: escape(names[chosen]) + "<br>" + escape(curve.label) + "<br>epoch %{x}: %{y:.1f} %<extra></extra>" });
      const epoch = curve.flagged[chosen];
      if (!hasNull(epoch)) {
        shapes.push({ type: "line", x0: epoch, x1: epoch, yref: "paper", y0: 0, y1: 1, line: { color: color(place), dash: "dash", width: 1.5 } });
        annotations.push({ x: epoch, yref: "paper", y: 0.02 + 0.07 * annotations.length, text: "flagged: " + escape(curve.label), showarrow: false,
          xanchor: epoch > last / 2 ? "right" : "left", yanchor: "bottom", xshift: epoch > last / 2 ? -4 : 4, font: { color: color(place) } });
      }
    });
    return [traces, { shapes, annotations, hovermode: "x", title: { text: escape(names[chosen]), x: 0.5, y: 0.99, font: { size: 15 } }, margin: { l: 60, r: 20, t: 60, b: 50 },
      xaxis: axis("epoch", { range: [0, 1.02 * last] }), yaxis: axis("hold-out accuracy (%)", { range: [-2, 102] }) }];
  };
  if (data.curves.length) {
    for (const name of names) byId("class-names").append(make("option", null, { value: name }));
    byId("curve-class").addEventListener("change", (event) => {
      const index = names.indexOf(event.target.value);
      if (index >= 0) choose(index, false); else event.target.value = names[chosen];
    });
    for (const index of data.picks) {
      const button = make("button", names[index], { type: "button" });
      button.addEventListener("click", () => choose(index, false));
      byId("curve-picks").append(button);
    }
    chosen = data.picks.length ? data.picks[0] : 0;
    byId("curve-class").value = names[chosen];
    figures.set("plot-curves", curveFigure);
  } else hide("curves");

  // ---- counts --------------------------------------------------------------------------------------------------
  // One line for the method and each of its settings.
  const broken = (label) => label.split(", ").map((part) => shorten(escape(part), 26)).join("<br>");
  const countFigure = () => {
    const labels = compared.map((method) => broken(method.label));
    const bar = (name, pick, fill) => ({
      type: "bar", name, x: labels, y: data.counts.map((row) => row[pick].found.mean), marker: { color: fill },
      error_y: { type: "data", array: data.counts.map((row) => row[pick].found.std || 0), visible: data.counts.some((row) => row[pick].found.std), color: css("--text") },
      hovertemplate: "%{x}<br>" + name + ": %{y:.3~g}<extra></extra>",
    });
    const nulls = (name, pick, fill) => ({
      type: "bar", name, x: labels, y: data.counts.map((row) => row[pick].null.mean), marker: { color: fill, pattern: { shape: "/", size: 5, fgcolor: css("--null"), bgcolor: "rgba(0,0,0,0)" }, line: { color: css("--null"), width: 1 } },
      error_y: { type: "data", array: data.counts.map((row) => row[pick].null.std || 0), color: css("--muted"), visible: data.counts.some((row) => row[pick].null.std) },
      hovertemplate: "%{x}<br>" + name + ": %{y:.3~g}<extra></extra>",
    });
    return [[bar("delta acc &lt; 0", "hurt", translucent(css("--hurt"), 0.55)), nulls("its null", "hurt", css("--null")),
      bar("significantly worse (FDR 5 %)", "sure", css("--hurt")), nulls("its null ", "sure", css("--null"))],
      { ...(narrow() ? { legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 }, margin: { l: 60, r: 20, t: 80, b: 50 } } : {}), barmode: "group", bargap: 0.3, xaxis: axis("", { showgrid: false }), yaxis: axis("classes", { rangemode: "tozero" }) }];
  };
  if (compared.length) figures.set("plot-counts", countFigure); else hide("counts");

  // ---- overlap -------------------------------------------------------------------------------------------------
  const overlapFigure = () => {
    const { labels, jaccard, p_value, expected } = data.overlap;
    const short = labels.map(broken);
    const cells = jaccard.map((row, i) => row.map((value, j) => hasNull(value) ? "" : value.toFixed(2) + "<br>p " + pValue(p_value[i][j])));
    const hover = jaccard.map((row, i) => row.map((value, j) => escape(labels[i]) + " and " + escape(labels[j]) + "<br>Jaccard " +
      (hasNull(value) ? "\u2013" : value.toFixed(2)) + ", by chance " + (hasNull(expected[i][j]) ? "\u2013" : expected[i][j].toFixed(2)) + "<br>permutation p " + pValue(p_value[i][j])));
    const dark = document.documentElement.dataset.theme === "dark";
    const scale = dark ? [[0, "#1c2026"], [1, "#2f6ea8"]] : [[0, "#f6f7f9"], [1, "#7db4e0"]];
    return [[{ type: "heatmap", z: jaccard, x: short, y: short, text: cells, texttemplate: "%{text}", hovertext: hover, hoverinfo: "text",
      zmin: 0, zmax: 1, colorscale: scale, showscale: !narrow(), colorbar: { title: { text: "Jaccard" }, thickness: 12 }, xgap: 2, ygap: 2 }],
      { xaxis: axis("", { showgrid: false }), yaxis: axis("", { autorange: "reversed", showgrid: false }) }];
  };
  if (data.overlap) {
    figures.set("plot-overlap", overlapFigure);
    byId("plot-overlap").style.height = Math.max(16, 6 + 4.5 * data.overlap.labels.length) + "rem";
    byId("overlap-note").textContent = data.overlap.note;
  } else hide("overlap");
  if (data.every) {
    byId("every-note").textContent = data.every.note;
    const line = make("tr");
    for (const text of ["class", ...compared.map((method) => method.label), "mean"]) line.append(make("th", text, { scope: "col" }));
    byId("every").createTHead().append(line);
    const everyBody = byId("every").createTBody();
    for (const index of data.every.classes) {
      const values = compared.map((method) => method.delta[index]);
      const row = everyBody.insertRow();
      row.append(make("td", names[index]));
      for (const value of [...values, values.reduce((a, b) => a + b, 0) / values.length]) row.append(make("td", points(value)));
    }
    byId("every").hidden = !data.every.classes.length;
  } else hide("every-part");

  // ---- one point per class -------------------------------------------------------------------------------------
  const scatter = (id, series, xTitle, more = {}) => {
    // Equal positions, such as many classes at 100 %, would hide each other.
    const shift = (index) => (((index * 7919) % 101) / 101 - 0.5) * 0.5;
    figures.set(id, () => [series.map((one) => ({
      type: "scatter", mode: "markers", name: one.label,
      x: names.map((_, index) => hasNull(one.x[index]) ? null : one.scale * one.x[index] + shift(index) * one.scale / 100),
      y: names.map((_, index) => hasNull(one.y[index]) ? null : 100 * one.y[index]),
      marker: { size: names.length > 300 ? 5 : 8, color: translucent(color(one.place), 0.65), symbol: ["circle", "diamond", "square", "cross", "triangle-up"][one.place % 5],
        line: { width: names.map((_, index) => isSure(one.method, index) ? 1.5 : 0), color: css("--text") } },
      text: names.map((name, index) => "<b>" + escape(name) + "</b><br>" + escape(one.label) + "<br>" + xTitle + ": " +
        (hasNull(one.x[index]) ? "" : (one.scale * one.x[index]).toFixed(one.scale === 1 ? 2 : 1)) + "<br>delta acc " + points(one.y[index])),
      hoverinfo: "text", showlegend: series.length > 1,
    })), { xaxis: axis(xTitle), yaxis: axis("delta acc (points)"), ...more }]);
  };
  if (data.teacher && compared.length) {
    scatter("plot-teacher", compared.map((method, place) => ({ label: method.label, method, x: data.teacher.accuracy, y: method.delta, scale: 100, place })), "teacher's accuracy (%)");
    byId("h-teacher").textContent = data.teacher.heading;
    byId("teacher-note").textContent = data.teacher.note;
  } else hide("teacher");
  const alike = compared.map((method, place) => ({ method, place }));
  for (const [id, key, title, scale] of [["plot-cka", "cka", "CKA of teacher and student", 1], ["plot-agree", "agreement", "same prediction as the teacher (%)", 100]]) {
    const series = alike.filter(({ method }) => method[key]).map(({ method, place }) => ({ label: method.label, method, x: method[key], y: method.delta, scale, place }));
    // Beside each other, figures are too narrow for a legend above.
    if (series.length) scatter(id, series, title, { legend: { orientation: "h", y: -0.22, yanchor: "top", x: 0 } }); else hide(id);
  }
  if (byId("plot-cka").hidden && byId("plot-agree").hidden) hide("similar");
  else byId("similar-note").textContent = data.similar_note;

  // ---- t-SNE ---------------------------------------------------------------------------------------------------
  (data.tsne || []).slice(0, 2).forEach((picture, place) => {
    const hurt = new Set(picture.hurt);
    const groups = [["the other classes", (label) => !hurt.has(label), "--gain", 0.35], [data.tsne_legend, (label) => hurt.has(label), "--hurt", 0.75]];
    figures.set("plot-tsne-" + place, () => [groups.map(([label, wanted, name, alpha]) => {
      const kept = picture.labels.map((_, at) => at).filter((at) => wanted(picture.labels[at]));
      return { type: "scatter", mode: "markers", name: escape(label), x: kept.map((at) => picture.x[at]), y: kept.map((at) => picture.y[at]),
        text: kept.map((at) => escape(names[picture.labels[at]])), hoverinfo: "text", marker: { size: 5, color: translucent(css(name), alpha) } };
    }), { title: { text: escape(picture.title), font: { size: 14 }, x: 0.5, y: 0.99 }, legend: { orientation: "h", y: -0.02, x: 0 }, margin: { l: 10, r: 10, t: 40, b: 30 },
      xaxis: { visible: false }, yaxis: { visible: false, scaleanchor: "x" } }]);
  });
  if (!data.tsne || !data.tsne.length) hide("tsne");
  else byId("tsne-note").textContent = data.tsne_note;

  // ---- navigation, theme button, first drawing -----------------------------------------------------------------
  for (const section of document.querySelectorAll("main > section"))
    if (!section.hidden) byId("nav").append(make("a", section.dataset.nav, { href: "#" + section.id }));
  byId("theme").addEventListener("click", () => {
    const root = document.documentElement;
    root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
    drawAll();
  });
  drawAll();
  document.documentElement.dataset.ready = "true";
})();
