"use strict";
(() => {
  const runs = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const PAGE = 25;
  let shown = 0;

  const make = (tag, name, text) => {
    const node = document.createElement(tag);
    if (name) node.className = name;
    if (text !== undefined && text !== null) node.textContent = text;
    return node;
  };
  const failures = (edit, kind) => edit.probes.filter((p) => p.ok === false && (kind === "any" || p.kind === kind));
  const texts = (edit) =>
    [edit.id, edit.source, edit.subject, edit.prompt, edit.new, edit.old,
      ...edit.probes.flatMap((p) => [p.prompt, p.expected, p.before, p.after])].filter(Boolean).join("\n").toLowerCase();

  const marked = (node, text, word) => {
    const low = text.toLowerCase();
    let from = 0;
    for (let hit = word ? low.indexOf(word) : -1; hit >= 0; hit = low.indexOf(word, from)) {
      node.append(text.slice(from, hit), make("mark", "", text.slice(hit, hit + word.length)));
      from = hit + word.length;
    }
    node.append(text.slice(from));
    return node;
  };

  const term = (list, name, text, word, kind) => {
    list.append(make("dt", "", name));
    list.append(text ? marked(make("dd", kind), text, word) : make("dd", "what", "(nothing)"));
  };

  const probe = (p, word) => {
    const box = make("div", "probe");
    box.append(make("div", "what", p.group === p.kind ? p.kind : `${p.kind}: ${p.group.replaceAll("_", " ")}`));
    const list = make("dl");
    term(list, "prompt", p.prompt, word);
    if (p.kind !== "locality" && p.expected) term(list, "expected", p.expected, word);
    term(list, "before", p.before, word);
    const verdict = p.ok === null ? "" : p.ok ? "ok" : "bad";
    term(list, `after ${p.ok === null ? "" : p.ok ? "✓" : "✗"}`, p.after, word, verdict);
    if (p.kl !== undefined) term(list, "KL", `${p.kl} nats`, "");
    box.append(list);
    return box;
  };

  const badge = (edit, kind, name) => {
    const own = edit.probes.filter((p) => p.kind === kind && p.ok !== null);
    if (!own.length) return "";
    const good = own.filter((p) => p.ok).length;
    return make("span", `badge ${good === own.length ? "ok" : "bad"}`, `${name} ${good}/${own.length}`);
  };

  const card = (edit, word) => {
    const box = make("details");
    const head = make("summary");
    head.append(marked(make("span"), `${edit.prompt} `, word), make("strong", "", "→ "));
    head.append(marked(make("strong"), edit.new, word));
    if (edit.old) head.append(" ", make("span", "old", edit.old));
    const badges = make("span", "badges");
    for (const [kind, name] of [["prompt", "said"], ["rephrase", "rephrased"], ["portability", "follows"],
      ["locality", "kept"]]) badges.append(badge(edit, kind, name));
    head.append(badges);
    box.append(head);
    box.addEventListener("toggle", () => {
      if (box.open && box.children.length === 1) {
        const inside = make("div");
        inside.append(make("div", "small", [edit.source, edit.id].filter(Boolean).join(" · ")));
        for (const p of edit.probes) inside.append(probe(p, word));
        box.append(inside);
      }
    });
    return box;
  };

  const show = () => {
    const run = runs[at("run") ? Number(at("run").value) : 0];
    const kind = at("filter").value;
    const word = at("search").value.trim().toLowerCase();
    const found = run.edits.filter((edit) => (kind === "all" || failures(edit, kind).length > 0) &&
      (!word || texts(edit).includes(word)));
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    shown = Math.min(Math.max(0, shown), pages - 1);
    at("count").textContent = `${found.length} of ${run.edits.length} edits`;
    at("list").replaceChildren(...found.slice(shown * PAGE, (shown + 1) * PAGE).map((edit) => card(edit, word)));
    at("where").textContent = `${shown + 1} / ${pages}`;
    at("previous").disabled = shown === 0;
    at("next").disabled = shown === pages - 1;
  };

  const again = () => { shown = 0; show(); };
  at("controls").addEventListener("submit", (event) => event.preventDefault());
  at("search").addEventListener("input", again);
  at("filter").addEventListener("change", again);
  if (at("run")) at("run").addEventListener("change", again);
  at("previous").addEventListener("click", () => { shown -= 1; show(); });
  at("next").addEventListener("click", () => { shown += 1; show(); });
  show();
})();
