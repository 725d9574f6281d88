// KaTeX renders what the Markdown extension arithmatex has marked: \(...\) in lines, \[...\] on their own.
(() => {
  // A comma after a symbol stays on the symbol's line.
  const hold = (el) => {
    const after = el.nextSibling, marks = after?.nodeType === Node.TEXT_NODE && after.data.match(/^[,.;:?!)\]]+/);
    if (!marks) return;
    after.splitText(marks[0].length);
    const together = document.createElement("span");
    together.style.whiteSpace = "nowrap";
    el.before(together);
    together.append(el, after);
  };
  const render = (root) => root.querySelectorAll(".arithmatex:not([data-rendered])").forEach((el) => {
    const source = el.textContent.trim();
    katex.render(source.slice(2, -2), el, { displayMode: source.startsWith("\\["), throwOnError: false, strict: "ignore" });
    el.dataset.rendered = "1";
    if (el.querySelectorAll(".base").length === 1) hold(el);
  });
  render(document.body);
  if (typeof document$ !== "undefined") document$.subscribe(({ body }) => render(body));
})();
