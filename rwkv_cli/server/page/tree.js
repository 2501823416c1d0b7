// A conversation as a tree: every message knows what it follows, so that editing and trying again make branches.

const KEPT = "conversations";
const MOST = 100;

export class Tree {
  constructor(data = {}) {
    this.id = data.id ?? crypto.randomUUID();
    this.nodes = new Map(Object.entries(data.nodes ?? {}));
    this.at = data.at ?? null; // the id of the message that the conversation stands after
    this.state = data.state ?? ""; // the state that it begins after
    this.changed = data.changed ?? 0;
  }

  add(parent, role, content) {
    const id = crypto.randomUUID();
    const node = { id, parent, role, content, thought: "", stats: "" };
    this.nodes.set(id, node);
    this.at = id;
    return node;
  }

  children(parent) {
    return [...this.nodes.values()].filter((node) => node.parent === parent);
  }

  // The messages from the first one to a node.
  path(id = this.at) {
    const found = [];
    for (let node = this.nodes.get(id); node; node = this.nodes.get(node.parent)) found.unshift(node);
    return found;
  }

  // The last message that was said after a node, by way of the newest branches.
  leaf(id) {
    let last = id;
    for (let next = this.children(last); next.length; next = this.children(last)) last = next.at(-1).id;
    return last;
  }

  get title() {
    const first = this.children(null)[0];
    return first ? first.content.slice(0, 60) : "New conversation";
  }

  toJson() {
    const { id, at, state, changed } = this;
    return { id, at, state, changed, nodes: Object.fromEntries(this.nodes) };
  }
}

export function load() {
  try {
    return JSON.parse(localStorage.getItem(KEPT) ?? "[]").map((data) => new Tree(data));
  } catch {
    return [];
  }
}

// Keep conversations in this browser; the oldest go first where there is no room.
export function store(trees) {
  const kept = trees.filter((tree) => tree.nodes.size).sort((a, b) => b.changed - a.changed).slice(0, MOST);
  while (kept.length) {
    try {
      localStorage.setItem(KEPT, JSON.stringify(kept.map((tree) => tree.toJson())));
      return;
    } catch {
      kept.pop();
    }
  }
  localStorage.removeItem(KEPT);
}
