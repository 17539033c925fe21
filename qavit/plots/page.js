"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const [rows, columns] = data.grid;
  const patches = rows * columns;
  const [height, width] = data.size;
  const [left, top, right, bottom] = data.region;
  const questions = data.questions;
  const view = $("view");
  const stage = Math.max(640, Math.min(1100, Math.max(width, height))) / Math.max(width, height);
  view.width = Math.max(1, Math.round(width * stage));
  view.height = Math.max(1, Math.round(height * stage));

  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  // Stored as integers between each map's own smallest and largest value.
  const unpack = (stored) => {
    const raw = bytes(stored.data);
    const items = stored.bits === 16 ? new Uint16Array(raw.buffer) : raw;
    const top = stored.bits === 16 ? 65535 : 255;
    return stored.bounds.map(([low, high], index) => {
      const map = new Float32Array(patches);
      for (let i = 0; i < patches; i++) map[i] = low + (items[index * patches + i] / top) * (high - low);
      return map;
    });
  };
  const maps = unpack(data.maps); // [blocks, questions]
  const wordMaps = data.words ? unpack(data.words) : [];
  const ramps = Object.fromEntries(Object.entries(data.colormaps).map(([name, text]) => [name, bytes(text)]));
  const state = { question: 0, block: data.blocks.indexOf(data.block), word: -1, pinned: -1, patch: -1 };

  const mapOf = (question, block) => maps[block * questions.length + question];
  const wordMap = (question, word) => wordMaps[questions[question].first_word + word];
  const shown = () => (state.word >= 0 ? wordMap(state.question, state.word) : mapOf(state.question, state.block));
  const scale = () => {
    let together = [shown()];
    if ($("shared").checked) {
      together = state.word >= 0
        ? questions[state.question].words.map((_, word) => wordMap(state.question, word))
        : questions.map((_, question) => mapOf(question, state.block));
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
  const unit = data.distribution ? "Colours: how much of all attention one patch gets" : "Colours: the value of one patch";
  const digits = (value) => Number(value.toPrecision(3)).toString();
  const number = (value) => (data.distribution ? `${100 * value < 0.0005 ? 0 : digits(100 * value)}%` : digits(value));
  // Maps are stored with 8 or 16 bits a value: nearer than that is the same.
  const alike = (block) => questions.length > 1 && questions.every((_, question) => {
    const one = mapOf(0, block), other = mapOf(question, block), high = Math.max(...one);
    return one.every((value, i) => Math.abs(value - other[i]) <= high / 200);
  });

  // One axis of the grid spread over pixels: for each pixel its (patch, weight) pairs; none outside the region.
  const spread = (size, extent, count, start, stop, smooth) => Array.from({ length: size }, (_, pixel) => {
    const position = ((((pixel + 0.5) * extent) / size - start) / (stop - start)) * count - 0.5;
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
  const axes = {};
  const axesFor = (w, h, smooth) => (axes[`${w} ${h} ${smooth}`] ??= {
    x: spread(w, width, columns, left, right, smooth),
    y: spread(h, height, rows, top, bottom, smooth),
  });

  const paint = (canvas) => {
    const w = canvas.width, h = canvas.height;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.imageSmoothingQuality = "high";
    context.drawImage(picture, 0, 0, w, h);
    const pixels = context.getImageData(0, 0, w, h);
    const out = pixels.data;
    const map = shown(), [low, high] = scale(), span = high > low ? high - low : 0;
    const ramp = ramps[$("cmap").value], opacity = $("opacity").value / 100, fade = $("fade").checked;
    const { x, y } = axesFor(w, h, $("smooth").checked);
    const line = new Float32Array(columns);
    for (let j = 0; j < h; j++) {
      if (y[j]) {
        line.fill(0);
        for (const [row, weight] of y[j]) for (let c = 0; c < columns; c++) line[c] += weight * map[row * columns + c];
      }
      for (let i = 0; i < w; i++) {
        const at = 4 * (j * w + i);
        if (!y[j] || !x[i]) {
          for (let k = 0; k < 3; k++) out[at + k] = 0.4 * out[at + k] + 0.6 * 128;
          continue;
        }
        let value = 0;
        for (const [column, weight] of x[i]) value += weight * line[column];
        const unit = span ? Math.max(0, Math.min(1, (value - low) / span)) : 0;
        const part = opacity * (fade ? Math.pow(unit, 0.7) : 1), colour = 3 * Math.round(255 * unit);
        for (let k = 0; k < 3; k++) out[at + k] = (1 - part) * out[at + k] + part * ramp[colour + k];
      }
    }
    context.putImageData(pixels, 0, 0);
    if ($("grid").checked) {
      context.strokeStyle = "rgba(255,255,255,.55)";
      context.lineWidth = Math.max(1, w / 900);
      context.beginPath();
      for (let c = 0; c <= columns; c++) {
        const at = ((left + (c * (right - left)) / columns) / width) * w;
        context.moveTo(at, (top / height) * h);
        context.lineTo(at, (bottom / height) * h);
      }
      for (let r = 0; r <= rows; r++) {
        const at = ((top + (r * (bottom - top)) / rows) / height) * h;
        context.moveTo((left / width) * w, at);
        context.lineTo((right / width) * w, at);
      }
      context.stroke();
    }
  };

  const paintRamp = (canvas) => {
    const context = canvas.getContext("2d"), ramp = ramps[$("cmap").value];
    const pixels = context.createImageData(256, 1);
    for (let i = 0; i < 256; i++) pixels.data.set([ramp[3 * i], ramp[3 * i + 1], ramp[3 * i + 2], 255], 4 * i);
    context.putImageData(pixels, 0, 0);
  };

  const read = () => {
    const cursor = $("cursor");
    cursor.hidden = state.patch < 0;
    if (state.patch < 0) {
      $("reading").textContent = "Point at the picture to read a patch.";
      return;
    }
    const row = Math.floor(state.patch / columns), column = state.patch % columns;
    const map = shown(), value = map[state.patch];
    const rank = 1 + map.reduce((count, other) => count + (other > value), 0);
    const what = data.distribution ? " of the attention" : "";
    $("reading").textContent = `Row ${row + 1}, column ${column + 1}: ${number(value)}${what}, number ${rank} of ${patches}`;
    // Where the picture was padded, a patch may lie in part outside of it.
    const within = (value) => 100 * Math.max(0, Math.min(1, value));
    const w = (right - left) / columns, h = (bottom - top) / rows, style = cursor.style;
    const x = within((left + column * w) / width), y = within((top + row * h) / height);
    style.left = `${x}%`;
    style.top = `${y}%`;
    style.width = `${within((left + (column + 1) * w) / width) - x}%`;
    style.height = `${within((top + (row + 1) * h) / height) - y}%`;
  };

  const update = () => {
    paint(view);
    paintRamp($("ramp"));
    const [low, high] = scale();
    $("low").textContent = number(low);
    $("high").textContent = number(high);
    $("blockname").textContent = String(data.blocks[state.block]);
    $("blind").hidden = state.word >= 0 || !alike(state.block);
    $("opacityname").textContent = `${$("opacity").value}%`;
    [...$("questions").children].forEach((button, index) => button.setAttribute("aria-pressed", String(index === state.question)));
    [...$("words").children].forEach((button, index) => button.setAttribute("aria-pressed", String(index === state.pinned)));
    read();
  };
  let waiting = false;
  const soon = () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; update(); });
  };

  const element = (name, text, parent) => {
    const made = document.createElement(name);
    made.textContent = text;
    parent.append(made);
    return made;
  };
  const notesOf = (question) => [
    ...question.notes,
    ...data.notes,
    ...(data.cropped ? ["Grey: not seen by the model."] : []),
  ];
  const choose = (index) => {
    state.question = index;
    state.word = state.pinned = -1;
    const question = questions[index];
    $("answers").replaceChildren();
    $("answerbox").hidden = !question.answers.length;
    for (const [answer, chance] of question.answers) {
      const line = element("div", "", $("answers"));
      line.className = "answer";
      element("span", answer, line);
      const meter = element("meter", "", line);
      meter.value = chance;
      meter.setAttribute("aria-label", answer);
      element("span", `${Math.round(100 * chance)}%`, line);
    }
    $("notes").replaceChildren();
    for (const note of notesOf(question)) element("p", note, $("notes"));
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
    soon();
  };
  questions.forEach((question, index) => {
    const button = element("button", question.text || "No question", $("questions"));
    button.type = "button";
    button.addEventListener("click", () => choose(index));
  });
  for (const name of Object.keys(ramps)) element("option", name, $("cmap")).value = name;
  $("cmap").value = data.cmap;
  $("about").textContent = data.about;
  $("unit").textContent = unit;
  $("shared").checked = data.shared;
  if (data.blocks.length > 1) {
    $("blockrow").hidden = false;
    $("block").max = data.blocks.length - 1;
    $("block").value = state.block;
  }
  const goTo = (block) => {
    state.block = Math.max(0, Math.min(data.blocks.length - 1, block));
    $("block").value = state.block;
    state.word = state.pinned = -1;
    soon();
  };
  $("block").addEventListener("input", () => goTo(Number($("block").value)));
  for (const id of ["opacity", "cmap", "fade", "smooth", "grid", "shared"]) $(id).addEventListener("input", soon);

  const patchAt = (event) => {
    const box = view.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * width, y = ((event.clientY - box.top) / box.height) * height;
    if (x < left || x >= right || y < top || y >= bottom) return -1;
    const column = Math.floor(((x - left) / (right - left)) * columns), row = Math.floor(((y - top) / (bottom - top)) * rows);
    return row * columns + column;
  };
  view.addEventListener("pointermove", (event) => { state.patch = patchAt(event); read(); });
  view.addEventListener("pointerdown", (event) => { state.patch = patchAt(event); read(); });
  view.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") { state.patch = -1; read(); } });
  view.addEventListener("focus", () => { if (state.patch < 0) { state.patch = shown().indexOf(Math.max(...shown())); read(); } });
  view.addEventListener("blur", () => { state.patch = -1; read(); });
  view.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!step || state.patch < 0) return;
    event.preventDefault();
    const row = Math.floor(state.patch / columns) + step[0], column = (state.patch % columns) + step[1];
    if (row >= 0 && row < rows && column >= 0 && column < columns) state.patch = row * columns + column;
    read();
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "SELECT") return;
    const index = Number(event.key) - 1;
    if (Number.isInteger(index) && index >= 0 && index < questions.length) choose(index);
    else if (event.key === "[") goTo(state.block - 1);
    else if (event.key === "]") goTo(state.block + 1);
  });

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
    const word = state.word >= 0 ? ` (${questions[state.question].words[state.word]})` : "";
    context.font = font(20);
    const lines = wrapped(context, (questions[state.question].text || "No question") + word, view.width - 10);
    context.font = font(14);
    const small = notesOf(questions[state.question]).flatMap((note) => wrapped(context, note, view.width - 10));
    const head = 20 + 27 * lines.length, foot = 64 + 19 * small.length;
    canvas.width = view.width + 32;
    canvas.height = view.height + head + foot;
    context.fillStyle = "#fff";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.fillStyle = "#1c1c1e";
    context.font = font(20);
    lines.forEach((line, index) => context.fillText(line, 16, 32 + 27 * index));
    context.drawImage(view, 16, head);
    const y = head + view.height + 14;
    context.drawImage($("ramp"), 16, y, view.width, 12);
    context.fillStyle = "#5f5f66";
    context.font = font(14);
    context.fillText($("low").textContent, 16, y + 32);
    context.textAlign = "center";
    context.fillText(`${unit} · block ${data.blocks[state.block]}`, canvas.width / 2, y + 32);
    context.textAlign = "right";
    context.fillText($("high").textContent, canvas.width - 16, y + 32);
    context.textAlign = "left";
    small.forEach((line, index) => context.fillText(line, 16, y + 54 + 19 * index));
    return canvas;
  };
  $("download").addEventListener("click", () => compose().toBlob((blob) => {
    const link = document.createElement("a");
    const slug = (questions[state.question].text || "map").toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 60);
    link.href = URL.createObjectURL(blob);
    link.download = `${slug || "map"}-block-${data.blocks[state.block]}.png`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }, "image/png"));

  const picture = new Image();
  picture.addEventListener("load", () => {
    choose(0);
    update();
    document.documentElement.dataset.ready = "true";
  });
  picture.src = data.picture;
})();
