// What the engines are doing: from the numbers that Prometheus scrapes, twice in a while.
import { html, useRef, useState } from "/static/vendor/htm-preact.mjs";
import { getText } from "/static/api.js";
import { Chart, Problem, useEvery } from "/static/parts.js";

const SAMPLE = /^trefoil:(\w+)\{([^}]*)\} (\S+)$/;
const KEPT = 120;

/** `{model: {metric: value}}`, and the labels of the cache's size. */
export function parse(text) {
  const models = {};
  for (const line of text.split("\n")) {
    const found = SAMPLE.exec(line);
    const labels = found && Object.fromEntries(found[2].split(/,(?=\w+=)/).map((pair) => [pair.split("=")[0], pair.slice(pair.indexOf("=") + 2, -1)]));
    if (!labels?.model_name) continue;
    const own = (models[labels.model_name] ??= {});
    if (labels.num_gpu_blocks) own.pages = Number(labels.num_gpu_blocks);
    else if (!labels.le) own[found[1]] = (own[found[1]] ?? 0) + Number(found[3]);
  }
  return models;
}

export function Engine({ t }) {
  const [now, setNow] = useState({});
  const [error, setError] = useState(null);
  const before = useRef(null);
  const past = useRef({});
  const started = useRef(performance.now());
  useEvery(1, async () => {
    try {
      const [models, time] = [parse(await getText("/metrics")), performance.now()];
      for (const [name, own] of Object.entries(models)) {
        const then = before.current?.models[name];
        own.rate = then ? Math.max(0, own.generation_tokens_total - then.generation_tokens_total) / ((time - before.current.time) / 1000) : 0;
        past.current[name] = [...(past.current[name] ?? []), [Math.round((time - started.current) / 1000), own.rate]].slice(-KEPT);
      }
      before.current = { models, time };
      setNow(models); setError(null);
    } catch (problem) { setError(problem); }
  });
  return html`<section><${Problem} error=${error}/>${Object.entries(now).map(([name, own]) => html`<div class="card engine"><h2>${name}</h2>
    <dl><${Figure} name=${t("Running")} value=${own.num_requests_running}/><${Figure} name=${t("Waiting")} value=${own.num_requests_waiting}/>
      ${own.pages ? html`<${Figure} name=${t("Pages used")} value=${`${Math.round((own.kv_cache_usage_perc ?? 0) * own.pages)} ${t("of")} ${own.pages}`}/>` : null}
      ${own.prefix_cache_queries_total ? html`<${Figure} name=${t("Prefix cache hits")} value=${`${((100 * own.prefix_cache_hits_total) / own.prefix_cache_queries_total).toFixed(0)}%`}/>` : null}
      ${own.pages ? html`<${Figure} name=${t("Tokens per second")} value=${own.rate.toFixed(1)}/>` : null}<${Figure} name=${t("Answers")} value=${own.request_success_total ?? 0}/></dl>
    ${own.pages ? html`<progress max="1" value=${own.kv_cache_usage_perc}></progress>
    <${Chart} title=${t("Tokens per second")} points=${past.current[name] ?? []}/>` : null}</div>`)}</section>`;
}

const Figure = ({ name, value }) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`;
