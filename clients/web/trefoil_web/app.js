// The page's frame: tabs by address, language, key, and what is served.
import { html, render, useEffect, useState } from "/static/vendor/htm-preact.mjs";
import { get, key } from "/static/api.js";
import { Chat } from "/static/chat.js";
import { Engine } from "/static/engine.js";
import { Problem } from "/static/parts.js";
import { Classify, Entities, Fill } from "/static/tasks.js";
import { Training } from "/static/training.js";
import { speaking, startLanguage } from "/static/words.js";

const PAGES = { chat: ["Chat", Chat], fill: ["Fill", Fill], entities: ["Entities", Entities], classify: ["Classify", Classify], train: ["Train", Training], engine: ["Engine", Engine] };

function App() {
  const [page, setPage] = useState(here());
  const [language, setLanguage] = useState(startLanguage());
  const [models, setModels] = useState([]);
  const [error, setError] = useState(null);
  const [secret, setSecret] = useState(key.get());
  const [wanted, want] = useState("");
  const t = speaking(language);

  const refresh = () => get("/v1/models").then((answer) => { setModels(answer.data); setError(null); }, setError);
  useEffect(() => { addEventListener("hashchange", () => setPage(here())); }, []);
  useEffect(() => { refresh(); }, [secret]);
  useEffect(() => {
    if (models.every((model) => model.tasks.length)) return;
    const timer = setTimeout(refresh, 1000); // some model is still loading
    return () => clearTimeout(timer);
  }, [models]);
  useEffect(() => { document.documentElement.lang = language; localStorage.setItem("language", language); }, [language]);

  const ask = async (model) => { await refresh(); want(model); location.hash = "chat"; };
  const [, Page] = PAGES[page];
  return html`<header><h1><img src="/static/icon.svg" alt="" width="28" height="28"/> trefoil</h1>
      <nav>${Object.entries(PAGES).map(([name, [title]]) => html`<a href=${`#${name}`} aria-current=${name === page ? "page" : null}>${t(title)}</a>`)}</nav>
      <div class="tools"><a href="/docs">${t("API reference")}</a>
        <button class="quiet" lang=${language === "zh" ? "en" : "zh"} onClick=${() => setLanguage(language === "zh" ? "en" : "zh")}>${language === "zh" ? "English" : "中文"}</button></div></header>
    <main>${error?.status === 401 ? html`<form class="card" onSubmit=${(event) => { event.preventDefault(); const given = event.target.key.value; key.set(given); setSecret(given); }}>
        <label class="field"><span>${t("This server asks for a key")}</span><input name="key" type="password" autocomplete="off"/></label> <button class="go">${t("Send")}</button></form>`
      : html`<${Problem} error=${error}/><${Page} t=${t} models=${models} refresh=${refresh} ask=${ask} wanted=${wanted}/>`}</main>`;
}

const here = () => (location.hash.slice(1) in PAGES ? location.hash.slice(1) : "chat");

render(html`<${App}/>`, document.body);
