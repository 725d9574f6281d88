// KaTeX renders what the Markdown extension arithmatex has marked: \(...\) in lines, \[...\] on their own.
(() => {
  const render = (root) => root.querySelectorAll(".arithmatex:not([data-rendered])").forEach((el) => {
    const source = el.textContent.trim();
    katex.render(source.slice(2, -2), el, { displayMode: source.startsWith("\\["), throwOnError: false, strict: "ignore" });
    el.dataset.rendered = "1";
  });
  render(document.body);
  if (typeof document$ !== "undefined") document$.subscribe(({ body }) => render(body));
})();
