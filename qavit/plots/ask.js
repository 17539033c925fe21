// Asking: the controls of ask.html beside a viewer of page.js. `about` is what models/_asking.py says of a model;
// ask(request) promises what the viewer shows; upload(file), where pictures can be given, promises {id, content}; both
// reject with an Error for a person to read.
const qavitAsking = (root, viewer, { about, ask, upload = null, first = null, questions = [] }) => {
  const $ = (id) => root.getElementById(id);
  const QUICK = 400, PAUSE = 250, IDLE = 400, SETTLED = 1500, KEPT = 30; // milliseconds, and entries
  let picture = null, file = null, blank = null; // what is asked about, its file, and what is shown of it without a question
  let version = 0, flying = false, took = 0, due = 0, timer = 0, later = 0, settled = 0, given = 0;
  let answered = -1, kept = -1; // the versions that were shown, and that go into the history once they are
  const history = [];

  const say = (text) => { $("status").textContent = text; };
  // What is wrong with a picture stays said while questions about the one before are answered.
  let wrongPicture = false;
  const complain = (text, ofPicture = false) => {
    if (wrongPicture && !ofPicture) return;
    wrongPicture = ofPicture && Boolean(text);
    $("wrong").textContent = text;
    $("wrong").hidden = !text;
  };
  const option = (select, name, value) => { viewer.element("option", name, select).value = JSON.stringify(value); };
  const chosen = (id) => JSON.parse($(id).value);
  const texts = () => [$("question").value, $("question2").value].map((text) => text.trim()).filter((text) => text);
  const asksFor = () => about.methods[chosen("method")].asks;

  const fillMethod = () => {
    const { blocks, blind, own, heads } = about.methods[chosen("method")];
    const kept = [$("ownblock").value, $("heads").value];
    $("ownblock").replaceChildren();
    const all = own.length > 2 && own.at(-1) - own[0] === own.length - 1 ? `${own[0]} to ${own.at(-1)}` : own.join(", ");
    option($("ownblock"), `the method's own (${all})`, null);
    for (const block of blocks) option($("ownblock"), blind.includes(block) ? `${block} (the same map for every question)` : String(block), block);
    $("heads").replaceChildren();
    for (const head of heads) option($("heads"), typeof head === "number" ? `head ${head}` : head, head);
    $("headsrow").hidden = heads.length < 2;
    ["ownblock", "heads"].forEach((id, index) => {
      if ([...$(id).options].some(({ value }) => value === kept[index])) $(id).value = kept[index];
    });
    const asks = asksFor();
    $("question").disabled = $("question2").disabled = !about.takes_questions || !asks;
    $("question").placeholder = !about.takes_questions ? "this model takes no questions" : asks ? "" : "this method reads no question";
  };

  // ---- one question in flight, the newest one waiting ----

  const show = (content, beside) => viewer.show(content, { beside: beside ? 1 : -1 });
  const remember = () => {
    const now = texts();
    const key = JSON.stringify(now);
    if (!now.length || (history[0] && JSON.stringify(history[0]) === key)) return;
    const old = history.findIndex((one) => JSON.stringify(one) === key);
    if (old >= 0) history.splice(old, 1);
    history.unshift(now);
    history.splice(KEPT);
    $("history").replaceChildren();
    for (const one of history) {
      const button = viewer.element("button", one.join(" | "), $("history"));
      button.type = "button";
      button.addEventListener("click", () => {
        [$("question").value, $("question2").value] = [one[0], one[1] || ""];
        changed();
      });
    }
    $("historybox").hidden = false;
  };
  const keep = () => {
    kept = version;
    if (answered === version) remember();
  };
  const again = async () => {
    // The picture has left the server's memory: it goes there once more.
    if (!upload || !file) throw new Error("the picture is not known any more; give it again");
    picture = (await upload(file)).id;
  };
  const answer = async (request) => {
    try {
      return await ask({ picture, ...request });
    } catch (error) {
      if (!error.gone) throw error;
      await again();
      return ask({ picture, ...request });
    }
  };
  const run = async (words = false) => {
    if (flying || blank === null) return; // what is wanted by then is asked when the one in flight comes back
    const mine = version, asked = texts(), started = performance.now();
    if (asksFor() && about.takes_questions && !asked.length) {
      await viewer.show(blank);
      complain("");
      say("Type a question.");
      return;
    }
    const needs = asksFor() && about.takes_questions;
    const request = { questions: needs ? asked : null, method: chosen("method"), block: chosen("ownblock"), heads: chosen("heads"), fit: chosen("fit"), words };
    flying = true;
    const slow = setTimeout(() => { if (mine === version) say("Computing …"); }, 500);
    try {
      const content = await answer(request);
      if (mine === version) {
        await show(content, needs && asked.length > 1);
        answered = mine;
        if (kept === mine) remember();
        complain("");
        say("");
        if (content.has_words && !words) later = setTimeout(() => { if (mine === version) run(true); }, IDLE);
        clearTimeout(settled);
        settled = setTimeout(() => { if (mine === version) remember(); }, SETTLED);
      }
    } catch (error) {
      if (mine === version) {
        await viewer.show(blank);
        say("");
        complain(error.message);
      }
    } finally {
      clearTimeout(slow);
      flying = false;
      took = words ? took : performance.now() - started;
      if (mine !== version && performance.now() >= due) run(); // else the timer does
    }
  };
  // At once where an answer takes little longer than the next key: on average the last key then waits for half of one. Where
  // answers are slow it would wait longer than the pause after which it is asked here, and what nobody reads is not computed.
  const changed = () => {
    version += 1;
    if (wrongPicture) complain("", true);
    clearTimeout(timer);
    clearTimeout(later);
    due = performance.now() + (took <= QUICK ? 0 : PAUSE);
    if (took <= QUICK) run();
    else timer = setTimeout(run, PAUSE);
  };

  // ---- pictures ----

  const give = async (blob) => {
    if (!blob || !upload) return;
    given += 1;
    const mine = given;
    complain("", true);
    say("Reading the picture …");
    try {
      const { id, content } = await upload(blob);
      if (mine !== given) return;
      [picture, file, blank] = [id, blob, content];
      say("");
      const shown = viewer.show(blank);
      changed(); // before it is: an answer about the picture before must not be shown over this one
      await shown;
    } catch (error) {
      if (mine !== given) return;
      say("");
      complain(error.message, true);
    }
  };
  if (upload) {
    const target = root.host || document.documentElement;
    $("choose").addEventListener("click", () => $("file").click());
    $("file").addEventListener("change", () => { give($("file").files[0]); $("file").value = ""; });
    target.addEventListener("dragover", (event) => { event.preventDefault(); $("drop").classList.add("over"); });
    target.addEventListener("dragleave", () => $("drop").classList.remove("over"));
    target.addEventListener("drop", (event) => {
      event.preventDefault();
      $("drop").classList.remove("over");
      give(event.dataTransfer.files[0]);
    });
    target.addEventListener("paste", (event) => {
      const found = [...event.clipboardData.files].find(({ type }) => type.startsWith("image/"));
      if (!found) return;
      event.preventDefault();
      give(found);
    });
  } else {
    $("picturebox").hidden = true;
  }

  // ---- controls ----

  for (const id of ["question", "question2"]) {
    $(id).addEventListener("input", changed);
    // A little later: what is listed moves what lies below, a button that is being pressed among it.
    $(id).addEventListener("blur", () => { setTimeout(keep, IDLE); });
    $(id).addEventListener("keydown", (event) => { if (event.key === "Enter") keep(); });
  }
  $("method").addEventListener("input", () => { fillMethod(); changed(); });
  for (const id of ["ownblock", "heads", "fit"]) $(id).addEventListener("input", changed);
  root.addEventListener("keydown", (event) => {
    const target = event.composedPath()[0];
    if (event.ctrlKey || event.metaKey || event.altKey || !["[", "]"].includes(event.key)) return;
    if (target.tagName === "SELECT" || (target.tagName === "INPUT" && target.type === "text")) return;
    const last = $("ownblock").options.length - 1, now = $("ownblock").selectedIndex;
    // From the method's own choice to its neighbours.
    const from = now || 1 + about.methods[chosen("method")].blocks.indexOf(about.methods[chosen("method")].own.at(-1));
    $("ownblock").selectedIndex = Math.max(1, Math.min(last, from + (event.key === "]" ? 1 : -1)));
    changed();
  });
  for (const name of Object.keys(about.methods)) option($("method"), name, name);
  $("method").value = JSON.stringify(about.method);
  for (const [value, name] of [[null, "as it was trained"], ["crop", "the middle"], ["stretch", "all, out of shape"], ["pad", "all, within bars"]]) option($("fit"), name, value);
  fillMethod();
  [$("question").value, $("question2").value] = [questions[0] || "", questions[1] || ""];
  $("about").textContent = about.about;
  if (first) {
    [picture, blank] = [first.id, first.content];
    viewer.show(blank).then(changed);
  } else {
    say("Give a picture to begin.");
  }
  return { give };
};
