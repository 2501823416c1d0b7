// Text of a model as HTML. Nothing in it can run or load: it is purified, and the page's policy allows no other source.

const ALLOWED = {
  FORBID_TAGS: ["style", "form", "input", "button", "textarea", "select", "img", "video", "audio", "svg", "math", "iframe"],
  FORBID_ATTR: ["style", "id", "name", "class"],
  ALLOW_DATA_ATTR: false,
};

export function element(tag, fields = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(fields)) {
    if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

export function markdown(text, isComplete) {
  const holder = element("div");
  const html = marked.parse(text, { gfm: true, breaks: true, async: false });
  const languages = [...html.matchAll(/<pre><code(?: class="language-([\w+-]+)")?>/g)].map((found) => found[1]);
  holder.append(DOMPurify.sanitize(html, { ...ALLOWED, RETURN_DOM_FRAGMENT: true }));
  for (const link of holder.querySelectorAll("a")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer";
  }
  holder.querySelectorAll("pre > code").forEach((code, index) => {
    const language = languages[index];
    if (isComplete && hljs.getLanguage(language)) {
      code.classList.add(`language-${language}`);
      hljs.highlightElement(code);
    }
    const source = code.textContent;
    const copy = element("button", { type: "button", textContent: "Copy" });
    copy.addEventListener("click", async () => {
      await navigator.clipboard.writeText(source);
      copy.textContent = "Copied";
    });
    const box = element("div", { className: "code" });
    code.parentElement.replaceWith(box);
    box.append(code.parentElement, copy);
  });
  return [...holder.childNodes];
}

// Says to a screen reader what has come, a sentence at a time.
export class Speaker {
  constructor(place) {
    this.place = place;
    this.said = 0;
  }

  follow(text, isComplete) {
    const rest = text.slice(this.said);
    const end = isComplete ? rest.length : rest.search(/[.!?:\n](?=[\s\S]*$)(?!.*[.!?:\n])/s) + 1;
    if (end <= 0 || (!isComplete && end < 40)) return;
    this.place.append(element("p", { textContent: rest.slice(0, end) }));
    this.said += end;
    while (this.place.childElementCount > 20) this.place.firstChild.remove();
  }
}
