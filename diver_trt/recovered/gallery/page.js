"use strict";

// The data, as `page.py` writes it: the classes, and the images of each, [number, source, file,
// engine] or, for one that was left out, [number, source, null, reason]; and the sheets of distilled
// images, [file or null, how many].
const PER_PAGE = 120;
const parsed = (id) => JSON.parse(document.getElementById(id).textContent);
const data = parsed("data"), rows = parsed("rows");
const at = (id) => document.getElementById(id);
const padded = (number) => String(number).padStart(5, "0");
const count = new Intl.NumberFormat("en").format;

const samples = data.classes.flatMap((inClass, position) => {
  inClass.images = rows[position];
  const [name] = (inClass.name ?? inClass.wnid ?? `class ${inClass.label}`).split(",");
  inClass.title = name === String(inClass.index) ? `class ${name}` : `${inClass.index}: ${name}`;
  return inClass.images.map(([number, source, file, more]) => ({
    inClass, source,
    key: `${padded(inClass.index)}/${padded(number)}`,
    file: file === null ? null : `${inClass.folder}/${file}`,
    engine: file === null ? null : data.engines[more],
    reason: file === null ? more : null,
  }));
});
samples.forEach((sample, position) => { sample.position = position; });

let first = 0;
const sheets = data.sheets.map(([file, images]) => {
  const sheet = { file, first, images };
  first += images;
  return sheet;
});
const unread = new Set(data.unread);

// What the page shows. It is kept in the address, so that reloading and the back button work.
let shown = { query: null, class: null, page: null, image: null };
let found = []; // the samples that match, on all pages

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function encoded(file) {
  return file.split("/").map(encodeURIComponent).join("/");
}

function sheetOf(position) {
  let low = 0;
  for (let high = sheets.length; high - low > 1;) {
    const middle = (low + high) >> 1;
    if (sheets[middle].first <= position) low = middle; else high = middle;
  }
  return sheets[low];
}

function picture(file, side, text) {
  const image = element("img", { alt: text, decoding: "async", loading: "lazy" });
  image.classList.toggle("pixels", side <= data.lossless);
  image.src = encoded(file);
  return image;
}

function missing(text) {
  return element("span", { className: "cell missing", textContent: text });
}

/** One thumbnail of a sheet: the whole sheet, enlarged and moved so that only it is seen. */
function distilledCell(sample) {
  const sheet = sheetOf(sample.position);
  if (!sheet.file) return missing("the distilled image is not in this folder");
  if (unread.has(sample.position)) return missing("the distilled image could not be read");
  const image = picture(sheet.file, data.side, `distilled ${sample.key}`);
  const place = sample.position - sheet.first;
  const row = Math.floor(place / data.columns), column = place % data.columns;
  // Smooth enlarging mixes in half a pixel of the neighbours, so that much is left out.
  const inset = data.side <= data.lossless ? 0 : 0.5;
  const percent = (pixels) => `${100 * pixels / (data.side - 2 * inset)}%`;
  image.classList.add("sheet");
  image.style.width = percent(data.side * data.columns);
  // Known before the sheet is loaded: a picture without a height would lie out of sight, and stay.
  image.style.height = percent(data.side * Math.ceil(sheet.images / data.columns));
  image.style.left = percent(-data.side * column - inset);
  image.style.top = percent(-data.side * row - inset);
  return element("span", { className: "cell" }, image);
}

function recoveredCell(sample) {
  if (!sample.file) return missing(`left out: ${sample.reason}`);
  return element("span", { className: "cell" },
    picture(sample.file, data.size, `recovered ${sample.key}`));
}

function cells(sample) {
  return element("span", { className: "cells" }, distilledCell(sample), recoveredCell(sample));
}

// The list

function matches(sample, terms) {
  const { inClass } = sample;
  sample.text ??= [sample.key, sample.source, inClass.title, inClass.name, inClass.wnid]
    .filter(Boolean).join("\n").toLowerCase();
  return terms.every((term) => sample.text.includes(term));
}

function find() {
  const terms = shown.query.toLowerCase().split(/\s+/).filter(Boolean);
  found = samples.filter((sample) => (
    (shown.class === "" || (shown.class === "left-out" ? !sample.file
      : String(sample.inClass.index) === shown.class))
    && matches(sample, terms)));
}

function pages() {
  return Math.max(1, Math.ceil(found.length / PER_PAGE));
}

function pair(sample, place, grouped) {
  const name = grouped ? sample.source : sample.inClass.title;
  const link = element("a", { className: "pair", title: `${sample.inClass.title}\n${sample.source}` },
    cells(sample),
    element("span", { className: "caption" }, element("b", { textContent: sample.key }), ` ${name}`));
  link.href = address({ ...shown, image: sample.key });
  link.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    go({ image: sample.key });
  });
  link.dataset.place = place;
  return link;
}

function heading(inClass) {
  const images = inClass.images.length;
  const matching = found.filter((sample) => sample.inClass === inClass).length;
  const all = images === 1 ? "1 image" : `${count(images)} images`;
  const number = matching < images ? `${count(matching)} of ${all}` : all;
  const drawn = inClass.drawn && `drawn as ${inClass.drawn}`;
  const facts = [inClass.wnid, drawn, number].filter(Boolean).join(" · ");
  return element("h2", { textContent: inClass.title }, element("small", { textContent: facts }));
}

function list() {
  const start = (shown.page - 1) * PER_PAGE, page = found.slice(start, start + PER_PAGE);
  // A heading above each image would take more room than the images.
  const grouped = page.length >= 3 * new Set(page.map((sample) => sample.inClass)).size;
  const children = [];
  page.forEach((sample, number) => {
    if (grouped && sample.inClass !== page[number - 1]?.inClass) {
      children.push(heading(sample.inClass));
    }
    children.push(pair(sample, start + number, grouped));
  });
  if (!page.length) children.push(element("p", { textContent: "No image matches." }));
  at("pairs").replaceChildren(...children);
  at("count").value = page.length
    ? `${count(start + 1)}–${count(start + page.length)} of ${count(found.length)}` : "0 images";
  at("page").value = shown.page;
  at("page").max = pages();
  at("last").value = count(pages());
  at("pages").hidden = pages() === 1;
  for (const button of document.querySelectorAll("[data-step]")) {
    button.hidden = pages() === 1;
    const target = shown.page + Number(button.dataset.step);
    button.disabled = target < 1 || target > pages();
  }
}

// One pair, large

function fact(name, ...values) {
  return element("div", {}, element("dt", { textContent: name }), element("dd", {}, ...values));
}

function view(place) {
  const viewer = at("viewer");
  if (place < 0) {
    viewer.close();
    return;
  }
  const sample = found[place], { inClass } = sample;
  at("viewer-title").textContent = sample.key;
  at("viewer-count").value = `${count(place + 1)} of ${count(found.length)}`;
  at("viewer-images").replaceChildren(
    element("figure", {}, distilledCell(sample), element("figcaption", { textContent: "distilled" })),
    element("figure", {}, recoveredCell(sample), element("figcaption", { textContent: "recovered" })));
  at("viewer-facts").replaceChildren(
    fact("Class", [inClass.title, inClass.wnid].filter(Boolean).join(" · ")),
    fact("Source", sample.source),
    ...(sample.file ? [
      fact("File", element("a", { href: encoded(sample.file), textContent: sample.file })),
      fact("Engine", sample.engine),
    ] : [fact("Left out", sample.reason)]));
  for (const button of document.querySelectorAll("[data-turn]")) {
    button.disabled = !found[place + Number(button.dataset.turn)];
  }
  if (!viewer.open) viewer.showModal();
}

function turn(step) {
  const next = found[found.findIndex((sample) => sample.key === shown.image) + step];
  if (next) go({ image: next.key }, true);
}

// What is shown, and the address

function address({ query, class: inClass, page, image }) {
  const parts = new URLSearchParams();
  if (query) parts.set("query", query);
  if (inClass) parts.set("class", inClass);
  if (page > 1) parts.set("page", page);
  if (image) parts.set("image", image);
  return `#${parts}`;
}

function show(next) {
  const before = shown;
  shown = next;
  if (next.query !== before.query || next.class !== before.class) find();
  // The page follows the image, so that closing the viewer leads back to it.
  const place = found.findIndex((sample) => sample.key === shown.image);
  if (place >= 0) shown.page = Math.floor(place / PER_PAGE) + 1;
  shown.page = Math.min(Math.max(1, shown.page || 1), pages());
  if (at("query").value !== shown.query) at("query").value = shown.query;
  at("class").value = shown.class;
  if (before.page !== shown.page || before.query !== shown.query || before.class !== shown.class) {
    list();
  }
  view(place);
}

function go(changes, quietly = false) {
  show({ ...shown, ...changes });
  history[quietly ? "replaceState" : "pushState"](null, "", address(shown));
}

function read() {
  const parts = new URLSearchParams(location.hash.slice(1));
  const known = [...at("class").options].map((option) => option.value);
  const inClass = parts.get("class") ?? "";
  show({
    query: parts.get("query") ?? "",
    class: known.includes(inClass) ? inClass : "",
    page: Number.parseInt(parts.get("page") ?? "1", 10),
    image: parts.get("image"),
  });
}

function listen() {
  const viewer = at("viewer");
  at("filter").addEventListener("submit", (event) => event.preventDefault());
  at("query").addEventListener("input", (event) => (
    go({ query: event.target.value, page: 1 }, true)));
  at("class").addEventListener("change", (event) => go({ class: event.target.value, page: 1 }));
  at("page").addEventListener("change", (event) => go({ page: event.target.valueAsNumber }));
  for (const button of document.querySelectorAll("[data-step]")) {
    button.addEventListener("click", () => {
      go({ page: shown.page + Number(button.dataset.step) });
      at("gallery").scrollIntoView();
    });
  }
  for (const button of document.querySelectorAll("[data-turn]")) {
    button.addEventListener("click", () => turn(Number(button.dataset.turn)));
  }
  at("close").addEventListener("click", () => viewer.close());
  viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
  viewer.addEventListener("close", () => {
    const pairs = [...at("pairs").querySelectorAll("a")];
    const seen = pairs.find((link) => found[link.dataset.place].key === shown.image);
    if (shown.image) go({ image: null }, true);
    seen?.focus();
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (viewer.open && event.key === "ArrowLeft") turn(-1);
    else if (viewer.open && event.key === "ArrowRight") turn(1);
    else if (!viewer.open && event.key === "/" && !event.target.matches("input, select")) {
      event.preventDefault();
      at("query").focus();
    }
  });
  addEventListener("popstate", read);
}

const leftOut = samples.filter((sample) => !sample.file).length;
at("class").append(
  element("option", { value: "", textContent: `all (${count(samples.length)})` }),
  ...(leftOut ? [element("option", { value: "left-out", textContent: `left out (${count(leftOut)})` })] : []),
  ...data.classes.map((inClass) => element("option", {
    value: inClass.index, textContent: `${inClass.title} (${count(inClass.images.length)})`,
  })));
at("gallery").hidden = false;
at("pairs").classList.toggle("exact", data.size <= data.lossless); // whole pixels
listen();
read();
