// The page of `qavit serve`: the viewer and the asking, over the server that the page came from.
(async () => {
  const TRIES = 4, PAUSE = 500; // a busy server is asked again, after so many milliseconds
  const tell = async (path, options = {}, tries = TRIES) => {
    let reply;
    try {
      reply = await fetch(path, options);
    } catch {
      throw new Error("The server does not answer. Start qavit serve again, and open the address that it says.");
    }
    if (reply.status === 503 && tries > 1) {
      await new Promise((done) => { setTimeout(done, PAUSE); });
      return tell(path, options, tries - 1);
    }
    const said = await reply.json().catch(() => ({}));
    if (!reply.ok) throw Object.assign(new Error(said.error || `The server answered ${reply.status}.`), { gone: reply.status === 410 });
    return said;
  };
  const json = (value) => ({ method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(value) });
  try {
    const about = await tell("model");
    const upload = (file) => {
      if (file.size > about.max_bytes) throw new Error(`This file has ${Math.ceil(file.size / 1e6)} MB; at most ${Math.floor(about.max_bytes / 1e6)} are taken.`);
      return tell("picture", { method: "POST", headers: { "Content-Type": "application/octet-stream" }, body: file });
    };
    qavitAsking(document, qavitViewer(document), {
      about, ask: (request) => tell("ask", json(request)), upload: async (file) => upload(file), first: about.first, questions: about.questions,
    });
  } catch (error) {
    document.getElementById("wrong").textContent = error.message;
    document.getElementById("wrong").hidden = false;
  }
  document.documentElement.dataset.ready = "true";
})();
