// The page: what is shown, and what happens when something is pressed.

import { Failure, chat, getJson, postJson, useKey } from "./api.js";
import { Speaker, element, markdown } from "./render.js";
import { Tree, load, store } from "./tree.js";

const $ = (id) => document.getElementById(id);
const SETTINGS = ["system", "effort", "temperature", "top_p", "max_tokens", "model"];

let trees = load();
let tree = trees[0] ?? new Tree();
let running = null; // the controller of the answer that is coming

// ------------------------------------------------------------------------------------------------ what is shown

function show() {
  const path = tree.path();
  $("messages").replaceChildren(...path.map(article));
  $("messages").scrollTop = $("messages").scrollHeight;
  showConversations();
  showTree(path);
  $("state").value = tree.state;
  $("state").disabled = tree.nodes.size > 0;
}

function article(node) {
  const made = element("article", { className: node.role });
  made.dataset.id = node.id;
  made.append(element("div", { className: "who", textContent: node.role === "user" ? "You" : "Model" }));
  const body = element("div", { className: "body" });
  if (node.role === "user") body.textContent = node.content;
  else {
    if (node.thought) made.append(thoughtOf(node));
    body.append(...markdown(node.content, node !== running?.node));
  }
  made.append(body);
  if (node !== running?.node) made.append(toolsOf(node));
  return made;
}

function thoughtOf(node) {
  const isThinking = node === running?.node && !node.content;
  const text = element("div", { className: "text", textContent: node.thought });
  const made = element("details", { className: "thought", open: isThinking });
  made.append(element("summary", { textContent: isThinking ? "Thinking…" : "Thought" }), text);
  return made;
}

function toolsOf(node) {
  const tools = element("div", { className: "tools" });
  const siblings = tree.children(node.parent);
  if (siblings.length > 1) {
    const index = siblings.indexOf(node);
    tools.append(
      button("‹", "Previous branch", () => goTo(tree.leaf(siblings[index - 1].id)), index === 0),
      `${index + 1}/${siblings.length}`,
      button("›", "Next branch", () => goTo(tree.leaf(siblings[index + 1].id)), index === siblings.length - 1),
    );
  }
  if (node.role === "user") tools.append(button("Edit", "Edit this message", () => edit(node)));
  else {
    tools.append(
      button("Retry", "Another answer", () => answer(node.parent)),
      button("Fork", "Continue from here", () => goTo(node.id)),
      button("Copy", "Copy the answer", () => navigator.clipboard.writeText(node.content)),
      element("span", { textContent: node.stats }),
    );
  }
  return tools;
}

function button(text, title, action, disabled = false) {
  const made = element("button", { type: "button", className: "plain", textContent: text, title, disabled });
  made.setAttribute("aria-label", title);
  made.addEventListener("click", () => running || action());
  return made;
}

function showConversations() {
  const items = trees.map((each) => {
    const open = button(each.title, `Open: ${each.title}`, () => {
      tree = each;
      $("side").classList.remove("open");
      show();
    });
    open.setAttribute("aria-current", String(each === tree));
    const remove = button("×", `Delete: ${each.title}`, () => {
      trees = trees.filter((other) => other !== each);
      if (tree === each) tree = new Tree();
      store(trees);
      show();
    });
    return element("li", { className: "row" }, open, remove);
  });
  $("conversations").replaceChildren(...items);
}

function showTree(path) {
  const onPath = new Set(path.map((node) => node.id));
  const branch = (parent) => {
    const nodes = tree.children(parent);
    return nodes.map((node) => {
      const text = `${node.role === "user" ? "›" : "·"} ${node.content.slice(0, 50) || "…"}`;
      const item = button(text, `Go to: ${node.content.slice(0, 50)}`, () => goTo(node.id));
      item.setAttribute("role", "treeitem");
      if (nodes.length > 1) item.classList.add("branch");
      if (onPath.has(node.id)) item.classList.add("here");
      item.setAttribute("aria-current", String(node.id === tree.at));
      const inner = branch(node.id);
      if (!inner.length) return item;
      const group = element("div", {}, ...inner);
      if (nodes.length > 1) group.setAttribute("role", "group");
      return element("div", {}, item, group);
    });
  };
  $("tree").replaceChildren(...branch(null));
}

function goTo(id) {
  tree.at = id;
  keep();
  show();
  $("message").focus();
}

function keep() {
  tree.changed = Date.now();
  if (!trees.includes(tree)) trees.unshift(tree);
  store(trees);
}

// ------------------------------------------------------------------------------------------------------ talking

function send(text) {
  let parent = tree.at;
  if (tree.nodes.get(parent)?.role === "user") parent = tree.nodes.get(parent).parent; // it was not answered
  const node = tree.add(parent, "user", text);
  answer(node.id);
}

function edit(node) {
  tree.at = node.parent;
  show();
  $("message").value = node.content;
  fit();
  $("message").focus();
}

function fieldsOf(parent) {
  const messages = tree.path(parent).map(({ role, content }) => ({ role, content }));
  if ($("system").value.trim()) messages.unshift({ role: "system", content: $("system").value });
  const fields = { model: $("model").value || undefined, messages };
  for (const name of ["temperature", "top_p", "max_tokens"]) if ($(name).value) fields[name] = Number($(name).value);
  if ($("effort").value) fields.reasoning_effort = $("effort").value;
  if (tree.state) fields.state = tree.state;
  if ($("save-as").value.trim()) Object.assign(fields, { save_as: $("save-as").value.trim(), overwrite: true });
  return fields;
}

async function answer(parent) {
  const node = tree.add(parent, "assistant", "");
  const controller = new AbortController();
  running = { node, controller };
  busy(true);
  show();
  $("note").textContent = "";
  const speaker = new Speaker($("said"));
  const since = performance.now();
  let first = 0;
  let isDrawn = true;
  try {
    for await (const chunk of chat(fieldsOf(parent), controller.signal)) {
      const delta = chunk.choices[0]?.delta ?? {};
      if (delta.content || delta.reasoning_content) first ||= performance.now();
      node.content += delta.content ?? "";
      node.thought += delta.reasoning_content ?? "";
      if (chunk.usage) node.stats = statsOf(chunk.usage, since, first);
      if (isDrawn) {
        isDrawn = false;
        requestAnimationFrame(() => {
          isDrawn = true;
          if (running?.node === node) draw(node);
        });
      }
      speaker.follow(node.content, false);
    }
  } catch (error) {
    if (error.name !== "AbortError") fail(error);
  }
  running = null;
  busy(false);
  speaker.follow(node.content, true);
  if (!node.content && !node.thought) {
    tree.nodes.delete(node.id);
    tree.at = parent;
  }
  keep();
  show();
  if (matchMedia("(pointer: fine)").matches) $("message").focus();
  listStates();
}

function draw(node) {
  const place = $("messages");
  const isAtEnd = place.scrollHeight - place.scrollTop - place.clientHeight < 80;
  place.lastElementChild.replaceWith(article(node));
  if (isAtEnd) place.scrollTop = place.scrollHeight;
}

function statsOf(usage, since, first) {
  const seconds = (performance.now() - (first || since)) / 1000;
  const speed = usage.completion_tokens > 1 ? (usage.completion_tokens - 1) / seconds : 0;
  const read = usage.prompt_tokens - usage.prompt_tokens_details.cached_tokens;
  const parts = [`${usage.completion_tokens} tokens`, `${speed.toFixed(0)}/s`];
  return [...parts, `first after ${((first || since) - since).toFixed(0)} ms`, `${read} read`].join(" · ");
}

function busy(is) {
  $("send").hidden = is;
  $("stop").hidden = !is;
  $("messages").setAttribute("aria-busy", String(is));
}

function fail(error) {
  $("note").textContent = error instanceof Failure ? error.message : "Something in this page failed.";
  if (!(error instanceof Failure)) console.error(error);
  if (error.status === 401) $("key-dialog").showModal();
}

// ------------------------------------------------------------------------------------------------- the side panel

async function listModels() {
  try {
    const { data } = await getJson("v1/models");
    $("model").replaceChildren(...data.map(({ id }) => element("option", { value: id, textContent: id })));
    const chosen = localStorage.getItem("setting-model");
    if (data.some(({ id }) => id === chosen)) $("model").value = chosen;
  } catch (error) {
    fail(error);
  }
}

async function listStates() {
  try {
    const { data } = await getJson("v1/states");
    const options = data
      .filter((state) => !state.error)
      .map(({ id, kind, tokens }) => element("option", { value: id, textContent: `${id} (${kind}, ${tokens} tokens)` }));
    $("state").replaceChildren(element("option", { value: "", textContent: "nothing" }), ...options);
    $("state").value = tree.state;
  } catch (error) {
    if (error.status !== 401) fail(error);
  }
}

async function readDocument(file) {
  const name = file.name.replace(/\.[^.]*$/, "").replace(/[^\p{L}\p{N}._ -]/gu, "_").slice(0, 80) || "document";
  $("states-note").textContent = `Reading ${file.name}…`;
  try {
    const fields = { name, input: await file.text(), model: $("model").value, overwrite: true };
    const state = await postJson("v1/states", fields);
    $("states-note").textContent = `${state.id}: ${state.tokens} tokens read.`;
    tree = new Tree({ state: state.id });
    await listStates();
    show();
  } catch (error) {
    $("states-note").textContent = "";
    fail(error);
  }
}

// --------------------------------------------------------------------------------------------------------- events

function fit() {
  const field = $("message");
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight + 2}px`;
}

function useTheme(name) {
  document.documentElement.dataset.theme = name;
  localStorage.setItem("theme", name);
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("message").value.trim();
  if (running || !text) return;
  $("message").value = "";
  fit();
  send(text);
});

$("message").addEventListener("input", fit);
$("message").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("form").requestSubmit();
  } else if (event.key === "ArrowUp" && !$("message").value && !running) {
    const last = tree.path().findLast((node) => node.role === "user");
    if (last) {
      event.preventDefault();
      edit(last);
    }
  }
});
document.addEventListener("keydown", (event) => event.key === "Escape" && running?.controller.abort());
$("stop").addEventListener("click", () => running?.controller.abort());
$("new").addEventListener("click", () => {
  if (running) return;
  tree = new Tree();
  $("side").classList.remove("open");
  show();
  $("message").focus();
});
$("state").addEventListener("change", () => (tree.state = $("state").value));
$("document").addEventListener("change", () => $("document").files[0] && readDocument($("document").files[0]));
$("theme").addEventListener("click", () =>
  useTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"),
);
$("show-side").addEventListener("click", () => {
  const isOpen = $("side").classList.toggle("open");
  $("show-side").setAttribute("aria-expanded", String(isOpen));
});
$("key-dialog").addEventListener("close", () => {
  useKey($("key").value);
  $("note").textContent = "";
  listModels().then(listStates);
});

for (const name of SETTINGS) {
  $(name).value = localStorage.getItem(`setting-${name}`) ?? $(name).value;
  $(name).addEventListener("change", () => localStorage.setItem(`setting-${name}`, $(name).value));
}
useTheme(localStorage.getItem("theme") ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
show();
listModels().then(listStates);
