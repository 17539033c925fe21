"use strict";
// The viewer of maps: of the page, of `qavit serve` and of the notebook. `root` is a document or a shadow root that holds the
// markup of viewer.html; show(data) draws what plots/_page.py describes, and may be called again with other maps.
const qavitViewer = (root) => {
  const $ = (id) => root.getElementById(id);
  const panes = [
    { view: $("view"), cursor: $("cursor"), name: $("name"), stage: $("stage") },
    { view: $("view2"), cursor: $("cursor2"), name: $("name2"), stage: $("stage2") },
  ];
  const state = { question: 0, beside: -1, block: 0, head: -1, word: -1, pinned: -1, patch: -1 };
  let data = null, rows = 0, columns = 0, patches = 0, questions = [], maps = [], wordMaps = [], headMaps = [], ramps = {};
  let axes = {}, picture = null, base = null, grey = null, loaded = "", turn = Promise.resolve();

  // ---- numbers ----

  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  // Stored as they are (32 bits), or as integers between each map's own smallest and largest value.
  const unpack = (stored) => {
    const raw = bytes(stored.data);
    if (stored.bits === 32) {
      const values = new Float32Array(raw.buffer);
      return stored.bounds.map((_, index) => values.slice(index * patches, (index + 1) * patches));
    }
    const items = stored.bits === 16 ? new Uint16Array(raw.buffer) : raw;
    const top = stored.bits === 16 ? 65535 : 255;
    return stored.bounds.map(([low, high], index) => {
      const map = new Float32Array(patches);
      for (let i = 0; i < patches; i++) map[i] = low + (items[index * patches + i] / top) * (high - low);
      return map;
    });
  };
  const mapOf = (question, block) => maps[block * questions.length + question];
  // Of the block, or of one of the heads of the result's own.
  const mapNow = (question) => (state.head >= 0 ? headMaps[state.head * questions.length + question] : mapOf(question, state.block));
  const wordMap = (question, word) => wordMaps[questions[question].first_word + word];
  const chosen = () => (state.word >= 0 ? wordMap(state.question, state.word) : mapNow(state.question));
  const shown = () => (state.beside < 0 ? [chosen()] : [chosen(), mapNow(state.beside)]);
  const scale = () => {
    let together = shown();
    if ($("shared").checked) {
      together = state.word >= 0
        ? questions[state.question].words.map((_, word) => wordMap(state.question, word))
        : questions.map((_, question) => mapNow(question));
      if (state.word >= 0 && state.beside >= 0) together.push(mapNow(state.beside));
    }
    // From zero to the peak, or a few times the mean, so that a flat map is pale.
    let low = 0, high = -Infinity, sum = 0;
    for (const map of together) for (const value of map) {
      low = Math.min(low, value);
      high = Math.max(high, value);
      sum += value / (together.length * patches);
    }
    high = Math.max(high, data.reach * sum);
    return [data.vmin ?? low, data.vmax ?? high];
  };
  const unit = () => (data.distribution ? "Colours: how much of all attention one patch gets" : "Colours: the value of one patch");
  const digits = (value) => Number(value.toPrecision(3)).toString();
  const number = (value) => (data.distribution ? `${100 * value < 0.0005 ? 0 : digits(100 * value)}%` : digits(value));
  // Maps are stored with 8 or 16 bits a value: nearer than that is the same.
  const alike = (block) => questions.length > 1 && questions.every((_, question) => {
    const one = mapOf(0, block), other = mapOf(question, block), high = Math.max(...one);
    return one.every((value, i) => Math.abs(value - other[i]) <= high / 200);
  });

  // ---- pixels ----

  // The part of the picture that is drawn, in its pixels: [left, top, right, bottom].
  const drawn = () => ($("whole").checked ? [0, 0, data.size[1], data.size[0]] : data.view);
  // One axis of the grid spread over pixels: for each pixel its (patch, weight) pairs; none outside the region.
  const spread = (size, from, to, count, start, stop, smooth) => Array.from({ length: size }, (_, pixel) => {
    const position = ((from + ((pixel + 0.5) * (to - from)) / size - start) / (stop - start)) * count - 0.5;
    if (position < -0.5 || position > count - 0.5) return null;
    const clamp = (i) => Math.max(0, Math.min(count - 1, i));
    if (!smooth) return [[clamp(Math.round(position)), 1]];
    const base = Math.floor(position);
    return [-1, 0, 1, 2].map((offset) => {
      const d = Math.abs(position - base - offset);
      const weight = d <= 1 ? (1.5 * d - 2.5) * d * d + 1 : d < 2 ? ((-0.5 * d + 2.5) * d - 4) * d + 2 : 0;
      return [clamp(base + offset), weight];
    });
  });
  // Both axes, and the pixels across that were seen: from `first` to before `end`.
  const axesFor = (w, h, smooth) => (axes[`${w} ${h} ${smooth}`] ??= (() => {
    const [left, top, right, bottom] = data.region, [x0, y0, x1, y1] = drawn();
    const x = spread(w, x0, x1, columns, left, right, smooth), first = x.findIndex((pairs) => pairs);
    return { x, first: Math.max(0, first), end: first < 0 ? 0 : x.findLastIndex((pairs) => pairs) + 1, y: spread(h, y0, y1, rows, top, bottom, smooth) };
  })());
  // Both canvases at the size that suits the part that is drawn, and that part's own pixels.
  const resize = () => {
    const [x0, y0, x1, y1] = drawn(), wide = x1 - x0, high = y1 - y0;
    const stage = Math.max(640, Math.min(1100, Math.max(wide, high))) / Math.max(wide, high);
    for (const { view } of panes) {
      view.width = Math.max(1, Math.round(wide * stage));
      view.height = Math.max(1, Math.round(high * stage));
    }
    axes = {};
    const canvas = document.createElement("canvas");
    canvas.width = panes[0].view.width;
    canvas.height = panes[0].view.height;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    const across = picture.naturalWidth / data.size[1], down = picture.naturalHeight / data.size[0];
    context.imageSmoothingQuality = "high";
    context.drawImage(picture, x0 * across, y0 * down, wide * across, high * down, 0, 0, canvas.width, canvas.height);
    // A number a pixel, red lowest; and grey, as where the model did not look.
    base = new Uint32Array(context.getImageData(0, 0, canvas.width, canvas.height).data.buffer);
    grey = Uint32Array.from(base, (pixel) => {
      let faded = 255 << 24;
      for (const shift of [0, 8, 16]) faded |= Math.round(0.4 * ((pixel >>> shift) & 255) + 0.6 * 128) << shift;
      return faded;
    });
  };
  // What is painted over a pixel for each of so many values of the scale: how much of the picture is left, and what is added,
  // in 65536ths; half of one more, so that cutting rounds.
  const STEPS = 2048;
  const inks = () => {
    const ramp = ramps[$("cmap").value], opacity = $("opacity").value / 100, fade = $("fade").checked;
    const table = new Int32Array(4 * (STEPS + 1));
    for (let step = 0; step <= STEPS; step++) {
      const part = opacity * (fade ? Math.pow(step / STEPS, 0.7) : 1), colour = 3 * Math.round((255 * step) / STEPS);
      table[4 * step] = Math.round(65536 * (1 - part));
      for (let k = 0; k < 3; k++) table[4 * step + 1 + k] = Math.round(65536 * part * ramp[colour + k]) + 32768;
    }
    return table;
  };
  const paint = (canvas, map) => {
    const w = canvas.width, h = canvas.height;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    const pixels = context.createImageData(w, h), out = new Uint32Array(pixels.data.buffer), table = inks();
    const [low, high] = scale(), times = high > low ? STEPS / (high - low) : 0;
    const { x, first, end, y } = axesFor(w, h, $("smooth").checked);
    out.set(grey);
    // Across first: each row of patches as a row of pixels, in steps of the scale, which weights that sum to one keep.
    const lines = Array.from({ length: rows }, (_, row) => Float32Array.from(x, (pairs) => {
      let value = 0;
      if (pairs) for (const [column, weight] of pairs) value += weight * (map[row * columns + column] - low) * times;
      return value;
    }));
    for (let j = 0; j < h; j++) {
      if (!y[j]) continue;
      const [[row, a], [row1, b], [row2, c], [row3, d]] = y[j].length > 1 ? y[j] : [...y[j], [0, 0], [0, 0], [0, 0]];
      const line = lines[row], line1 = lines[row1], line2 = lines[row2], line3 = lines[row3];
      for (let i = first; i < end; i++) {
        const value = a * line[i] + b * line1[i] + c * line2[i] + d * line3[i];
        const ink = value <= 0 ? 0 : value >= STEPS ? 4 * STEPS : 4 * ((value + 0.5) | 0);
        const at = j * w + i, pixel = base[at], left = table[ink];
        out[at] = 0xff000000
          | ((left * (pixel & 255) + table[ink + 1]) >>> 16)
          | (((left * ((pixel >>> 8) & 255) + table[ink + 2]) >>> 16) << 8)
          | (((left * ((pixel >>> 16) & 255) + table[ink + 3]) >>> 16) << 16);
      }
    }
    context.putImageData(pixels, 0, 0);
    if ($("grid").checked) paintBorders(context, w, h);
  };
  const paintBorders = (context, w, h) => {
    const [left, top, right, bottom] = data.region, [x0, y0, x1, y1] = drawn();
    const across = (x) => ((x - x0) / (x1 - x0)) * w, down = (y) => ((y - y0) / (y1 - y0)) * h;
    context.strokeStyle = "rgba(255,255,255,.55)";
    context.lineWidth = Math.max(1, w / 900);
    context.beginPath();
    for (let c = 0; c <= columns; c++) {
      const at = across(left + (c * (right - left)) / columns);
      context.moveTo(at, down(top));
      context.lineTo(at, down(bottom));
    }
    for (let r = 0; r <= rows; r++) {
      const at = down(top + (r * (bottom - top)) / rows);
      context.moveTo(across(left), at);
      context.lineTo(across(right), at);
    }
    context.stroke();
  };
  const paintRamp = (canvas) => {
    const context = canvas.getContext("2d"), ramp = ramps[$("cmap").value];
    const pixels = context.createImageData(256, 1);
    for (let i = 0; i < 256; i++) pixels.data.set([ramp[3 * i], ramp[3 * i + 1], ramp[3 * i + 2], 255], 4 * i);
    context.putImageData(pixels, 0, 0);
  };

  // ---- what is said ----

  const nameOf = (question) => questions[question].text || "No question";
  const read = () => {
    for (const { cursor } of panes) cursor.hidden = state.patch < 0;
    if (state.patch < 0) {
      $("reading").textContent = "Point at the picture to read a patch.";
      return;
    }
    const row = Math.floor(state.patch / columns), column = state.patch % columns;
    const [map, other] = shown(), value = map[state.patch];
    const rank = 1 + map.reduce((count, one) => count + (one > value), 0);
    const what = data.distribution ? " of the attention" : "";
    const beside = other ? `; beside it ${number(other[state.patch])}` : "";
    $("reading").textContent = `Row ${row + 1}, column ${column + 1}: ${number(value)}${what}, number ${rank} of ${patches}${beside}`;
    // A patch may lie in part outside of the picture, where that was padded, or outside of what is drawn of it.
    const [left, top, right, bottom] = data.region, [x0, y0, x1, y1] = drawn();
    const within = (value) => 100 * Math.max(0, Math.min(1, value));
    const w = (right - left) / columns, h = (bottom - top) / rows;
    const x = within((left + column * w - x0) / (x1 - x0)), y = within((top + row * h - y0) / (y1 - y0));
    for (const { cursor: { style } } of panes) {
      style.left = `${x}%`;
      style.top = `${y}%`;
      style.width = `${within((left + (column + 1) * w - x0) / (x1 - x0)) - x}%`;
      style.height = `${within((top + (row + 1) * h - y0) / (y1 - y0)) - y}%`;
    }
  };
  let waiting = 0;
  const update = () => {
    cancelAnimationFrame(waiting);
    waiting = 0;
    if (!base) return;
    const two = state.beside >= 0;
    $("stages").classList.toggle("two", two);
    panes[1].stage.hidden = !two;
    for (const { name } of panes) name.hidden = !two;
    shown().forEach((map, pane) => paint(panes[pane].view, map));
    if (two) [state.question, state.beside].forEach((question, pane) => { panes[pane].name.textContent = nameOf(question); });
    paintRamp($("ramp"));
    const [low, high] = scale();
    $("low").textContent = number(low);
    $("high").textContent = number(high);
    $("blockname").textContent = String(data.blocks[state.block]);
    $("head").value = state.head;
    $("blind").hidden = data.blank || state.word >= 0 || state.head >= 0 || !alike(state.block);
    $("opacityname").textContent = `${$("opacity").value}%`;
    [...$("questions").children].forEach((button, index) => button.setAttribute("aria-pressed", String(index === state.question)));
    [...$("words").children].forEach((button, index) => button.setAttribute("aria-pressed", String(index === state.pinned)));
    panes.forEach(({ view }, pane) => view.setAttribute("aria-label", `Heatmap over the picture: ${nameOf(pane ? Math.max(0, state.beside) : state.question)}`));
    read();
  };
  const soon = () => { waiting ||= requestAnimationFrame(update); };
  const element = (name, text, parent) => {
    const made = document.createElement(name);
    made.textContent = text;
    parent.append(made);
    return made;
  };
  const notesOf = (question) => [
    ...questions[question].notes,
    ...(state.beside >= 0 ? questions[state.beside].notes : []),
    ...data.notes,
    ...(data.cropped ? ["Grey: not seen by the model."] : []),
  ];
  const listAnswers = (box, list, question) => {
    $(list).replaceChildren();
    $(box).hidden = !(question && question.answers.length);
    for (const [answer, chance] of question ? question.answers : []) {
      const line = element("div", "", $(list));
      line.className = "answer";
      element("span", answer, line);
      if (chance === null) continue;
      const meter = element("meter", "", line);
      meter.value = chance;
      meter.setAttribute("aria-label", answer);
      element("span", `${Math.round(100 * chance)}%`, line);
    }
  };
  const listWords = (question) => {
    $("words").replaceChildren();
    $("wordbox").hidden = !(question.words && question.words.length);
    (question.words || []).forEach((word, number) => {
      const button = element("button", word, $("words"));
      button.type = "button";
      const look = () => { state.word = number; soon(); };
      const leave = () => { state.word = state.pinned; soon(); };
      button.addEventListener("mouseenter", look);
      button.addEventListener("mouseleave", leave);
      button.addEventListener("focus", look);
      button.addEventListener("blur", leave);
      button.addEventListener("click", () => {
        state.pinned = state.pinned === number ? -1 : number;
        state.word = state.pinned;
        soon();
      });
    });
  };
  // For those who hear the page: what is answered, once it stands still.
  let saying = 0;
  const sayAnswers = () => {
    clearTimeout(saying);
    saying = setTimeout(() => {
      const indices = state.beside < 0 ? [state.question] : [state.question, state.beside];
      $("said").textContent = data.blank ? "" : indices.map((index) => {
        const [first] = questions[index].answers;
        const likely = first && first[1] !== null ? `, ${Math.round(100 * first[1])}%` : "";
        return `${nameOf(index)}: ${first ? `${first[0] || "no answer"}${likely}` : "map drawn"}.`;
      }).join(" ");
    }, 600);
  };
  // Another question, or the same one again after a new answer: what is said of it changes, then the map.
  const choose = (index, beside = state.beside) => {
    state.question = index;
    state.beside = beside === index || beside >= questions.length ? -1 : beside;
    state.word = state.pinned = -1;
    $("beside").value = state.beside;
    const two = state.beside >= 0, own = questions[index], other = two ? questions[state.beside] : null;
    $("answersof").textContent = two ? `Answers to “${nameOf(index)}”` : "Answers, and how likely the model finds each";
    $("answersof2").textContent = two ? `Answers to “${nameOf(state.beside)}”` : "";
    listAnswers("answerbox", "answers", own);
    listAnswers("answerbox2", "answers2", other);
    $("notes").replaceChildren();
    for (const note of new Set(notesOf(index))) element("p", note, $("notes"));
    listWords(own);
    sayAnswers();
    soon();
  };
  const goTo = (block, head = -1) => {
    state.block = Math.max(0, Math.min(data.blocks.length - 1, block));
    state.head = head;
    $("block").value = state.block;
    state.word = state.pinned = -1;
    soon();
  };

  // ---- controls ----

  const patchAt = (event, view) => {
    const box = view.getBoundingClientRect(), [left, top, right, bottom] = data.region, [x0, y0, x1, y1] = drawn();
    const x = x0 + ((event.clientX - box.left) / box.width) * (x1 - x0), y = y0 + ((event.clientY - box.top) / box.height) * (y1 - y0);
    if (x < left || x >= right || y < top || y >= bottom) return -1;
    const column = Math.floor(((x - left) / (right - left)) * columns), row = Math.floor(((y - top) / (bottom - top)) * rows);
    return row * columns + column;
  };
  const step = (event) => {
    const [down, right] = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key] || [];
    if (down === undefined || state.patch < 0) return;
    event.preventDefault();
    const row = Math.floor(state.patch / columns) + down, column = (state.patch % columns) + right;
    if (row >= 0 && row < rows && column >= 0 && column < columns) state.patch = row * columns + column;
    read();
  };
  panes.forEach(({ view }, pane) => {
    const point = (event) => { if (base) { state.patch = patchAt(event, view); read(); } };
    view.addEventListener("pointermove", point);
    view.addEventListener("pointerdown", point);
    view.addEventListener("pointerleave", (event) => { if (base && event.pointerType === "mouse") { state.patch = -1; read(); } });
    view.addEventListener("focus", () => {
      if (!base || state.patch >= 0) return;
      const map = shown()[pane] || chosen();
      state.patch = map.indexOf(Math.max(...map));
      read();
    });
    view.addEventListener("blur", () => { if (base) { state.patch = -1; read(); } });
    view.addEventListener("keydown", step);
  });
  $("block").addEventListener("input", () => goTo(Number($("block").value)));
  $("head").addEventListener("input", () => goTo(data.blocks.indexOf(data.block), Number($("head").value)));
  $("beside").addEventListener("input", () => choose(state.question, Number($("beside").value)));
  for (const id of ["opacity", "cmap", "fade", "smooth", "grid", "shared"]) $(id).addEventListener("input", soon);
  $("whole").addEventListener("input", () => { resize(); soon(); });
  const types = (target) => ["SELECT", "TEXTAREA"].includes(target.tagName) || (target.tagName === "INPUT" && target.type === "text");
  root.addEventListener("keydown", (event) => {
    if (!base || event.ctrlKey || event.metaKey || event.altKey || types(event.composedPath()[0])) return;
    const index = $("questions").hidden ? -1 : Number(event.key) - 1;
    if (Number.isInteger(index) && index >= 0 && index < questions.length) choose(index);
    else if (event.key === "[") goTo(state.block - 1);
    else if (event.key === "]") goTo(state.block + 1);
  });

  // ---- downloads ----

  const place = () => `block ${data.blocks[state.block]}${state.head >= 0 ? ` head ${state.head}` : ""}`;
  const wrapped = (context, text, room) => {
    const lines = [""];
    for (const piece of text.split(/(\s+)/)) {
      for (const part of context.measureText(piece).width > room ? [...piece] : [piece]) {
        if (lines.at(-1) && context.measureText(lines.at(-1) + part).width > room) lines.push("");
        lines[lines.length - 1] += part;
      }
    }
    return lines.map((line) => line.trim());
  };
  const compose = () => {
    const canvas = document.createElement("canvas");
    const context = canvas.getContext("2d");
    const font = (size) => `${size}px system-ui, sans-serif`;
    const count = shown().length, { width: w, height: h } = panes[0].view, room = count * (w + 16) - 16;
    const word = state.word >= 0 ? ` (${questions[state.question].words[state.word]})` : "";
    context.font = font(20);
    const titles = [nameOf(state.question) + word, ...(count > 1 ? [nameOf(state.beside)] : [])].map((text) => wrapped(context, text, w - 10));
    context.font = font(14);
    const small = notesOf(state.question).flatMap((note) => wrapped(context, note, room - 10));
    const head = 20 + 27 * Math.max(...titles.map((lines) => lines.length)), foot = 64 + 19 * small.length;
    canvas.width = room + 32;
    canvas.height = h + head + foot;
    context.fillStyle = "#fff";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.fillStyle = "#1c1c1e";
    context.font = font(20);
    titles.forEach((lines, pane) => {
      lines.forEach((line, index) => context.fillText(line, 16 + pane * (w + 16), 32 + 27 * index));
      context.drawImage(panes[pane].view, 16 + pane * (w + 16), head);
    });
    const y = head + h + 14;
    context.drawImage($("ramp"), 16, y, room, 12);
    context.fillStyle = "#5f5f66";
    context.font = font(14);
    context.fillText($("low").textContent, 16, y + 32);
    context.textAlign = "center";
    context.fillText(`${unit()} · ${place()}`, canvas.width / 2, y + 32);
    context.textAlign = "right";
    context.fillText($("high").textContent, canvas.width - 16, y + 32);
    context.textAlign = "left";
    small.forEach((line, index) => context.fillText(line, 16, y + 54 + 19 * index));
    return canvas;
  };
  // The numbers as the page has them.
  const numbers = () => ({
    about: data.about,
    picture_size: data.size,
    seen: data.region,
    grid: data.grid,
    model: data.model,
    method: data.method,
    block: data.blocks[state.block],
    ...(state.head >= 0 ? { head: state.head } : {}),
    notes: data.notes,
    questions: questions.map(({ text, answers, notes, words }, question) => ({
      question: text, answers, notes, map: [...mapNow(question)],
      ...(words ? { words: words.map((word, index) => ({ word, map: [...wordMap(question, index)] })) } : {}),
    })),
  });
  const save = (blob, ending) => {
    const link = document.createElement("a");
    const slug = (questions[state.question].text || "map").toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 60);
    link.href = URL.createObjectURL(blob);
    link.download = `${slug || "map"}-${place().replaceAll(/\W+/g, "-")}.${ending}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  };
  $("download").addEventListener("click", () => base && compose().toBlob((blob) => save(blob, "png"), "image/png"));
  $("downloadjson").addEventListener("click", () => base && save(new Blob([JSON.stringify(numbers(), null, 1)], { type: "application/json" }), "json"));

  // ---- data ----

  const fill = () => {
    $("questions").replaceChildren();
    questions.forEach((question, index) => {
      const button = element("button", question.text || "No question", $("questions"));
      button.type = "button";
      button.addEventListener("click", () => choose(index));
    });
    $("beside").replaceChildren();
    element("option", "no other question", $("beside")).value = -1;
    questions.forEach((question, index) => { element("option", nameOf(index), $("beside")).value = index; });
    $("besiderow").hidden = questions.length < 2 || $("questions").hidden;
    if (data.colormaps) {
      const kept = $("cmap").value;
      $("cmap").replaceChildren();
      for (const name of Object.keys(ramps)) element("option", name, $("cmap")).value = name;
      $("cmap").value = ramps[kept] ? kept : data.cmap;
    }
    $("about").textContent = data.about;
    $("unit").textContent = unit();
    $("blockrow").hidden = data.blocks.length < 2;
    $("headrow").hidden = !headMaps.length;
    $("head").replaceChildren();
    element("option", "all, as the map has them", $("head")).value = -1;
    for (let head = 0; head < headMaps.length / questions.length; head++) element("option", `head ${head} of block ${data.block}`, $("head")).value = head;
    $("block").max = data.blocks.length - 1;
    $("wholerow").hidden = !data.zoomed;
    $("stages").closest("main").classList.toggle("blank", Boolean(data.blank));
  };
  // The picture is decoded before anything changes, so that what is said, the maps and the picture change together.
  const put = async (next, question, beside) => {
    if (next.picture && next.picture !== picture?.src) {
      const image = new Image();
      image.src = next.picture;
      await image.decode();
      picture = image;
      base = null;
    }
    const first = data === null;
    data = next;
    [rows, columns] = data.grid;
    patches = rows * columns;
    questions = data.questions;
    maps = unpack(data.maps); // [blocks, questions]
    wordMaps = data.words ? unpack(data.words) : [];
    headMaps = data.heads ? unpack(data.heads) : [];
    if (data.colormaps) ramps = Object.fromEntries(Object.entries(data.colormaps).map(([name, text]) => [name, bytes(text)]));
    if (state.patch >= patches) state.patch = -1;
    fill();
    if (first) $("shared").checked = data.shared;
    const key = JSON.stringify([data.size, data.region, data.view]);
    if (!base || key !== loaded) {
      resize();
      loaded = key;
    }
    goTo(Math.max(0, data.blocks.indexOf(data.block)));
    choose(question, beside);
    update();
  };
  // One after the other: without a picture in it, data are of the picture of those before.
  const show = (next, { question = 0, beside = -1 } = {}) => {
    const mine = turn.then(() => put(next, question, beside));
    turn = mine.catch(() => {});
    return mine;
  };
  return { show, element };
};
