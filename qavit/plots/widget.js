// The notebook's widget: the viewer and the asking in a shadow root, so that neither its names nor its styles meet others.
const render = ({ model, el }) => {
  const host = document.createElement("div");
  const root = host.attachShadow({ mode: "open" });
  const style = document.createElement("style");
  style.textContent = STYLE;
  const page = document.createElement("div");
  page.className = "qavit";
  page.innerHTML = MARKUP;
  root.append(style, page);
  el.append(host);
  // JupyterLab says which theme it has, and when it gets another; elsewhere the system's holds.
  const follow = () => {
    const light = document.body.dataset.jpThemeLight;
    host.className = light ? (light === "true" ? "light" : "dark") : "";
  };
  follow();
  const theme = new MutationObserver(follow);
  theme.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light"] });

  const view = Math.random().toString(36).slice(2), waiting = new Map();
  let number = 0;
  const receive = ({ id, content, error }) => {
    const promised = waiting.get(id);
    if (!promised) return; // another view's
    waiting.delete(id);
    if (error) promised.reject(new Error(error));
    else promised.resolve(content);
  };
  model.on("msg:custom", receive);
  const ask = ({ picture, ...asked }) => new Promise((resolve, reject) => {
    const id = `${view} ${number += 1}`;
    waiting.set(id, { resolve, reject });
    model.send({ id, asked });
  });
  const { about, content, questions } = model.get("start");
  qavitAsking(root, qavitViewer(root), { about, ask, first: { id: null, content }, questions });
  return () => {
    theme.disconnect();
    model.off("msg:custom", receive);
  };
};
export default { render };
